//! The whole suite passes a store that keeps the contract, however it is held and raced.

use std::sync::Arc;

use tokio::task::JoinSet;
use tower_idempotency::store::{AnyStore, MemoryStore, conformance};

use crate::judge::run;

#[tokio::test(start_paused = true)]
async fn all_through_an_erased_store() {
    conformance::all(&AnyStore::new(MemoryStore::new())).await;
}

#[tokio::test(start_paused = true)]
async fn all_through_an_arc() {
    conformance::all(&Arc::new(MemoryStore::new())).await;
}

/// Nothing in the suite hangs on the paused clock, on a runtime of one thread, or on
/// having the store to itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_in_real_time() {
    let store = MemoryStore::new();
    let mut clauses = JoinSet::new();
    for clause in 0..=13 {
        let store = store.clone();
        clauses.spawn(async move { run(clause, &store, &store).await });
    }
    clauses.join_all().await;
}
