//! The whole contract of a store holds: on one pool, on two pools over one file, on a pool
//! of one connection, in memory, and where the file cannot be opened.

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tower_idempotency::store::{AnyStore, KeyStore, SqliteStore, conformance};

use crate::place::{Folder, Place, options};

/// In a task of its own, of which `what` tells if it fails.
async fn all_clauses_hold<K: KeyStore>(what: &str, store: K) {
    let clauses = tokio::spawn(async move { conformance::all(&store).await });
    assert!(clauses.await.is_ok(), "a clause does not hold {what}");
}

/// At the same time: each of them waits for leases to end for most of its ten seconds.
#[tokio::test]
async fn every_clause_holds_however_the_database_is_opened() {
    let usual = Place::new().await;
    let named = Place::new().await;
    let table = named.store.clone().table("payments_keys").unwrap();
    table.migrate().await.unwrap();

    let single = Folder::new();
    let single = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(options(&single.file()))
        .await
        .unwrap();
    let single = SqliteStore::new(single);
    single.migrate().await.unwrap();

    // A connection that is tested when a call is dropped is closed, and the database with it.
    let memory = SqlitePoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect_with(SqliteConnectOptions::new().in_memory(true))
        .await
        .unwrap();
    let memory = SqliteStore::new(memory);
    memory.migrate().await.unwrap();
    tokio::join!(
        all_clauses_hold("over a pool", usual.store.clone()),
        all_clauses_hold(
            "for an erased store on a table of another name",
            AnyStore::new(table)
        ),
        all_clauses_hold("over one connection", single),
        all_clauses_hold("in memory", memory),
    );
}

#[tokio::test]
async fn two_pools_are_one_store() {
    let place = Place::new().await;
    let (other, _pool) = place.other().await;
    conformance::clause_01_claim_is_atomic(&place.store, &other).await;
    conformance::clause_10_one_clock_compares(&place.store, &other).await;
}

#[tokio::test]
async fn errors_are_typed_where_the_file_cannot_be_opened() {
    let folder = Folder::new();
    let missing = options(&folder.file()).create_if_missing(false);
    let pool = SqlitePoolOptions::new().connect_lazy_with(missing);
    conformance::clause_14_errors_are_typed(&SqliteStore::new(pool)).await;
}

#[tokio::test]
async fn errors_are_typed_where_the_tables_are_missing() {
    let folder = Folder::new();
    let pool = SqlitePoolOptions::new().connect_lazy_with(options(&folder.file()));
    conformance::clause_14_errors_are_typed(&SqliteStore::new(pool)).await;
}
