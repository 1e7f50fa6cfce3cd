//! On the way to the key: the claim, asked again where its answer was lost, and the wait.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::decide::{self, Step};
use super::in_flight::Counted;
use super::lease::{self, Lease};
use super::operation::Progress;
use super::poll::{self, in_time};
use super::trace::{self, Span};
use crate::policy::behaviour::ConflictPolicy;
use crate::policy::config::Config;
use crate::policy::rejection::RejectionKind;
use crate::store::{
    ClaimRequest, Claimed, Hold, KeyStore, Phase, Record, RecordId, StoreError, StoreErrorKind,
};

/// Between two questions to the store, where nothing tells when to ask.
const SHORTEST_WAIT: Duration = Duration::from_millis(25);
const AFTER_A_FAILURE: Duration = Duration::from_secs(1);

/// One who wants the key.
pub(super) struct Claimant<K> {
    store: Arc<K>,
    config: Arc<Config>,
    progress: Arc<Progress>,
    counted: Counted,
    /// Then the service that was ready has been given up.
    waited: bool,
    /// Whether an answer to a claim was lost, so that the claim may still be applied.
    in_doubt: bool,
}

pub(super) enum Acquisition {
    /// `sent` is when the claim was sent.
    Run {
        hold: Hold,
        sent: Instant,
    },
    Replay(Record),
    Refuse(RejectionKind),
    RunUnprotected,
}

impl<K: KeyStore> Claimant<K> {
    pub(super) fn new(
        store: Arc<K>,
        config: Arc<Config>,
        progress: Arc<Progress>,
        counted: Counted,
    ) -> Self {
        Self {
            store,
            config,
            progress,
            counted,
            waited: false,
            in_doubt: false,
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) async fn acquire<S: Clone>(
        &mut self,
        claim: &ClaimRequest,
        service: &mut S,
    ) -> Acquisition {
        let wait = match self.config.on_conflict {
            ConflictPolicy::Reject => Duration::ZERO,
            ConflictPolicy::Wait { at_most } => at_most,
        };
        let began = Instant::now();
        loop {
            self.progress.set_may_hold(true);
            let (answer, sent) = self.claim(claim).await;
            let acquisition = match decide::step(answer, self.config.on_outage) {
                Step::Run(hold) => {
                    self.progress.live_for(self.config.lease, sent);
                    return Acquisition::Run { hold, sent };
                }
                Step::Replay(record) => Some(Acquisition::Replay(record)),
                Step::Refuse(kind) => {
                    if kind == RejectionKind::OutcomeUnknown {
                        trace::abandoned(&claim.id);
                    }
                    Some(Acquisition::Refuse(kind))
                }
                // What nobody will read and nothing keeps is not to be done, and neither is
                // what was seen to be under way.
                Step::RunUnprotected if self.waited || self.progress.is_client_gone() => {
                    Some(Acquisition::Refuse(RejectionKind::StoreUnavailable))
                }
                Step::RunUnprotected => Some(Acquisition::RunUnprotected),
                Step::Busy => None,
            };
            // A claim that comes late does nothing to a key that is completed.
            if self.in_doubt && !matches!(acquisition, Some(Acquisition::Replay(_))) {
                self.release_in_doubt(claim);
            }
            self.progress.set_may_hold(false);
            if let Some(acquisition) = acquisition {
                return acquisition;
            }
            // A claim that is being released must not be asked for again by its owner, and
            // nobody waits for a client that has left.
            let is_in_vain = self.in_doubt || self.progress.is_client_gone();
            if is_in_vain || began.elapsed() >= wait {
                return Acquisition::Refuse(RejectionKind::InProgress);
            }
            if self.waited {
                // Look-ups that lag behind the claims must not make it spin.
                sleep(SHORTEST_WAIT).await;
            } else {
                self.waited = true;
                // Whoever waits holds no permit of the inner service.
                *service = service.clone();
            }
            // Boxed, so that those who need not wait carry nothing of it.
            let left = wait.saturating_sub(began.elapsed());
            Box::pin(self.until_claimable(&claim.id, left)).await;
        }
    }

    /// The store's answer, and when it was asked for.
    async fn claim(&mut self, claim: &ClaimRequest) -> (Result<Claimed, StoreErrorKind>, Instant) {
        loop {
            let sent = Instant::now();
            let answer = in_time(self.config.store_timeout, self.store.claim(claim)).await;
            let error = match answer {
                Ok(claimed) => return (Ok(claimed), sent),
                Err(error) => error,
            };
            trace::store_failed(&claim.id, "claim", &error);
            match error.kind() {
                // A lost answer is asked for again: the same owner gets the same.
                StoreErrorKind::Ambiguous if !self.in_doubt => self.in_doubt = true,
                // The second claim was not applied; the first may still be.
                StoreErrorKind::NotApplied if self.in_doubt => {
                    return (Err(StoreErrorKind::Ambiguous), sent);
                }
                kind => return (Err(kind), sent),
            }
        }
    }

    fn release_in_doubt(&self, claim: &ClaimRequest) {
        Span::current().spawn(lease::release_in_doubt(
            Arc::clone(&self.store),
            Arc::clone(&self.config),
            claim.hold(1),
            self.counted.aftermath(),
        ));
    }

    /// Returns when the key may be free or done, and after `at_most` in any case. Reads
    /// only.
    async fn until_claimable(&self, id: &RecordId, at_most: Duration) {
        let began = Instant::now();
        loop {
            let left = at_most.saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            let mut changed = pin!(self.store.changed(id, left));
            // Polled before the record is looked up, so that no change falls in between.
            let at_once = poll::once(changed.as_mut()).await.is_ready();
            let look_again = match self.lookup(id).await {
                Ok(Some(Phase::Running { lease_left })) if !lease_left.is_zero() => lease_left,
                Ok(_) => return,
                // What it would have told may have been announced before.
                Err(_) => AFTER_A_FAILURE,
            };
            if at_once {
                sleep(SHORTEST_WAIT.min(left)).await;
            } else {
                let _ = timeout(look_again.min(left), changed).await;
            }
        }
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Phase>, StoreError> {
        let snapshot = in_time(self.config.store_timeout, self.store.lookup(id)).await;
        snapshot
            .map(|snapshot| snapshot.map(|snapshot| snapshot.phase))
            .inspect_err(|error| trace::store_failed(id, "lookup", error))
    }

    /// The lease of an acquired claim, and whether the service is to be made ready again.
    pub(super) fn into_lease(self, hold: Hold, acquired: Instant) -> (Lease<K>, bool) {
        let Self {
            store,
            config,
            progress,
            counted,
            waited,
            in_doubt,
        } = self;
        if in_doubt {
            progress.set_claim_in_doubt();
        }
        (
            Lease {
                store,
                config,
                hold,
                progress,
                acquired,
                counted,
            },
            waited,
        )
    }
}
