//! What is written down of the calls of a store.

use std::time::Duration;

use tower_idempotency::store::{
    ClaimRequest, Claimed, Fingerprint, KeyStore, MemoryStore, Owner, RecordId, ScopeId,
    StoreErrorKind,
};

use super::support::faults::{self, Fault, FaultStore};
use super::support::history::{Answer, History, check};
use super::{RETENTION, acquired, record};

#[tokio::test(start_paused = true)]
async fn calls_are_written_down_with_their_times_and_with_those_that_were_given_up() {
    let faults = FaultStore::new(MemoryStore::new());
    let history = History::new();
    let store = history.of(faults.clone());
    let id = RecordId::from_bytes([7; 32]);
    let scope = ScopeId::from_bytes([0; 16]);
    let request = Fingerprint::from_bytes([1; 32]);
    let owner = Owner::from_bytes([1; 16]);
    let request = ClaimRequest::new(id, scope, request, owner);
    let slow = Duration::from_millis(5);
    faults.once(faults::Call::Claim, Fault::Slow(slow));
    let Claimed::Acquired(hold) = store.claim(&request).await.unwrap() else {
        panic!("not acquired");
    };
    faults.once(faults::Call::Complete, Fault::AppliedThenHangs);
    let record = record("paid");
    let complete = store.complete(&hold, &record, RETENTION);
    assert!(tokio::time::timeout(slow, complete).await.is_err());
    faults.once(
        faults::Call::Release,
        Fault::Refused(StoreErrorKind::NotApplied),
    );
    store.release(&hold).await.unwrap_err();
    store.lookup(&id).await.unwrap();
    let events = history.events();
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.asked.as_millis(), event.answered, &event.answer))
        .collect();
    let after = Duration::from_millis(10);
    let refused = Answer::Error(StoreErrorKind::NotApplied);
    assert_eq!(told[0], (0, slow, &acquired(1)));
    assert_eq!(told[1], (5, Duration::MAX, &Answer::Never));
    assert_eq!(told[2], (10, after, &refused));
    assert!(matches!(told[3], (10, _, Answer::Found(found)) if found.attempt == 1));
    assert_eq!(
        events[1].by.map(|by| (by.owner, by.attempt)),
        Some((owner, 1))
    );
    check(&events);
}
