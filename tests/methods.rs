//! Methods that change something are protected; safe ones pass untouched, key or not.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use support::faults::{Call, FaultStore};
use support::pieces::{Script, assert_ran, assert_refused, assert_replays, handler, panic_of};
use support::stores::store;
use support::{counting, created, post, send};
use tower_idempotency::{
    IdempotencyLayer, Operation, RejectionKind, SharedByAllCallers, by_trusted_header,
};

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

fn by(method: &str) -> Request<Full<Bytes>> {
    let mut request = post("k", "body");
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    request
}

fn keyless(method: &str) -> Request<Full<Bytes>> {
    let mut request = by(method);
    request.headers_mut().remove("idempotency-key");
    request
}

const SAFE: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "CONNECT"];

const PROTECTED: [&str; 8] = [
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "LOCK",
    "PROPPATCH",
    "post",
    "query",
];

#[tokio::test]
async fn safe_methods_pass_untouched_whatever_they_carry() {
    for method in SAFE {
        let store = FaultStore::new(store());
        // No scope, a required key, a limit: none of it is asked.
        let layer = IdempotencyLayer::new(store.clone(), by_trusted_header("x-account"))
            .require_key(true)
            .request_body_limit(1);
        let (service, runs) = handler(&layer, |_, request: Request<_>| {
            assert!(request.extensions().get::<Operation>().is_none());
            created(request.method().as_str().to_owned())
        });
        let mut malformed = by(method);
        let key = http::HeaderValue::from_static("a,b");
        malformed.headers_mut().append("idempotency-key", key);
        let sent = [by(method), by(method), keyless(method), malformed];
        let count = sent.len();
        for request in sent {
            let answer = send(&service, request).await;
            assert_eq!(answer.text(), method);
            assert_eq!(answer.outcome, None);
            assert_eq!(answer.headers.len(), 1, "{:?}", answer.headers);
        }
        assert_eq!((runs.get(), layer.in_flight().count()), (count, 0));
        assert_eq!(store.count(Call::Claim), 0);
    }
}

#[tokio::test]
async fn a_request_that_is_none_of_the_layers_business_keeps_its_own_body() {
    let body = Script::untouchable();
    let polls = body.polls();
    let (service, runs) = handler(&layer(), |_, _: Request<_>| created("untouched"));
    let mut safe = by("GET").map(|_| body.clone());
    assert_eq!(
        send(&service, safe.map(|body| body)).await.text(),
        "untouched"
    );
    safe = keyless("POST").map(|_| body);
    assert_eq!(send(&service, safe).await.text(), "untouched");
    assert_eq!(polls.load(Ordering::SeqCst), 0);
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn every_other_method_is_protected() {
    for method in PROTECTED {
        let layer = layer();
        let (service, runs) = counting(&layer);
        let first = send(&service, by(method)).await;
        assert_ran(&first, 1, true);
        assert_replays(&first, &send(&service, by(method)).await);
        let other = if method == "PUT" { "POST" } else { "PUT" };
        let refused = send(&service, by(other)).await;
        assert_refused(&refused, RejectionKind::KeyReused);
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}

#[tokio::test]
async fn the_set_of_methods_can_be_chosen() {
    let put_and_get = layer().methods([Method::PUT, Method::GET]);
    for method in ["PUT", "GET"] {
        let (service, runs) = counting(&put_and_get.clone().namespace(method));
        let first = send(&service, by(method)).await;
        assert_ran(&first, 1, true);
        assert_replays(&first, &send(&service, by(method)).await);
        assert_eq!(runs.get(), 1);
    }
    for method in ["POST", "DELETE", "PATCH", "HEAD"] {
        let (service, runs) = counting(&put_and_get);
        for run in 1..=2 {
            assert_eq!(send(&service, by(method)).await.outcome, None);
            assert_eq!(runs.get(), run);
        }
    }
}

#[test]
fn no_method_at_all_panics_where_it_is_configured() {
    let (message, place) = panic_of(|| drop(layer().methods([])));
    assert!(message.contains("at least one method"), "{message}");
    assert!(place.ends_with("tests/methods.rs"), "{place}");
}

#[tokio::test]
async fn a_key_is_required_of_post_and_patch_alone() {
    let layer = layer().require_key(true);
    let (service, runs) = counting(&layer);
    for method in ["POST", "PATCH"] {
        let refused = send(&service, keyless(method)).await;
        assert_refused(&refused, RejectionKind::MissingKey);
    }
    assert_eq!(runs.get(), 0);
    let free = ["PUT", "DELETE", "LOCK"].into_iter().chain(SAFE);
    for (before, method) in free.enumerate() {
        let answer = send(&service, keyless(method)).await;
        assert_eq!(answer.outcome, None, "{method}");
        assert_eq!(runs.get(), before + 1);
    }
}

#[tokio::test]
async fn a_required_key_is_not_asked_of_a_method_that_is_not_protected() {
    let layer = layer().require_key(true).methods([Method::PUT]);
    let (service, runs) = counting(&layer);
    for method in ["POST", "PATCH", "PUT"] {
        assert_eq!(send(&service, keyless(method)).await.outcome, None);
    }
    assert_eq!(runs.get(), 3);
}

#[tokio::test]
async fn a_preflight_passes_although_everything_is_protected_behind_it() {
    let (service, runs) = handler(&layer().require_key(true), |_, request: Request<_>| {
        let asked = request.headers()["access-control-request-headers"].clone();
        let allowed = Response::builder().status(204);
        let allowed = allowed.header("access-control-allow-headers", asked);
        allowed.body(Full::<Bytes>::default()).unwrap()
    });
    let mut preflight = keyless("OPTIONS");
    let headers = preflight.headers_mut();
    headers.insert("access-control-request-method", "POST".parse().unwrap());
    headers.insert(
        "access-control-request-headers",
        "idempotency-key".parse().unwrap(),
    );
    let answer = send(&service, preflight).await;
    assert_eq!(answer.status.as_u16(), 204);
    assert_eq!(
        answer.header("access-control-allow-headers"),
        Some("idempotency-key")
    );
    assert_eq!(runs.get(), 1);
}
