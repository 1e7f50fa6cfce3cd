//! A request that is dropped at any point has either not begun, or is finished without its
//! client: a retry never runs it twice and never finds a key that nobody holds.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use http::{Request, Response, StatusCode};
use support::faults::{Call, Fault, FaultStore, yield_once};
use support::scripted::{
    BoxError, Script, Step, answer, data, executed, handling, idle, let_run, ms, secs,
};
use support::stores::{answered, notice, store};
use support::{Answer, Runs, read};
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt};
use tower_idempotency::store::AnyStore;
use tower_idempotency::{
    ConflictPolicy, FailurePolicy, IdempotencyLayer, Outcome, ResponseBody, SharedByAllCallers,
};

type Layer = IdempotencyLayer<FaultStore<AnyStore>>;

/// What a handler answers with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Body {
    Known,
    KnownWithTrailers,
    Streamed,
    StreamedWithTrailers,
    DeclaredByHeader,
    OverTheLimit,
}

const BODIES: [Body; 6] = [
    Body::Known,
    Body::KnownWithTrailers,
    Body::Streamed,
    Body::StreamedWithTrailers,
    Body::DeclaredByHeader,
    Body::OverTheLimit,
];

impl Body {
    fn of(self, status: u16) -> Response<Script> {
        let steps = [
            data("one "),
            Step::Yield,
            data("two "),
            Step::Yield,
            data("three"),
        ];
        let with_trailers = || {
            let trailers = Step::Trailers("x-checksum", "abc");
            steps.clone().into_iter().chain([Step::Yield, trailers])
        };
        let body = match self {
            Self::Known => Script::sized(steps, 0),
            Self::KnownWithTrailers => Script::sized(with_trailers(), 0),
            Self::Streamed | Self::DeclaredByHeader => Script::stream(steps),
            Self::StreamedWithTrailers => Script::stream(with_trailers()),
            Self::OverTheLimit => {
                Script::stream(steps.into_iter().chain(std::iter::repeat_n(data("x"), 100)))
            }
        };
        let mut answer = answer(status, body);
        if self == Self::DeclaredByHeader {
            answer.headers_mut().insert("content-length", 13.into());
        }
        answer
    }

    fn is_replayed_by(self, retry: &Answer) {
        assert!(retry.is_replay(), "{self:?}: {retry:?}");
        assert_eq!(retry.outcome, Some(Outcome::Replayed));
        assert_eq!(retry.header("x-answer"), Some("true"));
        if self == Self::OverTheLimit {
            assert_eq!(retry.header("idempotency-body"), Some("omitted"));
            assert_eq!(retry.text(), "");
            return;
        }
        assert_eq!(retry.text(), "one two three");
        let has_trailers = matches!(self, Self::KnownWithTrailers | Self::StreamedWithTrailers);
        assert_eq!(retry.trailers.is_some(), has_trailers, "{self:?}");
    }
}

fn request() -> Request<Script> {
    let body = [
        Step::Yield,
        data("charge"),
        Step::Yield,
        data(" 5"),
        Step::Yield,
    ];
    Request::post("/things")
        .header("idempotency-key", "k")
        .body(Script::stream(body))
        .unwrap()
}

/// A service whose every step suspends, and whose handler yields before it answers.
fn suspending(
    layer: &Layer,
    body: Body,
    statuses: [u16; 2],
) -> (
    impl Service<
        Request<Script>,
        Response = Response<ResponseBody<Script>>,
        Error = std::convert::Infallible,
        Future: Send + 'static,
    > + Clone
    + use<>,
    Runs,
) {
    let runs = Runs::default();
    let service = handling(layer, {
        let runs = runs.clone();
        move |_| {
            let run = runs.add();
            async move {
                for _ in 0..3 {
                    yield_once().await;
                }
                let mut answer = body.of(statuses[run.min(2) - 1]);
                answer.headers_mut().insert("x-run", run.into());
                answer
            }
        }
    });
    (service, runs)
}

fn layer() -> (FaultStore<AnyStore>, Layer) {
    let store = FaultStore::new(store());
    for call in [
        Call::Claim,
        Call::Extend,
        Call::Complete,
        Call::Fail,
        Call::Release,
        Call::Lookup,
    ] {
        store.always(call, Fault::Suspends(2));
    }
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).response_body_limit(64);
    (store, layer)
}

/// One step, and the answer to what it asked of the store.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    answered().await;
    polled
}

