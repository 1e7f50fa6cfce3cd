//! However many come at once, from however many threads and nodes, one runs; and different
//! keys do not wait for each other.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use support::faults::yield_once;
use support::scripted::{
    Script, Step, answer, data, executed, full, handling, idle, let_run, plan_on, secs, spawn,
};
use support::stores::store_pair;
use support::{Runs, post, read, send};
use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_idempotency::{
    ConflictPolicy, IdempotencyLayer, Outcome, RejectionKind, SharedByAllCallers,
};

/// Two nodes with the same records.
fn nodes(conflict: ConflictPolicy) -> [IdempotencyLayer; 2] {
    let (here, there) = store_pair();
    [here, there]
        .map(|store| IdempotencyLayer::new(store, SharedByAllCallers).on_conflict(conflict))
}

const WAIT: ConflictPolicy = ConflictPolicy::Wait { at_most: secs(60) };

fn in_flight(nodes: &[IdempotencyLayer; 2]) -> [usize; 2] {
    nodes.each_ref().map(|node| node.in_flight().count())
}

#[tokio::test(start_paused = true)]
async fn of_two_at_once_one_runs_and_the_other_is_told_to_come_again() {
    let nodes = nodes(ConflictPolicy::Reject);
    let (services, runs) = plan_on(nodes.each_ref(), [(secs(5), 201)]);
    let first = spawn(&services[0], "k").await;
    for service in &services {
        let refused = send(service, post("k", "charge 5")).await;
        assert_eq!(refused.status, StatusCode::CONFLICT);
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(refused.code().as_deref(), Some("in-progress"));
        let in_progress = Outcome::Rejected(RejectionKind::InProgress);
        assert_eq!(refused.outcome, Some(in_progress));
        assert!(!refused.is_replay());
        // A different one is not told to wait for what it will never get.
        let other = send(service, post("k", "charge 6")).await;
        assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    let first = first.await.unwrap();
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.outcome, executed(1, Some(true)));
    for service in &services {
        let retry = send(service, post("k", "charge 5")).await;
        assert!(retry.is_replay());
        assert_eq!(retry.body, first.body);
    }
    assert_eq!((runs.get(), in_flight(&nodes)), (1, [0, 0]));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_at_once_get_one_answer() {
    let nodes = nodes(WAIT);
    let (services, runs) = plan_on(nodes.each_ref(), [(secs(5), 201)]);
    let mut all = Vec::new();
    for one in 0..100 {
        all.push(spawn(&services[one % 2], "k").await);
    }
    assert_eq!(in_flight(&nodes), [50, 50]);
    let mut replays = 0;
    for one in all {
        let answer = one.await.unwrap();
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.text(), "run 1 attempt 1");
        replays += usize::from(answer.is_replay());
    }
    assert_eq!((replays, runs.get(), in_flight(&nodes)), (99, 1, [0, 0]));
}

