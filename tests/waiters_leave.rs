//! Who waits and leaves never runs, and holds nothing: no key, no permit, no task.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use support::faults::{Call, Fault, FaultStore};
use support::gates::until;
use support::scripted::{Planned, executed, full, idle, let_run, plan, secs, spawn};
use support::stores::store;
use support::{Runs, post, read, send};
use tokio::time::{Instant, sleep};
use tower::limit::ConcurrencyLimitLayer;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_idempotency::store::{KeyStore, StoreErrorKind};
use tower_idempotency::{
    ConflictPolicy, IdempotencyLayer, Operation, OutagePolicy, RequestBody, SharedByAllCallers,
};

fn waiting<K: KeyStore>(store: K, at_most: Duration) -> IdempotencyLayer<K> {
    IdempotencyLayer::new(store, SharedByAllCallers).on_conflict(ConflictPolicy::Wait { at_most })
}

/// The layer around a limit of so many permits around a handler that takes 10 s, and fails
/// on its first run.
fn limited<K: KeyStore>(layer: &IdempotencyLayer<K>, permits: usize) -> (Planned, Runs) {
    let runs = Runs::default();
    let handler = tower::service_fn({
        let runs = runs.clone();
        move |request: Request<RequestBody<Full<Bytes>>>| {
            let run = runs.add();
            async move {
                sleep(secs(10)).await;
                let attempt = request
                    .extensions()
                    .get()
                    .map_or(0, |operation: &Operation| operation.attempt());
                let status = if run == 1 { 500 } else { 201 };
                Ok::<_, Infallible>(full(status, format!("run {run} attempt {attempt}")))
            }
        }
    });
    let limited = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(permits))
        .service(handler);
    (Planned::new(layer.layer(limited)), runs)
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_client_leaves_is_gone_at_once() {
    let layer = waiting(store(), secs(60));
    let (service, runs) = plan(&layer, [(secs(5), 500), (secs(5), 201)]);
    let first = spawn(&service, "k").await;
    let waiter = spawn(&service, "k").await;
    assert_eq!(layer.in_flight().count(), 2);
    waiter.abort();
    let_run().await;
    assert_eq!(layer.in_flight().count(), 1);
    assert_eq!(first.await.unwrap().status, 500);
    sleep(secs(60)).await;
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    let retry = send(&service, post("k", "charge 5")).await;
    assert_eq!(retry.text(), "run 2 attempt 2");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_in_the_middle_of_its_first_claim_does_not_wait_on_alone() {
    let store = FaultStore::new(store());
    let layer = waiting(store.clone(), secs(600));
    let (service, runs) = plan(&layer, [(secs(60), 500), (secs(5), 201)]);
    let first = spawn(&service, "k").await;
    store.once(Call::Claim, Fault::Slow(secs(1)));
    let leaving = spawn(&service, "k").await;
    leaving.abort();
    let_run().await;
    // Its claim is under way and must be known first.
    assert_eq!(layer.in_flight().count(), 2);
    sleep(secs(2)).await;
    assert_eq!(layer.in_flight().count(), 1, "somebody waits for nobody");

    assert_eq!(first.await.unwrap().status, 500);
    let_run().await;
    // Nobody was there to take the key over for nothing, and to count an attempt up.
    let retry = send(&service, post("k", "charge 5")).await;
    assert_eq!(retry.text(), "run 2 attempt 2");
    assert_eq!(retry.outcome, executed(2, Some(true)));
    idle(&layer).await;
    assert_eq!(runs.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_in_the_middle_of_its_second_claim_does_not_run() {
    let store = FaultStore::new(store());
    let layer = waiting(store.clone(), secs(60));
    let (service, runs) = plan(&layer, [(secs(5), 500), (secs(5), 201)]);
    let first = spawn(&service, "k").await;
    let waiter = spawn(&service, "k").await;
    store.once(Call::Claim, Fault::Slow(secs(1)));
    assert_eq!(first.await.unwrap().status, 500);
    until("it claims again", || store.count(Call::Claim) == 3).await;
    waiter.abort();
    let_run().await;
    idle(&layer).await;
    assert_eq!(runs.get(), 1);

    let began = Instant::now();
    let retry = send(&service, post("k", "charge 5")).await;
    assert_eq!(retry.status, StatusCode::CREATED);
    assert_eq!(began.elapsed(), secs(5), "the key was left behind");
    assert!(!retry.is_replay());
    assert_eq!((runs.get(), layer.in_flight().count()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_holds_no_permit_of_the_inner_service() {
    let layer = waiting(store(), secs(60));
    let (service, runs) = limited(&layer, 2);
    let first = tokio::spawn(service.clone().oneshot(post("k", "charge 5")));
    let_run().await;
    let mut waiters = Vec::new();
    for _ in 0..5 {
        waiters.push(tokio::spawn(service.clone().oneshot(post("k", "charge 5"))));
        let_run().await;
    }
    let began = Instant::now();
    let other = send(&service, post("other", "charge 5")).await;
    assert_eq!(other.text(), "run 2 attempt 1");
    assert_eq!(began.elapsed(), secs(10), "somebody held the second permit");

    assert_eq!(first.await.unwrap().unwrap().status(), 500);
    for waiter in waiters {
        let answer = read(waiter.await.unwrap().unwrap()).await;
        assert_eq!(answer.text(), "run 3 attempt 2");
    }
    assert_eq!((runs.get(), layer.in_flight().count()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_while_its_service_is_made_ready_gives_the_key_back_at_once() {
    let store = FaultStore::new(store());
    let layer = waiting(store.clone(), secs(60));
    let (unlimited, runs) = plan(&layer, [(secs(5), 500), (secs(5), 201)]);
    let (limited, limited_runs) = limited(&layer, 1);
    let first = spawn(&unlimited, "k").await;
    let waiter = tokio::spawn(limited.clone().oneshot(post("k", "charge 5")));
    let_run().await;
    // The permit that the waiter has given up goes to one who keeps it for long.
    let other = tokio::spawn(limited.clone().oneshot(post("other", "charge 5")));
    let_run().await;
    assert_eq!(first.await.unwrap().status, 500);
    until("the waiter claims again", || store.count(Call::Claim) == 4).await;
    let_run().await;
    // Now the waiter has the key, and asks in vain for the permit.
    let retry = send(&unlimited, post("other", "charge 6")).await;
    assert_eq!(retry.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(layer.in_flight().count(), 2);
    waiter.abort();
    let_run().await;
    assert_eq!(layer.in_flight().count(), 1, "the key is held for nobody");
    let began = Instant::now();
    let retry = send(&unlimited, post("k", "charge 5")).await;
    assert_eq!(began.elapsed(), secs(5));
    assert_eq!(retry.status, StatusCode::CREATED);
    other.await.unwrap().unwrap();
    idle(&layer).await;
    assert_eq!((runs.get(), limited_runs.get()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn who_runs_unprotected_after_a_wait_calls_a_service_that_is_ready() {
    let store = FaultStore::new(store());
    let layer = waiting(store.clone(), secs(60)).on_outage(OutagePolicy::RunUnprotected);
    let (service, runs) = limited(&layer, 2);
    let first = tokio::spawn(service.clone().oneshot(post("k", "charge 5")));
    let_run().await;
    let waiter = tokio::spawn(service.clone().oneshot(post("k", "charge 5")));
    let_run().await;
    store.always(Call::Claim, Fault::Refused(StoreErrorKind::NotApplied));
    assert_eq!(first.await.unwrap().unwrap().status(), 500);
    // Unprotected or refused, but not by a panic of the limit inside.
    let waited = waiter.await.expect("called without being ready").unwrap();
    let waited = read(waited).await;
    assert!(
        waited.header("idempotency-stored") == Some("false") || waited.status == 503,
        "{waited:?}"
    );
    idle(&layer).await;
    assert!(runs.get() <= 2);
}
