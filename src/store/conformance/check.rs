//! What the clauses are written in: calls that may not fail, and expectations that say
//! what came instead.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::time::Duration;

use http::Response;
use tokio::time::{sleep, timeout};

use super::sighting::{Left, Shape, Sighting, Span, timed};
use crate::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Forgot, Hold, KeyStore, Lapse, Owner,
    Ownership, Record, RecordId, ScopeId, Snapshot, StoreError,
};

/// A lease or a retention that a clause waits for to end. Nothing is ever asserted to be
/// still alive within it: a slow machine may take longer between two calls.
pub(super) const SHORT: Duration = Duration::from_millis(50);
/// A lease that does not end while a clause runs.
pub(super) const LONG: Duration = Duration::from_secs(60);
/// A retention that does not end while a clause runs.
pub(super) const KEPT: Duration = Duration::from_secs(600);
/// Another one, to be told apart from `KEPT` by what a lookup says is left.
pub(super) const KEPT_LONGER: Duration = Duration::from_secs(3600);

/// Longer than a lease of `SHORT` and a retention of `SHORT` after it, with a margin for
/// an engine that keeps time coarsely.
const PAST_SHORT: Duration = Duration::from_millis(250);
/// A call that takes longer hangs.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// Waits until every lease and retention of [`SHORT`] that was given so far is over.
pub(super) async fn short_is_over() {
    sleep(PAST_SHORT).await;
}

fn owner() -> Owner {
    Owner::random().unwrap_or_else(|error| panic!("no randomness for a new owner: {error:?}"))
}

/// Fresh for every record, so that a store may be shared and need not be empty.
fn digest() -> [u8; 32] {
    let mut bytes = [0; 32];
    for half in bytes.chunks_exact_mut(16) {
        half.copy_from_slice(owner().as_bytes());
    }
    bytes
}

/// A claim of a key that nobody has used. Nothing about it ends while a clause runs.
pub(super) fn request() -> ClaimRequest {
    ClaimRequest {
        id: RecordId::from_bytes(digest()),
        scope: ScopeId::from_bytes(*owner().as_bytes()),
        fingerprint: Fingerprint::from_bytes(digest()),
        owner: owner(),
        lease: LONG,
        retention: KEPT,
        lapse: Lapse::TakeOver,
    }
}

/// The same request once more, as a retry sends it.
pub(super) fn retry_of(request: &ClaimRequest) -> ClaimRequest {
    ClaimRequest {
        owner: owner(),
        lease: LONG,
        retention: KEPT,
        ..request.clone()
    }
}

/// Another request under the same key.
pub(super) fn misuse_of(request: &ClaimRequest) -> ClaimRequest {
    ClaimRequest {
        fingerprint: Fingerprint::from_bytes(digest()),
        ..retry_of(request)
    }
}

/// An answer that no other run has given.
pub(super) fn fresh_record() -> Record {
    Record::new(&Response::new(digest()))
}

/// What a claim is answered, without the time that a lease has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    Acquired(u64),
    InProgress(u64),
    Completed(u64, &'a Record),
    Mismatch,
    Abandoned(u64),
}

impl<'a> From<&'a Claimed> for Answer<'a> {
    fn from(claimed: &'a Claimed) -> Self {
        match claimed {
            Claimed::Acquired(hold) => Self::Acquired(hold.attempt),
            Claimed::InProgress { attempt, .. } => Self::InProgress(*attempt),
            Claimed::Completed { attempt, record } => Self::Completed(*attempt, record),
            Claimed::Mismatch => Self::Mismatch,
            Claimed::Abandoned { attempt } => Self::Abandoned(*attempt),
        }
    }
}

/// One clause at work on one store.
pub(super) struct Check<'a, K> {
    clause: &'static str,
    store: &'a K,
}

impl<'a, K: KeyStore> Check<'a, K> {
    pub(super) const fn new(clause: &'static str, store: &'a K) -> Self {
        Self { clause, store }
    }

