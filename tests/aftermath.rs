//! An outage of the store ends when the store is back: what it left to do neither hammers
//! the store, nor takes places, nor costs the body of a record.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::faults::{Call, Fault, FaultStore};
use support::scripted::{idle, plan, secs};
use support::stores::store;
use support::{post, send};
use tokio::time::sleep;
use tower_idempotency::store::StoreErrorKind;
use tower_idempotency::{IdempotencyLayer, SharedByAllCallers};

/// What one doubtful claim costs a store that is slow already.
#[tokio::test(start_paused = true)]
async fn a_doubtful_claim_does_not_hammer_the_store() {
    let store = FaultStore::new(store());
    store.always(Call::Claim, Fault::Refused(StoreErrorKind::Ambiguous));
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let (service, _) = plan(&layer, [(Duration::ZERO, 201)]);
    for n in 0..10 {
        let request = post(&format!("k{n}"), "");
        assert_eq!(send(&service, request).await.status, 503);
    }
    idle(&layer).await;
    assert!(
        store.count(Call::Release) <= 100,
        "{}",
        store.count(Call::Release)
    );
}

/// And the refused count against `max_in_flight` for a whole lease.
#[tokio::test(start_paused = true)]
async fn doubtful_claims_do_not_use_up_max_in_flight() {
    let store = FaultStore::new(store());
    for _ in 0..20 {
        store.once(Call::Claim, Fault::Refused(StoreErrorKind::Ambiguous));
    }
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).max_in_flight(10);
    let (service, _) = plan(&layer, [(Duration::ZERO, 201)]);
    for n in 0..10 {
        assert_eq!(send(&service, post(&format!("k{n}"), "")).await.status, 503);
    }
    // The store is well again, and nothing runs.
    sleep(secs(20)).await;
    let answer = send(&service, post("new", "")).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

/// A store that is full for a moment costs the body of the record for good.
#[tokio::test(start_paused = true)]
async fn a_record_that_finds_no_room_for_a_moment_is_kept_whole_later() {
    let store = FaultStore::new(store());
    store.always(Call::Complete, Fault::Refused(StoreErrorKind::Full));
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let (service, _) = plan(&layer, [(Duration::ZERO, 201)]);
    let first = send(&service, post("k", "")).await;
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    store.heal(Call::Complete);
    idle(&layer).await;
    let retry = send(&service, post("k", "")).await;
    assert!(retry.is_replay());
    assert_eq!(retry.text(), first.text(), "{retry:?}");
}
