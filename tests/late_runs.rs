//! A run that comes too late does not begin: another may have run meanwhile, and be done.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use support::gates::Gate;
use support::scripted::variant::{But, Variant};
use support::scripted::{full, handling, ms, plan, secs, spawn};
use support::stores::{once_not, store_pair};
use support::{Runs, post, send};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tower::Layer;
use tower::limit::ConcurrencyLimit;
use tower_idempotency::store::{KeyStore, MemoryStore};
use tower_idempotency::{
    ConflictPolicy, IdempotencyKey, IdempotencyLayer, Operation, RecordId, RequestBody, Scope,
    SharedByAllCallers,
};

/// A waiter that acquired and then waits for readiness past its lease must not run
/// the handler: its successor's final answer may be on record.
#[tokio::test]
async fn who_is_made_ready_too_late_does_not_run() {
    let (here, there) = store_pair();
    let other_node = IdempotencyLayer::new(there.clone(), SharedByAllCallers);
    let gate = Gate::default();
    let other_node = handling(&other_node, {
        let (runs, gate) = (Runs::default(), gate.clone());
        move |operation: Option<Operation>| {
            let (run, gate) = (runs.add(), gate.clone());
            async move {
                gate.pass().await;
                let attempt = operation.unwrap().attempt();
                let status = if run == 1 { 500 } else { 201 };
                full(status, format!("run {run} attempt {attempt}"))
            }
        }
    });
    let permits = Arc::new(Semaphore::new(1));
    let late_runs = Runs::default();
    let this_node = IdempotencyLayer::new(here, SharedByAllCallers)
        .lease(ms(300))
        .max_hold(ms(600))
        .on_conflict(ConflictPolicy::Wait { at_most: secs(60) });
    let limited = this_node.layer(ConcurrencyLimit::with_semaphore(
        tower::service_fn({
            let runs = late_runs.clone();
            move |_: Request<RequestBody<Full<Bytes>>>| {
                runs.add();
                async { Ok::<_, Infallible>(full(201, "late")) }
            }
        }),
        permits.clone(),
    ));

    let first = spawn(&other_node, "k").await;
    let waiter = spawn(&limited, "k").await;
    let busy = permits.clone().acquire_owned().await.unwrap();
    gate.open_for_all();
    assert_eq!(first.await.unwrap().status, 500);
    let id = RecordId::new(
        "",
        &Scope::from(SharedByAllCallers),
        &IdempotencyKey::new("k").unwrap(),
    );
    // The waiter holds attempt 2, is not ready, and is renewed for max_hold and no longer.
    let deadline = Instant::now() + secs(20);
    while there.lookup(&id).await.unwrap().unwrap().attempt < 2 {
        assert!(Instant::now() < deadline, "the waiter does not get the key");
        sleep(ms(5)).await;
    }
    let ask = async || send(&other_node, post("k", "charge 5")).await;
    let successor = once_not(StatusCode::CONFLICT, ask).await;
    assert_eq!(successor.text(), "run 2 attempt 3");
    assert!(ask().await.is_replay());
    drop(busy);
    let waiter = waiter.await.unwrap();
    assert_eq!(late_runs.get(), 0, "ran after the record: {waiter:?}");
}

/// The same without a wait: the answer to the claim comes after the lease has ended.
#[tokio::test]
async fn who_is_told_too_late_that_it_may_run_does_not_run() {
    let (here, there) = store_pair();
    let slow = Variant::of(here, But::FirstClaimAnsweredAfter(secs(2)));
    let slow = IdempotencyLayer::new(slow, SharedByAllCallers)
        .lease(ms(300))
        .store_timeout(secs(20));
    let (slow, late_runs) = plan(&slow, [(Duration::ZERO, 201)]);
    let first = spawn(&slow, "k").await;
    let other = IdempotencyLayer::new(there, SharedByAllCallers);
    let (other, _) = plan(&other, [(Duration::ZERO, 201)]);
    let ask = async || send(&other, post("k", "charge 5")).await;
    let taken_over = once_not(StatusCode::CONFLICT, ask).await;
    assert_eq!(taken_over.text(), "run 1 attempt 2");
    assert!(ask().await.is_replay());
    let _ = first.await.unwrap();
    assert_eq!(late_runs.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_shortest_lease_that_is_accepted_holds() {
    for lease in [10, 11, 15] {
        let store = MemoryStore::new();
        let layer = IdempotencyLayer::new(store, SharedByAllCallers).lease(ms(lease));
        let (service, runs) = plan(&layer, [(ms(200), 201)]);
        let first = spawn(&service, "k").await;
        for _ in 0..50 {
            let _ = timeout(ms(1), send(&service, post("k", "charge 5"))).await;
            sleep(ms(1)).await;
        }
        let _ = first.await.unwrap();
        assert_eq!(runs.get(), 1, "lease of {lease} ms");
    }
}
