//! Connections for tests.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode, Postgres};
use ::sqlx::{AssertSqlSafe, ConnectOptions, Connection, Decode, PgExecutor, Type};

/// A busy machine is not taken for a fault.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

/// A superuser, at a server or at a proxy before it.
pub(super) fn options_at(addr: SocketAddr) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&addr.ip().to_string())
        .port(addr.port())
        .username("postgres")
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
        .disable_statement_logging()
}

/// What a program is told that is to use this database.
pub fn url_of(options: &PgConnectOptions) -> String {
    format!(
        "postgres://{}@{}:{}/{}",
        options.get_username(),
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap()
    )
}

/// A few connections, of which the first has been made. Those of a pool belong to the runtime
/// that made them.
pub async fn pool_at(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(8)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .unwrap()
}

/// Runs statements that a test has put together; several are one transaction.
pub async fn execute(on: impl PgExecutor<'_>, statements: &str) {
    on.execute(AssertSqlSafe(statements)).await.unwrap();
}

/// The one value of a statement that a test has put together.
pub async fn scalar<T>(on: impl PgExecutor<'_>, statement: &str) -> T
where
    T: for<'r> Decode<'r, Postgres> + Type<Postgres> + Send + Unpin,
{
    let query = ::sqlx::query_scalar(AssertSqlSafe(statement));
    query.fetch_one(on).await.unwrap()
}

pub(super) async fn database(server: PgConnectOptions) -> PgConnectOptions {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let name = format!("test_{}", MADE.fetch_add(1, Ordering::Relaxed));
    let mut connection = server.connect().await.unwrap();
    let create = format!("CREATE DATABASE {name} TEMPLATE template0");
    execute(&mut connection, &create).await;
    connection.close().await.unwrap();
    server.database(&name)
}
