//! SQLite rolls a transaction back by itself when its disk is full: what the handler does after
//! that would be committed alone.

use ::sqlx::AssertSqlSafe;
use ::sqlx::error::DatabaseError;
use ::sqlx::sqlite::SqliteConnection;
use tower_idempotency::TransactionError;

use crate::engine::Engine;
use crate::over_sqlite::Sqlite;
use crate::scene::{Scene, answer};

async fn set_most_pages(connection: &mut SqliteConnection, pages: i64) {
    let limit = AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
    let limit = ::sqlx::query(limit).execute(connection).await;
    limit.unwrap();
}

/// A row that finds no room, on a disk that has some again a moment later.
async fn fill_the_disk(connection: &mut SqliteConnection) {
    let pages = ::sqlx::query_scalar("PRAGMA page_count");
    let pages: i64 = pages.fetch_one(&mut *connection).await.unwrap();
    set_most_pages(connection, pages).await;
    let large = ::sqlx::query("INSERT INTO ledger VALUES (99, zeroblob(1000000))");
    let refused = large.execute(&mut *connection).await.unwrap_err();
    let code = refused.as_database_error().and_then(DatabaseError::code);
    assert_eq!(code.as_deref(), Some("13"), "SQLITE_FULL");
    set_most_pages(connection, 1_073_741_823).await;
}

/// As a handler does that tries once more with a smaller answer.
#[tokio::test(flavor = "multi_thread")]
async fn no_try_to_record_an_answer_records_it_without_its_effect() {
    let scene = Scene::<Sqlite>::new(async |run| {
        let mut own = run.engine.own().await;
        Sqlite::insert(&mut own, &run.key()).await?;
        if run.number == 1 {
            fill_the_disk(&mut own).await;
        }
        let record = async |own: &mut _| {
            let transferred = answer(201, "transferred");
            let store = run.engine.store();
            run.operation.complete_in(store, own, transferred).await
        };
        let written = match record(&mut own).await {
            Err(TransactionError::Misuse(_)) if run.number == 1 => record(&mut own).await,
            written => {
                assert!(run.number > 1, "{written:?}");
                written
            }
        };
        Sqlite::commit(own).await;
        Ok(written?.map(axum::body::Body::new))
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status.as_u16(), 500, "{first:?}");
    assert_eq!(first.code().as_deref(), Some("transaction-failed"));
    assert!(scene.engine.ledger().await.is_empty());
    let second = scene.send("k").await;
    assert_eq!(second.text(), "transferred", "{second:?}");
    assert!(!second.is_replay());
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.runs.get(), 2);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}
