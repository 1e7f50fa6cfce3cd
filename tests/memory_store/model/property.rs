//! Whatever is asked of it and whenever, the store agrees with the model.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::advance;
use tower_idempotency::store::{
    ClaimRequest, Hold, KeyStore, Lapse, MemoryStore, Record, RecordId,
};

use super::{Bounds, Model};
use crate::{HOUR, NS, answer, fingerprint, id, len_of, omitted, owner, scope};

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
