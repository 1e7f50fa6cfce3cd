//! What the contract of a `TransactionalStore` promises of a handler's own transaction.

use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteJournalMode;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection, SqlitePool};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Fence, Hold, KeyStore, Ownership, Record, SqliteStore, StoreErrorKind,
    TransactionalStore,
};

use crate::place::Place;
use crate::{
    LEASE, RETENTION, acquire, brief, complete, fresh_record, record_of_len, request, retry_of,
    sealing, single,
};

/// Far below the `busy_timeout` of the tests, and far above what it takes.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn with_ledger() -> Place {
    let place = Place::new().await;
    ledger(&place.pool).await;
    place
}

async fn ledger(pool: &SqlitePool) {
    let create = sqlx::query("CREATE TABLE ledger (amount INTEGER NOT NULL, note BLOB)");
    create.execute(pool).await.unwrap();
}

async fn effects(pool: &SqlitePool) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM ledger");
    count.fetch_one(pool).await.unwrap()
}

async fn fence(
    place: &Place,
    connection: &mut SqliteConnection,
    hold: &Hold,
) -> Result<Fence, StoreErrorKind> {
    let fence = place.store.fence(connection, hold).await;
    fence.map_err(|error| error.kind())
}

async fn complete_in(
    place: &Place,
    connection: &mut SqliteConnection,
    hold: &Hold,
    record: &Record,
) -> Result<Fence, StoreErrorKind> {
    let fence = place.store.complete_in(connection, hold, record, RETENTION);
    fence.await.map_err(|error| error.kind())
}

const EFFECT: &str = "INSERT INTO ledger (amount) VALUES (1)";

async fn claimed_at_once(store: &SqliteStore, request: &ClaimRequest) -> Claimed {
    let began = Instant::now();
    let claimed = store.claim(request).await.unwrap();
    let took = began.elapsed();
    assert!(took < AT_ONCE, "it took {took:?}");
    claimed
}

fn in_progress(attempt: u64) -> Claimed {
    Claimed::InProgress {
        attempt,
        lease_left: Duration::ZERO,
    }
}

#[tokio::test]
async fn a_claim_past_the_lease_of_an_open_transaction_is_in_progress_at_once() {
    let place = with_ledger().await;
    let (other, _pool) = place.other().await;
    let request = brief(request());
    let hold = acquire(&place.store, &request).await;
    let mut transaction = place.store.begin().await.unwrap();
    assert_eq!(
        fence(&place, &mut transaction, &hold).await,
        Ok(Fence::Held)
    );
    sqlx::query(EFFECT)
        .execute(&mut *transaction)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    for store in [&place.store, &other] {
        assert_eq!(
            claimed_at_once(store, &retry_of(&request)).await,
            in_progress(1)
        );
        // Its own owner does not know more than that either.
        assert_eq!(claimed_at_once(store, &request).await, in_progress(1));
    }
    let record = fresh_record();
    let done = complete_in(&place, &mut transaction, &hold, &record).await;
    assert_eq!(done, Ok(Fence::Held));
    assert_eq!(
        claimed_at_once(&other, &retry_of(&request)).await,
        in_progress(1)
    );
    assert_eq!(effects(&place.pool).await, 0);

    SqliteStore::commit(transaction).await.unwrap();
    let completed = Claimed::Completed { attempt: 1, record };
    assert_eq!(other.claim(&retry_of(&request)).await.unwrap(), completed);
    // The proof for one whose COMMIT had no answer.
    assert_eq!(other.claim(&request).await.unwrap(), completed);
    assert_eq!(effects(&place.pool).await, 1);
}

#[tokio::test]
async fn a_record_that_has_expired_cannot_be_taken_over_under_an_open_transaction() {
    let place = Place::new().await;
    let (other, _pool) = place.other().await;
    let mut request = brief(request());
    request.retention = Duration::from_millis(300);
    let hold = acquire(&place.store, &request).await;
    let mut transaction = place.store.begin().await.unwrap();
    assert_eq!(
        fence(&place, &mut transaction, &hold).await,
        Ok(Fence::Held)
    );
    while other.lookup(&request.id).await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        claimed_at_once(&other, &retry_of(&request)).await,
        in_progress(1)
    );
    // Expired is absent, here too.
    let late = complete_in(&place, &mut transaction, &hold, &fresh_record()).await;
    assert_eq!(late, Ok(Fence::Unknown));
}

