//! `MemoryStore`: against a naive model, at its bounds, at the edges of time, and raced.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;
use tokio::sync::Barrier;
use tokio::time::{Instant, advance};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Forgot, Hold, KeyStore, Lapse, MemoryStore,
    Owner, Ownership, Phase, Record, RecordId, ScopeId, Snapshot, StoreErrorKind,
};
use tower_idempotency::{IdempotencyKey, Scope};

const LEASE: Duration = Duration::from_secs(10);
const RETENTION: Duration = Duration::from_secs(100);
const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);
const NS: Duration = Duration::from_nanos(1);

fn id(key: usize) -> RecordId {
    let key = IdempotencyKey::new(&format!("key-{key}")).unwrap();
    RecordId::new("tests", &Scope::new("caller"), &key)
}

fn scope(n: u8) -> ScopeId {
    ScopeId::from_bytes([n; 16])
}

fn owner(n: u8) -> Owner {
    Owner::from_bytes([n; 16])
}

fn fingerprint(n: u8) -> Fingerprint {
    Fingerprint::from_bytes([n; 32])
}

/// A claim of `key` for an owner, in scope 0, with fingerprint 0.
fn request(key: usize, by: u8) -> ClaimRequest {
    let mut request = ClaimRequest::new(id(key), scope(0), fingerprint(0), owner(by));
    request.lease = LEASE;
    request.retention = RETENTION;
    request
}

fn sealing(key: usize, by: u8) -> ClaimRequest {
    let mut request = request(key, by);
    request.lapse = Lapse::Seal;
    request
}

async fn acquire(store: &MemoryStore, request: &ClaimRequest) -> Hold {
    match store.claim(request).await.unwrap() {
        Claimed::Acquired(hold) => hold,
        other => panic!("not acquired: {other:?}"),
    }
}

async fn refusal(store: &MemoryStore, request: &ClaimRequest) -> StoreErrorKind {
    store.claim(request).await.unwrap_err().kind()
}

/// Claims and completes a key.
async fn complete(store: &MemoryStore, key: usize) -> Hold {
    let hold = acquire(store, &request(key, 1)).await;
    let completion = store.complete(&hold, &answer("paid"), RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Stored);
    hold
}

async fn phase(store: &MemoryStore, key: usize) -> Option<Phase> {
    let snapshot = store.lookup(&id(key)).await.unwrap();
    snapshot.map(|snapshot| snapshot.phase)
}

fn answer(body: &str) -> Record {
    Record::new(&http::Response::new(body))
}

/// An answer without its body, by the flag that stands third in the stored form.
fn omitted() -> Record {
    let mut bytes = answer("").as_bytes().to_vec();
    bytes[2] |= 1;
    let record = Record::from_bytes(Bytes::from(bytes)).unwrap();
    assert!(record.is_omitted());
    record
}

fn len_of(record: &Record) -> usize {
    record.as_bytes().len()
}

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

#[derive(Debug, Clone)]
enum Step {
    Claim(ClaimRequest),
    Extend(Hold, Duration, Duration),
    Complete(Hold, Record, Duration),
    Fail(Hold, bool, Duration),
    Release(Hold),
    Forget(RecordId),
    Resolve(RecordId, Record, Duration),
    Purge(usize),
    /// To one of the next boundaries; one nanosecond less if it is set.
    WaitFor(usize, bool),
    Wait(Duration),
}

const KEYS: usize = 4;

fn any_id() -> impl Strategy<Value = RecordId> {
    (0..KEYS).prop_map(id)
}

fn duration() -> impl Strategy<Value = Duration> {
    prop::sample::select(vec![0, 1, 7, 10, 10, 50]).prop_map(Duration::from_millis)
}

fn any_record() -> impl Strategy<Value = Record> {
    prop::sample::select(vec![answer("a"), answer("bb"), omitted()])
}

