//! `fence` and `complete_in`, for a handler that has its transaction already.

use tower_idempotency::{FailurePolicy, Outcome, TransactionError};

use crate::engine::Engine;
use crate::over_both;
use crate::scene::{Inner, Run, Scene, answer};

over_both!(
    a_transaction_of_its_own_commits_row_and_answer,
    an_answer_that_was_not_committed_is_not_sent_and_the_run_has_failed,
    under_refuse_such_a_key_is_sealed,
    who_rolls_back_and_says_so_is_judged_as_usual,
    who_has_committed_and_says_otherwise_is_overruled,
    what_was_committed_outlives_a_panic,
    the_fence_is_optional,
    the_answer_may_be_all_that_is_written,
);

async fn write<E: Engine>(run: &Run<E>, own: &mut E::Own) -> Result<Inner, TransactionError> {
    let store = run.engine.store();
    run.operation.fence(store, own).await?;
    E::insert(own, &run.key()).await?;
    let written = run
        .operation
        .complete_in(store, own, answer(201, "transferred"))
        .await?;
    Ok(written.map(axum::body::Body::new))
}

async fn a_transaction_of_its_own_commits_row_and_answer<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut own = run.engine.own().await;
        let written = write(&run, &mut own).await?;
        E::commit(own).await;
        Ok(written)
    })
    .await;
    let first = scene.send("k").await;
    let stored = Some(true);
    assert_eq!(
        first.outcome,
        Some(Outcome::Executed { attempt: 1, stored })
    );
    let retry = scene.send("k").await;
    assert!(retry.is_replay());
    assert_eq!((first.text(), retry.text()), ("transferred", "transferred"));
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn the_fence_is_optional<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut own = run.engine.own().await;
        E::insert(&mut own, &run.key()).await?;
        let store = run.engine.store();
        let transferred = answer(201, "transferred");
        let written = run
            .operation
            .complete_in(store, &mut own, transferred)
            .await?;
        E::commit(own).await;
        Ok(written.map(axum::body::Body::new))
    })
    .await;
    scene.send("k").await;
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn an_answer_that_was_not_committed_is_not_sent_and_the_run_has_failed<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut own = run.engine.own().await;
        let written = write(&run, &mut own).await?;
        if run.number > 1 {
            E::commit(own).await;
        }
        Ok(written)
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status.as_u16(), 500, "{first:?}");
    assert_eq!(first.code().as_deref(), Some("transaction-failed"));
    assert!(scene.engine.ledger().await.is_empty());
    let second = scene.send("k").await;
    let stored = Some(true);
    assert_eq!(
        second.outcome,
        Some(Outcome::Executed { attempt: 2, stored })
    );
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn under_refuse_such_a_key_is_sealed<E: Engine>() {
    let scene = Scene::<E>::with(
        |layer| layer.on_failure(FailurePolicy::Refuse),
        async |run| {
            let mut own = run.engine.own().await;
            write(&run, &mut own).await
        },
    )
    .await;
    assert_eq!(
        scene.send("k").await.code().as_deref(),
        Some("transaction-failed")
    );
    assert_eq!(
        scene.send("k").await.code().as_deref(),
        Some("outcome-unknown")
    );
    assert_eq!(scene.runs.get(), 1);
}

async fn who_rolls_back_and_says_so_is_judged_as_usual<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut own = run.engine.own().await;
        write(&run, &mut own).await?;
        drop(own);
        Ok(answer(422, "on second thoughts"))
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!(
        (first.status.as_u16(), first.text()),
        (422, "on second thoughts")
    );
    let retry = scene.send("k").await;
    assert!(retry.is_replay());
    assert_eq!(
        (retry.status.as_u16(), retry.text()),
        (422, "on second thoughts")
    );
    assert!(scene.engine.ledger().await.is_empty());
}

/// As a handler whose commit answered too late does.
async fn who_has_committed_and_says_otherwise_is_overruled<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut own = run.engine.own().await;
        write(&run, &mut own).await?;
        E::commit(own).await;
        Ok(answer(500, "the database did not answer"))
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!((first.status.as_u16(), first.text()), (201, "transferred"));
    assert!(!first.is_replay());
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn what_was_committed_outlives_a_panic<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut own = run.engine.own().await;
        write(&run, &mut own).await?;
        E::commit(own).await;
        panic!("after the commit");
    })
    .await;
    let service = scene.service.clone();
    let request = crate::support::post("k", "");
    let panicked = tokio::spawn(async move { crate::support::send(&service, request).await });
    assert!(panicked.await.unwrap_err().is_panic());
    let retry = scene.send("k").await;
    assert!(retry.is_replay());
    assert_eq!(retry.text(), "transferred");
    assert_eq!(scene.runs.get(), 1);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn the_answer_may_be_all_that_is_written<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut own = run.engine.own().await;
        let store = run.engine.store();
        let nothing = answer(200, "nothing to do");
        let written = run.operation.complete_in(store, &mut own, nothing).await?;
        E::commit(own).await;
        Ok(written.map(axum::body::Body::new))
    })
    .await;
    assert_eq!(scene.send("k").await.text(), "nothing to do");
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.runs.get(), 1);
}
