//! A handler finds around it what it would find without the layer, and an operation that
//! tells the truth of its run.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use support::pieces::{self, Script, Step, assert_ran, assert_replays};
use support::scripted::{executed, full, handling, idle, let_run, secs};
use support::server::Server;
use support::stores::store;
use support::wire::Http1;
use support::{Runs, created, post, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use tower::{Layer, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_idempotency::store::{Forgot, KeyStore};
use tower_idempotency::{
    FailurePolicy, IdempotencyKey, IdempotencyLayer, Operation, Outcome, RecordId, RequestBody,
    Scope, SharedByAllCallers, by_trusted_header, scope_fn,
};

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

tokio::task_local! {
    static OUTSIDE: &'static str;
    static INSIDE: &'static str;
}

type Seen = (Option<&'static str>, Option<&'static str>);

fn task_locals() -> Seen {
    let outside = OUTSIDE.try_with(|value| *value).ok();
    (outside, INSIDE.try_with(|value| *value).ok())
}

#[tokio::test(start_paused = true)]
async fn task_locals_from_outside_last_as_long_as_the_client_and_those_from_inside_the_run() {
    for leaves in [false, true] {
        let layer = layer();
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let service = layer.layer(tower::service_fn({
            let seen = seen.clone();
            move |_: Request<RequestBody<Full<Bytes>>>| {
                let seen = seen.clone();
                INSIDE.scope("inside", async move {
                    seen.lock().unwrap().push(task_locals());
                    sleep(secs(5)).await;
                    seen.lock().unwrap().push(task_locals());
                    Ok::<_, Infallible>(created("done"))
                })
            }
        }));
        let request = service.clone().oneshot(post("k", "charge 5"));
        let client = tokio::spawn(OUTSIDE.scope("outside", request));
        let_run().await;
        if leaves {
            client.abort();
        }
        idle(&layer).await;
        let both = (Some("outside"), Some("inside"));
        let later = if leaves { (None, both.1) } else { both };
        assert_eq!(*seen.lock().unwrap(), [both, later]);
        assert!(send(&service, post("k", "charge 5")).await.is_replay());
        assert_eq!(seen.lock().unwrap().len(), 2, "it ran once");
    }
}

#[tokio::test]
async fn extensions_pass_in_both_directions_and_are_no_part_of_a_replay() {
    #[derive(Debug, Clone, PartialEq)]
    struct Note(&'static str);
    let layer = layer();
    let (service, runs) = pieces::handler(&layer, |_, request: Request<RequestBody<_>>| {
        let note: &Note = request.extensions().get().unwrap();
        assert_eq!(*note, Note("from outside"));
        let mut answer = created("done");
        answer.extensions_mut().insert(Note("from inside"));
        answer
    });
    for keyed in [true, false] {
        let mut request = post("k", "charge 5");
        request.extensions_mut().insert(Note("from outside"));
        if !keyed {
            request.headers_mut().remove("idempotency-key");
        }
        let answer = service.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.extensions().get(), Some(&Note("from inside")));
        let outcome: Option<&Outcome> = answer.extensions().get();
        assert_eq!(outcome.copied(), executed(1, Some(true)).filter(|_| keyed));
    }
    let retry = service.oneshot(post("k", "charge 5")).await.unwrap();
    assert_eq!(retry.extensions().get(), Some(&Outcome::Replayed));
    assert_eq!(retry.extensions().get::<Note>(), None);
    assert_eq!(runs.get(), 2);
}

/// Takes the connection over, and says everything twice.
async fn twice(mut request: axum::extract::Request, runs: Runs) -> Response {
    runs.add();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut said = [0; 4];
        while stream.read_exact(&mut said).await.is_ok() {
            stream.write_all(&said.repeat(2)).await.unwrap();
        }
    });
    let fields = [("connection", "upgrade"), ("upgrade", "twice")];
    (StatusCode::SWITCHING_PROTOCOLS, fields).into_response()
}

