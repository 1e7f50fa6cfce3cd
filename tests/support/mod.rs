//! What the tests stand on: handlers that count their runs, stores that fail on demand,
//! real servers and raw clients.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::type_complexity,
    clippy::unwrap_used
)]

pub mod claims;
pub mod faults;
pub mod gates;
pub mod history;
pub mod pieces;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod proxy;
#[cfg(feature = "redis")]
pub mod redis;
pub mod scripted;
pub mod server;
pub mod stores;
pub mod testbed;
pub mod torture;
pub mod wire;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt};
use tower_idempotency::IdempotencyLayer;

/// Counts the runs of a handler.
#[derive(Clone, Debug, Default)]
pub struct Runs(Arc<AtomicUsize>);

impl Runs {
    pub fn add(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A whole answer, read to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
    pub outcome: Option<tower_idempotency::Outcome>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The member `code` of a refusal.
    pub fn code(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        problem.get("code")?.as_str().map(str::to_owned)
    }
}

pub async fn read<B>(response: Response<B>) -> Answer
where
    B: Body,
    B::Error: std::fmt::Debug,
{
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: collected.to_bytes(),
        trailers,
        outcome: parts.extensions.get().copied(),
    }
}

/// A POST with a key.
pub fn post(key: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/things")
        .header("idempotency-key", key)
        .body(Full::new(body.into()))
        .unwrap()
}

/// Sends one request through a clone of the service, and reads the answer to its end.
pub async fn send<S, B, R>(service: &S, request: Request<B>) -> Answer
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible> + Clone,
    R: Body,
    R::Error: std::fmt::Debug,
{
    let response = service.clone().oneshot(request).await.unwrap();
    read(response).await
}

/// The layer around a handler that answers 201 and `run N`, N counting from 1.
pub fn counting<K>(
    layer: &IdempotencyLayer<K>,
) -> (
    impl Service<
        Request<Full<Bytes>>,
        Response = Response<tower_idempotency::ResponseBody<Full<Bytes>>>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static,
    Runs,
)
where
    K: tower_idempotency::store::KeyStore,
{
    let runs = Runs::default();
    let service = layer.layer(tower::service_fn({
        let runs = runs.clone();
        move |_request: Request<tower_idempotency::RequestBody<Full<Bytes>>>| {
            let run = runs.add();
            async move { Ok::<_, Infallible>(created(format!("run {run}"))) }
        }
    }));
    (service, runs)
}

pub fn created(body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::CREATED;
    response
        .headers_mut()
        .insert("location", HeaderValue::from_static("/things/1"));
    response
}
