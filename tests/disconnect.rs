//! A client that leaves, wherever it leaves, finds its answer when it comes back, to whatever
//! node.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::StatusCode;
use support::faults::{Call, Fault, FaultStore};
use support::gates::{Gate, Witness, gated, until};
use support::server::Server;
use support::stores::{store, store_pair};
use support::wire::{Http1, Http2, http1_post, next, reset};
use support::{Answer, Runs};
use tower::{Layer, ServiceExt};
use tower_idempotency::store::AnyStore;
use tower_idempotency::{ConflictPolicy, IdempotencyLayer, InFlight, SharedByAllCallers};

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// HTTP/1.1, a FIN.
    Close,
    /// HTTP/1.1, an RST.
    Reset,
    /// HTTP/2, `RST_STREAM` on a connection that lives on.
    ResetStream,
    /// HTTP/2, the connection.
    CloseConnection,
}

const WAYS: [Way; 4] = [
    Way::Close,
    Way::Reset,
    Way::ResetStream,
    Way::CloseConnection,
];

/// A client with one request under way.
enum Client {
    Http1(Http1, Way),
    Http2(Http2, SendStream<Bytes>, ResponseFuture, Way),
}

impl Client {
    /// Sends a request whole.
    async fn ask(way: Way, addr: SocketAddr, path: &str) -> Self {
        match way {
            Way::Close | Way::Reset => {
                let mut client = Http1::connect(addr).await;
                client.write(http1_post(path, "k", &[], "charge 5")).await;
                Self::Http1(client, way)
            }
            Way::ResetStream | Way::CloseConnection => {
                let client = Http2::connect(addr).await;
                let (answer, stream) = client.send(path, "k", "charge 5").await;
                Self::Http2(client, stream, answer, way)
            }
        }
    }

    /// Sends a request up to the middle of its body.
    async fn ask_by_half(way: Way, addr: SocketAddr, path: &str) -> Self {
        match way {
            Way::Close | Way::Reset => {
                let mut client = Http1::connect(addr).await;
                let request = http1_post(path, "k", &[], "charge 5");
                client.write(&request[..request.len() - 2]).await;
                Self::Http1(client, way)
            }
            Way::ResetStream | Way::CloseConnection => {
                let client = Http2::connect(addr).await;
                let (answer, mut stream) = client.begin(path, "k").await;
                stream
                    .send_data(Bytes::from_static(b"charge"), false)
                    .unwrap();
                Self::Http2(client, stream, answer, way)
            }
        }
    }

    async fn leave(self) {
        match self {
            Self::Http1(client, Way::Reset) => client.reset(),
            Self::Http1(client, _) => client.close(),
            Self::Http2(client, stream, _answer, Way::ResetStream) => {
                reset(stream);
                // The connection lives on, and answers.
                let ping = client.post("/ping", "another", "").await;
                assert_eq!(ping.status, StatusCode::OK);
            }
            Self::Http2(client, ..) => client.close(),
        }
    }

    /// Reads the head of the answer and the first part of its body.
    async fn read_first(&mut self, part: &str) {
        match self {
            Self::Http1(client, _) => {
                assert_eq!(client.head().await.status, StatusCode::OK);
                assert_eq!(client.chunk().await, part);
            }
            Self::Http2(_, _, answer, _) => {
                let mut body = answer.await.unwrap().into_body();
                assert_eq!(next(&mut body).await.unwrap(), part);
                // Kept, since dropping it would reset the stream here already.
                std::mem::forget(body);
            }
        }
    }
}

/// Two nodes with the same records: the one that clients leave, and one they come back to.
struct Api {
    server: Server,
    another: Server,
    store: FaultStore<AnyStore>,
    in_flight: InFlight,
    runs: Runs,
    gate: Gate,
    witness: Witness,
}

const PARTS: &[&str] = &["one ", "two ", "three"];

impl Api {
    async fn start() -> Self {
        Self::start_with(|layer| layer).await
    }

