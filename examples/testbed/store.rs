//! The store that the command line names: connected, and found fit.

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
use std::error::Error;
use std::sync::Arc;

use tower_idempotency::store::AnyStore;

use crate::Fault;
use crate::args::Args;
use crate::ledger::Ledger;

/// The stores there are, and whether they are compiled in.
const STORES: [(&str, bool); 4] = [
    ("memory", cfg!(feature = "memory")),
    ("sqlite", cfg!(feature = "sqlite")),
    ("redis", cfg!(feature = "redis")),
    ("postgres", cfg!(feature = "postgres")),
];

pub(crate) struct Opened {
    pub(crate) store: AnyStore,
    /// In the same database, where the store has transactions.
    pub(crate) ledger: Option<Arc<dyn Ledger>>,
}

pub(crate) async fn open(args: &Args) -> Result<Opened, Fault> {
    let misused = match (&*args.store, args.store_url.as_deref()) {
        #[cfg(feature = "memory")]
        ("memory", _) => {
            let store = tower_idempotency::store::MemoryStore::new();
            return Ok(without_transactions(AnyStore::new(store)));
        }
        #[cfg(feature = "redis")]
        ("redis", Some(url)) => return redis::open(url).await.map(without_transactions),
        #[cfg(feature = "postgres")]
        ("postgres", Some(url)) => return postgres::open(url).await,
        #[cfg(feature = "sqlite")]
        ("sqlite", Some(url)) => return sqlite::open(url).await,
        (name, _) => match STORES.iter().find(|(store, _)| *store == name) {
            Some((_, true)) => format!("--store {name} needs a --store-url"),
            Some((_, false)) => format!("the store `{name}` is not compiled in"),
            None => {
                let names = STORES.map(|(store, _)| store).join(", ");
                format!("no store is called `{name}`; there are {names}")
            }
        },
    };
    Err(Fault::Misused(misused))
}

#[cfg(any(feature = "memory", feature = "redis"))]
fn without_transactions(store: AnyStore) -> Opened {
    let ledger = None;
    Opened { store, ledger }
}

/// A URL may hold a password, so it is not repeated.
#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
fn misread(error: &dyn Error) -> Fault {
    Fault::Misused(format!("--store-url cannot be used: {}", told(error)))
}

#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
fn unusable(error: &dyn Error) -> Fault {
    Fault::Failed(format!("--store-url: {}", told(error)))
}

/// With its causes. Some errors repeat theirs, alone or after a word of their own.
#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
fn told(error: &dyn Error) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    let mut chain: Vec<_> = chain.map(ToString::to_string).collect();
    chain.dedup_by(|cause, error| error.ends_with(&**cause));
    chain.join(": ")
}
