use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;
use tower_idempotency::{Outcome, TransactionError};

use crate::scene::{COMMIT, Scene, answer, assert_unavailable};
use crate::support::Answer;
use crate::support::proxy::Strike;

#[track_caller]
fn assert_recorded_by_this_run(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    assert_eq!(answer.text(), "transferred");
    assert!(!answer.is_replay());
    assert_eq!(answer.header("idempotency-stored"), None);
    let stored = Some(true);
    assert_eq!(
        answer.outcome,
        Some(Outcome::Executed { attempt: 1, stored })
    );
}

async fn assert_once(scene: &Scene, runs: usize) {
    let retry = scene.send("k").await;
    assert!(retry.is_replay(), "{retry:?}");
    assert_eq!(retry.text(), "transferred");
    assert_eq!(scene.runs.get(), runs);
    assert_eq!(scene.ledger().await, ["k"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_by_its_record() {
    for strike in [
        Strike::DropReply,
        Strike::DropReplySilently,
        Strike::CutInMidReply(3),
    ] {
        let scene = Scene::new(move |run| async move {
            let transaction = run.begin().await?;
            run.proxy.strike_only(COMMIT, strike);
            run.finish(transaction).await
        })
        .await;
        assert_recorded_by_this_run(&scene.send("k").await);
        assert_eq!(scene.proxy.pending_strikes(), 0);
        assert_once(&scene, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_never_arrived_is_known_not_to_have() {
    let scene = Scene::new(|run| async move {
        let transaction = run.begin().await?;
        if run.number == 1 {
            run.proxy.strike_only(COMMIT, Strike::CutRequest);
        }
        run.finish(transaction).await
    })
    .await;
    assert_unavailable(&scene.send("k").await);
    assert_eq!(scene.proxy.cut_requests(), 1);
    assert!(scene.ledger().await.is_empty());
    // The key was let go: nothing is left to wait for.
    let second = scene.send("k").await;
    assert_eq!(second.text(), "transferred");
    let stored = Some(true);
    assert_eq!(
        second.outcome,
        Some(Outcome::Executed { attempt: 1, stored })
    );
    assert_once(&scene, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_is_cut_off_in_its_commit_does_not_have_the_last_word() {
    let scene = Scene::new(|run| async move {
        let transaction = run.begin().await?;
        run.proxy.strike_only(COMMIT, Strike::DropReplySilently);
        // As a layer with a time-out inside does.
        let finishing = timeout(Duration::from_millis(200), run.finish(transaction));
        assert!(finishing.await.is_err());
        Ok(answer(StatusCode::GATEWAY_TIMEOUT, "it took too long"))
    })
    .await;
    assert_recorded_by_this_run(&scene.send("k").await);
    assert_once(&scene, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_is_cut_off_before_its_commit_arrived_lets_the_key_go() {
    let scene = Scene::new(|run| async move {
        let transaction = run.begin().await?;
        if run.number > 1 {
            return run.finish(transaction).await;
        }
        run.proxy.hold();
        let finishing = timeout(Duration::from_millis(200), run.finish(transaction));
        assert!(finishing.await.is_err());
        // The network is back, with new connections; the old ones are gone.
        run.proxy.cut();
        run.proxy.pass();
        Ok(answer(StatusCode::GATEWAY_TIMEOUT, "it took too long"))
    })
    .await;
    let first = scene.send("k").await;
    // Whether the write of the record was held, or the commit after it.
    assert!(first.status.is_server_error(), "{first:?}");
    assert!(scene.ledger().await.is_empty());
    assert_eq!(scene.send_until_final("k").await.text(), "transferred");
    assert_once(&scene, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_the_handlers_own_is_looked_up_too() {
    let scene = Scene::new(|run| async move {
        let mut own = run.pool.begin().await?;
        run.operation.fence(&run.store, &mut own).await?;
        let key = run.operation.key().as_str();
        let insert = ::sqlx::query("INSERT INTO ledger (key) VALUES ($1)").bind(key);
        insert.execute(&mut *own).await?;
        let transferred = answer(StatusCode::CREATED, "transferred");
        run.operation
            .complete_in(&run.store, &mut own, transferred)
            .await?;
        run.proxy.strike_only(COMMIT, Strike::DropReply);
        let error = own.commit().await.unwrap_err();
        Err(TransactionError::from(error))
    })
    .await;
    assert_recorded_by_this_run(&scene.send("k").await);
    assert_once(&scene, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_can_tell_the_caller_is_asked_to_come_back() {
    let scene = Scene::new(|run| async move {
        let transaction = run.begin().await?;
        run.proxy.strike_only(COMMIT, Strike::DropReplySilently);
        let strikes = run.proxy.clone();
        let down = tokio::spawn(async move {
            crate::support::gates::until("the reply is lost", || strikes.dropped_replies() == 1)
                .await;
            strikes.down();
        });
        let finished = run.finish(transaction).await;
        down.await.unwrap();
        assert!(
            matches!(finished, Err(TransactionError::InDoubt(_))),
            "{finished:?}"
        );
        finished
    })
    .await;
    let first = scene.send("k").await;
    assert_unavailable(&first);
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    assert_eq!(scene.ledger().await, ["k"]);
    scene.proxy.pass();
    assert_eq!(scene.send_until_final("k").await.text(), "transferred");
    assert_once(&scene, 1).await;
    // What was left to find out is found out.
    timeout(Duration::from_secs(20), scene.in_flight.idle())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_turns_out_not_to_be_committed_is_let_go_without_its_caller() {
    let scene = Scene::new(|run| async move {
        let transaction = run.begin().await?;
        if run.number > 1 {
            return run.finish(transaction).await;
        }
        run.proxy.strike_only(COMMIT, Strike::CutRequest);
        let strikes = run.proxy.clone();
        let down = tokio::spawn(async move {
            crate::support::gates::until("it is cut", || strikes.cut_requests() == 1).await;
            strikes.down();
        });
        let finished = run.finish(transaction).await;
        down.await.unwrap();
        finished
    })
    .await;
    assert_unavailable(&scene.send("k").await);
    scene.proxy.pass();
    // Long before the lease of 3 s is over.
    let retried = timeout(Duration::from_secs(2), scene.send_until_final("k")).await;
    assert_eq!(retried.unwrap().text(), "transferred");
    assert_once(&scene, 2).await;
}
