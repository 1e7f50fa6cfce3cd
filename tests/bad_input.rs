//! Whatever a client sends: a clear refusal or the true answer, and never a second run.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes as Body;
use axum::routing::any;
use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use http_body_util::Full;
use proptest::prelude::*;
use support::faults::{Call, FaultStore};
use support::pieces::{Script, Step, assert_ran, assert_refused, assert_replays, cases, handler};
use support::server::Server;
use support::stores::store;
use support::{Runs, counting, created, post, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tower_idempotency::store::AnyStore;
use tower_idempotency::{IdempotencyLayer, Outcome, RejectionKind, SharedByAllCallers};

type Store = FaultStore<AnyStore>;

const LIMIT: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that echoes, with everything that a test looks at.
struct Rig {
    server: Server,
    layer: IdempotencyLayer<Store>,
    store: Store,
    runs: Runs,
}

impl Rig {
    async fn start() -> Self {
        let store = FaultStore::new(store());
        let layer =
            IdempotencyLayer::new(store.clone(), SharedByAllCallers).request_body_limit(LIMIT);
        let runs = Runs::default();
        let counted = runs.clone();
        let echo = any(async move |body: Body| {
            counted.add();
            body
        });
        let (silent, panics) = (runs.clone(), runs.clone());
        let app = Router::new()
            .route("/echo", echo)
            .route("/silent", any(async move || assert!(silent.add() > 0)))
            .route(
                "/panics-once",
                any(async move || assert!(panics.add() > 1, "planned")),
            )
            .layer(layer.clone());
        let server = Server::start(app).await;
        Self {
            server,
            layer,
            store,
            runs,
        }
    }

    async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        timeout(PATIENCE, self.server.exchange(request))
            .await
            .unwrap()
    }

    /// Nothing was run and nothing is held; the server goes on, and the key is free.
    async fn assert_untouched(&self) {
        timeout(PATIENCE, self.layer.in_flight().idle())
            .await
            .unwrap();
        assert_eq!(self.runs.get(), 0);
        assert_eq!(self.store.count(Call::Claim), 0);
        let answer = self.exchange(request("k", "", "hello")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
        assert_eq!((self.runs.get(), self.store.count(Call::Complete)), (1, 1));
    }
}

/// One request with its length, on a connection that ends with it.
fn request(key: &str, fields: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         idempotency-key: {key}\r\n{fields}content-length: {len}\r\n\r\n{body}"
    )
}

const CHUNKED: &str = "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                       idempotency-key: k\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn an_endless_body_is_read_to_the_limit_and_no_further() {
    let chunk = Bytes::from(vec![b'x'; 1024]);
    let body = Script::endless(chunk);
    let polls = body.polls();
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).request_body_limit(LIMIT);
    let (service, runs) = handler(&layer, |_, _: Request<_>| created("done"));
    let answer = send(&service, post("k", "").map(|_: Full<Bytes>| body)).await;
    assert_refused(&answer, RejectionKind::RequestTooLarge);
    assert_eq!(polls.load(Ordering::SeqCst), LIMIT / 1024 + 1);
    assert_eq!((runs.get(), layer.in_flight().count()), (0, 0));
    assert_eq!(store.count(Call::Claim), 0);
}

