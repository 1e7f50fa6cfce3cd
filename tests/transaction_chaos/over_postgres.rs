use std::sync::Arc;
use std::time::Duration;

use ::sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use tokio::time::{Instant, sleep};
use tower_idempotency::TransactionError;
use tower_idempotency::store::{self, PostgresStore};

use crate::chance::Chance;
use crate::clients::{self, KEYS, are_content_with, assert_each_once};
use crate::handlers::Bank;
use crate::node::{CONNECTIONS, Node};
use crate::support::postgres::{PostgresServer, execute, scalar};
use crate::support::proxy::{Proxy, Strike};
use crate::trail::Trail;

impl Bank for PostgresStore {
    async fn insert(connection: &mut PgConnection, key: &str) -> Result<(), TransactionError> {
        let insert = ::sqlx::query("INSERT INTO ledger (key) VALUES ($1)").bind(key);
        insert.execute(connection).await?;
        Ok(())
    }
}

/// What differs from one test to the other.
struct Setting {
    isolation: &'static str,
    is_prepared: bool,
    network: Network,
}

#[derive(Clone, Copy, PartialEq)]
enum Network {
    Whole,
    /// Requests and replies are lost with their connections, or late.
    Breaks,
    /// And replies without anything that tells.
    FallsSilent,
}

/// Which requests may get no answer at all: a handler's row, commit and rollback. Not all: the
/// driver's last look at a connection that comes back to its pool has no limit, and a pool
/// would miss such a connection for ever.
const MAY_FALL_SILENT: [&str; 3] = ["key-", "COMMIT", "ROLLBACK"];

async fn harm(proxy: Arc<Proxy>, network: Network, chance: Chance) {
    loop {
        sleep(chance.up_to(30)).await;
        if proxy.pending_strikes() > 0 {
            continue;
        }
        let strikes = [
            Strike::CutRequest,
            Strike::DropReply,
            Strike::CutInMidReply(chance.below(20)),
        ];
        match chance.below(4) {
            0 => proxy.strike_only("COMMIT", chance.of(&strikes)),
            1 => proxy.strike(chance.of(&strikes)),
            2 if network == Network::FallsSilent => {
                proxy.strike_only(chance.of(&MAY_FALL_SILENT), Strike::DropReplySilently);
            }
            _ => {
                proxy.delay_replies(chance.up_to(100));
                sleep(Duration::from_millis(50)).await;
                proxy.pass();
            }
        }
    }
}

async fn each_key_is_transferred_once(setting: Setting) {
    let (chance, _told) = Chance::new();
    let trail = Trail::default();
    let server = PostgresServer::start_with(&[
        ("fsync", "off"),
        ("default_transaction_isolation", setting.isolation),
    ])
    .await;
    let direct = server.pool().await;
    let ledger = "CREATE TABLE ledger \
                  (number bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL)";
    execute(&direct, ledger).await;
    let proxy = Arc::new(Proxy::start(server.addr()).await);
    let (mut pools, mut nodes) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let through = server.options().port(proxy.addr().port());
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_millis(400))
            .test_before_acquire(false)
            .after_release(store::postgres::after_release)
            .connect_with(through.options([("statement_timeout", "300")]))
            .await
            .unwrap();
        let store = PostgresStore::new(pool.clone()).persistent_statements(setting.is_prepared);
        store.migrate().await.unwrap();
        nodes.push(Node::new(store, &chance, &trail));
        pools.push(pool);
    }

    let harm = (setting.network != Network::Whole)
        .then(|| tokio::spawn(harm(proxy.clone(), setting.network, chance.clone())));
    clients::ask(&nodes, &chance, &trail).await;
    if let Some(harm) = harm {
        harm.abort();
        let ended = harm.await;
        assert!(ended.unwrap_err().is_cancelled());
    }
    proxy.pass();
    assert_eq!(
        proxy.cut_connections() > 0,
        setting.network != Network::Whole
    );

    until_whole(&pools, &direct).await;
    are_content_with(&nodes).await;
    let keys = ::sqlx::query_scalar("SELECT key FROM ledger");
    assert_each_once(keys.fetch_all(&direct).await.unwrap());
    let completed = "SELECT count(*) FROM idempotency_record WHERE state = 1";
    assert_eq!(scalar::<i64>(&direct, completed).await, KEYS as i64);
    let records = "SELECT count(*) FROM idempotency_record";
    assert_eq!(scalar::<i64>(&direct, records).await, KEYS as i64);
    until_no_transaction_is_open(&direct).await;
}

/// All connections of all pools are there again, and none of them is in a transaction.
async fn until_whole(pools: &[PgPool], direct: &PgPool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut sessions, mut held) = (Vec::new(), Vec::new());
    for pool in pools {
        let wanted = sessions.len() + CONNECTIONS as usize;
        while sessions.len() < wanted {
            // One may have been broken since.
            if let Ok(mut connection) = pool.acquire().await
                && let Ok(session) = session(&mut connection).await
            {
                sessions.push(session);
                held.push(connection);
            }
            let (size, missing) = (pool.size(), wanted - sessions.len());
            let now = Instant::now();
            assert!(now < deadline, "{missing} of {size} connections are lost");
        }
    }
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle' AND pid = ANY ($1)";
    let idle = ::sqlx::query_scalar(idle).bind(&sessions);
    let idle: i64 = idle.fetch_one(direct).await.unwrap();
    assert_eq!(usize::try_from(idle).unwrap(), sessions.len());
}

async fn session(connection: &mut PgConnection) -> Result<i32, ::sqlx::Error> {
    let session = ::sqlx::query_scalar("SELECT pg_backend_pid()");
    session.fetch_one(connection).await
}

/// At the server, where a lost connection leaves one until it is told.
async fn until_no_transaction_is_open(direct: &PgPool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    while scalar::<i64>(direct, open).await > 0 {
        assert!(Instant::now() < deadline, "a transaction is left open");
        sleep(Duration::from_millis(5)).await;
    }
}

const READ_COMMITTED: &str = "read committed";

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_key_is_transferred_once_on_a_whole_network() {
    each_key_is_transferred_once(Setting {
        isolation: READ_COMMITTED,
        is_prepared: true,
        network: Network::Whole,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_key_is_transferred_once_on_a_network_that_breaks() {
    each_key_is_transferred_once(Setting {
        isolation: READ_COMMITTED,
        is_prepared: true,
        network: Network::Breaks,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_key_is_transferred_once_on_a_network_that_falls_silent() {
    each_key_is_transferred_once(Setting {
        isolation: READ_COMMITTED,
        is_prepared: true,
        network: Network::FallsSilent,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_key_is_transferred_once_without_prepared_statements() {
    each_key_is_transferred_once(Setting {
        isolation: READ_COMMITTED,
        is_prepared: false,
        network: Network::FallsSilent,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_key_is_transferred_once_under_repeatable_read() {
    each_key_is_transferred_once(Setting {
        isolation: "repeatable read",
        is_prepared: true,
        network: Network::Breaks,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_key_is_transferred_once_under_serializable() {
    each_key_is_transferred_once(Setting {
        isolation: "serializable",
        is_prepared: true,
        network: Network::Breaks,
    })
    .await;
}
