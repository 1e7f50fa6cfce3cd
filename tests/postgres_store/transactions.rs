//! What a handler's own transaction promises: nobody takes a fenced run over, nobody waits for
//! it, and its answer is there exactly if it has committed.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgPoolOptions};
use tokio::time::timeout;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fence, Forgot, Hold, KeyStore, Ownership, Phase,
    PostgresStore, StoreError, StoreErrorKind, TransactionalStore,
};

use crate::plans::{quiet, statements};
use crate::support::postgres::{PostgresServer, execute, scalar};
use crate::{Place, RETENTION, acquire, fresh_record, misuse_of, request, retry_of, sealing};

/// Long enough for a busy machine, and far below what any of the locks lasts.
const AT_ONCE: Duration = Duration::from_secs(20);

async fn with_effects() -> Place {
    let place = Place::new().await;
    execute(&place.pool, "CREATE TABLE effect (id int PRIMARY KEY)").await;
    place
}

async fn effects(place: &Place) -> i64 {
    scalar(&place.pool, "SELECT count(*) FROM effect").await
}

/// A claim whose lease is over as good as at once.
fn brief() -> ClaimRequest {
    let mut request = request();
    request.lease = Duration::from_millis(1);
    request
}

async fn until_lapsed(store: &PostgresStore, request: &ClaimRequest) {
    let patience = Instant::now() + AT_ONCE;
    loop {
        match store.lookup(&request.id).await.unwrap().unwrap().phase {
            Phase::Running { lease_left } if !lease_left.is_zero() => {}
            _ => return,
        }
        assert!(Instant::now() < patience, "the lease does not end");
    }
}

async fn lapsed(store: &PostgresStore, request: &ClaimRequest) -> Hold {
    let hold = acquire(store, request).await;
    until_lapsed(store, request).await;
    hold
}

async fn at_once<T>(call: impl Future<Output = Result<T, StoreError>>) -> T {
    timeout(AT_ONCE, call).await.expect("it waits").unwrap()
}

fn is_in_progress(claimed: &Claimed) -> bool {
    matches!(claimed, Claimed::InProgress { attempt: 1, .. })
}

#[tokio::test]
async fn effect_and_answer_commit_together() {
    let place = with_effects().await;
    let (request, record) = (request(), fresh_record());
    let hold = acquire(&place.store, &request).await;
    let mut transaction = place.store.begin().await.unwrap();
    let fence = place.store.fence(&mut transaction, &hold).await;
    assert_eq!(fence.unwrap(), Fence::Held);
    execute(&mut *transaction, "INSERT INTO effect VALUES (1)").await;
    let completed = place
        .store
        .complete_in(&mut transaction, &hold, &record, RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Held);
    // Neither is seen by others yet.
    assert_eq!(effects(&place).await, 0);
    let seen = place.store.lookup(&request.id).await.unwrap().unwrap();
    assert!(matches!(seen.phase, Phase::Running { .. }));

    PostgresStore::commit(transaction).await.unwrap();
    assert_eq!(effects(&place).await, 1);
    let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
    assert_eq!(
        claimed,
        Claimed::Completed {
            attempt: 1,
            record: record.clone()
        }
    );
    // So does its owner learn of it, if the answer to the commit was lost.
    let claimed = place.store.claim(&request).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
}

#[tokio::test]
async fn a_transaction_that_is_dropped_leaves_neither_effect_nor_answer() {
    let place = with_effects().await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let mut transaction = place.store.begin().await.unwrap();
    execute(&mut *transaction, "INSERT INTO effect VALUES (1)").await;
    let completed = place
        .store
        .complete_in(&mut transaction, &hold, &fresh_record(), RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Held);
    drop(transaction);
    // The lock goes with the rollback, which nobody waits for.
    let extended = at_once(place.store.extend(&hold, RETENTION, RETENTION)).await;
    assert_eq!(extended, Ownership::Held);
    assert_eq!(effects(&place).await, 0);
    assert_eq!(acquire(&place.store, &request).await, hold);
}

