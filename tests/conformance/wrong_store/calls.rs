//! The calls of the store that is right, or wrong in one place.

use std::future::pending;
use std::thread;
use std::time::Duration;

use http::Response;
use tokio::task::yield_now;
use tokio::time::sleep;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Forgot, Hold, KeyStore, Lapse, Owner,
    Ownership, Phase, Record, RecordId, Snapshot, StoreError, StoreErrorKind,
};

use super::{Entry, Faulty, State};
use crate::faults::Fault;

impl KeyStore for Faulty {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        self.reach().await?;
        let reads_first = [Fault::ClaimReadsThenAwaits, Fault::ClaimReadsThenWrites];
        if self.fault.is_some_and(|fault| reads_first.contains(&fault)) {
            let found = self.records.lock().unwrap().get(&request.id).cloned();
            if self.has(Fault::ClaimReadsThenAwaits) {
                yield_now().await;
            } else {
                thread::sleep(Duration::from_millis(1));
            }
            let (claimed, entry) = self.decide(found.as_ref(), request);
            self.records
                .lock()
                .unwrap()
                .extend(entry.map(|entry| (request.id, entry)));
            return Ok(claimed);
        }
        let claimed = {
            let mut records = self.records.lock().unwrap();
            let (claimed, entry) = self.decide(records.get(&request.id), request);
            records.extend(entry.map(|entry| (request.id, entry)));
            claimed
        };
        if self.has(Fault::ClaimInTwoSteps) && matches!(claimed, Claimed::Acquired(_)) {
            let set_owner = |owner| {
                self.change(&request.id, |entry| {
                    if let Some(entry) = entry {
                        entry.owner = owner;
                    }
                });
            };
            set_owner(Owner::from_bytes([0; 16]));
            yield_now().await;
            set_owner(request.owner);
        }
        Ok(claimed)
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        self.reach().await?;
        if self.has(Fault::ExpiredIsExtended)
            && let Some(entry) = self.records.lock().unwrap().get_mut(&hold.id)
        {
            entry.end = entry.end.max(self.now() + retention);
        }
        Ok(self.change(&hold.id, |entry| {
            let Some(entry) = entry else {
                return Ownership::Lost;
            };
            let anybody = self.has(Fault::AnybodyExtends) && entry.is_running();
            if self.is_held(entry, hold) || anybody {
                let lease_end = self.now() + lease;
                entry.state = State::Running { lease_end };
                if self.has(Fault::ExtendForgetsLapse) {
                    entry.lapse = Lapse::TakeOver;
                }
                let end = match self.fault {
                    Some(Fault::RunEndsBeforeItsLease) => self.now() + retention,
                    _ => lease_end + retention,
                };
                entry.end = match self.fault {
                    Some(Fault::ExtendShortens) => end,
                    _ => end.max(entry.end),
                };
                Ownership::Held
            } else if self.has(Fault::AnybodyIsToldHeld) {
                Ownership::Held
            } else {
                Ownership::Lost
            }
        }))
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        self.reach().await?;
        if self.has(Fault::TooLargeLosesTheRun) && record.as_bytes().len() > 512 * 1024 {
            self.change(&hold.id, |entry| *entry = None);
            return Err(StoreErrorKind::Full.into());
        }
        if self.has(Fault::CompleteInTwoSteps) {
            self.change(&hold.id, |entry| {
                if let Some(entry) = entry.as_mut().filter(|entry| self.is_held(entry, hold)) {
                    entry.state = State::Completed(Record::new(&Response::new("")));
                }
            });
            yield_now().await;
        }
        let mut was_held = false;
        if self.has(Fault::CompleteReadsThenAwaits) {
            was_held = self.change(&hold.id, |entry| {
                entry
                    .as_ref()
                    .is_some_and(|entry| self.is_held(entry, hold))
            });
            yield_now().await;
        }
        Ok(self.change(&hold.id, |found| {
            let Some(entry) = found else {
                if self.has(Fault::LostIsNotRestored) {
                    return Completion::NotOwner;
                }
                let attempt = match self.fault {
                    Some(Fault::RestoredAsFirstAttempt) => 1,
                    _ => hold.attempt,
                };
                *found = Some(Entry {
                    fingerprint: hold.fingerprint,
                    owner: hold.owner,
                    attempt,
                    lapse: hold.lapse,
                    state: State::Completed(self.kept(record)),
                    claimed: self.now(),
                    end: self.now() + retention,
                });
                return Completion::Restored;
            };
            let is_owner = entry.owner == hold.owner;
            let may = match self.fault {
                Some(Fault::AnybodyCompletes) => entry.is_running(),
                Some(Fault::FailedRunMayComplete) => {
                    self.is_held(entry, hold) || (is_owner && entry.state == State::Failed)
                }
                Some(Fault::LapsedSealMayNotComplete) => {
                    let is_sealed = entry.has_lapsed(self.now()) && entry.lapse == Lapse::Seal;
                    self.is_held(entry, hold) && !is_sealed
                }
                Some(Fault::RepeatReplaces | Fault::CompleteInTwoSteps) => is_owner,
                _ => self.is_held(entry, hold) || was_held,
            };
            if may {
                entry.state = State::Completed(self.kept(record));
                entry.end = self.kept_until(entry, retention);
                return Completion::Stored;
            }
            match &entry.state {
                State::Completed(first) if is_owner => {
                    if self.has(Fault::RepeatComparesBytes) && first != record {
                        return Completion::NotOwner;
                    }
                    if self.has(Fault::RepeatProlongs) {
                        entry.end = entry.end.max(self.now() + retention);
                    }
                    Completion::Stored
                }
                _ => Completion::NotOwner,
            }
        }))
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        self.reach().await?;
        let held = self.change(&hold.id, |entry| {
            let Some(entry) = entry.as_mut().filter(|entry| self.is_held(entry, hold)) else {
                return Ownership::Lost;
            };
            let sealed = seal && !self.has(Fault::FailIgnoresSeal);
            if !self.has(Fault::FailKeepsLease) {
                entry.state = if sealed { State::Sealed } else { State::Failed };
            }
            if self.has(Fault::FailForgetsRequest) {
                entry.fingerprint = Fingerprint::from_bytes([0; 32]);
            }
            if !self.has(Fault::FailInTwoSteps) {
                entry.end = self.kept_until(entry, retention);
            }
            Ownership::Held
        });
        if self.has(Fault::FailInTwoSteps) && held == Ownership::Held {
            yield_now().await;
            self.change(&hold.id, |entry| {
                if let Some(entry) = entry {
                    entry.end = self.now() + retention;
                }
            });
        }
        Ok(held)
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        self.reach().await?;
        Ok(self.change(&hold.id, |found| {
            let Some(entry) = found else {
                return Ownership::Lost;
            };
            let may = match self.fault {
                Some(Fault::AnybodyReleases) => entry.is_running(),
                Some(Fault::CompletedMayBeReleased) => entry.owner == hold.owner,
                _ => self.is_held(entry, hold),
            };
            if !may {
                return Ownership::Lost;
            }
            let attempt = match self.fault {
                Some(Fault::ReleaseTrustsHold) => hold.attempt,
                Some(Fault::ReleaseAlwaysFrees) => 1,
                _ => entry.attempt,
            };
            if attempt == 1 {
                *found = None;
            } else {
                entry.state = State::Failed;
            }
            Ownership::Held
        }))
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        if self.has(Fault::UnreachableIsAbsent) {
            return Ok(None);
        }
        self.reach().await?;
        let now = self.now();
        let found = self.records.lock().unwrap().get(id).cloned();
        let found = found.filter(|entry| now < entry.end || self.has(Fault::ExpiredIsShown));
        Ok(found.map(|entry| {
            let phase = match &entry.state {
                State::Running { .. } if entry.has_lapsed(now) && entry.lapse == Lapse::Seal => {
                    Phase::Sealed
                }
                State::Running { lease_end } => Phase::Running {
                    lease_left: lease_end.saturating_duration_since(now),
                },
                State::Failed => Phase::Failed,
                State::Sealed => Phase::Sealed,
                State::Completed(record) => Phase::Completed(record.clone()),
            };
            let left = entry.end.saturating_duration_since(now);
            Snapshot::new(entry.fingerprint, entry.attempt, phase, left)
        }))
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        self.reach().await?;
        Ok(self.change(id, |found| {
            let Some(entry) = found else {
                return Forgot::Absent;
            };
            let is_live = entry.is_running() && !entry.has_lapsed(self.now());
            if is_live && !self.has(Fault::ForgetTakesLive) {
                return Forgot::Live;
            }
            *found = None;
            Forgot::Forgotten
        }))
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        self.reach().await?;
        Ok(self.change(id, |entry| {
            let Some(entry) = entry else {
                return false;
            };
            let has_lapsed = entry.has_lapsed(self.now()) && entry.lapse == Lapse::Seal;
            let is_sealed = match (&entry.state, self.fault) {
                (State::Running { .. }, Some(Fault::ResolveTakesRunning))
                | (State::Completed(_), Some(Fault::ResolveReplaces))
                | (State::Sealed, _) => true,
                (_, Some(Fault::ResolveSparesLapsed)) => false,
                _ => has_lapsed,
            };
            if is_sealed {
                entry.state = State::Completed(record.clone());
                entry.end = self.now() + retention;
            }
            is_sealed
        }))
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        self.reach().await?;
        let now = self.now();
        let at_most = match self.fault {
            Some(Fault::PurgeTakesAll) => usize::MAX,
            _ => at_most,
        };
        let is_dead = |entry: &Entry| {
            entry.end <= now || (self.has(Fault::PurgeTakesLapsed) && entry.has_lapsed(now))
        };
        let mut dead: Vec<RecordId> = {
            let records = self.records.lock().unwrap();
            let dead = records.iter().filter(|(_, entry)| is_dead(entry));
            dead.map(|(id, _)| *id).take(at_most).collect()
        };
        let without_looking = self.has(Fault::PurgeTakesRevived);
        if without_looking {
            yield_now().await;
        }
        let mut records = self.records.lock().unwrap();
        dead.retain(|id| without_looking || records.get(id).is_some_and(is_dead));
        Ok(dead.iter().filter_map(|id| records.remove(id)).count())
    }

    async fn changed(&self, _: &RecordId, at_most: Duration) {
        match self.fault {
            Some(Fault::WaitHasNoEnd) => pending().await,
            Some(Fault::ChangeIsMissed) => sleep(at_most).await,
            _ => sleep(at_most.min(Duration::from_millis(25))).await,
        }
    }
}