#[tokio::test]
async fn a_transaction_that_is_dropped_or_rolled_back_records_nothing() {
    let place = with_ledger().await;
    for is_dropped in [true, false] {
        let request = request();
        let hold = acquire(&place.store, &request).await;
        let mut transaction = place.store.begin().await.unwrap();
        sqlx::query(EFFECT)
            .execute(&mut *transaction)
            .await
            .unwrap();
        let done = complete_in(&place, &mut transaction, &hold, &fresh_record()).await;
        assert_eq!(done, Ok(Fence::Held));
        match is_dropped {
            true => drop(transaction),
            false => transaction.rollback().await.unwrap(),
        }
        // As soon as it is over, its owner learns how it went.
        let deadline = Instant::now() + Duration::from_secs(10);
        let claimed = loop {
            match place.store.claim(&request).await.unwrap() {
                Claimed::InProgress { .. } => assert!(Instant::now() < deadline),
                claimed => break claimed,
            }
        };
        assert_eq!(claimed, Claimed::Acquired(hold));
        assert_eq!(effects(&place.pool).await, 0);
    }
}

#[tokio::test]
async fn a_zombie_that_is_first_commits_and_nobody_takes_over() {
    let place = with_ledger().await;
    let (other, _pool) = place.other().await;
    let request = brief(request());
    let hold = acquire(&place.store, &request).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut transaction = place.store.begin().await.unwrap();
    sqlx::query(EFFECT)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let record = fresh_record();
    let done = complete_in(&place, &mut transaction, &hold, &record).await;
    assert_eq!(done, Ok(Fence::Held));
    assert_eq!(
        other.claim(&retry_of(&request)).await.unwrap(),
        in_progress(1)
    );
    SqliteStore::commit(transaction).await.unwrap();
    let claimed = other.claim(&retry_of(&request)).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
    assert_eq!(effects(&place.pool).await, 1);
}

#[tokio::test]
async fn a_zombie_that_is_second_can_neither_fence_nor_record() {
    let place = with_ledger().await;
    let (other, _pool) = place.other().await;
    let request = brief(request());
    let hold = acquire(&place.store, &request).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let successor = acquire(&other, &retry_of(&request)).await;
    assert_eq!(successor.attempt, 2);
    let mut transaction = place.store.begin().await.unwrap();
    assert_eq!(
        fence(&place, &mut transaction, &hold).await,
        Ok(Fence::Lost)
    );
    sqlx::query(EFFECT)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let late = complete_in(&place, &mut transaction, &hold, &fresh_record()).await;
    assert_eq!(late, Ok(Fence::Lost));
    transaction.rollback().await.unwrap();
    assert_eq!(effects(&place.pool).await, 0);
    let extended = other.extend(&successor, LEASE, RETENTION).await;
    assert_eq!(extended.unwrap(), Ownership::Held);
}

#[tokio::test]
async fn the_owner_of_a_lease_that_ended_under_seal_may_still_commit() {
    let place = Place::new().await;
    let request = sealing(brief(request()));
    let hold = acquire(&place.store, &request).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut transaction = place.store.begin().await.unwrap();
    assert_eq!(
        fence(&place, &mut transaction, &hold).await,
        Ok(Fence::Held)
    );
    let record = fresh_record();
    let done = complete_in(&place, &mut transaction, &hold, &record).await;
    assert_eq!(done, Ok(Fence::Held));
    SqliteStore::commit(transaction).await.unwrap();
    let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
}

#[tokio::test]
async fn a_hold_of_no_record_is_unknown_and_one_whose_run_is_over_is_lost() {
    let place = Place::new().await;
    let unknown = request().hold(1);
    let done = request();
    let done = complete(&place.store, &done, &fresh_record()).await;
    let failed = acquire(&place.store, &request()).await;
    let _ = place.store.fail(&failed, false, RETENTION).await.unwrap();
    let mut transaction = place.store.begin().await.unwrap();
    for (hold, expected) in [
        (unknown, Fence::Unknown),
        (done, Fence::Lost),
        (failed, Fence::Lost),
    ] {
        assert_eq!(fence(&place, &mut transaction, &hold).await, Ok(expected));
        let done = complete_in(&place, &mut transaction, &hold, &fresh_record()).await;
        assert_eq!(done, Ok(expected));
    }
}

