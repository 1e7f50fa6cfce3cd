//! Clients that want their answer, and what must be true once all have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::chance::Chance;
use crate::node::Node;
use crate::support::{Answer, post, send};
use crate::trail::Trail;

pub const KEYS: usize = 40;
const CLIENTS: usize = 12;
const CLIENTS_OF_A_KEY: usize = 2;
/// Far beyond every limit that the nodes have.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn key(number: usize) -> String {
    format!("key-{number:03}")
}

/// Each key is asked for by two clients, each until it has its answer.
pub async fn ask(nodes: &[Node], chance: &Chance, trail: &Trail) {
    let next = Arc::new(AtomicUsize::new(0));
    let clients = (0..CLIENTS).map(|_| {
        let (nodes, next) = (nodes.to_vec(), next.clone());
        let (chance, trail) = (chance.clone(), trail.clone());
        tokio::spawn(async move {
            loop {
                let turn = next.fetch_add(1, Ordering::SeqCst) / CLIENTS_OF_A_KEY;
                if turn >= KEYS {
                    return;
                }
                insist(&nodes, &key(turn), &chance, &trail).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

async fn insist(nodes: &[Node], key: &str, chance: &Chance, trail: &Trail) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let node = chance.below(nodes.len());
        let sent = send(&nodes[node].service, post(key, ""));
        let answer = match chance.one_in(6) {
            // A client that leaves, and comes back.
            true => timeout(chance.up_to(80), sent).await.ok(),
            false => match timeout(PATIENCE, sent).await {
                Ok(answer) => Some(answer),
                Err(_) => panic!("no answer from node {node}: {key}: {}", trail.of(key)),
            },
        };
        trail.add(
            key,
            format!(
                "node {node} answers {:?}",
                answer.as_ref().map(|it| it.status)
            ),
        );
        if answer.is_some_and(|answer| is_final(&answer)) {
            return;
        }
        let now = Instant::now();
        assert!(now < deadline, "no final answer: {key}: {}", trail.of(key));
        sleep(chance.up_to(30)).await;
    }
}

/// Whatever is not the answer is a reason to come back, and none for the client to give up.
fn is_final(answer: &Answer) -> bool {
    if answer.status.as_u16() == 201 {
        assert_eq!(answer.text(), "transferred");
        return true;
    }
    assert!(
        matches!(answer.status.as_u16(), 409 | 500 | 503 | 504),
        "{answer:?}"
    );
    false
}

/// No node has anything left to do, and each of them knows the answer to every key.
pub async fn are_content_with(nodes: &[Node]) {
    for node in nodes {
        let idle = timeout(PATIENCE, node.in_flight.idle()).await;
        assert!(
            idle.is_ok(),
            "{} exchanges in flight",
            node.in_flight.count()
        );
        for number in 0..KEYS {
            let retry = send(&node.service, post(&key(number), "")).await;
            assert!(retry.is_replay(), "{retry:?}");
            assert_eq!(retry.text(), "transferred");
        }
    }
}

/// Each key once, in whatever order.
#[track_caller]
pub fn assert_each_once(mut ledger: Vec<String>) {
    ledger.sort();
    let all: Vec<_> = (0..KEYS).map(key).collect();
    assert_eq!(ledger, all);
}