#[tokio::test(start_paused = true)]
async fn different_keys_run_at_the_same_time() {
    let nodes = nodes(ConflictPolicy::Reject);
    let all_run = Arc::new(Barrier::new(50));
    let services = nodes.each_ref().map(|layer| {
        let all_run = all_run.clone();
        handling(layer, move |_| {
            let all_run = all_run.clone();
            async move {
                all_run.wait().await;
                full(201, "together")
            }
        })
    });
    let mut requests = JoinSet::new();
    for key in 0..50 {
        let service = services[key % 2].clone();
        requests.spawn(async move { send(&service, post(&format!("k{key}"), "charge 5")).await });
    }
    let answers = timeout(secs(60), requests.join_all()).await.unwrap();
    for answer in answers {
        assert_eq!(answer.outcome, executed(1, Some(true)));
    }
    assert_eq!(in_flight(&nodes), [0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_race_over_threads_and_nodes_is_won_by_one() {
    let nodes = nodes(ConflictPolicy::Reject);
    for key in 0..200 {
        let runs = Runs::default();
        let services = nodes.each_ref().map(|layer| {
            let runs = runs.clone();
            handling(layer, move |_| {
                let run = runs.add();
                async move {
                    yield_now().await;
                    full(201, format!("run {run}"))
                }
            })
        });
        let start = Arc::new(Barrier::new(8));
        let mut racers = JoinSet::new();
        for racer in 0..8 {
            let (service, start) = (services[racer % 2].clone(), start.clone());
            racers.spawn(async move {
                start.wait().await;
                send(&service, post(&format!("k{key}"), "charge 5")).await
            });
        }
        let mut ran = 0;
        for answer in racers.join_all().await {
            match answer.status {
                StatusCode::CREATED => assert_eq!(answer.text(), "run 1"),
                status => assert_eq!(status, StatusCode::CONFLICT),
            }
            ran += usize::from(answer.outcome == executed(1, Some(true)));
        }
        assert_eq!((ran, runs.get()), (1, 1));
    }
    for node in &nodes {
        idle(node).await;
    }
}

/// Sixteen at once, until a run succeeds: the fifth one.
async fn failures_are_followed_by_one_at_a_time(nodes: [IdempotencyLayer; 2], key: String) {
    let live = Arc::new(AtomicUsize::new(0));
    let runs = Runs::default();
    let services = nodes.each_ref().map(|layer| {
        let (live, runs) = (live.clone(), runs.clone());
        handling(layer, move |operation| {
            let run = runs.add();
            assert_eq!(operation.unwrap().attempt(), run as u64);
            assert_eq!(live.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
            let live = live.clone();
            async move {
                yield_now().await;
                live.fetch_sub(1, Ordering::SeqCst);
                full(if run < 5 { 503 } else { 201 }, format!("run {run}"))
            }
        })
    });
    let mut requests = JoinSet::new();
    for request in 0..16 {
        let (service, key) = (services[request % 2].clone(), key.clone());
        requests.spawn(async move { send(&service, post(&key, "charge 5")).await });
    }
    let answers = requests.join_all().await;
    let failed = answers.iter().filter(|answer| answer.status == 503).count();
    let replays = answers.iter().filter(|answer| answer.is_replay()).count();
    assert_eq!((failed, replays), (4, 11));
    let bodies: HashSet<_> = answers.iter().map(|answer| answer.body.clone()).collect();
    assert_eq!((bodies.len(), runs.get()), (5, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn runs_that_fail_are_followed_by_one_at_a_time() {
    let nodes = nodes(WAIT);
    let mut keys = JoinSet::new();
    for key in 0..50 {
        keys.spawn(failures_are_followed_by_one_at_a_time(
            nodes.clone(),
            format!("k{key}"),
        ));
    }
    keys.join_all().await;
    for node in &nodes {
        idle(node).await;
    }
}

/// Numbers that look random, the same in every run of the test.
fn scattered(seed: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(seed as u64 * 2 + 1), |last| {
        Some(last.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1))
    })
    .map(|number| (number >> 33) as usize)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_leave_at_any_moment_leave_one_run_each() {
    for conflict in [ConflictPolicy::Reject, WAIT] {
        for streamed in [false, true] {
            let nodes = nodes(conflict);
            let runs: Arc<Vec<Runs>> = Arc::new((0..200).map(|_| Runs::default()).collect());
            let mut keys = JoinSet::new();
            for key in 0..200 {
                let services = nodes.each_ref().map(|layer| {
                    let runs = runs.clone();
                    handling(layer, move |_| {
                        let run = runs[key].add();
                        async move {
                            for _ in 0..3 {
                                yield_once().await;
                            }
                            let steps = [data("one"), Step::Yield, data("two"), Step::Yield];
                            let body = match streamed {
                                true => Script::stream(steps),
                                false => Script::sized(steps, 0),
                            };
                            let mut answer = answer(201, body);
                            answer.headers_mut().insert("x-run", run.into());
                            answer
                        }
                    })
                });
                keys.spawn(async move {
                    for polls in scattered(key).take(12) {
                        let request = post(&format!("k{key}"), "charge 5");
                        let leaving = tokio::spawn({
                            let response = services[polls % 2].clone().oneshot(request);
                            async move { read(response.await.unwrap()).await }
                        });
                        for _ in 0..polls % 12 {
                            yield_now().await;
                        }
                        leaving.abort();
                    }
                    let deadline = tokio::time::Instant::now() + secs(30);
                    loop {
                        let request = post(&format!("k{key}"), "charge 5");
                        let retry = services[key % 2].clone().oneshot(request).await.unwrap();
                        let retry = read(retry).await;
                        if retry.status == StatusCode::CREATED {
                            assert_eq!(retry.header("x-run"), Some("1"));
                            assert_eq!(retry.text(), "onetwo");
                            return;
                        }
                        assert_eq!(retry.status, StatusCode::CONFLICT);
                        assert!(tokio::time::Instant::now() < deadline, "stuck");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                });
            }
            keys.join_all().await;
            for node in &nodes {
                timeout(secs(30), node.in_flight().idle()).await.unwrap();
            }
            assert!(runs.iter().all(|runs| runs.get() == 1));
            let_run().await;
        }
    }
}
