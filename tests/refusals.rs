//! Every refusal is told clearly, runs nothing, and gives nothing of the request away.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use serde_json::Value;
use support::faults::{Call, Fault, FaultStore};
use support::pieces::{Script, Step, assert_ran, assert_refused, assert_replays, handler};
use support::scripted::let_run;
use support::stores::store;
use support::{Answer, Runs, counting, created, post, read, send};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt};
use tower_idempotency::store::{MemoryStore, StoreErrorKind};
use tower_idempotency::{
    FailurePolicy, IdempotencyLayer, RejectionKind, RequestBody, SharedByAllCallers, Verdict,
    by_trusted_header, verdict_fn,
};

/// In every part of every request: must be in no part of any refusal.
const MARK: &str = "mark-7f3a";

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

fn marked(body: &'static str) -> Request<Full<Bytes>> {
    let mut request = post(MARK, body);
    *request.uri_mut() = format!("/{MARK}?{MARK}").parse().unwrap();
    let headers = request.headers_mut();
    headers.insert("content-type", format!("text/{MARK}").parse().unwrap());
    headers.insert("x-note", HeaderValue::from_static(MARK));
    request
}

fn refused_once_without_echo(answer: &Answer, kind: RejectionKind, runs: &Runs, ran: usize) {
    assert_refused(answer, kind);
    assert_eq!(runs.get(), ran);
    assert!(!answer.text().contains(MARK), "{}", answer.text());
    for (name, value) in &answer.headers {
        let shown = format!("{name}: {}", value.to_str().unwrap());
        assert!(!shown.contains(MARK), "{shown}");
    }
    assert_eq!(answer.header("link"), None);
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(problem["type"], "about:blank");
}

#[tokio::test]
async fn a_missing_key() {
    let (service, runs) = counting(&layer().require_key(true));
    let mut request = marked(MARK);
    request.headers_mut().remove("idempotency-key");
    let answer = send(&service, request).await;
    refused_once_without_echo(&answer, RejectionKind::MissingKey, &runs, 0);
}

#[tokio::test]
async fn an_invalid_key_with_the_reason() {
    let (service, runs) = counting(&layer());
    for (key, reason) in [
        ("", "empty"),
        (&"mark-7f3a".repeat(40)[..], "255"),
        ("mark-7f3a b", "quoted"),
        ("\"mark-7f3a", "quotation mark"),
    ] {
        let mut request = marked(MARK);
        let key = HeaderValue::from_str(key).unwrap();
        request.headers_mut().insert("idempotency-key", key);
        let answer = send(&service, request).await;
        refused_once_without_echo(&answer, RejectionKind::InvalidKey, &runs, 0);
        let problem: Value = serde_json::from_slice(&answer.body).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(reason), "{detail}");
    }
}

#[tokio::test]
async fn an_unknown_caller() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), by_trusted_header("x-account"));
    let (service, runs) = counting(&layer);
    let answer = send(&service, marked(MARK)).await;
    refused_once_without_echo(&answer, RejectionKind::UnknownCaller, &runs, 0);
    assert_eq!(store.count(Call::Claim), 0);
}

#[tokio::test]
async fn a_request_that_is_too_large_declared_or_not() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).request_body_limit(9);
    let (service, runs) = handler(&layer, |_, _: Request<_>| created("done"));
    let bodies = [
        Script::data(["mark-7f3a", "-"]),
        Script::data(["mark-7f3a-"]),
        Script::data(["mark-", "7f3a-"]).sized(10),
        Script::data(["mark-", "7f3a-"]).at_least(10),
        Script::endless("mark-"),
    ];
    for body in bodies {
        let answer = send(&service, marked("").map(|_| body)).await;
        refused_once_without_echo(&answer, RejectionKind::RequestTooLarge, &runs, 0);
    }
    assert_eq!(store.count(Call::Claim), 0);
    // One byte less is none too many.
    for body in [
        Script::data(["mark-", "7f3", "a"]),
        Script::data(["mark-7f3a"]).sized(9),
    ] {
        let answer = send(&service, marked("").map(|_| body)).await;
        assert_eq!(answer.text(), "done");
    }
    assert_eq!(runs.get(), 1);
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test]
async fn a_body_that_breaks_off() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let (service, runs) = handler(&layer, |_, _: Request<_>| created("done"));
    let body = Script::new([Step::Data(MARK.into()), Step::Fails]);
    let answer = send(&service, marked("").map(|_| body)).await;
    refused_once_without_echo(&answer, RejectionKind::UnreadableBody, &runs, 0);
    assert_eq!(store.count(Call::Claim), 0);
    assert_eq!(layer.in_flight().count(), 0);
    // It says that the same may be sent again.
    let whole = marked("").map(|_| Script::data([MARK]));
    assert_ran(&send(&service, whole).await, 1, true);
}

