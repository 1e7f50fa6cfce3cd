use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, Ownership, Record, RecordId,
    Snapshot, StoreError,
};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type Answer<'a, T> = Boxed<'a, Result<T, StoreError>>;

/// A store whose type is chosen at run time. Every call costs one allocation more than a
/// call of the store itself.
///
/// ```
/// use tower_idempotency::store::{AnyStore, MemoryStore};
/// use tower_idempotency::{IdempotencyLayer, SharedByAllCallers};
///
/// fn store(name: &str) -> AnyStore {
///     match name {
///         "memory" => AnyStore::new(MemoryStore::new()),
///         other => panic!("no store is called {other}"),
///     }
/// }
///
/// let layer: IdempotencyLayer = IdempotencyLayer::new(store("memory"), SharedByAllCallers);
/// # let _ = layer;
/// ```
#[derive(Clone)]
pub struct AnyStore(Arc<dyn Erased>);

impl AnyStore {
    /// Erases the type of a store.
    pub fn new<K: KeyStore>(store: K) -> Self {
        Self(Arc::new(store))
    }
}

impl fmt::Debug for AnyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnyStore")
            .field(&self.0.type_name())
            .finish()
    }
}

/// The trait once more, object safe. Its methods are named apart, since a store that had
/// two of one name could not be called at all.
trait Erased: Send + Sync {
    fn type_name(&self) -> &'static str;
    fn claim_dyn<'a>(&'a self, request: &'a ClaimRequest) -> Answer<'a, Claimed>;
    fn extend_dyn<'a>(
        &'a self,
        hold: &'a Hold,
        lease: Duration,
        retention: Duration,
    ) -> Answer<'a, Ownership>;
    fn complete_dyn<'a>(
        &'a self,
        hold: &'a Hold,
        record: &'a Record,
        retention: Duration,
    ) -> Answer<'a, Completion>;
    fn fail_dyn<'a>(
        &'a self,
        hold: &'a Hold,
        seal: bool,
        retention: Duration,
    ) -> Answer<'a, Ownership>;
    fn release_dyn<'a>(&'a self, hold: &'a Hold) -> Answer<'a, Ownership>;
    fn lookup_dyn<'a>(&'a self, id: &'a RecordId) -> Answer<'a, Option<Snapshot>>;
    fn forget_dyn<'a>(&'a self, id: &'a RecordId) -> Answer<'a, Forgot>;
    fn resolve_dyn<'a>(
        &'a self,
        id: &'a RecordId,
        record: &'a Record,
        retention: Duration,
    ) -> Answer<'a, bool>;
    fn purge_expired_dyn(&self, at_most: usize) -> Answer<'_, usize>;
    fn changed_dyn<'a>(&'a self, id: &'a RecordId, at_most: Duration) -> Boxed<'a, ()>;
}

impl<K: KeyStore> Erased for K {
    fn type_name(&self) -> &'static str {
        std::any::type_name::<K>()
    }

    fn claim_dyn<'a>(&'a self, request: &'a ClaimRequest) -> Answer<'a, Claimed> {
        Box::pin(self.claim(request))
    }

    fn extend_dyn<'a>(
        &'a self,
        hold: &'a Hold,
        lease: Duration,
        retention: Duration,
    ) -> Answer<'a, Ownership> {
        Box::pin(self.extend(hold, lease, retention))
    }

    fn complete_dyn<'a>(
        &'a self,
        hold: &'a Hold,
        record: &'a Record,
        retention: Duration,
    ) -> Answer<'a, Completion> {
        Box::pin(self.complete(hold, record, retention))
    }

    fn fail_dyn<'a>(
        &'a self,
        hold: &'a Hold,
        seal: bool,
        retention: Duration,
    ) -> Answer<'a, Ownership> {
        Box::pin(self.fail(hold, seal, retention))
    }

    fn release_dyn<'a>(&'a self, hold: &'a Hold) -> Answer<'a, Ownership> {
        Box::pin(self.release(hold))
    }

    fn lookup_dyn<'a>(&'a self, id: &'a RecordId) -> Answer<'a, Option<Snapshot>> {
        Box::pin(self.lookup(id))
    }

    fn forget_dyn<'a>(&'a self, id: &'a RecordId) -> Answer<'a, Forgot> {
        Box::pin(self.forget(id))
    }

    fn resolve_dyn<'a>(
        &'a self,
        id: &'a RecordId,
        record: &'a Record,
        retention: Duration,
    ) -> Answer<'a, bool> {
        Box::pin(self.resolve(id, record, retention))
    }

    fn purge_expired_dyn(&self, at_most: usize) -> Answer<'_, usize> {
        Box::pin(self.purge_expired(at_most))
    }

    fn changed_dyn<'a>(&'a self, id: &'a RecordId, at_most: Duration) -> Boxed<'a, ()> {
        Box::pin(self.changed(id, at_most))
    }
}

impl KeyStore for AnyStore {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        self.0.claim_dyn(request).await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        self.0.extend_dyn(hold, lease, retention).await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        self.0.complete_dyn(hold, record, retention).await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        self.0.fail_dyn(hold, seal, retention).await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        self.0.release_dyn(hold).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        self.0.lookup_dyn(id).await
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        self.0.forget_dyn(id).await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        self.0.resolve_dyn(id, record, retention).await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        self.0.purge_expired_dyn(at_most).await
    }

    async fn changed(&self, id: &RecordId, at_most: Duration) {
        self.0.changed_dyn(id, at_most).await;
    }
}