#[tokio::test]
async fn an_upgraded_connection_works_with_a_key_and_without_one_and_is_no_replay() {
    for policy in [FailurePolicy::RunAgain, FailurePolicy::Refuse] {
        let (layer, runs) = (layer().on_failure(policy), Runs::default());
        let handler = {
            let runs = runs.clone();
            any(move |request| twice(request, runs))
        };
        let app = Router::new().route("/", handler).route_layer(layer.clone());
        let server = Server::start(app).await;
        let keyed = "idempotency-key: k\r\n";
        let requests = [
            ("POST", keyed),
            ("POST", keyed),
            ("GET", keyed),
            ("GET", ""),
        ];
        for (run, (method, key)) in (1..).zip(requests) {
            let mut client = Http1::connect(server.addr).await;
            let head = format!("{method} / HTTP/1.1\r\nhost: test\r\n{key}");
            client
                .write(format!(
                    "{head}connection: upgrade\r\nupgrade: twice\r\n\r\n"
                ))
                .await;
            let head = client.head().await;
            assert_eq!(head.status, StatusCode::SWITCHING_PROTOCOLS);
            assert_eq!(head.headers["upgrade"], "twice");
            assert!(!head.headers.contains_key("idempotent-replayed"));
            client.write("ping").await;
            assert_eq!(client.bytes(8).await, "pingping");
            assert_eq!(runs.get(), run);
            // The connection lives on, and holds no key.
            assert_eq!(layer.in_flight().count(), 0);
            client.write("pong").await;
            assert_eq!(client.bytes(8).await, "pongpong");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_ends_its_run_inside_and_outside_of_a_layer_that_catches() {
    for (len_known, outside) in [(true, true), (true, false), (false, true), (false, false)] {
        let (layer, runs) = (layer(), Runs::default());
        let handler = {
            let runs = runs.clone();
            move || async move {
                let end = match runs.add() {
                    1 => Step::Panics,
                    _ => Step::Data("two".into()),
                };
                let body = Script::new([Step::Data("one".into()), Step::Waits, end]);
                Body::new(if len_known { body.sized(6) } else { body })
            }
        };
        let app = Router::new().route("/things", any(handler));
        let app = match outside {
            true => app.layer(layer.clone()).layer(CatchPanicLayer::new()),
            false => app.layer(CatchPanicLayer::new()).layer(layer.clone()),
        };
        let request = || post("k", "").map(Body::new);
        let what = format!("length known: {len_known}, caught outside: {outside}");

        let first = AssertUnwindSafe(send(&app, request())).catch_unwind().await;
        match first {
            // It is read before its head is sent, so that another head can be.
            Ok(answer) => {
                assert!(len_known && outside, "{what}: {answer:?}");
                assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
            }
            Err(_) => assert!(!(len_known && outside), "{what}"),
        }
        idle(&layer).await;
        let again = send(&app, request()).await;
        assert_eq!(again.text(), "onetwo", "{what}");
        let second = executed(2, len_known.then_some(true));
        assert_eq!(again.outcome, second, "{what}");
        idle(&layer).await;
        assert_replays(&again, &send(&app, request()).await);
        assert_eq!(runs.get(), 2, "{what}");
    }
}

#[tokio::test]
async fn a_stream_that_begins_with_an_empty_chunk_is_streamed_and_recorded_whole() {
    let data = |text: &'static str| Step::Data(text.into());
    for steps in [
        vec![data(""), Step::Waits, data("one"), Step::Waits, data("two")],
        vec![
            Step::Waits,
            data(""),
            data("one"),
            Step::Waits,
            data("two"),
            data(""),
        ],
        vec![data(""), data(""), Step::Waits, data("onetwo"), Step::Waits],
    ] {
        let layer = layer();
        let (service, runs) = pieces::handler(&layer, move |_, _: Request<_>| {
            http::Response::new(Script::new(steps.clone()))
        });
        let first = send(&service, post("k", "")).await;
        assert_eq!(first.text(), "onetwo");
        assert_eq!(first.outcome, executed(1, None));
        idle(&layer).await;
        assert_replays(&first, &send(&service, post("k", "")).await);
        assert_eq!(runs.get(), 1);
    }
}

/// What the operation of a run says: attempt, whether it is a retry, whether it is live, a
/// key for downstream.
type Told = (u64, bool, bool, String);

#[tokio::test]
async fn an_operation_tells_its_attempt_and_one_key_for_downstream_over_all_of_them() {
    let store = store();
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let told = Arc::new(Mutex::new(Vec::<Told>::new()));
    let service = handling(&layer, {
        let told = told.clone();
        move |operation: Option<Operation>| {
            let operation = operation.unwrap();
            let mut told = told.lock().unwrap();
            told.push((
                operation.attempt(),
                operation.is_retry(),
                operation.is_live(),
                operation.child_key("charge"),
            ));
            let status = if operation.attempt() == 3 { 201 } else { 500 };
            async move { full(status, "done") }
        }
    });
    for _ in 0..2 {
        for _ in 0..5 {
            send(&service, post("k", "charge 5")).await;
        }
        // Attempts start again once the record is gone.
        let key = IdempotencyKey::new("k").unwrap();
        let id = RecordId::new("", &Scope::from(SharedByAllCallers), &key);
        assert_eq!(store.forget(&id).await.unwrap(), Forgot::Forgotten);
    }
    let told = told.lock().unwrap();
    let attempts: Vec<_> = told.iter().map(|told| told.0).collect();
    assert_eq!(attempts, [1, 2, 3, 1, 2, 3], "and two replays after each");
    for (attempt, is_retry, is_live, child_key) in told.iter() {
        assert_eq!((*is_retry, *is_live), (*attempt > 1, true));
        assert_eq!(*child_key, told[0].3);
    }
    assert_eq!(layer.in_flight().count(), 0);
}

/// The keys for downstream that one run is given, by these labels.
async fn child_keys<K: KeyStore>(
    layer: &IdempotencyLayer<K>,
    request: Request<Full<Bytes>>,
    labels: [&'static str; 2],
) -> Vec<String> {
    let (service, runs) = pieces::handler(layer, move |_, request: Request<RequestBody<_>>| {
        let operation: &Operation = request.extensions().get().unwrap();
        let keys = labels.map(|label| operation.child_key(label));
        let mut answer = created(keys.join(" "));
        // The key is free again for any request.
        *answer.status_mut() = StatusCode::UNAUTHORIZED;
        answer
    });
    let answer = send(&service, request).await;
    assert_ran(&answer, 1, false);
    assert_eq!(runs.get(), 1);
    answer.text().split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn a_key_for_downstream_differs_for_label_key_request_caller_and_namespace() {
    let layer = IdempotencyLayer::new(store(), by_trusted_header("x-account"));
    let by = |account, key, body: &'static str| {
        let mut request = post(key, body);
        let account = HeaderValue::from_static(account);
        request.headers_mut().insert("x-account", account);
        request
    };
    let labels = ["charge", "mail"];
    let first = child_keys(&layer, by("ann", "k", "charge 5"), labels).await;
    let again = child_keys(&layer, by("ann", "k", "charge 5"), labels).await;
    assert_eq!(first, again, "it hangs on nothing else");

    let mut all: HashSet<String> = first.into_iter().collect();
    let others = [
        by("ann", "k", "charge 6"),
        by("ann", "K", "charge 5"),
        by("bob", "k", "charge 5"),
    ];
    for other in others {
        all.extend(child_keys(&layer, other, labels).await);
    }
    let elsewhere = layer.clone().namespace("mail");
    all.extend(child_keys(&elsewhere, by("ann", "k", "charge 5"), labels).await);
    // No label runs into another.
    let labels = ["", "chargemail"];
    all.extend(child_keys(&layer, by("ann", "k", "charge 5"), labels).await);
    assert_eq!(all.len(), 12);
    for key in all {
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        assert!(key.len() == 32 && key.chars().all(is_hex), "{key}");
    }
}

/// A retry may come after a new version is deployed, and must not be charged anew. The
/// values are from another reading: SHA-256 over parts behind their lengths.
#[tokio::test]
async fn ids_and_keys_for_downstream_are_the_same_in_every_version() {
    let scope = || Scope::new("acct_1").and("user_7");
    let layer =
        IdempotencyLayer::new(store(), scope_fn(move |_| Some(scope()))).namespace("payments");
    let keys = child_keys(&layer, post("order-7", "charge 5"), ["charge", ""]).await;
    assert_eq!(
        keys,
        [
            "bd5042683ffd4ab2edad99749a8d0769",
            "cbce2fabe5729765378bdb2a4e740895"
        ]
    );
    let key = IdempotencyKey::new("order-7").unwrap();
    let id = RecordId::new("payments", &scope(), &key);
    let id = id.as_bytes().map(|byte| format!("{byte:02x}")).concat();
    assert_eq!(
        id,
        "730c42bf79b1b4dfd49d27a85f030f347c1bd293fa14788f820b290bac22c4bb"
    );
}

#[tokio::test(start_paused = true)]
async fn an_operation_is_live_without_its_client_and_no_longer_than_its_run() {
    for streamed in [false, true] {
        let layer = layer();
        let (kept, runs) = (Arc::new(Mutex::new(None::<Operation>)), Runs::default());
        let service = handling(&layer, {
            let (kept, runs) = (kept.clone(), runs.clone());
            move |operation| {
                runs.add();
                *kept.lock().unwrap() = operation;
                async move {
                    sleep(secs(100)).await;
                    let steps = [Step::Data("one".into()), Step::Waits];
                    let body = Script::new(steps);
                    http::Response::new(if streamed { body } else { body.sized(3) })
                }
            }
        });
        let client = tokio::spawn(service.clone().oneshot(post("k", "charge 5")));
        let_run().await;
        client.abort();
        let operation = kept.lock().unwrap().clone().unwrap();
        for _ in 0..9 {
            sleep(secs(11)).await;
            assert!(operation.is_live());
        }
        idle(&layer).await;
        assert!(!operation.is_live());
        assert!(send(&service, post("k", "charge 5")).await.is_replay());
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test]
async fn whoever_keeps_an_operation_keeps_neither_its_key_nor_its_exchange() {
    let layer = layer();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let service = handling(&layer, {
        let kept = kept.clone();
        move |operation| {
            kept.lock().unwrap().extend(operation);
            async { full(500, "failed") }
        }
    });
    for attempt in 1..=3 {
        let answer = send(&service, post("k", "charge 5")).await;
        assert_ran(&answer, attempt, false);
        assert_eq!(layer.in_flight().count(), 0);
    }
    let kept = kept.lock().unwrap();
    let attempts: Vec<_> = kept.iter().map(Operation::attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert!(kept.iter().all(|operation| !operation.is_live()));
}
