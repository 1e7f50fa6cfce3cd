//! One file, which several processes of one machine may share.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use tower_idempotency::store::{AnyStore, SqliteStore};

use super::sql::{COUNT, Database, INSERT, Row};
use super::{Opened, misread, unusable};
use crate::Fault;

// The layer waits 2 s for a call. A call waits for a connection first and for the file
// next, which has one writer at a time; both together stay below that.
const TO_HAVE_A_CONNECTION: Duration = Duration::from_millis(900);
const TO_WRITE: Duration = Duration::from_millis(900);

/// Each is a thread. Whoever waits for a connection is served in turn, and whoever waits for
/// the file is not: a few are better than many.
const CONNECTIONS: u32 = 8;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS ledger (
    id INTEGER PRIMARY KEY,
    key TEXT,
    amount INTEGER NOT NULL,
    attempt INTEGER NOT NULL
) STRICT";

/// The name of a file, or a URL that begins with `sqlite:`.
pub(super) async fn open(url: &str) -> Result<Opened, Fault> {
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(TO_HAVE_A_CONNECTION)
        .connect_with(options(url)?);
    let pool = pool.await.map_err(|error| unusable(&error))?;
    let table = sqlx::query(TABLE).execute(&pool).await;
    table.map_err(|error| unusable(&error))?;
    let store = SqliteStore::new(pool.clone());
    store.migrate().await.map_err(|error| unusable(&error))?;
    for warning in store.check().await.map_err(|error| unusable(&error))? {
        eprintln!("testbed: warning: {warning}");
    }
    Ok(Opened {
        store: AnyStore::new(store.clone()),
        ledger: Some(Arc::new(Sqlite { pool, store })),
    })
}

fn options(url: &str) -> Result<SqliteConnectOptions, Fault> {
    let options = if url.starts_with("sqlite:") {
        SqliteConnectOptions::from_str(url).map_err(|error| misread(&error))?
    } else if url.is_empty() || url.contains("://") {
        let told = "--store-url cannot be used: it is a file, or begins with sqlite:";
        return Err(Fault::Misused(told.to_owned()));
    } else {
        SqliteConnectOptions::new().filename(url)
    };
    let options = match url.contains("mode=") {
        true => options,
        false => options.create_if_missing(true),
    };
    Ok(options
        .journal_mode(SqliteJournalMode::Wal)
        // What was acknowledged outlives the loss of power.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(TO_WRITE))
}

struct Sqlite {
    pool: SqlitePool,
    store: SqliteStore,
}

impl Database for Sqlite {
    type Store = SqliteStore;

    fn store(&self) -> &SqliteStore {
        &self.store
    }

    async fn insert(connection: &mut SqliteConnection, row: Row<'_>) -> sqlx::Result<i64> {
        let insert = sqlx::query_scalar(INSERT)
            .bind(row.key)
            .bind(row.amount)
            .bind(row.attempt);
        insert.fetch_one(connection).await
    }

    async fn count(&self) -> sqlx::Result<(i64, i64)> {
        sqlx::query_as(COUNT).fetch_one(&self.pool).await
    }
}
