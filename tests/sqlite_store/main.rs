//! `SqliteStore` on real files: the contract, transactions, what is stored, what a statement
//! costs, what its audit finds, faults, and several processes. Here is what every part of it
//! asks with.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod check;
#[cfg(feature = "conformance")]
mod contract;
mod faults;
mod options;
mod place;
mod processes;
mod transactions;
mod upkeep;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use http::Response;
use place::Place;
use sqlx::sqlite::SqlitePoolOptions;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Hold, KeyStore, Lapse, Owner, Record, RecordId,
    ScopeId, SqliteStore,
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

/// The same, with a lease that is over in a moment.
fn brief(mut request: ClaimRequest) -> ClaimRequest {
    request.lease = Duration::from_millis(1);
    request
}

fn sealing(mut request: ClaimRequest) -> ClaimRequest {
    request.lapse = Lapse::Seal;
    request
}

/// An answer that no other run has given.
fn fresh_record() -> Record {
    Record::new(&Response::new(digest()))
}

/// An answer whose stored form is of that length.
fn record_of_len(len: usize) -> Record {
    let without_body = Record::new(&Response::new("")).as_bytes().len();
    let body: Vec<u8> = (0..=255).cycle().take(len - without_body).collect();
    let record = Record::new(&Response::new(body));
    assert_eq!(record.as_bytes().len(), len);
    record
}

/// The same file through one connection alone.
async fn single(place: Place) -> Place {
    let Place { folder, pool, .. } = place;
    pool.close().await;
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(place::options(&folder.file()))
        .await
        .unwrap();
    let store = SqliteStore::new(pool.clone());
    Place {
        store,
        pool,
        folder,
    }
}

/// Drops a call after that many polls.
async fn cut_short<T>(call: impl Future<Output = T>, polls: usize) {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 || call.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
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
