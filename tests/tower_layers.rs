//! Limits of number, rate and time: outside of the layer they end for the client alone,
//! inside they count runs and nothing else.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use support::faults::{Call, FaultStore};
use support::gates::{Gate, until};
use support::stores::store;
use support::{Answer, Runs, post, read};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower::limit::ConcurrencyLimit;
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_idempotency::store::AnyStore;
use tower_idempotency::{
    FailurePolicy, IdempotencyLayer, Outcome, RequestBody, SharedByAllCallers,
};

type Store = FaultStore<AnyStore>;

const MINUTE: Duration = Duration::from_secs(60);

fn layer() -> (IdempotencyLayer<Store>, Store) {
    let store = FaultStore::new(store());
    (
        IdempotencyLayer::new(store.clone(), SharedByAllCallers),
        store,
    )
}

/// Counts its runs, and waits at the gate in each of them.
fn handler(
    runs: &Runs,
    gate: &Gate,
) -> impl Service<
    Request<RequestBody<Full<Bytes>>>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let (runs, gate) = (runs.clone(), gate.clone());
    tower::service_fn(move |_| {
        let (run, gate) = (runs.add(), gate.clone());
        async move {
            gate.pass().await;
            Ok(Response::new(Full::from(format!("run {run}"))))
        }
    })
}

async fn ask<S, R>(service: &S, key: &str) -> Result<Answer, BoxError>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    R: http_body::Body,
    R::Error: std::fmt::Debug,
{
    let answer = service.clone().oneshot(post(key, "")).await;
    Ok(read(answer.map_err(Into::into)?).await)
}

