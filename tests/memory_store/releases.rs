//! A release goes by the attempt that is stored, not by the one it was told.

use tokio::time::advance;
use tower_idempotency::store::{KeyStore, MemoryStore, Ownership, Phase};

use crate::{LEASE, acquire, phase, request};

#[tokio::test(start_paused = true)]
async fn the_attempt_that_is_stored_decides_what_a_release_does() {
    let store = MemoryStore::new();
    acquire(&store, &request(0, 1)).await;
    advance(LEASE).await;
    acquire(&store, &request(0, 2)).await;
    // The hold of a claim whose answer was lost knows no attempt.
    let unknown = request(0, 2).hold(1);
    assert_eq!(store.release(&unknown).await.unwrap(), Ownership::Held);
    assert_eq!(phase(&store, 0).await, Some(Phase::Failed));
    assert_eq!(acquire(&store, &request(0, 3)).await.attempt, 3);

    acquire(&store, &request(1, 1)).await;
    let wrong = request(1, 1).hold(9);
    assert_eq!(store.release(&wrong).await.unwrap(), Ownership::Held);
    assert_eq!(phase(&store, 1).await, None);
}
