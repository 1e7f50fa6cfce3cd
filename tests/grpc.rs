//! A unary gRPC call is as safe to retry as any other request: its answer comes back with
//! its message, its status and its trailers.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, response};
use support::Runs;
use support::gates::until;
use support::stores::store;
use support::wire::{Http2, read};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::interceptor::InterceptedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Served;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::{HealthReporter, health_reporter};
use tower::Layer;
use tower_idempotency::{
    FinalAnswers, IdempotencyLayer, Operation, RecordPolicy, SharedByAllCallers, Verdict,
    rejection_fn,
};

/// The health service behind something that counts its calls, and turns the first ones
/// away.
fn health(runs: &Runs, unavailable: usize) -> (HealthReporter, Routes) {
    let (reporter, service) = health_reporter();
    let runs = runs.clone();
    let counted = move |request: tonic::Request<()>| {
        let operation: &Operation = request.extensions().get().unwrap();
        let run = runs.add();
        assert_eq!(operation.attempt(), run as u64);
        if run <= unavailable {
            return Err(Status::unavailable("try again"));
        }
        Ok(request)
    };
    let mut routes = RoutesBuilder::default();
    routes.add_service(InterceptedService::new(service, counted));
    (reporter, routes.routes())
}

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

async fn listen() -> (SocketAddr, TcpListenerStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (
        listener.local_addr().unwrap(),
        TcpListenerStream::new(listener),
    )
}

/// tonic's own server, with the layer around all of its services.
async fn serve(layer: IdempotencyLayer, routes: Routes) -> SocketAddr {
    let (addr, incoming) = listen().await;
    let server = Server::builder().layer(layer).add_routes(routes);
    tokio::spawn(server.serve_with_incoming(incoming));
    addr
}

async fn client(addr: SocketAddr) -> HealthClient<Channel> {
    let channel = Channel::from_shared(format!("http://{addr}")).unwrap();
    HealthClient::new(channel.connect().await.unwrap())
}

fn request(service: &str, key: &'static str) -> tonic::Request<HealthCheckRequest> {
    let service = service.to_owned();
    let mut request = tonic::Request::new(HealthCheckRequest { service });
    request
        .metadata_mut()
        .insert("idempotency-key", key.parse().unwrap());
    request
}