#[tokio::test]
async fn a_claim_that_meets_open_transactions_past_their_leases_is_told_so_at_once() {
    let server = quiet(&[("log_statement", "all")]).await;
    let place = Place::at(server.options()).await;
    let keys = 20;
    let options = PgPoolOptions::new().max_connections(2 * keys);
    let pool = options.connect_with(place.options.clone()).await.unwrap();
    let store = PostgresStore::new(pool);
    let mut open = Vec::new();
    for key in 0..keys {
        // Whatever the end of the lease means, and by whatever it is locked.
        let request = if key % 2 == 0 {
            brief()
        } else {
            sealing(brief())
        };
        let hold = lapsed(&store, &request).await;
        let mut transaction = store.begin().await.unwrap();
        let fence = match key % 4 < 2 {
            true => store.fence(&mut transaction, &hold).await,
            false => {
                let record = fresh_record();
                store
                    .complete_in(&mut transaction, &hold, &record, RETENTION)
                    .await
            }
        };
        assert_eq!(fence.unwrap(), Fence::Held);
        open.push((request, transaction));
    }
    for (request, _) in &open {
        // Of its owner, of a retry, and once more.
        for claim in [request.clone(), retry_of(request), retry_of(request)] {
            let before = statements(&server);
            let claimed = at_once(store.claim(&claim)).await;
            assert!(is_in_progress(&claimed), "{claimed:?}");
            // A lock that may pass is looked at many times more.
            let looks = statements(&server) - before;
            assert!(looks <= 8, "{looks}");
        }
        let claimed = at_once(store.claim(&misuse_of(request))).await;
        assert_eq!(claimed, Claimed::Mismatch);
        assert_eq!(at_once(store.forget(&request.id)).await, Forgot::Live);
        assert!(at_once(store.lookup(&request.id)).await.is_some());
        assert_eq!(at_once(store.purge_expired(100)).await, 0);
    }
}

#[tokio::test]
async fn once_the_transaction_has_ended_a_claim_tells_how() {
    let place = with_effects().await;
    let store = &place.store;
    for commits in [true, false] {
        let (request, record) = (brief(), fresh_record());
        let hold = lapsed(store, &request).await;
        let mut transaction = store.begin().await.unwrap();
        let fence = store.fence(&mut transaction, &hold).await;
        assert_eq!(fence.unwrap(), Fence::Held);
        let completed = store
            .complete_in(&mut transaction, &hold, &record, RETENTION)
            .await;
        assert_eq!(completed.unwrap(), Fence::Held);
        assert!(is_in_progress(&store.claim(&request).await.unwrap()));
        if commits {
            PostgresStore::commit(transaction).await.unwrap();
            let claimed = store.claim(&request).await.unwrap();
            assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
        } else {
            transaction.rollback().await.unwrap();
            assert_eq!(acquire(store, &request).await, hold);
        }
    }
}

/// The first run is done, and has not committed, when the second one asks.
#[tokio::test]
async fn a_zombie_that_is_first_commits_and_the_second_run_never_begins() {
    let place = with_effects().await;
    let store = &place.store;
    let (request, record) = (brief(), fresh_record());
    let hold = lapsed(store, &request).await;
    let mut zombie = store.begin().await.unwrap();
    execute(&mut *zombie, "INSERT INTO effect VALUES (1)").await;
    let completed = store
        .complete_in(&mut zombie, &hold, &record, RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Held);
    let retry = retry_of(&request);
    assert!(is_in_progress(&store.claim(&retry).await.unwrap()));
    PostgresStore::commit(zombie).await.unwrap();
    let claimed = store.claim(&retry).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
    assert_eq!(effects(&place).await, 1);
}

#[tokio::test]
async fn a_zombie_that_was_taken_over_learns_it_and_its_effect_is_undone() {
    let place = with_effects().await;
    let store = &place.store;
    let request = brief();
    let hold = lapsed(store, &request).await;
    let mut zombie = store.begin().await.unwrap();
    execute(&mut *zombie, "INSERT INTO effect VALUES (1)").await;
    let mut retry = retry_of(&request);
    retry.lease = RETENTION;
    let successor = acquire(store, &retry).await;
    assert_eq!(successor.attempt, 2);

    let fence = store.fence(&mut zombie, &hold).await;
    assert_eq!(fence.unwrap(), Fence::Lost);
    let completed = store
        .complete_in(&mut zombie, &hold, &fresh_record(), RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Lost);
    drop(zombie);
    let record = fresh_record();
    let completed = store.complete(&successor, &record, RETENTION).await;
    assert_eq!(completed.unwrap(), Completion::Stored);
    assert_eq!(effects(&place).await, 0);
}

/// The fence of the first run waits for the claim that takes it over.
#[tokio::test]
async fn a_fence_that_waits_for_a_take_over_is_lost() {
    let place = Place::new().await;
    let store = &place.store;
    let request = brief();
    let hold = lapsed(store, &request).await;
    let mut other = place.pool.begin().await.unwrap();
    let take = format!(
        "UPDATE idempotency_record SET owner = decode('{}', 'hex'), attempt = 2",
        "77".repeat(16)
    );
    execute(&mut *other, &take).await;
    let mut zombie = store.begin().await.unwrap();
    let zombie_id: i32 = scalar(&mut *zombie, "SELECT pg_backend_pid()").await;
    let fence = store.fence(&mut zombie, &hold);
    let commits = async {
        until_waiting(&place, zombie_id).await;
        other.commit().await.unwrap();
    };
    let (fence, ()) = tokio::join!(fence, commits);
    assert_eq!(fence.unwrap(), Fence::Lost);
}

