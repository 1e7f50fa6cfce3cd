//! What a store costs, beside the same commands sent raw through the same connection.
//!
//! `cargo bench --features redis --bench stores` starts a private `redis-server` and prints
//! one table. Both variants run in turn in one process; their ratio is the cost of the
//! store's own code. Absolute times of a shared machine do not compare.

#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
#[path = "../tests/support"]
mod support {
    pub(crate) mod redis;
}

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Script, Value, cmd};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, KeyStore, Owner, Record, RecordId, RedisStore,
    ScopeId,
};

use self::support::redis::{RedisServer, command_stats, reset_stats};

const SIZES: [(&str, usize); 3] = [("256 B", 256), ("16 KiB", 16 << 10), ("1 MiB", 1 << 20)];
const TASKS: [usize; 2] = [1, 64];
const INLINE_LIMIT: usize = 16 << 10;

const CLAIM: &str = concat!(
    include_str!("../src/store/redis/head.lua"),
    include_str!("../src/store/redis/claim.lua")
);
const COMPLETE: &str = concat!(
    include_str!("../src/store/redis/head.lua"),
    include_str!("../src/store/redis/complete.lua")
);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Work {
    /// A claim and its completion: two round trips.
    Fresh,
    /// A claim of what is completed: one round trip up to the inline limit, else two.
    Replay,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Raw,
    Store,
}

/// Everything that is made before the clock runs.
#[derive(Clone)]
struct Scene {
    connection: MultiplexedConnection,
    store: RedisStore<MultiplexedConnection>,
    record: Record,
    /// The value that stands at a key once the run is completed.
    value: Vec<u8>,
    /// The value that stands there while it goes on.
    first: Vec<u8>,
    claim: String,
    complete: String,
}

/// No two runs have the same key.
static NEXT: AtomicU64 = AtomicU64::new(1);
const REPLAYED: u64 = 0;

fn request(number: u64) -> ClaimRequest {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_be_bytes());
    ClaimRequest::new(
        RecordId::from_bytes(id),
        ScopeId::from_bytes([1; 16]),
        Fingerprint::from_bytes([2; 32]),
        Owner::from_bytes([3; 16]),
    )
}

fn key(request: &ClaimRequest) -> String {
    let digits: String = request
        .id
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("idem1:{digits}")
}

impl Scene {
    async fn new(server: &RedisServer, size: usize) -> Self {
        let connection = server.multiplexed().await;
        let answer = http::Response::builder()
            .status(201)
            .header("content-type", "application/octet-stream")
            .header("location", "/payments/7")
            .body(vec![b'x'; size])
            .expect("the parts of the answer are sound");
        let record = Record::new(&answer);
        let head = [&[2; 32][..], &[3; 16], b"0000000000000001"].concat();
        let value = [&head, &b"C0000000000000000"[..], record.as_bytes()].concat();
        let store = RedisStore::new(connection.clone()).inline_limit(INLINE_LIMIT);
        let scene = Self {
            connection,
            store,
            record,
            value,
            first: [&head, &b"t0000000086400000"[..]].concat(),
            claim: Script::new(CLAIM).get_hash().to_owned(),
            complete: Script::new(COMPLETE).get_hash().to_owned(),
        };
        scene.clear(server).await;
        scene
    }

    /// Drops the answers of former rounds, and keeps one to be replayed.
    async fn clear(&self, server: &RedisServer) {
        server.query::<Value>(&cmd("FLUSHALL")).await;
        self.fresh(Way::Store, REPLAYED).await;
    }

    async fn run(&self, work: Work, way: Way) {
        match work {
            Work::Fresh => self.fresh(way, NEXT.fetch_add(1, Ordering::Relaxed)).await,
            Work::Replay => self.replay(way).await,
        }
    }

    async fn fresh(&self, way: Way, number: u64) {
        let request = request(number);
        match way {
            Way::Raw => {
                let mut connection = self.connection.clone();
                let claimed = self.claim_raw(&mut connection, &request).await;
                assert_eq!(claimed, Value::Int(1));
                let completed: Value = cmd("EVALSHA")
                    .arg(&self.complete)
                    .arg(1)
                    .arg(key(&request))
                    .arg(request.owner.as_bytes())
                    .arg(&self.value)
                    .arg(request.retention.as_millis() as u64)
                    .query_async(&mut connection)
                    .await
                    .expect("the server completes");
                assert_eq!(completed, Value::Int(1));
            }
            Way::Store => {
                let claimed = self.store.claim(&request).await;
                let Ok(Claimed::Acquired(hold)) = claimed else {
                    panic!("not acquired: {claimed:?}");
                };
                let completed = self.store.complete(&hold, &self.record, request.retention);
                assert_eq!(completed.await.expect("it is stored"), Completion::Stored);
            }
        }
    }

