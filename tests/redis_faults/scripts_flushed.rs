//! Scripts that the server forgets, as it may at any time, cost a round trip and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tower_idempotency::store::{Claimed, Completion, KeyStore, Ownership};
use tower_idempotency::{ConflictPolicy, Outcome};

use crate::scene::*;
use crate::support::redis::{RedisServer, error_stats};

fn flush() -> redis::Cmd {
    redis::cmd("SCRIPT").arg("FLUSH").arg("SYNC").take()
}

#[tokio::test]
async fn every_call_is_made_though_the_server_has_forgotten_its_script() {
    let server = RedisServer::start().await;
    let replica = RedisServer::start_replica_of(&server).await;
    let store = store_on(&server).await;
    for store in [store.clone(), store.min_replica_acks(1, ms(10_000))] {
        let forget = async || server.query::<()>(&flush()).await;
        let request = request();
        forget().await;
        let hold = acquires(&store, &request).await;
        forget().await;
        let held = store.extend(&hold, KEPT, KEPT).await.unwrap();
        assert_eq!(held, Ownership::Held);
        forget().await;
        let failed = store.fail(&hold, false, KEPT).await.unwrap();
        assert_eq!(failed, Ownership::Held);
        forget().await;
        let hold = acquires(&store, &retry_of(&request)).await;
        forget().await;
        let released = store.release(&hold).await.unwrap();
        assert_eq!(released, Ownership::Held);
        let hold = acquires(&store, &retry_of(&request)).await;
        forget().await;
        let record = record("answer");
        let completed = store.complete(&hold, &record, KEPT).await.unwrap();
        assert_eq!(completed, Completion::Stored);
        forget().await;
        let attempt = hold.attempt;
        let found = store.lookup(&hold.id).await.unwrap().unwrap();
        assert_eq!(found.attempt, attempt);
        forget().await;
        let replay = store.claim(&retry_of(&request)).await.unwrap();
        assert_eq!(replay, Claimed::Completed { attempt, record });
        forget().await;
        store.forget(&hold.id).await.unwrap();
        assert_eq!(store.lookup(&hold.id).await.unwrap(), None);
    }
    assert!(error_stats(&server).await["NOSCRIPT"] >= 18);
    drop(replica);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_request_fails_and_each_key_runs_once() {
    const KEYS: usize = 60;
    const CLIENTS: usize = 8;
    let server = Arc::new(RedisServer::start().await);
    let at_most = ms(20_000);
    let layer = layer(&store_on(&server).await).on_conflict(ConflictPolicy::Wait { at_most });
    let (service, runs) = running(&layer, || tokio::time::sleep(ms(1)));
    let (stopped, flushes) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let flushing = tokio::spawn({
        let (server, stopped, flushes) = (server.clone(), stopped.clone(), flushes.clone());
        async move {
            let mut connection = server.multiplexed().await;
            while !stopped.load(Ordering::SeqCst) {
                let () = flush().query_async(&mut connection).await.unwrap();
                flushes.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for key in 0..KEYS {
                    answers.push((key, charge(&service, &format!("k{key}")).await));
                }
                answers
            })
        })
        .collect();
    let mut bodies: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    let mut executed = 0;
    for client in clients {
        for (key, answer) in client.await.unwrap() {
            assert_eq!(answer.status, 201, "{answer:?}");
            assert_eq!(answer.header("idempotency-stored"), None);
            match answer.outcome {
                Some(Outcome::Executed { .. }) => executed += 1,
                outcome => assert_eq!(outcome, Some(Outcome::Replayed)),
            }
            bodies.entry(key).or_default().push(answer.body);
        }
    }
    stopped.store(true, Ordering::SeqCst);
    flushing.await.unwrap();
    for (key, bodies) in bodies {
        assert_eq!(bodies.len(), CLIENTS);
        assert!(bodies.iter().all(|body| *body == bodies[0]), "{key}");
    }
    assert_eq!(
        (runs.get(), executed, layer.in_flight().count()),
        (KEYS, KEYS, 0)
    );
    // It did forget, in between.
    assert!(flushes.load(Ordering::SeqCst) > KEYS);
    assert!(error_stats(&server).await["NOSCRIPT"] > KEYS as u64);
}
