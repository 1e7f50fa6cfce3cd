//! The main job, in its shortest form.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use http::StatusCode;
use support::stores::store;
use support::{counting, post, send};
use tower_idempotency::{IdempotencyLayer, Outcome, SharedByAllCallers};

#[tokio::test]
async fn a_retry_gets_the_recorded_answer() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (service, runs) = counting(&layer);

    let first = send(&service, post("k", "charge 5")).await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.text(), "run 1");
    assert!(!first.is_replay());
    let executed = Outcome::Executed {
        attempt: 1,
        stored: Some(true),
    };
    assert_eq!(first.outcome, Some(executed));

    for _ in 0..5 {
        let retry = send(&service, post("k", "charge 5")).await;
        assert_eq!(retry.status, StatusCode::CREATED);
        assert_eq!(retry.text(), "run 1");
        assert_eq!(retry.header("location"), Some("/things/1"));
        assert!(retry.is_replay());
        assert_eq!(retry.outcome, Some(Outcome::Replayed));
    }
    assert_eq!(runs.get(), 1);
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test]
async fn another_request_under_the_key_is_refused_and_changes_nothing() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (service, runs) = counting(&layer);

    send(&service, post("k", "charge 5")).await;
    let other = send(&service, post("k", "charge 6")).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(other.code().as_deref(), Some("key-reused"));
    assert!(send(&service, post("k", "charge 5")).await.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_request_without_a_key_is_left_alone() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (service, runs) = counting(&layer);

    for run in 1..=2 {
        let mut request = post("k", "charge 5");
        request.headers_mut().remove("idempotency-key");
        let answer = send(&service, request).await;
        assert_eq!(answer.text(), format!("run {run}"));
        assert_eq!(answer.outcome, None);
    }
    assert_eq!(runs.get(), 2);
}
