use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::proof::Entry;
use crate::model::digest::Framed;
use crate::model::key::IdempotencyKey;
use crate::policy::config::Config;
use crate::store::{Hold, RecordId};

/// The run of a keyed request: found in the request's extensions by everything inside of
/// the layer.
///
/// ```
/// use axum::Extension;
/// use tower_idempotency::Operation;
///
/// async fn pay(Extension(operation): Extension<Operation>) -> String {
///     // The gateway sees one key over all attempts, and charges once.
///     format!("Idempotency-Key: {}", operation.child_key("charge"))
/// }
/// # let _ = axum::Router::<()>::new().route("/", axum::routing::post(pay));
/// ```
///
/// A request without a key has none: take `Option<Extension<Operation>>` where the key is
/// optional, or where
/// [`OutagePolicy::RunUnprotected`](crate::OutagePolicy::RunUnprotected) may leave it out.
///
/// A handler that writes to the database of a
/// [`TransactionalStore`](crate::store::TransactionalStore) commits its effect together
/// with its answer: [`begin`](Self::begin) and [`finish`](Self::finish).
#[derive(Clone)]
pub struct Operation {
    key: IdempotencyKey,
    pub(crate) hold: Hold,
    pub(crate) progress: Arc<Progress>,
    pub(crate) config: Arc<Config>,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("key", &self.key)
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}

impl Operation {
    pub(super) fn new(
        key: IdempotencyKey,
        hold: &Hold,
        progress: &Arc<Progress>,
        config: &Arc<Config>,
    ) -> Self {
        Self {
            key,
            hold: hold.clone(),
            progress: Arc::clone(progress),
            config: Arc::clone(config),
        }
    }

    /// The key that the caller sent.
    pub const fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    /// What the store knows the record by.
    pub const fn id(&self) -> &RecordId {
        &self.hold.id
    }

    /// The number of this run, from 1. It rises with every run of the key within
    /// retention, so a resource that keeps the highest it has seen can turn away a run
    /// that was taken over: a fencing number.
    pub const fn attempt(&self) -> u64 {
        self.hold.attempt
    }

    /// Whether an earlier run of the same request failed, or lost its lease.
    pub const fn is_retry(&self) -> bool {
        self.hold.attempt > 1
    }

    /// Whether this run is under way and still holds its key, as far as this process
    /// knows: its lease was renewed in time, or its [transaction](Self::begin) is open, and
    /// nobody is known to have taken over.
    ///
    /// Ask before an effect that cannot be fenced. It can turn false right after, so it
    /// narrows the window and does not close it.
    pub fn is_live(&self) -> bool {
        self.progress.is_live()
    }

    /// A key for a downstream API: 32 hexadecimal digits, equal over all attempts of this
    /// request, and different for every label, key, caller and request.
    pub fn child_key(&self, label: &str) -> String {
        let digest = Framed::new()
            .part(b"child key")
            .part(self.hold.id.as_bytes())
            .part(self.hold.fingerprint.as_bytes())
            .part(label.as_bytes())
            .finish_short();
        digest
            .iter()
            .fold(String::with_capacity(32), |mut hex, byte| {
                // Writing to a string cannot fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            })
    }
}

/// What the parts of one exchange know of each other: the future that a server polls,
/// the run inside it, and the operation that the handler was given.
#[derive(Debug)]
pub(crate) struct Progress {
    may_hold: AtomicBool,
    client_gone: AtomicBool,
    /// An answer to a claim was lost, and that claim may still be applied: over a record
    /// it does nothing, but over a key that was let go it would hold it again.
    claim_in_doubt: AtomicBool,
    started: Instant,
    /// Nanoseconds after `started`: zero while nothing is held yet, `OVER` for good.
    live_until: AtomicU64,
    /// Whether a transaction of the handler's is open that locks the record.
    fenced: AtomicBool,
    /// Whether the handler has locked it in a transaction of its own, of which no end is seen.
    locked: AtomicBool,
    unfenced: Notify,
    entry: Mutex<Option<Entry>>,
}

const OVER: u64 = u64::MAX;

impl Progress {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            may_hold: AtomicBool::new(false),
            client_gone: AtomicBool::new(false),
            claim_in_doubt: AtomicBool::new(false),
            started: Instant::now(),
            live_until: AtomicU64::new(0),
            fenced: AtomicBool::new(false),
            locked: AtomicBool::new(false),
            unfenced: Notify::new(),
            entry: Mutex::new(None),
        })
    }

    /// Whether the store may hold a claim for this exchange, so that it must go on
    /// without its client.
    pub(crate) fn may_hold(&self) -> bool {
        self.may_hold.load(Ordering::Acquire)
    }

    pub(super) fn set_may_hold(&self, may_hold: bool) {
        self.may_hold.store(may_hold, Ordering::Release);
    }

    pub(crate) fn client_is_gone(&self) {
        self.client_gone.store(true, Ordering::Release);
    }

    pub(super) fn is_client_gone(&self) -> bool {
        self.client_gone.load(Ordering::Acquire)
    }

    pub(super) fn set_claim_in_doubt(&self) {
        self.claim_in_doubt.store(true, Ordering::Release);
    }

    pub(super) fn is_claim_in_doubt(&self) -> bool {
        self.claim_in_doubt.load(Ordering::Acquire)
    }

    /// `sent` is when the claim or renewal was sent, before the store started counting:
    /// this side gives up first. A run that is over stays so.
    pub(super) fn live_for(&self, lease: Duration, sent: Instant) {
        let until = sent
            .saturating_duration_since(self.started)
            .saturating_add(lease);
        let until = u64::try_from(until.as_nanos()).map_or(OVER - 1, |until| until.min(OVER - 1));
        let update = |now| (now != OVER).then_some(until);
        let _ = self
            .live_until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }

    pub(super) fn is_over(&self) {
        self.live_until.store(OVER, Ordering::Release);
    }

    /// What is left of the lease, as far as this side knows.
    pub(super) fn live_left(&self) -> Duration {
        match self.live_until.load(Ordering::Acquire) {
            OVER => Duration::ZERO,
            until => Duration::from_nanos(until).saturating_sub(self.started.elapsed()),
        }
    }

    fn is_live(&self) -> bool {
        let is_over = self.live_until.load(Ordering::Acquire) == OVER;
        !is_over && (self.is_fenced() || !self.live_left().is_zero())
    }

    /// False if there is such a transaction already.
    pub(crate) fn fence(&self) -> bool {
        !self.fenced.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn unfence(&self) {
        self.fenced.store(false, Ordering::Release);
        self.unfenced.notify_one();
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    pub(crate) fn lock(&self) {
        self.locked.store(true, Ordering::Release);
    }

    /// Whether the record may be locked by the handler.
    pub(super) fn is_locked(&self) -> bool {
        self.is_fenced() || self.locked.load(Ordering::Acquire)
    }

    pub(super) async fn until_unfenced(&self) {
        while self.is_fenced() {
            self.unfenced.notified().await;
        }
    }

    pub(crate) fn set_entry(&self, entry: Option<Entry>) {
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner) = entry;
    }

    pub(crate) fn entry(&self) -> Option<Entry> {
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the handler has put its answer on record, or may have.
    pub(super) fn is_entered(&self) -> bool {
        !matches!(self.entry(), None | Some(Entry::Begun))
    }
}
