//! Two primaries, as in a fail-over that the old one does not know of: Redis grants one key
//! twice then, as the documentation of the store says, and `min_replica_acks` narrows it.

use http::StatusCode;
use tower_idempotency::store::{Claimed, Completion, KeyStore, Ownership, StoreErrorKind};
use tower_idempotency::{OutagePolicy, RejectionKind};

use crate::scene::*;
use crate::support::pieces::assert_refused;
use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, unique_prefix};

/// A primary and a replica, and what a store calls its records on both.
async fn pair() -> (RedisServer, RedisServer, String) {
    let primary = RedisServer::start().await;
    let replica = RedisServer::start_replica_of(&primary).await;
    (primary, replica, unique_prefix())
}

async fn store_at(server: &RedisServer, prefix: &str) -> Store {
    Store::new(server.manager().await).key_prefix(prefix)
}

#[tokio::test]
async fn a_fail_over_keeps_what_the_replica_has_and_forgets_what_was_only_acknowledged() {
    let old = RedisServer::start().await;
    let between = Proxy::start(old.addr()).await;
    let port = between.addr().port().to_string();
    let new = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    new.until_in_sync_with(&old).await;
    let prefix = unique_prefix();
    let store = store_at(&old, &prefix).await;
    let (done, running, late) = (request(), request(), request());
    let hold = acquires(&store, &done).await;
    let record = record("answer");
    store.complete(&hold, &record, KEPT).await.unwrap();
    let hold = acquires(&store, &running).await;
    new.until_in_sync_with(&old).await;
    between.cut_off();
    let late_hold = acquires(&store, &late).await;
    store.complete(&late_hold, &record, KEPT).await.unwrap();
    store.complete(&hold, &record, KEPT).await.unwrap();
    old.kill();
    new.promote().await;

    let store = store_at(&new, &prefix).await;
    let replay = Claimed::Completed {
        attempt: 1,
        record: record.clone(),
    };
    assert_eq!(store.claim(&retry_of(&done)).await.unwrap(), replay);
    // It runs, as far as the new primary knows.
    let other = store.claim(&retry_of(&running)).await.unwrap();
    assert!(matches!(other, Claimed::InProgress { attempt: 1, .. }));
    let again = store.complete(&hold, &record, KEPT).await.unwrap();
    assert_eq!(again, Completion::Stored);
    assert_eq!(acquires(&store, &retry_of(&late)).await.attempt, 1);
}

#[tokio::test]
async fn two_primaries_grant_the_same_key_and_the_record_of_the_one_that_gives_in_is_lost() {
    let (old, new, prefix) = pair().await;
    new.promote().await;
    let on_old = layer(&store_at(&old, &prefix).await);
    let on_new = layer(&store_at(&new, &prefix).await);
    let (one, one_runs) = handled(&on_old, |_| "one".to_owned());
    let (other, other_runs) = handled(&on_new, |_| "other".to_owned());
    let first = charge(&one, "k").await;
    let second = charge(&other, "k").await;
    assert_true_answer(&first, "one", true);
    assert_true_answer(&second, "other", true);
    assert_on_record(&one, "k", &first, &one_runs).await;
    assert_on_record(&other, "k", &second, &other_runs).await;
    assert_eq!((one_runs.get(), other_runs.get()), (1, 1));

    // The old one learns of its successor.
    let mut follow = redis::cmd("REPLICAOF");
    follow.arg("127.0.0.1").arg(new.port());
    old.query::<()>(&follow).await;
    old.until_in_sync_with(&new).await;
    // It still tells what is on record, and grants nothing.
    let replay = charge_patiently(&one, "k").await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!(replay.text(), "other");
    let refused = charge(&one, "k2").await;
    assert_refused(&refused, RejectionKind::StoreUnavailable);
    assert_eq!((one_runs.get(), other_runs.get()), (1, 1));
}

/// Without a lease that ends: the new primary has not heard of the run.
#[tokio::test]
async fn a_run_whose_claim_did_not_reach_the_new_primary_runs_beside_its_successor() {
    let (old, new, prefix) = pair().await;
    let (on_old, on_new) = (store_at(&old, &prefix).await, store_at(&new, &prefix).await);
    new.promote().await;
    let request = request();
    let first = acquires(&on_old, &request).await;
    let retry = retry_of(&request);
    let second = acquires(&on_new, &retry).await;
    assert_eq!((first.attempt, second.attempt), (1, 1));
    let (one, other) = (record("one"), record("other"));
    let completed = on_old.complete(&first, &one, KEPT).await.unwrap();
    assert_eq!(completed, Completion::Stored);
    // Whoever follows the fail-over in the middle of its run is told.
    let completed = on_new.complete(&first, &one, KEPT).await.unwrap();
    assert_eq!(completed, Completion::NotOwner);
    let completed = on_new.complete(&second, &other, KEPT).await.unwrap();
    assert_eq!(completed, Completion::Stored);
}

