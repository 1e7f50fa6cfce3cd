//! What the SQL stores cost, beside the same statements sent raw through the same pool, and
//! what transaction mode costs beside the handler's own transaction without the layer.
//!
//! `cargo bench --features postgres,sqlite --bench sql_stores` starts a private PostgreSQL,
//! makes a SQLite file, fills a table of each with 10 thousand records and another with 2
//! million, and prints one table. Variants run in turn in one process, and only their ratios
//! compare: absolute times are those of a machine's disk.

#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
#[path = "../tests/support"]
mod support {
    pub(crate) mod postgres;
}

#[path = "sql_stores/over_postgres.rs"]
mod over_postgres;
#[path = "sql_stores/over_sqlite.rs"]
mod over_sqlite;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, KeyStore, Owner, Record, RecordId, ScopeId,
    TransactionalStore,
};
use tower_idempotency::{IdempotencyLayer, Operation, RequestBody, SharedByAllCallers};

/// A database with two tables of records.
pub(crate) trait Engine: Send + Sync + 'static {
    const NAME: &str;
    type Store: TransactionalStore<Connection = Self::Connection>;
    type Connection: Send;

    async fn start(rows: [u64; 2]) -> Self;

    fn store(&self, table: usize) -> &Self::Store;

    /// The statements of a claim that finds nothing, and of the completion after it.
    fn fresh(&self, request: &ClaimRequest, record: &Record) -> impl Future<Output = ()> + Send;

    /// The record, by its primary key.
    fn read(&self, id: &RecordId) -> impl Future<Output = usize> + Send;

    /// What the handler writes.
    fn insert(connection: &mut Self::Connection) -> impl Future<Output = ()> + Send;

    /// The same in a transaction of its own.
    fn transfer(&self) -> impl Future<Output = ()> + Send;

    /// Makes so many records of a table expired ones.
    async fn expire(&self, table: usize, records: u64);
}

const TASKS: [usize; 2] = [1, 32];

static NEXT: AtomicU64 = AtomicU64::new(1);

fn request(number: u64) -> ClaimRequest {
    let mut id = [7; 32];
    // Spread over the index, as a digest is.
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    ClaimRequest::new(
        RecordId::from_bytes(id),
        ScopeId::from_bytes([1; 16]),
        Fingerprint::from_bytes([2; 32]),
        Owner::from_bytes([3; 16]),
    )
}

fn next() -> ClaimRequest {
    request(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn record() -> Record {
    let answer = http::Response::builder()
        .status(201)
        .header("content-type", "application/json")
        .header("location", "/payments/7")
        .body(vec![b'x'; 256]);
    Record::new(&answer.expect("the parts of the answer are sound"))
}

async fn fresh<K: KeyStore>(store: &K, request: &ClaimRequest, record: &Record) {
    let claimed = store.claim(request).await.expect("the database claims");
    let Claimed::Acquired(hold) = claimed else {
        panic!("not acquired: {claimed:?}");
    };
    let completed = store.complete(&hold, record, request.retention).await;
    assert_eq!(
        completed.expect("the database completes"),
        Completion::Stored
    );
}

async fn replay<K: KeyStore>(store: &K) -> usize {
    let claimed = store.claim(&request(0)).await.expect("the database reads");
    let Claimed::Completed { record, .. } = claimed else {
        panic!("not completed: {claimed:?}");
    };
    record.as_bytes().len()
}

/// What is measured, and what it is measured against.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    FreshRaw,
    Fresh(usize),
    ReplayRaw,
    Replay(usize),
    TransferRaw,
    Transfer,
}

struct Scene<E: Engine> {
    engine: E,
    record: Record,
}

impl<E: Engine> Scene<E> {
    async fn run(&self, work: Work) {
        match work {
            Work::FreshRaw => self.engine.fresh(&next(), &self.record).await,
            Work::Fresh(table) => fresh(self.engine.store(table), &next(), &self.record).await,
            Work::ReplayRaw => {
                let read = self.engine.read(&request(0).id).await;
                assert_eq!(read, self.record.as_bytes().len());
            }
            Work::Replay(table) => {
                let read = replay(self.engine.store(table)).await;
                assert_eq!(read, self.record.as_bytes().len());
            }
            Work::TransferRaw => self.engine.transfer().await,
            Work::Transfer => unreachable!("it needs the layer"),
        }
    }
}

/// One round of so much work, by so many tasks.
async fn round<E: Engine>(
    scene: &Arc<Scene<E>>,
    work: Work,
    tasks: usize,
    each: usize,
) -> Duration {
    let layer = IdempotencyLayer::new(scene.engine.store(0).clone(), SharedByAllCallers);
    let service = layer.layer(service_fn({
        let store = scene.engine.store(0).clone();
        move |request: Request<RequestBody<Full<Bytes>>>| {
            let operation: Option<&Operation> = request.extensions().get();
            let operation = operation.cloned().expect("the request has a key");
            let store = store.clone();
            async move {
                let mut transaction = operation.begin(&store).await.expect("it begins");
                E::insert(&mut transaction).await;
                let answer = Response::new(Full::<Bytes>::from(vec![b'x'; 256]));
                let finished = operation.finish(transaction, answer).await;
                Ok::<_, Infallible>(finished.expect("it commits"))
            }
        }
    }));
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (scene, service) = (Arc::clone(scene), service.clone());
        running.spawn(async move {
            for _ in 0..each {
                if work != Work::Transfer {
                    scene.run(work).await;
                    continue;
                }
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let request = Request::post("/transfers")
                    .header("idempotency-key", format!("bench-{number}"))
                    .body(Full::<Bytes>::default())
                    .expect("the parts of the request are sound");
                let answer = service.clone().oneshot(request).await;
                assert!(answer.expect("it answers").status().is_success());
            }
        });
    }
    running.join_all().await;
    begun.elapsed()
}

