//! A run whose lease has ended may be taken over, and then changes nothing any more.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};

use http::StatusCode;
use support::faults::{Call, Fault, FaultStore};
use support::scripted::{Planned, executed, full, handling, idle, ms, plan, secs, spawn};
use support::{Runs, post, send};
use tokio::time::{Instant, sleep};
use tower_idempotency::store::{MemoryStore, StoreErrorKind};
use tower_idempotency::{
    FailurePolicy, IdempotencyLayer, Operation, Outcome, RejectionKind, SharedByAllCallers,
};

/// Two processes on one store. The first is cut off from renewal after its claim, and its
/// handler takes 100 s; the second's takes 50 s.
struct TakenOver {
    first_layer: IdempotencyLayer<FaultStore<MemoryStore>>,
    first: Planned,
    operation: Arc<Mutex<Option<Operation>>>,
    second: Planned,
    runs: [Runs; 2],
    store: FaultStore<MemoryStore>,
}

fn two_processes(policy: FailurePolicy, extend: Fault) -> TakenOver {
    let memory = MemoryStore::new();
    let store = FaultStore::new(memory.clone());
    store.always(Call::Extend, extend);
    let first_layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).on_failure(policy);
    let runs = Runs::default();
    let operation = Arc::new(Mutex::new(None));
    let first = handling(&first_layer, {
        let (runs, keep) = (runs.clone(), operation.clone());
        move |operation| {
            runs.add();
            *keep.lock().unwrap() = operation;
            async {
                sleep(secs(100)).await;
                full(201, "the first")
            }
        }
    });
    let second_layer = IdempotencyLayer::new(memory, SharedByAllCallers).on_failure(policy);
    let (second, second_runs) = plan(&second_layer, [(secs(50), 202)]);
    TakenOver {
        first_layer,
        first: Planned::new(first),
        operation,
        second,
        runs: [runs, second_runs],
        store,
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_lease_ended_completes_as_long_as_nobody_took_over() {
    let two = two_processes(FailurePolicy::RunAgain, Fault::Hangs);
    let first = send(&two.first, post("k", "charge 5")).await;
    assert_eq!(first.text(), "the first");
    assert_eq!(first.outcome, executed(1, Some(true)));
    assert_eq!(first.header("idempotency-stored"), None);
    let retry = send(&two.second, post("k", "charge 5")).await;
    assert!(retry.is_replay());
    assert_eq!(retry.text(), "the first");
    idle(&two.first_layer).await;
    assert_eq!(two.runs.map(|runs| runs.get()), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_taken_over_answers_its_client_and_records_nothing() {
    for extend in [
        Fault::Hangs,
        Fault::Refused(StoreErrorKind::NotApplied),
        Fault::AppliedLate(secs(40)),
    ] {
        let two = two_processes(FailurePolicy::RunAgain, extend);
        let first = spawn(&two.first, "k").await;
        let live = || two.operation.lock().unwrap().as_ref().unwrap().is_live();
        assert!(live());
        sleep(ms(29_999)).await;
        assert!(live());
        assert_eq!(send(&two.second, post("k", "charge 5")).await.status, 409);
        sleep(ms(1)).await;
        assert!(!live());
        // The boundary: at the end of the lease, not after it.
        let began = Instant::now();
        let second = spawn(&two.second, "k").await;
        let retry = send(&two.second, post("k", "charge 5")).await;
        assert_eq!(retry.status, StatusCode::CONFLICT);
        let second = second.await.unwrap();
        assert_eq!(began.elapsed(), secs(50));
        assert_eq!(second.text(), "run 1 attempt 2");
        assert_eq!(second.outcome, executed(2, Some(true)));

        two.store.heal(Call::Extend);
        let first = first.await.unwrap();
        assert_eq!(first.status, StatusCode::CREATED);
        assert_eq!(first.text(), "the first");
        assert_eq!(first.header("idempotency-stored"), Some("false"));
        assert_eq!(first.outcome, executed(1, Some(false)));
        assert!(!live());
        idle(&two.first_layer).await;
        let retry = send(&two.first, post("k", "charge 5")).await;
        assert!(retry.is_replay());
        assert_eq!(
            (retry.status.as_u16(), retry.text()),
            (202, "run 1 attempt 2")
        );
        assert_eq!(two.runs.map(|runs| runs.get()), [1, 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_first_run_can_neither_record_nor_release_under_a_live_successor() {
    let two = two_processes(FailurePolicy::RunAgain, Fault::Hangs);
    let first = spawn(&two.first, "k").await;
    sleep(secs(60)).await;
    let second = spawn(&two.second, "k").await;
    assert_eq!(first.await.unwrap().outcome, executed(1, Some(false)));
    assert_eq!(send(&two.first, post("k", "charge 5")).await.status, 409);
    assert_eq!(second.await.unwrap().outcome, executed(2, Some(true)));
    let retry = send(&two.first, post("k", "charge 5")).await;
    assert_eq!(retry.text(), "run 1 attempt 2");
    idle(&two.first_layer).await;
    assert_eq!(two.runs.map(|runs| runs.get()), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn where_a_failure_is_not_run_again_the_end_of_a_lease_is_no_take_over() {
    for policy in [FailurePolicy::Refuse, FailurePolicy::Replay] {
        let two = two_processes(policy, Fault::Hangs);
        let first = spawn(&two.first, "k").await;
        sleep(secs(31)).await;
        let retry = send(&two.second, post("k", "charge 5")).await;
        assert_eq!(retry.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(retry.code().as_deref(), Some("outcome-unknown"));
        let unknown = Outcome::Rejected(RejectionKind::OutcomeUnknown);
        assert_eq!(retry.outcome, Some(unknown));
        // It was not dead after all, and its answer stands.
        assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
        let retry = send(&two.second, post("k", "charge 5")).await;
        assert!(retry.is_replay());
        assert_eq!(retry.text(), "the first");
        idle(&two.first_layer).await;
        assert_eq!(two.runs.map(|runs| runs.get()), [1, 0]);
    }
}
