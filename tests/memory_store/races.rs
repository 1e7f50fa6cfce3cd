//! Raced on many threads, one claim wins, the counts stay exact, and no waiter is missed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Barrier;
use tower_idempotency::store::{Claimed, Completion, KeyStore, MemoryStore, Ownership, Phase};

use crate::{HOUR, RETENTION, acquire, answer, id, len_of, phase, request};

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
