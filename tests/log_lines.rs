//! No log line holds a key or a byte of a body; a record shows by its first eight digits.
#![cfg(all(feature = "memory", feature = "tracing"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use support::faults::{Call, Fault, FaultStore};
use support::gates::{Gate, until};
use support::pieces::{Script, Step, assert_refused, handler};
use support::scripted::let_run;
use support::stores::{once_not, store};
use support::{Runs, created, post, read, send};
use tower::{Layer, ServiceExt};
use tower_idempotency::store::StoreErrorKind;
use tower_idempotency::{
    FailurePolicy, IdempotencyKey, IdempotencyLayer, RecordId, RejectionKind, RequestBody, Scope,
    Verdict, scope_fn,
};
use tracing_subscriber::layer::SubscriberExt;

const KEY: &str = "key-4242";
const SENT: &str = "sent-4242";
const ANSWERED: &str = "answered-4242";
const ACCOUNT: &str = "account-4242";
const SECRETS: &str = "4242";

/// Lines of this crate, in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Every event and every span of this crate, at every level, and what came of it.
async fn logged<F: Future>(future: F) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let format = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        // The digits of a secret may be those of a moment.
        .without_time()
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(move || writer.clone());
    let this_crate = tracing_subscriber::filter::Targets::new()
        .with_target("tower_idempotency", tracing::Level::TRACE);
    let subscriber = tracing_subscriber::registry()
        .with(tracing_subscriber::Layer::with_filter(format, this_crate));
    // For the tasks that the exchange leaves behind too, which run on this thread.
    let guard = tracing::subscriber::set_default(subscriber);
    future.await;
    drop(guard);
    let text = lines.text();
    assert!(!text.contains(SECRETS), "{text}");
    text
}

fn layer<K: tower_idempotency::store::KeyStore>(store: K) -> IdempotencyLayer<K> {
    IdempotencyLayer::new(store, scope_fn(|_| Some(Scope::new(ACCOUNT))))
}

fn record() -> String {
    let key = IdempotencyKey::new(KEY).unwrap();
    let id = RecordId::new("", &Scope::new(ACCOUNT), &key);
    let shown = id.to_string();
    assert_eq!(shown.len(), 8);
    assert!(shown.chars().all(|digit| digit.is_ascii_hexdigit()));
    assert_eq!(format!("{id:?}"), format!("RecordId({shown}…)"));
    format!("record={shown}")
}

fn request() -> Request<Full<Bytes>> {
    let mut request = post(KEY, SENT);
    *request.uri_mut() = format!("/{SENT}?{SENT}").parse().unwrap();
    let header = HeaderValue::from_static(SENT);
    request.headers_mut().insert("x-note", header);
    request
}

