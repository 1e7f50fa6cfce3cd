//! What a request costs in allocations and tasks, beside the same service without the
//! layer.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use support::post;
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceExt};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{IdempotencyLayer, SharedByAllCallers};

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers)
}

async fn echo<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let mut body = std::pin::pin!(request.into_body());
    let frame = body.frame().await.unwrap().unwrap();
    Ok(Response::new(Full::new(frame.into_data().unwrap())))
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The allocations of each request, served to the end of its answer.
fn allocations<S, R>(service: &S, requests: Vec<Request<Full<Bytes>>>) -> Vec<u64>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>, Error = Infallible> + Clone,
    R: Body,
    R::Error: std::fmt::Debug,
{
    let runtime = runtime();
    let serve = |request: Request<Full<Bytes>>| {
        runtime.block_on(async {
            let response = service.clone().oneshot(request).await.unwrap();
            let mut body = std::pin::pin!(response.into_body());
            while let Some(frame) = body.frame().await {
                drop(frame.unwrap());
            }
        });
    };
    requests
        .into_iter()
        .map(|request| allocation_counter::measure(|| serve(request)).count_total)
        .collect()
}

/// Of the last quarter, and of those the median: a request now and then meets a table of
/// the store that has to grow, at the beginning more often.
fn median(mut counts: Vec<u64>) -> u64 {
    let mut counts = counts.split_off(counts.len() / 4 * 3);
    counts.sort_unstable();
    counts[counts.len() / 2]
}

fn requests(keyed: bool) -> Vec<Request<Full<Bytes>>> {
    (0..16_384)
        .map(|number| {
            let key = format!("8e03978e-40d5-43dd-bc93-{number:012}");
            let mut request = post(&key, vec![b'x'; 256]);
            if !keyed {
                request.headers_mut().remove("idempotency-key");
            }
            request
        })
        .collect()
}

#[test]
fn a_request_without_a_key_costs_no_allocation() {
    let bare = allocations(&tower::service_fn(echo), requests(false));
    let layered = allocations(&layer().layer(tower::service_fn(echo)), requests(false));
    assert_eq!(layered, bare);
}

#[test]
fn a_first_run_costs_less_than_twelve_allocations() {
    let bare = median(allocations(&tower::service_fn(echo), requests(true)));
    let service = layer().layer(tower::service_fn(echo));
    let first = median(allocations(&service, requests(true)));
    println!("bare {bare}, first run {first}");
    assert!(
        first - bare < 12,
        "{first} allocations, and {bare} without the layer"
    );
}

#[test]
fn a_replay_costs_less_than_a_first_run() {
    let service = layer().layer(tower::service_fn(echo));
    let first = median(allocations(&service, requests(true)));
    let replay = median(allocations(&service, requests(true)));
    println!("first run {first}, replay {replay}");
    assert!(
        replay < first,
        "{replay} allocations, and {first} for the first run"
    );
}

#[test]
fn nothing_is_spawned_for_an_answer_that_comes_at_once() {
    let service = layer().layer(tower::service_fn(echo));
    let runtime = runtime();
    for _first_run_and_replay in 0..2 {
        runtime.block_on(async {
            let answer = service.clone().oneshot(post("k", "body")).await.unwrap();
            assert_eq!(
                answer.into_body().collect().await.unwrap().to_bytes(),
                "body"
            );
            // A task that had been spawned could not have run yet, and would be alive.
            assert_eq!(runtime.metrics().num_alive_tasks(), 0);
        });
    }
}

#[test]
fn nothing_is_spawned_for_a_handler_that_takes_its_time() {
    let service = layer().layer(tower::service_fn(async |request| {
        tokio::task::yield_now().await;
        echo(request).await
    }));
    let runtime = runtime();
    runtime.block_on(async {
        let mut answering = std::pin::pin!(service.oneshot(post("k", "body")));
        let mut steps = 0;
        std::future::poll_fn(|cx| {
            steps += 1;
            assert_eq!(runtime.metrics().num_alive_tasks(), 0);
            answering.as_mut().poll(cx).map(Result::unwrap)
        })
        .await;
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
        assert!(steps > 1, "the handler had to wait");
    });
}
