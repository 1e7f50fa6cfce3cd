//! The service inside is called only when it has said that it is ready, and nobody who
//! does not call it keeps it from others.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use support::faults::{Call, Fault, FaultStore};
use support::gates::{Gate, until};
use support::stores::store;
use support::{Answer, Runs, post, read};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::limit::ConcurrencyLimit;
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_idempotency::store::{AnyStore, StoreErrorKind};
use tower_idempotency::{
    ConflictPolicy, Idempotency, IdempotencyKey, IdempotencyLayer, InvalidKey, KeyExtractor,
    OutagePolicy, Outcome, RequestBody, SharedByAllCallers,
};

/// A service as strict as a service may be: it panics when it is called without having
/// been asked, and a clone of it has not been asked.
struct Strict {
    is_ready: bool,
    runs: Runs,
    gate: Gate,
    /// How many runs answer 500 before one succeeds.
    failures: usize,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self {
            is_ready: false,
            runs: self.runs.clone(),
            gate: self.gate.clone(),
            failures: self.failures,
        }
    }
}

impl Service<Request<RequestBody<Full<Bytes>>>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<RequestBody<Full<Bytes>>>) -> Self::Future {
        assert!(self.is_ready, "called without having been ready");
        self.is_ready = false;
        let (run, gate, failures) = (self.runs.add(), self.gate.clone(), self.failures);
        Box::pin(async move {
            gate.pass().await;
            let mut answer = Response::new(Full::from(format!("run {run}")));
            if run <= failures {
                *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok(answer)
        })
    }
}

type Inner = ConcurrencyLimit<Strict>;
type Store = FaultStore<AnyStore>;

/// The layer around a strict service with so many permits.
struct Api {
    service: Idempotency<Inner, Store>,
    layer: IdempotencyLayer<Store>,
    store: Store,
    runs: Runs,
    gate: Gate,
    permits: Arc<Semaphore>,
}

