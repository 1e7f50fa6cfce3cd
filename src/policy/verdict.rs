use std::time::Duration;

use http::header::HeaderMap;
use http::{StatusCode, response};

/// What an answer means for its key.
///
/// A handler that knows better than the [`RecordPolicy`] puts one in the extensions of
/// its response:
///
/// ```
/// use axum::response::{Extension, IntoResponse};
/// use tower_idempotency::Verdict;
///
/// async fn handler() -> impl IntoResponse {
///     // Nothing was charged: the same key may be used once the card is unlocked.
///     (Extension(Verdict::Release), "card locked, try again")
/// }
/// # let _ = handler;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is final: recorded, and replayed to every retry. So is a refusal of bad input:
    /// a corrected request needs a new key then.
    Record,
    /// Nothing was done: the key is free again, for any request. After an earlier attempt,
    /// which may have been applied, it is free for the same request alone.
    Release,
    /// What was done is not known: the [`FailurePolicy`](crate::FailurePolicy) decides.
    Failed,
}

/// How long this answer is kept, instead of the layer's
/// [`retention`](crate::IdempotencyLayer::retention). Put in the extensions of a
/// response; clamped to 1 s and 30 days.
///
/// ```
/// use std::time::Duration;
/// use axum::response::{Extension, IntoResponse};
/// use tower_idempotency::Retention;
///
/// async fn handler() -> impl IntoResponse {
///     (Extension(Retention(Duration::from_secs(7 * 24 * 60 * 60))), "kept for a week")
/// }
/// # let _ = handler;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention(pub Duration);

impl Retention {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

    pub(crate) fn clamped(self) -> Duration {
        self.0.clamp(Self::SHORTEST, Self::LONGEST)
    }
}

/// Decides what an answer means for its key. [`verdict_fn`] makes one of a closure:
///
/// ```
/// use tower_idempotency::{FinalAnswers, RecordPolicy, Verdict, verdict_fn};
///
/// // A client error does not use the key up: a corrected request may come under it.
/// let only_successes = verdict_fn(|answer| match FinalAnswers.verdict(answer) {
///     Verdict::Record if answer.status.is_client_error() => Verdict::Release,
///     verdict => verdict,
/// });
/// # let _ = only_successes;
/// ```
#[diagnostic::on_unimplemented(note = "wrap a closure in `verdict_fn`, or use `FinalAnswers`")]
pub trait RecordPolicy: Send + Sync + 'static {
    /// The verdict on an answer's head. A [`Verdict`] in the answer's own extensions
    /// comes before it.
    fn verdict(&self, answer: &response::Parts) -> Verdict;

    /// The verdict once the body has ended, for protocols whose outcome is in the
    /// trailers. Asked where there are trailers, and not where the answer carries its
    /// own [`Verdict`]. Provided: the first verdict stands.
    fn verdict_at_end(&self, first: Verdict, trailers: &HeaderMap) -> Verdict {
        let _ = trailers;
        first
    }
}

/// Records what is final. The default.
///
/// | Status | Verdict |
/// |---|---|
/// | 401, 407, 421, 425, 429 | [`Release`](Verdict::Release): refused before anything was done |
/// | 408, 5xx and above | [`Failed`](Verdict::Failed): a time-out or a fault in the middle of it |
/// | every other | [`Record`](Verdict::Record) |
///
/// Statuses above 599 are server errors, as
/// [RFC 9110 §15](https://www.rfc-editor.org/rfc/rfc9110#section-15) has it. Whatever the
/// policy says, 101 is released, since an upgraded connection cannot be replayed, and any
/// other 1xx is a failed run: no server sends it as an answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct FinalAnswers;

impl RecordPolicy for FinalAnswers {
    fn verdict(&self, answer: &response::Parts) -> Verdict {
        match answer.status {
            StatusCode::UNAUTHORIZED
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED
            | StatusCode::MISDIRECTED_REQUEST
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS => Verdict::Release,
            StatusCode::REQUEST_TIMEOUT => Verdict::Failed,
            status if status.as_u16() >= 500 => Verdict::Failed,
            _ => Verdict::Record,
        }
    }
}

/// A [`RecordPolicy`] from a closure that judges the head.
pub fn verdict_fn<F>(f: F) -> impl RecordPolicy
where
    F: Fn(&response::Parts) -> Verdict + Send + Sync + 'static,
{
    VerdictFn(f)
}

struct VerdictFn<F>(F);

impl<F> RecordPolicy for VerdictFn<F>
where
    F: Fn(&response::Parts) -> Verdict + Send + Sync + 'static,
{
    fn verdict(&self, answer: &response::Parts) -> Verdict {
        (self.0)(answer)
    }
}