/// Two keys of each of two scopes, two fingerprints, three owners.
fn any_request() -> impl Strategy<Value = ClaimRequest> {
    let lapse = prop::sample::select(vec![Lapse::TakeOver, Lapse::Seal]);
    // The second fingerprint is rare, or nearly every claim would be a mismatch.
    let print = prop::sample::select(vec![0, 0, 0, 1]);
    let claim = (0..KEYS, print, 0..3_u8, duration(), duration(), lapse);
    claim.prop_map(|(key, print, by, lease, retention, lapse)| {
        let of = scope((key % 2) as u8);
        let mut request = ClaimRequest::new(id(key), of, fingerprint(print), owner(by));
        request.lease = lease;
        request.retention = retention;
        request.lapse = lapse;
        request
    })
}

/// A hold of anybody, with an attempt that may be anything.
fn any_hold() -> impl Strategy<Value = Hold> {
    (any_request(), 1..4_u64).prop_map(|(request, attempt)| request.hold(attempt))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_request().prop_map(Step::Claim),
        2 => (any_hold(), duration(), duration()).prop_map(|(h, l, r)| Step::Extend(h, l, r)),
        4 => (any_hold(), any_record(), duration()).prop_map(|(h, a, r)| Step::Complete(h, a, r)),
        4 => (any_hold(), any::<bool>(), duration()).prop_map(|(h, s, r)| Step::Fail(h, s, r)),
        2 => any_hold().prop_map(Step::Release),
        1 => any_id().prop_map(Step::Forget),
        2 => (any_id(), any_record(), duration()).prop_map(|(i, a, r)| Step::Resolve(i, a, r)),
        2 => (0..5_usize).prop_map(Step::Purge),
        4 => (0..3_usize, any::<bool>()).prop_map(|(n, before)| Step::WaitFor(n, before)),
        1 => duration().prop_map(Step::Wait),
    ]
}

/// The store and the model, asked the same.
struct Pair {
    store: MemoryStore,
    model: Model,
}

impl Pair {
    fn new(bounds: Bounds) -> Self {
        let store = MemoryStore::new()
            .max_records(bounds.records)
            .max_bytes(bounds.bytes)
            .max_records_per_scope(bounds.per_scope);
        let model = Model {
            now: Duration::ZERO,
            kept: HashMap::new(),
            bounds,
        };
        Self { store, model }
    }

    async fn step(&mut self, step: &Step) {
        let Self { store, model } = self;
        match step {
            Step::Claim(request) => {
                let claimed = store.claim(request).await.map_err(|error| error.kind());
                assert_eq!(claimed, model.claim(request));
            }
            Step::Extend(hold, lease, retention) => {
                let ownership = store.extend(hold, *lease, *retention).await.unwrap();
                assert_eq!(ownership, model.extend(hold, *lease, *retention));
            }
            Step::Complete(hold, record, retention) => {
                let completion = store.complete(hold, record, *retention).await;
                let completion = completion.map_err(|error| error.kind());
                assert_eq!(completion, model.complete(hold, record, *retention));
            }
            Step::Fail(hold, seal, retention) => {
                let ownership = store.fail(hold, *seal, *retention).await.unwrap();
                assert_eq!(ownership, model.fail(hold, *seal, *retention));
            }
            Step::Release(hold) => {
                let ownership = store.release(hold).await.unwrap();
                assert_eq!(ownership, model.release(hold));
            }
            Step::Forget(id) => {
                assert_eq!(store.forget(id).await.unwrap(), model.forget(id));
            }
            Step::Resolve(id, record, retention) => {
                let resolved = store.resolve(id, record, *retention).await;
                let resolved = resolved.map_err(|error| error.kind());
                assert_eq!(resolved, model.resolve(id, record, *retention));
            }
            Step::Purge(at_most) => self.purge(*at_most).await,
            Step::Wait(duration) => self.wait(*duration).await,
            Step::WaitFor(nth, just_before) => {
                if let Some(time) = model.boundaries().get(*nth) {
                    let short = if *just_before { NS } else { Duration::ZERO };
                    let wait = *time - model.now - short;
                    self.wait(wait).await;
                }
            }
        }
    }

