//! The table: how it comes to be, what it is called, what stands in it, and how it is emptied.

use std::time::{Duration, Instant};

use http::Response;
use sqlx::Row;
use tokio::time::sleep;
use tower_idempotency::store::{
    Claimed, Completion, KeyStore, PostgresStore, Record, RecordId, StoreErrorKind,
};

use crate::support::postgres::{execute, pool_at, scalar, shared};
use crate::{Place, RETENTION, acquire, complete, fresh_record, request, retry_of};

async fn empty() -> Place {
    let options = shared().await.database().await;
    let pool = pool_at(options.clone()).await;
    let store = PostgresStore::new(pool.clone());
    Place {
        store,
        pool,
        options,
    }
}

#[tokio::test]
async fn eight_nodes_that_start_at_once_make_one_table_and_so_do_they_again() {
    let place = empty().await;
    let mut nodes = Vec::new();
    for _ in 0..8 {
        nodes.push(PostgresStore::new(pool_at(place.options.clone()).await));
    }
    for _ in 0..2 {
        let starts: Vec<_> = nodes
            .iter()
            .cloned()
            .map(|node| tokio::spawn(async move { node.migrate().await }))
            .collect();
        for start in starts {
            start.await.unwrap().unwrap();
        }
        acquire(&place.store, &request()).await;
    }
    let rows = "SELECT count(*) FROM idempotency_record";
    assert_eq!(scalar::<i64>(&place.pool, rows).await, 2);
}

/// A service that starts must not hold up those that run.
#[tokio::test]
async fn a_second_migration_does_not_wait_for_whoever_uses_the_table() {
    let place = Place::new().await;
    let mut reader = place.pool.begin().await.unwrap();
    execute(
        &mut *reader,
        "LOCK TABLE idempotency_record IN ROW EXCLUSIVE MODE",
    )
    .await;
    let migrated = tokio::time::timeout(Duration::from_secs(5), place.store.migrate());
    migrated.await.expect("it waits").unwrap();
}

#[tokio::test]
async fn migrations_of_ones_own_make_the_same_table() {
    let place = empty().await;
    let sql = place.store.schema_sql();
    for _ in 0..2 {
        execute(&place.pool, &sql).await;
    }
    place.store.migrate().await.unwrap();
    place.store.check().await.unwrap();
    complete(&place.store, &request(), &fresh_record()).await;
    let storage = "SELECT attstorage::text FROM pg_attribute \
                   WHERE attrelid = 'idempotency_record'::regclass AND attname = 'record'";
    assert_eq!(scalar::<String>(&place.pool, storage).await, "e");
}

