//! The server is killed and comes back. With an append-only file nothing is lost that it had
//! acknowledged; without one, everything is, as the documentation of the store says.

use tokio::time::Instant;
use tower_idempotency::store::{Claimed, Completion, Forgot, KeyStore, Ownership, Phase};
use tower_idempotency::{Outcome, RejectionKind};

use crate::scene::*;
use crate::support::gates::Gate;
use crate::support::pieces::assert_refused;
use crate::support::redis::RedisServer;
use crate::support::scripted::spawn;

async fn durable() -> RedisServer {
    RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
}

#[tokio::test]
async fn a_run_survives_a_restart_at_each_of_its_steps() {
    let server = durable().await;
    let store = store_on(&server).await;
    let request = request();
    for attempt in 1..=3 {
        let hold = acquires(&store, &retry_of(&request)).await;
        assert_eq!(hold.attempt, attempt);
        server.restart().await;
        let held = insist(async || store.extend(&hold, KEPT, KEPT).await).await;
        assert_eq!(held, Ownership::Held);
        server.restart().await;
        let other = insist(async || store.claim(&retry_of(&request)).await).await;
        assert!(matches!(other, Claimed::InProgress { .. }), "{other:?}");
        let misuse = store.claim(&misuse_of(&request)).await.unwrap();
        assert_eq!(misuse, Claimed::Mismatch);
        server.restart().await;
        let failed = insist(async || store.fail(&hold, false, KEPT).await).await;
        assert_eq!(failed, Ownership::Held);
        server.restart().await;
        // It finds that the connection has broken.
        insist(async || store.lookup(&hold.id).await).await;
    }

    let hold = acquires(&store, &retry_of(&request)).await;
    let record = record(vec![b'x'; 100_000]);
    server.restart().await;
    let completed = insist(async || store.complete(&hold, &record, KEPT).await).await;
    assert_eq!(completed, Completion::Stored);
    server.restart().await;
    let again = insist(async || store.complete(&hold, &record, KEPT).await).await;
    assert_eq!(again, Completion::Stored);
    let replay = store.claim(&retry_of(&request)).await.unwrap();
    assert_eq!(replay, Claimed::Completed { attempt: 4, record });
}

#[tokio::test]
async fn a_sealed_key_is_still_sealed_after_a_restart() {
    let server = durable().await;
    let store = store_on(&server).await;
    let request = request();
    let hold = acquires(&store, &request).await;
    store.fail(&hold, true, KEPT).await.unwrap();
    server.restart().await;
    let other = insist(async || store.claim(&retry_of(&request)).await).await;
    assert_eq!(other, Claimed::Abandoned { attempt: 1 });
    let record = record("found out");
    assert!(store.resolve(&hold.id, &record, KEPT).await.unwrap());
    server.restart().await;
    let found = insist(async || store.lookup(&hold.id).await).await.unwrap();
    assert_eq!(found.phase, Phase::Completed(record));
    assert!(found.retention_left <= KEPT && found.retention_left > KEPT / 2);
    assert_eq!(store.forget(&hold.id).await.unwrap(), Forgot::Forgotten);
    server.restart().await;
    let found = insist(async || store.lookup(&hold.id).await).await;
    assert_eq!(found, None);
}

#[tokio::test]
async fn a_server_that_restarts_while_the_handler_runs_is_not_noticed() {
    let server = durable().await;
    let layer = layer(&store_on(&server).await);
    let gate = Gate::default();
    let (service, runs) = gated(&layer, &gate);
    let first = spawn(&service, "k").await;
    gate.until_arrived(1).await;
    server.restart().await;
    gate.open_for_all();
    let first = first.await.unwrap();
    assert_true_answer(&first, "run 1 attempt 1", true);
    assert_on_record(&service, "k", &first, &runs).await;
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
}

