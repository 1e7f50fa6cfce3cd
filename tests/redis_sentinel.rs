//! A store over the connection of the example `redis_sentinel` goes on with whatever Sentinel
//! makes the primary: meanwhile requests are refused, and what the replicas had is kept.
#![cfg(all(feature = "redis", unix))]
#![allow(clippy::unwrap_used)]

#[path = "../examples/redis_sentinel/primary.rs"]
mod primary;
mod support;

use std::error::Error;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use primary::Primary;
use redis::sentinel::SentinelClient;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind};
use support::gates::{Gate, until};
use support::pieces::{assert_ran, assert_refused, assert_replays};
use support::redis::sentinel::{Sentinel, Sentinels, client_of};
use support::redis::{RedisServer, command_stats, reset_stats};
use support::scripted::{Planned, full, handling, spawn};
use support::{Answer, Runs, post, send};
use tokio::time::{sleep, timeout};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Fingerprint, KeyStore, Owner, RecordId, RedisStore, ScopeId,
};
use tower_idempotency::{IdempotencyLayer, Operation, Outcome, RejectionKind, SharedByAllCallers};

type Store = RedisStore<Primary>;

/// How long a service may be without its store.
const SOME_SECONDS: Duration = Duration::from_secs(10);

/// Long enough for a busy machine; the layer waits 2 s.
const TO_ANSWER: Duration = Duration::from_secs(1);

fn store(client: SentinelClient) -> Store {
    patient_store(client, TO_ANSWER)
}

fn patient_store(client: SentinelClient, to_answer: Duration) -> Store {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(to_answer));
    RedisStore::new(Primary::new(client, config))
}

/// The layer around a handler that answers 201 and `run N`; that for the key `slow` waits at
/// the gate.
struct Service {
    layer: IdempotencyLayer<Store>,
    handler: Planned,
    runs: Runs,
    gate: Gate,
}

impl Service {
    fn new(store: Store) -> Self {
        // A claim that is in doubt is let go for as long as its lease.
        let layer = IdempotencyLayer::new(store, SharedByAllCallers).lease(Duration::from_secs(1));
        let (runs, gate) = (Runs::default(), Gate::default());
        let handler = handling(&layer, {
            let (runs, gate) = (runs.clone(), gate.clone());
            move |operation: Option<Operation>| {
                let (run, gate) = (runs.add(), gate.clone());
                async move {
                    if operation.unwrap().key().as_str() == "slow" {
                        gate.pass().await;
                    }
                    full(201, format!("run {run}"))
                }
            }
        });
        Self {
            handler: Planned::new(handler),
            layer,
            runs,
            gate,
        }
    }

    async fn charge(&self, key: &str) -> Answer {
        charge(&self.handler, key).await
    }

    /// Retries as a client does that was told to.
    async fn charge_patiently(&self, key: &str) -> Answer {
        let deadline = Instant::now() + SOME_SECONDS;
        loop {
            let answer = self.charge(key).await;
            // A claim that is in doubt stands in the way until it is let go.
            if answer.status != StatusCode::CONFLICT && !is_refused(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "still {answer:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn assert_on_record(&self, key: &str, first: &Answer) {
        assert_replays(first, &self.charge_patiently(key).await);
    }

    async fn idle(&self) {
        let idle = timeout(SOME_SECONDS, async { self.layer.in_flight().idle().await });
        assert!(idle.await.is_ok(), "something never ends");
    }
}

async fn charge(handler: &Planned, key: &str) -> Answer {
    send(handler, post(key, "charge 5")).await
}

/// Refused since the store is away; anything else must be a success.
fn is_refused(answer: &Answer) -> bool {
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        assert_refused(answer, RejectionKind::StoreUnavailable);
        return true;
    }
    false
}

/// Clients that send one new request after the other, until they are told to stop.
struct Clients {
    stopped: Arc<AtomicBool>,
    answers: Vec<tokio::task::JoinHandle<Vec<(String, Answer)>>>,
}

impl Clients {
    fn of(service: &Service, name: &'static str) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let client = |client| {
            let (handler, stopped) = (service.handler.clone(), Arc::clone(&stopped));
            async move {
                let mut answers = Vec::new();
                while !stopped.load(Ordering::SeqCst) {
                    let key = format!("{name}-{client}-{}", answers.len());
                    let answer = charge(&handler, &key).await;
                    answers.push((key, answer));
                    sleep(Duration::from_millis(10)).await;
                }
                answers
            }
        };
        Self {
            answers: (0..4).map(|it| tokio::spawn(client(it))).collect(),
            stopped,
        }
    }

    async fn stop(self) -> Vec<(String, Answer)> {
        self.stopped.store(true, Ordering::SeqCst);
        let answers = join_all(self.answers).await;
        answers.into_iter().flat_map(Result::unwrap).collect()
    }
}

