//! Where claims and records live: the contract, and the stores that keep it.
//!
//! | Store | Feature | Shared by | Survives |
//! |---|---|---|---|
//! | [`MemoryStore`] | `memory` | the tasks of one process | nothing: it is gone with the process |
//! | `SqliteStore` | `sqlite` | the processes of one machine, on one file | the end of any process, and the loss of power |
//! | `PostgresStore` | `postgres` | all nodes that reach the server | the end of any node and of the server, and the loss of power |
//! | `RedisStore` | `redis` | all nodes that reach the server | the end of any node; what the server itself survives |
//!
//! On `SqliteStore` and `PostgresStore`, which are [`TransactionalStore`]s, a handler commits
//! its own rows together with its recorded answer: [`Operation::begin`](crate::Operation::begin).
//!
//! A store of your own is one `impl` of [`KeyStore`]; the feature `conformance` brings
//! `conformance`, a test suite with one function per clause of the contract.
//! [`AnyStore`] erases the type, for a store that is chosen at run time.

mod any;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
mod check;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub mod postgres;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub mod sqlite;
mod transaction;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use self::any::AnyStore;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
#[cfg_attr(
    docsrs,
    doc(cfg(any(feature = "postgres", feature = "redis", feature = "sqlite")))
)]
pub use self::check::CheckError;
#[cfg(feature = "memory")]
#[cfg_attr(docsrs, doc(cfg(feature = "memory")))]
pub use self::memory::MemoryStore;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use self::postgres::PostgresStore;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::RedisStore;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use self::sql::{InvalidName, PurgeTask};
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use self::sqlite::SqliteStore;
pub use self::transaction::{Fence, TransactionalStore};
pub use crate::model::claim::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, Lapse, Owner, Ownership, Phase, Snapshot,
};
pub use crate::model::error::{StoreError, StoreErrorKind};
pub use crate::model::fingerprint::Fingerprint;
pub use crate::model::record::Record;
pub use crate::model::scope::{RecordId, ScopeId};

