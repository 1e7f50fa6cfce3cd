//! A claim in this process's hands: renewed while its run lives, concluded once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::decide::Conclusion;
use super::in_flight::Counted;
use super::operation::Progress;
use super::poll::{alongside, in_time};
use super::proof::Entry;
use super::trace::{self, Span};
use crate::policy::config::Config;
use crate::store::{Completion, Hold, KeyStore, Ownership, Record, StoreError, StoreErrorKind};

/// The right to run and to conclude, and everything needed to use it without the
/// request that got it.
pub(super) struct Lease<K> {
    pub(super) store: Arc<K>,
    pub(super) config: Arc<Config>,
    pub(super) hold: Hold,
    pub(super) progress: Arc<Progress>,
    pub(super) acquired: Instant,
    pub(super) counted: Counted,
}

impl<K> Lease<K> {
    /// The same, for what is left to do once the exchange is over.
    pub(super) fn aftermath(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            config: Arc::clone(&self.config),
            hold: self.hold.clone(),
            progress: Arc::clone(&self.progress),
            acquired: self.acquired,
            counted: self.counted.aftermath(),
        }
    }
}

/// What the store is to be told of a run: the record and its retention, if any.
pub(super) type Settlement = Conclusion<(Record, Duration)>;

/// A smaller settlement, where this one is refused for what it is.
fn reduced(settlement: &Settlement, refused_for: StoreErrorKind) -> Option<Settlement> {
    let passes = matches!(
        refused_for,
        StoreErrorKind::NotApplied | StoreErrorKind::Ambiguous
    );
    match settlement {
        Conclusion::Record((record, retention)) if !passes && !record.is_omitted() => {
            Some(Conclusion::Record((record.omitted(), *retention)))
        }
        _ => None,
    }
}

fn call_of(settlement: &Settlement) -> &'static str {
    match settlement {
        Conclusion::Record(_) => "complete",
        Conclusion::Release => "release",
        Conclusion::Fail { .. } => "fail",
    }
}

impl<K: KeyStore> Lease<K> {
    /// Renews the lease until another owner has it or `max_hold` is over.
    pub(super) async fn renew(&self) {
        let config = &self.config;
        let interval = config.lease / 3;
        let call_limit = config.store_timeout.min(interval);
        // Counted from when the claim was sent: its answer may have taken long.
        let spent = config.lease.saturating_sub(self.progress.live_left());
        let mut pause = interval.saturating_sub(spent);
        loop {
            let left = self.hold_left();
            if left.is_zero() {
                return;
            }
            sleep(pause.min(left)).await;
            // Its lock is the lease meanwhile. Only for so long: the server may have ended the
            // session, and the lock with it.
            let _ = timeout(interval, self.progress.until_unfenced()).await;
            let is_concluded = self.progress.entry() == Some(Entry::Committed);
            if is_concluded || self.hold_left().is_zero() {
                return;
            }
            let sent = Instant::now();
            let extend = self
                .store
                .extend(&self.hold, config.lease, config.retention);
            pause = match in_time(call_limit, extend).await {
                Ok(Ownership::Held) => {
                    self.progress.live_for(config.lease, sent);
                    interval
                }
                Ok(Ownership::Lost) => {
                    self.progress.is_over();
                    if !self.progress.is_entered() {
                        trace::lost(&self.hold.id);
                    }
                    return;
                }
                // Its own lock is in the way, and keeps the key.
                Err(_) if self.progress.is_locked() => interval / 4,
                Err(error) => {
                    trace::store_failed(&self.hold.id, "extend", &error);
                    interval / 4
                }
            };
        }
    }

    /// What is left of the time that this run may hold its key.
    pub(super) fn hold_left(&self) -> Duration {
        self.config.max_hold.saturating_sub(self.acquired.elapsed())
    }

