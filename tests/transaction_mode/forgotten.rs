//! Good news about a transaction that was not finished.

use http::StatusCode;
use tower_idempotency::{Outcome, Verdict};

use crate::engine::Engine;
use crate::over_both;
use crate::scene::{Scene, answer};

over_both!(
    a_handler_that_forgets_to_finish_is_told_and_nothing_is_recorded,
    whoever_swallows_the_error_of_finish_is_told_too,
    a_handler_that_means_it_says_so,
    a_read_in_a_transaction_is_finished_too,
);

async fn a_handler_that_forgets_to_finish_is_told_and_nothing_is_recorded<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        if run.number > 1 {
            return run.finish(transaction, answer(201, "paid")).await;
        }
        Ok(answer(201, "paid"))
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR, "{first:?}");
    assert_eq!(first.code().as_deref(), Some("transaction-failed"));
    assert!(scene.engine.ledger().await.is_empty());
    let second = scene.send("k").await;
    let stored = Some(true);
    let executed = Outcome::Executed { attempt: 2, stored };
    assert_eq!((second.text(), second.outcome), ("paid", Some(executed)));
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn whoever_swallows_the_error_of_finish_is_told_too<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        E::rollback_by_hand(&mut transaction).await;
        let finished = run.finish(transaction, answer(201, "paid")).await;
        assert!(finished.is_err());
        Ok(answer(201, "paid"))
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.code().as_deref(), Some("transaction-failed"));
    assert!(scene.engine.ledger().await.is_empty());
}

async fn a_handler_that_means_it_says_so<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        drop(transaction);
        let mut dry_run = answer(200, "it would have worked");
        dry_run.extensions_mut().insert(Verdict::Record);
        Ok(dry_run)
    })
    .await;
    assert_eq!(scene.send("k").await.text(), "it would have worked");
    assert!(scene.send("k").await.is_replay());
    assert!(scene.engine.ledger().await.is_empty());
}

async fn a_read_in_a_transaction_is_finished_too<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let transaction = run.operation.begin(run.engine.store()).await?;
        run.finish(transaction, answer(200, "nothing to do")).await
    })
    .await;
    assert_eq!(scene.send("k").await.text(), "nothing to do");
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.runs.get(), 1);
}