#[tokio::test]
async fn an_endless_upload_is_refused_while_the_client_still_sends() {
    let rig = Rig::start().await;
    let (mut from, mut to) = rig.server.connect().await.into_split();
    let sender = tokio::spawn(async move {
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        let mut sent = 0_usize;
        let _ = to.write_all(CHUNKED.as_bytes()).await;
        while to.write_all(chunk.as_bytes()).await.is_ok() {
            sent += chunk.len();
        }
        sent
    });
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while let Ok(Ok(len)) = timeout(PATIENCE, from.read(&mut part)).await {
        answer.extend_from_slice(&part[..len]);
        if len == 0 {
            break;
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("request-too-large"), "{answer}");
    drop(from);
    let sent = timeout(PATIENCE, sender).await.unwrap().unwrap();
    // What stands in buffers of both sides on top of what was read.
    assert!(sent < 64 * 1024 * 1024, "{sent}");
    rig.assert_untouched().await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_claims_nothing() {
    for begun in [
        "POST /echo HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\ncontent-length: 5\r\n\r\n"
            .to_owned(),
        request("k", "", "hello").replace("\r\n\r\nhello", "\r\n\r\nhell"),
        format!("{CHUNKED}5\r\nhello\r\n"),
        format!("{CHUNKED}5\r\nhel"),
        format!("{CHUNKED}5\r\nhello\r\n0\r\n"),
        CHUNKED.to_owned(),
        CHUNKED.trim_end().to_owned(),
    ] {
        let rig = Rig::start().await;
        let mut client = rig.server.connect().await;
        client.write_all(begun.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = client.read_to_end(&mut answer);
        let _ = timeout(PATIENCE, read).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(!answer.contains(" 200 "), "{answer}");
        rig.assert_untouched().await;
    }
}

#[tokio::test]
async fn a_body_in_broken_chunks_claims_nothing() {
    for chunks in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "-1\r\nx\r\n",
        "ffffffffffffffffff\r\nx\r\n",
    ] {
        let rig = Rig::start().await;
        let answer = rig.exchange(format!("{CHUNKED}{chunks}")).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
        rig.assert_untouched().await;
    }
}

#[tokio::test]
async fn keys_that_are_none_are_refused_over_the_wire() {
    let bad = [
        "", "   ", "\"\"", "a b", "a,b", "\"open", "a\\b", "r\u{e9}q",
    ];
    let long = [256, 64 * 1024].map(|len| "k".repeat(len));
    for key in bad.into_iter().chain(long.iter().map(String::as_str)) {
        let rig = Rig::start().await;
        let answer = rig.exchange(request(key, "", "hello")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains("\"code\":\"invalid-key\""), "{answer}");
        rig.assert_untouched().await;
    }
    let rig = Rig::start().await;
    for second in ["k", "other", ""] {
        let fields = format!("Idempotency-Key: {second}\r\n");
        let answer = rig.exchange(request("k", &fields, "hello")).await;
        assert!(answer.contains("\"code\":\"invalid-key\""), "{answer}");
    }
    rig.assert_untouched().await;
}

#[tokio::test]
async fn a_key_of_a_megabyte_or_a_thousand_fields_runs_nothing() {
    let rig = Rig::start().await;
    let huge = "k".repeat(1024 * 1024);
    let many: String = (0..1000)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    for request in [request(&huge, "", ""), request("k", &many, "")] {
        let answer = rig.exchange(request).await;
        // The server itself says so, or has hung up on a client that still wrote.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    rig.assert_untouched().await;

    let store = FaultStore::new(store());
    let (service, runs) = counting(&IdempotencyLayer::new(store.clone(), SharedByAllCallers));
    for key in [
        huge.clone(),
        format!("\"{huge}\""),
        format!("\"k\";p=\"{huge}"),
    ] {
        let mut request = post("k", "");
        let key = HeaderValue::from_str(&key).unwrap();
        request.headers_mut().insert("idempotency-key", key);
        assert_refused(&send(&service, request).await, RejectionKind::InvalidKey);
    }
    assert_eq!((runs.get(), store.count(Call::Claim)), (0, 0));
}

#[tokio::test]
async fn a_request_with_as_many_fields_as_a_map_holds_is_protected_all_the_same() {
    let (service, runs) = counting(&IdempotencyLayer::new(store(), SharedByAllCallers));
    let crowded = || {
        let mut request = post("k", "body");
        for number in 0..24_000 {
            let name: http::HeaderName = format!("x-{number}").parse().unwrap();
            request
                .headers_mut()
                .append(name, HeaderValue::from_static("1"));
        }
        request
    };
    let first = send(&service, crowded()).await;
    assert_ran(&first, 1, true);
    assert_replays(&first, &send(&service, crowded()).await);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn one_request_is_the_same_with_its_length_and_in_chunks() {
    let rig = Rig::start().await;
    let first = rig.exchange(request("k", "", "hello")).await;
    assert!(first.ends_with("\r\n\r\nhello"), "{first}");
    for chunks in [
        "5\r\nhello\r\n0\r\n\r\n",
        "2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nx-trailer: 1\r\n\r\n",
    ] {
        let retry = rig.exchange(format!("{CHUNKED}{chunks}")).await;
        assert!(retry.contains("idempotent-replayed: true\r\n"), "{retry}");
        assert!(retry.ends_with("\r\n\r\nhello"), "{retry}");
    }
    assert_eq!(rig.runs.get(), 1);
}

#[tokio::test]
async fn two_requests_in_one_packet_run_once() {
    let rig = Rig::start().await;
    let last = request("k", "", "hello");
    let first = last.replace("connection: close\r\n", "");
    let answers = rig.exchange(format!("{first}{last}")).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    assert_eq!(answers.matches("idempotent-replayed: true").count(), 1);
    assert_eq!((rig.runs.get(), rig.store.count(Call::Complete)), (1, 1));
}

#[tokio::test]
async fn a_handler_that_has_nothing_to_say_is_replayed_as_it_is() {
    let rig = Rig::start().await;
    let request = request("k", "", "").replace("/echo", "/silent");
    let first = rig.exchange(&request).await;
    let retry = rig.exchange(&request).await;
    for answer in [&first, &retry] {
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-length: 0\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    assert!(!first.contains("idempotent-replayed"));
    assert!(retry.contains("idempotent-replayed: true"));
    assert_eq!(rig.runs.get(), 1);
}

#[tokio::test]
async fn a_handler_that_panics_leaves_a_key_for_the_same_request() {
    let rig = Rig::start().await;
    let request = request("k", "", "body").replace("/echo", "/panics-once");
    assert_eq!(rig.exchange(&request).await, "");
    timeout(PATIENCE, rig.layer.in_flight().idle())
        .await
        .unwrap();
    let other = rig.exchange(request.replace("body", "BODY")).await;
    assert!(other.contains("\"code\":\"key-reused\""), "{other}");
    let again = rig.exchange(&request).await;
    assert!(again.starts_with("HTTP/1.1 200"), "{again}");
    assert!(!again.contains("idempotent-replayed"), "{again}");
    let retry = rig.exchange(&request).await;
    assert!(retry.contains("idempotent-replayed: true"), "{retry}");
    assert_eq!(rig.runs.get(), 2);
}

proptest! {
    #![proptest_config(cases(1500))]

    /// Whatever the request: refused and nothing ran, or it ran, and never twice once its
    /// answer is on record.
    #[test]
    fn any_request_is_refused_or_runs_once(
        method in prop::sample::select(vec!["POST", "PUT", "PATCH", "DELETE", "X"]),
        keys in prop::collection::vec(
            prop::collection::vec(prop_oneof![3 => 0x20_u8..=0x7e, 1 => 0x80_u8..], 0..6), 1..3),
        content_type in prop::option::of(prop::collection::vec(0x20_u8..=0x7e, 0..8)),
        frames in prop::collection::vec("[a-z]{0,6}", 0..4),
        declared in prop::option::of("[0-9 +x-]{0,3}"),
        fails in prop::bool::weighted(0.1),
        limit in 0_usize..20,
    ) {
        let request = || {
            let mut steps: Vec<Step> = frames.iter().map(|data| Step::Data(data.clone().into())).collect();
            if fails {
                steps.push(Step::Fails);
            }
            let mut request = Request::new(Script::new(steps));
            *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
            let headers = request.headers_mut();
            for key in &keys {
                headers.append("idempotency-key", HeaderValue::from_bytes(key).unwrap());
            }
            if let Some(value) = &content_type {
                headers.insert("content-type", HeaderValue::from_bytes(value).unwrap());
            }
            if let Some(value) = &declared {
                headers.insert("content-length", HeaderValue::from_str(value).unwrap());
            }
            request
        };
        let store = FaultStore::new(store());
        let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).request_body_limit(limit);
        let (service, runs) = handler(&layer, |_, _: Request<_>| created("done"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let [first, retry] = runtime.block_on(async {
            [send(&service, request()).await, send(&service, request()).await]
        });
        match first.outcome {
            Some(Outcome::Rejected(kind)) => {
                assert_refused(&first, kind);
                prop_assert_eq!(&retry, &first);
                prop_assert_eq!((runs.get(), store.count(Call::Claim)), (0, 0));
            }
            _ => {
                assert_ran(&first, 1, true);
                assert_replays(&first, &retry);
                prop_assert_eq!((runs.get(), store.count(Call::Complete)), (1, 1));
            }
        }
        prop_assert_eq!(layer.in_flight().count(), 0);
    }
}
