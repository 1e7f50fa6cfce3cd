//! Which records this process has seen completed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::scope::RecordId;

/// So many of the latest are remembered, in 32 KiB.
const SLOTS: usize = 4096;

/// A hint and no more: the record may be gone, or another one be taken for it, and then a
/// claim costs a trip more. Retries tend to come in numbers and to the same node.
pub(super) struct Recent(Box<[AtomicU64]>);

impl Recent {
    pub(super) fn new() -> Self {
        Self((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn add(&self, id: &RecordId) {
        let (slot, mark) = self.place(id);
        slot.store(mark, Ordering::Relaxed);
    }

    pub(super) fn has(&self, id: &RecordId) -> bool {
        let (slot, mark) = self.place(id);
        slot.load(Ordering::Relaxed) == mark
    }

    /// An id is a digest: any of its bytes are as good as a hash.
    fn place(&self, id: &RecordId) -> (&AtomicU64, u64) {
        let [a, b, c, d, e, f, g, h, i, j, ..] = *id.as_bytes();
        let slot = usize::from(u16::from_be_bytes([a, b])) % SLOTS;
        (&self.0[slot], u64::from_be_bytes([c, d, e, f, g, h, i, j]))
    }
}
