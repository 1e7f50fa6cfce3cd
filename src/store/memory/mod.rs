//! The records of one process, in its own memory.

mod entry;
mod expiry;
mod room;
mod shared;
#[cfg(test)]
mod tests;
mod time;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use self::room::Room;
use self::shared::Shared;
use super::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, Ownership, Record, RecordId,
    Snapshot, StoreError,
};

/// Claims and records in the memory of one process: shared by its tasks, by no other
/// process, and gone with it. Right for a service that runs as a single instance and whose
/// clients do not retry across its restarts, for tests, and for development. With a second
/// instance, or where a restart must not let a payment run twice, use a store that all
/// instances share and that outlives them.
///
/// It is bounded. Where there is no room, expired records go first; then new claims are
/// refused with [`Full`] or [`Quota`]. A record that has not expired is never evicted,
/// since its request would run again.
///
/// Expired records are cleared away by the claims that come after them. Where traffic may
/// stop and memory is to be given back all the same, call
/// [`purge_expired`](KeyStore::purge_expired) from time to time: it takes about a
/// microsecond a record, and next to nothing when none has expired.
///
/// Clones are cheap and share their records. Options are set before the first clone.
///
/// [`Full`]: super::StoreErrorKind::Full
/// [`Quota`]: super::StoreErrorKind::Quota
///
/// ```
/// use tower_idempotency::store::{
///     ClaimRequest, Claimed, Completion, Fingerprint, KeyStore, MemoryStore, Owner, Record,
///     ScopeId,
/// };
/// use tower_idempotency::{IdempotencyKey, RecordId, Scope};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new()
///     .max_records(100_000)
///     .max_bytes(64 * 1024 * 1024)
///     .max_records_per_scope(1_000);
///
/// let request = ClaimRequest::new(
///     RecordId::new("payments", &Scope::new("acct_1"), &IdempotencyKey::new("k-1")?),
///     ScopeId::from_bytes([1; 16]),
///     Fingerprint::from_bytes([2; 32]),
///     Owner::random()?,
/// );
/// let Claimed::Acquired(hold) = store.claim(&request).await? else {
///     unreachable!("nobody else has the key");
/// };
/// let answer = Record::new(&http::Response::new("paid"));
/// let day = std::time::Duration::from_secs(24 * 60 * 60);
/// assert_eq!(store.complete(&hold, &answer, day).await?, Completion::Stored);
///
/// let again = store.claim(&request).await?;
/// assert_eq!(again, Claimed::Completed { attempt: 1, record: answer });
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    /// An empty store with the default bounds.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared::new()),
        }
    }

    /// Default: 1,000,000. How many records are kept. A claim that would add one more is refused
    /// with [`Full`](super::StoreErrorKind::Full). Besides the bytes of its answer a record
    /// takes about 300.
    ///
    /// ```
    /// use tower_idempotency::store::MemoryStore;
    ///
    /// let store = MemoryStore::new().max_records(100_000);
    /// # let _ = store;
    /// ```
    ///
    /// # Panics
    ///
    /// When it is zero, or when the store has been cloned.
    #[track_caller]
    #[must_use]
    pub fn max_records(mut self, records: usize) -> Self {
        assert!(
            records > 0,
            "max_records(0) would refuse every claim: allow at least one record"
        );
        self.room().max_records = records;
        self
    }

    /// Default: 256 MiB. How many bytes of answers are kept, counted as
    /// [`Record::as_bytes`] has them: head, header fields and body.
    ///
    /// An answer that does not fit is refused with [`Full`](super::StoreErrorKind::Full),
    /// unless it [is without its body](Record::is_omitted): then it is kept past the bound,
    /// so that the fact of completion is never lost. While the bound is reached or passed,
    /// new claims are refused.
    ///
    /// ```
    /// use tower_idempotency::store::MemoryStore;
    ///
    /// let store = MemoryStore::new().max_bytes(64 * 1024 * 1024);
    /// # let _ = store;
    /// ```
    ///
    /// # Panics
    ///
    /// When it is zero, or when the store has been cloned.
    #[track_caller]
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        assert!(
            bytes > 0,
            "max_bytes(0) would refuse every claim: allow at least the bytes of one answer"
        );
        self.room().max_bytes = bytes;
        self
    }

    /// Default: unbounded. How many records one scope may have. A claim that would add one more is
    /// refused with [`Quota`](super::StoreErrorKind::Quota), so that one caller cannot fill
    /// the store.
    ///
    /// ```
    /// use tower_idempotency::store::MemoryStore;
    ///
    /// let store = MemoryStore::new().max_records_per_scope(1_000);
    /// # let _ = store;
    /// ```
    ///
    /// # Panics
    ///
    /// When it is zero, or when the store has been cloned.
    #[track_caller]
    #[must_use]
    pub fn max_records_per_scope(mut self, records: usize) -> Self {
        assert!(
            records > 0,
            "max_records_per_scope(0) would refuse every claim: allow at least one record"
        );
        self.room().count_scopes(records);
        self
    }

    #[track_caller]
    fn room(&mut self) -> &mut Room {
        match Arc::get_mut(&mut self.shared) {
            Some(shared) => &mut shared.room,
            None => panic!("set the options of a MemoryStore before it is cloned"),
        }
    }

    /// How many records are kept, those included that have expired and are not yet purged.
    pub fn len(&self) -> usize {
        self.shared.room.records()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes of answers are kept, those included that have expired and are not yet
    /// purged.
    pub fn bytes(&self) -> usize {
        self.shared.room.bytes()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("shared_by", &"this process alone")
            .field("records", &self.len())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl KeyStore for MemoryStore {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        self.shared.claim(request)
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        Ok(self.shared.extend(hold, lease, retention))
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        self.shared.complete(hold, record, retention)
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        Ok(self.shared.fail(hold, seal, retention))
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        Ok(self.shared.release(hold))
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        Ok(self.shared.lookup(id))
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        Ok(self.shared.forget(id))
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        self.shared.resolve(id, record, retention)
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        Ok(self.shared.purge_expired(at_most))
    }

    async fn changed(&self, id: &RecordId, at_most: Duration) {
        self.shared.changed(id, at_most).await;
    }
}
