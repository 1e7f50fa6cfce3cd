//! What is final is recorded, what was refused is released, and a failed run is neither.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, response};
use http_body_util::Full;
use support::pieces::{
    Script, Step, assert_ran, assert_refused, assert_replays, executed, handler,
};
use support::stores::{assert_kept, store};
use support::{post, read, send};
use tokio::time::advance;
use tower::{Layer, ServiceExt};
use tower_idempotency::store::{KeyStore, MemoryStore};
use tower_idempotency::{
    FinalAnswers, IdempotencyKey, IdempotencyLayer, Operation, Outcome, RecordId, RecordPolicy,
    RejectionKind, RequestBody, Retention, Scope, SharedByAllCallers, Verdict, verdict_fn,
};

const RELEASED: [u16; 5] = [401, 407, 421, 425, 429];

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

fn answer(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let body = Full::new(body.into());
    Response::builder().status(status).body(body).unwrap()
}

/// Answers `status` at first, then 201, each with the number of its run.
fn at_first(
    status: u16,
) -> impl Fn(usize, Request<RequestBody<Full<Bytes>>>) -> Response<Full<Bytes>> + Clone {
    move |run, request| {
        let operation: &Operation = request.extensions().get().unwrap();
        let text = format!("run {run}, attempt {}", operation.attempt());
        answer(if run == 1 { status } else { 201 }, text)
    }
}