    async fn wait(&mut self, duration: Duration) {
        advance(duration).await;
        self.model.now += duration;
    }

    async fn purge(&mut self, at_most: usize) {
        let before = self.store.len();
        let removed = self.store.purge_expired(at_most).await.unwrap();
        assert!(removed <= at_most);
        assert_eq!(self.store.len(), before - removed);
        if removed < at_most {
            assert_eq!(self.store.len(), self.model.live().len());
            assert_eq!(self.store.bytes(), self.model.bytes());
        }
    }

    async fn compare(&mut self) {
        for key in 0..KEYS {
            let found = self.store.lookup(&id(key)).await.unwrap();
            assert_eq!(found, self.model.lookup(&id(key)));
        }
        assert!(self.store.len() >= self.model.live().len());
        assert!(self.store.bytes() >= self.model.bytes());
    }
}

fn agrees_with_the_model(bounds: Bounds, steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut pair = Pair::new(bounds);
        for step in steps {
            pair.step(step).await;
            pair.compare().await;
        }
        pair.purge(usize::MAX).await;
        pair.wait(HOUR).await;
        pair.purge(usize::MAX).await;
        assert!(pair.store.is_empty());
        assert_eq!(pair.store.bytes(), 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn agrees_with_a_naive_model(steps in prop::collection::vec(any_step(), 1..80)) {
        let bounds = Bounds { records: 100, bytes: 10_000, per_scope: 100 };
        agrees_with_the_model(bounds, &steps);
    }

    #[test]
    fn agrees_with_a_naive_model_at_its_bounds(
        steps in prop::collection::vec(any_step(), 1..80),
        records in 2..4_usize,
        answers in 1..3_usize,
        per_scope in 1..3_usize,
    ) {
        let bytes = answers * len_of(&answer("bb"));
        agrees_with_the_model(Bounds { records, bytes, per_scope }, &steps);
    }
}

#[tokio::test(start_paused = true)]
async fn a_completed_record_lives_until_its_end_and_not_at_it() {
    let store = MemoryStore::new();
    complete(&store, 0).await;
    advance(RETENTION - MS).await;
    let snapshot = store.lookup(&id(0)).await.unwrap().unwrap();
    assert_eq!(snapshot.retention_left, MS);
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
    assert!(matches!(
        store.claim(&request(0, 2)).await.unwrap(),
        Claimed::Completed { attempt: 1, .. }
    ));

    advance(MS).await;
    assert_eq!(phase(&store, 0).await, None);
    assert_eq!(store.forget(&id(0)).await.unwrap(), Forgot::Absent);
    assert_eq!(store.len(), 1, "expired, and not yet purged");
    assert_eq!(acquire(&store, &request(0, 2)).await.attempt, 1);
    assert_eq!((store.len(), store.bytes()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_over_at_its_end() {
    let store = MemoryStore::new();
    acquire(&store, &request(0, 1)).await;
    advance(LEASE - NS).await;
    assert_eq!(
        store.claim(&request(0, 2)).await.unwrap(),
        Claimed::InProgress {
            attempt: 1,
            lease_left: NS
        }
    );
    advance(NS).await;
    assert_eq!(acquire(&store, &request(0, 2)).await.attempt, 2);
}

#[tokio::test(start_paused = true)]
async fn the_end_is_exact_whether_retention_is_shorter_or_longer_than_the_claims() {
    let store = MemoryStore::new();
    for (key, retention) in [(0, MS), (1, RETENTION), (2, 2 * HOUR)] {
        let hold = acquire(&store, &request(key, 1)).await;
        let completion = store.complete(&hold, &answer("paid"), retention).await;
        assert_eq!(completion.unwrap(), Completion::Stored);
    }
    for (wait, left) in [(MS, 2), (RETENTION - MS, 1), (2 * HOUR - RETENTION, 0)] {
        advance(wait - NS).await;
        assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
        advance(NS).await;
        assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 1);
        assert_eq!(store.len(), left);
    }
    assert_eq!(store.bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_renewed_run_outlives_what_was_queued_for_it() {
    let store = MemoryStore::new();
    let hold = acquire(&store, &request(0, 1)).await;
    for _ in 0..100 {
        advance(LEASE / 2).await;
        assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
        let ownership = store.extend(&hold, LEASE, RETENTION).await;
        assert_eq!(ownership.unwrap(), Ownership::Held);
    }
    advance(LEASE + RETENTION - NS).await;
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
    advance(NS).await;
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_purge_keeps_a_stale_run_until_its_retention_is_over() {
    let store = MemoryStore::new();
    let hold = acquire(&store, &request(0, 1)).await;
    advance(LEASE + RETENTION - MS).await;
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
    let other = ClaimRequest::new(id(0), scope(0), fingerprint(1), owner(2));
    assert_eq!(store.claim(&other).await.unwrap(), Claimed::Mismatch);
    let completion = store.complete(&hold, &answer("late"), RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Stored);
}

#[tokio::test(start_paused = true)]
async fn a_purge_removes_as_many_as_it_may_and_counts_them() {
    let store = MemoryStore::new();
    for key in 0..300 {
        complete(&store, key).await;
    }
    advance(RETENTION).await;
    let live = acquire(&store, &request(1000, 1)).await;
    let cleared_by_the_claim = 301 - store.len();
    assert!(cleared_by_the_claim <= 4);

    let mut left = 300 - cleared_by_the_claim;
    assert_eq!(store.purge_expired(0).await.unwrap(), 0);
    while left > 0 {
        let removed = store.purge_expired(64).await.unwrap();
        assert_eq!(removed, left.min(64));
        left -= removed;
    }
    assert_eq!(store.purge_expired(64).await.unwrap(), 0);
    assert_eq!((store.len(), store.bytes()), (1, 0));
    let ownership = store.extend(&live, LEASE, RETENTION).await;
    assert_eq!(ownership.unwrap(), Ownership::Held);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_thousand_records_expire_without_a_trace() {
    const RECORDS: usize = 200_000;
    let store = MemoryStore::new();
    let paid = answer("paid");
    for key in 0..RECORDS {
        let hold = acquire(&store, &request(key, 1)).await;
        store.complete(&hold, &paid, RETENTION).await.unwrap();
    }
    assert_eq!(store.len(), RECORDS);
    assert_eq!(store.bytes(), RECORDS * len_of(&paid));

    advance(RETENTION).await;
    for _ in 0..RECORDS / 10_000 {
        assert_eq!(store.purge_expired(10_000).await.unwrap(), 10_000);
    }
    assert_eq!(store.purge_expired(10_000).await.unwrap(), 0);
    assert_eq!((store.len(), store.bytes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn traffic_alone_clears_away_what_has_expired() {
    let store = MemoryStore::new();
    for key in 0..20_000 {
        complete(&store, key).await;
    }
    advance(RETENTION).await;
    for key in 20_000..40_000 {
        complete(&store, key).await;
    }
    assert!(store.len() < 21_000, "{} are kept", store.len());
}

#[tokio::test(start_paused = true)]
async fn nothing_that_lives_is_evicted_for_a_new_claim() {
    let store = MemoryStore::new().max_records(3);
    complete(&store, 0).await;
    let running = acquire(&store, &request(1, 1)).await;
    let failed = acquire(&store, &request(2, 1)).await;
    store.fail(&failed, true, RETENTION).await.unwrap();

    assert_eq!(refusal(&store, &request(3, 1)).await, StoreErrorKind::Full);
    assert!(matches!(phase(&store, 0).await, Some(Phase::Completed(_))));
    assert!(matches!(
        phase(&store, 1).await,
        Some(Phase::Running { .. })
    ));
    assert_eq!(phase(&store, 2).await, Some(Phase::Sealed));
    assert_eq!(phase(&store, 3).await, None);
    assert_eq!(store.len(), 3);

    // Claims of keys that are there are no new records.
    assert_eq!(acquire(&store, &request(1, 1)).await, running);
    advance(LEASE).await;
    assert_eq!(acquire(&store, &request(1, 2)).await.attempt, 2);
    // A key that is given back leaves its room.
    store.forget(&id(2)).await.unwrap();
    acquire(&store, &request(3, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn expired_records_go_first() {
    let store = MemoryStore::new().max_records(500);
    for key in 0..499 {
        complete(&store, key).await;
    }
    advance(RETENTION / 2).await;
    complete(&store, 499).await;
    assert_eq!(
        refusal(&store, &request(500, 1)).await,
        StoreErrorKind::Full
    );

    advance(RETENTION / 2).await;
    for key in 500..999 {
        complete(&store, key).await;
    }
    assert_eq!(store.len(), 500);
    assert!(matches!(
        phase(&store, 499).await,
        Some(Phase::Completed(_))
    ));
    assert_eq!(
        refusal(&store, &request(999, 1)).await,
        StoreErrorKind::Full
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_fit_is_refused_and_the_run_goes_on() {
    let paid = answer("paid");
    let store = MemoryStore::new().max_bytes(len_of(&paid) + 1);
    complete(&store, 0).await;
    let hold = acquire(&store, &request(1, 1)).await;
    let error = store.complete(&hold, &paid, RETENTION).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Full);
    assert!(matches!(
        phase(&store, 1).await,
        Some(Phase::Running { .. })
    ));
    assert_eq!(store.bytes(), len_of(&paid));

    let completion = store.complete(&hold, &omitted(), 2 * RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Stored);
    assert!(matches!(phase(&store, 1).await, Some(Phase::Completed(_))));
    assert_eq!(store.bytes(), len_of(&paid) + len_of(&omitted()));
    assert_eq!(refusal(&store, &request(2, 1)).await, StoreErrorKind::Full);

    // What expires makes room, without a purge.
    advance(RETENTION).await;
    acquire(&store, &request(2, 1)).await;
    assert_eq!(store.bytes(), len_of(&omitted()));
}

#[tokio::test(start_paused = true)]
async fn a_sealed_key_is_not_resolved_with_an_answer_that_does_not_fit() {
    let paid = answer("paid");
    let store = MemoryStore::new().max_bytes(len_of(&paid));
    let hold = acquire(&store, &request(0, 1)).await;
    store.fail(&hold, true, RETENTION).await.unwrap();
    let long = answer("paid at last");
    let error = store.resolve(&id(0), &long, RETENTION).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Full);
    assert_eq!(phase(&store, 0).await, Some(Phase::Sealed));
    assert!(store.resolve(&id(0), &paid, RETENTION).await.unwrap());
    assert_eq!(store.bytes(), len_of(&paid));
}

#[tokio::test(start_paused = true)]
async fn a_scope_is_kept_to_its_quota_and_others_are_not() {
    let store = MemoryStore::new().max_records_per_scope(2);
    let of_scope = |key, n| {
        let mut request = request(key, 1);
        request.scope = scope(n);
        request
    };
    acquire(&store, &of_scope(0, 1)).await;
    let hold = acquire(&store, &of_scope(1, 1)).await;
    assert_eq!(
        refusal(&store, &of_scope(2, 1)).await,
        StoreErrorKind::Quota
    );
    assert_eq!(store.len(), 2, "what is refused is not counted");
    acquire(&store, &of_scope(2, 2)).await;

    // A claim of a key that is there, and one for which another is given back.
    acquire(&store, &of_scope(1, 1)).await;
    store.release(&hold).await.unwrap();
    acquire(&store, &of_scope(3, 1)).await;
    assert_eq!(
        refusal(&store, &of_scope(4, 1)).await,
        StoreErrorKind::Quota
    );

    // What was lost is restored all the same, and counts.
    let completion = store.complete(&hold, &answer("paid"), RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Restored);
    store.forget(&id(1)).await.unwrap();
    assert_eq!(
        refusal(&store, &of_scope(4, 1)).await,
        StoreErrorKind::Quota
    );

    // Expired records do not count, purged or not.
    advance(LEASE + RETENTION).await;
    acquire(&store, &of_scope(4, 1)).await;
    acquire(&store, &of_scope(5, 1)).await;
    assert_eq!(
        refusal(&store, &of_scope(6, 1)).await,
        StoreErrorKind::Quota
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_record_is_restored_into_a_full_store() {
    let store = MemoryStore::new().max_records(1);
    let lost = request(0, 1).hold(7);
    acquire(&store, &request(1, 1)).await;
    let completion = store.complete(&lost, &answer("paid"), RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Restored);
    assert_eq!(store.len(), 2);
    assert!(matches!(
        store.claim(&request(0, 2)).await.unwrap(),
        Claimed::Completed { attempt: 7, .. }
    ));
    assert_eq!(refusal(&store, &request(2, 1)).await, StoreErrorKind::Full);
}

#[tokio::test(start_paused = true)]
async fn the_attempt_that_is_stored_decides_what_a_release_does() {
    let store = MemoryStore::new();
    acquire(&store, &request(0, 1)).await;
    advance(LEASE).await;
    acquire(&store, &request(0, 2)).await;
    // The hold of a claim whose answer was lost knows no attempt.
    let unknown = request(0, 2).hold(1);
    assert_eq!(store.release(&unknown).await.unwrap(), Ownership::Held);
    assert_eq!(phase(&store, 0).await, Some(Phase::Failed));
    assert_eq!(acquire(&store, &request(0, 3)).await.attempt, 3);

    acquire(&store, &request(1, 1)).await;
    let wrong = request(1, 1).hold(9);
    assert_eq!(store.release(&wrong).await.unwrap(), Ownership::Held);
    assert_eq!(phase(&store, 1).await, None);
}

#[tokio::test(start_paused = true)]
async fn the_longest_durations_are_only_long() {
    let store = MemoryStore::new();
    let mut request = request(0, 1);
    (request.lease, request.retention) = (Duration::MAX, Duration::MAX);
    let hold = acquire(&store, &request).await;
    let ownership = store.extend(&hold, Duration::MAX, Duration::MAX).await;
    assert_eq!(ownership.unwrap(), Ownership::Held);
    let completion = store.complete(&hold, &answer("paid"), Duration::MAX).await;
    assert_eq!(completion.unwrap(), Completion::Stored);

    let hold = acquire(&store, &sealing(1, 1)).await;
    store.fail(&hold, true, Duration::MAX).await.unwrap();
    store
        .resolve(&id(1), &answer(""), Duration::MAX)
        .await
        .unwrap();

    advance(100 * 365 * 24 * HOUR).await;
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
    assert!(matches!(phase(&store, 0).await, Some(Phase::Completed(_))));
    assert!(matches!(phase(&store, 1).await, Some(Phase::Completed(_))));
}

/// How long a waiter for key 0 slept while `change` happened.
async fn slept(store: &MemoryStore, change: impl AsyncFnOnce()) -> Duration {
    let start = Instant::now();
    let waiter = tokio::spawn({
        let store = store.clone();
        async move { store.changed(&id(0), HOUR).await }
    });
    tokio::task::yield_now().await;
    change().await;
    waiter.await.unwrap();
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn waiters_are_woken_by_every_change_and_at_once() {
    let at_once = Duration::ZERO;
    let store = MemoryStore::new();
    let running = async || {
        store.forget(&id(0)).await.unwrap();
        acquire(&store, &sealing(0, 1)).await
    };

    let hold = running().await;
    let completes = async || drop(store.complete(&hold, &answer(""), RETENTION).await);
    assert_eq!(slept(&store, completes).await, at_once);
    let forgets = async || drop(store.forget(&id(0)).await);
    assert_eq!(slept(&store, forgets).await, at_once);
    let restores = async || drop(store.complete(&hold, &answer(""), RETENTION).await);
    assert_eq!(slept(&store, restores).await, at_once);

    let hold = running().await;
    let releases = async || drop(store.release(&hold).await);
    assert_eq!(slept(&store, releases).await, at_once);

    let hold = running().await;
    let fails = async || drop(store.fail(&hold, true, RETENTION).await);
    assert_eq!(slept(&store, fails).await, at_once);
    let resolves = async || drop(store.resolve(&id(0), &answer(""), RETENTION).await);
    assert_eq!(slept(&store, resolves).await, at_once);

    store.forget(&id(0)).await.unwrap();
    acquire(&store, &request(0, 1)).await;
    advance(LEASE).await;
    let takes_over = async || drop(store.claim(&request(0, 2)).await);
    assert_eq!(slept(&store, takes_over).await, at_once);

    advance(LEASE + RETENTION).await;
    let purges = async || drop(store.purge_expired(usize::MAX).await);
    assert_eq!(slept(&store, purges).await, at_once);
}

#[tokio::test(start_paused = true)]
async fn a_change_between_the_first_poll_and_the_sleep_is_not_missed() {
    let store = MemoryStore::new();
    let hold = acquire(&store, &request(0, 1)).await;
    let start = Instant::now();
    for at_most in [HOUR, Duration::MAX] {
        let mut changed = pin!(store.changed(&hold.id, at_most));
        assert!(changed.as_mut().now_or_never().is_none());
        acquire(&store, &request(0, 1)).await;
        store.fail(&hold, false, RETENTION).await.unwrap();
        changed.await;
        acquire(&store, &request(0, 1)).await;
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_sleeps_no_longer_than_it_may() {
    let store = MemoryStore::new();
    let hold = acquire(&store, &request(0, 1)).await;
    let start = Instant::now();
    store.changed(&hold.id, LEASE).await;
    let slept = start.elapsed();
    assert!(slept >= LEASE && slept < LEASE + 10 * MS, "slept {slept:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_race_for_a_key_one_runs() {
    const KEYS: usize = 200;
    const RACERS: u8 = 8;
    let store = MemoryStore::new().max_records_per_scope(KEYS);
    let start = Arc::new(Barrier::new(usize::from(RACERS)));
    let racers = (0..RACERS).map(|by| {
        let (store, start) = (store.clone(), Arc::clone(&start));
        tokio::spawn(async move {
            let mut won = Vec::new();
            for key in 0..KEYS {
                start.wait().await;
                match store.claim(&request(key, by)).await.unwrap() {
                    Claimed::Acquired(hold) => won.push(hold),
                    other => assert!(matches!(other, Claimed::InProgress { attempt: 1, .. })),
                }
            }
            won
        })
    });
    let mut holds = Vec::new();
    for racer in racers.collect::<Vec<_>>() {
        holds.extend(racer.await.unwrap());
    }
    holds.sort_by_key(|hold| hold.id);
    holds.dedup_by_key(|hold| hold.id);
    assert_eq!(holds.len(), KEYS);
    assert_eq!(store.len(), KEYS);
    for hold in holds {
        assert_eq!(store.release(&hold).await.unwrap(), Ownership::Held);
    }
    assert!(store.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_bounds_hold_and_the_counts_are_exact_after_a_race() {
    const KEYS: usize = 64;
    const BOUND: usize = 40;
    let paid = answer("paid");
    let store = MemoryStore::new()
        .max_records(BOUND)
        .max_bytes(30 * len_of(&paid))
        .max_records_per_scope(BOUND);
    let racers = (0..8_u8).map(|by| {
        let (store, paid) = (store.clone(), paid.clone());
        tokio::spawn(async move {
            for turn in 0..20_000_usize {
                let mut request = request((turn * 31 + usize::from(by) * 7) % KEYS, by);
                request.lease = Duration::from_micros(turn as u64 % 50);
                request.retention = Duration::from_micros(turn as u64 % 70);
                let Ok(Claimed::Acquired(hold)) = store.claim(&request).await else {
                    store.forget(&request.id).await.unwrap();
                    continue;
                };
                assert!(store.len() <= BOUND + 8);
                assert!(store.bytes() <= 30 * len_of(&paid));
                match turn % 4 {
                    0 => drop(store.complete(&hold, &paid, request.retention).await),
                    1 => drop(store.fail(&hold, turn % 8 == 1, request.retention).await),
                    2 => drop(store.release(&hold).await),
                    _ => drop(store.purge_expired(3).await),
                }
            }
        })
    });
    for racer in racers.collect::<Vec<_>>() {
        racer.await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.purge_expired(usize::MAX).await.unwrap();
    assert_eq!((store.len(), store.bytes()), (0, 0));
    // The scope has its whole quota again.
    for key in 0..BOUND {
        acquire(&store, &request(key, 1)).await;
    }
    assert_eq!(store.len(), BOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_waiter_is_missed_in_a_race() {
    let store = MemoryStore::new();
    for key in 0..2_000 {
        let hold = acquire(&store, &request(key, 1)).await;
        let waiter = tokio::spawn({
            let store = store.clone();
            async move {
                let id = id(key);
                let mut changed = pin!(store.changed(&id, HOUR));
                let _ = changed.as_mut().now_or_never();
                if !matches!(phase(&store, key).await, Some(Phase::Completed(_))) {
                    changed.await;
                }
            }
        });
        let completion = store.complete(&hold, &answer("paid"), RETENTION).await;
        assert_eq!(completion.unwrap(), Completion::Stored);
        let woken = tokio::time::timeout(Duration::from_secs(20), waiter).await;
        woken.expect("the waiter sleeps").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn clones_share_their_records() {
    let store = MemoryStore::default();
    let hold = acquire(&store.clone(), &request(0, 1)).await;
    assert_eq!(store.release(&hold).await.unwrap(), Ownership::Held);
    assert!(store.is_empty());
}

#[test]
fn its_debug_form_says_that_it_is_for_one_process() {
    let shown = format!("{:?}", MemoryStore::new());
    assert!(shown.contains("this process alone"), "{shown}");
}

#[test]
fn it_works_without_a_runtime() {
    let store = MemoryStore::new();
    let claimed = store.claim(&request(0, 1)).now_or_never().unwrap();
    assert!(matches!(claimed, Ok(Claimed::Acquired(_))));
    let purged = store.purge_expired(1).now_or_never().unwrap();
    assert_eq!(purged.unwrap(), 0);
}

#[test]
#[should_panic(expected = "max_records(0) would refuse every claim")]
fn no_records_at_all_is_a_mistake() {
    let _ = MemoryStore::new().max_records(0);
}

#[test]
#[should_panic(expected = "max_bytes(0) would refuse every claim")]
fn no_bytes_at_all_is_a_mistake() {
    let _ = MemoryStore::new().max_bytes(0);
}

#[test]
#[should_panic(expected = "max_records_per_scope(0) would refuse every claim")]
fn no_records_of_a_scope_is_a_mistake() {
    let _ = MemoryStore::new().max_records_per_scope(0);
}

#[test]
#[should_panic(expected = "before it is cloned")]
fn options_come_before_clones() {
    let store = MemoryStore::new();
    let _clone = store.clone();
    let _ = store.max_records(1);
}