/// A single statement of somebody else holds the row while its commit takes its time.
#[tokio::test]
async fn a_claim_that_meets_a_claim_under_way_waits_and_tells_what_became_of_it() {
    let server = quiet(&[("log_statement", "all")]).await;
    let place = Place::at(server.options()).await;
    let store = &place.store;
    let request = brief();
    lapsed(store, &request).await;
    let mut other = place.pool.begin().await.unwrap();
    let take = "UPDATE idempotency_record \
                SET attempt = 2, lease_until = now() + interval '1 minute'";
    execute(&mut *other, take).await;
    let before = statements(&server);
    let commits = async {
        let patience = Instant::now() + AT_ONCE;
        // An open transaction would have been told of by now.
        while statements(&server) < before + 8 {
            assert!(Instant::now() < patience, "it is not looked at again");
            tokio::task::yield_now().await;
        }
        other.commit().await.unwrap();
    };
    let retry = retry_of(&request);
    let (claimed, ()) = tokio::join!(store.claim(&retry), commits);
    let claimed = claimed.unwrap();
    assert!(
        matches!(claimed, Claimed::InProgress { attempt: 2, .. }),
        "{claimed:?}"
    );
}

async fn until_waiting(place: &Place, backend: i32) {
    let patience = Instant::now() + AT_ONCE;
    let query = format!("SELECT cardinality(pg_blocking_pids({backend}))");
    while scalar::<i32>(&place.pool, &query).await == 0 {
        assert!(Instant::now() < patience, "it does not wait");
    }
}

#[tokio::test]
async fn what_the_store_does_not_know_is_told_from_what_was_lost() {
    let place = Place::new().await;
    let store = &place.store;
    let unknown = request().hold(1);
    let mut transaction = store.begin().await.unwrap();
    let fence = store.fence(&mut transaction, &unknown).await;
    assert_eq!(fence.unwrap(), Fence::Unknown);
    let completed = store
        .complete_in(&mut transaction, &unknown, &fresh_record(), RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Unknown);
    drop(transaction);
    assert_eq!(store.lookup(&unknown.id).await.unwrap(), None);

    // A run that is over is lost to its owner too.
    let hold = acquire(store, &request()).await;
    let completed = store.complete(&hold, &fresh_record(), RETENTION).await;
    assert_eq!(completed.unwrap(), Completion::Stored);
    let mut transaction = store.begin().await.unwrap();
    let fence = store.fence(&mut transaction, &hold).await;
    assert_eq!(fence.unwrap(), Fence::Lost);
    let completed = store
        .complete_in(&mut transaction, &hold, &fresh_record(), RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Lost);
}

/// What would be a transaction of its own commits with nothing.
#[tokio::test]
async fn an_answer_outside_of_any_transaction_is_refused() {
    let place = Place::new().await;
    let (request, record) = (request(), fresh_record());
    let hold = acquire(&place.store, &request).await;
    for store in [
        place.store.clone(),
        place.store.clone().persistent_statements(false),
    ] {
        let mut connection = place.pool.acquire().await.unwrap();
        let completed = store
            .complete_in(&mut connection, &hold, &record, RETENTION)
            .await;
        assert_eq!(completed.unwrap(), Fence::NoTransaction);
        assert_eq!(acquire(&store, &request).await, hold);
    }
    // One that has only been opened is one all the same.
    let mut transaction = place.store.begin().await.unwrap();
    let completed = place
        .store
        .complete_in(&mut transaction, &hold, &record, RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Held);
    PostgresStore::commit(transaction).await.unwrap();
    let claimed = place.store.claim(&request).await.unwrap();
    assert!(matches!(claimed, Claimed::Completed { .. }));
}

async fn fails(connection: &mut PgConnection, statement: &'static str) {
    sqlx::query(statement)
        .execute(connection)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_commit_that_rolls_back_is_never_taken_for_one() {
    let place = with_effects().await;
    let store = &place.store;
    let (request, record) = (request(), fresh_record());
    let hold = acquire(store, &request).await;
    let mut transaction = store.begin().await.unwrap();
    let completed = store
        .complete_in(&mut transaction, &hold, &record, RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Held);
    // An error that the handler made light of: from here on COMMIT means ROLLBACK.
    fails(&mut transaction, "SELECT no_such_column").await;
    let error = PostgresStore::commit(transaction).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NotApplied, "{error:?}");
    assert_eq!(acquire(store, &request).await, hold);

    // The same before the answer is written.
    let mut transaction = store.begin().await.unwrap();
    fails(&mut transaction, "SELECT no_such_column").await;
    let completed = store
        .complete_in(&mut transaction, &hold, &record, RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::NoTransaction);
}

