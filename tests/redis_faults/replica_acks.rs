//! `min_replica_acks` on a replica that lags: what it does not have does not count, and what
//! was written stands until it has.

use std::time::Duration;

use tower_idempotency::store::{
    Claimed, Completion, Forgot, Hold, KeyStore, Ownership, Phase, StoreErrorKind,
};

use crate::scene::*;
use crate::support::gates::Gate;
use crate::support::redis::{RedisServer, unique_prefix};
use crate::support::scripted::spawn;

/// Long enough for a replica that is there.
const PATIENT: Duration = ms(10_000);
const IMPATIENT: Duration = ms(50);

struct Pair {
    primary: RedisServer,
    replica: RedisServer,
    prefix: String,
    /// Does not ask for replicas.
    plain: Store,
}

impl Pair {
    async fn new() -> Self {
        let primary = RedisServer::start().await;
        let replica = RedisServer::start_replica_of(&primary).await;
        let prefix = unique_prefix();
        let plain = Store::new(primary.manager().await).key_prefix(&prefix);
        Self {
            primary,
            replica,
            prefix,
            plain,
        }
    }

    /// A store with a connection of its own.
    async fn store(&self, timeout: Duration) -> Store {
        let connection = self.primary.manager().await;
        let store = Store::new(connection).key_prefix(&self.prefix);
        store.min_replica_acks(1, timeout)
    }

    async fn running(&self) -> Hold {
        acquires(&self.store(PATIENT).await, &request()).await
    }
}

#[tokio::test]
async fn a_completion_that_no_replica_has_stands_and_is_stored_once_one_has_it() {
    let pair = Pair::new().await;
    let hold = pair.running().await;
    let store = pair.store(IMPATIENT).await;
    let (first, second) = (record("first"), record("second"));
    pair.replica.stop().await;
    for record in [&first, &second] {
        let completed = store.complete(&hold, record, KEPT).await;
        assert_eq!(error_of(completed), StoreErrorKind::Ambiguous);
        let found = phase(&pair.plain, &hold.id).await;
        assert_eq!(found, Some(Phase::Completed(first.clone())));
    }
    pair.replica.cont();
    eventually("the replica has it", async || {
        store.complete(&hold, &second, KEPT).await.ok() == Some(Completion::Stored)
    })
    .await;
    pair.primary.kill();
    pair.replica.promote().await;
    let store = Store::new(pair.replica.manager().await).key_prefix(&pair.prefix);
    assert_eq!(phase(&store, &hold.id).await, Some(Phase::Completed(first)));
}

#[tokio::test]
async fn a_renewal_that_no_replica_has_stands_and_is_made_again() {
    let pair = Pair::new().await;
    let hold = pair.running().await;
    let store = pair.store(IMPATIENT).await;
    pair.replica.stop().await;
    let extended = store.extend(&hold, KEPT, KEPT).await;
    assert_eq!(error_of(extended), StoreErrorKind::Ambiguous);
    let found = phase(&pair.plain, &hold.id).await;
    assert!(matches!(found, Some(Phase::Running { lease_left }) if lease_left > KEPT / 2));
    pair.replica.cont();
    eventually("the replica has it", async || {
        store.extend(&hold, KEPT, KEPT).await.ok() == Some(Ownership::Held)
    })
    .await;
}

#[tokio::test]
async fn a_failure_that_no_replica_has_stands() {
    for seal in [false, true] {
        let pair = Pair::new().await;
        let hold = pair.running().await;
        let store = pair.store(IMPATIENT).await;
        pair.replica.stop().await;
        let failed = store.fail(&hold, seal, KEPT).await;
        assert_eq!(error_of(failed), StoreErrorKind::Ambiguous);
        let expected = if seal { Phase::Sealed } else { Phase::Failed };
        assert_eq!(phase(&pair.plain, &hold.id).await, Some(expected));
        // There is nothing left to write.
        let again = store.fail(&hold, seal, KEPT).await.unwrap();
        assert_eq!(again, Ownership::Lost);
        pair.replica.cont();
    }
}

