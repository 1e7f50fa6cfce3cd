//! A streamed answer reaches its first caller as it comes, and whoever has seen its end
//! finds it on record.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use support::faults::{Call, Fault, FaultStore};
use support::gates::{Gate, gated, until};
use support::server::Server;
use support::stores::store;
use support::wire::{Http1, Http2, http1_post, next};
use support::{Answer, Runs};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tower_idempotency::store::AnyStore;
use tower_idempotency::{IdempotencyLayer, InFlight, SharedByAllCallers};

const CHUNK: usize = 16 * 1024;
const PARTS: &[&str] = &["one ", "two ", "three"];
const WHOLE: &str = "one two three";

/// Handlers whose answers are streamed. Parts that were written down wait at the gate.
struct Api {
    addr: SocketAddr,
    store: FaultStore<AnyStore>,
    in_flight: InFlight,
    runs: Runs,
    gate: Gate,
    produced: Runs,
}

type Layer = IdempotencyLayer<FaultStore<AnyStore>>;

impl Api {
    async fn start() -> Self {
        Self::start_with(|layer| layer).await
    }

    async fn start_with(options: impl FnOnce(Layer) -> Layer) -> Self {
        let store = FaultStore::new(store());
        let layer = options(IdempotencyLayer::new(store.clone(), SharedByAllCallers));
        let (runs, gate, produced) = (Runs::default(), Gate::default(), Runs::default());
        let handler = {
            let (runs, gate, produced) = (runs.clone(), gate.clone(), produced.clone());
            move |uri: Uri| async move {
                runs.add();
                answer(&uri, &gate, produced)
            }
        };
        let app = Router::new().fallback(post(handler)).layer(layer.clone());
        // Without delay, since an end that is held back is a segment of its own.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(axum::serve(listener, app).into_future());
        Self {
            addr,
            in_flight: layer.in_flight(),
            store,
            runs,
            gate,
            produced,
        }
    }

    async fn http1(&self) -> Http1 {
        Http1::connect(self.addr).await
    }

    async fn retry(&self, path: &str) -> Answer {
        self.http1().await.post(path, "k", "").await
    }

    async fn idle(&self) {
        until("no exchange is left", || self.in_flight.count() == 0).await;
    }
}

fn answer(uri: &Uri, gate: &Gate, produced: Runs) -> Response {
    let count = || uri.query().unwrap().parse::<usize>().unwrap();
    match uri.path() {
        "/gated" => gated(gate, PARTS).into_response(),
        // The length is in the head, and the body does not tell it.
        "/declared" => ([(CONTENT_LENGTH, WHOLE.len())], gated(gate, PARTS)).into_response(),
        "/no-content" => (StatusCode::NO_CONTENT, gated(gate, &[])).into_response(),
        "/declared-empty" => ([(CONTENT_LENGTH, 0)], gated(gate, &[])).into_response(),
        "/known" => "x".repeat(count()).into_response(),
        "/chunked" => chunks(count().div_ceil(CHUNK), produced).into_response(),
        "/endless" => chunks(usize::MAX, produced).into_response(),
        "/broken" => {
            let gate = gate.clone();
            let failure = stream::once(async move {
                gate.pass().await;
                Err(std::io::Error::other("planned"))
            });
            let chunk = stream::once(async { Ok(Bytes::from_static(b"begun")) });
            Body::from_stream(chunk.chain(failure)).into_response()
        }
        path => panic!("no such route: {path}"),
    }
}

/// So many chunks, each of them counted as it is made.
fn chunks(chunks: usize, produced: Runs) -> Body {
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    Body::from_stream(stream::iter(0..chunks).map(move |_| {
        produced.add();
        Ok::<_, Infallible>(chunk.clone())
    }))
}

#[tokio::test]
async fn the_first_caller_gets_each_part_as_it_comes_over_http_1() {
    let api = Api::start().await;
    let mut client = api.http1().await;
    client.write(http1_post("/gated", "k", &[], "")).await;
    assert_eq!(client.head().await.status, StatusCode::OK);
    for part in PARTS {
        assert_eq!(api.retry("/gated").await.code().unwrap(), "in-progress");
        assert_eq!(api.store.count(Call::Complete), 0);
        api.gate.open(1);
        assert_eq!(client.chunk().await, part);
    }
    assert_eq!(client.chunk().await, "");
    assert_eq!(api.store.count(Call::Complete), 1);
    assert_eq!(api.retry("/gated").await.text(), WHOLE);
    assert_eq!(api.runs.get(), 1);
    api.idle().await;
}

