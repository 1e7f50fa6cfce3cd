//! What the audit at the start finds, each for itself, and nothing where all is well.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tower_idempotency::store::SqliteStore;
use tower_idempotency::store::sqlite::{CheckError, Finding};

use crate::place::{Folder, Place, options, pool};

async fn found(store: &SqliteStore) -> Vec<Finding> {
    match store.check().await {
        Ok(findings) => {
            assert!(!findings.iter().any(Finding::is_unfit), "{findings:?}");
            findings
        }
        Err(CheckError::Unfit(findings)) => {
            assert!(findings.iter().any(Finding::is_unfit), "{findings:?}");
            findings
        }
        Err(error) => panic!("{error:?}"),
    }
}

#[track_caller]
fn assert_told(findings: &[Finding], expected: &[Finding], what_to_set: &str) {
    assert_eq!(findings, expected);
    let told = CheckError::Unfit(findings.to_vec()).to_string();
    assert!(told.contains(what_to_set), "{told}");
}

#[tokio::test]
async fn nothing_is_found_where_all_is_well_and_nothing_is_written() {
    let place = Place::new().await;
    assert_eq!(found(&place.store).await, []);
    let extra = |options: SqliteConnectOptions| options.synchronous(SqliteSynchronous::Extra);
    assert_eq!(found(&Place::with(extra).await.store).await, []);
}

#[tokio::test]
async fn a_writer_at_work_is_no_finding() {
    let place = Place::with(|options| options.busy_timeout(Duration::from_millis(10))).await;
    let _writer = place.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert_eq!(found(&place.store).await, []);
}

#[tokio::test]
async fn missing_tables_are_found() {
    let folder = Folder::new();
    let store = SqliteStore::new(pool(options(&folder.file())).await);
    assert_told(&found(&store).await, &[Finding::NoTables], "migrate");
}

#[tokio::test]
async fn tables_of_another_version_are_found_and_not_migrated_if_they_are_later() {
    let place = Place::new().await;
    for version in [0, 2] {
        let set = sqlx::query("UPDATE idempotency_record_layout SET version = ?1");
        set.bind(version).execute(&place.pool).await.unwrap();
        let expected = Finding::OtherLayout {
            found: version,
            needed: 1,
        };
        assert_told(&found(&place.store).await, &[expected], "migrate");
    }
    let refused = place.store.migrate().await.unwrap_err();
    let kind = tower_idempotency::store::StoreErrorKind::Misconfigured;
    assert_eq!(refused.kind(), kind);
}

#[tokio::test]
async fn a_read_only_database_is_found() {
    let place = Place::new().await;
    let read_only = options(&place.folder.file()).read_only(true);
    let read_only = SqliteStore::new(pool(read_only).await);
    assert_told(&found(&read_only).await, &[Finding::ReadOnly], "read-only");
    let query_only = options(&place.folder.file()).pragma("query_only", "1");
    let query_only = SqliteStore::new(pool(query_only).await);
    assert_told(&found(&query_only).await, &[Finding::ReadOnly], "read-only");
}

#[tokio::test]
async fn a_database_in_memory_is_found() {
    let memory = SqliteConnectOptions::new().in_memory(true);
    let memory = SqlitePoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect_with(memory)
        .await
        .unwrap();
    let store = SqliteStore::new(memory);
    store.migrate().await.unwrap();
    assert_told(&found(&store).await, &[Finding::InMemory], "use a file");
}

#[tokio::test]
async fn another_journal_than_the_log_is_found() {
    for (mode, name) in [
        (SqliteJournalMode::Delete, "delete"),
        (SqliteJournalMode::Persist, "persist"),
    ] {
        let place = Place::with(|options| options.journal_mode(mode)).await;
        let expected = Finding::NotWal {
            mode: name.to_owned(),
        };
        assert_told(&found(&place.store).await, &[expected], "`wal`");
    }
    for (mode, name) in [
        (SqliteJournalMode::Memory, "memory"),
        (SqliteJournalMode::Off, "off"),
    ] {
        let place = Place::with(|options| options.journal_mode(mode)).await;
        let expected = Finding::NoJournal {
            mode: name.to_owned(),
        };
        assert_told(&found(&place.store).await, &[expected], "`wal`");
    }
}

#[tokio::test]
async fn commits_that_the_loss_of_power_may_lose_are_found() {
    for (value, synchronous) in [(0, SqliteSynchronous::Off), (1, SqliteSynchronous::Normal)] {
        let place = Place::with(|options| options.synchronous(synchronous)).await;
        let expected = Finding::NotDurable { synchronous: value };
        assert_told(&found(&place.store).await, &[expected], "FULL");
    }
}

#[tokio::test]
async fn a_busy_time_out_of_none_is_found() {
    let place = Place::with(|options| options.busy_timeout(Duration::ZERO)).await;
    assert_told(
        &found(&place.store).await,
        &[Finding::NoBusyTimeout],
        "busy_timeout",
    );
}

#[tokio::test]
async fn several_findings_come_together_and_one_that_is_unfit_makes_them_an_error() {
    let place = Place::with(|options| {
        options
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::ZERO)
    });
    let findings = place.await.store.check().await.unwrap_err();
    let CheckError::Unfit(findings) = findings else {
        panic!("{findings:?}");
    };
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(!findings[0].is_unfit() && findings[1].is_unfit());
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_an_error_of_the_store() {
    let folder = Folder::new();
    let missing = options(&folder.file()).create_if_missing(false);
    let store = SqliteStore::new(SqlitePoolOptions::new().connect_lazy_with(missing));
    assert!(matches!(store.check().await, Err(CheckError::Store(_))));
}
