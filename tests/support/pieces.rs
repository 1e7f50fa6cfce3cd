//! Handlers and bodies made of pieces, and what an answer has to look like.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use proptest::test_runner::{Config, RngSeed};
use serde_json::Value;
use tower::{Layer, Service};
use tower_idempotency::store::KeyStore;
use tower_idempotency::{IdempotencyLayer, Outcome, RejectionKind, RequestBody, ResponseBody};

use super::{Answer, Runs};

/// The layer around a handler that answers what `answer` makes of the number of the run
/// and of the request.
pub fn handler<K, Q, R>(
    layer: &IdempotencyLayer<K>,
    answer: impl Fn(usize, Request<RequestBody<Q>>) -> Response<R> + Clone + Send + 'static,
) -> (
    impl Service<Request<Q>, Response = Response<ResponseBody<R>>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static,
    Runs,
)
where
    K: KeyStore,
    Q: Body<Data: Send, Error: Send> + Send + 'static,
    R: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let runs = Runs::default();
    let service = layer.layer(tower::service_fn({
        let runs = runs.clone();
        move |request: Request<RequestBody<Q>>| {
            let answer = answer(runs.add(), request);
            async move { Ok::<_, Infallible>(answer) }
        }
    }));
    (service, runs)
}

/// One step of a body.
#[derive(Debug, Clone)]
pub enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Fails,
    Panics,
    /// Pending once, and woken at once.
    Waits,
    /// Never ready again.
    Hangs,
}

/// A body that does what it is told, step by step, and counts how often it was polled.
#[derive(Debug, Clone)]
pub struct Script {
    steps: VecDeque<Step>,
    forever: Option<Bytes>,
    hint: SizeHint,
    polls: Arc<AtomicUsize>,
}

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            forever: None,
            hint: SizeHint::new(),
            polls: Arc::default(),
        }
    }

    /// Data alone, of unknown length.
    pub fn data(frames: impl IntoIterator<Item = &'static str>) -> Self {
        Self::new(frames.into_iter().map(|data| Step::Data(data.into())))
    }

    /// The same chunk for ever.
    pub fn endless(chunk: impl Into<Bytes>) -> Self {
        Self {
            forever: Some(chunk.into()),
            ..Self::new([])
        }
    }

    /// Panics when it is polled.
    pub fn untouchable() -> Self {
        Self::new([Step::Panics])
    }

    /// Says that it is this long.
    pub fn sized(mut self, len: u64) -> Self {
        self.hint = SizeHint::with_exact(len);
        self
    }

    /// Says that it is at least this long.
    pub fn at_least(mut self, len: u64) -> Self {
        self.hint.set_lower(len);
        self
    }

    pub fn polls(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.polls)
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.polls.fetch_add(1, Ordering::SeqCst);
        match self.steps.pop_front() {
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Fails) => Poll::Ready(Some(Err(std::io::Error::other("planned")))),
            Some(Step::Panics) => panic!("the body was polled"),
            Some(Step::Waits) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Hangs) => {
                self.steps.push_front(Step::Hangs);
                Poll::Pending
            }
            None => Poll::Ready(self.forever.clone().map(Frame::data).map(Ok)),
        }
    }

    // It is `Copy` in newer versions alone.
    #[allow(clippy::clone_on_copy)]
    fn size_hint(&self) -> SizeHint {
        self.hint.clone()
    }
}

/// The outcome of a run.
pub const fn executed(attempt: u64, stored: bool) -> Option<Outcome> {
    Some(Outcome::Executed {
        attempt,
        stored: Some(stored),
    })
}

/// The handler's own answer, which is on record or is not to be.
#[track_caller]
pub fn assert_ran(answer: &Answer, attempt: u64, stored: bool) {
    assert_eq!(answer.outcome, executed(attempt, stored), "{answer:?}");
    assert!(!answer.is_replay(), "{answer:?}");
    assert_eq!(answer.header("idempotency-stored"), None);
}

