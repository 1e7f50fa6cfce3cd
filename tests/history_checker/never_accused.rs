//! A store that keeps the contract is not accused, however its calls overlap, and whatever
//! becomes of them and of their answers.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, MemoryStore, Ownership, Record,
    RecordId, Snapshot, StoreError, StoreErrorKind,
};

use super::support::history::{Answer, check};
use super::support::torture::{Plan, Random, counts, torture};

#[tokio::test(start_paused = true)]
async fn a_store_that_is_right_passes_though_answers_are_late_or_lost() {
    let plan = Plan::new();
    let far = Far {
        store: MemoryStore::new(),
        random: Arc::new(Mutex::new(Random(!plan.seed))),
    };
    let events = torture(far.clone(), far, &plan).await;
    check(&events);
    counts(&events);
    let lost = |event| matches!(event, Answer::Error(StoreErrorKind::Ambiguous));
    let lost = events
        .into_iter()
        .filter(|event| lost(event.answer.clone()));
    assert!(lost.count() > 100);
}

/// A store that is reached over a slow and faulty network.
#[derive(Clone)]
struct Far {
    store: MemoryStore,
    random: Arc<Mutex<Random>>,
}

impl Far {
    async fn call<T, F>(
        &self,
        call: impl FnOnce(MemoryStore) -> F + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let store = self.store.clone();
        let (there, back, late, luck) = {
            let mut random = self.random.lock().unwrap();
            let mut millis = |below| Duration::from_millis(random.below(below));
            (millis(4), millis(4), millis(300), random.below(100))
        };
        sleep(there).await;
        if luck == 0 {
            return Err(StoreErrorKind::NotApplied.into());
        }
        if luck == 1 {
            tokio::spawn(async move {
                sleep(late).await;
                let _ = call(store).await;
            });
            return Err(StoreErrorKind::Ambiguous.into());
        }
        let answer = call(store).await;
        sleep(back).await;
        if luck == 2 {
            return Err(StoreErrorKind::Ambiguous.into());
        }
        answer
    }
}

impl KeyStore for Far {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let request = request.clone();
        self.call(async move |store: MemoryStore| store.claim(&request).await)
            .await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.call(async move |store: MemoryStore| store.extend(&hold, lease, retention).await)
            .await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        let (hold, record) = (hold.clone(), record.clone());
        self.call(async move |store: MemoryStore| store.complete(&hold, &record, retention).await)
            .await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.call(async move |store: MemoryStore| store.fail(&hold, seal, retention).await)
            .await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.call(async move |store: MemoryStore| store.release(&hold).await)
            .await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        let id = *id;
        self.call(async move |store: MemoryStore| store.lookup(&id).await)
            .await
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let id = *id;
        self.call(async move |store: MemoryStore| store.forget(&id).await)
            .await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let (id, record) = (*id, record.clone());
        self.call(async move |store: MemoryStore| store.resolve(&id, &record, retention).await)
            .await
    }
}
