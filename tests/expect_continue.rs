//! A client that asks before it sends its body is told no before it has sent it.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use http::StatusCode;
use support::Runs;
use support::gates::Gate;
use support::server::Server;
use support::stores::store;
use support::wire::Http1;
use tower_idempotency::{IdempotencyLayer, by_trusted_header};

struct Api {
    server: Server,
    runs: Runs,
    gate: Gate,
}

impl Api {
    async fn start() -> Self {
        let layer = IdempotencyLayer::new(store(), by_trusted_header("x-account"))
            .require_key(true)
            .request_body_limit(100)
            .max_in_flight(1);
        let (runs, gate) = (Runs::default(), Gate::default());
        let handler = {
            let (runs, gate) = (runs.clone(), gate.clone());
            move |body: Bytes| async move {
                let run = runs.add();
                gate.pass().await;
                format!("run {run} of {} bytes", body.len())
            }
        };
        let app = Router::new()
            .route("/things", post(handler))
            .route_layer(layer);
        Self {
            server: Server::start(app).await,
            runs,
            gate,
        }
    }

    async fn ask(&self, lines: &[&str]) -> Http1 {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let mut client = Http1::connect(self.server.addr).await;
        client
            .write(format!(
                "POST /things HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\n{lines}\r\n"
            ))
            .await;
        client
    }
}

const ACCOUNT: &str = "x-account: acct_1";
const KEY: &str = "idempotency-key: k";

#[tokio::test]
async fn a_refused_request_is_never_asked_for_its_body() {
    let api = Api::start().await;
    let refused: [(&[&str], u16, &str); 5] = [
        (&[ACCOUNT, "content-length: 5"], 400, "missing-key"),
        (
            &[ACCOUNT, "idempotency-key: a, b", "content-length: 5"],
            400,
            "invalid-key",
        ),
        (
            &[ACCOUNT, KEY, KEY, "content-length: 5"],
            400,
            "invalid-key",
        ),
        (&[KEY, "content-length: 5"], 403, "unknown-caller"),
        (
            &[ACCOUNT, KEY, "content-length: 101"],
            413,
            "request-too-large",
        ),
    ];
    for (lines, status, code) in refused {
        let mut client = api.ask(lines).await;
        // The first head that comes is the refusal, and no interim answer.
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{lines:?}");
        assert_eq!(answer.code().as_deref(), Some(code), "{lines:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    assert_eq!(api.runs.get(), 0);
}

#[tokio::test]
async fn a_request_beyond_the_number_allowed_is_never_asked_for_its_body() {
    let api = Api::start().await;
    let mut first = api.ask(&[ACCOUNT, KEY, "content-length: 5"]).await;
    assert_eq!(first.head().await.status, StatusCode::CONTINUE);

    let other = "idempotency-key: other";
    let mut second = api.ask(&[ACCOUNT, other, "content-length: 5"]).await;
    let refused = second.answer().await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.code().as_deref(), Some("overloaded"));
    assert_eq!(refused.header("retry-after"), Some("1"));

    api.gate.open_for_all();
    first.write("12345").await;
    assert_eq!(first.answer().await.text(), "run 1 of 5 bytes");
    assert_eq!(api.runs.get(), 1);
}

#[tokio::test]
async fn an_accepted_request_is_asked_for_its_body_and_so_is_its_retry() {
    let api = Api::start().await;
    api.gate.open_for_all();
    for retries in 0..2 {
        let mut client = api.ask(&[ACCOUNT, KEY, "content-length: 5"]).await;
        let interim = client.head().await;
        assert_eq!(interim.status, StatusCode::CONTINUE);
        client.write("12345").await;
        let answer = client.answer().await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.text(), "run 1 of 5 bytes");
        assert_eq!(answer.is_replay(), retries > 0);
    }
    assert_eq!(api.runs.get(), 1);
}

#[tokio::test]
async fn a_body_of_no_declared_length_is_refused_as_soon_as_it_is_over_the_limit() {
    let api = Api::start().await;
    let chunked = "transfer-encoding: chunked";
    let mut client = api.ask(&[ACCOUNT, KEY, chunked]).await;
    assert_eq!(client.head().await.status, StatusCode::CONTINUE);
    let piece = "x".repeat(60);
    // The end of the body never comes.
    client
        .write(format!("3c\r\n{piece}\r\n3c\r\n{piece}\r\n"))
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.code().as_deref(), Some("request-too-large"));
    assert_eq!(api.runs.get(), 0);
}
