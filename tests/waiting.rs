//! Who waits for a run under way, on any node, gets its answer at once, and runs only in its
//! turn.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use http::StatusCode;
use support::faults::{Call, Fault, FaultStore};
use support::scripted::variant::{But, Variant};
use support::scripted::{dead_run, executed, let_run, ms, plan, plan_on, secs, spawn};
use support::stores::{assert_noticed, store, store_pair};
use support::{post, send};
use tokio::time::{Instant, sleep};
use tower_idempotency::store::{KeyStore, StoreErrorKind};
use tower_idempotency::{
    ConflictPolicy, FailurePolicy, IdempotencyLayer, Outcome, RejectionKind, SharedByAllCallers,
};

fn waiting<K: KeyStore>(store: K, at_most: Duration) -> IdempotencyLayer<K> {
    IdempotencyLayer::new(store, SharedByAllCallers).on_conflict(ConflictPolicy::Wait { at_most })
}

/// Two nodes with the same records.
fn nodes(at_most: Duration) -> [IdempotencyLayer; 2] {
    let (here, there) = store_pair();
    [here, there].map(|store| waiting(store, at_most))
}

fn in_flight(nodes: &[IdempotencyLayer; 2]) -> [usize; 2] {
    nodes.each_ref().map(|node| node.in_flight().count())
}

