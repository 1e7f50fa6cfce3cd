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

use std::time::Duration;

use http::Response;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use support::postgres::{pool_at, shared};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Hold, KeyStore, Lapse, Owner, PostgresStore,
    Record, RecordId, ScopeId,
};

const LEASE: Duration = Duration::from_secs(60);
const RETENTION: Duration = Duration::from_secs(600);

fn owner() -> Owner {
    Owner::random().unwrap()
}

fn digest() -> [u8; 32] {
    let halves = [owner(), owner()].map(|owner| *owner.as_bytes());
    halves.concat().try_into().unwrap()
}

/// A claim of a key that nobody has used.
fn request() -> ClaimRequest {
    let scope = ScopeId::from_bytes([7; 16]);
    let id = RecordId::from_bytes(digest());
    let fingerprint = Fingerprint::from_bytes(digest());
    let mut request = ClaimRequest::new(id, scope, fingerprint, owner());
    request.lease = LEASE;
    request.retention = RETENTION;
    request
}

/// The same request once more, as a retry sends it.
fn retry_of(request: &ClaimRequest) -> ClaimRequest {
    let mut retry = request.clone();
    retry.owner = owner();
    retry
}

/// Another request under the same key.
fn misuse_of(request: &ClaimRequest) -> ClaimRequest {
    let mut misuse = retry_of(request);
    misuse.fingerprint = Fingerprint::from_bytes(digest());
    misuse
}

/// An answer that no other run has given.
fn fresh_record() -> Record {
    Record::new(&Response::new(digest()))
}

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

async fn acquire(store: &impl KeyStore, request: &ClaimRequest) -> Hold {
    match store.claim(request).await.unwrap() {
        Claimed::Acquired(hold) => hold,
        other => panic!("not acquired: {other:?}"),
    }
}

/// Claims a key, as whatever attempt, and completes it.
async fn complete(store: &impl KeyStore, request: &ClaimRequest, record: &Record) -> Hold {
    let hold = acquire(store, request).await;
    let completed = store.complete(&hold, record, RETENTION).await;
    assert_eq!(completed.unwrap(), Completion::Stored);
    hold
}

fn sealing(mut request: ClaimRequest) -> ClaimRequest {
    request.lapse = Lapse::Seal;
    request
}