#[tokio::test]
async fn tables_and_schemas_of_any_name_share_nothing() {
    let place = Place::new().await;
    execute(&place.pool, r#"CREATE SCHEMA "order"; CREATE SCHEMA _2"#).await;
    let store = || PostgresStore::new(place.pool.clone());
    // Key words are names like any other.
    let stores = [
        store(),
        store().table("user").unwrap(),
        store().schema("order").unwrap(),
        store().schema("order").unwrap().table("select").unwrap(),
        store().table("select").unwrap().schema("_2").unwrap(),
        store().table(&"x".repeat(48)).unwrap(),
    ];
    let request = request();
    for store in &stores {
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
        store.check().await.unwrap();
        let plain = store.clone().persistent_statements(false);
        assert_eq!(plain.lookup(&request.id).await.unwrap(), None);
        complete(&plain, &request, &fresh_record()).await;
        assert!(store.lookup(&request.id).await.unwrap().is_some());
    }
    let count = r#"SELECT count(*) FROM "order"."select""#;
    assert_eq!(scalar::<i64>(&place.pool, count).await, 1);
}

#[tokio::test]
async fn the_search_path_decides_where_no_schema_is_named() {
    let place = Place::new().await;
    execute(&place.pool, "CREATE SCHEMA other").await;
    let options = place.options.clone().options([("search_path", "other")]);
    let store = PostgresStore::new(pool_at(options).await);
    let request = request();
    assert_eq!(
        store.lookup(&request.id).await.unwrap_err().kind(),
        StoreErrorKind::Misconfigured
    );
    store.migrate().await.unwrap();
    acquire(&store, &request).await;
    let other = place.store.clone().schema("other").unwrap();
    assert!(other.lookup(&request.id).await.unwrap().is_some());
    assert_eq!(place.store.lookup(&request.id).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_no_name_is_refused() {
    let place = empty().await;
    for name in [
        "",
        "1st",
        "Upper",
        "a b",
        "a\"b",
        "a.b",
        "a;b",
        "é",
        "a$1",
        &"x".repeat(49),
    ] {
        assert!(place.store.clone().table(name).is_err(), "{name}");
        assert!(place.store.clone().schema(name).is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_migration_touches_nothing_that_is_not_its_own() {
    let place = empty().await;
    let missing = place
        .store
        .clone()
        .schema("missing")
        .unwrap()
        .migrate()
        .await;
    assert_eq!(missing.unwrap_err().kind(), StoreErrorKind::Misconfigured);

    execute(&place.pool, "CREATE TABLE idempotency_record (name text)").await;
    let foreign = place.store.migrate().await;
    assert_eq!(foreign.unwrap_err().kind(), StoreErrorKind::Misconfigured);
    let columns = "SELECT count(*) FROM information_schema.columns \
                   WHERE table_name = 'idempotency_record'";
    assert_eq!(scalar::<i64>(&place.pool, columns).await, 1);

    let place = Place::new().await;
    execute(
        &place.pool,
        "COMMENT ON TABLE idempotency_record IS 'tower-idempotency 2'",
    )
    .await;
    let newer = place.store.migrate().await;
    assert_eq!(newer.unwrap_err().kind(), StoreErrorKind::Misconfigured);
}

#[tokio::test]
async fn records_come_back_byte_for_byte() {
    let place = Place::new().await;
    for len in [0, 1, 1_000, 2_000, 8_000, 100_000, 4 << 20] {
        let body: Vec<u8> = (0..=255).cycle().take(len).collect();
        let record = Record::new(&Response::new(body));
        let request = request();
        let hold = complete(&place.store, &request, &record).await;
        let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
        let expected = Claimed::Completed {
            attempt: 1,
            record: record.clone(),
        };
        assert_eq!(claimed, expected);
        let stored = sqlx::query("SELECT record, owner FROM idempotency_record WHERE id = $1")
            .bind(&request.id.as_bytes()[..])
            .fetch_one(&place.pool)
            .await
            .unwrap();
        assert_eq!(stored.get::<Vec<u8>, _>(0), record.as_bytes());
        assert_eq!(stored.get::<Vec<u8>, _>(1), hold.owner.as_bytes());
    }
}

#[tokio::test]
async fn a_record_that_was_damaged_is_corrupt_and_never_a_new_run() {
    let place = Place::new().await;
    let request = request();
    complete(&place.store, &request, &fresh_record()).await;
    for damage in [
        "UPDATE idempotency_record SET record = ''",
        "UPDATE idempotency_record SET record = '\\x00ff00ff'",
        "ALTER TABLE idempotency_record DROP CONSTRAINT idempotency_record_record; \
         UPDATE idempotency_record SET record = NULL",
        "ALTER TABLE idempotency_record DROP CONSTRAINT idempotency_record_state; \
         UPDATE idempotency_record SET state = 9",
        "ALTER TABLE idempotency_record DROP CONSTRAINT idempotency_record_attempt; \
         UPDATE idempotency_record SET state = 2, attempt = -5",
    ] {
        execute(&place.pool, damage).await;
        for store in [
            place.store.clone(),
            place.store.clone().persistent_statements(false),
        ] {
            let looked_up = store.lookup(&request.id).await.unwrap_err();
            assert_eq!(looked_up.kind(), StoreErrorKind::Corrupt, "{damage}");
            let claimed = store.claim(&retry_of(&request)).await.unwrap_err();
            assert_eq!(claimed.kind(), StoreErrorKind::Corrupt, "{damage}");
        }
    }
}

/// An attempt that cannot be counted any further stays what it is.
#[tokio::test]
async fn attempts_do_not_overflow() {
    let place = Place::new().await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    place.store.fail(&hold, false, RETENTION).await.unwrap();
    let last = format!("UPDATE idempotency_record SET attempt = {}", i64::MAX);
    execute(&place.pool, &last).await;
    let hold = acquire(&place.store, &retry_of(&request)).await;
    assert_eq!(hold.attempt, i64::MAX as u64);
    let lost = retry_of(&self::request()).hold(u64::MAX);
    let restored = place
        .store
        .complete(&lost, &fresh_record(), RETENTION)
        .await;
    assert_eq!(restored.unwrap(), Completion::Restored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn four_purges_remove_what_has_expired_while_claims_go_on() {
    let place = Place::new().await;
    let expired = "INSERT INTO idempotency_record \
         SELECT sha256(int4send(n)), sha256('f'), substr(sha256('o'), 1, 16), 1, 2, false, \
                now(), now(), now() - interval '1 second', now() - interval '1 second' \
         FROM generate_series(1, 20000) n";
    execute(&place.pool, expired).await;
    let living: Vec<_> = (0..50).map(|_| request()).collect();
    for request in &living {
        complete(&place.store, request, &fresh_record()).await;
    }
    let purges: Vec<_> = (0..4)
        .map(|_| {
            let store = place.store.clone();
            tokio::spawn(async move {
                let mut purged = 0;
                loop {
                    match store.purge_expired(500).await.unwrap() {
                        0 => return purged,
                        batch => {
                            assert!(batch <= 500);
                            purged += batch;
                        }
                    }
                }
            })
        })
        .collect();
    // Claims of new keys, and of those that are being removed.
    let mut taken = 0;
    for number in 1..=200_i32 {
        let mut request = request();
        let id: Vec<u8> = scalar(&place.pool, &format!("SELECT sha256(int4send({number}))")).await;
        request.id = RecordId::from_bytes(id.try_into().unwrap());
        let hold = acquire(&place.store, &request).await;
        assert_eq!(hold.attempt, 1);
        taken += 1;
        acquire(&place.store, &self::request()).await;
    }
    let mut purged = 0;
    for purge in purges {
        purged += purge.await.unwrap();
    }
    assert!(
        purged <= 20_000 && purged + taken >= 20_000,
        "{purged} purged, {taken} taken"
    );
    for request in &living {
        assert!(place.store.lookup(&request.id).await.unwrap().is_some());
    }
    let rows = "SELECT count(*) FROM idempotency_record";
    assert_eq!(scalar::<i64>(&place.pool, rows).await, 450);
}

#[tokio::test]
async fn a_purge_task_removes_what_has_expired_until_it_is_dropped() {
    let place = Place::new().await;
    let gone = async |patience: Duration| {
        let until = Instant::now() + patience;
        let rows = "SELECT count(*) FROM idempotency_record";
        while scalar::<i64>(&place.pool, rows).await > 0 {
            if Instant::now() > until {
                return false;
            }
            sleep(Duration::from_millis(10)).await;
        }
        true
    };
    let expire = "UPDATE idempotency_record SET purge_after = now(), expires_at = now()";
    acquire(&place.store, &request()).await;
    let task = place.store.spawn_purge(Duration::from_millis(50));
    assert!(
        !gone(Duration::from_millis(300)).await,
        "it was purged before its time"
    );
    execute(&place.pool, expire).await;
    assert!(gone(Duration::from_secs(10)).await, "it was not purged");
    drop(task);
    // One that is under way may still end.
    sleep(Duration::from_millis(200)).await;
    acquire(&place.store, &request()).await;
    execute(&place.pool, expire).await;
    assert!(
        !gone(Duration::from_millis(300)).await,
        "it is still purged"
    );
}

/// The end of a record may lie far from what its claim had said.
#[tokio::test]
async fn a_record_of_another_retention_than_its_claim_is_purged_within_an_hour_of_its_end() {
    let place = Place::new().await;
    let hour = Duration::from_secs(60 * 60);
    for retention in [Duration::from_millis(1), 2 * hour, 1000 * hour] {
        let mut request = request();
        request.retention = 24 * hour;
        let hold = acquire(&place.store, &request).await;
        let completed = place
            .store
            .complete(&hold, &fresh_record(), retention)
            .await;
        assert_eq!(completed.unwrap(), Completion::Stored);
    }
    let late = "SELECT max(abs(extract(epoch FROM purge_after - expires_at)))::float8 \
                FROM idempotency_record";
    assert!(scalar::<f64>(&place.pool, late).await <= 3600.0);
}

/// The index only tells roughly what has expired.
#[tokio::test]
async fn a_record_that_outlives_what_its_claim_had_said_is_not_purged_with_it() {
    let place = Place::new().await;
    let mut request = request();
    (request.lease, request.retention) = (Duration::from_secs(5), Duration::from_millis(1));
    complete(&place.store, &request, &fresh_record()).await;
    let overdue = "UPDATE idempotency_record SET purge_after = now()";
    execute(&place.pool, overdue).await;
    assert_eq!(place.store.purge_expired(10).await.unwrap(), 0);
    assert!(place.store.lookup(&request.id).await.unwrap().is_some());
}
