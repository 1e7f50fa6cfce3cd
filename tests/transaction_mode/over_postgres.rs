use ::sqlx::postgres::PgConnection;
use ::sqlx::{PgPool, Transaction};
use tower_idempotency::TransactionError;
use tower_idempotency::store::PostgresStore;

use crate::engine::Engine;
use crate::support::postgres;

pub struct Postgres {
    pub pool: PgPool,
    store: PostgresStore,
}

impl Postgres {
    pub async fn at(options: ::sqlx::postgres::PgConnectOptions) -> Self {
        let pool = postgres::pool_at(options).await;
        let store = PostgresStore::new(pool.clone());
        store.migrate().await.unwrap();
        let ledger = "CREATE TABLE IF NOT EXISTS ledger \
                      (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL)";
        postgres::execute(&pool, ledger).await;
        Self { pool, store }
    }
}

impl Engine for Postgres {
    type Store = PostgresStore;
    type Connection = PgConnection;
    type Own = Transaction<'static, ::sqlx::Postgres>;

    async fn start() -> Self {
        Self::at(postgres::shared().await.database().await).await
    }

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    async fn other_store(&self) -> PostgresStore {
        let store = PostgresStore::new(self.pool.clone())
            .table("elsewhere")
            .unwrap();
        store.migrate().await.unwrap();
        store
    }

    async fn insert(connection: &mut PgConnection, key: &str) -> Result<(), TransactionError> {
        let insert = ::sqlx::query("INSERT INTO ledger (key) VALUES ($1)").bind(key);
        insert.execute(connection).await?;
        Ok(())
    }

    async fn ledger(&self) -> Vec<String> {
        let keys = ::sqlx::query_scalar("SELECT key FROM ledger ORDER BY number");
        keys.fetch_all(&self.pool).await.unwrap()
    }

    async fn own(&self) -> Self::Own {
        self.pool.begin().await.unwrap()
    }

    async fn commit(own: Self::Own) {
        own.commit().await.unwrap();
    }

    async fn rollback_by_hand(connection: &mut PgConnection) {
        ::sqlx::query("ROLLBACK").execute(connection).await.unwrap();
    }
}
