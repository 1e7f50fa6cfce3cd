//! What a call that was given up half-way leaves behind in its pool: no open transaction, and
//! no connection that answers to nobody.

use std::time::Duration;

use ::sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::time::{Instant, sleep, timeout};
use tower_idempotency::store::{self, KeyStore, PostgresStore, RecordId, TransactionalStore};
use tower_idempotency::{IdempotencyLayer, SharedByAllCallers};

use crate::support::gates::until;
use crate::support::postgres::{PostgresServer, execute, scalar};
use crate::support::proxy::{Proxy, Strike};
use crate::support::{counting, post, send};

/// A server behind a proxy, and a pool through it.
struct Place {
    server: PostgresServer,
    proxy: Proxy,
    pool: PgPool,
}

impl Place {
    async fn new(options: PgPoolOptions) -> Self {
        let server = PostgresServer::start_with(&[("fsync", "off")]).await;
        let proxy = Proxy::start(server.addr()).await;
        let through = server.options().port(proxy.addr().port());
        let pool = options
            .test_before_acquire(false)
            .acquire_timeout(Duration::from_millis(500))
            .connect_with(through)
            .await
            .unwrap();
        let place = Self {
            server,
            proxy,
            pool,
        };
        place.until_idle().await;
        place
    }

    async fn until_idle(&self) {
        let is_idle = || self.pool.num_idle() as u32 == self.pool.size();
        until("all connections are back", is_idle).await;
    }

    /// What others see of what was written through the pool.
    async fn seen(&self, what: &str) -> i64 {
        let direct = self.server.pool().await;
        let seen = scalar(&direct, &format!("SELECT count(*) FROM {what}")).await;
        direct.close().await;
        seen
    }
}

fn one() -> PgPoolOptions {
    PgPoolOptions::new().max_connections(1)
}

/// As a layer with a time-out does, or a client that leaves: the request arrives, and nobody is
/// there for its answer.
async fn give_up<T>(proxy: &Proxy, call: impl Future<Output = T>) {
    proxy.delay_replies(Duration::from_millis(300));
    let given_up = timeout(Duration::from_millis(100), call).await;
    assert!(given_up.is_err(), "it was answered already");
    proxy.pass();
}

/// A request that is answered in a transaction of somebody else's runs again later.
#[tokio::test(flavor = "multi_thread")]
async fn a_begin_of_the_stores_own_that_was_given_up_poisons_no_pool() {
    let place = Place::new(one()).await;
    let store = PostgresStore::new(place.pool.clone());
    store.migrate().await.unwrap();
    place.until_idle().await;
    give_up(&place.proxy, store.begin()).await;

    let layer = IdempotencyLayer::new(store, SharedByAllCallers);
    let (service, runs) = counting(&layer);
    let answer = send(&service, post("k", "")).await;
    assert_eq!(answer.text(), "run 1", "{answer:?}");
    assert_eq!(place.seen("idempotency_record WHERE state = 1").await, 1);
    // As it ends after `max_lifetime`; and with it what was not committed.
    place.proxy.cut();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let retry = send(&service, post("k", "")).await;
        if retry.status.is_success() {
            assert!(retry.is_replay(), "{retry:?}");
            break;
        }
        assert!(Instant::now() < deadline, "{retry:?}");
    }
    assert_eq!(runs.get(), 1);
}

/// The driver does not know of the transaction; the hook asks the server.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_hook_a_begin_of_a_handlers_own_that_was_given_up_poisons_no_pool() {
    let place = Place::new(one().after_release(store::postgres::after_release)).await;
    execute(&place.pool, "CREATE TABLE written (number int)").await;
    place.until_idle().await;
    give_up(&place.proxy, place.pool.begin()).await;

    execute(&place.pool, "INSERT INTO written VALUES (1)").await;
    assert_eq!(place.seen("written").await, 1);
}

/// And a connection that has nothing to hide is not closed for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_hook_keeps_connections_that_are_as_they_should_be() {
    let place = Place::new(one().after_release(store::postgres::after_release)).await;
    execute(&place.pool, "CREATE TABLE written (number int)").await;
    for number in 0..5 {
        let mut transaction = place.pool.begin().await.unwrap();
        let insert = format!("INSERT INTO written VALUES ({number})");
        execute(&mut *transaction, &insert).await;
        match number {
            0 => transaction.commit().await.unwrap(),
            1 => transaction.rollback().await.unwrap(),
            // Rolled back while nobody waits.
            _ => drop(transaction),
        }
        let refused = ::sqlx::query("SELECT 1 / 0").execute(&place.pool).await;
        assert!(refused.is_err());
    }
    assert_eq!(place.seen("written").await, 1);
    assert_eq!(place.proxy.connections(), 1);
}

/// Whether the pool is of use again, after as many calls as it has connections got no answer,
/// and no end of their connection either.
async fn recovers_from<T>(part: &str, call: impl AsyncFn(PostgresStore) -> T) {
    let hooked = PgPoolOptions::new().after_release(store::postgres::after_release);
    let place = Place::new(hooked.max_connections(2)).await;
    let store = PostgresStore::new(place.pool.clone());
    store.migrate().await.unwrap();
    for number in 1..=2 {
        let left = || place.pool.num_idle() as u32 + number > place.pool.size();
        until("those that answer are back", left).await;
        place.proxy.strike_only(part, Strike::DropReplySilently);
        let given_up = timeout(Duration::from_millis(300), call(store.clone())).await;
        assert!(given_up.is_err(), "it was answered");
        assert_eq!(place.proxy.pending_strikes(), 0);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = store.lookup(&RecordId::from_bytes([0; 32])).await {
        assert!(Instant::now() < deadline, "{error:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_hook_a_pool_recovers_from_calls_without_an_answer() {
    let lookup = async |store: PostgresStore| store.lookup(&RecordId::from_bytes([1; 32])).await;
    recovers_from("SELECT", lookup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_hook_a_pool_recovers_from_transactions_that_did_not_begin() {
    recovers_from("BEGIN", async |store: PostgresStore| store.begin().await).await;
}
