//! A full store, and a scope that has its quota, take nothing more, and lose nothing for it.

use tokio::time::advance;
use tower_idempotency::store::{Claimed, Completion, KeyStore, MemoryStore, Phase, StoreErrorKind};

use crate::{
    LEASE, RETENTION, acquire, answer, complete, id, len_of, omitted, phase, refusal, request,
    scope,
};

#[tokio::test(start_paused = true)]
async fn nothing_that_lives_is_evicted_for_a_new_claim() {
    let store = MemoryStore::new().max_records(3);
    complete(&store, 0).await;
    let running = acquire(&store, &request(1, 1)).await;
    let failed = acquire(&store, &request(2, 1)).await;
    store.fail(&failed, true, RETENTION).await.unwrap();

    assert_eq!(refusal(&store, &request(3, 1)).await, StoreErrorKind::Full);
    assert!(matches!(phase(&store, 0).await, Some(Phase::Completed(_))));
    assert!(matches!(
        phase(&store, 1).await,
        Some(Phase::Running { .. })
    ));
    assert_eq!(phase(&store, 2).await, Some(Phase::Sealed));
    assert_eq!(phase(&store, 3).await, None);
    assert_eq!(store.len(), 3);

    // Claims of keys that are there are no new records.
    assert_eq!(acquire(&store, &request(1, 1)).await, running);
    advance(LEASE).await;
    assert_eq!(acquire(&store, &request(1, 2)).await.attempt, 2);
    // A key that is given back leaves its room.
    store.forget(&id(2)).await.unwrap();
    acquire(&store, &request(3, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn expired_records_go_first() {
    let store = MemoryStore::new().max_records(500);
    for key in 0..499 {
        complete(&store, key).await;
    }
    advance(RETENTION / 2).await;
    complete(&store, 499).await;
    assert_eq!(
        refusal(&store, &request(500, 1)).await,
        StoreErrorKind::Full
    );

    advance(RETENTION / 2).await;
    for key in 500..999 {
        complete(&store, key).await;
    }
    assert_eq!(store.len(), 500);
    assert!(matches!(
        phase(&store, 499).await,
        Some(Phase::Completed(_))
    ));
    assert_eq!(
        refusal(&store, &request(999, 1)).await,
        StoreErrorKind::Full
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_fit_is_refused_and_the_run_goes_on() {
    let paid = answer("paid");
    let store = MemoryStore::new().max_bytes(len_of(&paid) + 1);
    complete(&store, 0).await;
    let hold = acquire(&store, &request(1, 1)).await;
    let error = store.complete(&hold, &paid, RETENTION).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Full);
    assert!(matches!(
        phase(&store, 1).await,
        Some(Phase::Running { .. })
    ));
    assert_eq!(store.bytes(), len_of(&paid));

    let completion = store.complete(&hold, &omitted(), 2 * RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Stored);
    assert!(matches!(phase(&store, 1).await, Some(Phase::Completed(_))));
    assert_eq!(store.bytes(), len_of(&paid) + len_of(&omitted()));
    assert_eq!(refusal(&store, &request(2, 1)).await, StoreErrorKind::Full);

    // What expires makes room, without a purge.
    advance(RETENTION).await;
    acquire(&store, &request(2, 1)).await;
    assert_eq!(store.bytes(), len_of(&omitted()));
}

#[tokio::test(start_paused = true)]
async fn a_sealed_key_is_not_resolved_with_an_answer_that_does_not_fit() {
    let paid = answer("paid");
    let store = MemoryStore::new().max_bytes(len_of(&paid));
    let hold = acquire(&store, &request(0, 1)).await;
    store.fail(&hold, true, RETENTION).await.unwrap();
    let long = answer("paid at last");
    let error = store.resolve(&id(0), &long, RETENTION).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Full);
    assert_eq!(phase(&store, 0).await, Some(Phase::Sealed));
    assert!(store.resolve(&id(0), &paid, RETENTION).await.unwrap());
    assert_eq!(store.bytes(), len_of(&paid));
}

#[tokio::test(start_paused = true)]
async fn a_scope_is_kept_to_its_quota_and_others_are_not() {
    let store = MemoryStore::new().max_records_per_scope(2);
    let of_scope = |key, n| {
        let mut request = request(key, 1);
        request.scope = scope(n);
        request
    };
    acquire(&store, &of_scope(0, 1)).await;
    let hold = acquire(&store, &of_scope(1, 1)).await;
    assert_eq!(
        refusal(&store, &of_scope(2, 1)).await,
        StoreErrorKind::Quota
    );
    assert_eq!(store.len(), 2, "what is refused is not counted");
    acquire(&store, &of_scope(2, 2)).await;

    // A claim of a key that is there, and one for which another is given back.
    acquire(&store, &of_scope(1, 1)).await;
    store.release(&hold).await.unwrap();
    acquire(&store, &of_scope(3, 1)).await;
    assert_eq!(
        refusal(&store, &of_scope(4, 1)).await,
        StoreErrorKind::Quota
    );

    // What was lost is restored all the same, and counts.
    let completion = store.complete(&hold, &answer("paid"), RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Restored);
    store.forget(&id(1)).await.unwrap();
    assert_eq!(
        refusal(&store, &of_scope(4, 1)).await,
        StoreErrorKind::Quota
    );

    // Expired records do not count, purged or not.
    advance(LEASE + RETENTION).await;
    acquire(&store, &of_scope(4, 1)).await;
    acquire(&store, &of_scope(5, 1)).await;
    assert_eq!(
        refusal(&store, &of_scope(6, 1)).await,
        StoreErrorKind::Quota
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_record_is_restored_into_a_full_store() {
    let store = MemoryStore::new().max_records(1);
    let lost = request(0, 1).hold(7);
    acquire(&store, &request(1, 1)).await;
    let completion = store.complete(&lost, &answer("paid"), RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Restored);
    assert_eq!(store.len(), 2);
    assert!(matches!(
        store.claim(&request(0, 2)).await.unwrap(),
        Claimed::Completed { attempt: 7, .. }
    ));
    assert_eq!(refusal(&store, &request(2, 1)).await, StoreErrorKind::Full);
}