#[tokio::test]
async fn what_goes_well_or_is_refused_is_no_event() {
    let text = logged(async {
        let layer = layer(store());
        let (service, runs) = handler(&layer, |_, _: Request<_>| created(ANSWERED));
        send(&service, request()).await;
        assert!(send(&service, request()).await.is_replay());
        let mut other = request();
        *other.body_mut() = Full::from("other-4242");
        assert_refused(&send(&service, other).await, RejectionKind::KeyReused);
        for key in ["", "bad 4242", "\"4242", "k4242\u{e9}"] {
            let mut bad = request();
            let key = HeaderValue::from_str(key).unwrap_or(HeaderValue::from_static(" "));
            bad.headers_mut().insert("idempotency-key", key);
            assert_refused(&send(&service, bad).await, RejectionKind::InvalidKey);
        }
        assert_eq!(runs.get(), 1);
    })
    .await;
    assert_eq!(text, "");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_told_by_call_kind_and_record() {
    let kinds = [
        StoreErrorKind::NotApplied,
        StoreErrorKind::Ambiguous,
        StoreErrorKind::Full,
        StoreErrorKind::Corrupt,
        StoreErrorKind::Misconfigured,
    ];
    for kind in kinds {
        let text = logged(async {
            let store = FaultStore::new(store());
            store.always(Call::Claim, Fault::Refused(kind));
            let layer = layer(store.clone());
            let (service, runs) = handler(&layer, |_, _: Request<_>| created(ANSWERED));
            send(&service, request()).await;
            layer.in_flight().idle().await;
            assert_eq!(runs.get(), 0);
        })
        .await;
        assert!(text.contains(&record()), "{text}");
        assert!(text.contains("call=\"claim\""), "{text}");
        assert!(text.contains(&format!("kind={kind:?}")), "{text}");
        assert!(text.contains("WARN"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_cannot_be_concluded_is_told() {
    for (call, verdict) in [
        (Call::Complete, Verdict::Record),
        (Call::Release, Verdict::Release),
        (Call::Fail, Verdict::Failed),
    ] {
        for streamed in [true, false] {
            let text = logged(async {
                let store = FaultStore::new(store());
                store.always(call, Fault::Refused(StoreErrorKind::NotApplied));
                let layer = layer(store).max_hold(Duration::from_secs(60));
                let (service, runs) = handler(&layer, move |_, _: Request<_>| {
                    let body = Script::new([Step::Data(ANSWERED.into())]);
                    let body = if streamed { body } else { body.sized(13) };
                    let mut answer = http::Response::new(body);
                    answer.extensions_mut().insert(verdict);
                    answer
                });
                let answer = send(&service, request()).await;
                assert_eq!(answer.text(), ANSWERED);
                layer.in_flight().idle().await;
                assert_eq!(runs.get(), 1);
            })
            .await;
            assert!(text.contains(&record()), "{text}");
            let name = format!("{call:?}").to_lowercase();
            assert!(text.contains(&format!("call=\"{name}\"")), "{text}");
            assert!(text.contains("ERROR"), "{text}");
            assert!(text.contains("could not be concluded"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_lost_lease_is_told() {
    let text = logged(async {
        let store = FaultStore::new(store());
        let layer = layer(store.clone()).lease(Duration::from_millis(500));
        let (runs, gate) = (Runs::default(), Gate::default());
        let service = layer.layer(tower::service_fn({
            let (runs, gate) = (runs.clone(), gate.clone());
            move |_: Request<RequestBody<Full<Bytes>>>| {
                let (run, gate) = (runs.add(), gate.clone());
                async move {
                    if run == 1 {
                        gate.pass().await;
                    }
                    Ok::<_, Infallible>(created(ANSWERED))
                }
            }
        }));
        // Cut off from the store until its lease is over.
        store.always(Call::Extend, Fault::Refused(StoreErrorKind::NotApplied));
        let first = service.clone().oneshot(request());
        let second = async {
            gate.until_arrived(1).await;
            let ask = async || send(&service, request()).await;
            let second = once_not(StatusCode::CONFLICT, ask).await;
            assert_eq!(second.text(), ANSWERED);
            store.heal(Call::Extend);
            let renewals = store.count(Call::Extend);
            until("it asks again", || store.count(Call::Extend) > renewals).await;
            let_run().await;
            gate.open(1);
        };
        let (first, ()) = tokio::join!(first, second);
        let first = read(first.unwrap()).await;
        assert_eq!(first.header("idempotency-stored"), Some("false"));
        layer.in_flight().idle().await;
        assert_eq!(runs.get(), 2);
    })
    .await;
    assert!(text.contains(&record()), "{text}");
    assert!(text.contains("call=\"extend\""), "{text}");
    assert!(text.contains("the lease was lost"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_and_a_handler_that_panicked_tell_nothing_of_it() {
    let text = logged(async {
        let store = FaultStore::new(store());
        store.once(Call::Fail, Fault::Refused(StoreErrorKind::Ambiguous));
        let layer = layer(store.clone()).on_failure(FailurePolicy::Refuse);
        let service = layer.layer(tower::service_fn(
            async |_: Request<RequestBody<Full<Bytes>>>| -> Result<_, Infallible> {
                tokio::time::sleep(Duration::from_secs(5)).await;
                let answer = created(ANSWERED);
                assert!(answer.status().is_server_error(), "panics with {ANSWERED}");
                Ok(answer)
            },
        ));
        let sent = service.clone().oneshot(request());
        let left = tokio::time::timeout(Duration::from_secs(1), sent).await;
        assert!(left.is_err());
        layer.in_flight().idle().await;
        let sealed = send(&service, request()).await;
        assert_refused(&sealed, RejectionKind::OutcomeUnknown);
    })
    .await;
    assert!(text.contains(&record()), "{text}");
}

#[tokio::test]
async fn every_retry_of_a_sealed_key_is_told() {
    let text = logged(async {
        let layer = layer(store()).on_failure(FailurePolicy::Refuse);
        let (service, runs) = handler(&layer, |_, _: Request<_>| {
            let mut failed = created(ANSWERED);
            *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            failed
        });
        send(&service, request()).await;
        for _ in 0..2 {
            let sealed = send(&service, request()).await;
            assert_refused(&sealed, RejectionKind::OutcomeUnknown);
        }
        assert_eq!(runs.get(), 1);
    })
    .await;
    assert_eq!(text.matches("waits to be resolved").count(), 2, "{text}");
    assert!(text.contains(&record()), "{text}");
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_transaction_that_failed_is_told_without_what_its_statement_says() {
    use tower_idempotency::TransactionError;

    let text = logged(async {
        let error = StoreErrorKind::Misconfigured.into();
        TransactionError::Store(error).into_response();
        let statement = format!("no such table: {ANSWERED}");
        let error = tower_idempotency::sqlx::Error::Protocol(statement);
        assert!(format!("{error:?}").contains(ANSWERED));
        TransactionError::from(error).into_response();
        TransactionError::Misuse("it was misused").into_response();
    })
    .await;
    let told = [
        "the store is misconfigured",
        "a statement of the transaction failed",
        "it was misused",
    ];
    for told in told {
        assert_eq!(text.matches(told).count(), 1, "{text}");
    }
    assert_eq!(text.matches("WARN").count(), 3, "{text}");
}

#[test]
fn nothing_that_a_handler_or_a_store_may_print_shows_the_key_or_a_body() {
    let key = IdempotencyKey::new(KEY).unwrap();
    let scope = Scope::new(ACCOUNT);
    let id = RecordId::new("", &scope, &key);
    let answer = http::Response::builder().header("x-note", ANSWERED);
    let answer = answer.body(ANSWERED).unwrap();
    let record = tower_idempotency::store::Record::new(&answer);
    for text in [
        format!("{key:?}"),
        format!("{scope:?}"),
        format!("{id:?} {id}"),
        format!("{record:?}"),
    ] {
        assert!(!text.contains(SECRETS), "{text}");
    }
}

#[tokio::test]
async fn the_operation_of_a_run_shows_neither_its_key_nor_its_owner() {
    let layer = layer(store());
    let (service, runs) = handler(&layer, |_, request: Request<_>| {
        let operation = request.extensions().get::<tower_idempotency::Operation>();
        created(format!("{:?}", operation.unwrap()))
    });
    let answer = send(&service, request()).await;
    assert!(answer.text().contains("Operation"), "{}", answer.text());
    assert!(!answer.text().contains(SECRETS), "{}", answer.text());
    assert_eq!(runs.get(), 1);
}
