//! Calls that are applied after their caller has given them up: by a server that was stopped
//! and goes on, or from a network that was stalled and delivers. They are still their owner's,
//! and undo nothing of what has been done since.

use std::fmt::Debug;
use std::future::Future;

use futures_util::future::join_all;
use redis::aio::ConnectionManagerConfig;
use tokio::time::Instant;
use tower_idempotency::store::{Claimed, Completion, KeyStore, Phase, StoreErrorKind};
use tower_idempotency::{OutagePolicy, RejectionKind};

use crate::scene::*;
use crate::support::gates::{Gate, until};
use crate::support::pieces::assert_refused;
use crate::support::redis::{RedisServer, manager_at, manager_config, unique_prefix};
use crate::support::scripted::spawn;

fn impatient() -> ConnectionManagerConfig {
    manager_config().set_response_timeout(Some(ms(150)))
}

/// A server, a store whose driver soon gives up, and one whose driver does not.
async fn scene() -> (RedisServer, Store, Store) {
    let server = RedisServer::start().await;
    let prefix = unique_prefix();
    let at = async |config| {
        let connection = manager_at(server.addr(), config).await;
        Store::new(connection).key_prefix(&prefix)
    };
    let (impatient, patient) = (at(impatient()).await, at(manager_config()).await);
    teach(&patient).await;
    (server, impatient, patient)
}

#[tokio::test]
async fn a_claim_that_is_applied_late_is_still_the_owners() {
    let (server, store, patient) = scene().await;
    let request = request();
    server.stop().await;
    let given_up = store.claim(&request).await;
    assert_eq!(error_of(given_up), StoreErrorKind::Ambiguous);
    server.cont();
    eventually("the claim is applied", async || {
        patient.lookup(&request.id).await.unwrap().is_some()
    })
    .await;
    let other = store.claim(&retry_of(&request)).await.unwrap();
    assert!(matches!(other, Claimed::InProgress { attempt: 1, .. }));
    assert_eq!(acquires(&store, &request).await.attempt, 1);
}

#[tokio::test]
async fn a_completion_that_is_applied_late_stands() {
    let (server, store, patient) = scene().await;
    let request = request();
    let hold = acquires(&store, &request).await;
    let (first, second) = (record("first"), record("second"));
    server.stop().await;
    let given_up = store.complete(&hold, &first, KEPT).await;
    assert_eq!(error_of(given_up), StoreErrorKind::Ambiguous);
    server.cont();
    eventually("the completion is applied", async || {
        phase(&patient, &hold.id).await == Some(Phase::Completed(first.clone()))
    })
    .await;
    let again = store.complete(&hold, &second, KEPT).await.unwrap();
    assert_eq!(again, Completion::Stored);
    let replay = store.claim(&retry_of(&request)).await.unwrap();
    let record = first;
    assert_eq!(replay, Claimed::Completed { attempt: 1, record });
}

/// Makes a call that the network keeps, and drops it.
async fn give_up<T: Debug>(line: &Line, call: impl Future<Output = T>) {
    let held = line.proxy.held_requests();
    tokio::select! {
        answer = call => panic!("the network keeps it: {answer:?}"),
        () = until("it is sent", || line.proxy.held_requests() > held) => {}
    }
}