/// Of one who opened it without the lock.
#[tokio::test]
async fn a_fence_locks_in_a_transaction_of_the_handlers_own_making() {
    let place = Place::new().await;
    let (other, _pool) = place.other().await;
    let request = brief(request());
    let hold = acquire(&place.store, &request).await;
    let mut transaction = place.pool.begin().await.unwrap();
    assert_eq!(
        fence(&place, &mut transaction, &hold).await,
        Ok(Fence::Held)
    );
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(
        claimed_at_once(&other, &retry_of(&request)).await,
        in_progress(1)
    );
    let record = fresh_record();
    let done = complete_in(&place, &mut transaction, &hold, &record).await;
    assert_eq!(done, Ok(Fence::Held));
    transaction.commit().await.unwrap();
    let claimed = other.claim(&retry_of(&request)).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
}

#[tokio::test]
async fn nothing_is_fenced_or_recorded_where_no_transaction_is_open() {
    let place = Place::new().await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let mut connection = place.pool.acquire().await.unwrap();
    assert_eq!(
        fence(&place, &mut connection, &hold).await,
        Ok(Fence::NoTransaction)
    );
    let record = fresh_record();
    let done = complete_in(&place, &mut connection, &hold, &record).await;
    assert_eq!(done, Ok(Fence::NoTransaction));
    drop(connection);
    // Nor is one open now that would be in the way.
    assert_eq!(
        place.store.claim(&request).await.unwrap(),
        Claimed::Acquired(hold)
    );
}

/// Makes SQLite roll the transaction back by itself, which a handler does not mind.
async fn fill_the_disk(connection: &mut SqliteConnection) {
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let limit = AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
    sqlx::query(limit).execute(&mut *connection).await.unwrap();
    let large = sqlx::query("INSERT INTO ledger VALUES (2, zeroblob(1000000))");
    let full = large.execute(&mut *connection).await.unwrap_err();
    assert!(full.to_string().contains("full"), "{full}");
    let unlimited = "PRAGMA max_page_count = 1073741823";
    sqlx::query(unlimited)
        .execute(&mut *connection)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_answer_is_not_recorded_alone_when_its_effect_was_rolled_back() {
    let place = with_ledger().await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let mut transaction = place.store.begin().await.unwrap();
    assert_eq!(
        fence(&place, &mut transaction, &hold).await,
        Ok(Fence::Held)
    );
    sqlx::query(EFFECT)
        .execute(&mut *transaction)
        .await
        .unwrap();
    fill_the_disk(&mut transaction).await;
    let record = fresh_record();
    let done = complete_in(&place, &mut transaction, &hold, &record).await;
    assert_eq!(done, Ok(Fence::NoTransaction));
    drop(transaction);
    assert_eq!(effects(&place.pool).await, 0);
    let claimed = place.store.claim(&request).await.unwrap();
    assert_eq!(claimed, Claimed::Acquired(hold));
}

#[tokio::test]
async fn nor_is_it_where_the_handler_said_begin_by_itself() {
    let place = with_ledger().await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let mut connection = place.pool.acquire().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut *connection)
        .await
        .unwrap();
    sqlx::query(EFFECT).execute(&mut *connection).await.unwrap();
    fill_the_disk(&mut connection).await;
    let record = fresh_record();
    let done = complete_in(&place, &mut connection, &hold, &record).await;
    assert_eq!(done, Ok(Fence::NoTransaction));
    assert_eq!(effects(&place.pool).await, 0);
    let claimed = place.store.claim(&request).await.unwrap();
    assert_eq!(claimed, Claimed::Acquired(hold));
}

