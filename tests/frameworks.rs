//! The layer stands wherever a tower layer may stand, and does the same there.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::extract::{Extension, OriginalUri, State};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use support::faults::{Call, FaultStore};
use support::gates::until;
use support::server::Server;
use support::stores::store;
use support::wire::{Http1, Http2};
use support::{Answer, Runs, post as request, send};
use tokio::net::TcpListener;
use tower::{Layer, Service};
use tower_idempotency::{
    IdempotencyLayer, InFlight, Operation, RequestBody, RequestDigest, ResponseBody,
    SharedByAllCallers,
};

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

/// A handler that counts its runs.
fn counting(runs: &Runs) -> MethodRouter {
    let runs = runs.clone();
    post(move |body: String| async move {
        let run = runs.add();
        (StatusCode::CREATED, format!("run {run}: {body}"))
    })
}

/// One request and its retries, over both versions of HTTP: one run, then replays.
async fn runs_once_and_is_replayed(addr: SocketAddr, runs: &Runs, in_flight: InFlight) {
    let http2 = Http2::connect(addr).await;
    let mut http1 = Http1::connect(addr).await;
    let before = runs.get();
    let first = http1.post("/things", "from-1", "charge").await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.text(), format!("run {}: charge", before + 1));
    assert!(!first.is_replay());
    let second = http2.post("/things", "from-2", "charge").await;
    assert_eq!(second.text(), format!("run {}: charge", before + 2));
    assert!(!second.is_replay());

    for (key, first) in [("from-1", &first), ("from-2", &second)] {
        for retry in [
            http1.post("/things", key, "charge").await,
            http2.post("/things", key, "charge").await,
        ] {
            assert_eq!(retry.status, StatusCode::CREATED);
            assert_eq!(retry.body, first.body);
            assert!(retry.is_replay());
        }
        let other = http1.post("/things", key, "another charge").await;
        assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(other.code().as_deref(), Some("key-reused"));
    }
    assert_eq!(runs.get(), before + 2);
    until("no exchange is left", || in_flight.count() == 0).await;
}

#[tokio::test]
async fn it_stands_around_an_axum_router() {
    let (layer, runs) = (layer(), Runs::default());
    let app = Router::new()
        .route("/things", counting(&runs))
        .layer(layer.clone());
    let server = Server::start(app).await;
    runs_once_and_is_replayed(server.addr, &runs, layer.in_flight()).await;
}

#[tokio::test]
async fn it_stands_around_the_routes_of_an_axum_router() {
    let (layer, runs) = (layer(), Runs::default());
    let app = Router::new()
        .route("/things", counting(&runs))
        .route_layer(layer.clone());
    let server = Server::start(app).await;
    runs_once_and_is_replayed(server.addr, &runs, layer.in_flight()).await;
}

#[tokio::test]
async fn it_stands_around_one_route_of_an_axum_router() {
    let (layer, runs) = (layer(), Runs::default());
    let app = Router::new().route("/things", counting(&runs).layer(layer.clone()));
    let server = Server::start(app).await;
    runs_once_and_is_replayed(server.addr, &runs, layer.in_flight()).await;
}

/// Serves a plain tower service, the same one for every connection.
async fn serve<S, R>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<ResponseBody<R>>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    R: http_body::Body + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn it_stands_around_a_plain_service_behind_hyper() {
    let (layer, runs) = (layer(), Runs::default());
    let service = tower::service_fn({
        let runs = runs.clone();
        move |request: Request<RequestBody<Incoming>>| {
            let runs = runs.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let run = runs.add();
                let body = [format!("run {run}: ").as_bytes(), &body].concat();
                let answer = Response::builder().status(StatusCode::CREATED);
                Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(body))).unwrap())
            }
        }
    });
    let addr = serve(layer.layer(service)).await;
    runs_once_and_is_replayed(addr, &runs, layer.in_flight()).await;
}