#[tokio::test]
async fn a_key_that_belongs_to_another_request() {
    let (service, runs) = counting(&layer());
    let first = send(&service, marked("charge 5")).await;
    let answer = send(&service, marked(MARK)).await;
    refused_once_without_echo(&answer, RejectionKind::KeyReused, &runs, 1);
    assert_replays(&first, &send(&service, marked("charge 5")).await);
}

/// A handler that waits to be let go on.
#[allow(clippy::type_complexity)]
fn gated(
    layer: &IdempotencyLayer,
) -> (
    impl tower::Service<
        Request<Full<Bytes>>,
        Response = Response<tower_idempotency::ResponseBody<Full<Bytes>>>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static,
    Runs,
    Arc<Notify>,
) {
    let (runs, gate) = (Runs::default(), Arc::new(Notify::new()));
    let service = layer.layer(tower::service_fn({
        let (runs, gate) = (runs.clone(), Arc::clone(&gate));
        move |_: Request<RequestBody<Full<Bytes>>>| {
            runs.add();
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                Ok::<_, Infallible>(created("done"))
            }
        }
    }));
    (service, runs, gate)
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_twin_is_running() {
    let layer = layer();
    let (service, runs, gate) = gated(&layer);
    let first = tokio::spawn(service.clone().oneshot(marked("charge 5")));
    let_run().await;
    assert_eq!(runs.get(), 1);
    let answer = send(&service, marked("charge 5")).await;
    refused_once_without_echo(&answer, RejectionKind::InProgress, &runs, 1);
    // Another request is told so while the first still runs.
    let answer = send(&service, marked("charge 6")).await;
    refused_once_without_echo(&answer, RejectionKind::KeyReused, &runs, 1);
    gate.notify_one();
    let first = read(first.await.unwrap().unwrap()).await;
    assert_ran(&first, 1, true);
    assert_replays(&first, &send(&service, marked("charge 5")).await);
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn one_exchange_more_than_may_be_in_flight() {
    let layer = layer().max_in_flight(1);
    let (service, runs, gate) = gated(&layer);
    let first = tokio::spawn(service.clone().oneshot(post("first", "")));
    let_run().await;
    assert_eq!(layer.in_flight().count(), 1);
    let answer = send(&service, marked(MARK)).await;
    refused_once_without_echo(&answer, RejectionKind::Overloaded, &runs, 1);
    gate.notify_one();
    assert_ran(&read(first.await.unwrap().unwrap()).await, 1, true);
    gate.notify_one();
    assert_ran(&send(&service, marked(MARK)).await, 1, true);
    assert_eq!((runs.get(), layer.in_flight().count()), (2, 0));
}

#[tokio::test]
async fn one_record_more_than_a_scope_may_have() {
    let store = MemoryStore::new().max_records_per_scope(1);
    let layer = IdempotencyLayer::new(store.clone(), by_trusted_header("x-account"));
    let (service, runs) = counting(&layer);
    let by = |account, mut request: Request<_>| {
        let account = HeaderValue::from_static(account);
        request.headers_mut().insert("x-account", account);
        request
    };
    let first = send(&service, by("a", post("first", ""))).await;
    let answer = send(&service, by("a", marked(MARK))).await;
    refused_once_without_echo(&answer, RejectionKind::QuotaExceeded, &runs, 1);
    // Neither a retry nor another caller pays for it.
    assert_replays(&first, &send(&service, by("a", post("first", ""))).await);
    assert_ran(&send(&service, by("b", marked(MARK))).await, 1, true);
    assert_eq!((runs.get(), store.len()), (2, 2));
}

#[tokio::test]
async fn a_key_whose_outcome_is_unknown() {
    let layer = layer()
        .on_failure(FailurePolicy::Refuse)
        .record_when(verdict_fn(|_| Verdict::Failed));
    let (service, runs) = counting(&layer);
    assert_ran(&send(&service, marked(MARK)).await, 1, false);
    let answer = send(&service, marked(MARK)).await;
    refused_once_without_echo(&answer, RejectionKind::OutcomeUnknown, &runs, 1);
}

#[tokio::test]
async fn a_store_that_cannot_say_or_cannot_read() {
    for (kind, refusal) in [
        (StoreErrorKind::NotApplied, RejectionKind::StoreUnavailable),
        (
            StoreErrorKind::Misconfigured,
            RejectionKind::StoreUnavailable,
        ),
        (StoreErrorKind::Full, RejectionKind::StoreUnavailable),
        (StoreErrorKind::Quota, RejectionKind::QuotaExceeded),
        (StoreErrorKind::Corrupt, RejectionKind::RecordUnreadable),
    ] {
        let store = FaultStore::new(store());
        let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
        let (service, runs) = counting(&layer);
        store.always(Call::Claim, Fault::Refused(kind));
        for _ in 0..2 {
            let answer = send(&service, marked(MARK)).await;
            refused_once_without_echo(&answer, refusal, &runs, 0);
        }
        store.heal(Call::Claim);
        assert_ran(&send(&service, marked(MARK)).await, 1, true);
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_answer_does_not_come() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let (service, runs) = counting(&layer);
    store.always(Call::Claim, Fault::Hangs);
    let answer = send(&service, marked(MARK)).await;
    refused_once_without_echo(&answer, RejectionKind::StoreUnavailable, &runs, 0);
    layer.in_flight().idle().await;
    store.heal(Call::Claim);
    assert_ran(&send(&service, marked(MARK)).await, 1, true);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_store_keeps_what_it_has() {
    let store = MemoryStore::new().max_records(1);
    let layer = IdempotencyLayer::new(store, SharedByAllCallers).retention(Duration::from_secs(9));
    let (service, runs) = counting(&layer);
    let first = send(&service, post("first", "")).await;
    let answer = send(&service, marked(MARK)).await;
    refused_once_without_echo(&answer, RejectionKind::StoreUnavailable, &runs, 1);
    assert_replays(&first, &send(&service, post("first", "")).await);
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_ran(&send(&service, marked(MARK)).await, 1, true);
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn what_the_head_tells_is_refused_before_the_body_is_asked_for() {
    let by_account = IdempotencyLayer::new(store(), by_trusted_header("x-account"));
    let length = |value| ("content-length", value);
    let cases: [(_, &[(&'static str, &'static str)], Script, _); 7] = [
        (
            layer().require_key(true),
            &[],
            Script::untouchable(),
            RejectionKind::MissingKey,
        ),
        (
            layer(),
            &[("idempotency-key", "a b")],
            Script::untouchable(),
            RejectionKind::InvalidKey,
        ),
        (
            by_account,
            &[("idempotency-key", "k")],
            Script::untouchable(),
            RejectionKind::UnknownCaller,
        ),
        (
            layer(),
            &[("idempotency-key", "k")],
            Script::untouchable().sized(2 * 1024 * 1024 + 1),
            RejectionKind::RequestTooLarge,
        ),
        (
            layer(),
            &[("idempotency-key", "k")],
            Script::untouchable().at_least(2 * 1024 * 1024 + 1),
            RejectionKind::RequestTooLarge,
        ),
        (
            layer(),
            &[("idempotency-key", "k"), length("2097153")],
            Script::untouchable(),
            RejectionKind::RequestTooLarge,
        ),
        (
            layer(),
            &[("idempotency-key", "k"), length("18446744073709551615")],
            Script::untouchable(),
            RejectionKind::RequestTooLarge,
        ),
    ];
    for (layer, fields, body, kind) in cases {
        let polls = body.polls();
        let (service, runs) = handler(&layer, |_, _: Request<_>| created("done"));
        let mut request = Request::post("/").body(body).unwrap();
        for &(name, value) in fields {
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        assert_refused(&send(&service, request).await, kind);
        assert_eq!(polls.load(Ordering::SeqCst), 0);
        assert_eq!((runs.get(), layer.in_flight().count()), (0, 0));
    }
}
