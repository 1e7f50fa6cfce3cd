//! A layer inside of another never keeps a request from its answer.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request};
use axum::routing::post;
use http::StatusCode;
use support::faults::{Call, Fault, FaultStore};
use support::gates::{Gate, gated, until};
use support::stores;
use support::{Answer, Runs, send};
use tower_idempotency::store::{AnyStore, StoreErrorKind};
use tower_idempotency::{
    FailurePolicy, IdempotencyKey, IdempotencyLayer, Operation, Outcome, RecordId, RejectionKind,
    ScopeExtractor, SharedByAllCallers,
};

type Store = FaultStore<AnyStore>;

fn layer(store: &Store) -> IdempotencyLayer<Store> {
    IdempotencyLayer::new(store.clone(), SharedByAllCallers)
}

fn store() -> Store {
    FaultStore::new(stores::store())
}

/// A handler that says which operation it was given.
fn app(runs: &Runs, inner: IdempotencyLayer<Store>, outer: IdempotencyLayer<Store>) -> Router {
    let runs = runs.clone();
    let handler = move |Extension(operation): Extension<Operation>| {
        let run = runs.add();
        async move {
            let attempt = operation.attempt();
            (StatusCode::CREATED, format!("run {run} attempt {attempt}"))
        }
    };
    let route = post(handler).layer(inner);
    Router::new().route("/things", route).layer(outer)
}

async fn ask(app: &Router, body: &'static str) -> Answer {
    let request = Request::post("/things")
        .header("idempotency-key", "k")
        .body(Body::from(body))
        .unwrap();
    send(app, request).await
}

fn executed(attempt: u64) -> Option<Outcome> {
    Some(Outcome::Executed {
        attempt,
        stored: Some(true),
    })
}