/// The network keeps the calls of one run, and delivers them once another has taken over, or
/// is done.
#[tokio::test]
async fn a_call_that_is_applied_after_a_take_over_changes_nothing() {
    for is_done in [false, true] {
        let line = Line::new().await;
        let mut request = request();
        request.lease = ms(1);
        let hold = acquires(&line.store, &request).await;
        line.proxy.hold();
        give_up(&line, line.store.extend(&hold, 2 * KEPT, KEPT)).await;
        give_up(&line, line.store.complete(&hold, &record("late"), KEPT)).await;
        give_up(&line, line.store.fail(&hold, true, KEPT)).await;
        give_up(&line, line.store.release(&hold)).await;
        give_up(&line, line.store.claim(&request)).await;

        let mut next = retry_of(&request);
        next.lease = KEPT;
        let next = acquires(&line.past, &next).await;
        assert_eq!(next.attempt, 2);
        let (second, third) = (record("second"), record("third"));
        if is_done {
            let completed = line.past.complete(&next, &second, KEPT).await;
            assert_eq!(completed.unwrap(), Completion::Stored);
        }
        let before = line.past.lookup(&request.id).await.unwrap().unwrap();
        line.proxy.pass();
        // Behind them, on the same connection.
        let after = line.store.lookup(&request.id).await.unwrap().unwrap();
        assert_eq!(after.attempt, 2);
        assert!(after.retention_left <= before.retention_left);
        match after.phase {
            Phase::Running { lease_left } => assert!(!is_done && lease_left <= KEPT),
            phase => assert!(is_done && phase == before.phase, "{phase:?}"),
        }
        let completed = line.past.complete(&next, &third, KEPT).await;
        assert_eq!(completed.unwrap(), Completion::Stored);
        let stands = if is_done { second } else { third };
        let found = phase(&line.past, &request.id).await;
        assert_eq!(found, Some(Phase::Completed(stands)));
    }
}

#[tokio::test]
async fn a_claim_that_a_stopped_server_applies_late_runs_nothing_and_does_not_hold_its_key() {
    let policies = [OutagePolicy::Reject, OutagePolicy::RunUnprotected];
    join_all(policies.map(claimed_of_a_stopped_server)).await;
}

async fn claimed_of_a_stopped_server(policy: OutagePolicy) {
    let (server, store, _) = scene().await;
    let layer = layer(&store).lease(ms(3_000)).on_outage(policy);
    let (service, runs) = at_once(&layer);
    server.stop().await;
    let refused = charge(&service, "k").await;
    assert_refused(&refused, RejectionKind::StoreUnavailable);
    assert_eq!(runs.get(), 0);
    server.cont();
    let answer = charge_patiently(&service, "k").await;
    assert_true_answer(&answer, "run 1 attempt 1", true);
    idle(&layer).await;
    assert_on_record(&service, "k", &answer, &runs).await;
}

#[tokio::test]
async fn a_server_that_stops_while_the_handler_runs_gets_the_record_when_it_goes_on() {
    let (server, store, _) = scene().await;
    let layer = layer(&store);
    let gate = Gate::default();
    let (service, runs) = gated(&layer, &gate);
    let first = spawn(&service, "k").await;
    gate.until_arrived(1).await;
    server.stop().await;
    gate.open_for_all();
    let began = Instant::now();
    let first = first.await.unwrap();
    // Two calls, each of which the driver gives up.
    assert!(began.elapsed() < ms(2_000), "{:?}", began.elapsed());
    assert_true_answer(&first, "run 1 attempt 1", false);
    assert_eq!(layer.in_flight().count(), 1);
    server.cont();
    idle(&layer).await;
    assert_on_record(&service, "k", &first, &runs).await;
    assert_eq!(runs.get(), 1);
}

/// The driver would wait for ten seconds; the layer does not.
#[tokio::test]
async fn a_driver_that_is_too_patient_does_not_hold_an_answer_up() {
    let (server, _, patient) = scene().await;
    let layer = layer(&patient).store_timeout(ms(500)).lease(ms(1_000));
    let gate = Gate::default();
    let (service, runs) = gated(&layer, &gate);
    let first = spawn(&service, "k").await;
    gate.until_arrived(1).await;
    server.stop().await;
    gate.open_for_all();
    let began = Instant::now();
    assert_true_answer(&first.await.unwrap(), "run 1 attempt 1", false);
    let refused = charge(&service, "other").await;
    assert_refused(&refused, RejectionKind::StoreUnavailable);
    assert!(began.elapsed() < ms(5_000), "{:?}", began.elapsed());
    server.cont();
    idle(&layer).await;
    let retry = charge(&service, "k").await;
    assert!(retry.is_replay(), "{retry:?}");
    assert_eq!((retry.text(), runs.get()), ("run 1 attempt 1", 1));
}
