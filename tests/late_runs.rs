//! A run that comes too late does not begin: another may have run meanwhile, and be done.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use support::scripted::variant::{But, Variant};
use support::scripted::{full, ms, plan, secs, spawn};
use support::{Runs, post, send};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower::Layer;
use tower::limit::ConcurrencyLimit;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{ConflictPolicy, IdempotencyLayer, RequestBody, SharedByAllCallers};

/// A waiter that acquired and then waits for readiness past its lease must not run
/// the handler: its successor's final answer may be on record.
#[tokio::test(start_paused = true)]
async fn who_is_made_ready_too_late_does_not_run() {
    let store = MemoryStore::new();
    let layer = |store| {
        IdempotencyLayer::new(store, SharedByAllCallers)
            .lease(secs(3))
            .max_hold(secs(10))
            .on_conflict(ConflictPolicy::Wait { at_most: secs(60) })
    };
    let (other_node, _) = plan(&layer(store.clone()), [(secs(5), 500), (secs(1), 201)]);

    let permits = Arc::new(Semaphore::new(1));
    let late_runs = Runs::default();
    let this_node = layer(store.clone());
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
    assert_eq!(first.await.unwrap().status, 500);
    // The waiter holds attempt 2, is not ready, and is renewed for max_hold and no longer.
    sleep(secs(20)).await;
    let successor = send(&other_node, post("k", "charge 5")).await;
    assert_eq!(successor.status, 201);
    assert!(send(&other_node, post("k", "charge 5")).await.is_replay());
    drop(busy);
    let waiter = waiter.await.unwrap();
    assert_eq!(late_runs.get(), 0, "ran after the record: {waiter:?}");
}

/// The same without a wait: the answer to the claim comes after the lease has ended.
#[tokio::test(start_paused = true)]
async fn who_is_told_too_late_that_it_may_run_does_not_run() {
    let store = MemoryStore::new();
    let slow = Variant::of(store.clone(), But::FirstClaimAnsweredAfter(ms(1_500)));
    let slow = IdempotencyLayer::new(slow, SharedByAllCallers).lease(secs(1));
    let (slow, late_runs) = plan(&slow, [(Duration::ZERO, 201)]);
    let first = spawn(&slow, "k").await;
    sleep(ms(1_200)).await;
    let other = IdempotencyLayer::new(store, SharedByAllCallers).lease(secs(1));
    let (other, _) = plan(&other, [(Duration::ZERO, 201)]);
    assert_eq!(send(&other, post("k", "charge 5")).await.status, 201);
    assert!(send(&other, post("k", "charge 5")).await.is_replay());
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
