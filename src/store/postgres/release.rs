//! What a pool does with a connection that comes back.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use sqlx::pool::PoolConnectionMetadata;
use sqlx::{Connection, Error, PgConnection};
use tokio::time::timeout;

/// Nobody waits for it; but a connection that is silent for so long had better be replaced.
const PATIENCE: Duration = Duration::from_secs(1);

/// For [`PoolOptions::after_release`](sqlx::pool::PoolOptions::after_release): lets a connection
/// come back to the pool if it is outside of a transaction and answers within a second, and
/// closes it otherwise. One round trip, for which nobody waits.
///
/// **Without it, on a pool that the store shares with handlers, a finished request may run
/// again.** Where a `pool.begin()` of a handler's is dropped before its answer has come, as by
/// a time-out or a client that leaves a route without this layer, sqlx 0.9.0 hands the
/// connection on in an open transaction that it does not know of: what the store is told there
/// is acknowledged, and lost with the connection. The store's own transactions are safe from
/// that. Give the store a pool of its own, or every pool this.
///
/// A connection that falls silent in the very moment after this is lost to the pool: the
/// driver asks once more there, and without a limit.
///
/// ```no_run
/// use tower_idempotency::sqlx::postgres::PgPoolOptions;
/// use tower_idempotency::store;
///
/// # async fn run() -> Result<(), tower_idempotency::sqlx::Error> {
/// let pool = PgPoolOptions::new()
///     .after_release(store::postgres::after_release)
///     .connect("postgres://localhost/shop")
///     .await?;
/// # let _ = pool;
/// # Ok(())
/// # }
/// ```
pub fn after_release(
    connection: &mut PgConnection,
    _: PoolConnectionMetadata,
) -> Pin<Box<dyn Future<Output = Result<bool, Error>> + Send + '_>> {
    Box::pin(async move {
        // Asks for a statement to begin a transaction which does not: the driver then sees
        // whether one is open.
        match timeout(PATIENCE, connection.begin_with("SELECT 1")).await {
            Ok(Err(Error::BeginFailed)) => Ok(true),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(false),
        }
    })
}
