//! How much is kept, and how much may be.

use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;

use super::entry::Entry;
use crate::model::error::StoreErrorKind;
use crate::model::record::Record;
use crate::model::scope::ScopeId;

/// Counts what is in the map. Room is taken before a record goes in and given back after
/// it has come out, so that what may be refused never passes a bound, not for a moment.
pub(super) struct Room {
    records: AtomicUsize,
    bytes: AtomicUsize,
    scopes: Option<Scopes>,
    pub(super) max_records: usize,
    pub(super) max_bytes: usize,
}

struct Scopes {
    records: DashMap<ScopeId, usize>,
    max_records: usize,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            scopes: None,
            max_records: 1_000_000,
            max_bytes: 256 * 1024 * 1024,
        }
    }

    pub(super) fn count_scopes(&mut self, max_records: usize) {
        self.scopes = Some(Scopes {
            records: DashMap::new(),
            max_records,
        });
    }

    pub(super) fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn scopes(&self) -> usize {
        self.scopes
            .as_ref()
            .map_or(0, |scopes| scopes.records.len())
    }

    /// Takes the room of a new record. What it returns goes into the record.
    pub(super) fn admit(&self, scope: &ScopeId) -> Result<Option<Box<ScopeId>>, StoreErrorKind> {
        if self.bytes() >= self.max_bytes || !add_within(&self.records, 1, self.max_records) {
            return Err(StoreErrorKind::Full);
        }
        let counted = self.scopes.as_ref().map(|scopes| scopes.admit(scope));
        counted.transpose().inspect_err(|_| {
            self.records.fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// Counts a record that is taken whether there is room or not.
    pub(super) fn admit_anyway(&self, scope: &ScopeId) -> Option<Box<ScopeId>> {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.scopes.as_ref().map(|scopes| scopes.count(scope))
    }

    /// Takes the room of an answer. One without its body is always let in: it is all that
    /// is left to say that the run was completed.
    pub(super) fn admit_answer(&self, record: &Record) -> Result<(), StoreErrorKind> {
        let len = record.as_bytes().len();
        if record.is_omitted() {
            self.bytes.fetch_add(len, Ordering::Relaxed);
        } else if !add_within(&self.bytes, len, self.max_bytes) {
            return Err(StoreErrorKind::Full);
        }
        Ok(())
    }

    /// Gives back the room of a record that is no longer in the map.
    pub(super) fn give_back(&self, entry: &Entry) {
        self.records.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(entry.bytes(), Ordering::Relaxed);
        if let (Some(scopes), Some(scope)) = (&self.scopes, entry.counted_scope()) {
            scopes.give_back(scope);
        }
    }
}

impl Scopes {
    fn admit(&self, scope: &ScopeId) -> Result<Box<ScopeId>, StoreErrorKind> {
        let mut records = self.records.entry(*scope).or_insert(0);
        if *records >= self.max_records {
            return Err(StoreErrorKind::Quota);
        }
        *records += 1;
        Ok(Box::new(*scope))
    }

    fn count(&self, scope: &ScopeId) -> Box<ScopeId> {
        *self.records.entry(*scope).or_insert(0) += 1;
        Box::new(*scope)
    }

    fn give_back(&self, scope: &ScopeId) {
        self.records.remove_if_mut(scope, |_, records| {
            *records -= 1;
            *records == 0
        });
    }
}

fn add_within(counter: &AtomicUsize, more: usize, max: usize) -> bool {
    let added = |count: usize| count.checked_add(more).filter(|&sum| sum <= max);
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, added)
        .is_ok()
}
