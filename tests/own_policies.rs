//! What a user sets or swaps holds exactly as far as it says, and what cannot be meant is
//! refused where it is written.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use support::faults::{Call, FaultStore};
use support::pieces::{Script, Step, assert_ran, assert_refused, assert_replays, panic_of};
use support::scripted::{dead_run, executed, idle, ms, plan, secs, spawn};
use support::stores::{once_not, store, store_pair};
use support::{counting, pieces, post, send};
use tokio::time::sleep;
use tower_idempotency::store::{AnyStore, Fingerprint, MemoryStore};
use tower_idempotency::{
    ConflictPolicy, FailurePolicy, FinalAnswers, Fingerprinter, HeaderKey, IdempotencyKey,
    IdempotencyLayer, InvalidKey, KeyExtractor, Outcome, RecordPolicy, RejectionKind,
    RequestDigest, SharedByAllCallers, Verdict, fingerprint_fn, key_fn, verdict_fn,
};

type Layer = IdempotencyLayer;

fn layer() -> Layer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

const POLICIES: [FailurePolicy; 3] = [
    FailurePolicy::RunAgain,
    FailurePolicy::Replay,
    FailurePolicy::Refuse,
];

#[test]
fn what_can_mean_nothing_panics_where_it_is_written() {
    type Setter = fn(Layer) -> Layer;
    let impossible: [(Setter, &str); 7] = [
        (|layer| layer.lease(Duration::ZERO), "the lease"),
        (|layer| layer.lease(ms(1) / 2), "the lease"),
        (|layer| layer.max_hold(Duration::ZERO), "max_hold"),
        (|layer| layer.retention(Duration::ZERO), "the retention"),
        (
            |layer| layer.store_timeout(Duration::ZERO),
            "the store's time-out",
        ),
        (
            |layer| {
                let at_most = Duration::ZERO;
                layer.on_conflict(ConflictPolicy::Wait { at_most })
            },
            "the wait on a conflict",
        ),
        (|layer| layer.max_in_flight(0), "at least one exchange"),
    ];
    for (set, named) in impossible {
        let (message, place) = panic_of(|| drop(set(layer())));
        assert!(message.starts_with(named), "{message}");
        assert!(message.contains(" must be "), "{message}");
        assert!(place.ends_with("tests/own_policies.rs"), "{place}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_shortest_times_are_only_short() {
    let short = Duration::from_nanos(1);
    let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers)
        .lease(ms(10))
        .max_hold(short)
        .retention(short)
        .store_timeout(short)
        .on_conflict(ConflictPolicy::Wait { at_most: short });
    let (service, runs) = counting(&layer);
    for run in 1..=2 {
        let answer = send(&service, post("k", "charge 5")).await;
        assert_eq!(answer.text(), format!("run {run}"));
        assert_ran(&answer, 1, true);
        tokio::time::advance(short).await;
    }
    assert_eq!((runs.get(), layer.in_flight().count()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_longest_times_are_only_long() {
    let long = Duration::MAX;
    let layer = layer()
        .lease(long)
        .max_hold(long)
        .retention(long)
        .store_timeout(long)
        .on_conflict(ConflictPolicy::Wait { at_most: long });
    let (service, runs) = plan(&layer, [(secs(600), 201)]);
    let first = spawn(&service, "k").await;
    let waiter = spawn(&service, "k").await;
    assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
    assert!(waiter.await.unwrap().is_replay());

    let (streamed, streams) = pieces::handler(&layer, |_, _: Request<_>| {
        let steps = [
            Step::Data("one".into()),
            Step::Waits,
            Step::Data("two".into()),
        ];
        http::Response::new(Script::new(steps))
    });
    let answer = send(&streamed, post("streamed", "")).await;
    assert_eq!(answer.text(), "onetwo");
    idle(&layer).await;
    sleep(secs(100 * 365 * 24 * 60 * 60)).await;
    assert!(send(&service, post("k", "charge 5")).await.is_replay());
    assert!(send(&streamed, post("streamed", "")).await.is_replay());
    assert_eq!((runs.get(), streams.get()), (1, 1));
}

#[tokio::test]
async fn an_option_counts_for_the_layer_it_is_set_on_and_for_no_clone_of_it() {
    let base = layer();
    let (before, runs) = counting(&base);
    let strict = base.clone().require_key(true).request_body_limit(3);
    let (after, strict_runs) = counting(&strict);
    let keyless = || {
        let mut request = post("k", "charge 5");
        request.headers_mut().remove("idempotency-key");
        request
    };
    assert_refused(&send(&after, keyless()).await, RejectionKind::MissingKey);
    let long = send(&after, post("k", "charge 5")).await;
    assert_refused(&long, RejectionKind::RequestTooLarge);
    let free = send(&before, keyless()).await;
    assert_eq!((free.text(), free.outcome), ("run 1", None));
    let first = send(&before, post("k", "charge 5")).await;
    assert_ran(&first, 1, true);

    // The store and the count of exchanges are shared all the same.
    let small = send(&before, post("small", "5")).await;
    assert_replays(&small, &send(&after, post("small", "5")).await);
    let begun = tower::Service::call(&mut before.clone(), post("begun", ""));
    assert_eq!(
        (base.in_flight().count(), strict.in_flight().count()),
        (1, 1)
    );
    drop(begun);
    assert_eq!(strict.in_flight().count(), 0);
    assert_eq!((runs.get(), strict_runs.get()), (3, 0));
}

/// Keys of 21 characters or more, and of no others.
struct LongKeys;

impl KeyExtractor for LongKeys {
    fn key(&self, request: &Parts) -> Result<Option<IdempotencyKey>, InvalidKey> {
        match HeaderKey::default().key(request)? {
            Some(key) if key.as_str().len() < 21 => {
                Err(InvalidKey::new("it is shorter than 21 characters"))
            }
            key => Ok(key),
        }
    }
}

#[tokio::test]
async fn a_key_may_have_to_be_of_one_kind() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers)
        .key(LongKeys)
        .require_key(true);
    let (service, runs) = counting(&layer);
    // Quotation marks are none of the key's characters.
    for key in ["k", "12345678901234567890", "\"12345678901234567890\""] {
        let refused = send(&service, post(key, "")).await;
        assert_refused(&refused, RejectionKind::InvalidKey);
        assert!(refused.text().contains("shorter than 21"), "{refused:?}");
    }
    let malformed = send(&service, post("123456789012345 678901", "")).await;
    assert_refused(&malformed, RejectionKind::InvalidKey);
    assert!(malformed.text().contains("must be quoted"), "{malformed:?}");
    assert_eq!((runs.get(), store.count(Call::Claim)), (0, 0));
    let first = send(&service, post("123456789012345678901", "")).await;
    assert_ran(&first, 1, true);
    let retry = send(&service, post("\"123456789012345678901\"", "")).await;
    assert_replays(&first, &retry);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_request_that_its_key_extractor_leaves_out_passes_though_it_has_a_key() {
    let store = FaultStore::new(store());
    let but_for_drafts = key_fn(|request| match request.headers.contains_key("x-draft") {
        true => Ok(None),
        false => HeaderKey::default().key(request),
    });
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).key(but_for_drafts);
    let (service, runs) = counting(&layer);
    let draft = || {
        let mut request = post("k", "charge 5");
        let yes = HeaderValue::from_static("yes");
        request.headers_mut().insert("x-draft", yes);
        request
    };
    for run in 1..=2 {
        let answer = send(&service, draft()).await;
        assert_eq!(answer.text(), format!("run {run}"));
        assert_eq!(answer.outcome, None);
    }
    assert_eq!(store.count(Call::Claim), 0);
    let first = send(&service, post("k", "charge 5")).await;
    assert_replays(&first, &send(&service, post("k", "charge 5")).await);
    assert_eq!(runs.get(), 3);
}

/// Answers with the first status, and with 201 from then on.
fn at_first(layer: &Layer, status: u16) -> (support::scripted::Planned, support::Runs) {
    plan(layer, [(Duration::ZERO, status), (Duration::ZERO, 201)])
}

#[tokio::test]
async fn a_rule_for_successes_alone_counts_from_200_to_299() {
    for policy in POLICIES {
        for (status, recorded) in [
            (200, true),
            (299, true),
            (300, false),
            (399, false),
            (400, false),
            (499, false),
            (500, false),
            (999, false),
        ] {
            let layer = layer().on_failure(policy).record_when(verdict_fn(|answer| {
                if answer.status.is_success() {
                    Verdict::Record
                } else {
                    Verdict::Release
                }
            }));
            let (service, runs) = at_first(&layer, status);
            let first = send(&service, post("k", "charge 5")).await;
            assert_eq!(first.status.as_u16(), status);
            assert_ran(&first, 1, recorded);
            if recorded {
                assert_replays(&first, &send(&service, post("k", "charge 5")).await);
            } else {
                // The key is free, also for another request.
                let next = send(&service, post("k", "charge 6")).await;
                assert_eq!(next.text(), "run 2 attempt 1", "{status} {policy:?}");
            }
            assert_eq!(runs.get(), if recorded { 1 } else { 2 });
        }
    }
}

#[tokio::test]
async fn a_status_that_is_released_is_released_whatever_a_failure_means() {
    let but_for_503 = || {
        verdict_fn(|answer| match answer.status.as_u16() {
            503 => Verdict::Release,
            _ => FinalAnswers.verdict(answer),
        })
    };
    for policy in POLICIES {
        let layer = layer().on_failure(policy).record_when(but_for_503());
        let (service, runs) = at_first(&layer, 503);
        assert_ran(&send(&service, post("k", "charge 5")).await, 1, false);
        let next = send(&service, post("k", "charge 6")).await;
        assert_eq!(next.text(), "run 2 attempt 1", "{policy:?}");
        assert_ran(&next, 1, true);
        assert_eq!(runs.get(), 2);

        // Any other failure is what the policy makes of it.
        let (service, runs) = at_first(&layer.namespace("500"), 500);
        let first = send(&service, post("k", "charge 5")).await;
        assert_eq!(first.status, 500);
        let retry = send(&service, post("k", "charge 5")).await;
        match policy {
            FailurePolicy::RunAgain => assert_eq!(retry.text(), "run 2 attempt 2"),
            FailurePolicy::Replay => assert_replays(&first, &retry),
            FailurePolicy::Refuse => assert_refused(&retry, RejectionKind::OutcomeUnknown),
        }
        let again = usize::from(policy == FailurePolicy::RunAgain);
        assert_eq!(runs.get(), 1 + again, "{policy:?}");
    }
}

/// Mixes a secret of the deployment into what the default takes.
fn keyed(secret: &'static [u8]) -> impl Fingerprinter {
    fingerprint_fn(move |request, body| {
        RequestDigest::default().fingerprint(request, &[secret, body].concat())
    })
}

#[tokio::test]
async fn deployments_that_fingerprint_differently_refuse_and_never_replay() {
    let (here, there) = store_pair();
    let deployment =
        |store, secret| IdempotencyLayer::new(store, SharedByAllCallers).fingerprint(keyed(secret));
    let (old, old_runs) = counting(&deployment(here, b"old secret"));
    let (new, new_runs) = counting(&deployment(there, b"new secret"));
    let first = send(&old, post("k", "charge 5")).await;
    assert_ran(&first, 1, true);
    for _ in 0..2 {
        let refused = send(&new, post("k", "charge 5")).await;
        assert_refused(&refused, RejectionKind::KeyReused);
    }
    assert_replays(&first, &send(&old, post("k", "charge 5")).await);
    assert_eq!((old_runs.get(), new_runs.get()), (1, 0));
}

/// One part, between boundaries that a client draws anew for every attempt.
fn upload(boundary: &str, content: &str) -> Request<Full<Bytes>> {
    let body = format!("--{boundary}\r\n\r\n{content}\r\n--{boundary}--");
    let mut request = post("k", body);
    let media_type = format!("multipart/form-data; boundary={boundary}");
    let media_type = HeaderValue::try_from(media_type).unwrap();
    request.headers_mut().insert("content-type", media_type);
    request
}

fn boundary(headers: &HeaderMap) -> Option<&str> {
    let media_type = headers.get("content-type")?.to_str().ok()?;
    Some(media_type.split_once("boundary=")?.1)
}

#[tokio::test]
async fn another_boundary_makes_another_request_unless_a_fingerprint_leaves_it_out() {
    let (service, runs) = counting(&layer());
    let first = send(&service, upload("a1", "photo")).await;
    let other = send(&service, upload("b2", "photo")).await;
    assert_refused(&other, RejectionKind::KeyReused);
    assert_replays(&first, &send(&service, upload("a1", "photo")).await);
    assert_eq!(runs.get(), 1);

    let of_the_parts = fingerprint_fn(|request, body| {
        let body = String::from_utf8_lossy(body);
        let body = match boundary(&request.headers) {
            Some(boundary) => body.replace(&format!("--{boundary}"), "--"),
            None => body.into_owned(),
        };
        RequestDigest::default().fingerprint(request, body.as_bytes())
    });
    let (service, runs) = counting(&layer().fingerprint(of_the_parts));
    let first = send(&service, upload("a1", "photo")).await;
    assert_replays(&first, &send(&service, upload("b2", "photo")).await);
    let other = send(&service, upload("b2", "phot0")).await;
    assert_refused(&other, RejectionKind::KeyReused);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_fingerprint_that_tells_nothing_apart_replays_for_any_request() {
    let constant = fingerprint_fn(|_, _| Fingerprint::from_bytes([7; 32]));
    let (service, runs) = counting(&layer().fingerprint(constant));
    let first = send(&service, post("k", "charge 5")).await;
    let mut other = post("k", "charge 6");
    *other.method_mut() = http::Method::DELETE;
    *other.uri_mut() = "/elsewhere".parse().unwrap();
    assert_replays(&first, &send(&service, other).await);
    // The key and the caller are no part of it.
    assert_ran(&send(&service, post("k2", "charge 5")).await, 1, true);
    assert_eq!(runs.get(), 2);
}

async fn a_run_dies_and_is_retried(of_the_run: FailurePolicy, of_the_retry: FailurePolicy) {
    let (dead, store) = store_pair();
    let dying =
        |layer: IdempotencyLayer<FaultStore<AnyStore>>| layer.lease(ms(500)).on_failure(of_the_run);
    dead_run(dead, dying, "k").await;
    let layer = IdempotencyLayer::new(store, SharedByAllCallers).on_failure(of_the_retry);
    let (service, runs) = plan(&layer, [(Duration::ZERO, 201)]);
    let ask = async || send(&service, post("k", "charge 5")).await;
    let retry = once_not(StatusCode::CONFLICT, ask).await;
    if of_the_run == FailurePolicy::RunAgain {
        assert_eq!(retry.text(), "run 1 attempt 2", "{of_the_retry:?}");
        assert_eq!(retry.outcome, executed(2, Some(true)));
    } else {
        assert_refused(&retry, RejectionKind::OutcomeUnknown);
        assert_eq!(runs.get(), 0, "{of_the_run:?} {of_the_retry:?}");
    }
}

#[tokio::test]
async fn the_policy_of_the_run_that_died_decides_and_not_the_one_of_its_retry() {
    let all = POLICIES
        .iter()
        .flat_map(|of_the_run| POLICIES.map(|it| a_run_dies_and_is_retried(*of_the_run, it)));
    futures_util::future::join_all(all).await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_settled_by_the_policy_of_the_one_who_comes_second() {
    let (here, there) = store_pair();
    let of = |store, policy| IdempotencyLayer::new(store, SharedByAllCallers).on_conflict(policy);
    let (rejects, runs) = plan(&of(here, ConflictPolicy::Reject), [(secs(5), 201)]);
    let waits = ConflictPolicy::Wait { at_most: secs(60) };
    let (waits, waiting_runs) = plan(&of(there, waits), [(secs(5), 201)]);
    let first = spawn(&rejects, "k").await;
    let waiter = spawn(&waits, "k").await;
    let refused = send(&rejects, post("k", "charge 5")).await;
    assert_refused(&refused, RejectionKind::InProgress);
    assert_eq!(first.await.unwrap().outcome, executed(1, Some(true)));
    let waited = waiter.await.unwrap();
    assert_eq!(waited.outcome, Some(Outcome::Replayed));
    assert_eq!(waited.text(), "run 1 attempt 1");
    assert_eq!((runs.get(), waiting_runs.get()), (1, 0));
}