impl Api {
    fn new(
        permits: usize,
        failures: usize,
        options: impl FnOnce(IdempotencyLayer<Store>) -> IdempotencyLayer<Store>,
    ) -> Self {
        let store = FaultStore::new(store());
        let layer = options(IdempotencyLayer::new(store.clone(), SharedByAllCallers));
        let (runs, gate) = (Runs::default(), Gate::default());
        let permits = Arc::new(Semaphore::new(permits));
        let strict = Strict {
            is_ready: false,
            runs: runs.clone(),
            gate: gate.clone(),
            failures,
        };
        let inner = ConcurrencyLimit::with_semaphore(strict, Arc::clone(&permits));
        Self {
            service: layer.layer(inner),
            layer,
            store,
            runs,
            gate,
            permits,
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        read(self.service.clone().oneshot(request).await.unwrap()).await
    }

    fn spawn(&self, key: &str) -> JoinHandle<Answer> {
        let answer = self.service.clone().oneshot(post(key, ""));
        tokio::spawn(async move { read(answer.await.unwrap()).await })
    }
}

const MINUTE: Duration = Duration::from_secs(60);

fn waits(layer: IdempotencyLayer<Store>) -> IdempotencyLayer<Store> {
    layer.on_conflict(ConflictPolicy::Wait { at_most: MINUTE })
}

fn without_key() -> Request<Full<Bytes>> {
    Request::post("/things").body(Full::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_service_is_asked_before_every_call_whatever_becomes_of_it() {
    let mut api = Api::new(1, 0, |layer| layer);
    api.gate.open_for_all();
    let mut texts = Vec::new();
    for request in [
        post("a", ""),
        post("a", ""),
        without_key(),
        post("b", ""),
        post("b", "another"),
        post("two keys", ""),
        without_key(),
        post("c", ""),
    ] {
        // Always the same service, never a clone.
        let ready = api.service.ready().await.unwrap();
        let answer = timeout(MINUTE, ready.call(request)).await;
        let answer = read(answer.expect("no permit is left").unwrap()).await;
        texts.push(answer.code().unwrap_or(answer.text().to_owned()));
    }
    let expected = [
        "run 1",
        "run 1",
        "run 2",
        "run 3",
        "key-reused",
        "invalid-key",
        "run 4",
        "run 5",
    ];
    assert_eq!(texts, expected);
    assert_eq!(api.runs.get(), 5);
    assert_eq!(api.permits.available_permits(), 1);
    assert_eq!(api.layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn it_is_pending_while_the_service_inside_is() {
    let mut api = Api::new(1, 0, |layer| layer);
    let taken = api.permits.clone().acquire_owned().await.unwrap();
    let polled = poll_fn(|cx| Poll::Ready(api.service.poll_ready(cx))).await;
    assert!(polled.is_pending());
    drop(taken);
    api.service.ready().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_passes() {
    #[derive(Clone)]
    struct Broken;
    impl Service<Request<RequestBody<Full<Bytes>>>> for Broken {
        type Response = Response<Full<Bytes>>;
        type Error = &'static str;
        type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Err("out of order"))
        }

        fn call(&mut self, _: Request<RequestBody<Full<Bytes>>>) -> Self::Future {
            unreachable!("it is not ready")
        }
    }
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let answer = layer.layer(Broken).oneshot(post("k", "")).await;
    assert_eq!(answer.unwrap_err(), "out of order");
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_replay_and_a_refusal_give_their_permit_back_at_once() {
    let api = Api::new(2, 0, |layer| layer);
    api.gate.open(1);
    assert_eq!(api.send(post("done", "")).await.text(), "run 1");
    let running = api.spawn("running");
    until("it runs", || api.gate.arrivals() == 2).await;
    assert_eq!(api.permits.available_permits(), 1);

    for (key, body) in [("done", ""), ("running", ""), ("done", "another")] {
        // Held unread, as by a client that is slow.
        let answer = api.service.clone().oneshot(post(key, body)).await.unwrap();
        assert_eq!(api.permits.available_permits(), 1);
        assert_ne!(read(answer).await.text(), "run 2");
    }
    api.gate.open_for_all();
    assert_eq!(running.await.unwrap().text(), "run 2");
    assert_eq!(api.permits.available_permits(), 2);
    assert_eq!(api.runs.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_holds_no_permit() {
    let api = Api::new(2, 0, waits);
    let first = api.spawn("k");
    until("it runs", || api.gate.arrivals() == 1).await;
    // One after another, since each is to be ready before it waits.
    let mut waiters = Vec::new();
    for waiting in 1..=20 {
        waiters.push(api.spawn("k"));
        until("it waits", || {
            api.layer.in_flight().count() == 1 + waiting && api.store.count(Call::Lookup) >= waiting
        })
        .await;
        assert_eq!(api.permits.available_permits(), 1);
    }
    let other = api.spawn("another");
    until("another key runs", || api.gate.arrivals() == 2).await;

    api.gate.open_for_all();
    assert_eq!(other.await.unwrap().text(), "run 2");
    assert_eq!(first.await.unwrap().text(), "run 1");
    for waiter in waiters {
        assert!(waiter.await.unwrap().is_replay());
    }
    assert_eq!(api.permits.available_permits(), 2);
    assert_eq!(api.runs.get(), 2);
    assert_eq!(api.layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_runs_after_waiting_makes_its_service_ready_first() {
    let api = Api::new(2, 1, waits);
    let first = api.spawn("k");
    until("it runs", || api.gate.arrivals() == 1).await;
    let waiter = api.spawn("k");
    until("it waits", || api.layer.in_flight().count() == 2).await;
    api.gate.open(1);
    assert_eq!(first.await.unwrap().status, 500);
    until("the waiter runs", || api.gate.arrivals() == 2).await;
    assert_eq!(api.permits.available_permits(), 1);
    api.gate.open(1);
    let answer = waiter.await.unwrap();
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "run 2"));
    let executed = Outcome::Executed {
        attempt: 2,
        stored: Some(true),
    };
    assert_eq!(answer.outcome, Some(executed));
    assert_eq!(api.permits.available_permits(), 2);
    assert_eq!(api.layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_takes_long_to_be_ready_again_does_not_cost_the_lease() {
    let api = Api::new(1, 1, waits);
    let first = api.spawn("k");
    until("it runs", || api.gate.arrivals() == 1).await;
    api.permits.add_permits(1);
    let waiter = api.spawn("k");
    until("it waits", || api.layer.in_flight().count() == 2).await;
    // Both permits are in other hands when the waiter acquires the key.
    let one = api.permits.clone().acquire_owned().await.unwrap();
    let other = tokio::spawn(api.permits.clone().acquire_owned());
    tokio::task::yield_now().await;
    api.gate.open(1);
    assert_eq!(first.await.unwrap().status, 500);
    let other = other.await.unwrap().unwrap();

    until("the waiter claims again", || {
        api.store.count(Call::Claim) == 3
    })
    .await;
    tokio::time::sleep(5 * MINUTE).await;
    assert!(api.store.count(Call::Extend) >= 29, "every ten seconds");
    assert_eq!(api.runs.get(), 1);
    drop((one, other));
    api.gate.open_for_all();
    assert_eq!(waiter.await.unwrap().text(), "run 2");
    assert_eq!(api.store.count(Call::Claim), 3);
    assert!(api.send(post("k", "")).await.is_replay());
    assert_eq!(api.runs.get(), 2);
    assert_eq!(api.layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_without_protection_calls_a_service_that_is_ready() {
    let api = Api::new(1, 0, |layer| layer.on_outage(OutagePolicy::RunUnprotected));
    api.gate.open_for_all();
    let outage = Fault::Refused(StoreErrorKind::NotApplied);
    api.store.always(Call::Claim, outage);
    for run in 1..=2 {
        let answer = api.send(post("k", "")).await;
        assert_eq!(answer.text(), format!("run {run}"));
        assert_eq!(answer.outcome, Some(Outcome::Unprotected));
        assert_eq!(answer.header("idempotency-stored"), Some("false"));
    }
    assert_eq!(api.permits.available_permits(), 1);
    assert_eq!(api.layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_has_seen_the_run_of_another_does_not_run_beside_it_without_protection() {
    let api = Api::new(2, 1, |layer| {
        waits(layer).on_outage(OutagePolicy::RunUnprotected)
    });
    let first = api.spawn("k");
    until("it runs", || api.gate.arrivals() == 1).await;
    let waiter = api.spawn("k");
    until("it waits", || api.layer.in_flight().count() == 2).await;
    let outage = Fault::Refused(StoreErrorKind::NotApplied);
    api.store.always(Call::Claim, outage);
    api.gate.open_for_all();
    assert_eq!(first.await.unwrap().status, 500);
    let answer = waiter.await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.code().as_deref(), Some("store-unavailable"));
    assert_eq!(api.runs.get(), 1);
    assert_eq!(api.permits.available_permits(), 2);
    assert_eq!(api.layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_has_no_key_calls_a_service_that_is_ready() {
    struct InTheBody;
    impl KeyExtractor for InTheBody {
        fn key(&self, _: &http::request::Parts) -> Result<Option<IdempotencyKey>, InvalidKey> {
            Ok(None)
        }

        fn reads_body(&self, _: &http::request::Parts) -> bool {
            true
        }
    }
    let api = Api::new(1, 0, |layer| layer.key(InTheBody));
    api.gate.open_for_all();
    for run in 1..=2 {
        let answer = api.send(without_key()).await;
        assert_eq!(answer.text(), format!("run {run}"));
        assert_eq!(answer.outcome, None);
    }
    assert_eq!(api.permits.available_permits(), 1);
}
