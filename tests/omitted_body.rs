//! A body over the limit reaches the first caller whole, and its request never runs again.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use support::pieces::{Script, Step, assert_ran, assert_refused, assert_replays, handler};
use support::stores::{assert_kept, store};
use support::{Answer, post, read, send};
use tower::ServiceExt;
use tower_idempotency::store::{AnyStore, KeyStore, MemoryStore, Phase, Record, Snapshot};
use tower_idempotency::{
    FailurePolicy, IdempotencyKey, IdempotencyLayer, Outcome, RecordId, RejectionKind, Retention,
    Scope, Verdict, scope_fn,
};

const LIMIT: usize = 8;

fn layer(store: &AnyStore) -> IdempotencyLayer {
    IdempotencyLayer::new(store.clone(), scope_fn(|_| Some(Scope::new("a"))))
        .response_body_limit(LIMIT)
}

async fn snapshot(store: &AnyStore) -> Option<Snapshot> {
    let id = RecordId::new("", &Scope::new("a"), &IdempotencyKey::new("k").unwrap());
    store.lookup(&id).await.unwrap()
}

async fn record(store: &AnyStore) -> Option<Record> {
    match snapshot(store).await?.phase {
        Phase::Completed(record) => Some(record),
        _ => None,
    }
}

fn created(body: Script) -> Response<Script> {
    let answer = Response::builder().status(201).header("location", "/1");
    answer.body(body).unwrap()
}

#[track_caller]
fn assert_omitted(retry: &Answer) {
    assert_eq!(retry.status, StatusCode::CREATED);
    assert_eq!(retry.header("location"), Some("/1"));
    assert_eq!(retry.header("idempotency-body"), Some("omitted"));
    assert!(retry.is_replay());
    assert_eq!(retry.outcome, Some(Outcome::Replayed));
    assert!(retry.body.is_empty());
    assert_eq!(retry.trailers, None);
}

/// Sends the request three times, and gives the record that there is in the end.
async fn thrice(answer: impl Fn() -> Response<Script>, first_body: &str, omitted: bool) -> Record {
    let store = store();
    let layer = layer(&store);
    let answer = answer();
    let (service, runs) = handler(&layer, move |_, _: Request<_>| answer.clone());
    let first = send(&service, post("k", "")).await;
    assert_eq!(first.text(), first_body);
    assert!(!first.is_replay());
    assert_eq!(first.header("idempotency-body"), None);
    assert_eq!(first.header("idempotency-stored"), None);
    layer.in_flight().idle().await;
    for _ in 0..2 {
        let retry = send(&service, post("k", "")).await;
        if omitted {
            assert_omitted(&retry);
        } else {
            assert_replays(&first, &retry);
        }
        let other = send(&service, post("k", "other")).await;
        assert_refused(&other, RejectionKind::KeyReused);
    }
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    let record = record(&store).await.unwrap();
    assert_eq!(record.is_omitted(), omitted);
    record
}

#[tokio::test]
async fn the_limit_itself_is_recorded_and_one_byte_more_is_not() {
    let whole: [fn() -> Script; 4] = [
        || Script::data(["12345678"]).sized(8),
        || Script::data(["1234", "5678"]).sized(8),
        || Script::data(["12345678"]),
        || Script::data(["1234", "", "5678", ""]),
    ];
    for body in whole {
        let record = thrice(|| created(body()), "12345678", false).await;
        assert_eq!(
            (record.body_len(), &record.body()[..]),
            (Some(8), &b"12345678"[..])
        );
    }
    let over: [(fn() -> Script, _); 4] = [
        (|| Script::data(["123456789"]).sized(9), Some(9)),
        (|| Script::data(["1234", "56789"]).sized(9), Some(9)),
        (|| Script::data(["123456789"]), None),
        (|| Script::data(["12345678", "9"]), None),
    ];
    for (body, len) in over {
        let record = thrice(|| created(body()), "123456789", true).await;
        assert_eq!((record.body_len(), record.body().len()), (len, 0));
    }
}

