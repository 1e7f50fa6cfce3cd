//! Two processes on one server: a run that was taken over cannot change what its successor
//! has recorded, and its client still gets what it answered.
//!
//! Where the system does not show the command lines of its processes, these are left out.
#![cfg(target_os = "linux")]

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use http::StatusCode;
use tokio::time::{Instant, sleep};
use tower_idempotency::store::{KeyStore, Phase};
use tower_idempotency::{IdempotencyKey, RecordId, Scope, SharedByAllCallers};

use crate::scene::*;
use crate::support::Answer;
use crate::support::gates::until;
use crate::support::redis::RedisServer;
use crate::support::testbed::Testbed;
use crate::support::wire::{Http1, http1_post};

/// One process, which can be stopped and go on.
struct Node {
    testbed: Testbed,
    process: String,
}

impl Node {
    async fn start(server: &RedisServer, flags: &[&str]) -> Self {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        // A flag that no other process has, to know it by.
        let number = 900_000 + STARTED.fetch_add(1, Ordering::Relaxed);
        let mark = format!("--max-hold-ms={number}");
        let url = format!("--store-url={}", server.url());
        let own = ["--store=redis", &url, &mark];
        let testbed = Testbed::start(&[&own, flags].concat()).await;
        let is_own = |process: &String| {
            let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let has = |word: &str| {
                words
                    .split(|&byte| byte == 0)
                    .any(|it| it == word.as_bytes())
            };
            has(&url) && has(&mark)
        };
        let processes = fs::read_dir("/proc").unwrap();
        let names = processes.map(|entry| entry.unwrap().file_name());
        let process = names
            .filter_map(|name| name.into_string().ok())
            .find(is_own)
            .unwrap();
        Self { testbed, process }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.process])
            .status();
        assert!(sent.unwrap().success());
    }

    async fn stop(&self) {
        self.signal("STOP");
        until("the process has stopped", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.process)).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        })
        .await;
    }

    fn cont(&self) {
        self.signal("CONT");
    }

    /// Sends the first request of a key, whose handler runs when this returns.
    async fn begin(&self, path: &str) -> Http1 {
        let deadline = Instant::now() + ms(20_000);
        loop {
            let mut client = self.testbed.connect().await;
            client.write(http1_post(path, "k", &[], "")).await;
            let refused = tokio::select! {
                () = self.testbed.until_runs(1) => return client,
                refused = client.answer() => refused,
            };
            // A claim that took longer than its lease on a busy machine, or than the store
            // is waited for, has run nothing.
            let statuses = [StatusCode::CONFLICT, StatusCode::SERVICE_UNAVAILABLE];
            assert!(statuses.contains(&refused.status), "{refused:?}");
            assert!(Instant::now() < deadline, "still {refused:?}");
            sleep(ms(20)).await;
        }
    }

    /// Sends the same again, as long as another run is in the way.
    async fn post_until_free(&self, path: &str, key: &str) -> Answer {
        let deadline = Instant::now() + ms(20_000);
        loop {
            let answer = self.testbed.post(path, key).await;
            if answer.status != StatusCode::CONFLICT {
                return answer;
            }
            assert_eq!(answer.code().as_deref(), Some("in-progress"));
            assert!(Instant::now() < deadline, "still {answer:?}");
            sleep(ms(20)).await;
        }
    }
}

/// What the testbed calls the record of a key.
fn id_of(key: &str) -> RecordId {
    let key = IdempotencyKey::new(key).unwrap();
    RecordId::new("", &Scope::from(SharedByAllCallers), &key)
}

struct Nodes {
    server: RedisServer,
    store: Store,
    one: Node,
    other: Node,
}

impl Nodes {
    async fn start(flags: &[&str]) -> Self {
        let server = RedisServer::start().await;
        let store = Store::new(server.manager().await);
        let one = Node::start(&server, flags).await;
        let other = Node::start(&server, flags).await;
        Self {
            server,
            store,
            one,
            other,
        }
    }

    /// The attempt on record, and how far it has come.
    async fn on_record(&self, key: &str) -> (u64, Phase) {
        let found = self.store.lookup(&id_of(key)).await.unwrap().unwrap();
        (found.attempt, found.phase)
    }

    async fn assert_replayed_by_both(&self, path: &str, key: &str, body: &str) {
        for node in [&self.one, &self.other] {
            let replay = node.testbed.post(path, key).await;
            assert!(replay.is_replay(), "{replay:?}");
            assert_eq!((replay.status, replay.text()), (StatusCode::OK, body));
            assert_eq!(node.testbed.runs().await, 1);
        }
    }
}

#[tokio::test]
async fn a_process_that_was_stopped_past_its_lease_answers_truly_and_changes_nothing() {
    let nodes = Nodes::start(&["--lease-ms=1000"]).await;
    let (one, other) = (&nodes.one, &nodes.other);
    let path = "/slow?ms=1500";
    let mut client = one.begin(path).await;
    one.stop().await;
    let (attempt, phase) = nodes.on_record("k").await;
    assert!(
        attempt == 1 && matches!(phase, Phase::Running { .. }),
        "{phase:?}"
    );

    let second = other.post_until_free(path, "k").await;
    assert_eq!(
        (second.status, second.text()),
        (StatusCode::OK, "slept:1500")
    );
    assert!(!second.is_replay(), "{second:?}");
    assert_eq!(second.header("idempotency-stored"), None);
    let (attempt, phase) = nodes.on_record("k").await;
    let Phase::Completed(record) = &phase else {
        panic!("it is completed: {phase:?}");
    };
    assert_eq!((attempt, record.body().as_ref()), (2, &b"slept:1500"[..]));

    one.cont();
    let first = client.answer().await;
    assert_eq!((first.status, first.text()), (StatusCode::OK, "slept:1500"));
    assert!(!first.is_replay(), "{first:?}");
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    // The very bytes, the time of the recording among them.
    assert_eq!(nodes.on_record("k").await, (2, phase));
    nodes.assert_replayed_by_both(path, "k", "slept:1500").await;
}