/// Keeps claims and records. A store knows nothing of HTTP statuses, of verdicts or of
/// waiting: it says who may run, keeps what was answered, and refuses the rest.
///
/// # The contract
///
/// 1. [`claim`](Self::claim) is one atomic step, with no read before a write that another
///    claim could slip between.
/// 2. A key is free to claim when there is no record; when it has expired; when its run
///    failed, is not sealed, and had the same fingerprint; or when its run is under way
///    with the same fingerprint and either the same owner asks, or the lease is over and
///    the claim was stored with [`Lapse::TakeOver`]. In no other case.
/// 3. A different fingerprint is [`Mismatch`](Claimed::Mismatch) until retention ends: over
///    a running, failed, sealed, lapsed or completed record.
/// 4. The same owner again gets `Acquired` with the same attempt, and the lease is renewed.
///    A take-over, and a claim after a failure, count one attempt up.
/// 5. Over a sealed key, and over a lease that ended under [`Lapse::Seal`], every other
///    owner gets [`Abandoned`](Claimed::Abandoned); the owner of the ended lease may still
///    complete.
/// 6. [`extend`](Self::extend), [`complete`](Self::complete), [`fail`](Self::fail) and
///    [`release`](Self::release) act for the current owner of a running record alone, also
///    past its lease as long as nobody has taken over. Anybody else changes nothing and is
///    told so. Owners are compared, not attempts: a hold may be the one of a claim whose
///    answer was lost.
/// 7. `complete` repeated by its owner is [`Stored`](Completion::Stored): the first record
///    and its end stand, and bytes are not compared. A record that the store has lost is
///    written again: [`Restored`](Completion::Restored).
/// 8. A completed record comes back byte for byte until retention ends, and nothing but
///    [`forget`](Self::forget) changes it.
/// 9. Retention counts from completion or failure; a running record lives until its lease
///    plus retention. It has expired when `now >= end`. Expired is the same as absent for
///    every method, and attempts start at 1 again.
/// 10. The store's clock alone compares. Callers pass durations.
/// 11. Dropping a method's future leaves the state before or the state after the call.
/// 12. `fail` ends the lease and keeps fingerprint and attempt. `release` at attempt 1 frees
///     the key and forgets the fingerprint; at a later attempt it is `fail` without seal,
///     since an earlier attempt may have been applied.
/// 13. An expired record is claimable at once, without waiting for a purge.
///     [`purge_expired`](Self::purge_expired) removes dead records alone, in bounded
///     batches, on all nodes at once. `forget` refuses a live run. [`resolve`](Self::resolve)
///     acts on a sealed key alone, which one whose lease ended under [`Lapse::Seal`] is too.
/// 14. Errors say what is known: [`StoreErrorKind`]. The engine's own error is kept as the
///     source. A store on a server sets its server-side time-out below the layer's
///     [`store_timeout`](crate::IdempotencyLayer::store_timeout), so that a call which was
///     given up does not linger.
///
/// # Errors
///
/// Every method gives a [`StoreError`] whose [kind](StoreErrorKind) says what is known.
///
/// `examples/custom_store.rs` is a whole store that passes the suite.
#[diagnostic::on_unimplemented(
    note = "see `tower_idempotency::store` for the stores there are; `AnyStore` erases a type"
)]
pub trait KeyStore: Send + Sync + 'static {
    /// Asks for the right to run a request.
    fn claim(
        &self,
        request: &ClaimRequest,
    ) -> impl Future<Output = Result<Claimed, StoreError>> + Send;

    /// Renews the lease: it ends `lease` from now. The record ends `retention` after that,
    /// and never earlier than it would have without the call.
    fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> impl Future<Output = Result<Ownership, StoreError>> + Send;

    /// Keeps the final answer, for `retention` from now.
    fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> impl Future<Output = Result<Completion, StoreError>> + Send;

    /// Ends a run without an answer. The same request may run again, or nobody may if
    /// `seal` is set; another request stays a mismatch, for `retention` from now.
    fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> impl Future<Output = Result<Ownership, StoreError>> + Send;

    /// Gives the key back as if nothing had been asked: nothing was done under it.
    fn release(&self, hold: &Hold) -> impl Future<Output = Result<Ownership, StoreError>> + Send;

    /// The record as it stands. Reads only.
    fn lookup(
        &self,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<Snapshot>, StoreError>> + Send;

    /// Removes a record that is not a live run. For operators.
    fn forget(&self, id: &RecordId) -> impl Future<Output = Result<Forgot, StoreError>> + Send;

    /// Gives a sealed key its answer; `false` where the key is not sealed. For operators
    /// who have found out what became of the run.
    fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes at most that many expired records, and says how many. The layer never calls
    /// it: call it from time to time where the engine does not expire records itself. The
    /// provided body takes for granted that it does; a store that wraps another has to pass
    /// the call on.
    fn purge_expired(
        &self,
        at_most: usize,
    ) -> impl Future<Output = Result<usize, StoreError>> + Send {
        let _ = at_most;
        std::future::ready(Ok(0))
    }

    /// Returns when the record may have changed, and after `at_most` in any case.
    ///
    /// From its first poll on it must not miss a change: a waiter polls it once, looks the
    /// record up, and only then sleeps on it. Returning early is harmless. A store that
    /// wraps another has to pass the call on. The provided body sleeps 25 ms to 250 ms, more
    /// the longer the wait, at random so that waiters do not come in step.
    fn changed(&self, id: &RecordId, at_most: Duration) -> impl Future<Output = ()> + Send {
        let _ = id;
        tokio::time::sleep(jittered(at_most))
    }
}

/// A tenth of what is left to wait, between 50 ms and 250 ms, at random shorter.
fn jittered(at_most: Duration) -> Duration {
    let longest = (at_most / 10).clamp(Duration::from_millis(50), Duration::from_millis(250));
    at_random_shorter(longest).min(at_most)
}

/// Up to a half is taken off, so that those who wait do not come in step.
fn at_random_shorter(longest: Duration) -> Duration {
    let mut random = [0];
    // Without randomness they do, which is slower and not wrong.
    let _ = getrandom::fill(&mut random);
    longest - longest * u32::from(random[0]) / 512
}

impl<K: KeyStore> KeyStore for Arc<K> {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        K::claim(self, request).await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        K::extend(self, hold, lease, retention).await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        K::complete(self, hold, record, retention).await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        K::fail(self, hold, seal, retention).await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        K::release(self, hold).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        K::lookup(self, id).await
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        K::forget(self, id).await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        K::resolve(self, id, record, retention).await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        K::purge_expired(self, at_most).await
    }

    async fn changed(&self, id: &RecordId, at_most: Duration) {
        K::changed(self, id, at_most).await;
    }
}
