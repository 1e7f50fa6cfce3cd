//! What the calls cost: each is one statement that finds its row by the index, and what only
//! tells of a record writes nothing.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tower_idempotency::store::{
    Claimed, Completion, Forgot, KeyStore, Ownership, PostgresStore, TransactionalStore,
};

use crate::support::postgres::{PostgresServer, execute, scalar};
use crate::{
    Place, RETENTION, acquire, complete, fresh_record, misuse_of, request, retry_of, sealing,
};

/// A server on which nothing happens but what the test does.
pub(crate) async fn quiet(settings: &[(&str, &str)]) -> PostgresServer {
    let quiet = [("fsync", "off"), ("autovacuum", "off")];
    PostgresServer::start_with(&[&quiet[..], settings].concat()).await
}

async fn one_connection(options: &PgConnectOptions) -> PgPool {
    let one = PgPoolOptions::new().max_connections(1);
    one.connect_with(options.clone()).await.unwrap()
}

/// As many completed records, of which one in fifty has expired.
async fn fill(pool: &PgPool, rows: u32) {
    let fill = format!(
        "INSERT INTO idempotency_record \
         SELECT sha256(int4send(n)), sha256('f'), substr(sha256('o'), 1, 16), 1, 1, false, \
                now(), now(), until, until, sha256('record') \
         FROM generate_series(1, {rows}) n, \
         LATERAL (SELECT now() + CASE n % 50 WHEN 0 THEN -1 ELSE n END * interval '1 hour') \
                 AS at (until); \
         ANALYZE idempotency_record"
    );
    execute(pool, &fill).await;
}

/// Every call, so often that the server settles for one plan for all values.
async fn every_call(store: &PostgresStore) {
    for _ in 0..8 {
        let request = request();
        let hold = acquire(store, &request).await;
        let record = fresh_record();
        assert!(matches!(
            store.claim(&retry_of(&request)).await,
            Ok(Claimed::InProgress { .. })
        ));
        assert_eq!(
            store.claim(&misuse_of(&request)).await.unwrap(),
            Claimed::Mismatch
        );
        let extended = store.extend(&hold, RETENTION, RETENTION).await;
        assert_eq!(extended.unwrap(), Ownership::Held);
        let completed = store.complete(&hold, &record, RETENTION).await;
        assert_eq!(completed.unwrap(), Completion::Stored);
        let completed = store.complete(&hold, &record, RETENTION).await;
        assert_eq!(completed.unwrap(), Completion::Stored);
        assert!(matches!(
            store.claim(&retry_of(&request)).await,
            Ok(Claimed::Completed { .. })
        ));
        assert!(store.lookup(&request.id).await.unwrap().is_some());
        assert_eq!(store.forget(&request.id).await.unwrap(), Forgot::Forgotten);

        let failed = acquire(store, &self::request()).await;
        assert_eq!(
            store.fail(&failed, true, RETENTION).await.unwrap(),
            Ownership::Held
        );
        assert!(store.resolve(&failed.id, &record, RETENTION).await.unwrap());
        let released = acquire(store, &self::request()).await;
        assert_eq!(store.release(&released).await.unwrap(), Ownership::Held);
        assert_eq!(store.release(&released).await.unwrap(), Ownership::Lost);

        let hold = acquire(store, &sealing(self::request())).await;
        let mut transaction = store.begin().await.unwrap();
        store.fence(&mut transaction, &hold).await.unwrap();
        let completed = store
            .complete_in(&mut transaction, &hold, &record, RETENTION)
            .await;
        completed.unwrap();
        PostgresStore::commit(transaction).await.unwrap();
        assert_eq!(store.purge_expired(50).await.unwrap(), 50);
    }
}

#[tokio::test]
async fn no_statement_reads_the_whole_table() {
    let server = quiet(&[]).await;
    let place = Place::at(server.options()).await;
    fill(&place.pool, 50_000).await;
    for persistent in [true, false] {
        let explaining = place.options.clone().options([
            ("session_preload_libraries", "auto_explain"),
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_analyze", "on"),
            ("auto_explain.log_buffers", "on"),
        ]);
        let pool = one_connection(&explaining).await;
        let before = server.log().len();
        every_call(&PostgresStore::new(pool.clone()).persistent_statements(persistent)).await;
        pool.close().await;

        let log = &server.log()[before..];
        let plans = log.matches("Query Text:").count();
        assert!(plans > 8 * 19, "{plans} plans");
        assert!(
            log.contains("Index Scan using idempotency_record_pkey"),
            "{log}"
        );
        let purges = log
            .matches("Index Scan using idempotency_record_purge")
            .count();
        assert_eq!(purges, 8, "{log}");
        let scan = log.find("Seq Scan");
        assert!(
            scan.is_none(),
            "{}",
            &log[scan.unwrap().saturating_sub(4000)..]
        );
    }
}

/// The claim's own lines of a plan: at most that many pages are looked at, however large the
/// table.
#[tokio::test]
async fn a_replay_looks_at_a_handful_of_pages() {
    let server = quiet(&[]).await;
    let place = Place::at(server.options()).await;
    fill(&place.pool, 50_000).await;
    let explaining = place.options.clone().options([
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_buffers", "on"),
    ]);
    let store = PostgresStore::new(one_connection(&explaining).await);
    let request = request();
    complete(&store, &request, &fresh_record()).await;
    for _ in 0..8 {
        store.claim(&retry_of(&request)).await.unwrap();
    }
    let before = server.log().len();
    let claimed = store.claim(&retry_of(&request)).await.unwrap();
    assert!(matches!(claimed, Claimed::Completed { .. }));
    let log = server.log();
    let plan = &log[before..];
    let buffers = plan
        .lines()
        .find_map(|line| line.trim().strip_prefix("Buffers: shared hit="));
    let hits: u32 = buffers.unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(hits <= 8, "{plan}");
    assert!(!plan.contains("read="), "{plan}");
}