    async fn replay(&self, way: Way) {
        let request = request(REPLAYED);
        let got = match way {
            Way::Raw => {
                let mut connection = self.connection.clone();
                let Value::BulkString(found) = self.claim_raw(&mut connection, &request).await
                else {
                    panic!("not found");
                };
                if self.record.as_bytes().len() > INLINE_LIMIT {
                    let value: Vec<u8> = cmd("GET")
                        .arg(key(&request))
                        .query_async(&mut connection)
                        .await
                        .expect("the server reads");
                    value.len()
                } else {
                    found.len()
                }
            }
            Way::Store => {
                let claimed = self.store.claim(&request).await;
                let Ok(Claimed::Completed { record, .. }) = claimed else {
                    panic!("not completed: {claimed:?}");
                };
                record.as_bytes().len() + 81
            }
        };
        assert_eq!(got, self.value.len());
    }

    async fn claim_raw(
        &self,
        connection: &mut MultiplexedConnection,
        request: &ClaimRequest,
    ) -> Value {
        cmd("EVALSHA")
            .arg(&self.claim)
            .arg(1)
            .arg(key(request))
            .arg(&self.first)
            .arg(request.lease.as_millis() as u64)
            .arg((request.lease + request.retention).as_millis() as u64)
            .arg(INLINE_LIMIT)
            .query_async(connection)
            .await
            .expect("the server claims")
    }

    async fn round(&self, work: Work, way: Way, tasks: usize, each: usize) -> Duration {
        let begun = Instant::now();
        if tasks == 1 {
            for _ in 0..each {
                self.run(work, way).await;
            }
        } else {
            let mut running = JoinSet::new();
            for _ in 0..tasks {
                let scene = self.clone();
                running.spawn(async move {
                    for _ in 0..each {
                        scene.run(work, way).await;
                    }
                });
            }
            running.join_all().await;
        }
        begun.elapsed()
    }
}

fn main() {
    // Run as a test, everything runs once, and there is nothing to compare.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    // One thread: what the store's code costs is not hidden by a second one.
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be built");
    let server = runtime.block_on(RedisServer::start());
    println!("| answer | tasks | work | raw, operations/s | store, operations/s | raw / store |");
    println!("|---|---:|---|---:|---:|---:|");
    for (name, size) in SIZES {
        for tasks in TASKS {
            for work in [Work::Fresh, Work::Replay] {
                compare(&runtime, &server, is_bench, (name, size), tasks, work);
            }
        }
    }
    round_trips(&runtime, &server);
}

fn compare(
    runtime: &Runtime,
    server: &RedisServer,
    is_bench: bool,
    (name, size): (&str, usize),
    tasks: usize,
    work: Work,
) {
    let (rounds, each) = match (is_bench, size) {
        (false, _) => (1, 1),
        (true, 0..=0xffff) => (101, (2048 / tasks / (1 + size / 4096)).max(4)),
        (true, _) => (31, (32 / tasks).max(1)),
    };
    let ways = [Way::Raw, Way::Store];
    let mut rates = ways.map(|_| Vec::with_capacity(rounds));
    let scene = runtime.block_on(async {
        let scene = Scene::new(server, size).await;
        for way in ways {
            scene.round(work, way, tasks, each).await;
        }
        scene
    });
    for round in 0..rounds {
        // Which of them goes first changes.
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let took = runtime.block_on(scene.round(work, ways[at], tasks, each));
            rates[at].push((tasks * each) as f64 / took.as_secs_f64());
        }
        if size > 1 << 16 {
            runtime.block_on(scene.clear(server));
        }
    }
    runtime.block_on(scene.clear(server));
    // Pairs of neighbours: what slows the machine down for a while slows both.
    let [raw, store] = &rates;
    let ratio = median(raw.iter().zip(store).map(|(raw, store)| raw / store));
    let [raw, store] = [raw, store].map(|rates| median(rates.iter().copied()));
    println!("| {name} | {tasks} | {work:?} | {raw:.0} | {store:.0} | {ratio:.3} |");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn round_trips(runtime: &Runtime, server: &RedisServer) {
    println!("\n| answer | work | commands sent |\n|---|---|---:|");
    for (name, size) in SIZES {
        let scene = runtime.block_on(async { Scene::new(server, size).await });
        for work in [Work::Fresh, Work::Replay] {
            let sent: u64 = runtime.block_on(async {
                reset_stats(server).await;
                scene.run(work, Way::Store).await;
                let stats = command_stats(server).await;
                let count = |name: &str| stats.get(name).copied().unwrap_or(0);
                // A script reads what is completed with `GET` as well, unless it is too long.
                let is_long = scene.record.as_bytes().len() > INLINE_LIMIT;
                count("evalsha") + count("eval") + if is_long { count("get") } else { 0 }
            });
            println!("| {name} | {work:?} | {sent} |");
        }
    }
}
