//! What cannot be seen from outside: that nothing piles up beside the records.

use std::time::Duration;

use tokio::time::advance;

use super::entry::Entry;
use super::shared::Shared;
use crate::model::claim::{ClaimRequest, Claimed, Hold, Owner};
use crate::model::fingerprint::Fingerprint;
use crate::model::record::Record;
use crate::model::scope::{RecordId, ScopeId};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn hold(store: &Shared, n: u64) -> Hold {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&n.to_le_bytes());
    let request = ClaimRequest::new(
        RecordId::from_bytes(id),
        ScopeId::from_bytes([1; 16]),
        Fingerprint::from_bytes([2; 32]),
        Owner::from_bytes([3; 16]),
    );
    match store.claim(&request) {
        Ok(Claimed::Acquired(hold)) => hold,
        other => panic!("not acquired: {other:?}"),
    }
}

fn complete(store: &Shared, n: u64) {
    let record = Record::new(&http::Response::new("paid"));
    let completion = store.complete(&hold(store, n), &record, DAY);
    assert!(completion.is_ok(), "{completion:?}");
}

#[test]
fn a_record_stays_small() {
    // With the 8 bytes that a common allocator adds it makes a block of 128.
    assert!(size_of::<Entry>() <= 120, "{}", size_of::<Entry>());
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_record_has_one_item_in_the_queue() {
    let store = Shared::new();
    for n in 0..100 {
        complete(&store, n);
    }
    assert_eq!(store.expiry.len(), 100);
    // Looked at after the lease, and queued again for its end.
    advance(DAY / 2).await;
    assert_eq!(store.purge_expired(usize::MAX), 0);
    assert_eq!(store.expiry.len(), 100);
    advance(DAY / 2).await;
    assert_eq!(store.purge_expired(usize::MAX), 100);
    assert_eq!(store.expiry.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_given_back_leave_the_queue_with_their_lease() {
    let store = Shared::new();
    for _ in 0..60_000 {
        let hold = hold(&store, 0);
        store.release(&hold);
        advance(Duration::from_millis(10)).await;
    }
    // Ten minutes of a hundred claims a second, each with a lease of 30 s.
    assert!(store.expiry.len() <= 3_010, "{}", store.expiry.len());
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_given_back_pile_up_nothing_within_their_lease() {
    let store = Shared::new();
    for _ in 0..10_000 {
        let hold = hold(&store, 0);
        store.release(&hold);
    }
    assert!(store.expiry.len() <= 65, "{}", store.expiry.len());
    // A thousand in one queue that stay, and are not looked at for every one that does not.
    for n in 1..=1_000 {
        complete(&store, n);
    }
    for _ in 0..10_000 {
        let hold = hold(&store, 0);
        store.release(&hold);
    }
    assert!(store.expiry.len() <= 3_100, "{}", store.expiry.len());
    advance(DAY + DAY).await;
    assert_eq!(store.purge_expired(usize::MAX), 1_000);
    assert_eq!(store.expiry.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn leftovers_do_not_multiply_the_items_of_a_record_that_stays() {
    let store = Shared::new();
    for _ in 0..1_000 {
        let hold = hold(&store, 0);
        store.release(&hold);
        advance(Duration::from_millis(1)).await;
    }
    complete(&store, 0);
    assert!(store.expiry.len() <= 65, "{}", store.expiry.len());
    advance(DAY / 2).await;
    assert_eq!(store.purge_expired(usize::MAX), 0);
    assert_eq!(store.expiry.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_scope_without_records_is_not_kept() {
    let mut store = Shared::new();
    store.room.count_scopes(10);
    let given_back = hold(&store, 0);
    complete(&store, 1);
    assert_eq!(store.room.scopes(), 1);
    store.release(&given_back);
    assert_eq!(store.room.scopes(), 1);
    advance(DAY).await;
    store.purge_expired(usize::MAX);
    assert_eq!(store.room.scopes(), 0);
}