#[tokio::test(start_paused = true)]
async fn dropped_after_any_number_of_polls_it_ran_not_at_all_or_to_its_end() {
    for policy in [FailurePolicy::RunAgain, FailurePolicy::Refuse] {
        for body in BODIES {
            for status in [201, 401, 500] {
                let mut not_begun = 0;
                let mut polls = 0;
                loop {
                    let (store, layer) = layer();
                    let layer = layer.on_failure(policy);
                    let (mut service, runs) = suspending(&layer, body, [status, 201]);
                    let mut dropped = Box::pin(service.ready().await.unwrap().call(request()));
                    let mut ended = false;
                    for _ in 0..polls {
                        ended = poll_once(dropped.as_mut()).await.is_ready();
                    }
                    drop(dropped);
                    idle(&layer).await;
                    let what = format!("{policy:?} {body:?} {status} {polls}");
                    let ran = runs.get();
                    if ran == 0 {
                        not_begun += 1;
                        assert_eq!(store.count(Call::Claim), 0, "{what}");
                    }
                    let retry = read(service.clone().oneshot(request()).await.unwrap()).await;
                    match (ran, status, policy) {
                        (0, ..) => assert_eq!(runs.get(), 1, "{what}"),
                        (_, 201, _) => {
                            body.is_replayed_by(&retry);
                            assert_eq!(runs.get(), 1, "{what}");
                        }
                        (_, 500, FailurePolicy::Refuse) => {
                            assert_eq!(retry.code().as_deref(), Some("outcome-unknown"));
                            assert_eq!(runs.get(), 1, "{what}");
                        }
                        _ => {
                            assert_eq!(retry.header("x-run"), Some("2"), "{what}: {retry:?}");
                            let attempt = if status == 500 { 2 } else { 1 };
                            assert!(
                                matches!(retry.outcome, Some(Outcome::Executed { attempt: a, .. }) if a == attempt),
                                "{what}: {retry:?}"
                            );
                        }
                    }
                    idle(&layer).await;
                    if ended {
                        break;
                    }
                    polls += 1;
                }
                // While the body was read; and while it was claimed, run, and concluded.
                assert!(not_begun >= 4, "{not_begun}");
                assert!(polls - not_begun >= 6, "{polls} {not_begun}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_dropped_at_any_frame_is_on_record() {
    for body in BODIES {
        for status in [201, 500] {
            for polls in 0.. {
                let (_, layer) = layer();
                let (service, runs) = suspending(&layer, body, [status, 201]);
                let response = service.clone().oneshot(request()).await.unwrap();
                let mut dropped = Box::pin(response.into_body());
                let mut ended = false;
                for _ in 0..polls {
                    let frame = http_body_util::BodyExt::frame(&mut dropped);
                    ended = matches!(poll_once(pin!(frame)).await, Poll::Ready(None));
                    let_run().await;
                }
                drop(dropped);
                idle(&layer).await;
                let retry = read(service.clone().oneshot(request()).await.unwrap()).await;
                if status == 201 {
                    body.is_replayed_by(&retry);
                } else {
                    assert_eq!(retry.header("x-run"), Some("2"), "{body:?} {polls}");
                }
                idle(&layer).await;
                assert_eq!(runs.get(), if status == 201 { 1 } else { 2 });
                if ended {
                    break;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_at_any_point_leaves_no_claim_behind() {
    for polls in 0..50 {
        let (_, layer) = layer();
        let layer = layer.on_conflict(ConflictPolicy::Wait { at_most: secs(60) });
        let (mut service, runs) = suspending(&layer, Body::Known, [500, 201]);
        let mut first = Box::pin(service.ready().await.unwrap().call(request()));
        while runs.get() == 0 {
            assert!(poll_once(first.as_mut()).await.is_pending());
        }
        let mut waiter = Box::pin(service.ready().await.unwrap().call(request()));
        let mut ended = false;
        for poll in 0..polls {
            if poll == 12 {
                let first = first.as_mut().await.unwrap();
                assert_eq!(first.status(), StatusCode::INTERNAL_SERVER_ERROR);
                sleep(notice()).await;
            }
            if !ended {
                ended = poll_once(waiter.as_mut()).await.is_ready();
            }
        }
        drop(waiter);
        if polls <= 12 {
            first.await.unwrap();
        }
        idle(&layer).await;
        let ran = runs.get();
        let retry = read(service.clone().oneshot(request()).await.unwrap()).await;
        assert_eq!(retry.status, StatusCode::CREATED, "{polls}: {retry:?}");
        assert_eq!(retry.is_replay(), ran == 2, "{polls}: {retry:?}");
        idle(&layer).await;
        assert_eq!(runs.get(), 2, "{polls}");
        assert!(polls < 49 || ended);
    }
}

#[test]
fn dropped_outside_of_a_runtime_its_lease_ends_and_the_policy_decides() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let mut left = Vec::new();
    for polls in 0.. {
        let runtime = runtime();
        let (store, layer) = layer();
        let layer = layer.lease(ms(300));
        let (mut service, runs) = suspending(&layer, Body::Known, [201, 201]);
        let mut dropped = {
            let ready = runtime.block_on(service.ready()).unwrap();
            let _inside = runtime.enter();
            Box::pin(ready.call(request()))
        };
        let ended = runtime.block_on(async {
            for _ in 0..polls {
                if poll_once(dropped.as_mut()).await.is_ready() {
                    return true;
                }
            }
            false
        });
        drop(dropped);
        assert_eq!(layer.in_flight().count(), 0);
        if ended {
            break;
        }
        left.push((polls, runtime, store, layer, service, runs));
    }
    for (polls, runtime, store, layer, service, runs) in left {
        runtime.block_on(async {
            let (ran, claims) = (runs.get(), store.count(Call::Claim));
            let deadline = Instant::now() + secs(20);
            let retry = loop {
                let retry = read(service.clone().oneshot(request()).await.unwrap()).await;
                if retry.status == StatusCode::CREATED || Instant::now() > deadline {
                    break retry;
                }
                sleep(ms(5)).await;
            };
            assert_eq!(retry.text(), "one two three", "{polls}: {retry:?}");
            if !retry.is_replay() {
                assert_eq!(runs.get(), ran + 1);
                assert!(claims > 0 || retry.outcome == executed(1, Some(true)));
            }
            idle(&layer).await;
        });
    }
    // The same for a body: nobody can read it on.
    let runtime = runtime();
    let (_, layer) = layer();
    let (service, _) = suspending(&layer, Body::Streamed, [201, 201]);
    let response = runtime
        .block_on(service.clone().oneshot(request()))
        .unwrap();
    drop(response);
    runtime.block_on(async {
        idle(&layer).await;
        let retry = read(service.oneshot(request()).await.unwrap()).await;
        assert_eq!(retry.header("x-run"), Some("2"));
        assert_eq!(retry.outcome, executed(2, None));
    });
}

#[cfg(feature = "tracing")]
#[tokio::test(start_paused = true)]
async fn what_goes_on_alone_goes_on_in_the_span_of_its_request() {
    use std::sync::{Arc, Mutex};

    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry());
    let name = || {
        tracing::Span::current()
            .metadata()
            .map(tracing::Metadata::name)
    };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (_, layer) = layer();
    let service = handling(&layer, {
        let seen = seen.clone();
        move |_| {
            let seen = seen.clone();
            async move {
                sleep(secs(1)).await;
                seen.lock().unwrap().push(("handler", name()));
                let frames = http_body_util::StreamBody::new(futures_util::stream::poll_fn({
                    let mut sleeps = Some(Box::pin(sleep(secs(1))));
                    move |cx| {
                        let Some(sleep) = &mut sleeps else {
                            return Poll::Ready(None);
                        };
                        std::task::ready!(sleep.as_mut().poll(cx));
                        sleeps = None;
                        seen.lock().unwrap().push(("body", name()));
                        let frame = http_body::Frame::data(bytes::Bytes::from_static(b"x"));
                        Poll::Ready(Some(Ok::<_, BoxError>(frame)))
                    }
                }));
                answer(200, frames)
            }
        }
    });
    let span = tracing::info_span!("the request");
    let mut dropped = Box::pin(span.in_scope(|| service.clone().oneshot(request())));
    for _ in 0..20 {
        let poll = poll_fn(|cx| Poll::Ready(span.in_scope(|| dropped.as_mut().poll(cx))));
        assert!(poll.await.is_pending());
    }
    drop(dropped);
    drop(span);
    assert_eq!(name(), None);
    idle(&layer).await;
    let expected = [
        ("handler", Some("the request")),
        ("body", Some("the request")),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    sleep(ms(1)).await;
    let retry = read(service.oneshot(request()).await.unwrap()).await;
    assert!(retry.is_replay());
    assert_eq!(retry.text(), "x");
}
