//! What the store answers is what the contract says, told once more by a naive model.

mod property;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Forgot, Hold, Lapse, Owner, Ownership, Phase,
    Record, RecordId, ScopeId, Snapshot, StoreErrorKind,
};

use crate::len_of;

/// What the contract says, told once more without a thought for speed: time is a plain
/// duration, and what has expired is dropped before anything else is looked at.
struct Model {
    now: Duration,
    kept: HashMap<RecordId, Kept>,
    bounds: Bounds,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    records: usize,
    bytes: usize,
    per_scope: usize,
}

struct Kept {
    scope: ScopeId,
    fingerprint: Fingerprint,
    owner: Owner,
    attempt: u64,
    stage: Stage,
    end: Duration,
}

enum Stage {
    Running(Duration, Lapse),
    Failed,
    Sealed,
    Done(Record),
}

impl Kept {
    fn runs_for(&self, owner: Owner) -> bool {
        matches!(self.stage, Stage::Running(..)) && self.owner == owner
    }

    fn is_sealed(&self, now: Duration) -> bool {
        match self.stage {
            Stage::Running(until, lapse) => now >= until && lapse == Lapse::Seal,
            Stage::Sealed => true,
            _ => false,
        }
    }

    fn answer_len(&self) -> usize {
        match &self.stage {
            Stage::Done(record) => len_of(record),
            _ => 0,
        }
    }
}

impl Model {
    fn live(&mut self) -> &mut HashMap<RecordId, Kept> {
        let now = self.now;
        self.kept.retain(|_, kept| now < kept.end);
        &mut self.kept
    }

    fn bytes(&mut self) -> usize {
        self.live().values().map(Kept::answer_len).sum()
    }

    fn claim(&mut self, request: &ClaimRequest) -> Result<Claimed, StoreErrorKind> {
        let (now, bounds, bytes) = (self.now, self.bounds, self.bytes());
        let live = self.live();
        let until = now + request.lease;
        let mut end = until + request.retention;
        let attempt = match live.get(&request.id) {
            None => {
                let mut scopes = live.values().map(|kept| kept.scope);
                if live.len() >= bounds.records || bytes >= bounds.bytes {
                    return Err(StoreErrorKind::Full);
                }
                if scopes.by_ref().filter(|of| *of == request.scope).count() >= bounds.per_scope {
                    return Err(StoreErrorKind::Quota);
                }
                1
            }
            Some(kept) if kept.fingerprint != request.fingerprint => return Ok(Claimed::Mismatch),
            Some(kept) if kept.runs_for(request.owner) => {
                end = end.max(kept.end);
                kept.attempt
            }
            Some(kept) => {
                let attempt = kept.attempt;
                match &kept.stage {
                    Stage::Done(record) => {
                        let record = record.clone();
                        return Ok(Claimed::Completed { attempt, record });
                    }
                    Stage::Running(until, _) if now < *until => {
                        let lease_left = *until - now;
                        return Ok(Claimed::InProgress {
                            attempt,
                            lease_left,
                        });
                    }
                    _ if kept.is_sealed(now) => return Ok(Claimed::Abandoned { attempt }),
                    _ => attempt + 1,
                }
            }
        };
        let kept = Kept {
            scope: request.scope,
            fingerprint: request.fingerprint,
            owner: request.owner,
            attempt,
            stage: Stage::Running(until, request.lapse),
            end,
        };
        live.insert(request.id, kept);
        Ok(Claimed::Acquired(request.hold(attempt)))
    }

    fn run_of(&mut self, hold: &Hold) -> Option<&mut Kept> {
        let kept = self.live().get_mut(&hold.id);
        kept.filter(|kept| kept.runs_for(hold.owner))
    }

    fn extend(&mut self, hold: &Hold, lease: Duration, retention: Duration) -> Ownership {
        let now = self.now;
        let Some(run) = self.run_of(hold) else {
            return Ownership::Lost;
        };
        if let Stage::Running(until, _) = &mut run.stage {
            *until = now + lease;
        }
        run.end = run.end.max(now + lease + retention);
        Ownership::Held
    }

    fn complete(
        &mut self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreErrorKind> {
        let end = self.now + retention;
        let bytes = self.bytes() + len_of(record);
        let fits = record.is_omitted() || bytes <= self.bounds.bytes;
        let stage = Stage::Done(record.clone());
        match self.live().get_mut(&hold.id) {
            Some(kept) if kept.runs_for(hold.owner) && fits => {
                (kept.stage, kept.end) = (stage, end);
                Ok(Completion::Stored)
            }
            None if fits => {
                let kept = Kept {
                    scope: hold.scope,
                    fingerprint: hold.fingerprint,
                    owner: hold.owner,
                    attempt: hold.attempt,
                    stage,
                    end,
                };
                self.kept.insert(hold.id, kept);
                Ok(Completion::Restored)
            }
            Some(kept) if kept.owner == hold.owner && matches!(kept.stage, Stage::Done(_)) => {
                Ok(Completion::Stored)
            }
            Some(kept) if !kept.runs_for(hold.owner) => Ok(Completion::NotOwner),
            _ => Err(StoreErrorKind::Full),
        }
    }

    fn fail(&mut self, hold: &Hold, seal: bool, retention: Duration) -> Ownership {
        let end = self.now + retention;
        let Some(run) = self.run_of(hold) else {
            return Ownership::Lost;
        };
        run.stage = if seal { Stage::Sealed } else { Stage::Failed };
        run.end = end;
        Ownership::Held
    }

    fn release(&mut self, hold: &Hold) -> Ownership {
        match self.run_of(hold) {
            None => return Ownership::Lost,
            Some(run) if run.attempt > 1 => run.stage = Stage::Failed,
            Some(_) => drop(self.kept.remove(&hold.id)),
        }
        Ownership::Held
    }

    fn lookup(&mut self, id: &RecordId) -> Option<Snapshot> {
        let now = self.now;
        let kept = self.live().get(id)?;
        let phase = match &kept.stage {
            _ if kept.is_sealed(now) => Phase::Sealed,
            Stage::Running(until, _) => Phase::Running {
                lease_left: until.saturating_sub(now),
            },
            Stage::Done(record) => Phase::Completed(record.clone()),
            _ => Phase::Failed,
        };
        let left = kept.end - now;
        Some(Snapshot::new(kept.fingerprint, kept.attempt, phase, left))
    }

    fn forget(&mut self, id: &RecordId) -> Forgot {
        let now = self.now;
        match self.live().get(id) {
            None => Forgot::Absent,
            Some(kept) => match kept.stage {
                Stage::Running(until, _) if now < until => Forgot::Live,
                _ => {
                    self.kept.remove(id);
                    Forgot::Forgotten
                }
            },
        }
    }

    fn resolve(
        &mut self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreErrorKind> {
        let (now, limit) = (self.now, self.bounds.bytes);
        let bytes = self.bytes() + len_of(record);
        match self.live().get_mut(id) {
            Some(kept) if kept.is_sealed(now) => {
                if !record.is_omitted() && bytes > limit {
                    return Err(StoreErrorKind::Full);
                }
                kept.stage = Stage::Done(record.clone());
                kept.end = now + retention;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Every time at which something changes of itself, from now on.
    fn boundaries(&mut self) -> Vec<Duration> {
        let now = self.now;
        let mut times = BTreeSet::new();
        for kept in self.live().values() {
            times.insert(kept.end);
            if let Stage::Running(until, _) = kept.stage {
                times.insert(until);
            }
        }
        times.into_iter().filter(|time| *time > now).collect()
    }
}
