use std::path::PathBuf;
use std::time::Duration;

use ::sqlx::SqlitePool;
use ::sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use tower_idempotency::TransactionError;
use tower_idempotency::store::SqliteStore;

use crate::chance::Chance;
use crate::clients::{self, KEYS, are_content_with, assert_each_once};
use crate::handlers::Bank;
use crate::node::{CONNECTIONS, Node};
use crate::trail::Trail;

const BUSY_TIMEOUT: Duration = Duration::from_millis(400);

impl Bank for SqliteStore {
    async fn insert(connection: &mut SqliteConnection, key: &str) -> Result<(), TransactionError> {
        let insert = ::sqlx::query("INSERT INTO ledger (key) VALUES (?)").bind(key);
        insert.execute(connection).await?;
        Ok(())
    }
}

struct Directory(PathBuf);

impl Directory {
    fn new(purpose: &str) -> Self {
        let name = format!("transaction-chaos-{purpose}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn scalar(pool: &SqlitePool, query: &'static str) -> i64 {
    ::sqlx::query_scalar(query).fetch_one(pool).await.unwrap()
}

async fn each_key_is_transferred_once(purpose: &str, mode: SqliteJournalMode) {
    let (chance, _told) = Chance::new();
    let trail = Trail::default();
    let directory = Directory::new(purpose);
    let options = SqliteConnectOptions::new()
        .filename(directory.0.join("test.db"))
        .create_if_missing(true)
        .journal_mode(mode)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT);
    let (mut pools, mut nodes) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_millis(400))
            .connect_with(options.clone())
            .await
            .unwrap();
        let store = SqliteStore::new(pool.clone());
        store.migrate().await.unwrap();
        nodes.push(Node::new(store, &chance, &trail));
        pools.push(pool);
    }
    let ledger = "CREATE TABLE ledger (number INTEGER PRIMARY KEY, key TEXT NOT NULL)";
    ::sqlx::query(ledger).execute(&pools[0]).await.unwrap();

    clients::ask(&nodes, &chance, &trail).await;

    are_content_with(&nodes).await;
    let keys = ::sqlx::query_scalar("SELECT key FROM ledger");
    assert_each_once(keys.fetch_all(&pools[0]).await.unwrap());
    let completed = "SELECT count(*) FROM idempotency_record WHERE state = 1";
    assert_eq!(scalar(&pools[0], completed).await, KEYS as i64);
    let records = "SELECT count(*) FROM idempotency_record";
    assert_eq!(scalar(&pools[0], records).await, KEYS as i64);
    for pool in &pools {
        are_as_they_were(pool).await;
    }
}

/// No connection is missing, in a transaction, or of less patience than it had.
async fn are_as_they_were(pool: &SqlitePool) {
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(pool.acquire().await.unwrap());
    }
    for connection in &mut all {
        let patience = ::sqlx::query_scalar("PRAGMA busy_timeout");
        let patience: i64 = patience.fetch_one(&mut **connection).await.unwrap();
        assert_eq!(u128::try_from(patience).unwrap(), BUSY_TIMEOUT.as_millis());
        for statement in ["BEGIN IMMEDIATE", "ROLLBACK"] {
            let run = ::sqlx::query(statement).execute(&mut **connection).await;
            run.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_key_is_transferred_once_with_a_write_ahead_log() {
    each_key_is_transferred_once("wal", SqliteJournalMode::Wal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_key_is_transferred_once_with_a_rollback_journal() {
    each_key_is_transferred_once("delete", SqliteJournalMode::Delete).await;
}
