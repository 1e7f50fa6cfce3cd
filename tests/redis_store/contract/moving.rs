//! The contract holds while slots, and the records in them, move from node to node.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use redis::cluster_async::ClusterConnection;
use tokio::time::{Instant, sleep};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Hold, KeyStore, Ownership, Phase, Record, RecordId,
    RedisStore, StoreError, StoreErrorKind, conformance,
};

use crate::support::gates::until;
use crate::support::redis::RedisCluster;
use crate::{LEASE, RETENTION, fresh_record, key, refusal, request, retry_of};

type Store = RedisStore<ClusterConnection>;

/// All records are in one slot, which never stays where it is.
#[tokio::test]
async fn every_clause_holds_while_its_records_move() {
    let cluster = RedisCluster::start().await;
    let prefix = "{tag}";
    // Many calls at once meet every move. On a shared connection the driver's `ASKING` is not
    // bound to the call it is for, so that some of them are sent to and fro. More tries than
    // 60 overflow its own count of the time between two.
    let client = cluster.client().retries(56).build().unwrap();
    let connection = client.get_async_connection().await.unwrap();
    let store = RedisStore::new(connection).key_prefix(prefix);
    let slot = cluster.slot_of(prefix).await;
    cluster.reset_stats().await;
    let done = AtomicBool::new(false);
    let moves = AtomicUsize::new(0);
    let clauses = async {
        conformance::all(&store).await;
        done.store(true, Ordering::SeqCst);
    };
    let mover = async {
        let mut from = cluster.owner_of(slot).await;
        while !done.load(Ordering::SeqCst) {
            let to = (from + 1) % 3;
            cluster.begin_move(from, to, slot).await;
            // Some calls come in the middle of a move, and some between two.
            sleep(Duration::from_millis(20)).await;
            cluster.move_keys(from, to, slot).await;
            sleep(Duration::from_millis(20)).await;
            cluster.end_move(from, to, slot).await;
            sleep(Duration::from_millis(20)).await;
            from = to;
            moves.fetch_add(1, Ordering::SeqCst);
        }
    };
    tokio::join!(clauses, mover);

    let errors = cluster.error_stats().await;
    let moves = moves.into_inner();
    assert!(moves >= 30, "{moves} moves");
    assert!(errors["ASK"] >= 30, "{errors:?}");
    assert!(errors["MOVED"] >= 10, "{errors:?}");
}

