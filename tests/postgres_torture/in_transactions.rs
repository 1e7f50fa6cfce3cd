//! A store that completes as a handler's transaction does: a row of the handler's, and the
//! answer, or neither.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::PgPool;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fence, Forgot, Hold, KeyStore, Ownership, PostgresStore,
    Record, RecordId, Snapshot, StoreError, StoreErrorKind, TransactionalStore,
};

use super::support::postgres::execute;

type Bytes = Vec<u8>;

/// The answers of which something is known.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// Whose transaction was said to have committed.
    pub committed: Arc<Mutex<BTreeSet<Bytes>>>,
    /// That were, or may have been, recorded without a row as well.
    pub without_effect: Arc<Mutex<BTreeSet<Bytes>>>,
}

impl Known {
    fn note(set: &Mutex<BTreeSet<Bytes>>, record: &Record) {
        set.lock().unwrap().insert(record.as_bytes().to_vec());
    }
}

#[derive(Clone)]
pub(super) struct InTransactions {
    pub store: PostgresStore,
    pub known: Known,
    /// Whether the first statement of a transaction is the fence.
    pub is_fenced: bool,
}

pub(super) async fn create_effects(pool: &PgPool) {
    execute(pool, "CREATE TABLE effect (record bytea NOT NULL)").await;
}

/// Of all handlers, one for each time that it happened.
pub(super) async fn effects(pool: &PgPool) -> Vec<Bytes> {
    let effects = sqlx::query_scalar("SELECT record FROM effect ORDER BY record");
    effects.fetch_all(pool).await.unwrap()
}

impl InTransactions {
    async fn complete_with_effect(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Fence, StoreError> {
        let mut transaction = self.store.begin().await?;
        if self.is_fenced {
            let fence = self.store.fence(&mut transaction, hold).await?;
            if fence != Fence::Held {
                return Ok(fence);
            }
        }
        let effect = sqlx::query("INSERT INTO effect VALUES ($1)").bind(record.as_bytes().to_vec());
        let effect = effect.execute(&mut *transaction).await;
        effect.map_err(|error| StoreError::new(StoreErrorKind::NotApplied, error))?;
        let written = self
            .store
            .complete_in(&mut transaction, hold, record, retention);
        let written = written.await?;
        if written == Fence::Held {
            PostgresStore::commit(transaction).await?;
            Known::note(&self.known.committed, record);
        }
        Ok(written)
    }
}

impl KeyStore for InTransactions {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        self.store.claim(request).await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        self.store.extend(hold, lease, retention).await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        match self.complete_with_effect(hold, record, retention).await? {
            Fence::Held => Ok(Completion::Stored),
            Fence::NoTransaction => panic!("it was begun"),
            // It may be a repetition, or what the store has lost: no transaction tells.
            Fence::Lost | Fence::Unknown => {
                Known::note(&self.known.without_effect, record);
                self.store.complete(hold, record, retention).await
            }
        }
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
        self.store.lookup(id).await
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
        Known::note(&self.known.without_effect, record);
        self.store.resolve(id, record, retention).await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        self.store.purge_expired(at_most).await
    }
}
