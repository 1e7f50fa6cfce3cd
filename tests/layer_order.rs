//! Other layers keep their promises around this one, and this one keeps its own around
//! them.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::{StreamExt, stream};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use support::faults::{Call, FaultStore};
use support::gates::{Gate, gated};
use support::stores::store;
use support::{Answer, Runs, send};
use tower::{Layer, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::normalize_path::NormalizePathLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::timeout::RequestBodyTimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_idempotency::store::AnyStore;
use tower_idempotency::{
    FailurePolicy, IdempotencyLayer, Outcome, RejectionKind, SharedByAllCallers, header,
};

type Store = FaultStore<AnyStore>;

fn layer() -> (IdempotencyLayer<Store>, Store) {
    let store = FaultStore::new(store());
    (
        IdempotencyLayer::new(store.clone(), SharedByAllCallers),
        store,
    )
}

/// Answers with a text long enough to be worth compressing.
fn things(runs: &Runs) -> Router {
    let runs = runs.clone();
    Router::new().route(
        "/things",
        post(move || async move { format!("run {} {}", runs.add(), "x".repeat(1000)) }),
    )
}

fn request() -> Request {
    let request = Request::post("/things").header("idempotency-key", "k");
    request.body(Body::empty()).unwrap()
}

fn with(name: HeaderName, value: &'static str) -> Request {
    let mut request = request();
    let value = HeaderValue::from_static(value);
    request.headers_mut().insert(name, value);
    request
}

#[tokio::test(start_paused = true)]
async fn compression_outside_encodes_a_replay_as_its_own_caller_asks() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = things(&runs).layer(layer).layer(CompressionLayer::new());
    let gzip = || with(http::header::ACCEPT_ENCODING, "gzip");
    let first = send(&app, gzip()).await;
    assert_eq!(first.header("content-encoding"), Some("gzip"));

    let plain = send(&app, request()).await;
    assert_eq!(plain.header("content-encoding"), None);
    assert_eq!(plain.text(), format!("run 1 {}", "x".repeat(1000)));
    assert!(plain.is_replay());
    let encoded = send(&app, gzip()).await;
    assert_eq!(encoded.header("content-encoding"), Some("gzip"));
    assert_eq!(encoded.body, first.body);
    assert!(encoded.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn compression_inside_is_recorded_and_replayed_encoded() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = things(&runs).layer(CompressionLayer::new()).layer(layer);
    let first = send(&app, with(http::header::ACCEPT_ENCODING, "gzip")).await;
    assert_eq!(first.header("content-encoding"), Some("gzip"));

    let retry = send(&app, request()).await;
    assert_eq!(retry.header("content-encoding"), Some("gzip"));
    assert_eq!(retry.header("vary"), first.header("vary"));
    assert_eq!(retry.body, first.body);
    assert!(retry.is_replay());
    assert_eq!(runs.get(), 1);
}

fn preflight() -> Request {
    Request::options("/things")
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-key")
        .body(Body::empty())
        .unwrap()
}

fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(HeaderValue::from_static("https://shop.example"))
        .allow_methods([Method::POST])
        .allow_headers([header::IDEMPOTENCY_KEY])
        .expose_headers([
            header::IDEMPOTENT_REPLAYED,
            header::IDEMPOTENCY_STORED,
            header::IDEMPOTENCY_BODY,
        ])
}

#[track_caller]
fn assert_may_be_sent(preflight: &Answer) {
    assert_eq!(preflight.status, StatusCode::OK);
    assert_eq!(
        preflight.header("access-control-allow-headers"),
        Some("idempotency-key")
    );
}