    async fn start_with(
        options: impl FnOnce(
            IdempotencyLayer<FaultStore<AnyStore>>,
        ) -> IdempotencyLayer<FaultStore<AnyStore>>,
    ) -> Self {
        let (here, there) = store_pair();
        let store = FaultStore::new(here);
        let layer = options(IdempotencyLayer::new(store.clone(), SharedByAllCallers));
        let (runs, gate, witness) = (Runs::default(), Gate::default(), Witness::default());
        let held = {
            let (runs, gate) = (runs.clone(), gate.clone());
            move || async move {
                let run = runs.add();
                gate.pass().await;
                (StatusCode::CREATED, format!("run {run}"))
            }
        };
        let panics = {
            let (runs, gate) = (runs.clone(), gate.clone());
            move || async move {
                let run = runs.add();
                gate.pass().await;
                assert!(run > 1, "planned");
                (StatusCode::CREATED, format!("run {run}"))
            }
        };
        let streamed = {
            let (runs, gate) = (runs.clone(), gate.clone());
            move || async move {
                runs.add();
                gated(&gate, PARTS)
            }
        };
        let routes = Router::new()
            .route("/held", post(held))
            .route("/panics", post(panics))
            .route("/streamed", post(streamed));
        let app = routes
            .clone()
            .route_layer(layer.clone())
            .route("/ping", post(async || "pong"));
        let another = IdempotencyLayer::new(there, SharedByAllCallers);
        Self {
            server: Server::start(witness.around(app)).await,
            another: Server::start(routes.route_layer(another)).await,
            in_flight: layer.in_flight(),
            store,
            runs,
            gate,
            witness,
        }
    }

    async fn idle(&self) {
        until("no exchange is left", || self.in_flight.count() == 0).await;
    }

