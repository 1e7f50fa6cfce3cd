//! It is one store for all its clones, in this process alone, with a runtime or without.

use futures_util::FutureExt;
use tower_idempotency::store::{Claimed, KeyStore, MemoryStore, Ownership};

use crate::{acquire, request};

#[tokio::test(start_paused = true)]
async fn clones_share_their_records() {
    let store = MemoryStore::default();
    let hold = acquire(&store.clone(), &request(0, 1)).await;
    assert_eq!(store.release(&hold).await.unwrap(), Ownership::Held);
    assert!(store.is_empty());
}

#[test]
fn its_debug_form_says_that_it_is_for_one_process() {
    let shown = format!("{:?}", MemoryStore::new());
    assert!(shown.contains("this process alone"), "{shown}");
}

#[test]
fn it_works_without_a_runtime() {
    let store = MemoryStore::new();
    let claimed = store.claim(&request(0, 1)).now_or_never().unwrap();
    assert!(matches!(claimed, Ok(Claimed::Acquired(_))));
    let purged = store.purge_expired(1).now_or_never().unwrap();
    assert_eq!(purged.unwrap(), 0);
}