#[tokio::test(start_paused = true)]
async fn cors_outside_lets_a_browser_read_replays_and_refusals() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = things(&runs).layer(layer.require_key(true)).layer(cors());
    assert_may_be_sent(&send(&app, preflight()).await);

    let origin = || with(http::header::ORIGIN, "https://shop.example");
    let mut no_key = origin();
    no_key.headers_mut().remove("idempotency-key");
    let first = send(&app, origin()).await;
    let replay = send(&app, origin()).await;
    let refusal = send(&app, no_key).await;
    assert!(replay.is_replay());
    assert_eq!(refusal.code().as_deref(), Some("missing-key"));
    for answer in [first, replay, refusal] {
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("https://shop.example")
        );
        assert_eq!(
            answer.header("access-control-expose-headers"),
            Some("idempotent-replayed,idempotency-stored,idempotency-body")
        );
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn cors_inside_still_answers_every_preflight() {
    let (runs, (layer, store)) = (Runs::default(), layer());
    let app = things(&runs).layer(cors()).layer(layer.require_key(true));
    let mut keyed = preflight();
    let key = HeaderValue::from_static("k");
    keyed.headers_mut().insert(header::IDEMPOTENCY_KEY, key);
    for request in [preflight(), keyed] {
        assert_may_be_sent(&send(&app, request).await);
    }
    assert_eq!((runs.get(), store.count(Call::Claim)), (0, 0));
}

fn panics(runs: &Runs) -> Router {
    let runs = runs.clone();
    let handler = move || async move {
        let run = runs.add();
        assert!(run > 1, "planned");
        format!("run {run}")
    };
    Router::new().route("/things", post(handler))
}

#[tokio::test(start_paused = true)]
async fn catch_panic_outside_answers_for_a_run_that_failed() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = panics(&runs)
        .layer(layer.clone())
        .layer(CatchPanicLayer::new());
    let first = send(&app, request()).await;
    assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(first.outcome, None, "it is not the layer's answer");
    let second = send(&app, request()).await;
    assert_eq!(second.text(), "run 2");
    assert!(send(&app, request()).await.is_replay());
    assert_eq!(runs.get(), 2);
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn catch_panic_outside_leaves_a_key_sealed_where_a_panic_seals_it() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = panics(&runs)
        .layer(layer.on_failure(FailurePolicy::Replay))
        .layer(CatchPanicLayer::new());
    send(&app, request()).await;
    let retry = send(&app, request()).await;
    assert_eq!(retry.code().as_deref(), Some("outcome-unknown"));
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn catch_panic_inside_makes_an_answer_that_can_be_replayed() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = panics(&runs)
        .layer(CatchPanicLayer::new())
        .layer(layer.on_failure(FailurePolicy::Replay));
    let first = send(&app, request()).await;
    assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR);
    let retry = send(&app, request()).await;
    assert_eq!((retry.status, &retry.body), (first.status, &first.body));
    assert!(retry.is_replay());
    assert_eq!(runs.get(), 1);
}

#[derive(Clone, Default)]
struct Counter(Arc<AtomicUsize>);

