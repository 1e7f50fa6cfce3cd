//! The effect: a row of a table beside the records.

use std::time::Duration;

use tower_idempotency::store::TransactionalStore;

const INSERT: &str = "INSERT INTO effect (key) VALUES ($1)";
const COUNT: &str = "SELECT COUNT(*) FROM effect WHERE key = $1";
const TABLE: &str = "CREATE TABLE effect (key TEXT NOT NULL)";

/// A busy machine is not taken for a fault.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) trait Ledger: TransactionalStore {
    async fn open(url: &str) -> Self;

    /// Once for every database, before a process uses it.
    async fn create(&self);

    fn insert(
        connection: &mut Self::Connection,
        key: &str,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    async fn count(connection: &mut Self::Connection, key: &str) -> i64;

    /// How often the effect of this key has happened.
    async fn effects(&self, key: &str) -> i64 {
        let mut transaction = self.begin().await.unwrap();
        Self::count(&mut transaction, key).await
    }
}

#[cfg(feature = "postgres")]
mod on_postgres {
    use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
    use tower_idempotency::store::{PostgresStore, TransactionalStore};

    use super::{COUNT, INSERT, Ledger, PATIENCE, TABLE};

    impl Ledger for PostgresStore {
        async fn open(url: &str) -> Self {
            let options: PgConnectOptions = url.parse().unwrap();
            let pool = PgPoolOptions::new()
                .max_connections(4)
                .acquire_timeout(PATIENCE);
            Self::new(pool.connect_with(options).await.unwrap())
        }

        async fn create(&self) {
            self.migrate().await.unwrap();
            let mut transaction = self.begin().await.unwrap();
            let create = sqlx::query(TABLE).execute(&mut *transaction);
            create.await.unwrap();
            Self::commit(transaction).await.unwrap();
        }

        async fn insert(connection: &mut PgConnection, key: &str) -> sqlx::Result<()> {
            sqlx::query(INSERT).bind(key).execute(connection).await?;
            Ok(())
        }

        async fn count(connection: &mut PgConnection, key: &str) -> i64 {
            let count = sqlx::query_scalar(COUNT).bind(key);
            count.fetch_one(connection).await.unwrap()
        }
    }
}

#[cfg(feature = "sqlite")]
mod on_sqlite {
    use sqlx::sqlite::{
        SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions,
        SqliteSynchronous,
    };
    use tower_idempotency::store::{SqliteStore, TransactionalStore};

    use super::{COUNT, INSERT, Ledger, PATIENCE, TABLE};

    impl Ledger for SqliteStore {
        async fn open(url: &str) -> Self {
            let options: SqliteConnectOptions = url.parse().unwrap();
            let options = options
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(PATIENCE);
            let pool = SqlitePoolOptions::new()
                .max_connections(4)
                .acquire_timeout(PATIENCE);
            Self::new(pool.connect_with(options).await.unwrap())
        }

        async fn create(&self) {
            self.migrate().await.unwrap();
            let mut transaction = self.begin().await.unwrap();
            let create = sqlx::query(TABLE).execute(&mut *transaction);
            create.await.unwrap();
            Self::commit(transaction).await.unwrap();
        }

        async fn insert(connection: &mut SqliteConnection, key: &str) -> sqlx::Result<()> {
            sqlx::query(INSERT).bind(key).execute(connection).await?;
            Ok(())
        }

        async fn count(connection: &mut SqliteConnection, key: &str) -> i64 {
            let count = sqlx::query_scalar(COUNT).bind(key);
            count.fetch_one(connection).await.unwrap()
        }
    }
}
