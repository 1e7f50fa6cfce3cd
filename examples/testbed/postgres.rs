//! One server, which any number of nodes share.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;
use tower_idempotency::store::{self, AnyStore, PostgresStore};

use super::sql::{COUNT, Database, INSERT, Row};
use super::{Opened, misread, unusable};
use crate::Fault;

// The layer waits 2 s for a call. A call waits for a connection first and for the server
// next; both together stay below that. The server's own time-out ends a call that was given
// up, so that it is not applied late.
const TO_HAVE_A_CONNECTION: Duration = Duration::from_millis(900);
const STATEMENT_TIMEOUT: &str = "1000ms";

/// A process that is stopped in the middle of a transaction holds its key for no longer.
const IDLE_IN_TRANSACTION: &str = "10s";

const CONNECTIONS: u32 = 16;

/// A server that is asked for the first time may take its time.
const TO_CONNECT: Duration = Duration::from_secs(3);

/// Two processes that create a table in the same moment disturb each other, `IF NOT EXISTS`
/// or not: the lock lets in one at a time, and ends with the transaction.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext('testbed ledger'))";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS ledger (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key TEXT,
    amount BIGINT NOT NULL,
    attempt BIGINT NOT NULL
)";

pub(super) async fn open(url: &str) -> Result<Opened, Fault> {
    let options = options(url)?;
    // A pool takes a server that refuses for one that is about to start, and tells nothing
    // but that it has waited.
    let first = timeout(TO_CONNECT, options.connect())
        .await
        .map_err(|elapsed| unusable(&elapsed))?
        .map_err(|error| unusable(&error))?;
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(TO_HAVE_A_CONNECTION)
        .after_release(store::postgres::after_release)
        .connect_lazy_with(options);
    create_table(first)
        .await
        .map_err(|error| unusable(&error))?;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.map_err(|error| unusable(&error))?;
    for warning in store.check().await.map_err(|error| unusable(&error))? {
        eprintln!("testbed: warning: {warning}");
    }
    Ok(Opened {
        store: AnyStore::new(store.clone()),
        ledger: Some(Arc::new(Postgres { pool, store })),
    })
}

fn options(url: &str) -> Result<PgConnectOptions, Fault> {
    let (scheme, _) = url.split_once("://").unwrap_or_default();
    if !matches!(scheme, "postgres" | "postgresql") {
        let told = "--store-url cannot be used: it begins with postgres://";
        return Err(Fault::Misused(told.to_owned()));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| misread(&error))?;
    Ok(options.options([
        ("statement_timeout", STATEMENT_TIMEOUT),
        ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION),
    ]))
}

async fn create_table(mut connection: PgConnection) -> sqlx::Result<()> {
    let mut transaction = connection.begin().await?;
    sqlx::query(LOCK).execute(&mut *transaction).await?;
    sqlx::query(TABLE).execute(&mut *transaction).await?;
    transaction.commit().await?;
    connection.close().await
}

struct Postgres {
    pool: PgPool,
    store: PostgresStore,
}

impl Database for Postgres {
    type Store = PostgresStore;

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    async fn insert(connection: &mut PgConnection, row: Row<'_>) -> sqlx::Result<i64> {
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
