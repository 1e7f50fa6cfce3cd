//! What is said of a call that the server refuses.

use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tower_idempotency::store::{
    Claimed, KeyStore, PostgresStore, StoreError, StoreErrorKind, TransactionalStore,
};

use crate::support::postgres::{PostgresServer, execute, pool_at, scalar};
use crate::{Place, RETENTION, acquire, complete, fresh_record, request, retry_of};

fn kind<T: std::fmt::Debug>(refused: Result<T, StoreError>) -> StoreErrorKind {
    let error = refused.unwrap_err();
    assert!(std::error::Error::source(&error).is_some(), "{error:?}");
    error.kind()
}

async fn store_at(options: PgConnectOptions) -> PostgresStore {
    PostgresStore::new(pool_at(options).await)
}

/// Not connected yet. A server that is there refuses long before that time is over.
fn store_to_be(options: PgConnectOptions) -> PostgresStore {
    let patient = PgPoolOptions::new().acquire_timeout(Duration::from_secs(20));
    PostgresStore::new(patient.connect_lazy_with(options))
}

#[tokio::test]
async fn a_server_that_is_read_only_applies_nothing() {
    let place = Place::new().await;
    let done = request();
    complete(&place.store, &done, &fresh_record()).await;
    let read_only = [("default_transaction_read_only", "on")];
    let store = store_at(place.options.clone().options(read_only)).await;
    let hold = &done.hold(1);
    assert_eq!(
        kind(store.claim(&request()).await),
        StoreErrorKind::NotApplied
    );
    assert_eq!(
        kind(store.extend(hold, RETENTION, RETENTION).await),
        StoreErrorKind::NotApplied
    );
    assert_eq!(
        kind(store.fail(hold, true, RETENTION).await),
        StoreErrorKind::NotApplied
    );
    assert_eq!(kind(store.release(hold).await), StoreErrorKind::NotApplied);
    assert_eq!(
        kind(store.forget(&done.id).await),
        StoreErrorKind::NotApplied
    );
    assert_eq!(
        kind(store.purge_expired(1).await),
        StoreErrorKind::NotApplied
    );
    assert!(store.lookup(&done.id).await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_not_set_up_is_misconfigured() {
    let place = Place::new().await;
    let options = || place.options.clone();
    let misconfigured = [
        ("no table", place.store.clone().table("missing").unwrap()),
        ("no schema", place.store.clone().schema("missing").unwrap()),
        ("no database", store_to_be(options().database("missing"))),
        ("no user", store_to_be(options().username("missing"))),
    ];
    for (what, store) in misconfigured {
        let claimed = store.claim(&request()).await;
        assert_eq!(kind(claimed), StoreErrorKind::Misconfigured, "{what}");
    }
    let user = format!("clerk_{}", options().get_database().unwrap());
    execute(&place.pool, &format!("CREATE ROLE {user} LOGIN")).await;
    let clerk = store_at(options().username(&user)).await;
    assert_eq!(
        kind(clerk.claim(&request()).await),
        StoreErrorKind::Misconfigured
    );
}

#[tokio::test]
async fn a_pool_without_a_free_connection_applies_nothing() {
    let place = Place::new().await;
    let one = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_millis(100));
    let pool = one.connect_with(place.options.clone()).await.unwrap();
    let store = PostgresStore::new(pool.clone());
    let _taken = pool.acquire().await.unwrap();
    assert_eq!(
        kind(store.claim(&request()).await),
        StoreErrorKind::NotApplied
    );
    assert_eq!(kind(store.begin().await), StoreErrorKind::NotApplied);
}

#[tokio::test]
async fn a_server_with_too_many_clients_applies_nothing() {
    let server = PostgresServer::start_with(&[
        ("max_connections", "6"),
        ("superuser_reserved_connections", "0"),
    ])
    .await;
    let place = Place::at(server.options()).await;
    let mut taken = Vec::new();
    while let Ok(connection) = server.options().connect().await {
        taken.push(connection);
    }
    // The driver tries to connect for as long as it may.
    let hasty = PgPoolOptions::new().acquire_timeout(Duration::from_secs(1));
    let store = PostgresStore::new(hasty.connect_lazy_with(server.options()));
    assert_eq!(
        kind(store.claim(&request()).await),
        StoreErrorKind::NotApplied
    );
    drop((place, taken));
}

/// The call that waits for a lock is one that the server gives up.
#[tokio::test]
async fn a_statement_that_the_server_gave_up_was_not_applied() {
    let place = Place::new().await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let options = place
        .options
        .clone()
        .options([("statement_timeout", "100")]);
    let store = store_at(options).await;
    let mut open = place.store.begin().await.unwrap();
    place.store.fence(&mut open, &hold).await.unwrap();
    let record = fresh_record();
    let completed = store.complete(&hold, &record, RETENTION).await;
    assert_eq!(kind(completed), StoreErrorKind::NotApplied);
    let options = place.options.clone().options([("lock_timeout", "10")]);
    let failed = store_at(options).await.fail(&hold, true, RETENTION).await;
    assert_eq!(kind(failed), StoreErrorKind::NotApplied);
    drop(open);
    let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
    assert!(matches!(claimed, Claimed::InProgress { attempt: 1, .. }));
}

/// `OutagePolicy::RunUnprotected` runs what was certainly not applied, and somebody may be at
/// work under that key.
#[tokio::test]
async fn a_claim_that_has_seen_a_run_is_ambiguous_when_it_fails() {
    let place = Place::new().await;
    let mut seen = request();
    seen.lease = Duration::from_millis(1);
    let hold = acquire(&place.store, &seen).await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN RAISE 'given up' USING ERRCODE = '57014'; END $$; \
                  CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON idempotency_record \
                  FOR EACH ROW EXECUTE FUNCTION refuse()";
    execute(&place.pool, refuse).await;
    let retry = retry_of(&seen);
    let patience = std::time::Instant::now() + Duration::from_secs(10);
    let refused = loop {
        match place.store.claim(&retry).await {
            Ok(Claimed::InProgress { .. }) => assert!(std::time::Instant::now() < patience),
            other => break other,
        }
    };
    assert_eq!(kind(refused), StoreErrorKind::Ambiguous);
    // Where nobody has been seen, the same refusal is known to have applied nothing.
    let unseen = place.store.claim(&request()).await;
    assert_eq!(kind(unseen), StoreErrorKind::NotApplied);
    execute(&place.pool, "DROP TRIGGER refuse ON idempotency_record").await;
    assert_eq!(acquire(&place.store, &retry).await.attempt, 2);
    let late = place.store.release(&hold).await.unwrap();
    assert_eq!(late, tower_idempotency::store::Ownership::Lost);
}

#[tokio::test]
async fn a_disk_that_is_full_is_told_as_such() {
    let place = Place::new().await;
    let full = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                $$ BEGIN RAISE 'no space left' USING ERRCODE = '53100'; END $$; \
                CREATE TRIGGER refuse BEFORE INSERT ON idempotency_record \
                FOR EACH ROW EXECUTE FUNCTION refuse()";
    execute(&place.pool, full).await;
    assert_eq!(
        kind(place.store.claim(&request()).await),
        StoreErrorKind::Full
    );
}

/// The server ends the connection in the middle of a call, which may or may not be over.
#[tokio::test]
async fn a_call_whose_connection_was_ended_is_ambiguous() {
    let place = Place::new().await;
    let hold = acquire(&place.store, &request()).await;
    let mut open = place.store.begin().await.unwrap();
    place.store.fence(&mut open, &hold).await.unwrap();
    let record = fresh_record();
    let completed = place.store.complete(&hold, &record, RETENTION);
    let ends = async {
        let waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let patience = std::time::Instant::now() + Duration::from_secs(10);
        while sqlx::query(waiting)
            .fetch_all(&place.pool)
            .await
            .unwrap()
            .is_empty()
        {
            assert!(std::time::Instant::now() < patience, "it does not wait");
        }
    };
    let (completed, ()) = tokio::join!(completed, ends);
    assert_eq!(kind(completed), StoreErrorKind::Ambiguous);
}

#[tokio::test]
async fn a_crash_of_the_server_loses_nothing_that_it_has_acknowledged() {
    let server = PostgresServer::start().await;
    let place = Place::at(server.options()).await;
    let (running, done, record) = (request(), request(), fresh_record());
    let hold = acquire(&place.store, &running).await;
    complete(&place.store, &done, &record).await;
    server.kill();
    server.restart().await;
    let claimed = place.store.claim(&retry_of(&done)).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
    assert_eq!(acquire(&place.store, &running).await, hold);
    assert_eq!(
        scalar::<i64>(&place.pool, "SELECT count(*) FROM idempotency_record").await,
        2
    );
}
