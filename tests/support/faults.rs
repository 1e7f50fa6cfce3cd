//! A store that fails on demand.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, Ownership, Record, RecordId,
    Snapshot, StoreError, StoreErrorKind,
};

/// A method of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Claim,
    Extend,
    Complete,
    Fail,
    Release,
    Lookup,
    Forget,
    Resolve,
    Purge,
    Changed,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// An error of this kind, and nothing is applied.
    Refused(StoreErrorKind),
    /// The call is applied, and its answer lost: `Ambiguous`.
    ReplyLost,
    /// Never answers, and nothing is applied.
    Hangs,
    /// The call is applied, and never answers.
    AppliedThenHangs,
    /// Applied after this time even if the caller is gone, and never answers.
    AppliedLate(Duration),
    /// Answers after this time.
    Slow(Duration),
    /// Yields this many times before it is applied, and once after.
    Suspends(usize),
    /// Panics before anything is applied.
    Panics,
}

/// Wraps a store. Cheap to clone: keep one clone to plan faults and to count calls.
#[derive(Clone)]
pub struct FaultStore<K>(Arc<Inner<K>>);

struct Inner<K> {
    store: K,
    once: Mutex<HashMap<Call, VecDeque<Fault>>>,
    always: Mutex<HashMap<Call, Fault>>,
    counts: Mutex<HashMap<Call, usize>>,
}

impl<K: KeyStore + Clone> FaultStore<K> {
    pub fn new(store: K) -> Self {
        Self(Arc::new(Inner {
            store,
            once: Mutex::default(),
            always: Mutex::default(),
            counts: Mutex::default(),
        }))
    }

    /// The next call without a planned fault meets this one; several queue up.
    pub fn once(&self, call: Call, fault: Fault) {
        self.0
            .once
            .lock()
            .unwrap()
            .entry(call)
            .or_default()
            .push_back(fault);
    }

    /// Every call meets this fault, until `heal`.
    pub fn always(&self, call: Call, fault: Fault) {
        self.0.always.lock().unwrap().insert(call, fault);
    }

    pub fn heal(&self, call: Call) {
        self.0.always.lock().unwrap().remove(&call);
        self.0.once.lock().unwrap().remove(&call);
    }

    /// How often a method was called.
    pub fn count(&self, call: Call) -> usize {
        self.0
            .counts
            .lock()
            .unwrap()
            .get(&call)
            .copied()
            .unwrap_or(0)
    }

    /// The store behind, without faults.
    pub fn inner(&self) -> &K {
        &self.0.store
    }

    fn next(&self, call: Call) -> Option<Fault> {
        *self.0.counts.lock().unwrap().entry(call).or_default() += 1;
        let planned = self
            .0
            .once
            .lock()
            .unwrap()
            .get_mut(&call)
            .and_then(VecDeque::pop_front);
        planned.or_else(|| self.0.always.lock().unwrap().get(&call).copied())
    }

    async fn with<T, F>(
        &self,
        call: Call,
        apply: impl FnOnce(K) -> F + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let store = self.0.store.clone();
        match self.next(call) {
            None => apply(store).await,
            Some(Fault::Refused(kind)) => Err(StoreError::new(kind, "planned")),
            Some(Fault::ReplyLost) => {
                let _ = apply(store).await;
                Err(StoreError::new(StoreErrorKind::Ambiguous, "reply lost"))
            }
            Some(Fault::Hangs) => pending().await,
            Some(Fault::AppliedThenHangs) => {
                let _ = apply(store).await;
                pending().await
            }
            Some(Fault::AppliedLate(after)) => {
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    let _ = apply(store).await;
                });
                pending().await
            }
            Some(Fault::Slow(by)) => {
                tokio::time::sleep(by).await;
                apply(store).await
            }
            Some(Fault::Suspends(times)) => {
                for _ in 0..times {
                    yield_once().await;
                }
                let answer = apply(store).await;
                yield_once().await;
                answer
            }
            Some(Fault::Panics) => panic!("planned"),
        }
    }
}

/// Pending once, and woken at once: whoever polls step by step sees every step.
pub async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return std::task::Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

impl<K: KeyStore + Clone> KeyStore for FaultStore<K> {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let request = request.clone();
        self.with(Call::Claim, async move |store: K| {
            store.claim(&request).await
        })
        .await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.with(Call::Extend, async move |store: K| {
            store.extend(&hold, lease, retention).await
        })
        .await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        let (hold, record) = (hold.clone(), record.clone());
        self.with(Call::Complete, async move |store: K| {
            store.complete(&hold, &record, retention).await
        })
        .await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.with(Call::Fail, async move |store: K| {
            store.fail(&hold, seal, retention).await
        })
        .await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.with(Call::Release, async move |store: K| {
            store.release(&hold).await
        })
        .await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        let id = *id;
        self.with(Call::Lookup, async move |store: K| store.lookup(&id).await)
            .await
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let id = *id;
        self.with(Call::Forget, async move |store: K| store.forget(&id).await)
            .await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let (id, record) = (*id, record.clone());
        self.with(Call::Resolve, async move |store: K| {
            store.resolve(&id, &record, retention).await
        })
        .await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        self.with(Call::Purge, async move |store: K| {
            store.purge_expired(at_most).await
        })
        .await
    }

    async fn changed(&self, id: &RecordId, at_most: Duration) {
        let _ = self.next(Call::Changed);
        self.0.store.changed(id, at_most).await;
    }
}
