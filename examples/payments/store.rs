//! Where the records are kept: in this process, or on a Redis server, from where every node
//! of a service sees them.

use std::error::Error;
use std::time::SystemTime;

use tower_idempotency::store::{AnyStore, MemoryStore};

pub(crate) async fn open(url: Option<&str>, prefix: &str) -> Result<AnyStore, Box<dyn Error>> {
    match url {
        None => Ok(AnyStore::new(MemoryStore::new())),
        Some(url) => on_redis(url, prefix).await,
    }
}

#[cfg(feature = "redis")]
async fn on_redis(url: &str, prefix: &str) -> Result<AnyStore, Box<dyn Error>> {
    use redis::aio::{ConnectionManager, ConnectionManagerConfig};
    use tower_idempotency::store::RedisStore;

    // Connects anew by itself when the connection is lost. Its six retries would take 6 s
    // and more, and the layer waits 2 s for its store.
    let config = ConnectionManagerConfig::new().set_number_of_retries(3);
    let client = redis::Client::open(url)?;
    let connection = ConnectionManager::new_with_config(client, config).await?;
    let store = RedisStore::new(connection).key_prefix(prefix);
    // Is the server set up so that it keeps what the layer promises?
    for warning in store.check().await? {
        eprintln!("warning: {warning}");
    }
    Ok(AnyStore::new(store))
}

#[cfg(not(feature = "redis"))]
async fn on_redis(_: &str, _: &str) -> Result<AnyStore, Box<dyn Error>> {
    Err("it is built without Redis: cargo run --features redis --example payments".into())
}

/// Keeps a run apart from those before it, whose keys the server still knows.
pub(crate) fn unique_prefix() -> String {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("payments-{}-", since.as_nanos())
}