/// How many statements the server has been sent so far, of whatever protocol.
pub(crate) fn statements(server: &PostgresServer) -> usize {
    let log = server.log();
    log.matches("LOG:  execute ").count() + log.matches("LOG:  statement: ").count()
}

async fn sent<T>(server: &PostgresServer, call: impl Future<Output = T>) -> (usize, T) {
    let before = statements(server);
    let output = call.await;
    (statements(server) - before, output)
}

#[tokio::test]
async fn each_call_is_one_statement_and_two_at_most() {
    let server = quiet(&[("log_statement", "all")]).await;
    let place = Place::at(server.options()).await;
    let pool = one_connection(&place.options).await;
    for persistent in [true, false] {
        let store = &PostgresStore::new(pool.clone()).persistent_statements(persistent);
        let (one, record) = (request(), fresh_record());
        let hold = &one.hold(1);
        let retry = &retry_of(&one);
        assert_eq!(sent(&server, store.claim(&one)).await.0, 1);
        assert_eq!(sent(&server, store.claim(retry)).await.0, 1);
        assert_eq!(
            sent(&server, store.extend(hold, RETENTION, RETENTION))
                .await
                .0,
            1
        );
        assert_eq!(sent(&server, store.lookup(&one.id)).await.0, 1);
        assert_eq!(
            sent(&server, store.complete(hold, &record, RETENTION))
                .await
                .0,
            1
        );
        assert_eq!(sent(&server, store.claim(retry)).await.0, 1);
        // Only what has been settled before takes another one.
        assert_eq!(
            sent(&server, store.complete(hold, &record, RETENTION))
                .await
                .0,
            2
        );
        assert_eq!(sent(&server, store.release(hold)).await.0, 2);
        assert_eq!(sent(&server, store.forget(&one.id)).await.0, 1);

        let hold = &acquire(store, &request()).await;
        assert_eq!(sent(&server, store.fail(hold, true, RETENTION)).await.0, 1);
        assert_eq!(
            sent(&server, store.resolve(&hold.id, &record, RETENTION))
                .await
                .0,
            1
        );
        let hold = &acquire(store, &request()).await;
        assert_eq!(sent(&server, store.release(hold)).await.0, 1);
        assert_eq!(sent(&server, store.purge_expired(10)).await.0, 1);
        let restored = sent(
            &server,
            store.complete(&request().hold(1), &record, RETENTION),
        )
        .await;
        assert_eq!((restored.0, restored.1.unwrap()), (2, Completion::Restored));
    }
}

/// The number that the next transaction which writes, or locks a row, will have.
async fn next_writer(pool: &PgPool) -> String {
    let query = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
    scalar(pool, query).await
}

#[tokio::test]
async fn what_is_in_the_way_of_a_claim_is_neither_written_nor_locked() {
    let server = quiet(&[]).await;
    let place = Place::at(server.options()).await;
    let store = &place.store;
    let (running, failed, done) = (request(), request(), request());
    acquire(store, &running).await;
    let hold = acquire(store, &failed).await;
    store.fail(&hold, true, RETENTION).await.unwrap();
    complete(store, &done, &fresh_record()).await;

    let before = next_writer(&place.pool).await;
    for request in [&running, &failed, &done] {
        let claimed = store.claim(&retry_of(request)).await.unwrap();
        assert!(
            !matches!(claimed, Claimed::Acquired(_) | Claimed::Mismatch),
            "{claimed:?}"
        );
        let claimed = store.claim(&misuse_of(request)).await.unwrap();
        assert_eq!(claimed, Claimed::Mismatch);
        store.lookup(&request.id).await.unwrap();
    }
    assert_eq!(store.forget(&running.id).await.unwrap(), Forgot::Live);
    assert_eq!(store.purge_expired(10).await.unwrap(), 0);
    assert_eq!(next_writer(&place.pool).await, before);
    acquire(store, &request()).await;
    assert_ne!(next_writer(&place.pool).await, before);
}

#[tokio::test]
async fn the_updates_of_an_ordinary_run_leave_the_indexes_alone() {
    let server = quiet(&[]).await;
    let place = Place::at(server.options()).await;
    let pool = one_connection(&place.options).await;
    let store = PostgresStore::new(pool.clone());
    for _ in 0..50 {
        let mut request = request();
        request.lease = Duration::from_secs(30);
        request.retention = Duration::from_secs(24 * 60 * 60);
        let hold = acquire(&store, &request).await;
        store
            .extend(&hold, request.lease, request.retention)
            .await
            .unwrap();
        store
            .complete(&hold, &fresh_record(), request.retention)
            .await
            .unwrap();
    }
    // What a connection has counted is told when it is closed.
    pool.close().await;
    let count = async |column: &str| {
        let query = format!("SELECT {column} FROM pg_stat_user_tables");
        scalar::<i64>(&place.pool, &query).await
    };
    let patience = std::time::Instant::now() + Duration::from_secs(10);
    while count("n_tup_upd").await < 100 {
        assert!(std::time::Instant::now() < patience, "they are not counted");
    }
    assert_eq!(count("n_tup_upd").await, 100);
    let hot = count("n_tup_hot_upd").await;
    assert!(hot >= 90, "{hot} of 100");
}