fn main() {
    // Run as a test, everything runs once, and there is nothing to compare.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime can be built");
    println!("| database | work | measured against | tasks | per second | ratio |");
    println!("|---|---|---|---:|---:|---:|");
    measure::<over_postgres::Postgres>(&runtime, is_bench);
    measure::<over_sqlite::Sqlite>(&runtime, is_bench);
}

fn measure<E: Engine>(runtime: &Runtime, is_bench: bool) {
    let rows = if is_bench {
        [10_000, 2_000_000]
    } else {
        [10, 100]
    };
    let engine = runtime.block_on(E::start(rows));
    let record = record();
    let scene = Arc::new(Scene { engine, record });
    for table in [0, 1] {
        let store = scene.engine.store(table);
        runtime.block_on(fresh(store, &request(0), &scene.record));
    }
    let pairs = [
        (
            "claim and completion",
            "the same statements, raw",
            Work::FreshRaw,
            Work::Fresh(0),
        ),
        (
            "replay",
            "SELECT by primary key, raw",
            Work::ReplayRaw,
            Work::Replay(0),
        ),
        (
            "transaction mode",
            "the handler's own transaction",
            Work::TransferRaw,
            Work::Transfer,
        ),
        (
            "claim and completion, 2 M records",
            "10 k records",
            Work::Fresh(0),
            Work::Fresh(1),
        ),
        (
            "replay, 2 M records",
            "10 k records",
            Work::Replay(0),
            Work::Replay(1),
        ),
    ];
    for (name, against, floor, work) in pairs {
        for tasks in TASKS {
            let reads = matches!(floor, Work::ReplayRaw | Work::Replay(_));
            let (rounds, each) = match (is_bench, reads, tasks) {
                (false, _, _) => (1, 1),
                (true, true, 1) => (41, 200),
                (true, true, _) => (41, 20),
                (true, false, 1) => (21, 40),
                (true, false, _) => (21, 6),
            };
            let mut rates = [Vec::new(), Vec::new()];
            for at in 0..rounds + 1 {
                // Which of them goes first changes.
                for turn in 0..2 {
                    let which = (at + turn) % 2;
                    let what = [floor, work][which];
                    let took = runtime.block_on(round(&scene, what, tasks, each));
                    if at > 0 {
                        rates[which].push((tasks * each) as f64 / took.as_secs_f64());
                    }
                }
            }
            // Pairs of neighbours: what slows the machine down for a while slows both.
            let [floors, own] = &rates;
            let ratio = median(floors.iter().zip(own).map(|(floor, own)| floor / own));
            let own = median(own.iter().copied());
            println!(
                "| {} | {name} | {against} | {tasks} | {own:.0} | {ratio:.2} |",
                E::NAME
            );
        }
    }
    let expired = if is_bench { 20_000 } else { 50 };
    runtime.block_on(scene.engine.expire(1, expired));
    let mut took = Vec::new();
    let mut purged = 0;
    while purged < expired {
        let begun = Instant::now();
        let done = runtime.block_on(scene.engine.store(1).purge_expired(1000));
        let done = done.expect("the database purges") as u64;
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
        assert!(done > 0, "{purged} of {expired}");
        purged += done;
    }
    let took = median(took.into_iter());
    println!(
        "| {} | purge of 1,000 of 2 M | | 1 | {took:.1} ms | |",
        E::NAME
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
