use ::sqlx::PgPool;
use ::sqlx::postgres::PgConnection;
use http::StatusCode;
use tower_idempotency::TransactionError;
use tower_idempotency::store::{KeyStore, PostgresStore};

use crate::scene::{Run, Scene, answer, assert_unavailable};
use crate::support::postgres::execute;

async fn balance(connection: &mut PgConnection) -> Result<i64, ::sqlx::Error> {
    let balance = ::sqlx::query_scalar("SELECT balance FROM account");
    balance.fetch_one(connection).await
}

async fn prepare(pool: &PgPool) {
    let account = "CREATE TABLE IF NOT EXISTS account (balance bigint NOT NULL); \
                   INSERT INTO account SELECT 100 WHERE NOT EXISTS (SELECT FROM account)";
    execute(pool, account).await;
}

/// Reads, lets another one change what was read, and writes. Only in the first run.
async fn withdraw(run: &Run, on: &mut PgConnection) -> Result<(), ::sqlx::Error> {
    let before = balance(on).await?;
    if run.number == 1 {
        execute(&run.pool, "UPDATE account SET balance = balance - 1").await;
    }
    let update = ::sqlx::query("UPDATE account SET balance = $1").bind(before - 10);
    update.execute(on).await?;
    Ok(())
}

async fn is_let_go(scene: &Scene, store: &PostgresStore, run: &Run) {
    let snapshot = store.lookup(run.operation.id()).await.unwrap();
    assert!(snapshot.is_none(), "{snapshot:?}");
    assert_eq!(scene.runs.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serialization_failure_of_the_handler_lets_the_key_go() {
    let kept = std::sync::Arc::new(std::sync::Mutex::new(None));
    let keeps = kept.clone();
    let scene = Scene::new(move |run| {
        let keeps = keeps.clone();
        async move {
            prepare(&run.pool).await;
            let mut own = run
                .pool
                .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ")
                .await?;
            run.operation.fence(&run.store, &mut own).await?;
            let withdrawn = withdraw(&run, &mut own).await;
            if run.number == 1 {
                let error = TransactionError::from(withdrawn.unwrap_err());
                assert!(matches!(error, TransactionError::Store(_)), "{error:?}");
                *keeps.lock().unwrap() = Some(run);
                return Err(error);
            }
            let withdrew = answer(StatusCode::CREATED, "withdrawn");
            let answer = run
                .operation
                .complete_in(&run.store, &mut own, withdrew)
                .await?;
            own.commit().await?;
            Ok(answer.map(axum::body::Body::new))
        }
    })
    .await;
    assert_unavailable(&scene.send("k").await);
    let run = kept.lock().unwrap().take().unwrap();
    is_let_go(&scene, &run.store, &run).await;
    assert_eq!(scene.send("k").await.text(), "withdrawn");
    assert!(scene.send("k").await.is_replay());
    let mut connection = run.pool.acquire().await.unwrap();
    assert_eq!(balance(&mut connection).await.unwrap(), 89);
}

/// Every other fault of a statement is a failed run.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_cannot_work_is_a_failed_run() {
    let scene = Scene::new(|run| async move {
        let mut transaction = run.begin().await?;
        if run.number == 1 {
            ::sqlx::query("SELECT 1 / 0")
                .execute(&mut *transaction)
                .await?;
        }
        run.finish(transaction).await
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR, "{first:?}");
    assert_eq!(first.code().as_deref(), Some("transaction-failed"));
    assert!(scene.ledger().await.is_empty());
    let second = scene.send("k").await;
    assert_eq!(second.text(), "transferred");
    let stored = Some(true);
    let executed = tower_idempotency::Outcome::Executed { attempt: 2, stored };
    assert_eq!(second.outcome, Some(executed));
}

/// PostgreSQL answers a COMMIT of it with ROLLBACK, and no error.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_the_handler_swallows_cannot_end_in_success() {
    let scene = Scene::new(|run| async move {
        let mut transaction = run.begin().await?;
        let swallowed = ::sqlx::query("SELECT 1 / 0")
            .execute(&mut *transaction)
            .await;
        assert!(swallowed.is_err());
        let finished = run.finish(transaction).await;
        assert!(finished.is_err());
        finished
    })
    .await;
    let first = scene.send("k").await;
    assert!(first.status.is_server_error(), "{first:?}");
    assert!(scene.ledger().await.is_empty());
}

/// A constraint that is checked at the commit alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_refused_has_not_committed() {
    let scene = Scene::new(|run| async move {
        if run.number == 1 {
            let once = "CREATE TABLE once (key text, UNIQUE (key) DEFERRABLE INITIALLY DEFERRED); \
                        INSERT INTO once VALUES ('k')";
            execute(&run.pool, once).await;
        }
        let mut transaction = run.begin().await?;
        if run.number == 1 {
            ::sqlx::query("INSERT INTO once VALUES ('k')")
                .execute(&mut *transaction)
                .await?;
        }
        run.finish(transaction).await
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR, "{first:?}");
    assert_eq!(first.code().as_deref(), Some("transaction-failed"));
    assert!(scene.ledger().await.is_empty());
    assert_eq!(scene.send("k").await.text(), "transferred");
    assert_eq!(scene.ledger().await, ["k"]);
}
