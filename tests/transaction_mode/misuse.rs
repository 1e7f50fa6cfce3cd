//! What cannot work is a clear error, and never half of it.

use std::sync::{Arc, Mutex};

use http::StatusCode;
use tower_idempotency::{Operation, TransactionError};

use crate::engine::Engine;
use crate::over_both;
use crate::scene::{Scene, answer};

over_both!(
    a_store_without_the_claim_is_told_apart,
    one_operation_has_one_transaction_at_a_time,
    a_transaction_is_finished_by_its_own_operation_alone,
    an_informational_status_is_no_answer,
    an_operation_is_over_when_its_answer_is_out,
    a_second_transaction_after_the_first_one_is_finished_is_refused,
    without_a_transaction_nothing_is_recorded,
    a_transaction_that_was_ended_by_hand_records_nothing,
);

fn assert_failed(answer: &crate::support::Answer) {
    assert_eq!(
        answer.status,
        StatusCode::INTERNAL_SERVER_ERROR,
        "{answer:?}"
    );
    assert_eq!(answer.code().as_deref(), Some("transaction-failed"));
}

async fn a_store_without_the_claim_is_told_apart<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let other = run.engine.other_store().await;
        let begun = run.operation.begin(&other).await;
        assert!(
            matches!(begun, Err(TransactionError::NotInStore)),
            "{begun:?}"
        );
        let mut own = run.engine.own().await;
        let fenced = run.operation.fence(&other, &mut own).await;
        assert!(
            matches!(fenced, Err(TransactionError::NotInStore)),
            "{fenced:?}"
        );
        let written = run
            .operation
            .complete_in(&other, &mut own, answer(201, ""))
            .await;
        assert!(
            matches!(written, Err(TransactionError::NotInStore)),
            "{written:?}"
        );
        Err(TransactionError::NotInStore)
    })
    .await;
    assert_failed(&scene.send("k").await);
}

async fn one_operation_has_one_transaction_at_a_time<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        let second = run.operation.begin(run.engine.store()).await;
        assert!(
            matches!(second, Err(TransactionError::Misuse(_))),
            "{second:?}"
        );
        // The first one is none the worse for it.
        E::insert(&mut transaction, &run.key()).await?;
        drop(transaction);
        run.transfer().await
    })
    .await;
    assert_eq!(scene.send("k").await.status, StatusCode::CREATED);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn a_transaction_is_finished_by_its_own_operation_alone<E: Engine>() {
    let earlier: Arc<Mutex<Option<Operation>>> = Arc::default();
    let scene = Scene::<E>::new(move |run| {
        let other = earlier.lock().unwrap().replace(run.operation.clone());
        async move {
            let Some(other) = other else {
                return Ok(answer(201, "the first one"));
            };
            let mut transaction = run.operation.begin(run.engine.store()).await?;
            E::insert(&mut transaction, &run.key()).await?;
            let finished = other.finish(transaction, answer(201, "")).await;
            let error = finished.unwrap_err();
            assert!(matches!(error, TransactionError::Misuse(_)), "{error:?}");
            Err(error)
        }
    })
    .await;
    assert_eq!(scene.send("a").await.status, StatusCode::CREATED);
    assert_failed(&scene.send("b").await);
    assert!(scene.engine.ledger().await.is_empty());
}

async fn an_informational_status_is_no_answer<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        run.finish(transaction, answer(101, "")).await
    })
    .await;
    assert_failed(&scene.send("k").await);
    assert!(scene.engine.ledger().await.is_empty());
}

async fn an_operation_is_over_when_its_answer_is_out<E: Engine>() {
    let kept: Arc<Mutex<Option<Operation>>> = Arc::default();
    let keeps = kept.clone();
    let scene = Scene::<E>::new(move |run| {
        *keeps.lock().unwrap() = Some(run.operation.clone());
        async { Ok(answer(201, "done")) }
    })
    .await;
    scene.send("k").await;
    let operation = kept.lock().unwrap().take().unwrap();
    let begun = operation.begin(scene.engine.store()).await;
    assert!(
        matches!(begun, Err(TransactionError::LostOwnership)),
        "{begun:?}"
    );
    assert_eq!(scene.send("k").await.text(), "done");
}

async fn a_second_transaction_after_the_first_one_is_finished_is_refused<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let finished = run.transfer().await?;
        let second = run.transfer().await;
        assert!(
            matches!(second, Err(TransactionError::LostOwnership)),
            "{second:?}"
        );
        Ok(finished)
    })
    .await;
    assert_eq!(scene.send("k").await.status, StatusCode::CREATED);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn without_a_transaction_nothing_is_recorded<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut own = run.engine.own().await;
        E::rollback_by_hand(&mut own).await;
        let store = run.engine.store();
        let written = run
            .operation
            .complete_in(store, &mut own, answer(201, "lie"))
            .await;
        assert!(
            matches!(written, Err(TransactionError::Misuse(_))),
            "{written:?}"
        );
        Ok(answer(202, "truth"))
    })
    .await;
    assert_eq!(scene.send("k").await.text(), "truth");
    assert_eq!(scene.send("k").await.text(), "truth");
}

/// The row is gone by then, and its answer must not stay.
async fn a_transaction_that_was_ended_by_hand_records_nothing<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        if run.number == 1 {
            E::rollback_by_hand(&mut transaction).await;
        }
        run.finish(transaction, answer(201, "transferred")).await
    })
    .await;
    assert_failed(&scene.send("k").await);
    assert!(scene.engine.ledger().await.is_empty());
    assert_eq!(scene.send("k").await.status, StatusCode::CREATED);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}