async fn is_primary(server: &RedisServer) -> bool {
    server.info("replication").await.contains("role:master")
}

#[tokio::test]
async fn when_the_primary_is_lost_requests_are_refused_until_another_one_has_its_records() {
    let old = RedisServer::start().await;
    let (one, other) = tokio::join!(
        RedisServer::start_replica_of(&old),
        RedisServer::start_replica_of(&old),
    );
    let sentinels = Sentinels::watching(&old, 2).await;
    let store = store(sentinels.client()).min_replica_acks(1, Duration::from_millis(200));
    assert_eq!(store.check().await.unwrap(), []);
    let service = Service::new(store);
    // A replica may take a second before it acknowledges for the first time.
    let done = service.charge_patiently("done").await;
    assert_ran(&done, 1, true);
    let slow = spawn(&service.handler, "slow").await;
    service.gate.until_arrived(1).await;

    let clients = Clients::of(&service, "during");
    until("all are at work", || service.runs.get() > 20).await;
    old.kill();
    let first = service.charge_patiently("after").await;
    assert_ran(&first, 1, true);
    service.assert_on_record("done", &done).await;
    // What was under way is recorded on the new primary.
    service.gate.open_for_all();
    let slow = slow.await.unwrap();
    assert_eq!(slow.status, StatusCode::CREATED);
    let answers = clients.stop().await;
    service.idle().await;

    let (refused, ran): (Vec<_>, Vec<_>) = answers.iter().partition(|it| is_refused(&it.1));
    assert!(!refused.is_empty());
    assert_eq!(service.runs.get(), 3 + ran.len());
    for (key, answer) in &ran {
        assert_eq!(answer.status, StatusCode::CREATED);
        let executed = Some(Outcome::Executed {
            attempt: 1,
            stored: Some(answer.header("idempotency-stored").is_none()),
        });
        assert_eq!(answer.outcome, executed, "{answer:?}");
        service.assert_on_record(key, answer).await;
    }
    for (key, _) in &refused {
        assert_eq!(service.charge_patiently(key).await.status, 201);
    }
    assert_eq!(service.runs.get(), 3 + answers.len());

    // It comes back as a replica, and nobody notices.
    let (new, left) = match is_primary(&one).await {
        true => (&one, &other),
        false => (&other, &one),
    };
    old.restart().await;
    let clients = Clients::of(&service, "later");
    sentinels.until_content_with(new, 2).await;
    old.until_in_sync_with(new).await;
    left.until_in_sync_with(new).await;
    for (_, answer) in clients.stop().await {
        assert_ran(&answer, 1, true);
    }
    service.assert_on_record("done", &done).await;
    service.assert_on_record("slow", &slow).await;
    service.idle().await;
}

#[tokio::test]
async fn when_the_primary_changes_by_hand_requests_go_on() {
    let old = RedisServer::start().await;
    let new = RedisServer::start_replica_of(&old).await;
    let sentinels = Sentinels::watching(&old, 1).await;
    let service = Service::new(store(sentinels.client()));
    let done = service.charge("done").await;
    new.until_in_sync_with(&old).await;

    let clients = Clients::of(&service, "during");
    sentinels.fail_over().await;
    sentinels.until_content_with(&new, 1).await;
    let after = service.charge_patiently("after").await;
    let answers = clients.stop().await;
    service.idle().await;
    let mut ran = vec![&done, &after];
    ran.extend(answers.iter().map(|it| &it.1).filter(|it| !is_refused(it)));
    assert!(ran.iter().all(|it| it.status == StatusCode::CREATED));
    assert_eq!(service.runs.get(), ran.len());
    for (key, first) in [("done", done), ("after", after)] {
        service.assert_on_record(key, &first).await;
    }
    old.until_in_sync_with(&new).await;
}

/// A key that nobody has used.
fn request() -> ClaimRequest {
    let random = || *Owner::random().unwrap().as_bytes();
    let id = [random(), random()].concat().try_into().unwrap();
    ClaimRequest::new(
        RecordId::from_bytes(id),
        ScopeId::from_bytes(random()),
        Fingerprint::from_bytes([0; 32]),
        Owner::random().unwrap(),
    )
}

/// Claims a key, and tells what the driver says of it.
async fn claim(store: &Store) -> Result<(), ErrorKind> {
    match store.claim(&request()).await {
        Ok(Claimed::Acquired(_)) => Ok(()),
        Ok(other) => panic!("nobody else has claimed it: {other:?}"),
        Err(error) => {
            let source = error.source().and_then(<dyn Error>::downcast_ref);
            let source: &RedisError =
                source.unwrap_or_else(|| panic!("not the driver's: {error:?}"));
            Err(source.kind())
        }
    }
}

