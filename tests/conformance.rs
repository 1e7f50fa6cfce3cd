//! The suite passes what keeps the contract, and finds what does not: every clause is
//! given stores that break it in one place.

#![cfg(all(feature = "conformance", feature = "memory"))]
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Response};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};
use tower_idempotency::store::{
    AnyStore, ClaimRequest, Claimed, Completion, Fingerprint, Forgot, Hold, KeyStore, Lapse,
    MemoryStore, Owner, Ownership, Phase, Record, RecordId, Snapshot, StoreError, StoreErrorKind,
    conformance,
};

#[tokio::test(start_paused = true)]
async fn clause_01() {
    judge(
        1,
        &[Fault::ClaimReadsThenAwaits, Fault::ClaimReadsThenWrites],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn clause_02() {
    let faults = [
        Fault::LiveRunIsTakenOver,
        Fault::LapsedRunIsNotFree,
        Fault::FailedRunIsNotFree,
        Fault::CompletedRunsAgain,
    ];
    judge(2, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_03() {
    let faults = [
        Fault::FailedIsFreeForAnother,
        Fault::LapsedIsFreeForAnother,
        Fault::OwnerMayChangeRequest,
    ];
    judge(3, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_04() {
    let faults = [
        Fault::TakeOverIsNotCounted,
        Fault::FailureIsNotCounted,
        Fault::SameClaimIsCounted,
        Fault::SameClaimIsNotRenewed,
    ];
    judge(4, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_05() {
    let faults = [
        Fault::SealedIsTakenOver,
        Fault::ChallengersLapseDecides,
        Fault::LapsedSealMayNotComplete,
        Fault::SealBeforeTheEnd,
        Fault::ExtendForgetsLapse,
    ];
    judge(5, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_06() {
    let faults = [
        Fault::AnybodyCompletes,
        Fault::AnybodyReleases,
        Fault::AnybodyExtends,
        Fault::AnybodyIsToldHeld,
        Fault::LateOwnerIsRefused,
        Fault::AttemptsAreCompared,
        Fault::FailedRunMayComplete,
        Fault::CompleteReadsThenAwaits,
    ];
    judge(6, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_07() {
    let faults = [
        Fault::RepeatReplaces,
        Fault::RepeatProlongs,
        Fault::RepeatComparesBytes,
        Fault::LostIsNotRestored,
        Fault::RestoredAsFirstAttempt,
    ];
    judge(7, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_08() {
    let faults = [
        Fault::FieldsAreSorted,
        Fault::FieldsAreText,
        Fault::RecordIsCut,
        Fault::TooLargeLosesTheRun,
        Fault::CompletedMayBeReleased,
        Fault::ResolveReplaces,
    ];
    judge(8, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_09() {
    let faults = [
        Fault::RetentionCountsFromClaim,
        Fault::RunEndsBeforeItsLease,
        Fault::ExtendShortens,
        Fault::ExpiredIsInProgress,
        Fault::ExpiredIsShown,
        Fault::ExpiredIsExtended,
        Fault::AttemptsGoOn,
    ];
    judge(9, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_10() {
    judge(10, &[Fault::NodeIsAhead, Fault::NodeIsBehind]).await;
}

#[tokio::test(start_paused = true)]
async fn clause_11() {
    let faults = [
        Fault::ClaimInTwoSteps,
        Fault::CompleteInTwoSteps,
        Fault::FailInTwoSteps,
    ];
    judge(11, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_12() {
    let faults = [
        Fault::FailIgnoresSeal,
        Fault::FailForgetsRequest,
        Fault::FailKeepsLease,
        Fault::ReleaseAlwaysFrees,
        Fault::ReleaseTrustsHold,
    ];
    judge(12, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_13() {
    let faults = [
        Fault::ExpiredWaitsForPurge,
        Fault::PurgeTakesLapsed,
        Fault::PurgeTakesAll,
        Fault::PurgeTakesRevived,
        Fault::ForgetTakesLive,
        Fault::ResolveTakesRunning,
        Fault::ResolveSparesLapsed,
    ];
    judge(13, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_14() {
    conforms(14, Faulty::new(Some(Fault::Unreachable))).await;
    let faults = [
        Fault::UnreachableWithoutSource,
        Fault::UnreachableIsFull,
        Fault::UnreachableHangs,
        Fault::UnreachableIsAbsent,
    ];
    rejects(14, &faults).await;
}

/// Not a clause: the wait for a change.
#[tokio::test(start_paused = true)]
async fn changed() {
    judge(0, &[Fault::ChangeIsMissed, Fault::WaitHasNoEnd]).await;
}

#[tokio::test(start_paused = true)]
async fn all_through_an_erased_store() {
    conformance::all(&AnyStore::new(MemoryStore::new())).await;
}

#[tokio::test(start_paused = true)]
async fn all_through_an_arc() {
    conformance::all(&Arc::new(MemoryStore::new())).await;
}

/// Nothing in the suite hangs on the paused clock, on a runtime of one thread, or on
/// having the store to itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_in_real_time() {
    let store = MemoryStore::new();
    let mut clauses = JoinSet::new();
    for clause in 0..=13 {
        let store = store.clone();
        clauses.spawn(async move { run(clause, &store, &store).await });
    }
    clauses.join_all().await;
}

/// Stores that keep the contract pass the clause, and each of these does not.
async fn judge(clause: u8, faults: &[Fault]) {
    conforms(clause, MemoryStore::new()).await;
    conforms(clause, Faulty::new(None)).await;
    rejects(clause, faults).await;
}

async fn conforms<K: KeyStore + Clone>(clause: u8, store: K) {
    run(clause, &store, &store.clone()).await;
}

async fn rejects(clause: u8, faults: &[Fault]) {
    for &fault in faults {
        let store = Faulty::new(Some(fault));
        let node = store.another_node();
        let judged = tokio::spawn(async move { run(clause, &store, &node).await }).await;
        let Err(rejected) = judged else {
            panic!("clause {clause} passes a store of which is true: {fault:?}");
        };
        let panic = rejected.into_panic();
        let message = panic.downcast_ref::<String>().unwrap();
        let begins = match clause {
            0 => "changed: ".to_owned(),
            clause => format!("clause {clause}: "),
        };
        assert!(message.starts_with(&begins), "{fault:?}: {message}");
    }
}

async fn run<K: KeyStore>(clause: u8, a: &K, b: &K) {
    match clause {
        0 => conformance::changed_wakes_waiters(a).await,
        1 => conformance::clause_01_claim_is_atomic(a, b).await,
        2 => conformance::clause_02_free_to_claim(a).await,
        3 => conformance::clause_03_another_request_is_a_mismatch(a).await,
        4 => conformance::clause_04_attempts_are_counted(a).await,
        5 => conformance::clause_05_sealed_keys_stay_sealed(a).await,
        6 => conformance::clause_06_only_the_owner_acts(a).await,
        7 => conformance::clause_07_completing_is_idempotent(a).await,
        8 => conformance::clause_08_records_do_not_change(a).await,
        9 => conformance::clause_09_retention_ends(a).await,
        10 => conformance::clause_10_one_clock_compares(a, b).await,
        11 => conformance::clause_11_dropped_calls_leave_no_half(a).await,
        12 => conformance::clause_12_fail_and_release(a).await,
        13 => conformance::clause_13_purge_forget_and_resolve(a).await,
        14 => conformance::clause_14_errors_are_typed(a).await,
        other => panic!("there is no clause {other}"),
    }
}

/// What a store may get wrong. Each is one place in [`Faulty`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ClaimReadsThenAwaits,
    ClaimReadsThenWrites,

    LiveRunIsTakenOver,
    LapsedRunIsNotFree,
    FailedRunIsNotFree,
    CompletedRunsAgain,

    FailedIsFreeForAnother,
    LapsedIsFreeForAnother,
    OwnerMayChangeRequest,

    TakeOverIsNotCounted,
    FailureIsNotCounted,
    SameClaimIsCounted,
    SameClaimIsNotRenewed,

    SealedIsTakenOver,
    ChallengersLapseDecides,
    LapsedSealMayNotComplete,
    SealBeforeTheEnd,
    ExtendForgetsLapse,

    AnybodyCompletes,
    AnybodyReleases,
    AnybodyExtends,
    AnybodyIsToldHeld,
    LateOwnerIsRefused,
    AttemptsAreCompared,
    FailedRunMayComplete,
    CompleteReadsThenAwaits,

    RepeatReplaces,
    RepeatProlongs,
    RepeatComparesBytes,
    LostIsNotRestored,
    RestoredAsFirstAttempt,

    FieldsAreSorted,
    FieldsAreText,
    RecordIsCut,
    TooLargeLosesTheRun,
    CompletedMayBeReleased,
    ResolveReplaces,

    RetentionCountsFromClaim,
    RunEndsBeforeItsLease,
    ExtendShortens,
    ExpiredIsInProgress,
    ExpiredIsShown,
    ExpiredIsExtended,
    AttemptsGoOn,

    NodeIsAhead,
    NodeIsBehind,

    ClaimInTwoSteps,
    CompleteInTwoSteps,
    FailInTwoSteps,

    FailIgnoresSeal,
    FailForgetsRequest,
    FailKeepsLease,
    ReleaseAlwaysFrees,
    ReleaseTrustsHold,

    ExpiredWaitsForPurge,
    PurgeTakesLapsed,
    PurgeTakesAll,
    PurgeTakesRevived,
    ForgetTakesLive,
    ResolveTakesRunning,
    ResolveSparesLapsed,

    Unreachable,
    UnreachableWithoutSource,
    UnreachableIsFull,
    UnreachableHangs,
    UnreachableIsAbsent,

    ChangeIsMissed,
    WaitHasNoEnd,
}

/// Where a record says when it was made, which is not what a store gets wrong here.
const RECORDED_AT: Range<usize> = 6..14;

/// A small store that keeps the contract, but for one fault.
#[derive(Clone)]
struct Faulty {
    fault: Option<Fault>,
    records: Arc<Mutex<HashMap<RecordId, Entry>>>,
    is_another_node: bool,
}

#[derive(Clone)]
struct Entry {
    fingerprint: Fingerprint,
    owner: Owner,
    attempt: u64,
    lapse: Lapse,
    state: State,
    claimed: Instant,
    end: Instant,
}

#[derive(Clone, PartialEq)]
enum State {
    Running { lease_end: Instant },
    Failed,
    Sealed,
    Completed(Record),
}

impl Entry {
    fn new(request: &ClaimRequest, attempt: u64, now: Instant) -> Self {
        let lease_end = now + request.lease;
        Self {
            fingerprint: request.fingerprint,
            owner: request.owner,
            attempt,
            lapse: request.lapse,
            state: State::Running { lease_end },
            claimed: now,
            end: lease_end + request.retention,
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    fn has_lapsed(&self, now: Instant) -> bool {
        matches!(self.state, State::Running { lease_end } if lease_end <= now)
    }
}

impl Faulty {
    fn new(fault: Option<Fault>) -> Self {
        Self {
            fault,
            records: Arc::default(),
            is_another_node: false,
        }
    }

    fn another_node(&self) -> Self {
        Self {
            is_another_node: true,
            ..self.clone()
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn now(&self) -> Instant {
        let now = Instant::now();
        match self.fault {
            Some(Fault::NodeIsAhead) if self.is_another_node => now + Duration::from_secs(2),
            Some(Fault::NodeIsBehind) if self.is_another_node => now - Duration::from_secs(2),
            _ => now,
        }
    }

    async fn reach(&self) -> Result<(), StoreError> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        match self.fault {
            Some(Fault::Unreachable | Fault::UnreachableIsAbsent) => {
                Err(StoreError::new(StoreErrorKind::NotApplied, refused()))
            }
            Some(Fault::UnreachableWithoutSource) => Err(StoreErrorKind::NotApplied.into()),
            Some(Fault::UnreachableIsFull) => Err(StoreError::new(StoreErrorKind::Full, refused())),
            Some(Fault::UnreachableHangs) => pending().await,
            _ => Ok(()),
        }
    }

    /// Changes the record of an id, which is `None` once it has expired.
    fn change<T>(&self, id: &RecordId, change: impl FnOnce(&mut Option<Entry>) -> T) -> T {
        let now = self.now();
        let mut records = self.records.lock().unwrap();
        let mut entry = records.remove(id).filter(|entry| now < entry.end);
        let answer = change(&mut entry);
        if let Some(entry) = entry {
            records.insert(*id, entry);
        }
        answer
    }

    fn decide(&self, found: Option<&Entry>, request: &ClaimRequest) -> (Claimed, Option<Entry>) {
        let now = self.now();
        let acquired = |attempt| {
            let mut entry = Entry::new(request, attempt, now);
            if self.has(Fault::RunEndsBeforeItsLease) {
                entry.end = now + request.retention;
            }
            (Claimed::Acquired(request.hold(attempt)), Some(entry))
        };
        let Some(entry) = found else {
            return acquired(1);
        };
        let attempt = entry.attempt;
        let in_progress = |lease_left| {
            let running = Claimed::InProgress {
                attempt,
                lease_left,
            };
            (running, None)
        };
        let abandoned = (Claimed::Abandoned { attempt }, None);

        if now >= entry.end && !self.has(Fault::ExpiredWaitsForPurge) {
            return match self.fault {
                Some(Fault::ExpiredIsInProgress) if entry.is_running() => {
                    in_progress(Duration::ZERO)
                }
                Some(Fault::AttemptsGoOn) => acquired(attempt + 1),
                _ => acquired(1),
            };
        }
        let is_owner = entry.owner == request.owner;
        if entry.fingerprint != request.fingerprint {
            let is_free = match self.fault {
                Some(Fault::FailedIsFreeForAnother) => entry.state == State::Failed,
                Some(Fault::LapsedIsFreeForAnother) => entry.has_lapsed(now),
                Some(Fault::OwnerMayChangeRequest) => is_owner && entry.is_running(),
                _ => false,
            };
            let mismatch = (Claimed::Mismatch, None);
            return if is_free {
                acquired(attempt + 1)
            } else {
                mismatch
            };
        }
        match &entry.state {
            State::Completed(_) if is_owner && self.has(Fault::CompletedRunsAgain) => {
                acquired(attempt)
            }
            State::Completed(record) => {
                let record = record.clone();
                (Claimed::Completed { attempt, record }, None)
            }
            State::Failed => match self.fault {
                Some(Fault::FailedRunIsNotFree) => in_progress(Duration::ZERO),
                Some(Fault::FailureIsNotCounted) => acquired(attempt),
                _ => acquired(attempt + 1),
            },
            State::Sealed => match self.fault {
                Some(Fault::SealedIsTakenOver) => acquired(attempt + 1),
                _ => abandoned,
            },
            State::Running { .. } if is_owner => match self.fault {
                Some(Fault::SameClaimIsCounted) => acquired(attempt + 1),
                Some(Fault::SameClaimIsNotRenewed) => {
                    (Claimed::Acquired(request.hold(attempt)), None)
                }
                _ => acquired(attempt),
            },
            State::Running { lease_end } if *lease_end > now => match self.fault {
                Some(Fault::LiveRunIsTakenOver) => acquired(attempt + 1),
                Some(Fault::SealBeforeTheEnd) if entry.lapse == Lapse::Seal => abandoned,
                _ => in_progress(*lease_end - now),
            },
            State::Running { .. } => {
                let lapse = match self.fault {
                    Some(Fault::ChallengersLapseDecides) => request.lapse,
                    _ => entry.lapse,
                };
                match self.fault {
                    _ if lapse == Lapse::Seal => abandoned,
                    Some(Fault::LapsedRunIsNotFree) => in_progress(Duration::ZERO),
                    Some(Fault::TakeOverIsNotCounted) => acquired(attempt),
                    _ => acquired(attempt + 1),
                }
            }
        }
    }

    /// Whether a hold is that of the current owner of a running record.
    fn is_held(&self, entry: &Entry, hold: &Hold) -> bool {
        let fits = match self.fault {
            Some(Fault::LateOwnerIsRefused) => !entry.has_lapsed(self.now()),
            Some(Fault::AttemptsAreCompared) => entry.attempt == hold.attempt,
            _ => true,
        };
        fits && entry.owner == hold.owner && entry.is_running()
    }

    /// When a run that ends now is forgotten.
    fn kept_until(&self, entry: &Entry, retention: Duration) -> Instant {
        match self.fault {
            Some(Fault::RetentionCountsFromClaim) => entry.claimed + retention,
            _ => self.now() + retention,
        }
    }

    /// What is kept of an answer.
    fn kept(&self, record: &Record) -> Record {
        let headers = record.headers();
        let fields = headers.iter();
        let mut fields: Vec<(HeaderName, HeaderValue)> = fields
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let body = record.body();
        let mut kept = body.len();
        match self.fault {
            Some(Fault::FieldsAreSorted) => {
                fields.sort_by_key(|(name, _)| name.to_string());
            }
            Some(Fault::FieldsAreText) => {
                for (_, value) in &mut fields {
                    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    *value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
                }
            }
            Some(Fault::RecordIsCut) if kept > 64 * 1024 => kept = 64 * 1024,
            _ => return record.clone(),
        }
        let mut answer = Response::new(body.slice(..kept));
        *answer.status_mut() = record.status();
        *answer.headers_mut() = fields.into_iter().collect();
        let mut kept = Record::new(&answer).as_bytes().to_vec();
        kept[RECORDED_AT].copy_from_slice(&record.as_bytes()[RECORDED_AT]);
        Record::from_bytes(kept.into()).unwrap()
    }
}

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