    /// Tells the store how the run ended. True once it has acknowledged it; false if
    /// another owner has the key, or the store failed: then the work goes on without the
    /// caller, until it is done or `max_hold` is over.
    pub(super) async fn settle(&self, settlement: Settlement) -> bool {
        let limit = self.config.store_timeout;
        let answer = match in_time(limit, self.attempt_twice(&settlement)).await {
            Ok(acknowledged) => {
                if acknowledged && settlement == (Conclusion::Fail { seal: true }) {
                    trace::sealed(&self.hold.id);
                }
                if self.must_keep_letting_go(&settlement) {
                    Span::current().spawn(self.aftermath().keep_letting_go());
                }
                acknowledged
            }
            Err(_) => {
                Span::current().spawn(self.aftermath().settle_later(settlement));
                false
            }
        };
        self.is_over();
        answer
    }

    /// Nothing more is to be told to the store before the caller has its answer.
    pub(super) fn is_over(&self) {
        self.progress.is_over();
        self.progress.set_may_hold(false);
    }

    /// A lost answer is settled by asking again: every call is idempotent by owner.
    async fn attempt_twice(&self, settlement: &Settlement) -> Result<bool, StoreError> {
        let error = match self.attempt(settlement).await {
            Ok(acknowledged) => return Ok(acknowledged),
            Err(error) => error,
        };
        let acknowledged = self.attempt(settlement).await?;
        // A key that was let go by the first call is not this owner's at the second.
        let let_go = !matches!(settlement, Conclusion::Record(_));
        Ok(acknowledged || (let_go && error.kind() == StoreErrorKind::Ambiguous))
    }

    /// Tells the store; and less, where that much is refused for what it is.
    async fn attempt(&self, settlement: &Settlement) -> Result<bool, StoreError> {
        let error = match self.tell(settlement).await {
            Ok(acknowledged) => return Ok(acknowledged),
            Err(error) => error,
        };
        trace::store_failed(&self.hold.id, call_of(settlement), &error);
        match reduced(settlement, error.kind()) {
            Some(smaller) => self.tell(&smaller).await,
            None => Err(error),
        }
    }

    async fn tell(&self, settlement: &Settlement) -> Result<bool, StoreError> {
        let Self {
            store,
            hold,
            config,
            ..
        } = self;
        match settlement {
            Conclusion::Record((record, retention)) => {
                let completion = store.complete(hold, record, *retention).await?;
                Ok(completion != Completion::NotOwner)
            }
            Conclusion::Release => Ok(store.release(hold).await? == Ownership::Held),
            Conclusion::Fail { seal } => {
                Ok(store.fail(hold, *seal, config.retention).await? == Ownership::Held)
            }
        }
    }

    async fn settle_later(self, settlement: Settlement) {
        // The last lease outlasts the hold, and so may this.
        let limit = self.hold_left().max(self.config.lease);
        let retries = async {
            let mut pause = Duration::from_millis(50);
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
                let call_limit = self.config.store_timeout;
                if in_time(call_limit, self.attempt(&settlement)).await.is_ok() {
                    return;
                }
            }
        };
        let settled = timeout(limit, alongside(retries, || self.renew()))
            .await
            .is_ok();
        if !settled {
            trace::gave_up(&self.hold.id);
        }
        if settled && self.must_keep_letting_go(&settlement) {
            self.keep_letting_go().await;
        }
    }

    fn must_keep_letting_go(&self, settlement: &Settlement) -> bool {
        self.progress.is_claim_in_doubt() && !matches!(settlement, Conclusion::Record(_))
    }

    pub(super) async fn keep_letting_go(self) {
        release_in_doubt(self.store, self.config, self.hold, self.counted).await;
    }
}

/// A claim whose answer was lost may still be applied, and would then hold its key for
/// nobody. So it is released, by owner, for as long as its lease could run: more than one
/// such claim may be under way. Less and less often, since the store may be in trouble, and
/// once at the end.
pub(super) async fn release_in_doubt<K: KeyStore>(
    store: Arc<K>,
    config: Arc<Config>,
    hold: Hold,
    counted: Counted,
) {
    let began = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let left = config.lease.saturating_sub(began.elapsed());
        sleep(pause.min(left)).await;
        if let Err(error) = in_time(config.store_timeout, store.release(&hold)).await {
            trace::store_failed(&hold.id, "release", &error);
        }
        if left <= pause {
            break;
        }
        pause = (pause * 2).min(config.lease / 4);
    }
    drop(counted);
}