#[tokio::test]
async fn the_first_caller_gets_each_part_as_it_comes_over_http_2() {
    let api = Api::start().await;
    let client = Http2::connect(api.addr).await;
    let (answer, _stream) = client.send("/gated", "k", "").await;
    let mut body = answer.await.unwrap().into_body();
    for part in PARTS {
        assert_eq!(api.retry("/gated").await.code().unwrap(), "in-progress");
        assert_eq!(api.store.count(Call::Complete), 0);
        api.gate.open(1);
        assert_eq!(next(&mut body).await.unwrap(), part);
    }
    // The frame that ends the stream, which is empty.
    while let Some(rest) = next(&mut body).await {
        assert_eq!(rest, "");
    }
    let retry = client.post("/gated", "k", "").await;
    assert_eq!(retry.text(), WHOLE);
    assert!(retry.is_replay());
    assert_eq!(api.runs.get(), 1);
    api.idle().await;
}

#[tokio::test]
async fn the_part_that_completes_a_declared_length_waits_for_the_record() {
    let api = Api::start_with(|layer| layer.store_timeout(Duration::from_secs(30))).await;
    api.store
        .once(Call::Complete, Fault::Slow(Duration::from_millis(300)));
    api.gate.open(2);
    let mut client = api.http1().await;
    client.write(http1_post("/declared", "k", &[], "")).await;
    assert_eq!(client.head().await.headers["content-length"], "13");
    assert_eq!(client.bytes(8).await, "one two ");

    api.gate.open_for_all();
    until("the record is sent", || {
        api.store.count(Call::Complete) == 1
    })
    .await;
    assert_eq!(api.retry("/declared").await.code().unwrap(), "in-progress");
    assert_eq!(client.bytes(5).await, "three");
    let retry = api.retry("/declared").await;
    assert_eq!(retry.text(), WHOLE);
    assert_eq!(retry.header("content-length"), Some("13"));
    assert!(retry.is_replay());
    assert_eq!(api.runs.get(), 1);
    api.idle().await;
}

#[tokio::test]
async fn a_store_that_hangs_holds_the_end_of_an_answer_back_no_longer_than_its_time() {
    for path in ["/gated", "/declared"] {
        let api = Api::start_with(|layer| layer.store_timeout(Duration::from_millis(200))).await;
        api.store.once(Call::Complete, Fault::Hangs);
        api.gate.open_for_all();
        let answer = api.retry(path).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, WHOLE));
        assert!(!answer.is_replay());

        api.idle().await;
        let retry = api.retry(path).await;
        assert_eq!(retry.text(), WHOLE, "recorded in the background");
        assert!(retry.is_replay());
        assert_eq!(api.runs.get(), 1, "{path}");
    }
}