/// It says nothing of the settings, and whether it was sent before is not known.
#[tokio::test]
async fn a_call_that_is_sent_on_once_too_often_is_ambiguous() {
    let cluster = RedisCluster::start().await;
    let client = cluster.client().retries(0).build().unwrap();
    let store = RedisStore::new(client.get_async_connection().await.unwrap());
    let run = request();
    let slot = cluster.slot_of(&key("idem", &run.id)).await;
    let from = cluster.owner_of(slot).await;
    let to = (from + 1) % 3;

    cluster.begin_move(from, to, slot).await;
    let kind = refusal(&store, &run).await;
    assert_eq!(kind, StoreErrorKind::Ambiguous, "after ASK");
    cluster.end_move(from, to, slot).await;
    let kind = refusal(&store, &run).await;
    assert_eq!(kind, StoreErrorKind::Ambiguous, "after MOVED");
    let errors = cluster.error_stats().await;
    assert!(errors["ASK"] >= 1 && errors["MOVED"] >= 1, "{errors:?}");

    // By then the connection knows where the slot is.
    let patience = Instant::now() + Duration::from_secs(10);
    while let Err(error) = store.claim(&run).await {
        assert!(Instant::now() < patience, "{error:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

const WORKERS: usize = 6;
const RUNS: usize = 20;
const BATCHES: usize = 6;
const SLOTS_A_BATCH: usize = 20;

#[tokio::test]
async fn every_run_keeps_its_key_and_its_record_while_slots_move() {
    let cluster = RedisCluster::start().await;
    // As the documentation has it: a call is given up soon, and asked again by whoever needs it.
    let client = cluster.client().retries(3).build().unwrap();
    let load = Load {
        store: RedisStore::new(client.get_async_connection().await.unwrap()),
        rounds: Default::default(),
        keys: Mutex::default(),
        done: AtomicBool::new(false),
    };
    cluster.reset_stats().await;
    let mover = async {
        let mut moves = 0;
        for to in (0..3).cycle().take(BATCHES) {
            moves += load.move_slots_in_use(&cluster, to).await;
        }
        load.done.store(true, Ordering::SeqCst);
        moves
    };
    let works = join_all((0..WORKERS).map(|number| load.work(number)));
    let (completed, moves) = tokio::join!(works, mover);

    let errors = cluster.error_stats().await;
    let redirected = format!("{errors:?} in {moves} moves");
    assert!(moves >= BATCHES * SLOTS_A_BATCH / 2, "{redirected}");
    assert!(errors["ASK"] >= 50 && errors["MOVED"] >= 20, "{redirected}");

    // Seen by somebody who was not there.
    let store = RedisStore::new(cluster.connect().await);
    let completed = completed.concat();
    assert!(completed.len() >= 2 * WORKERS * RUNS, "{}", completed.len());
    for completed in completed {
        completed.is_kept(&store).await;
    }
    for node in cluster.nodes() {
        let keys: usize = node.query(&redis::cmd("DBSIZE")).await;
        assert!(keys > 50, "{keys} keys on one of three nodes");
    }
}

struct Load {
    store: Store,
    /// Of each worker: a round is one step of each of its runs.
    rounds: [AtomicUsize; WORKERS],
    /// What is being asked for.
    keys: Mutex<Vec<RecordId>>,
    done: AtomicBool,
}

impl Load {
    async fn work(&self, number: usize) -> Vec<Completed> {
        let mut completed = Vec::new();
        let mut runs: Vec<_> = (0..RUNS).map(|_| Run::new()).collect();
        // No two of them are at the same step for long.
        for (number, run) in runs.iter_mut().enumerate() {
            for _ in 0..number {
                completed.extend(run.step(self).await);
            }
        }
        while !self.done.load(Ordering::SeqCst) {
            let keys = runs.iter().map(|run| run.request.id);
            self.keys.lock().unwrap().extend(keys);
            for run in &mut runs {
                completed.extend(run.step(self).await);
            }
            self.rounds[number].fetch_add(1, Ordering::SeqCst);
        }
        completed
    }

    /// Moves slots of keys that are asked for, before, between and after all steps.
    async fn move_slots_in_use(&self, cluster: &RedisCluster, to: usize) -> usize {
        self.keys.lock().unwrap().clear();
        self.a_round().await;
        let keys = std::mem::take(&mut *self.keys.lock().unwrap());
        let mut moves = Vec::new();
        for id in keys.iter().rev().step_by(5).take(SLOTS_A_BATCH * 3 / 2) {
            let slot = cluster.slot_of(&key("idem", id)).await;
            let from = cluster.owner_of(slot).await;
            if from != to && moves.iter().all(|&(_, other)| other != slot) {
                cluster.begin_move(from, to, slot).await;
                moves.push((from, slot));
            }
        }
        self.a_round().await;
        for &(from, slot) in &moves {
            cluster.move_keys(from, to, slot).await;
        }
        self.a_round().await;
        for &(from, slot) in &moves {
            cluster.end_move(from, to, slot).await;
            assert_eq!(cluster.owner_of(slot).await, to);
        }
        self.a_round().await;
        moves.len()
    }

    async fn a_round(&self) {
        let rounds = || self.rounds.each_ref().map(|it| it.load(Ordering::SeqCst));
        let before = rounds();
        until("every worker makes a whole round", || {
            let mut both = rounds().into_iter().zip(before);
            both.all(|(now, before)| now >= before + 2)
        })
        .await;
    }

    /// Asks until it is answered, and tells whether it was asked once only.
    async fn settle<T, F>(&self, call: impl Fn() -> F) -> (T, bool)
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let patience = Instant::now() + Duration::from_secs(20);
        let mut at_once = true;
        loop {
            let error = match call().await {
                Ok(answer) => return (answer, at_once),
                Err(error) => error,
            };
            let fits = [StoreErrorKind::NotApplied, StoreErrorKind::Ambiguous];
            assert!(fits.contains(&error.kind()), "{error:?}");
            assert!(
                Instant::now() < patience,
                "it fails all the time: {error:?}"
            );
            at_once = false;
        }
    }

    async fn claim(&self, request: &ClaimRequest) -> Claimed {
        self.settle(|| self.store.claim(request)).await.0
    }

    /// Two owners at once: one gets the key, as that attempt.
    async fn contend(&self, request: &ClaimRequest, attempt: u64) -> Hold {
        let (one, other) = (retry_of(request), retry_of(request));
        match tokio::join!(self.claim(&one), self.claim(&other)) {
            (Claimed::Acquired(hold), Claimed::InProgress { attempt: seen, .. })
            | (Claimed::InProgress { attempt: seen, .. }, Claimed::Acquired(hold)) => {
                assert_eq!((hold.attempt, seen), (attempt, attempt));
                hold
            }
            both => panic!("of two claims at once one gets the key, but: {both:?}"),
        }
    }
}

/// One key after another: each run takes one step a round.
struct Run {
    request: ClaimRequest,
    attempt: u64,
    hold: Option<Hold>,
    record: Record,
    steps: VecDeque<Step>,
}

#[derive(Clone, Copy)]
enum Step {
    Contend,
    Extend,
    Release,
    Fail,
    Complete,
    Replay,
}

#[derive(Clone)]
struct Completed {
    request: ClaimRequest,
    attempt: u64,
    record: Record,
}

impl Run {
    fn new() -> Self {
        use Step::{Complete, Contend, Extend, Fail, Release, Replay};
        Self {
            request: request(),
            attempt: 1,
            hold: None,
            record: fresh_record(),
            steps: VecDeque::from([
                Contend, Extend, Release, Contend, Extend, Fail, Contend, Extend, Complete, Replay,
                Replay, Replay, Replay, Replay, Replay, Replay, Replay, Replay, Replay, Replay,
            ]),
        }
    }

    async fn step(&mut self, load: &Load) -> Option<Completed> {
        let Some(step) = self.steps.pop_front() else {
            *self = Self::new();
            return None;
        };
        if let Step::Contend = step {
            self.hold = Some(load.contend(&self.request, self.attempt).await);
            return None;
        }
        let (store, attempt) = (&load.store, self.attempt);
        let hold = self.hold.as_ref().unwrap();
        let replay = Claimed::Completed {
            attempt,
            record: self.record.clone(),
        };
        match step {
            Step::Contend => {}
            Step::Extend => {
                let extend = || store.extend(hold, LEASE, RETENTION);
                assert_eq!(load.settle(extend).await.0, Ownership::Held);
                let seen = load.claim(&retry_of(&self.request)).await;
                let in_progress =
                    matches!(seen, Claimed::InProgress { attempt: it, .. } if it == attempt);
                assert!(in_progress, "{seen:?} at attempt {attempt}");
            }
            Step::Release => {
                let (ownership, at_once) = load.settle(|| store.release(hold)).await;
                assert!(ownership == Ownership::Held || !at_once);
            }
            Step::Fail => {
                let fail = || store.fail(hold, false, RETENTION);
                let (ownership, at_once) = load.settle(fail).await;
                assert!(ownership == Ownership::Held || !at_once);
                self.attempt += 1;
            }
            Step::Complete => {
                let complete = || store.complete(hold, &self.record, RETENTION);
                assert_eq!(load.settle(complete).await.0, Completion::Stored);
                return Some(Completed {
                    request: self.request.clone(),
                    attempt,
                    record: self.record.clone(),
                });
            }
            Step::Replay => assert_eq!(load.claim(&retry_of(&self.request)).await, replay),
        }
        None
    }
}

impl Completed {
    async fn is_kept(&self, store: &Store) {
        let seen = store.lookup(&self.request.id).await.unwrap();
        let seen = seen.expect("a completed record is gone");
        assert_eq!(seen.fingerprint, self.request.fingerprint);
        assert_eq!(seen.attempt, self.attempt);
        let Phase::Completed(record) = seen.phase else {
            panic!("a completed record is {:?}", seen.phase);
        };
        assert_eq!(record.as_bytes(), self.record.as_bytes());
    }
}
