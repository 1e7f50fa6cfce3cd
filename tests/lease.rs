//! A key is held while its run lives and not much longer: leases, take-overs, retention.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, StatusCode};
use support::faults::{Call, Fault, FaultStore};
use support::gates::Gate;
use support::scripted::variant::{But, Variant};
use support::scripted::{
    Planned, Script, Seen, Step, dead_run, executed, full, handling, idle, let_run, ms, plan,
    plan_on, secs, spawn,
};
use support::stores::{assert_passed, once_not, store, store_pair};
use support::{Runs, post, send};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt};
use tower_idempotency::store::{KeyStore, MemoryStore, Phase, StoreErrorKind};
use tower_idempotency::{IdempotencyLayer, Operation, SharedByAllCallers};

fn layer<K: KeyStore>(store: K) -> IdempotencyLayer<K> {
    IdempotencyLayer::new(store, SharedByAllCallers)
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_at_a_third_for_as_long_as_the_handler_runs() {
    let store = FaultStore::new(store());
    let layer = layer(store.clone());
    let (service, runs) = plan(&layer, [(secs(305), 201)]);
    let first = spawn(&service, "k").await;
    for tenth in 1..=30 {
        sleep(secs(10)).await;
        let_run().await;
        assert_eq!(store.count(Call::Extend), tenth);
        let retry = send(&service, post("k", "charge 5")).await;
        assert_eq!(retry.status, StatusCode::CONFLICT);
    }
    assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
    assert!(send(&service, post("k", "charge 5")).await.is_replay());
    sleep(secs(600)).await;
    assert_eq!(store.count(Call::Extend), 30);
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn renewal_survives_a_renewal_that_fails() {
    for fault in [
        Fault::Refused(StoreErrorKind::NotApplied),
        Fault::Refused(StoreErrorKind::Misconfigured),
        Fault::Refused(StoreErrorKind::Corrupt),
        Fault::ReplyLost,
        Fault::Hangs,
        Fault::AppliedThenHangs,
        Fault::AppliedLate(secs(15)),
        Fault::Slow(secs(1)),
    ] {
        let store = FaultStore::new(store());
        let layer = layer(store.clone());
        let (service, runs) = plan(&layer, [(secs(200), 201)]);
        let first = spawn(&service, "k").await;
        // Every other renewal fails, so that none is the last.
        for _ in 0..10 {
            store.once(Call::Extend, fault);
            sleep(secs(19)).await;
            let retry = send(&service, post("k", "charge 5")).await;
            assert_eq!(retry.status, StatusCode::CONFLICT, "{fault:?}");
        }
        assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
        assert!(send(&service, post("k", "charge 5")).await.is_replay());
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_holds_while_the_answers_to_renewals_take_their_time() {
    let store = MemoryStore::new();
    let slow = Variant::of(store.clone(), But::RenewalsAnsweredAfter(ms(900)));
    let slow = layer(slow).lease(secs(3));
    let (running, _) = plan(&slow, [(secs(100), 201)]);
    let first = spawn(&running, "k").await;
    let (retrying, runs) = plan(&layer(store), [(secs(1), 201)]);
    let began = Instant::now();
    while began.elapsed() < secs(99) {
        let retry = send(&retrying, post("k", "charge 5")).await;
        assert_eq!(retry.status, StatusCode::CONFLICT, "{:?}", began.elapsed());
        sleep(ms(50)).await;
    }
    assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
    assert_eq!((runs.get(), slow.in_flight().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_lease_holds_though_the_answer_to_the_claim_took_its_time() {
    let store = MemoryStore::new();
    let slow = Variant::of(store.clone(), But::FirstClaimAnsweredAfter(ms(1900)));
    let slow = layer(slow).lease(ms(2500));
    let (running, _) = plan(&slow, [(secs(10), 201)]);
    let first = spawn(&running, "k").await;
    let (retrying, runs) = plan(&layer(store), [(secs(1), 201)]);
    let began = Instant::now();
    while began.elapsed() < secs(9) {
        let retry = send(&retrying, post("k", "charge 5")).await;
        assert_eq!(retry.status, StatusCode::CONFLICT, "{:?}", began.elapsed());
        sleep(ms(50)).await;
    }
    assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
    assert_eq!((runs.get(), slow.in_flight().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn renewal_ends_with_the_handler_however_it_ends() {
    for end in ["answers", "fails", "errs", "panics", "left, then answers"] {
        let store = FaultStore::new(store());
        let layer = layer(store.clone());
        let service = layer.layer(tower::service_fn(move |_: Request<_>| async move {
            sleep(secs(25)).await;
            match end {
                "fails" => Ok(full(500, "failed")),
                "errs" => Err("no answer"),
                "panics" => panic!("planned"),
                _ => Ok(full(201, "done")),
            }
        }));
        let run = tokio::spawn(service.oneshot(post("k", "charge 5")));
        sleep(secs(15)).await;
        if end.starts_with("left") {
            run.abort();
        }
        sleep(secs(9)).await;
        assert_eq!(store.count(Call::Extend), 2, "{end}");
        assert_eq!(layer.in_flight().count(), 1, "{end}");
        sleep(secs(600)).await;
        assert_eq!(store.count(Call::Extend), 2, "{end}");
        assert_eq!(layer.in_flight().count(), 0, "{end}");
        assert_eq!(
            run.await.is_err(),
            end == "panics" || end.starts_with("left")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_ends_at_max_hold_and_the_handler_goes_on() {
    let store = FaultStore::new(MemoryStore::new());
    let holding = layer(store.clone()).max_hold(secs(60));
    let (service, runs) = plan(&holding, [(secs(500), 201), (secs(1), 202)]);
    let first = spawn(&service, "k").await;
    // The last renewal was 10 s before.
    sleep(ms(79_999)).await;
    assert_eq!(send(&service, post("k", "charge 5")).await.status, 409);
    assert_eq!(store.count(Call::Extend), 5);
    sleep(ms(1)).await;
    let second = send(&service, post("k", "charge 5")).await;
    assert_eq!(second.text(), "run 2 attempt 2");
    let first = first.await.unwrap();
    assert_eq!(first.text(), "run 1 attempt 1");
    assert_eq!(first.outcome, executed(1, Some(false)));
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    let retry = send(&service, post("k", "charge 5")).await;
    assert_eq!(retry.text(), "run 2 attempt 2");
    assert_eq!(store.count(Call::Extend), 5);
    assert_eq!((runs.get(), holding.in_flight().count()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_end_is_recorded_without_its_body_at_max_hold() {
    let holding = layer(store()).max_hold(secs(60));
    let runs = Runs::default();
    let service = handling(&holding, {
        let runs = runs.clone();
        move |_| {
            runs.add();
            async { support::scripted::answer(200, Script::stream([Step::Endless(secs(7))])) }
        }
    });
    let first = service
        .clone()
        .oneshot(post("k", "charge 5"))
        .await
        .unwrap();
    assert_eq!(first.extensions().get().copied(), executed(1, None));
    let reading = tokio::spawn(Seen::of(first));
    sleep(secs(59)).await;
    assert_eq!(send(&service, post("k", "charge 5")).await.status, 409);
    assert_eq!(holding.in_flight().count(), 1);
    sleep(secs(2)).await;
    assert_eq!(holding.in_flight().count(), 0);
    let retry = send(&service, post("k", "charge 5")).await;
    assert!(retry.is_replay());
    assert_eq!(retry.header("idempotency-body"), Some("omitted"));
    assert_eq!(retry.header("x-answer"), Some("true"));
    // The client goes on reading.
    sleep(secs(600)).await;
    assert!(!reading.is_finished());
    reading.abort();
    let_run().await;
    assert!(send(&service, post("k", "charge 5")).await.is_replay());
    assert_eq!((runs.get(), holding.in_flight().count()), (1, 0));
}

/// Runs that wait at the gate, and then answer with their attempt.
fn held<K: KeyStore>(layer: &IdempotencyLayer<K>, gate: &Gate) -> Planned {
    let gate = gate.clone();
    Planned::new(handling(layer, move |operation: Option<Operation>| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            full(201, format!("attempt {}", operation.unwrap().attempt()))
        }
    }))
}

#[tokio::test]
async fn a_key_is_held_for_longer_than_its_lease_while_the_handler_runs() {
    let (here, there) = store_pair();
    let lease = secs(2);
    let gate = Gate::default();
    let here = layer(here).lease(lease);
    let running = held(&here, &gate);
    let (elsewhere, runs) = plan(&layer(there), [(Duration::ZERO, 201)]);
    let first = spawn(&running, "k").await;
    let began = Instant::now();
    while began.elapsed() < lease + ms(500) {
        let retry = send(&elsewhere, post("k", "charge 5")).await;
        assert_eq!(retry.status, StatusCode::CONFLICT, "{:?}", began.elapsed());
        sleep(ms(50)).await;
    }
    gate.open(1);
    assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
    let retry = send(&elsewhere, post("k", "charge 5")).await;
    assert_eq!((retry.text(), retry.is_replay()), ("attempt 1", true));
    assert_eq!((runs.get(), here.in_flight().count()), (0, 0));
}

#[tokio::test]
async fn a_key_that_was_held_for_too_long_goes_to_another_node() {
    let (here, there) = store_pair();
    let (gate, open) = (Gate::default(), Gate::default());
    open.open_for_all();
    let here = layer(here).lease(ms(500)).max_hold(ms(300));
    let running = held(&here, &gate);
    let elsewhere = held(&layer(there), &open);
    let began = std::time::Instant::now();
    let first = spawn(&running, "k").await;
    let ask = async || send(&elsewhere, post("k", "charge 5")).await;
    let second = once_not(StatusCode::CONFLICT, ask).await;
    assert_passed(ms(500), began);
    assert_eq!(second.text(), "attempt 2");
    assert_eq!(second.outcome, executed(2, Some(true)));
    gate.open(1);
    let first = first.await.unwrap();
    assert_eq!(first.text(), "attempt 1");
    assert_eq!(first.outcome, executed(1, Some(false)));
    let retry = send(&running, post("k", "charge 5")).await;
    assert_eq!((retry.text(), retry.is_replay()), ("attempt 2", true));
    assert_eq!(here.in_flight().count(), 0);
}

#[tokio::test]
async fn the_key_of_a_dead_run_is_closed_to_other_requests_until_retention_ends() {
    let (dead, store) = store_pair();
    let dying = |layer: IdempotencyLayer<_>| layer.lease(ms(500)).retention(ms(300));
    let began = std::time::Instant::now();
    dead_run(dead, dying, "k").await;
    let (service, runs) = plan(&layer(store), [(Duration::ZERO, 201)]);
    let ask = async || {
        let other = send(&service, post("k", "charge 6")).await;
        let is_closed = other.code().as_deref() == Some("key-reused");
        assert!(
            is_closed || other.status == StatusCode::CREATED,
            "{other:?}"
        );
        other
    };
    let other = once_not(StatusCode::UNPROCESSABLE_ENTITY, ask).await;
    assert_passed(ms(800), began);
    assert_eq!(other.text(), "run 1 attempt 1");
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn once_retention_has_ended_the_key_is_free_and_attempts_start_again() {
    let (here, there) = store_pair();
    let nodes = [here, there].map(|store| layer(store).retention(ms(300)));
    let no_time = Duration::ZERO;
    let ([here, there], runs) = plan_on(nodes.each_ref(), [(no_time, 500), (no_time, 201)]);
    let mut asked = std::time::Instant::now();
    let failed = send(&here, post("k", "charge 5")).await;
    assert_eq!(failed.text(), "run 1 attempt 1");
    // After a run that failed, and after one that is on record.
    for (run, next) in [(2, "charge 6"), (3, "charge 7")] {
        let since = asked;
        let ask = async || {
            asked = std::time::Instant::now();
            send(&there, post("k", next)).await
        };
        let free = once_not(StatusCode::UNPROCESSABLE_ENTITY, ask).await;
        assert_passed(ms(300), since);
        assert_eq!(free.text(), format!("run {run} attempt 1"));
        assert_eq!(free.outcome, executed(1, Some(true)));
    }
    assert_eq!(runs.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn retention_ends_to_the_millisecond_and_attempts_start_again() {
    let keeping = layer(MemoryStore::new()).retention(secs(100));
    let (service, runs) = plan(&keeping, [(secs(5), 500), (secs(5), 201), (secs(5), 201)]);
    assert_eq!(send(&service, post("k", "charge 5")).await.status, 500);
    sleep(ms(99_999)).await;
    let second = send(&service, post("k", "charge 5")).await;
    assert_eq!(second.text(), "run 2 attempt 2");
    // Counted from completion.
    sleep(ms(99_999)).await;
    assert!(send(&service, post("k", "charge 5")).await.is_replay());
    sleep(ms(1)).await;
    let third = send(&service, post("k", "charge 6")).await;
    assert_eq!(third.text(), "run 3 attempt 1");
    assert_eq!(third.outcome, executed(1, Some(true)));
    assert_eq!((runs.get(), keeping.in_flight().count()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_over_is_not_live_though_its_record_is_still_to_be_written() {
    let store = FaultStore::new(store());
    let layer = layer(store.clone());
    let kept = Arc::new(Mutex::new(None::<Operation>));
    let service = handling(&layer, {
        let kept = kept.clone();
        move |operation| {
            assert!(operation.as_ref().unwrap().is_live());
            *kept.lock().unwrap() = operation;
            async { full(201, "done") }
        }
    });
    store.always(Call::Complete, Fault::Refused(StoreErrorKind::NotApplied));
    let first = send(&service, post("k", "charge 5")).await;
    assert_eq!(first.outcome, executed(1, Some(false)));
    let operation = kept.lock().unwrap().clone().unwrap();
    assert!(!operation.is_live());
    sleep(secs(15)).await;
    let running = store.inner().lookup(operation.id()).await.unwrap().unwrap();
    assert!(matches!(running.phase, Phase::Running { .. }));
    assert!(!operation.is_live(), "its handler ended 15 s ago");
    store.heal(Call::Complete);
    idle(&layer).await;
    assert!(send(&service, post("k", "charge 5")).await.is_replay());
}