#[tokio::test]
async fn every_final_status_is_recorded() {
    let other = |status: &u16| *status != 408 && !RELEASED.contains(status);
    for status in (200..500).filter(other) {
        let layer = layer();
        let (service, runs) = handler(&layer, at_first(status));
        let first = send(&service, post("k", "charge 5")).await;
        assert_eq!(first.status.as_u16(), status);
        assert_ran(&first, 1, true);
        assert_replays(&first, &send(&service, post("k", "charge 5")).await);
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}

#[tokio::test]
async fn what_the_server_refused_to_begin_leaves_the_key_free_for_any_request() {
    for status in RELEASED {
        let layer = layer();
        let (service, runs) = handler(&layer, at_first(status));
        let first = send(&service, post("k", "charge 5")).await;
        assert_eq!(first.status.as_u16(), status);
        assert_ran(&first, 1, false);
        let corrected = send(&service, post("k", "charge 6")).await;
        assert_eq!(corrected.text(), "run 2, attempt 1");
        assert_ran(&corrected, 1, true);
        assert_replays(&corrected, &send(&service, post("k", "charge 6")).await);
        assert_eq!((runs.get(), layer.in_flight().count()), (2, 0));
    }
}

#[tokio::test]
async fn a_failed_run_may_be_followed_by_the_same_request_alone() {
    for status in (500..=999).chain([408]) {
        let layer = layer();
        let (service, runs) = handler(&layer, at_first(status));
        let first = send(&service, post("k", "charge 5")).await;
        assert_eq!(first.status.as_u16(), status);
        assert_ran(&first, 1, false);
        let other = send(&service, post("k", "charge 6")).await;
        assert_refused(&other, RejectionKind::KeyReused);
        let again = send(&service, post("k", "charge 5")).await;
        assert_eq!(again.text(), "run 2, attempt 2");
        assert_ran(&again, 2, true);
        assert_replays(&again, &send(&service, post("k", "charge 5")).await);
        let other = send(&service, post("k", "charge 6")).await;
        assert_refused(&other, RejectionKind::KeyReused);
        assert_eq!((runs.get(), layer.in_flight().count()), (2, 0));
    }
}

#[tokio::test]
async fn an_informational_status_is_no_answer_and_101_passes() {
    for status in [100, 102, 103, 199] {
        let (service, runs) = handler(&layer(), at_first(status));
        assert_ran(&send(&service, post("k", "")).await, 1, false);
        let other = send(&service, post("k", "other")).await;
        assert_refused(&other, RejectionKind::KeyReused);
        assert_ran(&send(&service, post("k", "")).await, 2, true);
        assert_eq!(runs.get(), 2);
    }
    // Whatever the handler thinks of it: an upgraded connection cannot be replayed.
    for verdict in [None, Some(Verdict::Record), Some(Verdict::Failed)] {
        let layer = layer();
        let (service, runs) = handler(&layer, move |_, _: Request<RequestBody<Full<Bytes>>>| {
            let mut upgrade = Response::builder().status(101).header("upgrade", "x");
            if let Some(verdict) = verdict {
                upgrade = upgrade.extension(verdict);
            }
            upgrade
                .extension("kept")
                .body(Script::data(["raw"]))
                .unwrap()
        });
        for run in 1..=2 {
            let response = service.clone().oneshot(post("k", "")).await.unwrap();
            assert_eq!(response.extensions().get(), Some(&"kept"));
            let upgraded = read(response).await;
            assert_eq!(upgraded.status, StatusCode::SWITCHING_PROTOCOLS);
            assert_eq!(upgraded.header("upgrade"), Some("x"));
            assert_eq!(upgraded.text(), "raw");
            assert_ran(&upgraded, 1, false);
            assert_eq!((runs.get(), layer.in_flight().count()), (run, 0));
        }
    }
}

#[tokio::test]
async fn the_verdict_of_the_handler_comes_before_the_policy() {
    let never = verdict_fn(|_: &response::Parts| -> Verdict { panic!("not to be asked") });
    let layer = layer().record_when(never);
    for (status, verdict) in [
        (500, Verdict::Record),
        (429, Verdict::Record),
        (200, Verdict::Release),
        (503, Verdict::Release),
        (200, Verdict::Failed),
    ] {
        let (service, runs) = handler(&layer, move |_, _: Request<_>| {
            let mut answer = answer(status, "said");
            answer.extensions_mut().insert(verdict);
            answer
        });
        let key = format!("{status}-{verdict:?}");
        let first = send(&service, post(&key, "charge 5")).await;
        assert_ran(&first, 1, verdict == Verdict::Record);
        let retry = send(&service, post(&key, "charge 5")).await;
        match verdict {
            Verdict::Record => assert_replays(&first, &retry),
            Verdict::Release => assert_ran(&retry, 1, false),
            Verdict::Failed => assert_ran(&retry, 2, false),
        }
        let other = send(&service, post(&key, "charge 6")).await;
        match verdict {
            Verdict::Release => assert_ran(&other, 1, false),
            _ => assert_refused(&other, RejectionKind::KeyReused),
        }
        let ran = if verdict == Verdict::Record { 1 } else { 2 };
        assert_eq!(runs.get(), ran + usize::from(verdict == Verdict::Release));
    }
}

#[tokio::test]
async fn a_closure_may_judge_the_answers() {
    let policy = verdict_fn(|answer| match answer.status.as_u16() {
        400..=499 => Verdict::Release,
        _ => FinalAnswers.verdict(answer),
    });
    let (service, runs) = handler(&layer().record_when(policy), at_first(422));
    assert_ran(&send(&service, post("k", "charge")).await, 1, false);
    let corrected = send(&service, post("k", "charge 5")).await;
    assert_ran(&corrected, 1, true);
    assert_replays(&corrected, &send(&service, post("k", "charge 5")).await);
    assert_eq!(runs.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_outcome_in_the_trailers_may_change_the_verdict() {
    struct ByStatus;
    impl RecordPolicy for ByStatus {
        fn verdict(&self, answer: &response::Parts) -> Verdict {
            FinalAnswers.verdict(answer)
        }
        fn verdict_at_end(&self, first: Verdict, trailers: &HeaderMap) -> Verdict {
            assert_eq!(first, Verdict::Record);
            match trailers.get("status").map(HeaderValue::as_bytes) {
                Some(b"0") => first,
                Some(b"14") => Verdict::Release,
                _ => Verdict::Failed,
            }
        }
    }
    for len_known in [true, false] {
        for (status, verdict) in [
            ("0", Verdict::Record),
            ("14", Verdict::Release),
            ("13", Verdict::Failed),
        ] {
            let layer = layer().record_when(ByStatus);
            let (service, runs) =
                handler(&layer, move |_, _: Request<RequestBody<Full<Bytes>>>| {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("status", HeaderValue::from_static(status));
                    let body = Script::new([Step::Data("done".into()), Step::Trailers(trailers)]);
                    Response::new(if len_known { body.sized(4) } else { body })
                });
            let first = send(&service, post("k", "")).await;
            assert_eq!(first.text(), "done");
            layer.in_flight().idle().await;
            let retry = send(&service, post("k", "")).await;
            let other = send(&service, post("k", "other")).await;
            match verdict {
                Verdict::Record => assert_replays(&first, &retry),
                Verdict::Release => assert_eq!(retry.outcome, first.outcome),
                Verdict::Failed if len_known => assert_eq!(retry.outcome, executed(2, false)),
                Verdict::Failed => assert_ne!(retry.outcome, Some(Outcome::Replayed)),
            }
            if verdict == Verdict::Release {
                assert_eq!(other.outcome, first.outcome);
            } else {
                assert_refused(&other, RejectionKind::KeyReused);
            }
            let again = usize::from(verdict != Verdict::Record);
            let other = usize::from(verdict == Verdict::Release);
            assert_eq!(runs.get(), 1 + again + other, "{status} {len_known}");
        }
    }
}

/// An answer whose handler may have said how long it is to be kept.
fn done(own: Option<Duration>) -> Response<Full<Bytes>> {
    let mut answer = answer(200, "done");
    if let Some(own) = own {
        answer.extensions_mut().insert(Retention(own));
    }
    answer
}

/// The layer over this store, with this retention or the default one.
fn keeping<K: KeyStore>(store: K, retention: Option<Duration>) -> IdempotencyLayer<K> {
    let layer = IdempotencyLayer::new(store, SharedByAllCallers);
    match retention {
        Some(retention) => layer.retention(retention),
        None => layer,
    }
}

/// How long a record is kept, looked for from both sides.
async fn assert_free_after(
    layer: IdempotencyLayer<MemoryStore>,
    own: Option<Duration>,
    kept: Duration,
) {
    let (service, runs) = handler(&layer, move |_, _: Request<_>| done(own));
    let first = send(&service, post("k", "")).await;
    advance(kept - Duration::from_millis(1)).await;
    assert_replays(&first, &send(&service, post("k", "")).await);
    advance(Duration::from_millis(1)).await;
    assert_ran(&send(&service, post("k", "other")).await, 1, true);
    assert_eq!(runs.get(), 2);
}

const SECOND: Duration = Duration::from_secs(1);
const SEVEN: Duration = SECOND.saturating_mul(7);
const DAY: Duration = SECOND.saturating_mul(24 * 60 * 60);
const LONGEST: Duration = DAY.saturating_mul(30);

/// What is set, what the handler says, and how long its answer is kept.
const KEPT: [(Option<Duration>, Option<Duration>, Duration); 8] = [
    (None, None, DAY),
    (Some(SEVEN), None, SEVEN),
    (Some(SEVEN), Some(Duration::ZERO), SECOND),
    (Some(SEVEN), Some(Duration::from_millis(999)), SECOND),
    (
        Some(SEVEN),
        Some(Duration::from_secs(5)),
        Duration::from_secs(5),
    ),
    (Some(SEVEN), Some(LONGEST), LONGEST),
    (Some(SEVEN), Some(LONGEST.saturating_add(DAY)), LONGEST),
    (Some(SEVEN), Some(Duration::MAX), LONGEST),
];

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_as_long_as_its_handler_says_within_bounds() {
    for (retention, own, kept) in KEPT {
        assert_free_after(keeping(MemoryStore::new(), retention), own, kept).await;
    }
}

fn record() -> RecordId {
    let key = IdempotencyKey::new("k").unwrap();
    RecordId::new("", &Scope::from(SharedByAllCallers), &key)
}

#[tokio::test]
async fn the_store_is_told_how_long_an_answer_is_kept() {
    for (retention, own, kept) in KEPT {
        let store = store();
        let layer = keeping(store.clone(), retention);
        let (service, _) = handler(&layer, move |_, _: Request<_>| done(own));
        let since = Instant::now();
        send(&service, post("k", "")).await;
        assert_kept(store.lookup(&record()).await.unwrap(), kept, since);
    }
}

#[tokio::test]
async fn the_store_counts_retention_from_completion() {
    let store = store();
    let kept = Duration::from_secs(10);
    let layer = keeping(store.clone(), Some(kept));
    let completed = Arc::new(Mutex::new(Instant::now()));
    let service = layer.layer(tower::service_fn({
        let completed = Arc::clone(&completed);
        move |_: Request<_>| {
            let completed = Arc::clone(&completed);
            async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                *completed.lock().unwrap() = Instant::now();
                Ok::<_, std::convert::Infallible>(answer(200, "late"))
            }
        }
    }));
    assert_ran(&send(&service, post("k", "")).await, 1, true);
    let snapshot = store.lookup(&record()).await.unwrap();
    assert_kept(snapshot, kept, *completed.lock().unwrap());
}

#[tokio::test(start_paused = true)]
async fn retention_counts_from_completion() {
    let layer = keeping(MemoryStore::new(), Some(Duration::from_secs(10)));
    let runs = support::Runs::default();
    let counted = runs.clone();
    let service = layer.layer(tower::service_fn(move |_: Request<_>| {
        counted.add();
        async move {
            tokio::time::sleep(Duration::from_secs(600)).await;
            Ok::<_, std::convert::Infallible>(answer(200, "late"))
        }
    }));
    let first = send(&service, post("k", "")).await;
    assert_ran(&first, 1, true);
    advance(Duration::from_millis(9_999)).await;
    assert_replays(&first, &send(&service, post("k", "")).await);
    advance(Duration::from_millis(1)).await;
    assert_ran(&send(&service, post("k", "")).await, 1, true);
    assert_eq!(runs.get(), 2);
}
