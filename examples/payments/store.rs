//! Where the records are kept: in this process; in a file of this machine; or on a server,
//! Redis or PostgreSQL, from where every node of a service sees them.

use std::error::Error;
use std::time::SystemTime;

use tower_idempotency::store::{AnyStore, MemoryStore};

type Opened = Result<AnyStore, Box<dyn Error>>;

pub(crate) async fn open(url: Option<&str>) -> Opened {
    match url {
        None => Ok(AnyStore::new(MemoryStore::new())),
        Some(url) if url.starts_with("sqlite:") => in_file(url).await,
        Some(url) if url.starts_with("postgres") => on_postgres(url).await,
        Some(url) => on_redis(url).await,
    }
}

// The layer waits 2 s for its store. A driver should have given up by then.

#[cfg(feature = "redis")]
async fn on_redis(url: &str) -> Opened {
    use redis::aio::{ConnectionManager, ConnectionManagerConfig};
    use tower_idempotency::store::RedisStore;

    // Connects anew by itself when the connection is lost. Its six retries would take 6 s
    // and more.
    let config = ConnectionManagerConfig::new().set_number_of_retries(3);
    let client = redis::Client::open(url)?;
    let connection = ConnectionManager::new_with_config(client, config).await?;
    let store = RedisStore::new(connection);
    // Is the server set up so that it keeps what the layer promises?
    for warning in store.check().await? {
        eprintln!("warning: {warning}");
    }
    Ok(AnyStore::new(store))
}

#[cfg(feature = "postgres")]
async fn on_postgres(url: &str) -> Opened {
    use std::time::Duration;

    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use tower_idempotency::store::{self, PostgresStore};

    // The server ends by itself what the layer has given up, so that it is not applied late.
    let options: PgConnectOptions = url.parse()?;
    let options = options.options([("statement_timeout", "1000ms")]);
    let pool = PgPoolOptions::new()
        .acquire_timeout(Duration::from_millis(900))
        .after_release(store::postgres::after_release)
        .connect_with(options)
        .await?;
    let store = PostgresStore::new(pool);
    // Makes the table, or leaves it as it is.
    store.migrate().await?;
    for warning in store.check().await? {
        eprintln!("warning: {warning}");
    }
    Ok(AnyStore::new(store))
}

#[cfg(feature = "sqlite")]
async fn in_file(url: &str) -> Opened {
    use std::time::Duration;

    use sqlx::sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
    };
    use tower_idempotency::store::SqliteStore;

    let options: SqliteConnectOptions = url.parse()?;
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // What was acknowledged outlives the loss of power.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_millis(900));
    let pool = SqlitePoolOptions::new()
        .max_connections(8)
        .acquire_timeout(Duration::from_millis(900))
        .connect_with(options)
        .await?;
    let store = SqliteStore::new(pool);
    store.migrate().await?;
    for warning in store.check().await? {
        eprintln!("warning: {warning}");
    }
    Ok(AnyStore::new(store))
}

#[cfg(not(feature = "redis"))]
async fn on_redis(_: &str) -> Opened {
    Err("it is built without Redis: cargo run --features redis --example payments".into())
}

#[cfg(not(feature = "postgres"))]
async fn on_postgres(_: &str) -> Opened {
    Err("it is built without PostgreSQL: cargo run --features postgres --example payments".into())
}

#[cfg(not(feature = "sqlite"))]
async fn in_file(_: &str) -> Opened {
    Err("it is built without SQLite: cargo run --features sqlite --example payments".into())
}

/// Keeps a run apart from those before it, whose keys the store still knows.
pub(crate) fn unique_namespace() -> String {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("payments-{}", since.as_nanos())
}
