//! `MemoryStore`: against a naive model, at its bounds, at the edges of time, and raced.
//! Here is what every part of it asks with: ids, claims, and answers.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod bounds;
mod expiry;
mod model;
mod options;
mod races;
mod releases;
mod sharing;
mod waiters;

use std::time::Duration;

use bytes::Bytes;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Hold, KeyStore, Lapse, MemoryStore, Owner,
    Phase, Record, RecordId, ScopeId, StoreErrorKind,
};
use tower_idempotency::{IdempotencyKey, Scope};

const LEASE: Duration = Duration::from_secs(10);
const RETENTION: Duration = Duration::from_secs(100);
const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);
const NS: Duration = Duration::from_nanos(1);

fn id(key: usize) -> RecordId {
    let key = IdempotencyKey::new(&format!("key-{key}")).unwrap();
    RecordId::new("tests", &Scope::new("caller"), &key)
}

fn scope(n: u8) -> ScopeId {
    ScopeId::from_bytes([n; 16])
}

fn owner(n: u8) -> Owner {
    Owner::from_bytes([n; 16])
}

fn fingerprint(n: u8) -> Fingerprint {
    Fingerprint::from_bytes([n; 32])
}

/// A claim of `key` for an owner, in scope 0, with fingerprint 0.
fn request(key: usize, by: u8) -> ClaimRequest {
    let mut request = ClaimRequest::new(id(key), scope(0), fingerprint(0), owner(by));
    request.lease = LEASE;
    request.retention = RETENTION;
    request
}

fn sealing(key: usize, by: u8) -> ClaimRequest {
    let mut request = request(key, by);
    request.lapse = Lapse::Seal;
    request
}

async fn acquire(store: &MemoryStore, request: &ClaimRequest) -> Hold {
    match store.claim(request).await.unwrap() {
        Claimed::Acquired(hold) => hold,
        other => panic!("not acquired: {other:?}"),
    }
}

async fn refusal(store: &MemoryStore, request: &ClaimRequest) -> StoreErrorKind {
    store.claim(request).await.unwrap_err().kind()
}

/// Claims and completes a key.
async fn complete(store: &MemoryStore, key: usize) -> Hold {
    let hold = acquire(store, &request(key, 1)).await;
    let completion = store.complete(&hold, &answer("paid"), RETENTION).await;
    assert_eq!(completion.unwrap(), Completion::Stored);
    hold
}

async fn phase(store: &MemoryStore, key: usize) -> Option<Phase> {
    let snapshot = store.lookup(&id(key)).await.unwrap();
    snapshot.map(|snapshot| snapshot.phase)
}

fn answer(body: &str) -> Record {
    Record::new(&http::Response::new(body))
}

/// An answer without its body, by the flag that stands third in the stored form.
fn omitted() -> Record {
    let mut bytes = answer("").as_bytes().to_vec();
    bytes[2] |= 1;
    let record = Record::from_bytes(Bytes::from(bytes)).unwrap();
    assert!(record.is_omitted());
    record
}

fn len_of(record: &Record) -> usize {
    record.as_bytes().len()
}