const MANY: usize = 20;

/// Of so many at once, all have to end like this.
#[track_caller]
fn assert_all(store: &Store, outcome: Result<(), ErrorKind>) -> impl Future<Output = ()> {
    let from = Location::caller();
    async move {
        let outcomes = join_all((0..MANY).map(|_| claim(store))).await;
        assert_eq!(outcomes, [outcome; MANY], "{from}");
    }
}

#[tokio::test]
async fn a_command_that_a_former_primary_refuses_is_not_repeated_and_one_caller_connects_for_all() {
    for (acks, is_cut_off) in [(false, false), (true, false), (false, true)] {
        let old = RedisServer::start().await;
        let new = RedisServer::start_replica_of(&old).await;
        let sentinel = Sentinel::start().await;
        sentinel.name(&old).await;
        let mut store = patient_store(client_of([&sentinel]), SOME_SECONDS);
        if acks {
            // A replica may take a second before it acknowledges for the first time.
            store = store.min_replica_acks(1, SOME_SECONDS / 2);
        }
        assert_all(&store, Ok(())).await;

        // Unlike Sentinel, this leaves the connections alone.
        sentinel.forget().await;
        new.promote().await;
        let refusal = if is_cut_off {
            until_without_replicas(&old).await;
            let mut stop = redis::cmd("CONFIG");
            stop.arg("SET").arg("min-replicas-to-write").arg(1);
            old.query::<()>(&stop).await;
            ErrorKind::Extension
        } else {
            let mut follow = redis::cmd("REPLICAOF");
            follow.arg("127.0.0.1").arg(new.port());
            old.query::<()>(&follow).await;
            old.until_in_sync_with(&new).await;
            ServerErrorKind::ReadOnly.into()
        };
        sentinel.name(&new).await;
        reset_stats(&new).await;
        assert_all(&store, Err(refusal)).await;
        let commands = command_stats(&new).await;
        assert!(!commands.contains_key("role"), "{commands:?}");
        assert!(!commands.contains_key("evalsha"), "{commands:?}");

        assert_all(&store, Ok(())).await;
        let commands = command_stats(&new).await;
        // The driver asks for it whenever it connects.
        assert_eq!(commands["role"], 1, "{commands:?}");
    }
}

async fn until_without_replicas(server: &RedisServer) {
    let deadline = Instant::now() + SOME_SECONDS;
    while !server
        .info("replication")
        .await
        .contains("connected_slaves:0")
    {
        assert!(Instant::now() < deadline, "its replicas never leave");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_primary_that_is_silent_or_gone_is_asked_for_until_sentinel_names_another_one() {
    let [lost, sentinel] = [Sentinel::start().await, Sentinel::start().await];
    let (old, new) = tokio::join!(RedisServer::start(), RedisServer::start());
    sentinel.name(&old).await;
    // One of them is enough.
    lost.server().kill();
    let store = store(client_of([&lost, &sentinel]));
    assert_all(&store, Ok(())).await;

    old.stop().await;
    let began = Instant::now();
    assert_all(&store, Err(ErrorKind::Io)).await;
    // None of them has waited for another one.
    assert!(began.elapsed() < 2 * TO_ANSWER, "{:?}", began.elapsed());
    // It is still named, and does not answer whoever connects.
    assert_all(&store, Err(ErrorKind::Io)).await;
    old.kill();
    assert_all(&store, Err(ErrorKind::Io)).await;
    sentinel.forget().await;
    assert_all(&store, Err(ErrorKind::MasterNameNotFoundBySentinel)).await;
    sentinel.name(&new).await;
    assert_all(&store, Ok(())).await;

    // Nobody needs Sentinel as long as all is well.
    sentinel.server().kill();
    assert_all(&store, Ok(())).await;
    new.restart().await;
    assert_eq!(claim(&store).await, Err(ErrorKind::Io));
    assert_all(&store, Err(ErrorKind::Io)).await;
}

#[tokio::test]
async fn a_command_that_fails_late_does_not_cost_the_others_their_new_connection() {
    let sentinel = Sentinel::start().await;
    let (old, new) = tokio::join!(RedisServer::start(), RedisServer::start());
    sentinel.name(&old).await;
    let store = store(client_of([&sentinel]));
    assert_all(&store, Ok(())).await;
    old.stop().await;
    sentinel.forget().await;
    sentinel.name(&new).await;

    let early = async {
        assert_all(&store, Err(ErrorKind::Io)).await;
        assert_all(&store, Ok(())).await;
    };
    let late = async {
        sleep(TO_ANSWER / 2).await;
        assert_all(&store, Err(ErrorKind::Io)).await;
    };
    tokio::join!(early, late);
    assert_all(&store, Ok(())).await;
    assert_eq!(command_stats(&new).await["role"], 1);
}
