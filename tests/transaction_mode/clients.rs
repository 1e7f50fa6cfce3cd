//! Clients that leave, layers that cut the handler off, and stores behind other types.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;
use tower_idempotency::store::AnyStore;
use tower_idempotency::{IdempotencyLayer, Operation, SharedByAllCallers};

use crate::engine::Engine;
use crate::over_both;
use crate::scene::{Run, Scene, answer};
use crate::support::{self, stores::once_not};

over_both!(
    a_client_that_leaves_does_not_cut_the_transaction_off,
    ten_clicks_at_once_are_one_row,
    the_layer_may_have_its_store_under_another_type,
    a_handler_that_is_cut_off_in_its_transaction_leaves_nothing,
);

async fn a_client_that_leaves_does_not_cut_the_transaction_off<E: Engine>() {
    let (open, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (opened, goes) = (open.clone(), go.clone());
    let scene = Scene::<E>::new(move |run| {
        let (opened, goes) = (opened.clone(), goes.clone());
        async move {
            let mut transaction = run.operation.begin(run.engine.store()).await?;
            E::insert(&mut transaction, &run.key()).await?;
            opened.add_permits(1);
            let _ = goes.acquire().await.unwrap();
            run.finish(transaction, answer(201, "transferred")).await
        }
    })
    .await;
    let mut client = Box::pin(scene.service.clone().oneshot(support::post("k", "")));
    let leaves = async { drop(open.acquire().await.unwrap()) };
    tokio::select! {
        _ = &mut client => panic!("it waits for us"),
        () = leaves => {}
    }
    drop(client);
    go.add_permits(1);
    let retry = once_not(StatusCode::CONFLICT, async || scene.send("k").await).await;
    assert!(retry.is_replay(), "{retry:?}");
    assert_eq!(retry.text(), "transferred");
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn ten_clicks_at_once_are_one_row<E: Engine>() {
    let scene = Scene::<E>::new(async |run| run.transfer().await).await;
    let clicks = (0..10).map(|_| {
        let service = scene.service.clone();
        tokio::spawn(async move { support::send(&service, support::post("k", "")).await })
    });
    for click in clicks.collect::<Vec<_>>() {
        let answer = click.await.unwrap();
        assert!(matches!(answer.status.as_u16(), 201 | 409), "{answer:?}");
    }
    assert_eq!(scene.send("k").await.text(), "transferred");
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn the_layer_may_have_its_store_under_another_type<E: Engine>() {
    use tower::Layer;
    use tower_idempotency::RequestBody;

    let engine = Arc::new(E::start().await);
    let erased = AnyStore::new(engine.store().clone());
    let layer = IdempotencyLayer::new(erased, SharedByAllCallers);
    let service = layer.layer(tower::service_fn({
        let engine = Arc::clone(&engine);
        move |request: http::Request<RequestBody<http_body_util::Full<bytes::Bytes>>>| {
            let operation: &Operation = request.extensions().get().unwrap();
            let run = Run {
                engine: Arc::clone(&engine),
                operation: operation.clone(),
                number: 1,
            };
            async move { Ok::<_, std::convert::Infallible>(run.transfer().await.unwrap()) }
        }
    }));
    support::send(&service, support::post("k", "")).await;
    assert!(
        support::send(&service, support::post("k", ""))
            .await
            .is_replay()
    );
    assert_eq!(engine.ledger().await, ["k"]);
}

async fn a_handler_that_is_cut_off_in_its_transaction_leaves_nothing<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let transferring = async {
            let mut transaction = run.operation.begin(run.engine.store()).await?;
            E::insert(&mut transaction, &run.key()).await?;
            if run.number == 1 {
                sleep(Duration::from_secs(600)).await;
            }
            run.finish(transaction, answer(201, "transferred")).await
        };
        // As a layer with a time-out inside does.
        match timeout(Duration::from_millis(500), transferring).await {
            Ok(answer) => answer,
            Err(_) => Ok(answer(503, "it took too long")),
        }
    })
    .await;
    assert_eq!(scene.send("k").await.text(), "it took too long");
    assert!(scene.engine.ledger().await.is_empty());
    assert_eq!(scene.send("k").await.text(), "transferred");
    assert_eq!(scene.engine.ledger().await, ["k"]);
}