#[tokio::test]
async fn a_limit_of_zero_records_what_has_no_body() {
    let store = store();
    let layer = layer(&store).response_body_limit(0);
    let (service, runs) = handler(&layer, |run, _: Request<_>| match run {
        1 => created(Script::new([])),
        _ => created(Script::data(["1"])),
    });
    let empty = send(&service, post("empty", "")).await;
    assert_replays(&empty, &send(&service, post("empty", "")).await);
    assert_eq!(send(&service, post("one", "")).await.text(), "1");
    assert_omitted(&send(&service, post("one", "")).await);
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn a_declared_length_counts_before_the_body_is_read() {
    let answer = || {
        let mut answer = created(Script::data(["123456789"]));
        let length = http::HeaderValue::from_static("9");
        answer.headers_mut().insert("content-length", length);
        answer
    };
    let record = thrice(answer, "123456789", true).await;
    assert_eq!(record.body_len(), Some(9));
    assert!(record.headers().get("content-length").is_none());
}

#[tokio::test]
async fn a_known_length_over_the_limit_is_on_record_before_the_head_leaves() {
    let store = store();
    let layer = layer(&store);
    let body = Script::new([Step::Hangs]).sized(9);
    let polls = body.polls();
    let (service, runs) = handler(&layer, move |_, _: Request<_>| created(body.clone()));
    let first = service.clone().oneshot(post("k", "")).await.unwrap();
    assert!(record(&store).await.unwrap().is_omitted());
    let executed = Outcome::Executed {
        attempt: 1,
        stored: Some(true),
    };
    assert_eq!(first.extensions().get(), Some(&executed));
    assert_eq!(first.body().size_hint().exact(), Some(9));
    drop(first);
    assert_eq!(polls.load(Ordering::SeqCst), 0);
    assert_omitted(&send(&service, post("k", "")).await);
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test]
async fn an_endless_answer_is_on_record_as_soon_as_it_is_over_the_limit() {
    let store = store();
    let layer = layer(&store);
    let body = Script::endless("1234");
    let polls = body.polls();
    let (service, runs) = handler(&layer, move |_, _: Request<_>| created(body.clone()));
    let first = service.clone().oneshot(post("k", "")).await.unwrap();
    let mut body = Box::pin(first.into_body());
    for frame in 1..=100 {
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(data, "1234");
        assert_eq!(record(&store).await.is_some(), frame > 2, "{frame}");
    }
    assert!(!body.is_end_stream());
    assert_omitted(&send(&service, post("k", "")).await);
    drop(body);
    layer.in_flight().idle().await;
    // Nobody reads on for a record that is written.
    tokio::task::yield_now().await;
    assert_eq!(polls.load(Ordering::SeqCst), 100);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn the_record_stands_when_the_body_breaks_off_after_the_limit() {
    for last in [Step::Fails, Step::Panics] {
        let store = store();
        let layer = layer(&store);
        let panics = matches!(last, Step::Panics);
        let body = Script::new([Step::Data("123456789".into()), last]);
        let (service, runs) = handler(&layer, move |_, _: Request<_>| created(body.clone()));
        let first = service.clone().oneshot(post("k", "")).await.unwrap();
        let collected = tokio::spawn(first.into_body().collect()).await;
        assert_eq!(collected.is_err(), panics);
        assert!(panics || collected.unwrap().is_err());
        layer.in_flight().idle().await;
        assert_omitted(&send(&service, post("k", "")).await);
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test]
async fn a_length_that_is_a_lie_changes_nothing_for_the_first_caller() {
    // More than it said, within the limit and over it; and less.
    thrice(
        || created(Script::data(["12", "3456"]).sized(2)),
        "123456",
        false,
    )
    .await;
    thrice(
        || created(Script::data(["12", "3", "4", "56"]).sized(2)),
        "123456",
        false,
    )
    .await;
    thrice(
        || created(Script::data(["12", "3456789"]).sized(2)),
        "123456789",
        true,
    )
    .await;
    thrice(
        || created(Script::data(["123456789"]).sized(2)),
        "123456789",
        true,
    )
    .await;
    thrice(
        || created(Script::data(["12", "34567", "89"]).sized(2)),
        "123456789",
        true,
    )
    .await;
    thrice(|| created(Script::data(["1"]).sized(0)), "1", false).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_may_have_no_body_does_not_wait_for_one() {
    for (status, declared) in [(204, None), (304, None), (200, Some("0"))] {
        let layer = layer(&store());
        // Asked for its body, it has nothing yet, and will have for a long time.
        let body = Script::new(std::iter::repeat_n(Step::Waits, 1_000));
        let polls = body.polls();
        let (service, runs) = handler(&layer, move |_, _: Request<_>| {
            let mut answer = Response::new(body.clone());
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some(len) = declared {
                answer
                    .headers_mut()
                    .insert("content-length", len.parse().unwrap());
            }
            answer
        });
        let first = service.clone().oneshot(post("k", "")).await.unwrap();
        assert!(polls.load(Ordering::SeqCst) <= 1);
        assert_eq!(first.status(), status);
        let executed = Outcome::Executed {
            attempt: 1,
            stored: Some(true),
        };
        assert_eq!(first.extensions().get(), Some(&executed));
        let retry = send(&service, post("k", "")).await;
        assert_eq!((retry.status.as_u16(), retry.text()), (status, ""));
        assert!(retry.is_replay());
        // What the handler has to say is said to its client all the same.
        assert_eq!(read(first).await.text(), "");
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}

#[tokio::test]
async fn a_body_that_ends_before_its_length_is_no_answer_to_keep() {
    let layer = layer(&store());
    let (service, runs) = handler(&layer, |_, _: Request<_>| {
        created(Script::data(["12"]).sized(4))
    });
    for attempt in 1..=2 {
        let first = send(&service, post("k", "")).await;
        assert_eq!(first.text(), "12");
        let failed = Outcome::Executed {
            attempt,
            stored: Some(false),
        };
        assert_eq!(first.outcome, Some(failed));
    }
    assert_eq!((runs.get(), layer.in_flight().count()), (2, 0));
}

#[tokio::test]
async fn the_verdict_counts_for_a_long_body_too() {
    for sized in [true, false] {
        for (verdict, policy, runs_in_the_end) in [
            (Verdict::Release, FailurePolicy::RunAgain, 2),
            (Verdict::Failed, FailurePolicy::RunAgain, 2),
            (Verdict::Failed, FailurePolicy::Replay, 1),
            (Verdict::Failed, FailurePolicy::Refuse, 1),
        ] {
            let layer = layer(&store()).on_failure(policy);
            let (service, runs) = handler(&layer, move |_, _: Request<_>| {
                let body = Script::data(["123456789"]);
                let mut answer = created(if sized { body.sized(9) } else { body });
                answer.extensions_mut().insert(verdict);
                answer
            });
            assert_eq!(send(&service, post("k", "")).await.text(), "123456789");
            layer.in_flight().idle().await;
            let retry = send(&service, post("k", "")).await;
            match policy {
                FailurePolicy::Replay => assert_omitted(&retry),
                FailurePolicy::Refuse => assert_refused(&retry, RejectionKind::OutcomeUnknown),
                FailurePolicy::RunAgain => assert_eq!(retry.text(), "123456789"),
            }
            layer.in_flight().idle().await;
            assert_eq!(
                runs.get(),
                runs_in_the_end,
                "{sized} {verdict:?} {policy:?}"
            );
        }
    }
}

/// An answer over the limit that says how long it is to be kept.
fn kept(sized: bool) -> Response<Script> {
    let body = Script::data(["123456789"]);
    let mut answer = created(if sized { body.sized(9) } else { body });
    let retention = Retention(Duration::from_secs(5));
    answer.extensions_mut().insert(retention);
    answer
}

#[tokio::test]
async fn the_store_is_told_how_long_an_omitted_record_is_kept() {
    for sized in [true, false] {
        let store = store();
        let layer = layer(&store);
        let (service, _) = handler(&layer, move |_, _: Request<_>| kept(sized));
        let since = Instant::now();
        send(&service, post("k", "")).await;
        layer.in_flight().idle().await;
        assert_kept(snapshot(&store).await, Duration::from_secs(5), since);
    }
}

#[tokio::test(start_paused = true)]
async fn an_omitted_record_is_kept_as_long_as_its_answer_says() {
    for sized in [true, false] {
        let layer = layer(&AnyStore::new(MemoryStore::new()));
        let (service, runs) = handler(&layer, move |_, _: Request<_>| kept(sized));
        send(&service, post("k", "")).await;
        layer.in_flight().idle().await;
        tokio::time::advance(Duration::from_millis(4_999)).await;
        assert_omitted(&send(&service, post("k", "")).await);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(send(&service, post("k", "")).await.text(), "123456789");
        assert_eq!(runs.get(), 2);
    }
}

#[tokio::test]
async fn an_omitted_replay_says_that_it_is_empty() {
    let layer = layer(&store());
    let (service, _) = handler(&layer, |_, _: Request<_>| {
        created(Script::data(["123456789"]))
    });
    assert_ran_streaming(&send(&service, post("k", "")).await);
    layer.in_flight().idle().await;
    let retry = service.clone().oneshot(post("k", "")).await.unwrap();
    assert_eq!(retry.body().size_hint().exact(), Some(0));
    assert!(pin!(retry.body()).is_end_stream());
    assert_omitted(&read(retry).await);
    let fits = handler(&layer, |_, _: Request<_>| {
        created(Script::data(["1"]).sized(1))
    })
    .0;
    assert_ran(&send(&fits, post("fits", "")).await, 1, true);
}

#[track_caller]
fn assert_ran_streaming(answer: &Answer) {
    let streaming = Outcome::Executed {
        attempt: 1,
        stored: None,
    };
    assert_eq!(answer.outcome, Some(streaming));
}
