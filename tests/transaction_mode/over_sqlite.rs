use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use ::sqlx::{SqlitePool, Transaction};
use tower_idempotency::TransactionError;
use tower_idempotency::store::SqliteStore;

use crate::engine::Engine;

pub struct Sqlite {
    pool: SqlitePool,
    store: SqliteStore,
    directory: PathBuf,
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Engine for Sqlite {
    type Store = SqliteStore;
    type Connection = SqliteConnection;
    type Own = Transaction<'static, ::sqlx::Sqlite>;

    async fn start() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("transaction-mode-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let options = SqliteConnectOptions::new()
            .filename(directory.join("test.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(8)
            .connect_with(options);
        let pool = pool.await.unwrap();
        let store = SqliteStore::new(pool.clone());
        store.migrate().await.unwrap();
        let ledger = "CREATE TABLE ledger (number INTEGER PRIMARY KEY, key TEXT NOT NULL)";
        ::sqlx::query(ledger).execute(&pool).await.unwrap();
        Self {
            pool,
            store,
            directory,
        }
    }

    fn store(&self) -> &SqliteStore {
        &self.store
    }

    async fn other_store(&self) -> SqliteStore {
        let store = SqliteStore::new(self.pool.clone())
            .table("elsewhere")
            .unwrap();
        store.migrate().await.unwrap();
        store
    }

    async fn insert(connection: &mut SqliteConnection, key: &str) -> Result<(), TransactionError> {
        let insert = ::sqlx::query("INSERT INTO ledger (key) VALUES (?)").bind(key);
        insert.execute(connection).await?;
        Ok(())
    }

    async fn ledger(&self) -> Vec<String> {
        let keys = ::sqlx::query_scalar("SELECT key FROM ledger ORDER BY number");
        keys.fetch_all(&self.pool).await.unwrap()
    }

    async fn own(&self) -> Self::Own {
        self.pool.begin_with("BEGIN IMMEDIATE").await.unwrap()
    }

    async fn commit(own: Self::Own) {
        own.commit().await.unwrap();
    }

    async fn rollback_by_hand(connection: &mut SqliteConnection) {
        ::sqlx::query("ROLLBACK").execute(connection).await.unwrap();
    }
}