#[tokio::test(start_paused = true)]
async fn a_waiter_gets_the_answer_the_moment_it_is_on_record() {
    let nodes = nodes(secs(60));
    let ([here, there], runs) = plan_on(nodes.each_ref(), [(secs(7), 201)]);
    let began = Instant::now();
    let first = spawn(&here, "k").await;
    let waiters = [spawn(&here, "k").await, spawn(&there, "k").await];
    assert_eq!(in_flight(&nodes), [2, 1]);

    for waiter in waiters {
        let waited = waiter.await.unwrap();
        assert_noticed(began.elapsed(), secs(7), 1);
        assert!(waited.is_replay());
        assert_eq!(waited.outcome, Some(Outcome::Replayed));
        assert_eq!(waited.status, StatusCode::CREATED);
        assert_eq!(waited.text(), "run 1 attempt 1");
    }
    let first = first.await.unwrap();
    assert!(!first.is_replay());
    assert_eq!(first.outcome, executed(1, Some(true)));
    assert_eq!(first.text(), "run 1 attempt 1");
    assert_eq!((runs.get(), in_flight(&nodes)), (1, [0, 0]));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_409_and_not_before_its_time() {
    let nodes = nodes(secs(5));
    let ([here, there], runs) = plan_on(nodes.each_ref(), [(secs(60), 201)]);
    let first = spawn(&here, "k").await;
    for service in [&here, &there] {
        let began = Instant::now();
        let waited = send(service, post("k", "charge 5")).await;
        assert_eq!(began.elapsed(), secs(5));
        assert_eq!(waited.status, StatusCode::CONFLICT);
        assert_eq!(waited.code().as_deref(), Some("in-progress"));
        assert_eq!(waited.header("retry-after"), Some("1"));
        let refused = Outcome::Rejected(RejectionKind::InProgress);
        assert_eq!(waited.outcome, Some(refused));
    }
    assert_eq!(first.await.unwrap().text(), "run 1 attempt 1");
    assert_eq!((runs.get(), in_flight(&nodes)), (1, [0, 0]));
}

#[tokio::test(start_paused = true)]
async fn when_a_run_fails_one_who_waits_runs_and_the_others_get_its_answer() {
    let nodes = nodes(secs(60));
    let (services, runs) = plan_on(nodes.each_ref(), [(secs(5), 500), (secs(5), 201)]);
    let began = Instant::now();
    let first = spawn(&services[0], "k").await;
    let mut waiters = Vec::new();
    for waiter in 0..20 {
        waiters.push(spawn(&services[waiter % 2], "k").await);
    }
    let mut ran = 0;
    for waiter in waiters {
        let answer = waiter.await.unwrap();
        assert_eq!(answer.text(), "run 2 attempt 2");
        assert_eq!(answer.status, StatusCode::CREATED);
        if !answer.is_replay() {
            assert_eq!(answer.outcome, executed(2, Some(true)));
            ran += 1;
        }
    }
    assert_eq!(ran, 1);
    assert_noticed(began.elapsed(), secs(10), 2);
    assert_eq!(first.await.unwrap().status, 500);
    assert_eq!((runs.get(), in_flight(&nodes)), (2, [0, 0]));
}

#[tokio::test(start_paused = true)]
async fn when_a_run_is_released_one_who_waits_runs_as_a_first_attempt() {
    let nodes = nodes(secs(60));
    let ([here, there], runs) = plan_on(nodes.each_ref(), [(secs(5), 401), (secs(5), 201)]);
    let first = spawn(&here, "k").await;
    let waiter = spawn(&there, "k").await;
    assert_eq!(first.await.unwrap().status, 401);
    let waited = waiter.await.unwrap();
    assert_eq!(waited.text(), "run 2 attempt 1");
    assert_eq!(waited.outcome, executed(1, Some(true)));
    assert_eq!((runs.get(), in_flight(&nodes)), (2, [0, 0]));
}

#[tokio::test(start_paused = true)]
async fn when_a_run_seals_the_key_all_who_wait_are_told_at_once() {
    let nodes = nodes(secs(60)).map(|node| node.on_failure(FailurePolicy::Refuse));
    let ([here, there], runs) = plan_on(nodes.each_ref(), [(secs(5), 500)]);
    let began = Instant::now();
    let first = spawn(&here, "k").await;
    for waiter in [spawn(&here, "k").await, spawn(&there, "k").await] {
        let waited = waiter.await.unwrap();
        assert_eq!(waited.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(waited.code().as_deref(), Some("outcome-unknown"));
    }
    assert_noticed(began.elapsed(), secs(5), 1);
    assert_eq!(first.await.unwrap().text(), "run 1 attempt 1");
    assert_eq!((runs.get(), in_flight(&nodes)), (1, [0, 0]));
}

#[tokio::test(start_paused = true)]
async fn another_request_does_not_wait() {
    let nodes = nodes(secs(60));
    let ([here, there], runs) = plan_on(nodes.each_ref(), [(secs(5), 201)]);
    let first = spawn(&here, "k").await;
    let began = Instant::now();
    let other = send(&there, post("k", "charge 6")).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(began.elapsed(), Duration::ZERO);
    first.await.unwrap();
    assert_eq!((runs.get(), in_flight(&nodes)), (1, [0, 0]));
}

#[tokio::test]
async fn a_waiter_whose_run_dies_takes_over_when_its_lease_ends() {
    let (dead, store) = store_pair();
    let layer = waiting(store, secs(60)).lease(ms(400));
    let (service, runs) = plan(&layer, [(ms(10), 201)]);
    let began = Instant::now();
    dead_run(dead, |layer| layer.lease(ms(400)), "k").await;

    let waited = send(&service, post("k", "charge 5")).await;
    assert_eq!(waited.text(), "run 1 attempt 2");
    assert_eq!(waited.outcome, executed(2, Some(true)));
    let took = began.elapsed();
    assert!(took >= ms(400) && took < secs(20), "took {took:?}");
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_announces_nothing_is_asked_from_time_to_time() {
    let store = FaultStore::new(store());
    let layer = waiting(Variant::of(store.clone(), But::Announcing), secs(60));
    let (service, runs) = plan(&layer, [(secs(20), 201)]);
    let began = Instant::now();
    let first = spawn(&service, "k").await;
    let waited = send(&service, post("k", "charge 5")).await;
    let took = began.elapsed();
    assert!(waited.is_replay());
    assert!(took >= secs(20) && took <= ms(20_300), "took {took:?}");
    let looked = store.count(Call::Lookup);
    assert!((70..=200).contains(&looked), "looked {looked} times");
    // One claim each at the start, and one once the answer was there.
    assert_eq!(store.count(Call::Claim), 3);
    first.await.unwrap();
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_fails_once_does_not_cost_the_whole_wait() {
    let store = FaultStore::new(store());
    let layer = waiting(store.clone(), secs(60));
    let (service, runs) = plan(&layer, [(secs(5), 201)]);
    let first = spawn(&service, "k").await;
    // The run ends while the answer to the waiter's claim is under way, and the look-up
    // that would tell so fails.
    store.once(Call::Lookup, Fault::Refused(StoreErrorKind::NotApplied));
    let late = Variant::of(store.clone(), But::FirstClaimAnsweredAfter(secs(6)));
    let layer = waiting(late, secs(60)).store_timeout(secs(10));
    let (service, _) = plan(&layer, [(secs(5), 201)]);
    let began = Instant::now();
    let waited = send(&service, post("k", "charge 5")).await;
    let took = began.elapsed();
    assert!(waited.is_replay());
    assert!(took <= secs(10), "took {took:?}");
    first.await.unwrap();
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_change_between_a_look_up_and_its_answer_is_not_missed() {
    let store = store();
    let slow = Variant::of(store, But::LookUpsAnsweredAfter(ms(1_500)));
    let layer = waiting(slow, secs(60));
    let (service, runs) = plan(&layer, [(secs(1), 201)]);
    let began = Instant::now();
    let first = spawn(&service, "k").await;
    let waited = send(&service, post("k", "charge 5")).await;
    assert!(waited.is_replay());
    assert_eq!(began.elapsed(), secs(3));
    first.await.unwrap();
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn look_ups_that_lag_behind_do_not_make_a_waiter_spin() {
    let store = store();
    let layer = waiting(store.clone(), secs(60));
    let (service, runs) = plan(&layer, [(secs(5), 201)]);
    let first = spawn(&service, "k").await;
    let lagging = Variant::of(store, But::LookUpsLag(300));
    let layer = waiting(lagging.clone(), secs(60));
    let (service, _) = plan(&layer, [(secs(5), 201)]);
    let waited = send(&service, post("k", "charge 5")).await;
    assert!(waited.is_replay(), "after {} claims", lagging.claims());
    first.await.unwrap();
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_wait_outlasts_a_store_that_cannot_be_asked_for_a_while() {
    let store = FaultStore::new(store());
    let layer = waiting(store.clone(), secs(60));
    for fault in [
        Fault::Hangs,
        Fault::AppliedThenHangs,
        Fault::ReplyLost,
        Fault::Slow(secs(1)),
        Fault::Refused(StoreErrorKind::NotApplied),
        Fault::Refused(StoreErrorKind::Corrupt),
    ] {
        let key: &'static str = Box::leak(format!("{fault:?}").replace(' ', "").into_boxed_str());
        let (service, runs) = plan(&layer, [(secs(20), 201)]);
        let began = Instant::now();
        let first = spawn(&service, key).await;
        store.always(Call::Lookup, fault);
        let waiter = spawn(&service, key).await;
        sleep(secs(21)).await;
        store.heal(Call::Lookup);
        let waited = waiter.await.unwrap();
        let took = began.elapsed();
        assert!(waited.is_replay(), "{fault:?}: {waited:?}");
        // A look-up that hangs is given up after 2 s.
        assert!(took >= secs(20) && took <= secs(24), "{fault:?}: {took:?}");
        assert_eq!(first.await.unwrap().text(), "run 1 attempt 1");
        let_run().await;
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}