#[tokio::test]
async fn a_layer_made_for_every_connection_shares_its_records_with_all_of_them() {
    let (layer, runs) = (layer(), Runs::default());
    let (again, handler) = (layer.clone(), counting(&runs));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let make = tower::service_fn(
        move |_connection: axum::serve::IncomingStream<'_, TcpListener>| {
            let app: Router = Router::new()
                .route("/things", handler.clone())
                .layer(again.clone());
            async move { Ok::<_, Infallible>(app) }
        },
    );
    tokio::spawn(async move { axum::serve(listener, make).await.unwrap() });
    runs_once_and_is_replayed(addr, &runs, layer.in_flight()).await;
}

#[tokio::test]
async fn it_stands_in_the_state_of_an_application_without_its_store_in_the_type() {
    #[derive(Clone)]
    struct App {
        idempotency: IdempotencyLayer,
        runs: Runs,
    }
    let state = App {
        idempotency: layer().erased(),
        runs: Runs::default(),
    };
    let handler = async |State(app): State<App>, body: String| {
        let run = app.runs.add();
        (StatusCode::CREATED, format!("run {run}: {body}"))
    };
    let app = Router::new()
        .route("/things", post(handler))
        .route_layer(state.idempotency.clone())
        .with_state(state.clone());
    let server = Server::start(app).await;
    runs_once_and_is_replayed(server.addr, &state.runs, state.idempotency.in_flight()).await;
}

#[tokio::test]
async fn an_unknown_path_is_recorded_under_layer_and_not_under_route_layer() {
    let runs = Runs::default();
    for (around_everything, claims) in [(true, 1), (false, 0)] {
        let store = FaultStore::new(store());
        let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
        let app = Router::new().route("/things", counting(&runs));
        let app = if around_everything {
            app.layer(layer)
        } else {
            app.route_layer(layer)
        };
        let server = Server::start(app).await;
        let mut client = Http1::connect(server.addr).await;
        let first = client.post("/unknown", "k", "").await;
        assert_eq!(first.status, StatusCode::NOT_FOUND);
        assert!(!first.is_replay());
        let retry = client.post("/unknown", "k", "").await;
        assert_eq!(retry.status, StatusCode::NOT_FOUND);
        assert_eq!(retry.is_replay(), around_everything);
        assert_eq!(store.count(Call::Complete), claims);
    }
    assert_eq!(runs.get(), 0);
}

#[tokio::test]
async fn a_handler_is_given_the_operation_where_there_is_one() {
    let required = async |Extension(operation): Extension<Operation>| {
        Json(json!({
            "key": operation.key().as_str(),
            "attempt": operation.attempt(),
            "live": operation.is_live(),
            "child": operation.child_key("charge"),
        }))
    };
    let optional = async |operation: Option<Extension<Operation>>| {
        Json(json!(operation.map(|operation| operation.attempt())))
    };
    let app = Router::new()
        .route("/required", post(required))
        .route("/optional", post(optional).get(optional))
        .route_layer(layer());
    let server = Server::start(app).await;
    let mut client = Http1::connect(server.addr).await;
    let value = |answer: &Answer| serde_json::from_slice::<Value>(&answer.body).unwrap();

    let answer = client.post("/required", "k", "").await;
    let operation = value(&answer);
    assert_eq!(operation["key"], "k");
    assert_eq!(operation["attempt"], 1);
    assert_eq!(operation["live"], true);
    assert_eq!(operation["child"].as_str().unwrap().len(), 32);
    // A replay is the answer of the first run, whatever it said of itself.
    assert_eq!(value(&client.post("/required", "k", "").await), operation);

    assert_eq!(value(&client.post("/optional", "other", "").await), 1);
    for line in ["POST", "GET"] {
        client
            .write(format!(
                "{line} /optional HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n"
            ))
            .await;
        assert_eq!(value(&client.answer().await), Value::Null, "{line}");
    }
    // No key where a handler insists on an operation is the handler's own refusal.
    client
        .write("POST /required HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n")
        .await;
    let refused = client.answer().await;
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!refused.is_replay());
}

