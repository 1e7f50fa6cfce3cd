//! Who holds the key while a transaction is open, and after.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::block_in_place;
use tokio::time::sleep;
use tower_idempotency::store::{ClaimRequest, Claimed, Hold, KeyStore, Owner, Ownership, Snapshot};
use tower_idempotency::{FailurePolicy, Operation, TransactionError};

use crate::engine::Engine;
use crate::over_both;
use crate::scene::{Scene, answer};

over_both!(
    while_a_transaction_is_open_its_lock_is_the_lease,
    a_run_that_was_taken_over_cannot_begin,
    a_transaction_of_a_run_that_was_taken_over_commits_nothing,
    a_run_that_was_taken_over_records_nothing_though_the_other_run_has_failed,
    renewals_pause_for_the_transaction_and_go_on_after_it,
    a_transaction_under_refuse_outlives_its_lease_too,
);

const LEASE: Duration = Duration::from_millis(300);

/// A claim of the same request by somebody else.
async fn rival<K: KeyStore>(store: &K, operation: &Operation) -> Claimed {
    let snapshot = lookup(store, operation).await;
    // The scope is for quotas, which these stores do not have.
    let scope = tower_idempotency::store::ScopeId::from_bytes([0; 16]);
    let owner = Owner::random().unwrap();
    let claim = ClaimRequest::new(*operation.id(), scope, snapshot.fingerprint, owner);
    store.claim(&claim).await.unwrap()
}

/// What a rival gets, and may do with it, where the renewals come too late: they are part of
/// the future that is blocked here.
fn taken_over<K: KeyStore>(store: &K, operation: &Operation, and_then: impl AsyncFnOnce(Hold)) {
    block_in_place(|| {
        let deadline = Instant::now() + Duration::from_secs(20);
        Handle::current().block_on(async {
            loop {
                std::thread::sleep(LEASE / 10);
                match rival(store, operation).await {
                    Claimed::Acquired(hold) => {
                        assert_eq!(hold.attempt, 2);
                        return and_then(hold).await;
                    }
                    Claimed::InProgress { .. } => assert!(Instant::now() < deadline),
                    other => panic!("{other:?}"),
                }
            }
        });
    });
}

async fn lookup<K: KeyStore>(store: &K, operation: &Operation) -> Snapshot {
    store.lookup(operation.id()).await.unwrap().unwrap()
}

async fn while_a_transaction_is_open_its_lock_is_the_lease<E: Engine>() {
    let (open, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (opened, goes) = (open.clone(), go.clone());
    let scene = Scene::<E>::with(
        |layer| layer.lease(LEASE),
        move |run| {
            let (opened, goes) = (opened.clone(), goes.clone());
            async move {
                let mut transaction = run.operation.begin(run.engine.store()).await?;
                E::insert(&mut transaction, &run.key()).await?;
                sleep(2 * LEASE).await;
                assert!(run.operation.is_live());
                opened.add_permits(1);
                let _ = goes.acquire().await.unwrap();
                run.finish(transaction, answer(201, "transferred")).await
            }
        },
    )
    .await;
    let service = scene.service.clone();
    let first =
        tokio::spawn(
            async move { crate::support::send(&service, crate::support::post("k", "")).await },
        );
    drop(open.acquire().await.unwrap());
    // The lease is over by far, and the answer comes at once.
    let began = Instant::now();
    let second = scene.send("k").await;
    assert_eq!(second.status.as_u16(), 409, "{second:?}");
    assert_eq!(second.code().as_deref(), Some("in-progress"));
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    go.add_permits(1);
    assert_eq!(first.await.unwrap().status.as_u16(), 201);
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.runs.get(), 1);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn a_transaction_under_refuse_outlives_its_lease_too<E: Engine>() {
    let (open, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (opened, goes) = (open.clone(), go.clone());
    let scene = Scene::<E>::with(
        |layer| layer.lease(LEASE).on_failure(FailurePolicy::Refuse),
        move |run| {
            let (opened, goes) = (opened.clone(), goes.clone());
            async move {
                let mut transaction = run.operation.begin(run.engine.store()).await?;
                E::insert(&mut transaction, &run.key()).await?;
                sleep(2 * LEASE).await;
                opened.add_permits(1);
                let _ = goes.acquire().await.unwrap();
                run.finish(transaction, answer(201, "transferred")).await
            }
        },
    )
    .await;
    let service = scene.service.clone();
    let first =
        tokio::spawn(
            async move { crate::support::send(&service, crate::support::post("k", "")).await },
        );
    drop(open.acquire().await.unwrap());
    // It may still commit: nobody can say that its outcome is unknown.
    let second = scene.send("k").await;
    assert_eq!(second.code().as_deref(), Some("in-progress"), "{second:?}");
    go.add_permits(1);
    assert_eq!(first.await.unwrap().status.as_u16(), 201);
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.runs.get(), 1);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn a_run_that_was_taken_over_cannot_begin<E: Engine>() {
    let scene = Scene::<E>::with(
        |layer| layer.lease(LEASE),
        async |run| {
            taken_over(run.engine.store(), &run.operation, async |_| {});
            match run.operation.begin(run.engine.store()).await {
                Err(TransactionError::LostOwnership) => Err(TransactionError::LostOwnership),
                other => panic!("{other:?}"),
            }
        },
    )
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status.as_u16(), 409, "{first:?}");
    assert_eq!(first.code().as_deref(), Some("in-progress"));
    assert!(scene.engine.ledger().await.is_empty());
}

/// Without a fence of its own, a transaction finds out when it records.
async fn a_transaction_of_a_run_that_was_taken_over_commits_nothing<E: Engine>() {
    let scene = Scene::<E>::with(
        |layer| layer.lease(LEASE),
        async |run| {
            taken_over(run.engine.store(), &run.operation, async |_| {});
            let mut own = run.engine.own().await;
            E::insert(&mut own, &run.key()).await?;
            let store = run.engine.store();
            let answer = answer(201, "transferred");
            let written = run.operation.complete_in(store, &mut own, answer).await;
            assert!(
                matches!(written, Err(TransactionError::LostOwnership)),
                "{written:?}"
            );
            Err(written.unwrap_err())
        },
    )
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status.as_u16(), 409, "{first:?}");
    assert!(scene.engine.ledger().await.is_empty());
    assert_eq!(scene.send("k").await.status.as_u16(), 409);
    assert_eq!(scene.runs.get(), 1);
}