#[tokio::test]
async fn a_process_that_goes_on_before_its_successor_is_done_does_not_disturb_it() {
    let nodes = Nodes::start(&["--lease-ms=1000"]).await;
    let (one, other) = (&nodes.one, &nodes.other);
    let path = "/slow?ms=2500";
    let mut client = one.begin(path).await;
    one.stop().await;
    let first = async {
        eventually("the other one has taken over", async || {
            nodes.on_record("k").await.0 == 2
        })
        .await;
        // So that it is not done before.
        other.stop().await;
        one.cont();
        let first = client.answer().await;
        let (attempt, phase) = nodes.on_record("k").await;
        other.cont();
        assert!(
            attempt == 2 && matches!(phase, Phase::Running { .. }),
            "{phase:?}"
        );
        first
    };
    let (second, first) = tokio::join!(other.post_until_free(path, "k"), first);
    for (answer, mark) in [(first, Some("false")), (second, None)] {
        assert_eq!(
            (answer.status, answer.text()),
            (StatusCode::OK, "slept:2500")
        );
        assert!(!answer.is_replay(), "{answer:?}");
        assert_eq!(answer.header("idempotency-stored"), mark);
    }
    let (attempt, phase) = nodes.on_record("k").await;
    assert!(
        attempt == 2 && matches!(phase, Phase::Completed(_)),
        "{phase:?}"
    );
    nodes.assert_replayed_by_both(path, "k", "slept:2500").await;
}

#[tokio::test]
async fn a_key_whose_process_was_killed_is_taken_over_when_its_lease_ends() {
    let nodes = Nodes::start(&["--lease-ms=1000"]).await;
    let path = "/slow?ms=1000";
    let _client = nodes.one.begin(path).await;
    nodes.one.signal("KILL");
    let began = Instant::now();
    let (_, Phase::Running { lease_left }) = nodes.on_record("k").await else {
        panic!("its lease does not end so soon");
    };
    let second = nodes.other.post_until_free(path, "k").await;
    // Timers and leases are counted in whole milliseconds.
    assert!(began.elapsed() + ms(2) >= lease_left + ms(1_000));
    assert_eq!(
        (second.status, second.text()),
        (StatusCode::OK, "slept:1000")
    );
    assert!(!second.is_replay(), "{second:?}");
    assert_eq!(second.header("idempotency-stored"), None);
    let (attempt, phase) = nodes.on_record("k").await;
    assert!(
        attempt == 2 && matches!(phase, Phase::Completed(_)),
        "{phase:?}"
    );
    let third = Node::start(&nodes.server, &[]).await;
    let replay = third.testbed.post(path, "k").await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!(
        (nodes.other.testbed.runs().await, third.testbed.runs().await),
        (1, 0)
    );
}

#[tokio::test]
async fn a_key_whose_process_was_killed_is_sealed_where_nobody_may_take_over() {
    let nodes = Nodes::start(&["--lease-ms=1000", "--on-failure=refuse"]).await;
    let path = "/slow?ms=20000";
    let _client = nodes.one.begin(path).await;
    nodes.one.signal("KILL");
    for _ in 0..2 {
        let refused = nodes.other.post_until_free(path, "k").await;
        assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(refused.code().as_deref(), Some("outcome-unknown"));
    }
    assert_eq!(nodes.on_record("k").await, (1, Phase::Sealed));
    assert_eq!(nodes.other.testbed.runs().await, 0);
}

#[tokio::test]
async fn the_same_keys_at_once_to_both_processes_run_once_each() {
    const KEYS: u64 = 30;
    let nodes = Nodes::start(&["--on-conflict=wait:20000"]).await;
    let mut clients = Vec::new();
    for node in [&nodes.one, &nodes.other, &nodes.one, &nodes.other] {
        clients.push(node.testbed.connect().await);
    }
    for number in 0..KEYS {
        let key = format!("k{number}");
        let all = clients.iter_mut();
        let answers = join_all(all.map(|client| client.post("/echo", &key, "charge 5"))).await;
        for answer in &answers {
            assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
            assert_eq!(answer.text(), "charge 5");
            let place = answers[0].header("location");
            assert_eq!(answer.header("location"), place);
        }
        let own = answers.iter().filter(|answer| !answer.is_replay()).count();
        assert_eq!(own, 1, "{answers:?}");
        // Each is the first to ask now and then.
        clients.rotate_left(1);
    }
    let one = nodes.one.testbed.runs().await;
    let other = nodes.other.testbed.runs().await;
    assert!(one > 0 && other > 0, "{one} and {other}");
    assert_eq!(one + other, KEYS);
}
