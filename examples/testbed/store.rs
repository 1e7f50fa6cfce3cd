//! The store that the command line names: connected, and found fit.

#[cfg(feature = "redis")]
mod redis;

use tower_idempotency::store::AnyStore;

use crate::Fault;
use crate::args::Args;

/// The stores there are, compiled in or not.
const STORES: [&str; 4] = ["memory", "sqlite", "redis", "postgres"];

pub(crate) async fn open(args: &Args) -> Result<AnyStore, Fault> {
    let misused = match (&*args.store, args.store_url.as_deref()) {
        #[cfg(feature = "memory")]
        ("memory", _) => {
            let store = tower_idempotency::store::MemoryStore::new();
            return Ok(AnyStore::new(store));
        }
        #[cfg(feature = "redis")]
        ("redis", Some(url)) => return redis::open(url).await,
        #[cfg(feature = "redis")]
        ("redis", None) => "--store redis needs a --store-url".to_owned(),
        (name, _) if STORES.contains(&name) => format!("the store `{name}` is not compiled in"),
        (name, _) => format!(
            "no store is called `{name}`; there are {}",
            STORES.join(", ")
        ),
    };
    Err(Fault::Misused(misused))
}