#[tokio::test]
async fn what_an_operator_does_and_no_replica_has_stands() {
    let pair = Pair::new().await;
    let hold = pair.running().await;
    pair.plain.fail(&hold, true, KEPT).await.unwrap();
    let store = pair.store(IMPATIENT).await;
    let found_out = record("found out");
    pair.replica.stop().await;
    let resolved = store.resolve(&hold.id, &found_out, KEPT).await;
    assert_eq!(error_of(resolved), StoreErrorKind::Ambiguous);
    let found = phase(&pair.plain, &hold.id).await;
    assert_eq!(found, Some(Phase::Completed(found_out)));
    let forgot = store.forget(&hold.id).await;
    assert_eq!(error_of(forgot), StoreErrorKind::Ambiguous);
    assert_eq!(pair.plain.forget(&hold.id).await.unwrap(), Forgot::Absent);
    pair.replica.cont();
}

/// Which has written nothing itself.
#[tokio::test]
async fn a_repeated_completion_waits_for_the_replica_on_another_connection_too() {
    let pair = Pair::new().await;
    let done = pair.running().await;
    pair.replica.stop().await;
    let record = record("answer");
    for connection in 1..=3 {
        let store = pair.store(IMPATIENT).await;
        let completed = store.complete(&done, &record, KEPT).await;
        assert_eq!(
            error_of(completed),
            StoreErrorKind::Ambiguous,
            "{connection}"
        );
    }
    pair.replica.cont();
    let store = pair.store(PATIENT).await;
    let completed = store.complete(&done, &record, KEPT).await.unwrap();
    assert_eq!(completed, Completion::Stored);
}

/// A claim that grants nothing has nothing to lose.
#[tokio::test]
async fn a_claim_that_is_not_granted_needs_no_replica() {
    let pair = Pair::new().await;
    let (running, done, sealed) = (request(), request(), request());
    let store = pair.store(PATIENT).await;
    acquires(&store, &running).await;
    let hold = acquires(&store, &done).await;
    let record = record("answer");
    store.complete(&hold, &record, KEPT).await.unwrap();
    let hold = acquires(&store, &sealed).await;
    store.fail(&hold, true, KEPT).await.unwrap();

    let store = pair.store(IMPATIENT).await;
    pair.replica.kill();
    // So that there is a write which no replica has.
    let refused = store.claim(&request()).await;
    assert_eq!(error_of(refused), StoreErrorKind::Ambiguous);
    let claim = async |request| store.claim(&request).await.unwrap();
    let found = claim(retry_of(&running)).await;
    assert!(matches!(found, Claimed::InProgress { attempt: 1, .. }));
    assert_eq!(claim(misuse_of(&running)).await, Claimed::Mismatch);
    let found = claim(retry_of(&done)).await;
    assert_eq!(found, Claimed::Completed { attempt: 1, record });
    let found = claim(retry_of(&sealed)).await;
    assert_eq!(found, Claimed::Abandoned { attempt: 1 });
}

#[tokio::test]
async fn an_answer_that_no_replica_has_is_true_and_is_recorded_in_the_background() {
    let pair = Pair::new().await;
    let layer = layer(&pair.store(ms(1_000)).await).store_timeout(ms(1_500));
    let gate = Gate::default();
    let (service, runs) = gated(&layer, &gate);
    let first = spawn(&service, "k").await;
    gate.until_arrived(1).await;
    pair.replica.stop().await;
    gate.open_for_all();
    let first = first.await.unwrap();
    assert_true_answer(&first, "run 1 attempt 1", false);
    assert_eq!(layer.in_flight().count(), 1);
    pair.replica.cont();
    idle(&layer).await;
    assert_on_record(&service, "k", &first, &runs).await;
    assert_eq!(runs.get(), 1);
}
