use std::path::PathBuf;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Executor, SqlitePool};
use tower_idempotency::store::{ClaimRequest, Record, RecordId, SqliteStore};

use crate::Engine;

pub(crate) struct Sqlite {
    pool: SqlitePool,
    stores: [SqliteStore; 2],
    directory: PathBuf,
}

const TABLES: [&str; 2] = ["small", "large"];

/// What a claim that finds nothing comes to.
const FIND: &str = "SELECT fingerprint, owner, attempt, state, seals, lease_until, expires_at, \
                    CASE WHEN state = 1 AND fingerprint = ?2 THEN record END \
                    FROM small WHERE id = ?1";
const CLAIM: &str = "INSERT INTO small (id, fingerprint, owner, attempt, state, seals, \
                     lease_until, created_at, expires_at, purge_after) \
                     VALUES (?1, ?2, ?3, 1, 0, ?4, $NOW + ?5, $NOW, $NOW + ?6, $NOW + ?6) \
                     ON CONFLICT (id) DO UPDATE SET owner = excluded.owner \
                     WHERE small.expires_at <= $NOW RETURNING attempt";
const COMPLETE: &str = "UPDATE small SET state = 1, record = ?3, expires_at = $NOW + ?4 \
                        WHERE id = ?1 AND owner = ?2 AND state = 0 AND expires_at > $NOW \
                        RETURNING abs(purge_after - expires_at) > 3600000";
const NOW: &str = "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)";

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn execute(pool: &SqlitePool, statements: &str) {
    let done = pool.execute(AssertSqlSafe(statements)).await;
    done.expect("SQLite does it");
}

impl Engine for Sqlite {
    const NAME: &str = "SQLite";
    type Store = SqliteStore;
    type Connection = SqliteConnection;

    async fn start(rows: [u64; 2]) -> Self {
        let directory = std::env::temp_dir().join(format!("sql-stores-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("there is a folder for it");
        let options = SqliteConnectOptions::new()
            .filename(directory.join("bench.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(30));
        let pool = SqlitePoolOptions::new()
            .max_connections(32)
            .connect_with(options);
        let pool = pool.await.expect("the file can be opened");
        let stores = TABLES.map(|table| {
            let store = SqliteStore::new(pool.clone()).table(table);
            store.expect("the table has a name")
        });
        for (at, store) in stores.iter().enumerate() {
            store.migrate().await.expect("the table is made");
            let (table, rows) = (TABLES[at], rows[at]);
            let fill = format!(
                "INSERT INTO {table} (id, fingerprint, owner, attempt, state, seals, lease_until, \
                 created_at, expires_at, purge_after, record) \
                 WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows}) \
                 SELECT randomblob(32), zeroblob(32), zeroblob(16), 1, 1, 0, {NOW}, {NOW}, \
                 {NOW} + 86400000 + n % 86400 * 1000, {NOW} + 86400000 + n % 86400 * 1000, \
                 randomblob(340) FROM n"
            );
            execute(&pool, &fill).await;
        }
        execute(
            &pool,
            "CREATE TABLE ledger (number INTEGER PRIMARY KEY, cents INTEGER); ANALYZE",
        )
        .await;
        Self {
            pool,
            stores,
            directory,
        }
    }

    fn store(&self, table: usize) -> &SqliteStore {
        &self.stores[table]
    }

    async fn fresh(&self, request: &ClaimRequest, record: &Record) {
        let lease = request.lease.as_millis() as i64;
        let retention = request.retention.as_millis() as i64;
        let (id, owner) = (&request.id.as_bytes()[..], &request.owner.as_bytes()[..]);
        let fingerprint = &request.fingerprint.as_bytes()[..];
        let found = sqlx::query(FIND)
            .bind(id)
            .bind(fingerprint)
            .fetch_optional(&self.pool)
            .await;
        assert!(found.expect("SQLite reads").is_none());
        let claim = CLAIM.replace("$NOW", NOW);
        let claim = sqlx::query(AssertSqlSafe(claim))
            .bind(id)
            .bind(fingerprint)
            .bind(owner)
            .bind(false)
            .bind(lease)
            .bind(lease + retention);
        let claimed = claim.fetch_all(&self.pool).await.expect("SQLite claims");
        assert_eq!(claimed.len(), 1);
        let complete = COMPLETE.replace("$NOW", NOW);
        let complete = sqlx::query(AssertSqlSafe(complete))
            .bind(id)
            .bind(owner)
            .bind(record.as_bytes())
            .bind(retention);
        let completed = complete
            .fetch_all(&self.pool)
            .await
            .expect("SQLite completes");
        assert_eq!(completed.len(), 1);
    }

    async fn read(&self, id: &RecordId) -> usize {
        let read = sqlx::query_scalar::<_, Vec<u8>>("SELECT record FROM small WHERE id = ?");
        let read = read.bind(&id.as_bytes()[..]).fetch_one(&self.pool).await;
        read.expect("the record is there").len()
    }

    async fn insert(connection: &mut SqliteConnection) {
        let insert = connection.execute("INSERT INTO ledger (cents) VALUES (1999)");
        insert.await.expect("SQLite inserts");
    }

    async fn transfer(&self) {
        let begun = self.pool.begin_with("BEGIN IMMEDIATE").await;
        let mut transaction = begun.expect("it begins");
        Self::insert(&mut transaction).await;
        transaction.commit().await.expect("it commits");
    }

    async fn expire(&self, table: usize, records: u64) {
        let table = TABLES[table];
        let expire = format!(
            "UPDATE {table} SET expires_at = {NOW} - 1, purge_after = {NOW} - 1 WHERE rowid IN \
             (SELECT rowid FROM {table} WHERE owner = zeroblob(16) LIMIT {records})"
        );
        execute(&self.pool, &expire).await;
    }
}