#[tokio::test]
async fn a_commit_that_the_database_refuses_was_not_applied() {
    let place = with_effects().await;
    let table = "CREATE TABLE detail (of int REFERENCES effect DEFERRABLE INITIALLY DEFERRED)";
    execute(&place.pool, table).await;
    let store = &place.store;
    let request = request();
    let hold = acquire(store, &request).await;
    let mut transaction = store.begin().await.unwrap();
    execute(&mut *transaction, "INSERT INTO detail VALUES (404)").await;
    let completed = store
        .complete_in(&mut transaction, &hold, &fresh_record(), RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Held);
    let error = PostgresStore::commit(transaction).await.unwrap_err();
    // A constraint of the handler's own.
    assert_ne!(error.kind(), StoreErrorKind::Ambiguous, "{error:?}");
    assert_eq!(acquire(store, &request).await, hold);
}

#[tokio::test]
async fn a_commit_whose_connection_was_ended_is_ambiguous() {
    let place = with_effects().await;
    let store = &place.store;
    let hold = acquire(store, &request()).await;
    let mut transaction = store.begin().await.unwrap();
    let completed = store
        .complete_in(&mut transaction, &hold, &fresh_record(), RETENTION)
        .await;
    assert_eq!(completed.unwrap(), Fence::Held);
    let backend: i32 = scalar(&mut *transaction, "SELECT pg_backend_pid()").await;
    let end = format!("SELECT pg_terminate_backend({backend})");
    assert!(scalar::<bool>(&place.pool, &end).await);
    let error = PostgresStore::commit(transaction).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Ambiguous, "{error:?}");
}

/// The connection goes back to the pool without a transaction, and without a warning.
#[tokio::test]
async fn nothing_is_left_open_by_a_commit() {
    let server = PostgresServer::start_with(&[("fsync", "off")]).await;
    let place = Place::at(server.options()).await;
    let one = PgPoolOptions::new().max_connections(1);
    let pool = one.connect_with(place.options.clone()).await.unwrap();
    let store = PostgresStore::new(pool.clone());
    for _ in 0..3 {
        let hold = acquire(&store, &request()).await;
        let mut transaction = store.begin().await.unwrap();
        let completed = store
            .complete_in(&mut transaction, &hold, &fresh_record(), RETENTION)
            .await;
        assert_eq!(completed.unwrap(), Fence::Held);
        PostgresStore::commit(transaction).await.unwrap();
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                     AND state LIKE 'idle in transaction%'";
        assert_eq!(scalar::<i64>(&pool, query).await, 0);
        let query = "SELECT count(*) FROM idempotency_record WHERE state <> 1";
        assert_eq!(scalar::<i64>(&pool, query).await, 0);
    }
    let log = server.log();
    assert!(!log.contains("WARNING"), "{log}");
}

#[tokio::test]
async fn transactions_work_under_strict_isolation_levels() {
    let place = with_effects().await;
    for level in ["repeatable read", "serializable"] {
        let options = place.options.clone();
        let options = options.options([("default_transaction_isolation", level)]);
        let pool = PgPoolOptions::new().connect_with(options).await.unwrap();
        let store = PostgresStore::new(pool);
        let (request, record) = (request(), fresh_record());
        let hold = acquire(&store, &request).await;
        let mut transaction = store.begin().await.unwrap();
        let fence = store.fence(&mut transaction, &hold).await;
        assert_eq!(fence.unwrap(), Fence::Held);
        let completed = store
            .complete_in(&mut transaction, &hold, &record, RETENTION)
            .await;
        assert_eq!(completed.unwrap(), Fence::Held);
        PostgresStore::commit(transaction).await.unwrap();
        let claimed = store.claim(&retry_of(&request)).await.unwrap();
        assert_eq!(claimed, Claimed::Completed { attempt: 1, record });

        // One that has looked around before a take-over is refused, and was not applied.
        let request = brief();
        let hold = lapsed(&store, &request).await;
        let mut zombie = store.begin().await.unwrap();
        assert_eq!(
            scalar::<i64>(&mut *zombie, "SELECT count(*) FROM effect").await,
            0
        );
        acquire(&store, &retry_of(&request)).await;
        let error = store.fence(&mut zombie, &hold).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::NotApplied, "{error:?}");
    }
}
