//! What a session of PostgreSQL may do to a run: end, keep the record locked for long, or not
//! be there yet.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tower_idempotency::store::{KeyStore, Phase, PostgresStore};
use tower_idempotency::{Operation, TransactionError};

use crate::engine::Engine;
use crate::over_postgres::Postgres;
use crate::scene::{Scene, answer};
use crate::support::gates::Gate;
use crate::support::{Answer, post, postgres, send};

const LEASE: Duration = Duration::from_secs(1);

async fn lease_left(store: &PostgresStore, operation: &Operation) -> Duration {
    match store.lookup(operation.id()).await.unwrap().unwrap().phase {
        Phase::Running { lease_left } => lease_left,
        other => panic!("{other:?}"),
    }
}

async fn until_lapsed(store: &PostgresStore, operation: &Operation) {
    let deadline = Instant::now() + 20 * LEASE;
    while !lease_left(store, operation).await.is_zero() {
        assert!(Instant::now() < deadline, "it is renewed");
        sleep(Duration::from_millis(5)).await;
    }
}

fn meanwhile(scene: &Scene<Postgres>) -> JoinHandle<Answer> {
    let service = scene.service.clone();
    tokio::spawn(async move { send(&service, post("k", "")).await })
}

/// As `idle_in_transaction_session_timeout` does, while the handler is at work elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_session_was_ended_keeps_its_key_while_it_lives() {
    let gate = Gate::default();
    let at = gate.clone();
    let scene = Scene::<Postgres>::with(
        |layer| layer.lease(LEASE),
        move |run| {
            let gate = at.clone();
            async move {
                let mut transaction = run.operation.begin(run.engine.store()).await?;
                Postgres::insert(&mut transaction, &run.key()).await?;
                if run.number == 1 {
                    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                               WHERE state = 'idle in transaction' \
                               AND datname = current_database()";
                    assert!(postgres::scalar::<bool>(&run.engine.pool, end).await);
                    gate.pass().await;
                }
                run.finish(transaction, answer(201, "transferred")).await
            }
        },
    )
    .await;
    let first = meanwhile(&scene);
    gate.until_arrived(1).await;
    let began = Instant::now();
    while began.elapsed() < 3 * LEASE {
        let other = scene.send("k").await;
        assert_eq!(other.code().as_deref(), Some("in-progress"), "{other:?}");
        sleep(LEASE / 20).await;
    }
    assert_eq!(scene.runs.get(), 1);
    gate.open(1);
    let first = first.await.unwrap();
    assert_eq!(
        first.code().as_deref(),
        Some("store-unavailable"),
        "{first:?}"
    );
    assert!(scene.engine.ledger().await.is_empty());
    assert_eq!(scene.send("k").await.text(), "transferred");
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

/// The layer does not see such a transaction, and goes on renewing.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_of_the_handlers_own_leaves_the_pool_to_others() {
    const SHORT: Duration = Duration::from_millis(300);
    let gate = Gate::default();
    let at = gate.clone();
    let scene = Scene::<Postgres>::with(
        |layer| layer.lease(SHORT),
        move |run| {
            let gate = at.clone();
            async move {
                if run.key() != "k" {
                    return run.transfer().await;
                }
                let mut own = run.engine.own().await;
                let store = run.engine.store();
                run.operation.fence(store, &mut own).await?;
                Postgres::insert(&mut own, &run.key()).await?;
                gate.pass().await;
                let transferred = answer(201, "transferred");
                let written = run.operation.complete_in(store, &mut own, transferred);
                let written = written.await?;
                Postgres::commit(own).await;
                Ok(written.map(axum::body::Body::new))
            }
        },
    )
    .await;
    let first = meanwhile(&scene);
    gate.until_arrived(1).await;
    let mut others = Vec::new();
    // As many renewals as would use up the pool several times over.
    let began = Instant::now();
    while began.elapsed() < 10 * SHORT {
        let key = format!("other-{}", others.len());
        let other = scene.send(&key).await;
        assert_eq!(other.status.as_u16(), 201, "{other:?}");
        others.push(key);
        sleep(SHORT / 3).await;
    }
    gate.open(1);
    let first = first.await.unwrap();
    assert_eq!(first.status.as_u16(), 201, "{first:?}");
    let retry = scene.send("k").await;
    assert!(retry.is_replay(), "{retry:?}");
    others.push("k".to_owned());
    assert_eq!(scene.runs.get(), others.len());
    // Rows are numbered when they are written, and its own was the first.
    others.rotate_right(1);
    assert_eq!(scene.engine.ledger().await, others);
}

/// With a pool for the handlers that has no connection to spare.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_waits_for_its_transaction_keeps_its_key() {
    let options = postgres::shared().await.database().await;
    let engine = Postgres::at(options.clone()).await;
    let handlers = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(LEASE / 3)
        .connect_with(options)
        .await
        .unwrap();
    let busy = Arc::new(Mutex::new(Some(handlers.acquire().await.unwrap())));
    let scene = Scene::on(
        engine,
        |layer| layer.lease(LEASE),
        move |run| {
            let (handlers, busy) = (PostgresStore::new(handlers.clone()), busy.clone());
            async move {
                let began = Instant::now();
                while began.elapsed() < 3 * LEASE {
                    let begun = run.operation.begin(&handlers).await;
                    assert!(
                        matches!(begun, Err(TransactionError::Store(_))),
                        "{begun:?}"
                    );
                    let left = lease_left(run.engine.store(), &run.operation).await;
                    assert!(!left.is_zero(), "anybody could take it over");
                }
                drop(busy.lock().unwrap().take());
                let mut transaction = run.operation.begin(&handlers).await?;
                Postgres::insert(&mut transaction, &run.key()).await?;
                run.finish(transaction, answer(201, "at last")).await
            }
        },
    );
    assert_eq!(scene.send("k").await.text(), "at last");
    let retry = scene.send("k").await;
    assert!(retry.is_replay());
    assert_eq!(retry.text(), "at last");
    assert_eq!(scene.runs.get(), 1);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

/// A renewal within it would change the record after its snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn under_strict_isolation_a_transaction_that_fences_first_outlasts_its_lease() {
    for begin in [
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
    ] {
        let scene = Scene::<Postgres>::with(
            |layer| layer.lease(LEASE),
            move |run| async move {
                let store = run.engine.store();
                let mut own = run.engine.pool.begin_with(begin).await?;
                run.operation.fence(store, &mut own).await?;
                Postgres::insert(&mut own, &run.key()).await?;
                until_lapsed(store, &run.operation).await;
                let transferred = answer(201, "transferred");
                let written = run.operation.complete_in(store, &mut own, transferred);
                let written = written.await?;
                Postgres::commit(own).await;
                Ok(written.map(axum::body::Body::new))
            },
        )
        .await;
        let first = scene.send("k").await;
        assert_eq!(first.status.as_u16(), 201, "{begin}: {first:?}");
        let retry = scene.send("k").await;
        assert!(retry.is_replay(), "{begin}: {retry:?}");
        assert_eq!(retry.text(), "transferred");
        assert_eq!(scene.runs.get(), 1);
        assert_eq!(scene.engine.ledger().await, ["k"]);
    }
}
