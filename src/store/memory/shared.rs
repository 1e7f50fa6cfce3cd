//! The map of records, and around it what keeps it bounded, clean and awaited.

use std::hash::{BuildHasherDefault, Hasher};
use std::pin::pin;
use std::time::Duration;

use dashmap::{DashMap, Entry as Slot};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::entry::{Entry, Look, Release};
use super::expiry::Expiry;
use super::room::Room;
use super::time::Time;
use crate::model::claim::{ClaimRequest, Claimed, Completion, Forgot, Hold, Ownership, Snapshot};
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::record::Record;
use crate::model::scope::RecordId;

/// So many that neither the growth of a table nor a sweep stalls anybody for long.
pub(super) const SHARDS: usize = 1024;

/// How many due items are looked at under one lock of a queue.
const BATCH: usize = 64;

/// How many a claim that adds one looks at: more than it adds, so that traffic alone keeps
/// up with what expires.
const BATCH_OF_A_CLAIM: usize = 4;

/// Lock order: a queue of `expiry`, then a shard of `records`, then a shard of the counts by
/// scope. None is taken while one further down is held, no two of one kind are held at
/// once, and waiters are woken with none held.
pub(super) struct Shared {
    records: DashMap<RecordId, Box<Entry>, BuildHasherDefault<OwnBits>>,
    pub(super) room: Room,
    pub(super) expiry: Expiry,
    waiters: Box<[Notify]>,
    start: Instant,
}