/// 200 answers read to their last byte, each followed at once by a retry on a connection
/// of its own.
async fn whoever_has_seen_the_end_finds_the_record(path: &str, over_http_2: bool) {
    let api = Api::start().await;
    api.store.always(Call::Complete, Fault::Suspends(3));
    api.gate.open_for_all();
    let mut first = api.http1().await;
    let mut second = api.http1().await;
    let multiplexed = Http2::connect(api.addr).await;
    for round in 0..200 {
        let key = format!("k-{round}");
        let (answer, retry) = if over_http_2 {
            let answer = multiplexed.post(path, &key, "").await;
            (answer, multiplexed.post(path, &key, "").await)
        } else {
            let answer = first.post(path, &key, "").await;
            (answer, second.post(path, &key, "").await)
        };
        assert!(!answer.is_replay());
        assert!(retry.is_replay(), "round {round}: {retry:?}");
        assert_eq!(retry.status, answer.status);
        assert_eq!(retry.body, answer.body);
    }
    assert_eq!(api.runs.get(), 200);
    api.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_seen_the_end_of_a_known_length_finds_the_record() {
    whoever_has_seen_the_end_finds_the_record("/known?1000", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_seen_the_end_of_a_chunked_answer_finds_the_record() {
    whoever_has_seen_the_end_finds_the_record("/gated", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_seen_the_end_of_a_declared_length_finds_the_record() {
    whoever_has_seen_the_end_finds_the_record("/declared", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_seen_the_end_of_an_http_2_stream_finds_the_record() {
    for path in ["/known?1000", "/gated", "/declared", "/no-content"] {
        whoever_has_seen_the_end_finds_the_record(path, true).await;
    }
}

/// A server does not ask for the body of such an answer at all: its head is its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_seen_an_answer_that_can_have_no_body_finds_the_record() {
    for path in ["/no-content", "/declared-empty"] {
        whoever_has_seen_the_end_finds_the_record(path, false).await;
    }
}

/// A server that writes head, body and end apart, without `TCP_NODELAY` as is the default
/// of most, waits up to 40 ms for the client's acknowledgement between them.
#[tokio::test]
async fn an_answer_that_is_there_at_once_is_not_slower_for_being_of_unknown_length() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let runs = Runs::default();
    let handler = {
        let runs = runs.clone();
        move || async move {
            runs.add();
            Body::from_stream(stream::iter(PARTS.iter().copied().map(Ok::<_, Infallible>)))
        }
    };
    let app = Router::new().route("/", post(handler)).route_layer(layer);
    let server = Server::start(app).await;
    let mut client = Http1::connect(server.addr).await;
    let began = Instant::now();
    for round in 0..50 {
        let answer = client.post("/", &format!("k-{round}"), "").await;
        assert_eq!(answer.text(), WHOLE);
    }
    let elapsed = began.elapsed();
    assert!(
        elapsed < Duration::from_secs(1),
        "{elapsed:?} for 50 answers"
    );
    assert_eq!(runs.get(), 50);
}

#[tokio::test]
async fn an_answer_of_unknown_length_within_the_limit_is_replayed_with_its_length() {
    let api = Api::start().await;
    let answer = api.retry("/chunked?1048576").await;
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(answer.body.len(), 1024 * 1024);

    let retry = api.retry("/chunked?1048576").await;
    assert_eq!(retry.header("content-length"), Some("1048576"));
    assert_eq!(retry.header("transfer-encoding"), None);
    assert_eq!(retry.header("idempotency-body"), None);
    assert_eq!(retry.body, answer.body);
    assert!(retry.is_replay());
    assert_eq!(api.runs.get(), 1);
    api.idle().await;
}

#[tokio::test]
async fn an_answer_over_the_limit_reaches_the_first_caller_whole_and_retries_without_body() {
    for path in ["/known?1048577", "/chunked?1064960"] {
        let api = Api::start().await;
        let answer = api.retry(path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(
            answer.body.len().to_string(),
            path.split_once('?').unwrap().1
        );
        assert_eq!(answer.header("idempotency-stored"), None);

        let retry = api.retry(path).await;
        assert_eq!(retry.status, StatusCode::OK);
        assert!(retry.is_replay(), "{path}");
        assert_eq!(retry.header("idempotency-body"), Some("omitted"), "{path}");
        assert_eq!(retry.header("content-length"), Some("0"));
        assert_eq!(retry.header("content-type"), answer.header("content-type"));
        assert_eq!(api.runs.get(), 1);
        api.idle().await;
    }
}

#[tokio::test]
async fn an_endless_answer_is_recorded_as_omitted_and_ends_with_its_client() {
    let api = Api::start().await;
    let mut client = api.http1().await;
    client.write(http1_post("/endless", "k", &[], "")).await;
    client.head().await;
    let mut read = 0;
    while read < 8 * 1024 * 1024 {
        read += client.chunk().await.len();
    }
    // Long before its end, and while it is being sent.
    let retry = api.retry("/endless").await;
    assert!(retry.is_replay());
    assert_eq!(retry.header("idempotency-body"), Some("omitted"));
    assert_eq!(retry.body, "");
    client.close();
    api.idle().await;

    let produced = api.produced.get();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(api.produced.get(), produced, "nobody reads on");
    assert_eq!(api.runs.get(), 1);
}

#[tokio::test]
async fn a_client_that_stops_reading_keeps_its_key() {
    let body = 64 * 1024 * 1024;
    let path = format!("/chunked?{body}");
    let api = Api::start_with(|layer| {
        layer
            .lease(Duration::from_secs(1))
            .store_timeout(Duration::from_secs(30))
            .response_body_limit(body)
    })
    .await;
    let mut client = api.http1().await;
    client.write(http1_post(&path, "k", &[], "")).await;
    let head = client.head().await;
    // Every renewal is a third of the lease after the one before it.
    until("more than a lease has passed", || {
        api.store.count(Call::Extend) >= 5
    })
    .await;
    assert!(api.produced.get() < body / CHUNK, "the server waits for it");
    assert_eq!(api.retry(&path).await.code().unwrap(), "in-progress");
    assert_eq!(api.in_flight.count(), 1);

    let answer = client.body(head).await;
    assert_eq!(answer.body.len(), body);
    let retry = api.retry(&path).await;
    assert!(retry.is_replay());
    assert_eq!(retry.body.len(), body);
    assert_eq!(api.runs.get(), 1);
    api.idle().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failed_run_and_the_client_sees_it_break_off() {
    let api = Api::start().await;
    for run in 1..=2 {
        let mut client = api.http1().await;
        client.write(http1_post("/broken", "k", &[], "")).await;
        assert_eq!(client.head().await.status, StatusCode::OK);
        assert_eq!(client.chunk().await, "begun");
        api.gate.open(1);
        assert_eq!(client.rest().await, "", "and no end");
        api.idle().await;
        assert_eq!(api.runs.get(), run);
    }
}
