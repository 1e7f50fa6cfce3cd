//! A run whose lease has ended may be taken over, and then changes nothing any more.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use support::faults::{Call, Fault, FaultStore};
use support::gates::{Gate, until};
use support::scripted::{Planned, executed, full, handling, idle, ms, secs, spawn};
use support::stores::{assert_passed, once_not, store_pair};
use support::{Answer, Runs, post, send};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower_idempotency::store::{AnyStore, KeyStore, MemoryStore, Phase, StoreErrorKind};
use tower_idempotency::{
    FailurePolicy, IdempotencyLayer, Operation, Outcome, RejectionKind, SharedByAllCallers,
};

const LEASE: Duration = ms(500);

/// Two processes on one set of records. The first is cut off from renewal after its claim.
/// The handlers of both wait until they are let go on.
struct Two {
    first_layer: IdempotencyLayer<FaultStore<AnyStore>>,
    first: Planned,
    second: Planned,
    gates: [Gate; 2],
    runs: [Runs; 2],
    operation: Arc<Mutex<Option<Operation>>>,
    store: FaultStore<AnyStore>,
}

impl Two {
    fn start(policy: FailurePolicy, extend: Fault) -> Self {
        Self::on(store_pair(), LEASE, policy, extend)
    }

    fn on(
        (here, there): (AnyStore, AnyStore),
        lease: Duration,
        policy: FailurePolicy,
        extend: Fault,
    ) -> Self {
        let store = FaultStore::new(here);
        store.always(Call::Extend, extend);
        let first_layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers)
            .lease(lease)
            .on_failure(policy);
        let second_layer = IdempotencyLayer::new(there, SharedByAllCallers).on_failure(policy);
        let gates = [Gate::default(), Gate::default()];
        let runs = [Runs::default(), Runs::default()];
        let operation = Arc::new(Mutex::new(None));
        let first = handling(&first_layer, {
            let (runs, gate, keep) = (runs[0].clone(), gates[0].clone(), operation.clone());
            move |operation| {
                runs.add();
                *keep.lock().unwrap() = operation;
                let gate = gate.clone();
                async move {
                    gate.pass().await;
                    full(201, "the first")
                }
            }
        });
        let second = handling(&second_layer, {
            let (runs, gate) = (runs[1].clone(), gates[1].clone());
            move |operation: Option<Operation>| {
                runs.add();
                let gate = gate.clone();
                async move {
                    gate.pass().await;
                    let attempt = operation.unwrap().attempt();
                    full(202, format!("the second, attempt {attempt}"))
                }
            }
        });
        Self {
            first_layer,
            first: Planned::new(first),
            second: Planned::new(second),
            gates,
            runs,
            operation,
            store,
        }
    }

    fn first_is_live(&self) -> bool {
        self.operation.lock().unwrap().as_ref().unwrap().is_live()
    }

    /// Until the store itself says that the lease of the first one has ended.
    async fn until_the_lease_has_ended(&self) {
        let id = *self.operation.lock().unwrap().as_ref().unwrap().id();
        let deadline = Instant::now() + secs(20);
        loop {
            let record = self.store.inner().lookup(&id).await.unwrap().unwrap();
            let Phase::Running { lease_left } = record.phase else {
                panic!("{record:?}");
            };
            // Of its last millisecond a server tells nothing.
            sleep(ms(2)).await;
            if lease_left.is_zero() {
                return;
            }
            assert!(Instant::now() < deadline, "it never ends");
        }
    }

    /// Asks the second one until it runs, and leaves it at its gate.
    async fn take_over(&self) -> JoinHandle<Answer> {
        let deadline = Instant::now() + secs(20);
        loop {
            let asked = spawn(&self.second, "k").await;
            if self.gates[1].arrivals() == 1 {
                return asked;
            }
            assert_eq!(asked.await.unwrap().status, StatusCode::CONFLICT);
            assert!(Instant::now() < deadline, "it never runs");
            sleep(ms(5)).await;
        }
    }

    async fn ask(&self, service: &Planned) -> Answer {
        send(service, post("k", "charge 5")).await
    }
}

#[tokio::test]
async fn a_run_whose_lease_ended_completes_as_long_as_nobody_took_over() {
    let two = Two::start(FailurePolicy::RunAgain, Fault::Hangs);
    let first = spawn(&two.first, "k").await;
    two.until_the_lease_has_ended().await;
    assert!(!two.first_is_live());
    two.gates[0].open(1);
    let first = first.await.unwrap();
    assert_eq!(first.text(), "the first");
    assert_eq!(first.outcome, executed(1, Some(true)));
    assert_eq!(first.header("idempotency-stored"), None);
    let retry = two.ask(&two.second).await;
    assert!(retry.is_replay());
    assert_eq!(retry.text(), "the first");
    idle(&two.first_layer).await;
    assert_eq!(two.runs.map(|runs| runs.get()), [1, 0]);
}