    async fn retry(&self, path: &str) -> Answer {
        let mut client = Http1::connect(self.another.addr).await;
        client.post(path, "k", "charge 5").await
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_its_upload_has_claimed_nothing_and_run_nothing() {
    for way in WAYS {
        let api = Api::start().await;
        let client = Client::ask_by_half(way, api.server.addr, "/held").await;
        until("the upload is on", || api.in_flight.count() == 1).await;
        client.leave().await;
        api.idle().await;
        assert_eq!(api.store.count(Call::Claim), 0, "{way:?}");
        assert_eq!(api.runs.get(), 0, "{way:?}");

        api.gate.open_for_all();
        let answer = api.retry("/held").await;
        assert_eq!(answer.text(), "run 1", "{way:?}");
        assert!(!answer.is_replay(), "{way:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_the_claim_finds_its_answer() {
    for way in WAYS {
        let api = Api::start().await;
        let slow = Fault::Slow(Duration::from_secs(1));
        api.store.once(Call::Claim, slow);
        api.gate.open_for_all();
        let client = Client::ask(way, api.server.addr, "/held").await;
        until("the claim is sent", || api.store.count(Call::Claim) == 1).await;
        client.leave().await;
        api.witness.until_a_future_is_dropped().await;
        assert_eq!(api.runs.get(), 0, "{way:?}: it left before the run");
        api.idle().await;
        assert_eq!(api.runs.get(), 1, "{way:?}");

        let retry = api.retry("/held").await;
        assert_eq!(retry.status, StatusCode::CREATED);
        assert_eq!(retry.text(), "run 1", "{way:?}");
        assert!(retry.is_replay(), "{way:?}");
        assert_eq!(api.runs.get(), 1, "{way:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_the_handler_runs_finds_its_answer() {
    for way in WAYS {
        let api = Api::start().await;
        let client = Client::ask(way, api.server.addr, "/held").await;
        api.gate.until_arrived(1).await;
        client.leave().await;
        api.witness.until_a_future_is_dropped().await;

        let meanwhile = api.retry("/held").await;
        assert_eq!(meanwhile.status, StatusCode::CONFLICT, "{way:?}");
        assert_eq!(meanwhile.code().as_deref(), Some("in-progress"));
        assert_eq!(meanwhile.header("retry-after"), Some("1"));

        assert_eq!(api.in_flight.count(), 1, "{way:?}");
        api.gate.open(1);
        api.idle().await;
        let retry = api.retry("/held").await;
        assert_eq!(retry.status, StatusCode::CREATED);
        assert_eq!(retry.text(), "run 1", "{way:?}");
        assert!(retry.is_replay(), "{way:?}");
        assert_eq!(api.runs.get(), 1, "{way:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_streamed_answer_finds_all_of_it() {
    for way in WAYS {
        let api = Api::start().await;
        api.gate.open(1);
        let mut client = Client::ask(way, api.server.addr, "/streamed").await;
        client.read_first("one ").await;
        api.gate.until_arrived(2).await;
        client.leave().await;
        api.witness.until_a_body_is_dropped().await;

        let meanwhile = api.retry("/streamed").await;
        assert_eq!(meanwhile.code().as_deref(), Some("in-progress"), "{way:?}");
        assert_eq!(api.in_flight.count(), 1, "{way:?}");
        api.gate.open_for_all();
        api.idle().await;
        let retry = api.retry("/streamed").await;
        assert_eq!(retry.status, StatusCode::OK);
        assert_eq!(retry.text(), "one two three", "{way:?}");
        assert!(retry.is_replay(), "{way:?}");
        assert_eq!(api.runs.get(), 1, "{way:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_it_reads_anything_finds_its_answer() {
    for (way, path) in WAYS
        .into_iter()
        .flat_map(|way| [(way, "/held"), (way, "/streamed")])
    {
        let api = Api::start().await;
        api.gate.open_for_all();
        let client = Client::ask(way, api.server.addr, path).await;
        until("the handler runs", || api.runs.get() == 1).await;
        client.leave().await;
        api.idle().await;

        let retry = api.retry(path).await;
        let whole = if path == "/held" {
            "run 1"
        } else {
            "one two three"
        };
        assert_eq!(retry.text(), whole, "{way:?} {path}");
        assert!(retry.is_replay(), "{way:?} {path}");
        assert_eq!(api.runs.get(), 1, "{way:?} {path}");
    }
}

#[tokio::test]
async fn a_run_that_panics_after_its_client_has_left_frees_its_key_for_another_attempt() {
    for way in WAYS {
        let api = Api::start().await;
        let client = Client::ask(way, api.server.addr, "/panics").await;
        api.gate.until_arrived(1).await;
        client.leave().await;
        api.witness.until_a_future_is_dropped().await;
        api.gate.open_for_all();
        api.idle().await;

        let retry = api.retry("/panics").await;
        assert_eq!(retry.status, StatusCode::CREATED, "{way:?}");
        assert_eq!(retry.text(), "run 2", "{way:?}");
        assert!(!retry.is_replay(), "{way:?}");
        assert!(api.retry("/panics").await.is_replay(), "{way:?}");
        assert_eq!(api.runs.get(), 2, "{way:?}");
    }
}

#[tokio::test]
async fn a_waiter_that_leaves_is_gone_at_once_and_leaves_the_run_alone() {
    for way in WAYS {
        let at_most = Duration::from_secs(60);
        let api =
            Api::start_with(|layer| layer.on_conflict(ConflictPolicy::Wait { at_most })).await;
        let mut first = Http1::connect(api.server.addr).await;
        first.write(http1_post("/held", "k", &[], "charge 5")).await;
        api.gate.until_arrived(1).await;

        let waiter = Client::ask(way, api.server.addr, "/held").await;
        until("it waits", || api.in_flight.count() == 2).await;
        until("it sleeps", || api.store.count(Call::Changed) > 0).await;
        waiter.leave().await;
        until("it is gone", || api.in_flight.count() == 1).await;

        api.gate.open_for_all();
        assert_eq!(first.answer().await.text(), "run 1", "{way:?}");
        api.idle().await;
        assert!(api.retry("/held").await.is_replay(), "{way:?}");
        assert_eq!(api.runs.get(), 1, "{way:?}");
    }
}

#[tokio::test]
async fn a_shutdown_waits_for_the_exchanges_that_clients_have_left() {
    let api = Api::start().await;
    let client = Client::ask(Way::Reset, api.server.addr, "/held").await;
    api.gate.until_arrived(1).await;
    client.leave().await;
    api.witness.until_a_future_is_dropped().await;

    let shutdown = tokio::spawn({
        let in_flight = api.in_flight.clone();
        async move { in_flight.idle().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!shutdown.is_finished());
    api.gate.open_for_all();
    shutdown.await.unwrap();
    assert!(api.retry("/held").await.is_replay());
    assert_eq!(api.runs.get(), 1);
}

#[tokio::test]
async fn an_answer_whose_body_is_never_polled_is_recorded_whole() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (runs, gate) = (Runs::default(), Gate::default());
    let service = layer.layer(tower::service_fn({
        let (runs, gate) = (runs.clone(), gate.clone());
        move |_: Request<tower_idempotency::RequestBody<Body>>| {
            runs.add();
            let answer = Response::new(gated(&gate, PARTS));
            async move { Ok::<_, std::convert::Infallible>(answer) }
        }
    }));
    let request = || {
        Request::post("/")
            .header("idempotency-key", "k")
            .body(Body::empty())
            .unwrap()
    };
    let answer = service.clone().oneshot(request()).await.unwrap();
    drop(answer);
    gate.until_arrived(1).await;
    assert_eq!(layer.in_flight().count(), 1);
    gate.open_for_all();
    layer.in_flight().idle().await;

    let retry = support::send(&service, request()).await;
    assert_eq!(retry.text(), "one two three");
    assert!(retry.is_replay());
    assert_eq!(runs.get(), 1);
}