fn executed(attempt: u64) -> Option<Outcome> {
    Some(Outcome::Executed {
        attempt,
        stored: Some(true),
    })
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_frees_its_permit_outside_while_its_exchange_goes_on() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    let layer = layer.max_in_flight(2);
    let permits = Arc::new(Semaphore::new(1));
    let inner = ServiceBuilder::new()
        .layer(layer.clone())
        .service(handler(&runs, &gate));
    let service = ConcurrencyLimit::with_semaphore(inner, Arc::clone(&permits));
    for key in ["a", "b"] {
        let leaving = tokio::spawn(service.clone().oneshot(post(key, "")));
        let arrivals = gate.arrivals();
        until("it runs", || gate.arrivals() > arrivals).await;
        assert_eq!(permits.available_permits(), 0);
        leaving.abort();
        until("the permit is back", || permits.available_permits() == 1).await;
    }
    // What bounds them is the layer's own limit.
    assert_eq!(layer.in_flight().count(), 2);
    let refused = ask(&service, "c").await.unwrap();
    assert_eq!(refused.code().as_deref(), Some("overloaded"));

    gate.open_for_all();
    layer.in_flight().idle().await;
    assert_eq!(ask(&service, "a").await.unwrap().text(), "run 1");
    assert!(ask(&service, "b").await.unwrap().is_replay());
    assert_eq!(runs.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_limit_inside_bounds_runs_and_lets_no_more_than_that_many_at_once() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .concurrency_limit(1)
        .service(handler(&runs, &gate));
    let calls = ["a", "b", "c"].map(|key| tokio::spawn(service.clone().oneshot(post(key, ""))));
    until("one runs", || gate.arrivals() == 1).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(runs.get(), 1);
    gate.open_for_all();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    for key in ["a", "b", "c"] {
        assert!(ask(&service, key).await.unwrap().is_replay());
    }
    assert_eq!(runs.get(), 3);
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn buffers_outside_and_inside_change_nothing() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    gate.open_for_all();
    let inside = ServiceBuilder::new()
        .buffer(4)
        .service(handler(&runs, &gate));
    let inner = ServiceBuilder::new().layer(layer.clone()).service(inside);
    let service = ServiceBuilder::new().buffer(4).service(inner);
    let first = ask(&service, "k").await.unwrap();
    assert_eq!(first.text(), "run 1");
    assert_eq!(first.outcome, executed(1));
    for _ in 0..20 {
        assert!(ask(&service, "k").await.unwrap().is_replay());
    }
    assert_eq!(ask(&service, "other").await.unwrap().text(), "run 2");
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_outside_ends_the_wait_of_the_client_and_not_the_run() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    let service = ServiceBuilder::new()
        .timeout(MINUTE)
        .layer(layer.clone())
        .service(handler(&runs, &gate));
    let error = ask(&service, "k").await.unwrap_err();
    assert!(error.is::<Elapsed>());
    let retry = ask(&service, "k").await.unwrap();
    assert_eq!(retry.code().as_deref(), Some("in-progress"));

    gate.open_for_all();
    layer.in_flight().idle().await;
    let retry = ask(&service, "k").await.unwrap();
    assert_eq!(retry.text(), "run 1");
    assert!(retry.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_a_time_limit_outside_gives_is_not_the_one_on_record() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    let late =
        tower_http::timeout::TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, MINUTE);
    let service = ServiceBuilder::new()
        .layer(late)
        .layer(layer.clone())
        .service(handler(&runs, &gate));
    // Its body has no Default but ours: a late answer is empty.
    let first = ask(&service, "k").await.unwrap();
    assert_eq!(first.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!((first.text(), first.outcome), ("", None));
    gate.open_for_all();
    layer.in_flight().idle().await;
    let retry = ask(&service, "k").await.unwrap();
    assert_eq!((retry.status, retry.text()), (StatusCode::OK, "run 1"));
    assert!(retry.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_time_limit_inside_passes_and_is_a_failed_run() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .timeout(MINUTE)
        .service(handler(&runs, &gate));
    let error = ask(&service, "k").await.unwrap_err();
    assert!(error.is::<Elapsed>());
    gate.open_for_all();
    let again = ask(&service, "k").await.unwrap();
    assert_eq!((again.text(), again.outcome), ("run 2", executed(2)));
    assert!(ask(&service, "k").await.unwrap().is_replay());
    assert_eq!(runs.get(), 2);
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_a_time_limit_inside_is_what_the_failure_policy_makes_of_it() {
    for (status, policy) in [
        (StatusCode::REQUEST_TIMEOUT, FailurePolicy::RunAgain),
        (StatusCode::GATEWAY_TIMEOUT, FailurePolicy::Replay),
        (StatusCode::REQUEST_TIMEOUT, FailurePolicy::Refuse),
    ] {
        let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
        let late = tower_http::timeout::TimeoutLayer::with_status_code(status, MINUTE);
        let service = ServiceBuilder::new()
            .layer(layer.clone().on_failure(policy))
            .layer(late)
            .service(handler(&runs, &gate));
        let first = ask(&service, "k").await.unwrap();
        assert_eq!(first.status, status);
        gate.open_for_all();
        let retry = ask(&service, "k").await.unwrap();
        match policy {
            FailurePolicy::RunAgain => assert_eq!(retry.text(), "run 2"),
            FailurePolicy::Replay => {
                assert_eq!(retry.status, status);
                assert!(retry.is_replay());
            }
            FailurePolicy::Refuse => {
                assert_eq!(retry.code().as_deref(), Some("outcome-unknown"));
            }
        }
        let expected = if policy == FailurePolicy::RunAgain {
            2
        } else {
            1
        };
        assert_eq!(runs.get(), expected, "{policy:?}");
        assert_eq!(layer.in_flight().count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_uses_up_none_of_the_quota_of_a_rate_limit_inside() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    gate.open_for_all();
    let limited = ServiceBuilder::new()
        .buffer(8)
        .rate_limit(2, MINUTE)
        .service(handler(&runs, &gate));
    let service = ServiceBuilder::new().layer(layer.clone()).service(limited);
    let began = Instant::now();
    assert_eq!(ask(&service, "a").await.unwrap().text(), "run 1");
    for _ in 0..20 {
        assert!(ask(&service, "a").await.unwrap().is_replay());
    }
    assert_eq!(ask(&service, "b").await.unwrap().text(), "run 2");
    assert_eq!(began.elapsed(), Duration::ZERO, "within the quota");

    assert_eq!(ask(&service, "c").await.unwrap().text(), "run 3");
    assert!(began.elapsed() >= MINUTE, "beyond it");
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_shed_inside_may_come_again() {
    let (runs, gate, (layer, _)) = (Runs::default(), Gate::default(), layer());
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .load_shed()
        .concurrency_limit(1)
        .service(handler(&runs, &gate));
    let running = tokio::spawn(service.clone().oneshot(post("running", "")));
    until("one runs", || gate.arrivals() == 1).await;
    let error = ask(&service, "shed").await.unwrap_err();
    assert!(error.is::<Overloaded>());
    assert_eq!(runs.get(), 1);

    gate.open_for_all();
    running.await.unwrap().unwrap();
    let again = ask(&service, "shed").await.unwrap();
    assert_eq!((again.text(), again.outcome), ("run 2", executed(2)));
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_shed_outside_has_claimed_nothing() {
    let (runs, gate, (layer, store)) = (Runs::default(), Gate::default(), layer());
    let service = ServiceBuilder::new()
        .load_shed()
        .layer(layer.clone())
        .concurrency_limit(1)
        .service(handler(&runs, &gate));
    let running = tokio::spawn(service.clone().oneshot(post("running", "")));
    until("one runs", || gate.arrivals() == 1).await;
    let error = ask(&service, "shed").await.unwrap_err();
    assert!(error.is::<Overloaded>());
    assert_eq!(store.count(Call::Claim), 1);

    gate.open_for_all();
    running.await.unwrap().unwrap();
    let again = ask(&service, "shed").await.unwrap();
    assert_eq!((again.text(), again.outcome), ("run 2", executed(1)));
    assert_eq!(layer.in_flight().count(), 0);
}