/// The recorded answer: the first one's status and body, and the mark.
#[track_caller]
pub fn assert_replays(first: &Answer, retry: &Answer) {
    assert_eq!(retry.status, first.status, "{retry:?}");
    assert_eq!(retry.body, first.body);
    assert_eq!(retry.trailers, first.trailers);
    assert!(retry.is_replay(), "{retry:?}");
    assert_eq!(retry.outcome, Some(Outcome::Replayed));
    assert_eq!(retry.header("idempotency-body"), None);
}

/// What a client has to be able to rely on: code, status, `retryable`, `new_key_safe`, and
/// the seconds of `Retry-After`.
pub type Row = (
    RejectionKind,
    &'static str,
    u16,
    bool,
    bool,
    Option<&'static str>,
);

pub const REFUSALS: [Row; 12] = [
    (
        RejectionKind::MissingKey,
        "missing-key",
        400,
        false,
        true,
        None,
    ),
    (
        RejectionKind::InvalidKey,
        "invalid-key",
        400,
        false,
        true,
        None,
    ),
    (
        RejectionKind::UnknownCaller,
        "unknown-caller",
        403,
        false,
        false,
        None,
    ),
    (
        RejectionKind::RequestTooLarge,
        "request-too-large",
        413,
        false,
        false,
        None,
    ),
    (
        RejectionKind::UnreadableBody,
        "unreadable-body",
        400,
        true,
        false,
        None,
    ),
    (
        RejectionKind::KeyReused,
        "key-reused",
        422,
        false,
        false,
        None,
    ),
    (
        RejectionKind::InProgress,
        "in-progress",
        409,
        true,
        false,
        Some("1"),
    ),
    (
        RejectionKind::QuotaExceeded,
        "quota-exceeded",
        429,
        true,
        false,
        Some("60"),
    ),
    (
        RejectionKind::OutcomeUnknown,
        "outcome-unknown",
        500,
        false,
        false,
        None,
    ),
    (
        RejectionKind::RecordUnreadable,
        "record-unreadable",
        500,
        false,
        false,
        None,
    ),
    (
        RejectionKind::StoreUnavailable,
        "store-unavailable",
        503,
        true,
        false,
        Some("1"),
    ),
    (
        RejectionKind::Overloaded,
        "overloaded",
        503,
        true,
        false,
        Some("1"),
    ),
];

/// A refusal of this kind, whole: status, fields, every member, no mark of a replay.
#[track_caller]
pub fn assert_refused(answer: &Answer, kind: RejectionKind) {
    let (_, code, status, retryable, new_key_safe, retry_after) = REFUSALS
        .into_iter()
        .find(|row| row.0 == kind)
        .expect("every kind has a row");
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    assert_eq!(answer.outcome, Some(Outcome::Rejected(kind)));
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("retry-after"), retry_after);
    assert_eq!(answer.header("idempotent-replayed"), None);
    assert_eq!(answer.header("idempotency-stored"), None);
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    let members = problem.as_object().unwrap();
    let mut names: Vec<&str> = members.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "code",
            "detail",
            "new_key_safe",
            "retryable",
            "status",
            "title",
            "type"
        ]
    );
    assert_eq!(problem["code"], code);
    assert_eq!(problem["status"], status);
    assert_eq!(problem["retryable"], retryable);
    assert_eq!(problem["new_key_safe"], new_key_safe);
    for text in ["title", "detail"] {
        assert!(!problem[text].as_str().unwrap().is_empty(), "{problem}");
    }
}

/// The same number of the same cases in every run, and no files.
pub fn cases(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20),
        ..Config::default()
    }
}

/// The message and the place of a panic in a call, as its user would be told.
pub fn panic_of(f: impl FnOnce()) -> (String, String) {
    use std::cell::RefCell;
    use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
    use std::sync::Once;

    thread_local!(static PLACE: RefCell<Option<String>> = const { RefCell::new(None) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            let place = panic.location().map(|place| place.file().to_owned());
            PLACE.with(|cell| *cell.borrow_mut() = place);
            before(panic);
        }));
    });
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("it must panic");
    let message = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap();
    let place = PLACE.with(|cell| cell.borrow_mut().take()).unwrap();
    (message, place)
}