/// Asked what became of its transaction, the store grants its owner an attempt of its own.
async fn a_run_that_was_taken_over_records_nothing_though_the_other_run_has_failed<E: Engine>() {
    let scene = Scene::<E>::with(
        |layer| layer.lease(LEASE),
        async |run| {
            if run.number > 1 {
                return run.transfer().await;
            }
            let store = run.engine.store();
            let mut own = run.engine.own().await;
            E::insert(&mut own, &run.key()).await?;
            run.operation
                .complete_in(store, &mut own, answer(201, "never committed"))
                .await?;
            drop(own);
            taken_over(store, &run.operation, async |hold| {
                let failed = store.fail(&hold, false, Duration::from_secs(60)).await;
                assert_eq!(failed.unwrap(), Ownership::Held);
            });
            Ok(answer(404, "what the first run says"))
        },
    )
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status.as_u16(), 404, "{first:?}");
    assert_eq!(first.text(), "what the first run says");
    assert_eq!(first.header("idempotency-stored"), Some("false"));
    let second = scene.send("k").await;
    assert_eq!(second.text(), "transferred", "{second:?}");
    assert!(!second.is_replay());
    let third = scene.send("k").await;
    assert!(third.is_replay(), "{third:?}");
    assert_eq!(third.text(), "transferred");
    assert_eq!(scene.runs.get(), 2);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn renewals_pause_for_the_transaction_and_go_on_after_it<E: Engine>() {
    use tower_idempotency::store::Phase;

    let scene = Scene::<E>::with(
        |layer| layer.lease(LEASE),
        async |run| {
            let store = run.engine.store();
            let left = async || match lookup(store, &run.operation).await.phase {
                Phase::Running { lease_left } => lease_left,
                other => panic!("{other:?}"),
            };
            let transaction = run.operation.begin(store).await?;
            sleep(LEASE + Duration::from_millis(50)).await;
            assert_eq!(left().await, Duration::ZERO);
            drop(transaction);
            let deadline = Instant::now() + Duration::from_secs(10);
            while left().await.is_zero() {
                assert!(Instant::now() < deadline, "it is not renewed");
                sleep(Duration::from_millis(5)).await;
            }
            assert!(run.operation.is_live());
            // And from then on as ever.
            sleep(2 * LEASE).await;
            assert!(!left().await.is_zero());
            run.transfer().await
        },
    )
    .await;
    assert_eq!(scene.send("k").await.status.as_u16(), 201);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}