    pub(super) const fn store(&self) -> &'a K {
        self.store
    }

    /// The clause is broken.
    pub(super) fn broken(&self, how: impl Display) -> ! {
        panic!("{}: {how}", self.clause)
    }

    /// `what` must hold.
    pub(super) fn holds(&self, what: impl Display, does: bool) {
        if !does {
            self.broken(what);
        }
    }

    /// `what` must have answered that.
    pub(super) fn answers<T>(&self, what: impl Display, came: T, expected: T)
    where
        T: Copy + PartialEq + Debug,
    {
        if came != expected {
            self.broken(format_args!(
                "{what} must answer {expected:?}, but answered {came:?}"
            ));
        }
    }

    /// Claims, and panics unless the answer is that one.
    pub(super) async fn claims(
        &self,
        what: impl Display,
        request: &ClaimRequest,
        expected: Answer<'_>,
    ) {
        let came = self.claim(request).await;
        self.is_answered(what, request, &came, expected);
    }

    /// A claim must have been answered that.
    pub(super) fn is_answered(
        &self,
        what: impl Display,
        request: &ClaimRequest,
        came: &Claimed,
        expected: Answer<'_>,
    ) {
        self.answers(&what, Answer::from(came), expected);
        if let Claimed::Acquired(hold) = came {
            let own = request.hold(hold.attempt);
            self.answers(format_args!("what {what} acquires"), hold, &own);
        }
    }

    /// Claims a key that must be free, as that attempt.
    pub(super) async fn acquires(
        &self,
        what: impl Display,
        request: &ClaimRequest,
        attempt: u64,
    ) -> Hold {
        self.claims(what, request, Answer::Acquired(attempt)).await;
        request.hold(attempt)
    }

    /// Looks the record of a request up.
    pub(super) async fn see(&self, request: &ClaimRequest) -> Sighting {
        let (snapshot, at) = timed(self.lookup(&request.id)).await;
        Sighting::new(snapshot, at)
    }

    /// After `what`, the record of a request must have that shape and its fingerprint.
    pub(super) async fn shows(
        &self,
        what: impl Display,
        request: &ClaimRequest,
        expected: Shape,
    ) -> Sighting {
        let seen = self.see(request).await;
        if seen.shape != expected {
            self.broken(format_args!(
                "after {what}, lookup must show {expected:?}, but showed {seen}"
            ));
        }
        let own = |fingerprint| fingerprint == request.fingerprint;
        self.holds(
            format_args!("after {what}, lookup must show the fingerprint of its request"),
            seen.fingerprint.is_none_or(own),
        );
        seen
    }

    /// `what` must not have changed a record that was seen before.
    pub(super) async fn unchanged(
        &self,
        what: impl Display,
        request: &ClaimRequest,
        before: &Sighting,
    ) {
        let after = self.see(request).await;
        if !before.becomes(&after) {
            self.broken(format_args!(
                "{what} must not change the record, but lookup showed {before} before and \
                 {after} after"
            ));
        }
    }

    /// Of a duration that was given in one call, that much must be left in a later one.
    pub(super) fn leaves(&self, what: impl Display, (whole, at): (Duration, Span), left: Left) {
        let given = Left { left: whole, at };
        self.holds(
            format_args!(
                "{what} must be {whole:?} less the {:?} that have passed, but was {:?}",
                given.passed(left),
                left.left
            ),
            given.becomes(left),
        );
    }

    async fn call<T>(&self, method: &str, call: impl Future<Output = Result<T, StoreError>>) -> T {
        match timeout(ANSWERS_WITHIN, call).await {
            Ok(Ok(answer)) => answer,
            // `Debug` shows the source, in which the engine says what is wrong.
            Ok(Err(error)) => self.broken(format_args!(
                "`{method}` must answer, but failed: {error:?}"
            )),
            Err(_) => self.broken(format_args!(
                "`{method}` must answer, but had not after {ANSWERS_WITHIN:?}"
            )),
        }
    }

    pub(super) async fn claim(&self, request: &ClaimRequest) -> Claimed {
        self.call("claim", self.store.claim(request)).await
    }

    pub(super) async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Ownership {
        self.call("extend", self.store.extend(hold, lease, retention))
            .await
    }

    pub(super) async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Completion {
        self.call("complete", self.store.complete(hold, record, retention))
            .await
    }

    pub(super) async fn fail(&self, hold: &Hold, seal: bool, retention: Duration) -> Ownership {
        self.call("fail", self.store.fail(hold, seal, retention))
            .await
    }

    pub(super) async fn release(&self, hold: &Hold) -> Ownership {
        self.call("release", self.store.release(hold)).await
    }

    async fn lookup(&self, id: &RecordId) -> Option<Snapshot> {
        self.call("lookup", self.store.lookup(id)).await
    }

    pub(super) async fn forget(&self, id: &RecordId) -> Forgot {
        self.call("forget", self.store.forget(id)).await
    }

    pub(super) async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> bool {
        self.call("resolve", self.store.resolve(id, record, retention))
            .await
    }

    pub(super) async fn purge_expired(&self, at_most: usize) -> usize {
        self.call("purge_expired", self.store.purge_expired(at_most))
            .await
    }
}
