//! What expires is gone at its end, exactly and without a trace, and nothing goes before.

use std::time::Duration;

use tokio::time::advance;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Forgot, KeyStore, MemoryStore, Ownership, Phase,
};

use crate::{
    HOUR, LEASE, MS, NS, RETENTION, acquire, answer, complete, fingerprint, id, len_of, owner,
    phase, request, scope, sealing,
};

#[tokio::test(start_paused = true)]
async fn a_completed_record_lives_until_its_end_and_not_at_it() {
    let store = MemoryStore::new();
    complete(&store, 0).await;
    advance(RETENTION - MS).await;
    let snapshot = store.lookup(&id(0)).await.unwrap().unwrap();
    assert_eq!(snapshot.retention_left, MS);
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
    assert!(matches!(
        store.claim(&request(0, 2)).await.unwrap(),
        Claimed::Completed { attempt: 1, .. }
    ));

    advance(MS).await;
    assert_eq!(phase(&store, 0).await, None);
    assert_eq!(store.forget(&id(0)).await.unwrap(), Forgot::Absent);
    assert_eq!(store.len(), 1, "expired, and not yet purged");
    assert_eq!(acquire(&store, &request(0, 2)).await.attempt, 1);
    assert_eq!((store.len(), store.bytes()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_over_at_its_end() {
    let store = MemoryStore::new();
    acquire(&store, &request(0, 1)).await;
    advance(LEASE - NS).await;
    assert_eq!(
        store.claim(&request(0, 2)).await.unwrap(),
        Claimed::InProgress {
            attempt: 1,
            lease_left: NS
        }
    );
    advance(NS).await;
    assert_eq!(acquire(&store, &request(0, 2)).await.attempt, 2);
}

#[tokio::test(start_paused = true)]
async fn the_end_is_exact_whether_retention_is_shorter_or_longer_than_the_claims() {
    let store = MemoryStore::new();
    for (key, retention) in [(0, MS), (1, RETENTION), (2, 2 * HOUR)] {
        let hold = acquire(&store, &request(key, 1)).await;
        let completion = store.complete(&hold, &answer("paid"), retention).await;
        assert_eq!(completion.unwrap(), Completion::Stored);
    }
    for (wait, left) in [(MS, 2), (RETENTION - MS, 1), (2 * HOUR - RETENTION, 0)] {
        advance(wait - NS).await;
        assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
        advance(NS).await;
        assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 1);
        assert_eq!(store.len(), left);
    }
    assert_eq!(store.bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_renewed_run_outlives_what_was_queued_for_it() {
    let store = MemoryStore::new();
    let hold = acquire(&store, &request(0, 1)).await;
    for _ in 0..100 {
        advance(LEASE / 2).await;
        assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
        let ownership = store.extend(&hold, LEASE, RETENTION).await;
        assert_eq!(ownership.unwrap(), Ownership::Held);
    }
    advance(LEASE + RETENTION - NS).await;
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
    advance(NS).await;
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_purge_keeps_a_stale_run_until_its_retention_is_over() {
    let store = MemoryStore::new();
    let hold = acquire(&store, &request(0, 1)).await;
    advance(LEASE + RETENTION - MS).await;
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
    let other = ClaimRequest::new(id(0), scope(0), fingerprint(1), owner(2));
    assert_eq!(store.claim(&other).await.unwrap(), Claimed::Mismatch);
    let completion = store.complete(&hold, &answer("late"), RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Stored);
}

#[tokio::test(start_paused = true)]
async fn a_purge_removes_as_many_as_it_may_and_counts_them() {
    let store = MemoryStore::new();
    for key in 0..300 {
        complete(&store, key).await;
    }
    advance(RETENTION).await;
    let live = acquire(&store, &request(1000, 1)).await;
    let cleared_by_the_claim = 301 - store.len();
    assert!(cleared_by_the_claim <= 4);

    let mut left = 300 - cleared_by_the_claim;
    assert_eq!(store.purge_expired(0).await.unwrap(), 0);
    while left > 0 {
        let removed = store.purge_expired(64).await.unwrap();
        assert_eq!(removed, left.min(64));
        left -= removed;
    }
    assert_eq!(store.purge_expired(64).await.unwrap(), 0);
    assert_eq!((store.len(), store.bytes()), (1, 0));
    let ownership = store.extend(&live, LEASE, RETENTION).await;
    assert_eq!(ownership.unwrap(), Ownership::Held);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_thousand_records_expire_without_a_trace() {
    const RECORDS: usize = 200_000;
    let store = MemoryStore::new();
    let paid = answer("paid");
    for key in 0..RECORDS {
        let hold = acquire(&store, &request(key, 1)).await;
        store.complete(&hold, &paid, RETENTION).await.unwrap();
    }
    assert_eq!(store.len(), RECORDS);
    assert_eq!(store.bytes(), RECORDS * len_of(&paid));

    advance(RETENTION).await;
    for _ in 0..RECORDS / 10_000 {
        assert_eq!(store.purge_expired(10_000).await.unwrap(), 10_000);
    }
    assert_eq!(store.purge_expired(10_000).await.unwrap(), 0);
    assert_eq!((store.len(), store.bytes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn traffic_alone_clears_away_what_has_expired() {
    let store = MemoryStore::new();
    for key in 0..20_000 {
        complete(&store, key).await;
    }
    advance(RETENTION).await;
    for key in 20_000..40_000 {
        complete(&store, key).await;
    }
    assert!(store.len() < 21_000, "{} are kept", store.len());
}

#[tokio::test(start_paused = true)]
async fn the_longest_durations_are_only_long() {
    let store = MemoryStore::new();
    let mut request = request(0, 1);
    (request.lease, request.retention) = (Duration::MAX, Duration::MAX);
    let hold = acquire(&store, &request).await;
    let ownership = store.extend(&hold, Duration::MAX, Duration::MAX).await;
    assert_eq!(ownership.unwrap(), Ownership::Held);
    let completion = store.complete(&hold, &answer("paid"), Duration::MAX).await;
    assert_eq!(completion.unwrap(), Completion::Stored);

    let hold = acquire(&store, &sealing(1, 1)).await;
    store.fail(&hold, true, Duration::MAX).await.unwrap();
    store
        .resolve(&id(1), &answer(""), Duration::MAX)
        .await
        .unwrap();

    advance(100 * 365 * 24 * HOUR).await;
    assert_eq!(store.purge_expired(usize::MAX).await.unwrap(), 0);
    assert!(matches!(phase(&store, 0).await, Some(Phase::Completed(_))));
    assert!(matches!(phase(&store, 1).await, Some(Phase::Completed(_))));
}
