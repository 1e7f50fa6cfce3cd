//! What is read of an answer before its head is sent counts as if it had been read later.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body as AxumBody;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response, StatusCode, response};
use http_body::{Body, Frame, SizeHint};
use support::Runs;
use support::post;
use support::scripted::{Script, Seen, Step, answer, data, handling, let_run, ms, secs};
use support::server::Server;
use support::stores::store;
use tokio::time::{Sleep, sleep, timeout};
use tower::ServiceExt;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{IdempotencyLayer, RecordPolicy, SharedByAllCallers, Verdict};

const REQUEST: &str = "POST / HTTP/1.1\r\nhost: t\r\nidempotency-key: k\r\n\
    content-length: 0\r\nconnection: close\r\n\r\n";

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

fn bytes(len: usize) -> Step {
    Step::Data(Bytes::from(vec![b'x'; len]))
}

#[tokio::test(start_paused = true)]
async fn trailers_behind_a_declared_length_are_on_record_however_long_it_is() {
    for len in [1_000_usize, 60_000, 70_000] {
        let service = handling(&layer(), move |_| async move {
            let steps = [bytes(len), Step::Trailers("x-checksum", "abc")];
            let mut answer = answer(200, Script::stream(steps));
            answer.headers_mut().insert(CONTENT_LENGTH, len.into());
            answer
        });
        let ask = || service.clone().oneshot(post("k", ""));
        let (first, _) = Seen::of(ask().await.unwrap()).await;
        let_run().await;
        let (retry, parts) = Seen::of(ask().await.unwrap()).await;
        assert!(parts.headers.contains_key("idempotent-replayed"));
        assert!(first.trailers.is_some(), "{len}");
        assert_eq!(first.trailers, retry.trailers, "{len}");
    }
}

/// The outcome is in the trailers.
struct ByTrailers;

impl RecordPolicy for ByTrailers {
    fn verdict(&self, _: &response::Parts) -> Verdict {
        Verdict::Record
    }

    fn verdict_at_end(&self, first: Verdict, trailers: &HeaderMap) -> Verdict {
        match trailers.get("grpc-status") {
            Some(status) if status != "0" => Verdict::Failed,
            _ => first,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_are_judged_however_they_come() {
    let failed = || Step::Trailers("grpc-status", "13");
    let shapes: [fn(Step) -> Vec<Step>; 4] = [
        |failed| vec![data("12345"), failed, Step::Sleep(secs(10))],
        |failed| vec![data("12345"), failed, Step::Yield],
        |failed| vec![data("12345"), Step::Yield, failed],
        |failed| vec![bytes(70_000), failed],
    ];
    for (shape, steps) in shapes.into_iter().enumerate() {
        for (declared, sized) in [(true, false), (false, true), (false, false)] {
            // What comes after a complete length may not be asked for.
            if shape == 2 && declared {
                continue;
            }
            let runs = Runs::default();
            let service = handling(&layer().record_when(ByTrailers), {
                let runs = runs.clone();
                move |_| {
                    runs.add();
                    let steps = steps(failed());
                    let len: usize = match &steps[0] {
                        Step::Data(data) => data.len(),
                        _ => 0,
                    };
                    let body = match sized {
                        true => Script::sized(steps, 0),
                        false => Script::stream(steps),
                    };
                    let mut answer = answer(200, body);
                    if declared {
                        answer.headers_mut().insert(CONTENT_LENGTH, len.into());
                    }
                    async { answer }
                }
            });
            for run in 1..=2 {
                let answer = service.clone().oneshot(post("k", "")).await.unwrap();
                Seen::of(answer).await;
                let_run().await;
                assert_eq!(runs.get(), run, "shape {shape}, {declared}, {sized}");
            }
        }
    }
}

/// Five bytes, an end that is late, and a hint that does not shrink.
struct Constant {
    given: bool,
    end: Pin<Box<Sleep>>,
}

impl Body for Constant {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if !self.given {
            self.given = true;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"hello")))));
        }
        self.end.as_mut().poll(cx).map(|()| None)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(5)
    }
}

#[tokio::test]
async fn a_length_is_told_as_it_was_promised() {
    let handler = async || {
        let end = Box::pin(sleep(secs(2)));
        Response::new(AxumBody::new(Constant { given: false, end }))
    };
    let app = Router::new().route("/", axum::routing::post(handler));
    let layered = app.route_layer(layer().store_timeout(ms(300)));
    let answer = Server::start(layered).await.exchange(REQUEST).await;
    assert!(answer.contains("content-length: 5\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
}

#[test]
fn an_answer_that_is_there_needs_no_timer() {
    for steps in [vec![], vec![data("12345")]] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
            let service = handling(&layer, move |_| {
                let steps = steps.clone();
                async { answer(200, Script::sized(steps, 0)) }
            });
            let answer = service.oneshot(post("k", "")).await.unwrap();
            assert!(Seen::of(answer).await.0.error.is_none());
        });
    }
}

#[tokio::test]
async fn a_body_that_no_server_reads_does_not_fail_its_run() {
    let runs = Runs::default();
    let counted = runs.clone();
    let handler = async move || {
        counted.add();
        let mut answer = Response::new(AxumBody::new(Script::stream([Step::Fail])));
        *answer.status_mut() = StatusCode::NO_CONTENT;
        answer
    };
    let app = Router::new().route("/", axum::routing::post(handler));
    let server = Server::start(app.route_layer(layer())).await;
    let first = server.exchange(REQUEST).await;
    assert!(first.starts_with("HTTP/1.1 204"), "{first}");
    assert!(!first.contains("content-length"), "{first}");
    let retry = server.exchange(REQUEST).await;
    assert!(retry.contains("idempotent-replayed: true"), "{retry}");
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_goes_on_giving_nothing_does_not_hold_its_head_back() {
    let service = handling(&layer(), |_| async {
        let nothing = [Step::Sleep(secs(1)), Step::Data(Bytes::new())];
        let steps = std::iter::repeat_n(nothing, 10_000).flatten();
        answer(
            200,
            Script::sized(std::iter::once(data("12345")).chain(steps), 0),
        )
    });
    let head = timeout(secs(60), service.oneshot(post("k", ""))).await;
    assert!(head.is_ok(), "no head within a minute");
}
