//! Options that cannot be meant are refused where they are set.

use tower_idempotency::store::MemoryStore;

#[test]
#[should_panic(expected = "max_records(0) would refuse every claim")]
fn no_records_at_all_is_a_mistake() {
    let _ = MemoryStore::new().max_records(0);
}

#[test]
#[should_panic(expected = "max_bytes(0) would refuse every claim")]
fn no_bytes_at_all_is_a_mistake() {
    let _ = MemoryStore::new().max_bytes(0);
}

#[test]
#[should_panic(expected = "max_records_per_scope(0) would refuse every claim")]
fn no_records_of_a_scope_is_a_mistake() {
    let _ = MemoryStore::new().max_records_per_scope(0);
}

#[test]
#[should_panic(expected = "before it is cloned")]
fn options_come_before_clones() {
    let store = MemoryStore::new();
    let _clone = store.clone();
    let _ = store.max_records(1);
}
