//! Behind PgBouncer in transaction mode, where each transaction may have another connection of
//! the server: with statements that are not prepared all of it works, and without them not.

use http::Response;
use sqlx::Row;
use sqlx::postgres::PgPoolOptions;
use tower_idempotency::store::{
    Claimed, Completion, Fence, KeyStore, Ownership, PostgresStore, Record, StoreErrorKind,
    TransactionalStore, conformance,
};

use crate::support::postgres::{PgBouncer, PostgresServer, execute, pool_at, scalar};
use crate::support::torture::{Plan, torture};
use crate::torture::judge;
use crate::{LEASE, RETENTION, acquire, fresh_record, request, retry_of};

/// With fewer connections to the server than each pool has.
async fn bouncer() -> (PostgresServer, PgBouncer) {
    let server = PostgresServer::start_with(&[("fsync", "off")]).await;
    let bouncer = PgBouncer::before(&server, 3).await;
    (server, bouncer)
}

async fn migrated(bouncer: &PgBouncer) -> PostgresStore {
    let store = PostgresStore::new(pool_at(bouncer.options()).await);
    let store = store.persistent_statements(false);
    store.migrate().await.unwrap();
    store
}

#[tokio::test]
async fn every_clause_holds_behind_pgbouncer() {
    let (_server, bouncer) = bouncer().await;
    let store = migrated(&bouncer).await;
    conformance::all(&store).await;
    conformance::clause_01_claim_is_atomic(&store, &migrated(&bouncer).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_behind_pgbouncer_keep_the_contract_under_torture() {
    let (_server, bouncer) = bouncer().await;
    let (one, other) = (migrated(&bouncer).await, migrated(&bouncer).await);
    judge(&torture(one, other, &Plan::new()).await);
}

#[tokio::test]
async fn transactions_and_the_audit_work_behind_pgbouncer() {
    let (_server, bouncer) = bouncer().await;
    let store = migrated(&bouncer).await;
    store.check().await.unwrap();
    let pool = pool_at(bouncer.options()).await;
    execute(&pool, "CREATE TABLE effect (id int)").await;
    for number in 0..10 {
        let (request, record) = (request(), fresh_record());
        let hold = acquire(&store, &request).await;
        let mut transaction = store.begin().await.unwrap();
        let fence = store.fence(&mut transaction, &hold).await;
        assert_eq!(fence.unwrap(), Fence::Held);
        execute(
            &mut *transaction,
            &format!("INSERT INTO effect VALUES ({number})"),
        )
        .await;
        let completed = store
            .complete_in(&mut transaction, &hold, &record, RETENTION)
            .await;
        assert_eq!(completed.unwrap(), Fence::Held);
        if number % 2 == 0 {
            PostgresStore::commit(transaction).await.unwrap();
            let claimed = store.claim(&retry_of(&request)).await.unwrap();
            assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
        } else {
            transaction.rollback().await.unwrap();
            let extended = store.extend(&hold, LEASE, RETENTION).await;
            assert_eq!(extended.unwrap(), Ownership::Held);
        }
    }
    let query = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM effect";
    let effects: Vec<_> = sqlx::raw_sql(query).fetch_all(&pool).await.unwrap();
    let effects: String = effects[0].get(0);
    assert_eq!(effects, "0 2 4 6 8");
}

/// What the option is there for. From 1.21 on PgBouncer can be told to follow them.
#[tokio::test]
async fn prepared_statements_that_fail_behind_pgbouncer_are_told_as_a_setting() {
    let (server, bouncer) = bouncer().await;
    migrated(&bouncer).await;
    // Two connections to PgBouncer take turns on the server's.
    let store = async || {
        let one = PgPoolOptions::new().max_connections(1);
        PostgresStore::new(one.connect_with(bouncer.options()).await.unwrap())
    };
    let (one, other) = (store().await, store().await);
    let mut kinds = Vec::new();
    for _ in 0..10 {
        for store in [&one, &other] {
            let refused = store.claim(&request()).await.err();
            kinds.extend(refused.map(|error| error.kind()));
        }
    }
    let misconfigured = |kind: &StoreErrorKind| *kind == StoreErrorKind::Misconfigured;
    assert!(kinds.iter().all(misconfigured), "{kinds:?}");
    let rows = "SELECT count(*) FROM idempotency_record";
    let rows: i64 = scalar(&server.pool().await, rows).await;
    assert_eq!(
        rows as usize,
        20 - kinds.len(),
        "what was refused has left nothing"
    );
}

#[tokio::test]
async fn long_records_come_back_byte_for_byte_as_text() {
    let (_server, bouncer) = bouncer().await;
    let store = migrated(&bouncer).await;
    for len in [0, 1, 100, 8_000, 1 << 20] {
        let body: Vec<u8> = (0..=255).cycle().take(len).collect();
        let record = Record::new(&Response::new(body));
        let request = request();
        let hold = acquire(&store, &request).await;
        let completed = store.complete(&hold, &record, RETENTION).await;
        assert_eq!(completed.unwrap(), Completion::Stored);
        let claimed = store.claim(&retry_of(&request)).await.unwrap();
        assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
    }
}
