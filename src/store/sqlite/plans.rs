//! How SQLite carries the statements out: by an index each, however many records there are.

#![allow(clippy::unwrap_used)]

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Row, SqlStr};

use super::SqliteStore;
use super::statements::Statements;

/// A thousand records, half of them expired, and what `ANALYZE` has to say of them.
const FILL: &str = "
    WITH RECURSIVE number (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM number WHERE n < 1000)
    INSERT INTO idempotency_record
    SELECT randomblob(32), randomblob(32), randomblob(16), 1, 1, 0, 0, 0,
        n % 2 * 4000000000000, n % 2 * 4000000000000, randomblob(100)
    FROM number;
    ANALYZE";

async fn filled() -> SqliteStore {
    let pool = SqlitePoolOptions::new().max_connections(1);
    let memory = SqliteConnectOptions::new().in_memory(true);
    let store = SqliteStore::new(pool.connect_with(memory).await.unwrap());
    store.migrate().await.unwrap();
    sqlx::raw_sql(FILL).execute(&store.pool).await.unwrap();
    store
}

/// What it does at each table, line by line.
async fn plan(store: &SqliteStore, statement: &SqlStr) -> Vec<String> {
    let explain = AssertSqlSafe(format!(
        "EXPLAIN QUERY PLAN {statement}",
        statement = statement.as_str()
    ));
    let steps = sqlx::query(explain).fetch_all(&store.pool).await.unwrap();
    steps.iter().map(|step| step.get("detail")).collect()
}

fn searches(plan: &[String], by: &str) -> bool {
    plan.iter()
        .any(|step| step.starts_with("SEARCH idempotency_record") && step.ends_with(by))
}

fn scans(plan: &[String]) -> bool {
    plan.iter()
        .any(|step| step.contains("SCAN idempotency_record"))
}

#[tokio::test]
async fn no_statement_about_one_record_looks_at_another_one() {
    let store = filled().await;
    let Statements {
        read,
        lookup,
        extend,
        complete,
        fail,
        release_first,
        release_later,
        forget,
        resolve,
        requeue,
        fence,
        ..
    } = &*store.statements;
    let by_id = [
        read,
        lookup,
        extend,
        complete,
        fail,
        release_first,
        release_later,
        forget,
        resolve,
        requeue,
        fence,
    ];
    for statement in by_id {
        let plan = plan(&store, statement).await;
        let is_by_id = searches(
            &plan,
            "USING INDEX sqlite_autoindex_idempotency_record_1 (id=?)",
        );
        assert!(is_by_id && !scans(&plan), "{statement:?}: {plan:#?}");
    }
    // An upsert finds its row by the conflict, which is none of the plan's steps.
    for statement in [&store.statements.claim, &store.statements.restore] {
        assert!(!scans(&plan(&store, statement).await), "{statement:?}");
    }
}

#[tokio::test]
async fn the_purge_follows_its_index_and_sorts_no_table() {
    let store = filled().await;
    let plan = plan(&store, &store.statements.purge).await;
    let by_time = "USING INDEX idempotency_record_purge (purge_after<?)";
    assert!(searches(&plan, by_time), "{plan:#?}");
    assert!(
        searches(&plan, "USING INTEGER PRIMARY KEY (rowid=?)"),
        "{plan:#?}"
    );
    assert!(!scans(&plan), "{plan:#?}");
}

#[tokio::test]
async fn a_full_scan_would_be_seen() {
    let store = filled().await;
    let unfit = SqlStr::from_static("SELECT record FROM idempotency_record WHERE owner = ?1");
    assert!(scans(&plan(&store, &unfit).await));
}