#[tokio::test]
async fn a_method_that_is_safe_passes_with_a_key() {
    let runs = Runs::default();
    let handler = {
        let runs = runs.clone();
        get(move || async move { format!("run {}", runs.add()) })
    };
    let app = Router::new().route("/things", handler).layer(layer());
    let server = Server::start(app).await;
    let mut client = Http1::connect(server.addr).await;
    for run in 1..=2 {
        let get = "GET /things HTTP/1.1\r\nhost: test\r\nidempotency-key: k\r\n\r\n";
        client.write(get).await;
        let answer = client.answer().await;
        assert_eq!(answer.text(), format!("run {run}"));
        assert!(!answer.is_replay());
    }
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn routers_nested_under_different_prefixes_are_told_apart_by_the_original_uri() {
    let (payments, refunds) = (Runs::default(), Runs::default());
    let layer = layer().fingerprint(RequestDigest::default().uri_from(|request| {
        let original = request.extensions.get::<OriginalUri>();
        original.map(|uri| uri.0.clone())
    }));
    let nested = |runs| {
        Router::new()
            .route("/new", counting(runs))
            .route_layer(layer.clone())
    };
    let app = Router::new()
        .nest("/payments", nested(&payments))
        .nest("/refunds", nested(&refunds));
    let server = Server::start(app).await;
    let mut client = Http1::connect(server.addr).await;
    assert_eq!(
        client.post("/payments/new", "k", "5").await.text(),
        "run 1: 5"
    );
    let other = client.post("/refunds/new", "k", "5").await;
    assert_eq!(other.code().as_deref(), Some("key-reused"));
    assert!(client.post("/payments/new", "k", "5").await.is_replay());
    assert_eq!((payments.get(), refunds.get()), (1, 0));
}

#[tokio::test]
async fn it_stands_around_a_plain_service_without_any_server() {
    let layer = layer();
    let (service, runs) = support::counting(&layer);
    assert_eq!(send(&service, request("k", "charge")).await.text(), "run 1");
    assert!(send(&service, request("k", "charge")).await.is_replay());
    assert_eq!(runs.get(), 1);
    assert_eq!(layer.in_flight().count(), 0);
}

/// 500 keys over 8 connections, each sent twice and in no order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_clients_gets_one_run_for_each_key_and_one_replay() {
    const KEYS: usize = 500;
    let (layer, runs) = (layer(), Runs::default());
    let app = Router::new()
        .route("/things", counting(&runs))
        .route_layer(layer.clone());
    let server = Server::start(app).await;
    // 7919 shares no factor with 1000: every number below comes up once.
    let order: Vec<usize> = (0..2 * KEYS).map(|n| n * 7919 % (2 * KEYS)).collect();
    let connections = order.chunks(2 * KEYS / 8).map(|share| {
        let (share, addr) = (share.to_vec(), server.addr);
        tokio::spawn(async move {
            let mut client = Http1::connect(addr).await;
            let mut answers = Vec::new();
            for n in share {
                let (key, body) = (format!("k-{}", n % KEYS), format!("charge {}", n % KEYS));
                let mut answer = client.post("/things", &key, &body).await;
                while answer.status == StatusCode::CONFLICT {
                    answer = client.post("/things", &key, &body).await;
                }
                answers.push((n % KEYS, answer));
            }
            answers
        })
    });
    let answers = futures_util::future::join_all(connections.collect::<Vec<_>>()).await;
    let mut answers: Vec<_> = answers.into_iter().flat_map(Result::unwrap).collect();
    answers.sort_by_key(|(key, answer)| (*key, answer.is_replay()));
    for pair in answers.chunks(2) {
        let [(key, first), (same_key, retry)] = pair else {
            panic!("each key was sent twice");
        };
        assert_eq!(key, same_key);
        assert_eq!(first.status, StatusCode::CREATED);
        assert!(first.text().ends_with(&format!(": charge {key}")));
        assert!(!first.is_replay() && retry.is_replay());
        assert_eq!(first.body, retry.body);
    }
    assert_eq!((answers.len(), runs.get()), (2 * KEYS, KEYS));
    until("no exchange is left", || layer.in_flight().count() == 0).await;
}
