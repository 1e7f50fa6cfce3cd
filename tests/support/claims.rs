//! Claims and records for tests that speak to a store itself.

use std::time::Duration;

use http::Response;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Hold, KeyStore, Lapse, Owner, Record, RecordId,
    ScopeId,
};

pub const LEASE: Duration = Duration::from_secs(60);
pub const RETENTION: Duration = Duration::from_secs(600);

pub fn owner() -> Owner {
    Owner::random().unwrap()
}

pub fn digest() -> [u8; 32] {
    let halves = [owner(), owner()].map(|owner| *owner.as_bytes());
    halves.concat().try_into().unwrap()
}

/// A claim of a key that nobody has used.
pub fn request() -> ClaimRequest {
    let scope = ScopeId::from_bytes([7; 16]);
    let id = RecordId::from_bytes(digest());
    let fingerprint = Fingerprint::from_bytes(digest());
    let mut request = ClaimRequest::new(id, scope, fingerprint, owner());
    request.lease = LEASE;
    request.retention = RETENTION;
    request
}

/// The same request once more, as a retry sends it.
pub fn retry_of(request: &ClaimRequest) -> ClaimRequest {
    let mut retry = request.clone();
    retry.owner = owner();
    retry
}

/// Another request under the same key.
pub fn misuse_of(request: &ClaimRequest) -> ClaimRequest {
    let mut misuse = retry_of(request);
    misuse.fingerprint = Fingerprint::from_bytes(digest());
    misuse
}

pub fn sealing(mut request: ClaimRequest) -> ClaimRequest {
    request.lapse = Lapse::Seal;
    request
}

/// An answer that no other run has given.
pub fn fresh_record() -> Record {
    Record::new(&Response::new(digest()))
}

/// An answer whose stored form is of that length.
pub fn record_of_len(len: usize) -> Record {
    let without_body = Record::new(&Response::new("")).as_bytes().len();
    let body: Vec<u8> = (0..=255).cycle().take(len - without_body).collect();
    let record = Record::new(&Response::new(body));
    assert_eq!(record.as_bytes().len(), len);
    record
}

pub async fn acquire(store: &impl KeyStore, request: &ClaimRequest) -> Hold {
    match store.claim(request).await.unwrap() {
        Claimed::Acquired(hold) => hold,
        other => panic!("not acquired: {other:?}"),
    }
}

/// Claims a key, as whatever attempt, and completes it.
pub async fn complete(store: &impl KeyStore, request: &ClaimRequest, record: &Record) -> Hold {
    let hold = acquire(store, request).await;
    let completed = store.complete(&hold, record, RETENTION).await;
    assert_eq!(completed.unwrap(), Completion::Stored);
    hold
}