type RecordSlot<'a> = Slot<'a, RecordId, Box<Entry>>;

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            records: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                BuildHasherDefault::default(),
                SHARDS,
            ),
            room: Room::new(),
            expiry: Expiry::new(),
            waiters: (0..SHARDS).map(|_| Notify::new()).collect(),
            start: Instant::now(),
        }
    }

    fn now(&self) -> Time {
        Time::since(self.start)
    }

    pub(super) fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let now = self.now();
        self.making_room(now, || self.try_claim(request, now))
    }

    pub(super) fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        let now = self.now();
        let end = now.plus(retention);
        self.making_room(now, || self.try_complete(hold, record, end, now))
    }

    pub(super) fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let now = self.now();
        let end = now.plus(retention);
        self.making_room(now, || self.try_resolve(id, record, end, now))
    }

    pub(super) fn purge_expired(&self, at_most: usize) -> usize {
        self.sweep(self.now(), at_most)
    }

    pub(super) async fn changed(&self, id: &RecordId, at_most: Duration) {
        // Registered within the first poll, before anything can be pending. A change is
        // visible before it is announced: what a look-up after this poll does not see is
        // announced after it, to a waiter that is registered.
        let mut announced = pin!(self.waiters[shard_of(id)].notified());
        announced.as_mut().enable();
        let _ = timeout(at_most, announced).await;
    }

    /// Calls until there is room, or until no expired record is left to make some. The last
    /// call comes after the last look: records that others remove meanwhile count too.
    fn making_room<T>(
        &self,
        now: Time,
        call: impl Fn() -> Result<T, StoreErrorKind>,
    ) -> Result<T, StoreError> {
        let mut answer = call();
        while answer.is_err() {
            let removed = self.sweep(now, BATCH);
            answer = call();
            if removed == 0 {
                break;
            }
        }
        answer.map_err(StoreError::from)
    }

    fn try_claim(&self, request: &ClaimRequest, now: Time) -> Result<Claimed, StoreErrorKind> {
        let id = &request.id;
        match self.slot(id, now) {
            Slot::Occupied(mut slot) => {
                let claimed = slot.get_mut().claim(request, now);
                if matches!(claimed, Claimed::Acquired(_)) {
                    let due = slot.get_mut().requeue();
                    drop(slot);
                    self.queue(id, due);
                    self.announce(id);
                }
                Ok(claimed)
            }
            Slot::Vacant(slot) => {
                let scope = self.room.admit(&request.scope)?;
                let entry = Entry::running(request, scope, now);
                let due = entry.queued();
                drop(slot.insert(Box::new(entry)));
                self.queue(id, Some(due));
                self.drain(shard_of(id), now, BATCH_OF_A_CLAIM);
                Ok(Claimed::Acquired(request.hold(1)))
            }
        }
    }

    pub(super) fn extend(&self, hold: &Hold, lease: Duration, retention: Duration) -> Ownership {
        let now = self.now();
        self.change(&hold.id, now, |entry| {
            entry.extend(&hold.owner, lease, retention, now)
        })
        .unwrap_or(Ownership::Lost)
    }

    fn try_complete(
        &self,
        hold: &Hold,
        record: &Record,
        end: Time,
        now: Time,
    ) -> Result<Completion, StoreErrorKind> {
        let id = &hold.id;
        let (completion, due) = match self.slot(id, now) {
            Slot::Occupied(mut slot) => {
                let entry = slot.get_mut();
                if let Err(completion) = entry.awaits_answer_of(&hold.owner) {
                    return Ok(completion);
                }
                self.room.admit_answer(record)?;
                entry.complete(record.clone(), end);
                (Completion::Stored, entry.requeue())
            }
            Slot::Vacant(slot) => {
                self.room.admit_answer(record)?;
                let scope = self.room.admit_anyway(&hold.scope);
                let entry = Entry::restored(hold, scope, record.clone(), end);
                slot.insert(Box::new(entry));
                (Completion::Restored, Some(end))
            }
        };
        self.queue(id, due);
        self.announce(id);
        Ok(completion)
    }

    pub(super) fn fail(&self, hold: &Hold, seal: bool, retention: Duration) -> Ownership {
        let now = self.now();
        let ownership = self
            .change(&hold.id, now, |entry| {
                entry.fail(&hold.owner, seal, now.plus(retention))
            })
            .unwrap_or(Ownership::Lost);
        self.announce(&hold.id);
        ownership
    }

    pub(super) fn release(&self, hold: &Hold) -> Ownership {
        let now = self.now();
        let mut release = Release::NotHeld;
        self.remove_if(&hold.id, now, |entry| {
            release = entry.release(&hold.owner);
            release == Release::Freed
        });
        self.announce(&hold.id);
        match release {
            Release::NotHeld => Ownership::Lost,
            Release::Freed | Release::Failed => Ownership::Held,
        }
    }

    pub(super) fn lookup(&self, id: &RecordId) -> Option<Snapshot> {
        let now = self.now();
        let entry = self.records.get(id)?;
        (!entry.has_expired(now)).then(|| entry.snapshot(now))
    }

    pub(super) fn forget(&self, id: &RecordId) -> Forgot {
        let now = self.now();
        let mut forgot = Forgot::Absent;
        self.remove_if(id, now, |entry| {
            forgot = entry.forget(now);
            forgot == Forgot::Forgotten
        });
        self.announce(id);
        forgot
    }

    fn try_resolve(
        &self,
        id: &RecordId,
        record: &Record,
        end: Time,
        now: Time,
    ) -> Result<bool, StoreErrorKind> {
        let resolved = self.change(id, now, |entry| {
            if !entry.is_sealed(now) {
                return Ok(false);
            }
            self.room.admit_answer(record)?;
            entry.complete(record.clone(), end);
            Ok(true)
        });
        self.announce(id);
        resolved.unwrap_or(Ok(false))
    }

    /// The place of a record, vacant if it has expired.
    fn slot(&self, id: &RecordId, now: Time) -> RecordSlot<'_> {
        loop {
            match self.records.entry(*id) {
                Slot::Occupied(slot) if slot.get().has_expired(now) => {
                    self.room.give_back(&slot.remove());
                    self.announce(id);
                }
                slot => return slot,
            }
        }
    }

    fn change<T>(
        &self,
        id: &RecordId,
        now: Time,
        change: impl FnOnce(&mut Entry) -> T,
    ) -> Option<T> {
        let mut entry = self.records.get_mut(id)?;
        if entry.has_expired(now) {
            return None;
        }
        let answer = change(&mut entry);
        let due = entry.requeue();
        drop(entry);
        self.queue(id, due);
        Some(answer)
    }

    fn remove_if(&self, id: &RecordId, now: Time, remove: impl FnOnce(&mut Entry) -> bool) {
        let removed = self
            .records
            .remove_if_mut(id, |_, entry| !entry.has_expired(now) && remove(entry));
        if let Some((_, entry)) = removed {
            self.room.give_back(&entry);
        }
    }

    fn queue(&self, id: &RecordId, due: Option<Time>) {
        if let Some(due) = due {
            let counts = |id: &RecordId, due| {
                let entry = self.records.get(id);
                entry.is_some_and(|entry| entry.queued() == due)
            };
            self.expiry.push(due, id, counts);
        }
    }

    fn announce(&self, id: &RecordId) {
        self.waiters[shard_of(id)].notify_waiters();
    }

    fn sweep(&self, now: Time, at_most: usize) -> usize {
        let mut removed = 0;
        for shard in 0..SHARDS {
            while removed < at_most && self.expiry.is_due(shard, now) {
                removed += self.drain(shard, now, BATCH.min(at_most - removed));
            }
        }
        removed
    }

    fn drain(&self, shard: usize, now: Time, at_most: usize) -> usize {
        let removed = self
            .expiry
            .drain(shard, now, at_most, |id, due| self.look(id, due, now));
        if removed > 0 {
            self.waiters[shard].notify_waiters();
        }
        removed
    }

    fn look(&self, id: &RecordId, due: Time, now: Time) -> Look {
        let mut look = Look::Leftover;
        let removed = self.records.remove_if_mut(id, |_, entry| {
            look = entry.look(due, now);
            look == Look::Expired
        });
        if let Some((_, entry)) = removed {
            self.room.give_back(&entry);
        }
        look
    }
}

/// Which queue and which waiters an id belongs to, by bits that the map does not use.
pub(super) fn shard_of(id: &RecordId) -> usize {
    let [.., high, low] = *id.as_bytes();
    usize::from(u16::from_be_bytes([high, low])) % SHARDS
}

/// Hands on the word that a `RecordId` feeds it: part of a SHA-256 digest, uniform already,
/// so that who wants many ids in one place has to search for each of them. The map takes
/// its shard from the bits below the top seven, a table its tag from the top seven and the
/// place from the bits at the bottom.
#[derive(Default)]
struct OwnBits(u64);

impl Hasher for OwnBits {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
