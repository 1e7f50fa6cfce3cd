use std::time::Duration;

use super::rejection::RejectionKind;

/// What a failed run means for its key.
///
/// A run has failed when it answers 408 or 5xx, when the handler says
/// [`Verdict::Failed`](crate::Verdict::Failed), when it panics, when the inner service
/// gives an error, when its body breaks off, or when its process dies and the lease
/// ends. Whether the effect was applied is then not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FailurePolicy {
    /// The same request may run again, as the next
    /// [`attempt`](crate::Operation::attempt). Another request under that key stays a
    /// mismatch.
    ///
    /// **A handler that failed after its effect applies it again**, unless it hands
    /// [`child_key`](crate::Operation::child_key) on to where the effect happens.
    #[default]
    RunAgain,
    /// A 408 or 5xx that was returned is recorded and replayed. A run that gave no
    /// answer seals the key.
    Replay,
    /// The key is sealed: every retry gets 500 `outcome-unknown`, until an operator
    /// [resolves](crate::store::KeyStore::resolve) or
    /// [forgets](crate::store::KeyStore::forget) it, or retention ends. The only choice
    /// that excludes a second run.
    Refuse,
}

/// What happens to a request whose key is held by a run of the same request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ConflictPolicy {
    /// 409 `in-progress` with `Retry-After: 1`.
    #[default]
    Reject,
    /// It waits for the answer and gets the replay; after `at_most`, 409. If the run
    /// fails meanwhile, one of those who wait runs.
    Wait {
        /// The longest wait.
        at_most: Duration,
    },
}

/// What happens while the store cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutagePolicy {
    /// 503 `store-unavailable` with `Retry-After: 1`: nothing runs.
    #[default]
    Reject,
    /// The request runs **without protection: a retry runs it again**. Its answer says
    /// `Idempotency-Stored: false`. Only when the store said that it did
    /// [nothing](crate::store::StoreErrorKind::NotApplied), as when its connection is
    /// refused: a time-out, a full or a misconfigured store never switches protection off,
    /// and neither does one that fails while the request waits for another.
    RunUnprotected,
}

/// What the layer did with a request. Found in the extensions of the response, for logs
/// and metrics outside the layer.
///
/// A request that the layer does not touch (no key, a safe method) gets none, and neither
/// does a run that panics or ends in an error: there is no response. Watch for
/// [`OutcomeUnknown`](RejectionKind::OutcomeUnknown): somebody waits for an operator.
///
/// ```
/// use http::{Request, Response};
/// use tower::{Layer, ServiceExt};
/// use tower_idempotency::store::MemoryStore;
/// use tower_idempotency::{IdempotencyLayer, Outcome, SharedByAllCallers};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let service = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers)
///     .layer(tower::service_fn(async |_request: Request<_>| {
///         Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))
///     }));
/// let request = || Request::post("/").header("idempotency-key", "k").body(Full::<Bytes>::default()).unwrap();
///
/// let first = service.clone().oneshot(request()).await.unwrap();
/// let executed = Outcome::Executed { attempt: 1, stored: Some(true) };
/// assert_eq!(first.extensions().get(), Some(&executed));
///
/// let retry = service.clone().oneshot(request()).await.unwrap();
/// assert_eq!(retry.extensions().get(), Some(&Outcome::Replayed));
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The handler ran.
    Executed {
        /// The number of the run, from 1.
        attempt: u64,
        /// Whether the answer is on record; `None` while it is still being streamed.
        /// `Some(false)` also where it is not meant to be, after a failed run or
        /// [`Verdict::Release`](crate::Verdict::Release): an answer that was lost to the
        /// store is marked `Idempotency-Stored: false` besides.
        stored: Option<bool>,
    },
    /// The recorded answer was given.
    Replayed,
    /// The layer refused.
    Rejected(RejectionKind),
    /// The handler ran without protection, under [`OutagePolicy::RunUnprotected`].
    Unprotected,
}