#[tokio::test(start_paused = true)]
async fn the_same_layer_on_a_router_and_on_its_route_claims_once() {
    let (store, runs) = (store(), Runs::default());
    let layer = layer(&store);
    let app = app(&runs, layer.clone(), layer.clone());
    let first = ask(&app, "").await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.text(), "run 1 attempt 1");
    assert_eq!(first.outcome, executed(1));
    for _ in 0..3 {
        let retry = ask(&app, "").await;
        assert_eq!((retry.status, retry.text()), (first.status, first.text()));
        assert!(retry.is_replay());
    }
    let claims = store.count(Call::Claim);
    assert_eq!((claims, store.count(Call::Complete)), (4, 1));
    assert_eq!(runs.get(), 1);
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn two_layers_on_one_store_without_namespaces_are_the_same_layer() {
    let (store, runs) = (store(), Runs::default());
    let app = app(&runs, layer(&store), layer(&store));
    assert_eq!(ask(&app, "").await.text(), "run 1 attempt 1");
    assert!(ask(&app, "").await.is_replay());
    assert_eq!(store.count(Call::Complete), 1);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_layer_three_times_over_streams_and_records_once() {
    let (store, runs, gate) = (store(), Runs::default(), Gate::default());
    let layer = layer(&store);
    let handler = {
        let (runs, gate) = (runs.clone(), gate.clone());
        move || async move {
            runs.add();
            gated(&gate, &["one ", "two"])
        }
    };
    let app = Router::new()
        .route("/things", post(handler).layer(layer.clone()))
        .route_layer(layer.clone())
        .layer(layer.clone());
    gate.open_for_all();
    assert_eq!(ask(&app, "").await.text(), "one two");
    let retry = ask(&app, "").await;
    assert_eq!(retry.text(), "one two");
    assert!(retry.is_replay());
    assert_eq!(store.count(Call::Complete), 1);
    assert_eq!(runs.get(), 1);
    until("no exchange is left", || layer.in_flight().count() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn two_layers_of_different_namespaces_each_record_and_run_once() {
    let (store, runs) = (store(), Runs::default());
    let (outer, inner) = (
        layer(&store).namespace("outer"),
        layer(&store).namespace("inner"),
    );
    let app = app(&runs, inner.clone(), outer.clone());
    let first = ask(&app, "").await;
    assert_eq!(first.outcome, executed(1));
    assert!(!first.is_replay());
    let retry = ask(&app, "").await;
    assert_eq!((retry.status, retry.text()), (first.status, first.text()));
    assert!(retry.is_replay());
    let claims = store.count(Call::Claim);
    assert_eq!((claims, store.count(Call::Complete)), (3, 2));
    assert_eq!(runs.get(), 1);
    assert_eq!(
        (outer.in_flight().count(), inner.in_flight().count()),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn what_an_inner_layer_refuses_leaves_the_key_of_the_outer_one_free() {
    let (outer_store, inner_store, runs) = (store(), store(), Runs::default());
    let (outer, inner) = (layer(&outer_store), layer(&inner_store).namespace("inner"));
    let app = app(&runs, inner, outer.clone());
    let outage = Fault::Refused(StoreErrorKind::NotApplied);
    inner_store.always(Call::Claim, outage);
    for _ in 0..2 {
        let refused = ask(&app, "").await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.code().as_deref(), Some("store-unavailable"));
        assert_eq!(refused.header("idempotency-stored"), None);
    }
    assert_eq!(outer_store.count(Call::Release), 2);
    assert_eq!(outer_store.count(Call::Complete), 0);

    inner_store.heal(Call::Claim);
    assert_eq!(ask(&app, "").await.text(), "run 1 attempt 1");
    assert!(ask(&app, "").await.is_replay());
    assert_eq!(runs.get(), 1);
    assert_eq!(outer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_an_inner_layer_refuses_does_not_seal_the_key_of_a_strict_outer_one() {
    let (outer_store, inner_store, runs) = (store(), store(), Runs::default());
    let outer = layer(&outer_store).on_failure(FailurePolicy::Refuse);
    let inner = layer(&inner_store).namespace("inner");
    let app = app(&runs, inner, outer);
    inner_store.once(Call::Claim, Fault::Refused(StoreErrorKind::Full));
    let refused = ask(&app, "").await;
    assert_eq!(refused.code().as_deref(), Some("store-unavailable"));
    assert_eq!(ask(&app, "").await.text(), "run 1 attempt 1");
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_request_that_the_inner_layer_knows_better_is_refused_and_not_recorded() {
    let (outer_store, inner_store, runs) = (store(), store(), Runs::default());
    let (outer, inner) = (layer(&outer_store), layer(&inner_store).namespace("inner"));
    let app = app(&runs, inner, outer);
    assert_eq!(ask(&app, "charge 5").await.text(), "run 1 attempt 1");
    // The outer record is gone, the inner one is not.
    let key = IdempotencyKey::new("k").unwrap();
    let scope = SharedByAllCallers.scope(&Request::new(()).into_parts().0);
    let id = RecordId::new("", &scope.unwrap(), &key);
    tower_idempotency::store::KeyStore::forget(&outer_store, &id)
        .await
        .unwrap();

    let other = ask(&app, "charge 6").await;
    assert_eq!(other.code().as_deref(), Some("key-reused"));
    assert_eq!(RejectionKind::KeyReused.status(), other.status);
    let retry = ask(&app, "charge 5").await;
    assert_eq!(retry.text(), "run 1 attempt 1");
    assert!(retry.is_replay(), "by the inner layer");
    assert!(ask(&app, "charge 5").await.is_replay(), "by the outer one");
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_inner_layer_could_not_keep_is_replayed_by_the_outer_one() {
    let (outer_store, inner_store, runs) = (store(), store(), Runs::default());
    let (outer, inner) = (layer(&outer_store), layer(&inner_store).namespace("inner"));
    let app = app(&runs, inner, outer);
    let outage = Fault::Refused(StoreErrorKind::NotApplied);
    inner_store.always(Call::Complete, outage);
    let first = ask(&app, "").await;
    assert_eq!(first.text(), "run 1 attempt 1");
    let retry = ask(&app, "").await;
    assert_eq!(retry.text(), "run 1 attempt 1");
    assert!(retry.is_replay());
    // It is on record: that is where it comes from.
    assert_eq!(retry.header("idempotency-stored"), None);
    assert_eq!(runs.get(), 1);
}