impl MakeRequestId for Counter {
    fn make_request_id<B>(&mut self, _: &http::Request<B>) -> Option<RequestId> {
        let id = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        Some(RequestId::new(id.to_string().parse().unwrap()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_id_set_outside_is_that_of_the_retry() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = things(&runs)
        .layer(layer)
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(Counter::default()));
    for id in ["1", "2", "3"] {
        let answer = send(&app, request()).await;
        assert_eq!(answer.header("x-request-id"), Some(id));
        assert_eq!(answer.is_replay(), id != "1");
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_id_set_inside_is_that_of_the_first_run() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = things(&runs)
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(Counter::default()))
        .layer(layer);
    for _ in 0..3 {
        let answer = send(&app, request()).await;
        assert_eq!(answer.header("x-request-id"), Some("1"));
    }
    assert_eq!(runs.get(), 1);
}

/// A request whose body is known to nobody in advance.
fn streamed(body: Body) -> Request {
    let (head, _) = request().into_parts();
    Request::from_parts(head, body)
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_a_time_limit_outside_ends_has_claimed_nothing() {
    let (runs, (layer, store)) = (Runs::default(), layer());
    let limit = RequestBodyTimeoutLayer::new(Duration::from_secs(5));
    let app = things(&runs).layer(layer.clone()).layer(limit);
    let stalled = gated(&Gate::default(), &["never sent"]);
    let refused = send(&app, streamed(stalled)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.code().as_deref(), Some("unreadable-body"));
    assert_eq!((runs.get(), store.count(Call::Claim)), (0, 0));
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_a_size_limit_outside_ends_has_claimed_nothing() {
    let (runs, (layer, store)) = (Runs::default(), layer());
    let app = things(&runs)
        .layer(layer.clone())
        .layer(RequestBodyLimitLayer::new(10));
    let mut declared = streamed(Body::from("x".repeat(11)));
    let eleven = HeaderValue::from_static("11");
    declared.headers_mut().insert("content-length", eleven);
    let refused = send(&app, declared).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(refused.outcome, None, "it is the limit's own answer");

    let pieces = stream::iter(["123456", "789012"]).map(Ok::<_, std::io::Error>);
    let refused = send(&app, streamed(Body::from_stream(pieces))).await;
    assert!(refused.status.is_client_error());
    assert!(matches!(refused.outcome, Some(Outcome::Rejected(_))));
    assert_eq!((runs.get(), store.count(Call::Claim)), (0, 0));
    assert_eq!(layer.in_flight().count(), 0);
}

async fn authenticate(request: Request, next: Next) -> Response {
    if request
        .headers()
        .get(AUTHORIZATION)
        .is_some_and(|value| value == "yes")
    {
        next.run(request).await
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    }
}

#[tokio::test(start_paused = true)]
async fn authentication_outside_keeps_replays_from_the_unauthorised() {
    let (runs, (layer, store)) = (Runs::default(), layer());
    let app = things(&runs).layer(layer).layer(from_fn(authenticate));
    let authorised = || with(AUTHORIZATION, "yes");
    let first = send(&app, authorised()).await;
    assert_eq!(first.status, StatusCode::OK);
    for request in [request(), with(AUTHORIZATION, "no")] {
        let refused = send(&app, request).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert!(!refused.is_replay() && refused.body.is_empty());
    }
    assert_eq!(store.count(Call::Claim), 1);
    let retry = send(&app, authorised()).await;
    assert_eq!(retry.body, first.body);
    assert!(retry.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_401_from_inside_leaves_the_key_to_the_one_who_has_the_right() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = things(&runs).layer(from_fn(authenticate)).layer(layer);
    let refused = send(&app, request()).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let authorised = send(&app, with(AUTHORIZATION, "yes")).await;
    assert_eq!(authorised.status, StatusCode::OK);
    assert!(!authorised.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn paths_that_a_layer_outside_makes_the_same_are_the_same_request() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let app = NormalizePathLayer::trim_trailing_slash().layer(things(&runs).layer(layer));
    let mut with_slash = request();
    *with_slash.uri_mut() = "/things/".parse().unwrap();
    let first = send(&app, request()).await;
    let retry = send(&app, with_slash).await;
    assert_eq!(retry.body, first.body);
    assert!(retry.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn traces_outside_and_inside_change_nothing() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    let handler = {
        let (runs, gate) = (runs.clone(), gate.clone());
        move || async move {
            runs.add();
            gated(&gate, &["one ", "two"])
        }
    };
    let all = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(layer.clone())
        .layer(TraceLayer::new_for_http());
    let app = Router::new().route("/things", post(handler)).layer(all);
    gate.open_for_all();
    for retries in 0..3 {
        let answer = send(&app, request()).await;
        assert_eq!(answer.text(), "one two");
        assert_eq!(answer.is_replay(), retries > 0);
    }
    assert_eq!(runs.get(), 1);
    layer.in_flight().idle().await;
}

#[tokio::test(start_paused = true)]
async fn what_became_of_a_request_is_told_to_the_layers_outside() {
    let (runs, (layer, _)) = (Runs::default(), layer());
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let metrics = {
        let seen = Arc::clone(&seen);
        from_fn(move |request: Request, next: Next| {
            let seen = Arc::clone(&seen);
            async move {
                let answer = next.run(request).await;
                seen.lock()
                    .unwrap()
                    .push(answer.extensions().get().copied());
                answer
            }
        })
    };
    let app = things(&runs).layer(layer.require_key(true)).layer(metrics);
    let mut other = request();
    *other.method_mut() = Method::PUT;
    let mut no_key = request();
    no_key.headers_mut().remove("idempotency-key");
    let mut safe = request();
    *safe.method_mut() = Method::GET;
    for request in [request(), request(), other, no_key, safe] {
        send(&app, request).await;
    }
    let executed = Outcome::Executed {
        attempt: 1,
        stored: Some(true),
    };
    let expected = [
        Some(executed),
        Some(Outcome::Replayed),
        Some(Outcome::Rejected(RejectionKind::KeyReused)),
        Some(Outcome::Rejected(RejectionKind::MissingKey)),
        None,
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(runs.get(), 1);
}
