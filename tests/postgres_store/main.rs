//! `PostgresStore` on real servers: the contract, also through PgBouncer and under strict
//! isolation levels; transactions; what its calls cost; its table; what its audit finds; and
//! what is said of calls that fail. Here is what every part of it asks with.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod check;
#[cfg(feature = "conformance")]
mod contract;
mod faults;
#[cfg(feature = "conformance")]
mod pgbouncer;
mod plans;
mod table;
mod torture;
mod transactions;

use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use support::claims::{
    LEASE, RETENTION, acquire, complete, fresh_record, misuse_of, request, retry_of, sealing,
};
use support::postgres::{pool_at, shared};
use tower_idempotency::store::PostgresStore;

/// A store with a database of its own, and a way to the rows behind it.
struct Place {
    store: PostgresStore,
    pool: PgPool,
    options: PgConnectOptions,
}

impl Place {
    /// On the server that all tests share.
    async fn new() -> Self {
        Self::at(shared().await.database().await).await
    }

    async fn at(options: PgConnectOptions) -> Self {
        let pool = pool_at(options.clone()).await;
        let store = PostgresStore::new(pool.clone());
        store.migrate().await.unwrap();
        Self {
            store,
            pool,
            options,
        }
    }
}
