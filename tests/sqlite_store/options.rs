//! Names of tables, the shipped schema, and what several migrations at once come to.

use tower_idempotency::store::sqlite::SCHEMA;
use tower_idempotency::store::{KeyStore, SqliteStore};

use crate::place::{Folder, Place, options, pool};
use crate::{acquire, complete, fresh_record, request, retry_of};

#[tokio::test]
async fn tables_of_two_names_share_nothing() {
    let place = Place::new().await;
    let other = place.store.clone().table("other").unwrap();
    other.migrate().await.unwrap();
    let request = request();
    complete(&place.store, &request, &fresh_record()).await;
    let hold = acquire(&other, &retry_of(&request)).await;
    assert_eq!(hold.attempt, 1);
    assert_eq!(other.check().await.unwrap(), []);
}

#[tokio::test]
async fn a_name_that_would_need_escaping_is_refused() {
    let place = Place::new().await;
    let long = "x".repeat(49);
    for name in [
        "",
        "1st",
        "Keys",
        "two words",
        "a\"b",
        "a;b",
        "main.keys",
        &long,
    ] {
        place.store.clone().table(name).unwrap_err();
    }
    for name in ["k", "_keys_2", &long[..48]] {
        let store = place.store.clone().table(name).unwrap();
        store.migrate().await.unwrap();
        acquire(&store, &request()).await;
        assert_eq!(store.purge_expired(1).await.unwrap(), 0);
        assert_eq!(store.check().await.unwrap(), []);
    }
}

#[tokio::test]
async fn the_shipped_schema_is_what_migrating_brings_about() {
    let folder = Folder::new();
    let pool = pool(options(&folder.file())).await;
    // More than once, as any migration.
    for _ in 0..2 {
        sqlx::raw_sql(SCHEMA).execute(&pool).await.unwrap();
    }
    let store = SqliteStore::new(pool.clone());
    assert_eq!(store.check().await.unwrap(), []);
    let tables = "SELECT group_concat(sql) FROM sqlite_schema";
    let own: String = sqlx::query_scalar(tables).fetch_one(&pool).await.unwrap();
    store.migrate().await.unwrap();
    let place = Place::new().await;
    let migrated: String = sqlx::query_scalar(tables)
        .fetch_one(&place.pool)
        .await
        .unwrap();
    assert_eq!(own, migrated);
    let versions = "SELECT count(*) FROM idempotency_record_layout";
    let versions: i64 = sqlx::query_scalar(versions).fetch_one(&pool).await.unwrap();
    assert_eq!(versions, 1);
}

#[tokio::test]
async fn migrating_again_keeps_every_record_and_needs_no_lock() {
    let place = Place::new().await;
    let (request, record) = (request(), fresh_record());
    complete(&place.store, &request, &record).await;
    let _writer = place.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    place.store.migrate().await.unwrap();
    let found = place.store.lookup(&request.id).await.unwrap().unwrap();
    let kept = tower_idempotency::store::Phase::Completed(record);
    assert_eq!(found.phase, kept);
}

#[tokio::test]
async fn what_is_shown_of_a_store_is_its_table() {
    let place = Place::new().await;
    let shown = format!("{:?}", place.store);
    assert_eq!(shown, "SqliteStore { table: \"idempotency_record\", .. }");
}
