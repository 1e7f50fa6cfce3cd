//! The whole contract of a store holds: however its statements are sent, under each isolation
//! level, and where the server cannot be reached.

use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use tower_idempotency::store::{AnyStore, KeyStore, PostgresStore, conformance};

use crate::Place;
use crate::support::postgres::{PostgresServer, pool_at};
use crate::{acquire, request};

/// In a task of its own, of which `what` tells if it fails.
async fn all_clauses_hold<K: KeyStore>(what: &str, store: K) {
    let clauses = tokio::spawn(async move { conformance::all(&store).await });
    assert!(clauses.await.is_ok(), "a clause does not hold {what}");
}

async fn under(level: &str) -> PostgresStore {
    let place = Place::new().await;
    let options = place
        .options
        .options([("default_transaction_isolation", level)]);
    PostgresStore::new(pool_at(options).await)
}

#[tokio::test]
async fn every_clause_holds_however_it_is_asked_and_under_each_isolation_level() {
    let ordinary = Place::new().await.store;
    let plain = Place::new().await.store.persistent_statements(false);
    let erased = AnyStore::new(Place::new().await.store);
    let repeatable = under("repeatable read").await;
    let serializable = under("serializable").await;
    tokio::join!(
        all_clauses_hold("ordinarily", ordinary),
        all_clauses_hold("where each statement is a text", plain),
        all_clauses_hold("for an erased store", erased),
        all_clauses_hold("under `repeatable read`", repeatable),
        all_clauses_hold("under `serializable`", serializable),
    );
}

#[tokio::test]
async fn two_pools_are_one_store() {
    let place = Place::new().await;
    let other = PostgresStore::new(pool_at(place.options.clone()).await);
    let plain = AnyStore::new(other.clone().persistent_statements(false));
    let erased = AnyStore::new(place.store.clone());
    tokio::join!(
        conformance::clause_01_claim_is_atomic(&place.store, &other),
        conformance::clause_10_one_clock_compares(&place.store, &other),
        conformance::clause_01_claim_is_atomic(&erased, &plain),
    );
}

#[tokio::test]
async fn errors_are_typed_when_the_server_was_killed() {
    let server = PostgresServer::start().await;
    let pool = PgPoolOptions::new()
        .acquire_timeout(Duration::from_secs(1))
        .connect_with(server.options())
        .await
        .unwrap();
    let store = PostgresStore::new(pool);
    store.migrate().await.unwrap();
    acquire(&store, &request()).await;
    server.kill();
    conformance::clause_14_errors_are_typed(&store).await;
    server.restart().await;
    acquire(&store, &request()).await;
}