#[tokio::test]
async fn a_server_that_is_killed_while_the_handler_runs_gets_the_record_when_it_is_back() {
    let server = durable().await;
    let layer = layer(&store_on(&server).await);
    let gate = Gate::default();
    let (service, runs) = gated(&layer, &gate);
    let first = spawn(&service, "k").await;
    gate.until_arrived(1).await;
    server.kill();
    gate.open_for_all();
    let began = Instant::now();
    let first = first.await.unwrap();
    assert!(began.elapsed() < ms(2_500), "{:?}", began.elapsed());
    assert_true_answer(&first, "run 1 attempt 1", false);
    let (attempt, stored) = (1, Some(false));
    assert_eq!(first.outcome, Some(Outcome::Executed { attempt, stored }));
    assert_eq!(layer.in_flight().count(), 1);

    server.restart().await;
    idle(&layer).await;
    let retry = charge_patiently(&service, "k").await;
    assert!(retry.is_replay(), "{retry:?}");
    assert_on_record(&service, "k", &first, &runs).await;
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn nothing_runs_while_the_server_is_down_and_everything_once_it_is_back() {
    let server = durable().await;
    let layer = layer(&store_on(&server).await).lease(ms(1_000));
    let (service, runs) = at_once(&layer);
    let earlier = charge(&service, "earlier").await;
    server.kill();
    for key in ["earlier", "k", "k", "k"] {
        let refused = charge(&service, key).await;
        assert_refused(&refused, RejectionKind::StoreUnavailable);
    }
    assert_eq!(runs.get(), 1);
    server.restart().await;
    let answer = charge_patiently(&service, "k").await;
    assert_true_answer(&answer, "run 2 attempt 1", true);
    assert_on_record(&service, "earlier", &earlier, &runs).await;
    idle(&layer).await;
    assert_on_record(&service, "k", &answer, &runs).await;
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn without_a_file_a_restart_forgets_the_claim_and_the_late_completion_restores_the_record() {
    let server = RedisServer::start().await;
    let store = store_on(&server).await;
    let request = request();
    let hold = acquires(&store, &request).await;
    server.restart().await;
    let found = insist(async || store.lookup(&hold.id).await).await;
    assert_eq!(found, None);
    let record = record("answer");
    let completed = store.complete(&hold, &record, KEPT).await.unwrap();
    assert_eq!(completed, Completion::Restored);
    let again = store.complete(&hold, &record, KEPT).await.unwrap();
    assert_eq!(again, Completion::Stored);
    let replay = store.claim(&retry_of(&request)).await.unwrap();
    assert_eq!(replay, Claimed::Completed { attempt: 1, record });

    let layer = layer(&store);
    let gate = Gate::default();
    let (service, runs) = gated(&layer, &gate);
    let first = spawn(&service, "k").await;
    gate.until_arrived(1).await;
    server.restart().await;
    gate.open_for_all();
    let first = first.await.unwrap();
    assert_true_answer(&first, "run 1 attempt 1", true);
    assert_on_record(&service, "k", &first, &runs).await;
}

/// What a server without a file or a replica is warned of.
#[tokio::test]
async fn without_a_file_a_restart_forgets_what_was_finished_and_it_runs_again() {
    let server = RedisServer::start().await;
    let store = store_on(&server).await;
    let layer = layer(&store);
    let gate = Gate::default();
    gate.open(1);
    let (service, runs) = gated(&layer, &gate);
    let first = charge(&service, "k").await;
    assert_on_record(&service, "k", &first, &runs).await;
    server.restart().await;
    let second = spawn(&service, "k").await;
    gate.until_arrived(2).await;
    assert_eq!(runs.get(), 2);

    // And so does what is under way: two live runs, of which the first to ask again wins.
    server.restart().await;
    let third = spawn(&service, "k").await;
    gate.until_arrived(3).await;
    gate.open_for_all();
    let (second, third) = (second.await.unwrap(), third.await.unwrap());
    assert_eq!(second.text(), "run 2 attempt 1");
    assert_eq!(second.header("idempotency-stored"), Some("false"));
    assert_true_answer(&third, "run 3 attempt 1", true);
    assert_on_record(&service, "k", &third, &runs).await;
    assert_eq!((runs.get(), layer.in_flight().count()), (3, 0));
}
