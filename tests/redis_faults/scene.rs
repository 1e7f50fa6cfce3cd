//! What these tests share: claims that nobody else makes, stores with a network that fails
//! before them, and handlers that something happens to.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use tokio::time::{Instant, sleep, timeout};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Fingerprint, Hold, KeyStore, Owner, Phase, Record, RecordId, RedisStore,
    ScopeId, StoreError, StoreErrorKind,
};
use tower_idempotency::{IdempotencyLayer, SharedByAllCallers};

use crate::support::gates::Gate;
use crate::support::proxy::{Proxy, Strike};
use crate::support::redis::{RedisServer, manager_at, manager_config, shared, unique_prefix};
use crate::support::scripted::{Planned, full, handling};
use crate::support::{Answer, Runs, post, send};

pub(crate) type Store = RedisStore<ConnectionManager>;
pub(crate) type Layer = IdempotencyLayer<Store>;

pub(crate) const KEPT: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn owner() -> Owner {
    Owner::random().unwrap()
}

fn digest() -> [u8; 32] {
    let halves = [*owner().as_bytes(), *owner().as_bytes()];
    halves.concat().try_into().unwrap()
}

/// A claim of a key that nobody has used.
pub(crate) fn request() -> ClaimRequest {
    let id = RecordId::from_bytes(digest());
    let scope = ScopeId::from_bytes(*owner().as_bytes());
    ClaimRequest::new(id, scope, Fingerprint::from_bytes(digest()), owner())
}

/// The same request once more, as a retry sends it.
pub(crate) fn retry_of(request: &ClaimRequest) -> ClaimRequest {
    let mut retry = request.clone();
    retry.owner = owner();
    retry
}

/// Another request under the same key.
pub(crate) fn misuse_of(request: &ClaimRequest) -> ClaimRequest {
    let mut misuse = retry_of(request);
    misuse.fingerprint = Fingerprint::from_bytes(digest());
    misuse
}

pub(crate) fn record(body: impl AsRef<[u8]>) -> Record {
    Record::new(&Response::new(body))
}

pub(crate) async fn acquires(store: &impl KeyStore, request: &ClaimRequest) -> Hold {
    match store.claim(request).await {
        Ok(Claimed::Acquired(hold)) => hold,
        other => panic!("it must be granted, and was not: {other:?}"),
    }
}

pub(crate) async fn phase(store: &impl KeyStore, id: &RecordId) -> Option<Phase> {
    store.lookup(id).await.unwrap().map(|found| found.phase)
}

#[track_caller]
pub(crate) fn error_of<T: Debug>(answer: Result<T, StoreError>) -> StoreErrorKind {
    answer.expect_err("it must fail").kind()
}

/// Makes a call again where it is not known what became of it, as the layer does: on a
/// connection that has broken meanwhile, the first one finds that out.
pub(crate) async fn insist<T>(mut call: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    match call().await {
        Err(error) if error.kind() == StoreErrorKind::Ambiguous => call().await.unwrap(),
        answered => answered.unwrap(),
    }
}

/// A store on a server, with keys of its own.
pub(crate) async fn store_on(server: &RedisServer) -> Store {
    RedisStore::new(server.manager().await).key_prefix(unique_prefix())
}

pub(crate) fn layer<C>(store: &RedisStore<C>) -> IdempotencyLayer<RedisStore<C>>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    IdempotencyLayer::new(store.clone(), SharedByAllCallers)
}

/// A store whose network fails when it is told to, and one on the same records whose network
/// does not. The server knows all scripts, so that a call is one request.
pub(crate) struct Line {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) store: Store,
    pub(crate) past: Store,
}

impl Line {
    pub(crate) async fn new() -> Self {
        Self::to(shared().await, manager_config()).await
    }

    pub(crate) async fn to(server: &RedisServer, config: ConnectionManagerConfig) -> Self {
        let prefix = unique_prefix();
        let proxy = Arc::new(Proxy::start(server.addr()).await);
        let store = RedisStore::new(manager_at(proxy.addr(), config).await).key_prefix(&prefix);
        let past = RedisStore::new(server.manager().await).key_prefix(&prefix);
        teach(&past).await;
        Self { proxy, store, past }
    }

    /// The next call, on a connection that is idle.
    pub(crate) fn strike(&self, strike: Strike) {
        self.proxy.strike_only("EVALSHA", strike);
    }

    /// Makes a call that meets the strike.
    pub(crate) async fn lose<T: Debug>(
        &self,
        strike: Strike,
        call: impl Future<Output = Result<T, StoreError>>,
    ) {
        self.strike(strike);
        let error = call.await.expect_err("its answer is lost");
        assert_eq!(error.kind(), StoreErrorKind::Ambiguous, "{error:?}");
        assert!(std::error::Error::source(&error).is_some(), "{error:?}");
        assert_eq!(self.proxy.pending_strikes(), 0);
    }
}

