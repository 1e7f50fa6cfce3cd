use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};
use tower_idempotency::store::{ClaimRequest, Lapse, PostgresStore, Record, RecordId};

use crate::Engine;
use crate::support::postgres::{PostgresServer, execute, scalar};

pub(crate) struct Postgres {
    pool: PgPool,
    stores: [PostgresStore; 2],
    claim: String,
    complete: String,
    // Last, so that the connections are gone before their server.
    _server: PostgresServer,
}

const TABLES: [&str; 2] = ["small", "large"];

impl Engine for Postgres {
    const NAME: &str = "PostgreSQL";
    type Store = PostgresStore;
    type Connection = PgConnection;

    async fn start(rows: [u64; 2]) -> Self {
        let server = PostgresServer::start().await;
        let pool = PgPoolOptions::new().max_connections(32);
        let pool = pool
            .connect_with(server.options())
            .await
            .expect("the server is there");
        let stores = TABLES.map(|table| {
            let store = PostgresStore::new(pool.clone()).table(table);
            store.expect("the table has a name")
        });
        for (at, store) in stores.iter().enumerate() {
            store.migrate().await.expect("the table is made");
            fill(&pool, TABLES[at], rows[at]).await;
        }
        execute(
            &pool,
            "CREATE TABLE ledger (number bigint GENERATED ALWAYS AS IDENTITY, cents bigint)",
        )
        .await;
        let [claim, complete] = statements(&server).await;
        Self {
            pool,
            stores,
            claim,
            complete,
            _server: server,
        }
    }

    fn store(&self, table: usize) -> &PostgresStore {
        &self.stores[table]
    }

    async fn fresh(&self, request: &ClaimRequest, record: &Record) {
        let lease = request.lease.as_millis() as i64;
        let retention = request.retention.as_millis() as i64;
        let claim = sqlx::query(AssertSqlSafe(self.claim.as_str()))
            .bind(&request.id.as_bytes()[..])
            .bind(&request.fingerprint.as_bytes()[..])
            .bind(&request.owner.as_bytes()[..])
            .bind(lease)
            .bind(lease + retention)
            .bind(request.lapse == Lapse::Seal);
        let claimed = claim
            .fetch_optional(&self.pool)
            .await
            .expect("the server claims");
        assert!(claimed.is_some());
        let complete = sqlx::query(AssertSqlSafe(self.complete.as_str()))
            .bind(&request.id.as_bytes()[..])
            .bind(&request.owner.as_bytes()[..])
            .bind(record.as_bytes())
            .bind(retention);
        let completed = complete
            .fetch_optional(&self.pool)
            .await
            .expect("the server completes");
        assert!(completed.is_some());
    }

    async fn read(&self, id: &RecordId) -> usize {
        let read = sqlx::query_scalar::<_, Vec<u8>>("SELECT record FROM small WHERE id = $1");
        let read = read.bind(&id.as_bytes()[..]).fetch_one(&self.pool).await;
        read.expect("the record is there").len()
    }

    async fn insert(connection: &mut PgConnection) {
        let insert = connection.execute("INSERT INTO ledger (cents) VALUES (1999)");
        insert.await.expect("the server inserts");
    }

    async fn transfer(&self) {
        let mut transaction = self.pool.begin().await.expect("it begins");
        Self::insert(&mut transaction).await;
        transaction.commit().await.expect("it commits");
    }

    async fn expire(&self, table: usize, records: u64) {
        let table = TABLES[table];
        let expire = format!(
            "UPDATE {table} SET expires_at = now(), purge_after = now() WHERE ctid = ANY (ARRAY(\
             SELECT ctid FROM {table} WHERE owner <> decode(repeat('03', 16), 'hex') LIMIT {records}))"
        );
        execute(&self.pool, &expire).await;
    }
}

/// Completed records whose ends are spread over a day.
async fn fill(pool: &PgPool, table: &str, rows: u64) {
    let fill = format!(
        "INSERT INTO {table} SELECT sha256(('{table}' || n)::bytea), sha256('f'::bytea), \
         decode(md5(n::text), 'hex'), 1, 1, false, now(), now(), \
         now() + n % 86400 * interval '1 second' + interval '1 day', \
         now() + n % 86400 * interval '1 second' + interval '1 day', \
         decode(repeat('78', 340), 'hex') FROM generate_series(1, {rows}) n"
    );
    execute(pool, &fill).await;
    execute(pool, &format!("VACUUM ANALYZE {table}")).await;
}

/// As the store sends them: a server tells what it has prepared.
async fn statements(server: &PostgresServer) -> [String; 2] {
    let one = PgPoolOptions::new().max_connections(1);
    let one = one
        .connect_with(server.options())
        .await
        .expect("the server is there");
    let store = PostgresStore::new(one.clone())
        .table("small")
        .expect("the table has a name");
    crate::fresh(&store, &crate::next(), &crate::record()).await;
    let prepared = async |like: &str| -> String {
        let find = format!(
            "SELECT statement FROM pg_prepared_statements WHERE statement LIKE '{like}' \
             AND statement NOT LIKE '%pg_prepared_statements%'"
        );
        scalar(&one, &find).await
    };
    [prepared("%born AS%").await, prepared("%record = $3%").await]
}