#[tokio::test]
async fn with_replica_acks_a_primary_that_lost_its_replica_grants_nothing() {
    let (old, new, prefix) = pair().await;
    let store = store_at(&old, &prefix)
        .await
        .min_replica_acks(1, ms(10_000));
    assert_eq!(acquires(&store, &request()).await.attempt, 1);
    new.promote().await;
    let store = store_at(&old, &prefix).await.min_replica_acks(1, ms(50));
    let request = request();
    for _ in 0..2 {
        let refused = store.claim(&request).await;
        assert_eq!(error_of(refused), StoreErrorKind::Ambiguous);
    }
    // What stands there of the claim is given back by its owner, without any replica.
    let released = store.release(&request.hold(1)).await.unwrap();
    assert_eq!(released, Ownership::Held);
    assert_eq!(store.lookup(&request.id).await.unwrap(), None);

    // The new primary gets a replica of its own, and grants it.
    let replica = RedisServer::start_replica_of(&new).await;
    let store = store_at(&new, &prefix).await;
    let store = store.min_replica_acks(1, ms(10_000));
    assert_eq!(acquires(&store, &request).await.attempt, 1);
    drop(replica);
}

#[tokio::test]
async fn with_replica_acks_what_was_acknowledged_survives_any_fail_over_to_that_replica() {
    let (old, new, prefix) = pair().await;
    let store = store_at(&old, &prefix)
        .await
        .min_replica_acks(1, ms(10_000));
    let layer = layer(&store);
    let (service, runs) = handled(&layer, |run| format!("run {run}"));
    let mut answers = Vec::new();
    for number in 0..50 {
        answers.push(charge(&service, &format!("k{number}")).await);
    }
    old.kill();
    new.promote().await;
    let layer = super::scene::layer(&store_at(&new, &prefix).await);
    let (service, runs_on_new) = at_once(&layer);
    for (number, answer) in answers.iter().enumerate() {
        assert_on_record(&service, &format!("k{number}"), answer, &runs_on_new).await;
    }
    assert_eq!((runs.get(), runs_on_new.get()), (50, 0));
}

#[tokio::test]
async fn with_replica_acks_a_cut_off_primary_runs_nothing_and_keeps_nothing() {
    for policy in [OutagePolicy::Reject, OutagePolicy::RunUnprotected] {
        let (old, new, prefix) = pair().await;
        let plain = layer(&store_at(&old, &prefix).await);
        let (failing, _) = answering(&plain, 500, || async {});
        assert_eq!(charge(&failing, "failed").await.text(), "run 1 attempt 1");
        let size = redis::cmd("DBSIZE");
        assert_eq!(old.query::<u64>(&size).await, 1);
        new.promote().await;

        let store = store_at(&old, &prefix).await.min_replica_acks(1, ms(50));
        let layer = layer(&store).lease(ms(500)).on_outage(policy);
        let (service, runs) = at_once(&layer);
        for key in ["k", "k", "failed"] {
            let refused = charge(&service, key).await;
            assert_eq!(runs.get(), 0, "{key} {policy:?}");
            // The claim that was refused before may still be in the way.
            if refused.status != StatusCode::CONFLICT {
                assert_refused(&refused, RejectionKind::StoreUnavailable);
            }
        }
        idle(&layer).await;
        assert_eq!(old.query::<u64>(&size).await, 1);
        // Where there is a replica again, both may run, as if nothing had been asked.
        let replica = RedisServer::start_replica_of(&old).await;
        let store = store_at(&old, &prefix).await;
        let layer = super::scene::layer(&store.min_replica_acks(1, ms(1_000)));
        let (service, _) = at_once(&layer);
        let answer = charge(&service, "k").await;
        assert_true_answer(&answer, "run 1 attempt 1", true);
        let answer = charge(&service, "failed").await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        assert!(!answer.is_replay() && !answer.text().ends_with(" 1"));
        drop(replica);
    }
}

/// The server's own setting, which needs no `WAIT`.
#[tokio::test]
async fn a_server_that_insists_on_replicas_grants_nothing_without_them() {
    let insists = ["--min-replicas-to-write", "1"];
    let server = RedisServer::start_with(&insists).await;
    let store = store_on(&server).await;
    let request = request();
    let refused = store.claim(&request).await;
    assert_eq!(error_of(refused), StoreErrorKind::NotApplied);
    assert_eq!(store.lookup(&request.id).await.unwrap(), None);
    let replica = RedisServer::start_replica_of(&server).await;
    assert_eq!(acquires(&store, &request).await.attempt, 1);
    drop(replica);
}