/// Makes each call once.
pub(crate) async fn teach(store: &Store) {
    let request = request();
    let hold = acquires(store, &request).await;
    store.extend(&hold, KEPT, KEPT).await.unwrap();
    store.fail(&hold, true, KEPT).await.unwrap();
    store.release(&hold).await.unwrap();
    store.complete(&hold, &record(""), KEPT).await.unwrap();
    store.lookup(&hold.id).await.unwrap();
    store.resolve(&hold.id, &record(""), KEPT).await.unwrap();
    store.forget(&hold.id).await.unwrap();
}

/// The layer around a handler that counts its runs, awaits what `during` gives, and answers
/// 201 and `run N attempt A`. Without protection there is no attempt, and A is 0.
pub(crate) fn running<K, F, A>(layer: &IdempotencyLayer<K>, during: F) -> (Planned, Runs)
where
    K: KeyStore,
    F: Fn() -> A + Clone + Send + Sync + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    answering(layer, 201, during)
}

/// The same with another status.
pub(crate) fn answering<K, F, A>(
    layer: &IdempotencyLayer<K>,
    status: u16,
    during: F,
) -> (Planned, Runs)
where
    K: KeyStore,
    F: Fn() -> A + Clone + Send + Sync + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let runs = Runs::default();
    let service = handling(layer, {
        let runs = runs.clone();
        move |operation| {
            let run = runs.add();
            let during = during();
            async move {
                during.await;
                let attempt = operation.map_or(0, |operation| operation.attempt());
                full(status, format!("run {run} attempt {attempt}"))
            }
        }
    });
    (Planned::new(service), runs)
}

/// The layer around a handler that answers 201 and what `body` makes of the number of its run.
pub(crate) fn handled<K: KeyStore>(
    layer: &IdempotencyLayer<K>,
    body: fn(usize) -> String,
) -> (Planned, Runs) {
    let runs = Runs::default();
    let service = handling(layer, {
        let runs = runs.clone();
        move |_| {
            let run = runs.add();
            async move { full(201, body(run)) }
        }
    });
    (Planned::new(service), runs)
}

pub(crate) fn at_once<K: KeyStore>(layer: &IdempotencyLayer<K>) -> (Planned, Runs) {
    running(layer, || async {})
}

pub(crate) fn gated<K: KeyStore>(layer: &IdempotencyLayer<K>, gate: &Gate) -> (Planned, Runs) {
    let gate = gate.clone();
    running(layer, move || {
        let gate = gate.clone();
        async move { gate.pass().await }
    })
}

pub(crate) async fn charge(service: &Planned, key: &str) -> Answer {
    send(service, post(key, "charge 5")).await
}

/// Retries as a client does that was told to: while the store is away, and while a claim
/// that was given up may still be in the way.
pub(crate) async fn charge_patiently(service: &Planned, key: &str) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = charge(service, key).await;
        let again = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::CONFLICT];
        if !again.contains(&answer.status) {
            return answer;
        }
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
        assert!(Instant::now() < deadline, "still {answer:?}");
        sleep(ms(20)).await;
    }
}

/// A retry is answered from the record, and nothing has run besides.
pub(crate) async fn assert_on_record(service: &Planned, key: &str, first: &Answer, runs: &Runs) {
    let before = runs.get();
    let retry = charge(service, key).await;
    assert!(retry.is_replay(), "{retry:?}");
    assert_eq!(retry.status, first.status);
    assert_eq!(retry.body, first.body);
    assert_eq!(retry.header("x-answer"), Some("true"));
    assert_eq!(retry.header("idempotency-body"), None);
    assert_eq!(runs.get(), before);
}

/// The handler's own answer, marked as not on record if it is not.
#[track_caller]
pub(crate) fn assert_true_answer(answer: &Answer, body: &str, is_stored: bool) {
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    assert_eq!(answer.text(), body);
    assert_eq!(answer.header("x-answer"), Some("true"));
    assert!(!answer.is_replay());
    let mark = (!is_stored).then_some("false");
    assert_eq!(answer.header("idempotency-stored"), mark, "{answer:?}");
}

/// Returns once no exchange is left, and nothing that one has left to do.
pub(crate) async fn idle<K>(layer: &IdempotencyLayer<K>) {
    let in_flight = layer.in_flight();
    let idle = timeout(PATIENCE, in_flight.idle()).await;
    assert!(idle.is_ok(), "{} never end", in_flight.count());
}

/// Returns once the condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came to pass: {what}");
        sleep(ms(5)).await;
    }
}
