//! A store that behaves as another, but for one thing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, Ownership, Record, RecordId,
    Snapshot, StoreError, StoreErrorKind,
};

/// What is different.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum But {
    /// It cannot say when a record changes: `changed` is the provided one.
    Announcing,
    /// Its look-ups come from a replica that has seen nothing yet. Claims over the number
    /// given are refused, so that a caller who never rests comes to an end.
    LookUpsLag(usize),
    /// Its first claim is applied at once, and answered after this time.
    FirstClaimAnsweredAfter(Duration),
    /// What a look-up finds is as old as this when it comes.
    LookUpsAnsweredAfter(Duration),
    /// Every renewal is applied at once, and answered after this time.
    RenewalsAnsweredAfter(Duration),
    /// Panics on the first completion.
    PanicsOnComplete,
    /// Panics on the first renewal.
    PanicsOnExtend,
}

#[derive(Clone)]
pub struct Variant<K> {
    store: K,
    but: But,
    claims: Arc<AtomicUsize>,
}

impl<K> Variant<K> {
    pub fn of(store: K, but: But) -> Self {
        let claims = Arc::default();
        Self { store, but, claims }
    }

    pub fn claims(&self) -> usize {
        self.claims.load(Ordering::SeqCst)
    }
}

impl<K: KeyStore> KeyStore for Variant<K> {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let earlier = self.claims.fetch_add(1, Ordering::SeqCst);
        match self.but {
            But::LookUpsLag(claims) if earlier >= claims => {
                return Err(StoreErrorKind::NotApplied.into());
            }
            But::FirstClaimAnsweredAfter(time) if earlier == 0 => {
                let claimed = self.store.claim(request).await;
                sleep(time).await;
                return claimed;
            }
            _ => {}
        }
        self.store.claim(request).await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        assert!(self.but != But::PanicsOnExtend, "planned");
        let ownership = self.store.extend(hold, lease, retention).await;
        if let But::RenewalsAnsweredAfter(time) = self.but {
            sleep(time).await;
        }
        ownership
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        assert!(self.but != But::PanicsOnComplete, "planned");
        self.store.complete(hold, record, retention).await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        self.store.fail(hold, seal, retention).await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        self.store.release(hold).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        match self.but {
            But::LookUpsLag(_) => Ok(None),
            But::LookUpsAnsweredAfter(time) => {
                let found = self.store.lookup(id).await;
                sleep(time).await;
                found
            }
            _ => self.store.lookup(id).await,
        }
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        self.store.forget(id).await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        self.store.resolve(id, record, retention).await
    }

    async fn changed(&self, id: &RecordId, at_most: Duration) {
        match self.but {
            But::Announcing => Provided.changed(id, at_most).await,
            _ => self.store.changed(id, at_most).await,
        }
    }
}

/// Nothing but the provided methods.
struct Provided;

impl KeyStore for Provided {
    async fn claim(&self, _: &ClaimRequest) -> Result<Claimed, StoreError> {
        Err(StoreErrorKind::Misconfigured.into())
    }
    async fn extend(&self, _: &Hold, _: Duration, _: Duration) -> Result<Ownership, StoreError> {
        Err(StoreErrorKind::Misconfigured.into())
    }
    async fn complete(&self, _: &Hold, _: &Record, _: Duration) -> Result<Completion, StoreError> {
        Err(StoreErrorKind::Misconfigured.into())
    }
    async fn fail(&self, _: &Hold, _: bool, _: Duration) -> Result<Ownership, StoreError> {
        Err(StoreErrorKind::Misconfigured.into())
    }
    async fn release(&self, _: &Hold) -> Result<Ownership, StoreError> {
        Err(StoreErrorKind::Misconfigured.into())
    }
    async fn lookup(&self, _: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        Err(StoreErrorKind::Misconfigured.into())
    }
    async fn forget(&self, _: &RecordId) -> Result<Forgot, StoreError> {
        Err(StoreErrorKind::Misconfigured.into())
    }
    async fn resolve(&self, _: &RecordId, _: &Record, _: Duration) -> Result<bool, StoreError> {
        Err(StoreErrorKind::Misconfigured.into())
    }
}
