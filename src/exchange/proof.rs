//! What became of a transaction that carries the answer's record: the record is the proof
//! of its commit.

use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep, timeout};

use super::lease::Lease;
use super::operation::Progress;
use super::poll::in_time;
use super::trace::{self, Span};
use crate::policy::config::Config;
use crate::store::{ClaimRequest, Claimed, Hold, KeyStore, Phase, Record};

/// How far the handler has come with putting its answer on record itself. Kept with the
/// operation: an extension of the answer might be dropped by a layer inside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Entry {
    /// A transaction was begun, and has not been finished.
    Begun,
    /// Written in a transaction that the handler commits.
    Written(StatusCode),
    /// Written, and the commit was sent.
    Sent(StatusCode),
    Committed,
}

/// How a transaction ended.
#[derive(Debug)]
pub(crate) enum Proof {
    Committed(Record),
    /// The owner still holds the key, and nothing is on record.
    RolledBack,
    /// So too, and another owner has the key, or had it.
    Lost,
    /// The store does not answer, or the transaction is still open.
    Unknown,
}

/// Claims again as the same owner, until the transaction has ended or the time is over.
pub(crate) async fn prove<K: KeyStore>(
    store: &K,
    hold: &Hold,
    progress: &Progress,
    config: &Config,
    at_most: Duration,
) -> Proof {
    let mut claim = ClaimRequest::new(hold.id, hold.scope, hold.fingerprint, hold.owner);
    claim.lease = config.lease;
    claim.retention = config.retention;
    claim.lapse = hold.lapse;
    let asking = async {
        let mut pause = Duration::from_millis(10);
        loop {
            let sent = Instant::now();
            match in_time(config.store_timeout, store.claim(&claim)).await {
                Ok(Claimed::Completed { attempt, record }) if attempt == hold.attempt => {
                    return Proof::Committed(record);
                }
                // As another attempt: somebody else had it, and this is a claim of its own, to
                // be let go.
                Ok(Claimed::Acquired(again)) if again.attempt != hold.attempt => {
                    progress.set_claim_in_doubt();
                    let _ = in_time(config.store_timeout, store.release(&again)).await;
                    return Proof::Lost;
                }
                Ok(Claimed::Acquired(_)) => {
                    progress.live_for(config.lease, sent);
                    return Proof::RolledBack;
                }
                Ok(Claimed::InProgress { attempt, .. }) if attempt == hold.attempt => {}
                Ok(_) => return Proof::Lost,
                Err(error) => {
                    progress.set_claim_in_doubt();
                    trace::store_failed(&hold.id, "claim", &error);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    };
    timeout(at_most, asking).await.unwrap_or_else(|_| {
        progress.set_claim_in_doubt();
        Proof::Unknown
    })
}

impl<K: KeyStore> Lease<K> {
    /// What became of the answer's record, if that is not known yet.
    pub(super) async fn prove(&self, entry: Entry) -> Proof {
        // Most have committed: seen by reading alone.
        if matches!(entry, Entry::Written(_)) {
            let lookup = self.store.lookup(&self.hold.id);
            let snapshot = in_time(self.config.store_timeout, lookup).await;
            if let Ok(Some(snapshot)) = snapshot
                && let Phase::Completed(record) = snapshot.phase
                && snapshot.attempt == self.hold.attempt
            {
                return Proof::Committed(record);
            }
        }
        let (store, config) = (&*self.store, &*self.config);
        let at_most = config.store_timeout;
        prove(store, &self.hold, &self.progress, config, at_most).await
    }

    /// Goes on asking without the caller, so that a transaction which did not commit does
    /// not hold its key for a lease.
    pub(super) fn prove_later(&self) {
        let lease = self.aftermath();
        Span::current().spawn(async move {
            let (store, config) = (&*lease.store, &*lease.config);
            let at_most = lease.hold_left().max(config.lease);
            match prove(store, &lease.hold, &lease.progress, config, at_most).await {
                // A claim that was asked for again may come late.
                Proof::RolledBack => lease.keep_letting_go().await,
                Proof::Unknown => trace::gave_up(&lease.hold.id),
                Proof::Committed(_) | Proof::Lost => {}
            }
        });
    }
}
