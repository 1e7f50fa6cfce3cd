//! Who waits for a change is woken by each, at once, and sleeps no longer than it may.

use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, advance};
use tower_idempotency::store::{KeyStore, MemoryStore};

use crate::{HOUR, LEASE, MS, RETENTION, acquire, answer, id, request, sealing};

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
