//! Which records may have expired, without looking at all of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::entry::Look;
use super::shared::{SHARDS, shard_of};
use super::time::Time;
use crate::model::scope::RecordId;

/// One queue a shard, of when to look at which record.
///
/// A record has one item that counts, the one of [`Entry::queued`](super::entry::Entry);
/// it is due when the record ends or before. Whatever else is queued for it is a leftover:
/// dropped when it is due, or when the queue has grown to twice what counted the last time.
pub(super) struct Expiry {
    queues: Box<[Mutex<Queue>]>,
    /// When the first item of each queue is due: what there is to read for who looks for
    /// expired records and finds none.
    first_due: Box<[AtomicU64]>,
}

#[derive(Default)]
struct Queue {
    items: BinaryHeap<Reverse<(Time, RecordId)>>,
    /// How many items counted when the leftovers were last dropped.
    counted: usize,
}

/// So few that they need no clearing up.
const FEW: usize = 32;

impl Expiry {
    pub(super) fn new() -> Self {
        let never = || AtomicU64::new(Time::NEVER.to_bits());
        Self {
            queues: (0..SHARDS).map(|_| Mutex::default()).collect(),
            first_due: (0..SHARDS).map(|_| never()).collect(),
        }
    }

    /// `counts` tells whether an item is the one that counts for its record. It is asked of
    /// all of them when the queue has doubled, so that keys which are claimed and given back
    /// pile up nothing, and never twice for as few.
    pub(super) fn push(&self, due: Time, id: &RecordId, counts: impl Fn(&RecordId, Time) -> bool) {
        let shard = shard_of(id);
        let mut queue = self.lock(shard);
        queue.items.push(Reverse((due, *id)));
        if queue.items.len() > 2 * queue.counted.max(FEW) {
            let mut items = std::mem::take(&mut queue.items).into_vec();
            items.retain(|Reverse((due, id))| counts(id, *due));
            // A key that was given back and claimed again at the same time is queued twice.
            items.sort_unstable();
            items.dedup();
            queue.counted = items.len();
            queue.items = items.into();
        }
        self.set_first_due(shard, &queue);
    }

    pub(super) fn is_due(&self, shard: usize, now: Time) -> bool {
        Time::from_bits(self.first_due[shard].load(Ordering::Acquire)) <= now
    }

    /// Has at most that many due items of one shard looked at, and says how many records
    /// were removed.
    ///
    /// The lock is held meanwhile, and `first_due` set at the end of it: who comes for room
    /// while records are being removed waits for them instead of being refused.
    pub(super) fn drain(
        &self,
        shard: usize,
        now: Time,
        at_most: usize,
        mut look: impl FnMut(&RecordId, Time) -> Look,
    ) -> usize {
        if !self.is_due(shard, now) {
            return 0;
        }
        let mut queue = self.lock(shard);
        let mut removed = 0;
        for _ in 0..at_most {
            let Some((due, id)) = pop_due(&mut queue, now) else {
                break;
            };
            match look(&id, due) {
                Look::Expired => removed += 1,
                Look::Again(at) => queue.items.push(Reverse((at, id))),
                Look::Leftover => {}
            }
        }
        self.set_first_due(shard, &queue);
        removed
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).items.len()).sum()
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Queue> {
        self.queues[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_first_due(&self, shard: usize, queue: &Queue) {
        let first = queue
            .items
            .peek()
            .map_or(Time::NEVER, |Reverse((due, _))| *due);
        self.first_due[shard].store(first.to_bits(), Ordering::Release);
    }
}

fn pop_due(queue: &mut Queue, now: Time) -> Option<(Time, RecordId)> {
    let Reverse((due, _)) = queue.items.peek()?;
    if *due > now {
        return None;
    }
    queue.items.pop().map(|Reverse(item)| item)
}
