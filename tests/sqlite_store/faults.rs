//! What is said of a call that fails: a full disk, a lock that is taken, a file that is
//! read-only, damaged, or without its tables.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteJournalMode;
use tower_idempotency::store::{
    Claimed, Completion, KeyStore, Ownership, SqliteStore, StoreErrorKind,
};

use crate::place::{Folder, Place, options, pool};
use crate::{
    RETENTION, acquire, brief, complete, fresh_record, record_of_len, request, retry_of, single,
};

async fn leave_pages(place: &Place, pages: i64) {
    let used: i64 = sqlx::query_scalar("PRAGMA page_count")
        .fetch_one(&place.pool)
        .await
        .unwrap();
    let limit = AssertSqlSafe(format!("PRAGMA max_page_count = {}", used + pages));
    sqlx::query(limit).execute(&place.pool).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_long_answers_and_takes_that_a_run_is_done() {
    let place = single(Place::new().await).await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    leave_pages(&place, 2).await;
    let long = record_of_len(1024 * 1024);
    let full = place.store.complete(&hold, &long, RETENTION).await;
    assert_eq!(full.unwrap_err().kind(), StoreErrorKind::Full);
    let extended = place.store.extend(&hold, crate::LEASE, RETENTION).await;
    assert_eq!(extended.unwrap(), Ownership::Held);
    let short = fresh_record();
    let done = place.store.complete(&hold, &short, RETENTION).await;
    assert_eq!(done.unwrap(), Completion::Stored);
    let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
    assert_eq!(
        claimed,
        Claimed::Completed {
            attempt: 1,
            record: short
        }
    );
}

#[tokio::test]
async fn a_full_disk_refuses_claims_and_keeps_every_record() {
    let place = single(Place::new().await).await;
    let kept = request();
    let record = fresh_record();
    complete(&place.store, &kept, &record).await;
    leave_pages(&place, 0).await;
    let full = loop {
        if let Err(error) = place.store.claim(&request()).await {
            break error;
        }
    };
    assert_eq!(full.kind(), StoreErrorKind::Full);
    let claimed = place.store.claim(&retry_of(&kept)).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
}

#[tokio::test]
async fn writers_wait_for_another_one_and_were_not_applied_if_it_takes_too_long() {
    let place = Place::with(|options| options.busy_timeout(Duration::from_millis(50))).await;
    let (done, record, running) = (request(), fresh_record(), request());
    complete(&place.store, &done, &record).await;
    let hold = acquire(&place.store, &running).await;
    let writer = place.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let fresh = request();
    let refused = place.store.claim(&fresh).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::NotApplied);
    let refused = place.store.complete(&hold, &record, RETENTION).await;
    assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::NotApplied);
    // Whoever only reads does not wait.
    let claimed = place.store.claim(&retry_of(&done)).await.unwrap();
    assert_eq!(
        claimed,
        Claimed::Completed {
            attempt: 1,
            record: record.clone()
        }
    );
    let claimed = place.store.claim(&retry_of(&running)).await.unwrap();
    assert!(matches!(claimed, Claimed::InProgress { attempt: 1, .. }));
    let claimed = place
        .store
        .claim(&crate::misuse_of(&running))
        .await
        .unwrap();
    assert_eq!(claimed, Claimed::Mismatch);
    writer.rollback().await.unwrap();
    acquire(&place.store, &fresh).await;
    let done = place.store.complete(&hold, &record, RETENTION).await;
    assert_eq!(done.unwrap(), Completion::Stored);
}

/// A run is on record: that it may not run again is known, though the write was refused.
#[tokio::test]
async fn a_failed_run_gives_no_leave_to_run_unprotected() {
    let place = Place::with(|options| options.busy_timeout(Duration::from_millis(50))).await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let failed = place.store.fail(&hold, false, RETENTION).await.unwrap();
    assert_eq!(failed, Ownership::Held);
    let _writer = place.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let refused = place.store.claim(&retry_of(&request)).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Ambiguous);
}

/// The connection keeps its own busy time-out.
#[tokio::test]
async fn a_claim_that_does_not_wait_leaves_its_connection_as_it_was() {
    let place = single(Place::new().await).await;
    let (_other, pool) = place.other().await;
    let request = brief(request());
    acquire(&place.store, &request).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let writer = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    for polls in 0..40 {
        let retry = retry_of(&request);
        let claim = place.store.claim(&retry);
        crate::cut_short(claim, polls).await;
        let timeout: i64 = sqlx::query_scalar("PRAGMA busy_timeout")
            .fetch_one(&place.pool)
            .await
            .unwrap();
        assert_eq!(timeout, 5000, "dropped after poll {polls}");
    }
    drop(writer);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !matches!(
        place.store.claim(&retry_of(&request)).await,
        Ok(Claimed::Acquired(_))
    ) {
        assert!(std::time::Instant::now() < deadline);
    }
}

/// Without WAL a reader keeps a commit out, which comes after the row has been given.
#[tokio::test]
async fn a_claim_that_could_not_be_committed_is_not_acquired() {
    let place = Place::with(|options| {
        let options = options.journal_mode(SqliteJournalMode::Delete);
        options.busy_timeout(Duration::from_millis(50))
    });
    let place = place.await;
    let mut reader = place.pool.begin().await.unwrap();
    let count = sqlx::query("SELECT count(*) FROM idempotency_record");
    count.fetch_all(&mut *reader).await.unwrap();
    let request = request();
    let refused = place.store.claim(&request).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::NotApplied);
    reader.rollback().await.unwrap();
    assert_eq!(place.store.lookup(&request.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_read_only_database_replays_and_claims_nothing() {
    let place = Place::new().await;
    let (done, record) = (request(), fresh_record());
    complete(&place.store, &done, &record).await;
    let options = options(&place.folder.file()).read_only(true);
    let store = SqliteStore::new(pool(options).await);
    let claimed = store.claim(&retry_of(&done)).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
    let refused = store.claim(&request()).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::NotApplied);
}

#[tokio::test]
async fn a_file_without_tables_is_misconfigured() {
    let folder = Folder::new();
    let store = SqliteStore::new(pool(options(&folder.file())).await);
    let refused = store.claim(&request()).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Misconfigured);
    let hold = request().hold(1);
    let refused = store.complete(&hold, &fresh_record(), RETENTION).await;
    assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Misconfigured);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_corrupt() {
    let folder = Folder::new();
    std::fs::write(folder.file(), vec![b'x'; 8192]).unwrap();
    let plain = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.file());
    let store = SqliteStore::new(pool(plain).await);
    let refused = store.claim(&request()).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Corrupt);
}

/// SQLite checks what a damaged page says; the store checks what a whole one does.
#[tokio::test]
async fn a_record_that_is_none_is_corrupt_and_can_be_forgotten() {
    let place = Place::new().await;
    let request = request();
    complete(&place.store, &request, &fresh_record()).await;
    let damage = sqlx::query("UPDATE idempotency_record SET record = x'00'");
    damage.execute(&place.pool).await.unwrap();
    let unreadable = place.store.claim(&retry_of(&request)).await;
    assert_eq!(unreadable.unwrap_err().kind(), StoreErrorKind::Corrupt);
    let unreadable = place.store.lookup(&request.id).await;
    assert_eq!(unreadable.unwrap_err().kind(), StoreErrorKind::Corrupt);
    let forgot = place.store.forget(&request.id).await.unwrap();
    assert_eq!(forgot, tower_idempotency::store::Forgot::Forgotten);
}