async fn a_call_is_run_once_and_replayed(addr: SocketAddr, reporter: &HealthReporter, runs: &Runs) {
    let mut client = client(addr).await;
    let first = client.check(request("", "k")).await.unwrap();
    assert_eq!(first.get_ref().status(), Served::Serving);
    assert!(!first.metadata().contains_key("idempotent-replayed"));

    // What the handler would say by now is something else.
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
    for _ in 0..2 {
        let retry = client.check(request("", "k")).await.unwrap();
        assert_eq!(retry.get_ref().status(), Served::Serving);
        assert_eq!(retry.metadata().get("idempotent-replayed").unwrap(), "true");
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_call_is_run_once_and_replayed_by_a_layer_around_a_server() {
    let (runs, layer) = (Runs::default(), layer());
    let (reporter, routes) = health(&runs, 0);
    let addr = serve(layer.clone(), routes).await;
    a_call_is_run_once_and_replayed(addr, &reporter, &runs).await;
    until("no exchange is left", || layer.in_flight().count() == 0).await;
}

#[tokio::test]
async fn a_call_is_run_once_and_replayed_by_a_layer_around_routes() {
    let (runs, layer) = (Runs::default(), layer());
    let (reporter, routes) = health(&runs, 0);
    let (addr, incoming) = listen().await;
    let app = routes.into_axum_router().layer(layer.clone());
    let server = Server::builder().add_routes(Routes::from(app));
    tokio::spawn(server.serve_with_incoming(incoming));
    a_call_is_run_once_and_replayed(addr, &reporter, &runs).await;
    until("no exchange is left", || layer.in_flight().count() == 0).await;
}

#[tokio::test]
async fn a_call_is_run_once_and_replayed_by_a_layer_around_a_service_of_routes() {
    let (runs, layer) = (Runs::default(), layer());
    let (reporter, routes) = health(&runs, 0);
    let service = layer.layer(routes);
    let (addr, incoming) = listen().await;
    let app = axum::Router::new().fallback_service(service);
    let server = Server::builder().add_routes(Routes::from(app));
    tokio::spawn(server.serve_with_incoming(incoming));
    a_call_is_run_once_and_replayed(addr, &reporter, &runs).await;
    until("no exchange is left", || layer.in_flight().count() == 0).await;
}

#[tokio::test]
async fn the_frames_of_a_replay_are_those_of_the_first_answer() {
    let runs = Runs::default();
    let (_reporter, routes) = health(&runs, 0);
    let addr = serve(layer(), routes).await;
    let client = Http2::connect(addr).await;
    let mut answers = Vec::new();
    for _ in 0..2 {
        let head = Request::post("http://test/grpc.health.v1.Health/Check")
            .header("idempotency-key", "k")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, mut stream) = client.open(head).await;
        // Not compressed, and of no bytes: all fields have their defaults.
        stream
            .send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), true)
            .unwrap();
        answers.push(read(answer).await);
    }
    let [first, retry] = &answers[..] else {
        unreachable!("two were sent");
    };
    assert_eq!(first.body, [0, 0, 0, 0, 2, 8, 1][..]);
    let trailers = first.trailers.as_ref().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(retry.body, first.body);
    assert_eq!(retry.trailers, first.trailers);
    assert_eq!(retry.header("content-type"), Some("application/grpc"));
    // A message with trailers has no length to tell.
    assert_eq!(retry.header("content-length"), None);
    assert!(retry.is_replay() && !first.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_status_that_is_an_error_is_replayed_as_it_was() {
    let runs = Runs::default();
    let (reporter, routes) = health(&runs, 0);
    let mut client = client(serve(layer(), routes).await).await;
    let first = client.check(request("unknown", "k")).await.unwrap_err();
    assert_eq!(first.code(), Code::NotFound);
    reporter
        .set_service_status("unknown", ServingStatus::Serving)
        .await;
    let retry = client.check(request("unknown", "k")).await.unwrap_err();
    assert_eq!(retry.code(), Code::NotFound);
    assert_eq!(retry.message(), first.message());
    assert_eq!(retry.metadata().get("idempotent-replayed").unwrap(), "true");
    assert_eq!(runs.get(), 1);
}

/// A gRPC server answers 200 and puts the outcome into the head or the trailers.
struct ByGrpcStatus;

impl ByGrpcStatus {
    fn of(fields: &HeaderMap) -> Option<Verdict> {
        match Status::from_header_map(fields)?.code() {
            Code::Unavailable => Some(Verdict::Failed),
            _ => Some(Verdict::Record),
        }
    }
}

impl RecordPolicy for ByGrpcStatus {
    fn verdict(&self, answer: &response::Parts) -> Verdict {
        Self::of(&answer.headers).unwrap_or_else(|| FinalAnswers.verdict(answer))
    }

    fn verdict_at_end(&self, first: Verdict, trailers: &HeaderMap) -> Verdict {
        Self::of(trailers).unwrap_or(first)
    }
}

#[tokio::test]
async fn a_policy_that_reads_the_status_lets_an_unavailable_call_run_again() {
    let runs = Runs::default();
    let (_reporter, routes) = health(&runs, 2);
    let addr = serve(layer().record_when(ByGrpcStatus), routes).await;
    let mut client = client(addr).await;
    for _ in 0..2 {
        let refused = client.check(request("", "k")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
    }
    let served = client.check(request("", "k")).await.unwrap();
    assert!(!served.metadata().contains_key("idempotent-replayed"));
    let retry = client.check(request("", "k")).await.unwrap();
    assert!(retry.metadata().contains_key("idempotent-replayed"));
    assert_eq!(runs.get(), 3);
}

#[tokio::test]
async fn a_refusal_can_be_spoken_in_grpc() {
    let runs = Runs::default();
    let (_reporter, routes) = health(&runs, 0);
    let in_grpc = rejection_fn(|rejection, _| {
        let code = match rejection.kind().code() {
            "key-reused" => Code::FailedPrecondition,
            _ => Code::Unavailable,
        };
        Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", i32::from(code))
            .header("grpc-message", rejection.kind().code())
            .body(Bytes::new())
            .unwrap()
    });
    let addr = serve(layer().rejection_response(in_grpc), routes).await;
    let mut client = client(addr).await;
    client.check(request("", "k")).await.unwrap();
    let refused = client.check(request("other", "k")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "key-reused");
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn an_endless_answer_is_streamed_at_once_and_holds_its_key_for_a_bounded_time() {
    let runs = Runs::default();
    let (reporter, routes) = health(&runs, 0);
    let layer = layer().max_hold(Duration::from_millis(500));
    let addr = serve(layer.clone(), routes).await;
    let mut client = client(addr).await;
    let watch = client.watch(request("", "k")).await.unwrap();
    let mut watch = watch.into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), Served::Serving);
    assert_eq!(layer.in_flight().count(), 1);

    until("the key is settled", || layer.in_flight().count() == 0).await;
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
    let second = watch.message().await.unwrap().unwrap();
    assert_eq!(second.status(), Served::NotServing, "the stream goes on");
    assert_eq!(runs.get(), 1);
}