/// The driver would take the connection for one in a transaction for ever.
#[tokio::test]
async fn a_connection_whose_transaction_sqlite_rolled_back_begins_another_one() {
    let place = with_ledger().await;
    let place = single(place).await;
    let hold = acquire(&place.store, &request()).await;
    for is_told in [true, false] {
        let mut transaction = place.store.begin().await.unwrap();
        fill_the_disk(&mut transaction).await;
        match is_told {
            true => {
                let fenced = fence(&place, &mut transaction, &hold).await;
                assert_eq!(fenced, Ok(Fence::NoTransaction));
                drop(transaction);
            }
            false => {
                // Nobody knows who ended it.
                let error = SqliteStore::commit(transaction).await.unwrap_err();
                assert_eq!(error.kind(), StoreErrorKind::Ambiguous);
            }
        }
        let mut transaction = place.store.begin().await.unwrap();
        assert!(transaction.is_in_transaction());
        sqlx::query(EFFECT)
            .execute(&mut *transaction)
            .await
            .unwrap();
        SqliteStore::commit(transaction).await.unwrap();
    }
    assert_eq!(effects(&place.pool).await, 2);
}

#[tokio::test]
async fn an_answer_that_finds_no_room_leaves_no_effect() {
    let place = single(with_ledger().await).await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let mut transaction = place.store.begin().await.unwrap();
    sqlx::query(EFFECT)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count")
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    let limit = AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 2));
    sqlx::query(limit).execute(&mut *transaction).await.unwrap();
    let long = record_of_len(1024 * 1024);
    let done = complete_in(&place, &mut transaction, &hold, &long).await;
    assert_eq!(done, Err(StoreErrorKind::Full));
    drop(transaction);
    assert_eq!(effects(&place.pool).await, 0);
    let claimed = place.store.claim(&request).await.unwrap();
    assert_eq!(claimed, Claimed::Acquired(hold));
}

/// A trigger does here what a broken disk does elsewhere.
#[tokio::test]
async fn an_error_that_rolls_everything_back_leaves_a_connection_that_can_be_used() {
    let place = single(with_ledger().await).await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let break_it = "CREATE TRIGGER broken BEFORE UPDATE ON idempotency_record
        BEGIN SELECT RAISE(ROLLBACK, 'broken'); END";
    sqlx::query(break_it).execute(&place.pool).await.unwrap();
    let mut transaction = place.store.begin().await.unwrap();
    sqlx::query(EFFECT)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let done = complete_in(&place, &mut transaction, &hold, &fresh_record()).await;
    assert_eq!(done, Err(StoreErrorKind::Misconfigured));
    drop(transaction);
    // The driver does not take it for one within a transaction.
    assert!(!place.pool.acquire().await.unwrap().is_in_transaction());
    assert_eq!(effects(&place.pool).await, 0);
    let repair = sqlx::query("DROP TRIGGER broken");
    repair.execute(&place.pool).await.unwrap();
    let claimed = place.store.claim(&request).await.unwrap();
    assert_eq!(claimed, Claimed::Acquired(hold));
}

/// Without WAL a reader keeps a commit out.
#[tokio::test]
async fn a_commit_that_is_refused_has_committed_nothing() {
    let place = Place::with(|options| {
        let options = options.journal_mode(SqliteJournalMode::Delete);
        options.busy_timeout(Duration::from_millis(50))
    });
    let place = place.await;
    ledger(&place.pool).await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let mut reader = place.pool.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM ledger")
        .fetch_all(&mut *reader)
        .await
        .unwrap();
    let mut transaction = place.store.begin().await.unwrap();
    sqlx::query(EFFECT)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let record = fresh_record();
    let done = complete_in(&place, &mut transaction, &hold, &record).await;
    assert_eq!(done, Ok(Fence::Held));
    let error = SqliteStore::commit(transaction).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NotApplied);
    reader.rollback().await.unwrap();
    assert_eq!(effects(&place.pool).await, 0);
    let claimed = place.store.claim(&request).await.unwrap();
    assert_eq!(claimed, Claimed::Acquired(hold));
}

#[tokio::test]
async fn a_begin_that_meets_another_writer_for_too_long_was_not_applied() {
    let place = Place::with(|options| options.busy_timeout(Duration::from_millis(50))).await;
    let _writer = place.store.begin().await.unwrap();
    let refused = place.store.begin().await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::NotApplied);
}
