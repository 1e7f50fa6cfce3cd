//! A database of its own for each test, and ways to it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tower_idempotency::store::SqliteStore;

/// A folder that is removed with it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("idempotency-sqlite-{}-{made}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("records.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How the documentation says that a file is to be opened.
pub(crate) fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
}

pub(crate) async fn pool(options: SqliteConnectOptions) -> SqlitePool {
    let pool = SqlitePoolOptions::new().max_connections(8);
    pool.connect_with(options).await.unwrap()
}

/// A file with tables in it, and a store on it.
pub(crate) struct Place {
    pub(crate) store: SqliteStore,
    pub(crate) pool: SqlitePool,
    pub(crate) folder: Folder,
}

impl Place {
    pub(crate) async fn new() -> Self {
        Self::with(|options| options).await
    }

    pub(crate) async fn with(
        change: impl FnOnce(SqliteConnectOptions) -> SqliteConnectOptions,
    ) -> Self {
        let folder = Folder::new();
        let pool = pool(change(options(&folder.file()))).await;
        let store = SqliteStore::new(pool.clone());
        store.migrate().await.unwrap();
        Self {
            store,
            pool,
            folder,
        }
    }

    /// The same file through a pool of its own, as another process has it.
    pub(crate) async fn other(&self) -> (SqliteStore, SqlitePool) {
        let pool = pool(options(&self.folder.file())).await;
        (SqliteStore::new(pool.clone()), pool)
    }
}
