//! Whatever two nodes do to a few keys of one server at once, every answer is one that the
//! contract allows.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use support::history::{Answer, check};
use support::redis::RedisServer;
use support::torture::{Plan, counts, torture};
use tower_idempotency::store::RedisStore;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_on_one_server_keep_the_contract_under_torture() {
    let server = RedisServer::start().await;
    let one = RedisStore::new(server.multiplexed().await);
    // It reads the longer records in a second step.
    let other = RedisStore::new(server.multiplexed().await).inline_limit(1024);
    let events = torture(one, other, &Plan::new()).await;
    let checked = Instant::now();
    check(&events);
    let counts = counts(&events);
    println!(
        "{} calls, checked in {:?}: {counts:#?}",
        events.len(),
        checked.elapsed()
    );
    let is_error = |answer: &Answer| matches!(answer, Answer::Error(_));
    assert!(!events.iter().any(|event| is_error(&event.answer)));
}
