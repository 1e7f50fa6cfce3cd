//! A table of its own for each test, on one server for all tests of a program; or a file.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tower_idempotency::store::{
    AnyStore, ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, Ownership, Record,
    RecordId, Snapshot, StoreError,
};

use super::asking::ask;

/// The connections of a pool belong to the runtime that made them, and those of the tests end
/// with them. This one never does, and its time is never paused.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    })
}

fn wait_for<T: Send + 'static>(what: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::channel();
    runtime().spawn(async move { done.send(what.await) });
    result.recv().unwrap()
}

/// A store with its pool on that runtime, during whose calls no paused time passes.
struct Elsewhere<K>(Arc<K>);

impl<K: KeyStore> Elsewhere<K> {
    async fn ask<T, F>(&self, call: impl FnOnce(Arc<K>) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let call = call(Arc::clone(&self.0));
        ask(async { runtime().spawn(call).await.unwrap() }).await
    }
}

fn elsewhere<K: KeyStore>(store: K) -> AnyStore {
    AnyStore::new(Elsewhere(Arc::new(store)))
}

impl<K: KeyStore> KeyStore for Elsewhere<K> {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let request = request.clone();
        self.ask(async move |store| store.claim(&request).await)
            .await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.ask(async move |store| store.extend(&hold, lease, retention).await)
            .await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        let (hold, record) = (hold.clone(), record.clone());
        self.ask(async move |store| store.complete(&hold, &record, retention).await)
            .await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.ask(async move |store| store.fail(&hold, seal, retention).await)
            .await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        let hold = hold.clone();
        self.ask(async move |store| store.release(&hold).await)
            .await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        let id = *id;
        self.ask(async move |store| store.lookup(&id).await).await
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let id = *id;
        self.ask(async move |store| store.forget(&id).await).await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let (id, record) = (*id, record.clone());
        self.ask(async move |store| store.resolve(&id, &record, retention).await)
            .await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        self.ask(async move |store| store.purge_expired(at_most).await)
            .await
    }
}

#[cfg(feature = "postgres")]
pub mod postgres {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use sqlx::PgPool;
    use tokio::sync::OnceCell;
    use tower_idempotency::store::PostgresStore;

    use super::*;
    use crate::support::postgres::{pool_at, shared, url_of};

    /// A table of its own is made in a fraction of the time that a database takes.
    pub fn store_pair() -> (AnyStore, AnyStore) {
        static NODES: OnceCell<(PgPool, PgPool)> = OnceCell::const_new();
        static USED: AtomicUsize = AtomicUsize::new(0);
        let table = format!("records_{}", USED.fetch_add(1, Ordering::Relaxed));
        let node = move |pool: &PgPool| PostgresStore::new(pool.clone()).table(&table).unwrap();
        let (one, other) = wait_for(async move {
            let pool = async || pool_at(shared().await.options()).await;
            let nodes = NODES.get_or_init(async || (pool().await, pool().await));
            let (one, other) = nodes.await;
            node(one).migrate().await.unwrap();
            (node(one), node(other))
        });
        (elsewhere(one), elsewhere(other))
    }

    /// The URL of a database that nobody else uses.
    pub fn database() -> String {
        url_of(&wait_for(async { shared().await.database().await }))
    }
}

#[cfg(feature = "sqlite")]
pub mod sqlite {
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use sqlx::ConnectOptions;
    use sqlx::sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
    };
    use tower_idempotency::store::{Owner, SqliteStore};

    use super::*;

    pub fn store_pair() -> (AnyStore, AnyStore) {
        let file = file();
        let (one, other) = wait_for(async move { (store(&file).await, store(&file).await) });
        (elsewhere(one), elsewhere(other))
    }

    async fn store(file: &Path) -> SqliteStore {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Nothing here is to outlive the machine.
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(Duration::from_secs(20))
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new().max_connections(4);
        let store = SqliteStore::new(pool.connect_with(options).await.unwrap());
        store.migrate().await.unwrap();
        store
    }

    /// The URL of a database that nobody else uses.
    pub fn database() -> String {
        format!("sqlite://{}", file().display())
    }

    /// In a directory that is removed when the program ends, however it does.
    fn file() -> PathBuf {
        static DIRECTORY: OnceLock<(PathBuf, Child)> = OnceLock::new();
        static USED: AtomicUsize = AtomicUsize::new(0);
        let (directory, _) = DIRECTORY.get_or_init(|| {
            let random = u128::from_le_bytes(*Owner::random().unwrap().as_bytes());
            let directory = std::env::temp_dir().join(format!("sqlite-test-{random:x}"));
            std::fs::create_dir(&directory).unwrap();
            let mut remover = Command::new("sh");
            remover
                .args(["-c", "read -r line; rm -rf -- \"$1\"", "sh"])
                .arg(&directory)
                .stdin(Stdio::piped());
            std::os::unix::process::CommandExt::process_group(&mut remover, 0);
            let remover = remover.spawn().unwrap();
            (directory, remover)
        });
        directory.join(format!("{}.db", USED.fetch_add(1, Ordering::Relaxed)))
    }
}