/// What the first one's client sees, and what is on record, once both have ended.
async fn the_second_one_stands(two: Two, first: &Answer, second: &Answer) {
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.text(), "the first");
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    assert_eq!(first.outcome, executed(1, Some(false)));
    assert_eq!(second.text(), "the second, attempt 2");
    assert_eq!(second.outcome, executed(2, Some(true)));
    assert!(!two.first_is_live());
    idle(&two.first_layer).await;
    for service in [&two.first, &two.second] {
        let retry = two.ask(service).await;
        assert!(retry.is_replay());
        assert_eq!((retry.status, &retry.body), (second.status, &second.body));
    }
    assert_eq!(two.runs.map(|runs| runs.get()), [1, 1]);
}

#[tokio::test]
async fn a_run_that_was_taken_over_answers_its_client_and_records_nothing() {
    for extend in [Fault::Hangs, Fault::Refused(StoreErrorKind::NotApplied)] {
        let two = Two::start(FailurePolicy::RunAgain, extend);
        let began = std::time::Instant::now();
        let first = spawn(&two.first, "k").await;
        let second = two.take_over().await;
        assert_passed(LEASE, began);
        assert!(!two.first_is_live());
        for service in [&two.first, &two.second] {
            assert_eq!(two.ask(service).await.status, StatusCode::CONFLICT);
        }

        // What the first one says by now is heard, and counts for nothing.
        two.store.heal(Call::Extend);
        let renewals = two.store.count(Call::Extend);
        until("it renews", || two.store.count(Call::Extend) > renewals).await;
        assert!(!two.first_is_live());
        two.gates[1].open(1);
        let second = second.await.unwrap();
        two.gates[0].open(1);
        the_second_one_stands(two, &first.await.unwrap(), &second).await;
    }
}

#[tokio::test]
async fn a_late_first_run_can_neither_record_nor_release_under_a_live_successor() {
    let two = Two::start(FailurePolicy::RunAgain, Fault::Hangs);
    let first = spawn(&two.first, "k").await;
    let second = two.take_over().await;
    two.gates[0].open(1);
    let first = first.await.unwrap();
    assert_eq!(first.outcome, executed(1, Some(false)));
    for service in [&two.first, &two.second] {
        assert_eq!(two.ask(service).await.status, StatusCode::CONFLICT);
    }
    two.gates[1].open(1);
    the_second_one_stands(two, &first, &second.await.unwrap()).await;
}

#[tokio::test]
async fn where_a_failure_is_not_run_again_the_end_of_a_lease_is_no_take_over() {
    for policy in [FailurePolicy::Refuse, FailurePolicy::Replay] {
        let two = Two::start(policy, Fault::Hangs);
        let began = std::time::Instant::now();
        let first = spawn(&two.first, "k").await;
        let ask = async || two.ask(&two.second).await;
        let retry = once_not(StatusCode::CONFLICT, ask).await;
        assert_passed(LEASE, began);
        assert_eq!(retry.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(retry.code().as_deref(), Some("outcome-unknown"));
        let unknown = Outcome::Rejected(RejectionKind::OutcomeUnknown);
        assert_eq!(retry.outcome, Some(unknown));
        // It was not dead after all, and its answer stands.
        two.gates[0].open(1);
        assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
        let retry = two.ask(&two.second).await;
        assert!(retry.is_replay());
        assert_eq!(retry.text(), "the first");
        idle(&two.first_layer).await;
        assert_eq!(two.runs.map(|runs| runs.get()), [1, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_to_the_millisecond_and_a_renewal_that_comes_later_changes_nothing() {
    let store = AnyStore::new(MemoryStore::new());
    let two = Two::on(
        (store.clone(), store),
        secs(30),
        FailurePolicy::RunAgain,
        Fault::AppliedLate(secs(40)),
    );
    let first = spawn(&two.first, "k").await;
    sleep(ms(29_999)).await;
    assert!(two.first_is_live());
    let retry = two.ask(&two.second).await;
    assert_eq!(retry.status, StatusCode::CONFLICT);
    sleep(ms(1)).await;
    assert!(!two.first_is_live());
    // The boundary: at the end of the lease, not after it.
    let second = spawn(&two.second, "k").await;
    assert_eq!(two.gates[1].arrivals(), 1);
    sleep(secs(50)).await;
    assert!(!two.first_is_live());
    let retry = two.ask(&two.second).await;
    assert_eq!(retry.status, StatusCode::CONFLICT);
    two.gates[1].open(1);
    let second = second.await.unwrap();
    two.gates[0].open(1);
    the_second_one_stands(two, &first.await.unwrap(), &second).await;
}
