//! A node: a layer over a store, and what happens to the handlers inside of it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::timeout;
use tower::util::BoxCloneSyncService;
use tower::{Layer, service_fn};
use tower_idempotency::{
    IdempotencyLayer, InFlight, Operation, RequestBody, ResponseBody, SharedByAllCallers,
};

use crate::chance::Chance;
use crate::handlers::{Answered, Bank, Run, WAYS, answer};
use crate::trail::Trail;

pub const LEASE: Duration = Duration::from_millis(250);
pub const STORE_TIMEOUT: Duration = Duration::from_millis(500);
/// Connections of each node.
pub const CONNECTIONS: u32 = 3;

pub type Service =
    BoxCloneSyncService<Request<Full<Bytes>>, Response<ResponseBody<Body>>, Infallible>;

#[derive(Clone)]
pub struct Node {
    pub service: Service,
    pub in_flight: InFlight,
}

/// The limit that every handler needs that waits for a network.
pub async fn in_time<T>(work: impl Future<Output = T>) -> Option<T> {
    timeout(2 * STORE_TIMEOUT, work).await.ok()
}

impl Node {
    pub fn new<S: Bank>(store: S, chance: &Chance, trail: &Trail) -> Self {
        let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers)
            .store_timeout(STORE_TIMEOUT)
            .lease(LEASE);
        let in_flight = layer.in_flight();
        let (chance, trail) = (chance.clone(), trail.clone());
        let inner = service_fn(move |request: Request<RequestBody<Full<Bytes>>>| {
            let operation: &Operation = request.extensions().get().unwrap();
            let run = Run {
                operation: operation.clone(),
                store: store.clone(),
                chance: chance.clone(),
                trail: trail.clone(),
            };
            async {
                let answered = befalls(run).await;
                let refused = answered.unwrap_or_else(|error| error.into_response().map(Body::new));
                Ok::<_, Infallible>(refused)
            }
        });
        let service = BoxCloneSyncService::new(layer.layer(inner));
        Self { service, in_flight }
    }
}

async fn befalls<S: Bank>(run: Run<S>) -> Answered {
    let chance = run.chance.clone();
    if chance.one_in(12) {
        // The process gets no time for as long as a lease: nothing is renewed.
        std::thread::sleep(chance.up_to(250));
    }
    let work = run.go(chance.of(&WAYS));
    let answered = match chance.one_in(3) {
        // A time-out around the handler drops it wherever it is.
        true => timeout(chance.up_to(120), in_time(work)).await.ok(),
        false => Some(in_time(work).await),
    };
    let too_late = || Ok(answer(StatusCode::GATEWAY_TIMEOUT, "it took too long"));
    answered.flatten().unwrap_or_else(too_late)
}
