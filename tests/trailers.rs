//! Trailers reach the handler, the first caller and every retry.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRAILER};
use http_body_util::{BodyExt, Full};
use support::gates::{until, with_trailers};
use support::server::Server;
use support::stores::store;
use support::wire::{Http1, Http2, http1_post};
use support::{Answer, Runs};
use tower_idempotency::{IdempotencyLayer, InFlight, SharedByAllCallers};

const CHECKSUM: HeaderName = HeaderName::from_static("x-checksum");

struct Api {
    server: Server,
    in_flight: InFlight,
    runs: Runs,
}

fn checksum() -> HeaderMap {
    HeaderMap::from_iter([(CHECKSUM, HeaderValue::from_static("abc"))])
}

fn streamed() -> Body {
    with_trailers(&["with-", "trailers"], checksum())
}

/// A body that tells its length, and has trailers all the same.
fn known() -> Body {
    let body = Full::new(Bytes::from_static(b"with-trailers"));
    Body::new(body.with_trailers(std::future::ready(Some(Ok(checksum())))))
}

impl Api {
    async fn start(limit: usize) -> Self {
        let layer = IdempotencyLayer::new(store(), SharedByAllCallers).response_body_limit(limit);
        let runs = Runs::default();
        let announced = |body: fn() -> Body| {
            let runs = runs.clone();
            post(move || async move {
                runs.add();
                ([(TRAILER, "x-checksum")], body())
            })
        };
        let declared = {
            let runs = runs.clone();
            post(move || async move {
                runs.add();
                ([(CONTENT_LENGTH, "13")], streamed())
            })
        };
        let echo = {
            let runs = runs.clone();
            post(async move |body: Body| {
                runs.add();
                echo(body).await
            })
        };
        let app = Router::new()
            .route("/streamed", announced(streamed))
            .route("/known", announced(known))
            .route("/declared", declared)
            .route("/echo", echo)
            .route_layer(layer.clone());
        Self {
            server: Server::start(app).await,
            in_flight: layer.in_flight(),
            runs,
        }
    }

    async fn http1(&self, path: &str, lines: &[&str]) -> Answer {
        let mut client = Http1::connect(self.server.addr).await;
        client.write(http1_post(path, "k", lines, "")).await;
        client.answer().await
    }

    async fn idle(&self) {
        until("no exchange is left", || self.in_flight.count() == 0).await;
    }
}

/// What the request's body and its trailers were.
async fn echo(body: Body) -> Response {
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let checksum = trailers.get(CHECKSUM).cloned();
    let checksum = checksum.unwrap_or(HeaderValue::from_static("none"));
    ([("x-got", checksum)], body.to_bytes()).into_response()
}

#[track_caller]
fn assert_whole(answer: &Answer, is_replay: bool) {
    assert_eq!(answer.text(), "with-trailers");
    assert_eq!(answer.trailers, Some(checksum()));
    assert_eq!(answer.is_replay(), is_replay);
}

#[tokio::test]
async fn trailers_reach_the_first_caller_and_every_retry_over_http_1() {
    for path in ["/streamed", "/known"] {
        let api = Api::start(1024).await;
        for retries in 0..3 {
            let answer = api.http1(path, &["te: trailers"]).await;
            assert_whole(&answer, retries > 0);
            assert_eq!(answer.header("trailer"), Some("x-checksum"));
            assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        }
        assert_eq!(api.runs.get(), 1);
        api.idle().await;
    }
}

#[tokio::test]
async fn trailers_reach_the_first_caller_and_every_retry_over_http_2() {
    for path in ["/streamed", "/known"] {
        let api = Api::start(1024).await;
        let client = Http2::connect(api.server.addr).await;
        for retries in 0..3 {
            assert_whole(&client.post(path, "k", "").await, retries > 0);
        }
        assert_eq!(api.runs.get(), 1);
        api.idle().await;
    }
}

#[tokio::test]
async fn trailers_after_a_declared_length_reach_the_first_caller_and_every_retry() {
    let api = Api::start(1024).await;
    let client = Http2::connect(api.server.addr).await;
    for retries in 0..3 {
        assert_whole(&client.post("/declared", "k", "").await, retries > 0);
    }
    assert_eq!(api.runs.get(), 1);
    api.idle().await;
}

#[tokio::test]
async fn a_client_that_asks_for_no_trailers_gets_the_body_alone() {
    for path in ["/streamed", "/known"] {
        let api = Api::start(1024).await;
        for retries in 0..2 {
            let answer = api.http1(path, &[]).await;
            assert_eq!(answer.text(), "with-trailers");
            assert_eq!(answer.trailers, None);
            assert_eq!(answer.is_replay(), retries > 0);
        }
        // They are on record for one that does.
        assert_whole(&api.http1(path, &["te: trailers"]).await, true);
        assert_eq!(api.runs.get(), 1);
    }
}

#[tokio::test]
async fn a_first_answer_and_its_replay_may_come_over_different_versions() {
    let api = Api::start(1024).await;
    let client = Http2::connect(api.server.addr).await;
    assert_whole(&api.http1("/streamed", &["te: trailers"]).await, false);
    assert_whole(&client.post("/streamed", "k", "").await, true);

    assert_whole(&client.post("/known", "other", "").await, false);
    let mut http1 = Http1::connect(api.server.addr).await;
    let retry = http1_post("/known", "other", &["te: trailers"], "");
    http1.write(retry).await;
    assert_whole(&http1.answer().await, true);
    assert_eq!(api.runs.get(), 2);
}

#[tokio::test]
async fn trailers_of_an_answer_over_the_limit_still_reach_the_first_caller() {
    for path in ["/streamed", "/known"] {
        let api = Api::start(12).await;
        let client = Http2::connect(api.server.addr).await;
        assert_whole(&client.post(path, "k", "").await, false);

        let retry = client.post(path, "k", "").await;
        assert_eq!(retry.header("idempotency-body"), Some("omitted"));
        assert_eq!((retry.text(), &retry.trailers), ("", &None));
        assert!(retry.is_replay());
        assert_eq!(api.runs.get(), 1);
        api.idle().await;
    }
}

#[tokio::test]
async fn trailers_of_a_request_reach_the_handler_over_http_1() {
    let api = Api::start(1024).await;
    let request = "POST /echo HTTP/1.1\r\nhost: test\r\nidempotency-key: k\r\n\
                   trailer: x-checksum\r\ntransfer-encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n4\r\ndefg\r\n0\r\nx-checksum: sent\r\n\r\n";
    for retries in 0..2 {
        let mut client = Http1::connect(api.server.addr).await;
        client.write(request).await;
        let answer = client.answer().await;
        assert_eq!(answer.text(), "abcdefg");
        assert_eq!(answer.header("x-got"), Some("sent"));
        assert_eq!(answer.is_replay(), retries > 0);
    }
    assert_eq!(api.runs.get(), 1);
}

#[tokio::test]
async fn trailers_of_a_request_reach_the_handler_over_http_2() {
    let api = Api::start(1024).await;
    let client = Http2::connect(api.server.addr).await;
    let (answer, mut stream) = client.begin("/echo", "k").await;
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let sent = HeaderMap::from_iter([(CHECKSUM, HeaderValue::from_static("sent"))]);
    stream.send_trailers(sent).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["x-got"], "sent");
    assert_eq!(api.runs.get(), 1);
    drop(answer);
    api.idle().await;
}
