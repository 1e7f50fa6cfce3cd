//! What a failed run means for its key is the user's choice, whatever way it failed.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use support::pieces::{Script, Step, assert_refused, assert_replays};
use support::stores::{assert_kept, store};
use support::{post, read};
use tokio::time::advance;
use tower::{Layer, ServiceExt};
use tower_idempotency::store::{AnyStore, KeyStore, MemoryStore, Phase, Record};
use tower_idempotency::{
    FailurePolicy, IdempotencyKey, IdempotencyLayer, Outcome, RecordId, RejectionKind, RequestBody,
    Scope, scope_fn,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Failure {
    Status(u16),
    Error,
    Panic,
    CallPanics,
    BreaksOff { len_known: bool },
    StreamPanics { len_known: bool },
}

const FAILURES: [Failure; 9] = [
    Failure::Status(500),
    Failure::Status(408),
    Failure::Error,
    Failure::Panic,
    Failure::CallPanics,
    Failure::BreaksOff { len_known: true },
    Failure::BreaksOff { len_known: false },
    Failure::StreamPanics { len_known: true },
    Failure::StreamPanics { len_known: false },
];

impl Failure {
    fn body(self) -> Script {
        let (last, len_known) = match self {
            Self::BreaksOff { len_known } => (Step::Fails, len_known),
            Self::StreamPanics { len_known } => (Step::Panics, len_known),
            _ => return Script::data(["done"]),
        };
        let body = Script::new([Step::Data("do".into()), last]);
        if len_known { body.sized(4) } else { body }
    }

    fn happen(self) -> Result<Response<Script>, String> {
        let status = match self {
            Self::Status(status) => status,
            Self::Error => return Err("planned".into()),
            Self::Panic => panic!("planned"),
            _ => 200,
        };
        let answer = Response::builder().status(status);
        Ok(answer.body(self.body()).unwrap())
    }
}

/// What the client sees of a run.
#[derive(Debug, PartialEq)]
enum Seen {
    Answer(Box<support::Answer>),
    Error(String),
    Panic,
    BrokeOff,
}

/// A service that fails at first, and its runs.
struct Failing {
    layer: IdempotencyLayer,
    failure: Failure,
    runs: support::Runs,
}

impl Failing {
    fn new(failure: Failure, policy: FailurePolicy, store: &AnyStore) -> Self {
        let scope = scope_fn(|_| Some(Scope::new("account")));
        Self {
            layer: IdempotencyLayer::new(store.clone(), scope).on_failure(policy),
            failure,
            runs: support::Runs::default(),
        }
    }

    async fn send(&self, body: &'static str) -> Seen {
        let (failure, runs) = (self.failure, self.runs.clone());
        let handler = move |_: Request<RequestBody<Full<Bytes>>>| {
            let run = runs.add();
            assert!(run > 1 || failure != Failure::CallPanics, "planned");
            async move {
                if run == 1 {
                    return failure.happen();
                }
                Ok(Response::new(Script::data(["done at last"])))
            }
        };
        let service = self.layer.layer(tower::service_fn(handler));
        let sent = tokio::spawn(async move {
            let response = match service.oneshot(post("k", body)).await {
                Ok(response) => response,
                Err(error) => return Seen::Error(error),
            };
            let (parts, body) = response.into_parts();
            match http_body_util::BodyExt::collect(body).await {
                Ok(body) => {
                    let body = Full::new(body.to_bytes());
                    Seen::Answer(Box::new(read(Response::from_parts(parts, body)).await))
                }
                Err(_) => Seen::BrokeOff,
            }
        });
        let seen = sent.await.unwrap_or_else(|error| {
            assert!(error.is_panic());
            Seen::Panic
        });
        self.layer.in_flight().idle().await;
        seen
    }

    async fn answer(&self, body: &'static str) -> support::Answer {
        match self.send(body).await {
            Seen::Answer(answer) => *answer,
            other => panic!("{other:?}"),
        }
    }

    /// The first run: its client sees what it would see without the layer.
    async fn fail(&self) -> Seen {
        let seen = self.send("charge 5").await;
        match (self.failure, &seen) {
            (Failure::Status(status), Seen::Answer(answer)) => {
                assert_eq!(answer.status.as_u16(), status);
                assert_eq!(answer.text(), "done");
            }
            (Failure::Error, Seen::Error(error)) => assert_eq!(error, "planned"),
            (Failure::BreaksOff { .. }, Seen::BrokeOff)
            | (Failure::Panic | Failure::CallPanics | Failure::StreamPanics { .. }, Seen::Panic) => {
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(self.runs.get(), 1);
        seen
    }
}

fn record() -> RecordId {
    let key = IdempotencyKey::new("k").unwrap();
    RecordId::new("", &Scope::new("account"), &key)
}

#[tokio::test(start_paused = true)]
async fn run_again_lets_the_same_request_run_again_after_every_failure() {
    for failure in FAILURES {
        let service = Failing::new(failure, FailurePolicy::RunAgain, &store());
        service.fail().await;
        let other = service.answer("charge 6").await;
        assert_refused(&other, RejectionKind::KeyReused);
        let again = service.answer("charge 5").await;
        assert_eq!(again.text(), "done at last", "{failure:?}");
        let Some(Outcome::Executed { attempt, .. }) = again.outcome else {
            panic!("{again:?}");
        };
        assert_eq!(attempt, 2);
        assert_replays(&again, &service.answer("charge 5").await);
        assert_eq!(service.runs.get(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn replay_keeps_an_answer_that_was_given_and_seals_where_there_was_none() {
    for failure in FAILURES {
        let service = Failing::new(failure, FailurePolicy::Replay, &store());
        let first = service.fail().await;
        for _ in 0..2 {
            let retry = service.answer("charge 5").await;
            match (&first, failure) {
                (Seen::Answer(first), Failure::Status(_)) => assert_replays(first, &retry),
                _ => assert_refused(&retry, RejectionKind::OutcomeUnknown),
            }
            let other = service.answer("charge 6").await;
            assert_refused(&other, RejectionKind::KeyReused);
        }
        assert_eq!(service.runs.get(), 1, "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refuse_seals_after_every_failure_until_someone_resolves_it() {
    for failure in FAILURES {
        let store = store();
        let service = Failing::new(failure, FailurePolicy::Refuse, &store);
        service.fail().await;
        for _ in 0..2 {
            let retry = service.answer("charge 5").await;
            assert_refused(&retry, RejectionKind::OutcomeUnknown);
        }
        let snapshot = store.lookup(&record()).await.unwrap().unwrap();
        assert_eq!((snapshot.phase, snapshot.attempt), (Phase::Sealed, 1));
        // An operator has found out that it was charged.
        let found = Response::builder()
            .status(201)
            .header("location", "/charges/1");
        let found = Record::new(&found.body("charged").unwrap());
        let kept = Duration::from_secs(60);
        assert!(store.resolve(&record(), &found, kept).await.unwrap());
        let retry = service.answer("charge 5").await;
        assert_eq!(retry.status, StatusCode::CREATED);
        assert_eq!((retry.text(), retry.is_replay()), ("charged", true));
        assert_eq!(retry.header("location"), Some("/charges/1"));
        let other = service.answer("charge 6").await;
        assert_refused(&other, RejectionKind::KeyReused);
        assert_eq!(service.runs.get(), 1, "{failure:?}");
    }
}

/// A sealed key that is free again is so for any request.
async fn assert_free(service: &Failing) {
    let other = service.answer("charge 6").await;
    assert_eq!(other.text(), "done at last");
    let first_attempt = Some(Outcome::Executed {
        attempt: 1,
        stored: Some(true),
    });
    assert_eq!(other.outcome, first_attempt);
    assert_eq!(service.runs.get(), 2);
}

#[tokio::test]
async fn a_sealed_key_is_free_again_once_it_is_forgotten() {
    let store = store();
    let service = Failing::new(Failure::Panic, FailurePolicy::Refuse, &store);
    service.fail().await;
    store.forget(&record()).await.unwrap();
    assert_free(&service).await;
}

#[tokio::test]
async fn a_sealed_key_is_kept_as_long_as_an_answer() {
    let store = store();
    let kept = Duration::from_secs(60);
    let mut service = Failing::new(Failure::Panic, FailurePolicy::Refuse, &store);
    service.layer = service.layer.retention(kept);
    let since = Instant::now();
    service.fail().await;
    let snapshot = store.lookup(&record()).await.unwrap();
    assert_eq!(snapshot.as_ref().unwrap().phase, Phase::Sealed);
    assert_kept(snapshot, kept, since);
}

#[tokio::test(start_paused = true)]
async fn a_sealed_key_is_free_again_once_retention_ends() {
    let store = AnyStore::new(MemoryStore::new());
    let mut service = Failing::new(Failure::Panic, FailurePolicy::Refuse, &store);
    service.layer = service.layer.retention(Duration::from_secs(60));
    service.fail().await;
    advance(Duration::from_millis(59_999)).await;
    let retry = service.answer("charge 5").await;
    assert_refused(&retry, RejectionKind::OutcomeUnknown);
    advance(Duration::from_millis(1)).await;
    assert_free(&service).await;
}
