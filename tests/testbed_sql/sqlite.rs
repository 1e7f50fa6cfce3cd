//! Over a file.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::{Place, assert_misused, assert_needs_a_url, assert_unusable};

/// A new directory with a file to be made in it, until it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let count = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("testbed-sqlite-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        Self(directory)
    }

    fn file(&self) -> String {
        self.0.join("testbed.db").display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn at(url: &str) -> Place<'_> {
    let store = "sqlite";
    Place { store, url }
}

#[tokio::test]
async fn one_key_is_one_row() {
    let directory = Directory::new();
    super::one_key_is_one_row(at(&directory.file())).await;
}

#[tokio::test]
async fn a_row_whose_answer_is_not_recorded_is_rolled_back() {
    let directory = Directory::new();
    let file = directory.file();
    let options = SqliteConnectOptions::new().filename(&file);
    let execute = async |statement: &'static str| {
        let mut connection = options.connect().await.unwrap();
        let done = sqlx::query(statement).execute(&mut connection);
        done.await.unwrap();
        connection.close().await.unwrap();
    };
    let statements = [
        "CREATE TRIGGER forbid BEFORE UPDATE ON idempotency_record WHEN NEW.record IS NOT NULL
         BEGIN SELECT RAISE(ABORT, 'no answer is recorded'); END",
        "DROP TRIGGER forbid",
    ];
    let place = at(&file);
    super::a_row_whose_answer_is_not_recorded_is_rolled_back(place, execute, statements).await;
}

#[tokio::test]
async fn without_an_operation_rows_have_no_key() {
    let directory = Directory::new();
    super::without_an_operation_rows_have_no_key(at(&directory.file())).await;
}

#[tokio::test]
async fn two_processes_give_every_key_one_row() {
    let directory = Directory::new();
    super::two_processes_give_every_key_one_row(at(&directory.file())).await;
}

#[tokio::test]
async fn two_processes_run_a_request_once_between_them() {
    let directory = Directory::new();
    super::two_processes_run_a_request_once_between_them(at(&directory.file())).await;
}

#[tokio::test]
async fn rows_and_records_outlive_the_process() {
    let directory = Directory::new();
    super::rows_and_records_outlive_the_process(at(&directory.file())).await;
}

#[tokio::test]
async fn many_processes_start_at_once() {
    let directory = Directory::new();
    super::many_processes_start_at_once(at(&directory.file())).await;
}

#[tokio::test]
async fn a_file_and_its_url_are_one_database() {
    let directory = Directory::new();
    let by_file = at(&directory.file()).testbed().await;
    by_file.post("/transfer?amount=1", "k").await;
    let file = directory.file();
    for url in [
        format!("sqlite:{file}"),
        format!("sqlite://{file}"),
        format!("sqlite:{file}?mode=rw"),
    ] {
        let by_url = at(&url).testbed().await;
        assert!(by_url.post("/transfer?amount=1", "k").await.is_replay());
    }
}

#[test]
fn a_sound_file_is_served_without_a_warning() {
    let directory = Directory::new();
    let (code, stderr) = at(&directory.file()).run_to_listen_nowhere();
    assert!(stderr.starts_with("testbed: 192.0.2.1:1: "), "{stderr}");
    assert_eq!(code, Some(1));
}

#[test]
fn what_is_no_database_is_an_error() {
    let directory = Directory::new();
    let file = directory.file();
    assert_unusable(at(&format!("sqlite:{file}?mode=rw")), "unable to open");
    assert_unusable(at(&format!("{file}/missing/testbed.db")), "unable to open");
    assert_unusable(at(&directory.0.display().to_string()), "unable to open");
    fs::write(
        &file,
        "no database, but longer than a header of one. ".repeat(40),
    )
    .unwrap();
    assert_unusable(at(&file), "file is not a database");
}

#[test]
fn a_database_in_memory_is_refused() {
    for url in ["sqlite::memory:", ":memory:", "sqlite:x?mode=memory"] {
        let (code, stderr) = at(url).run_to_listen_nowhere();
        assert_eq!(code, Some(1), "{url}: {stderr}");
        assert!(stderr.contains("the database is in memory"), "{stderr}");
    }
}

#[test]
fn a_url_that_cannot_be_used_is_misuse() {
    assert_needs_a_url("sqlite");
    for url in [
        "",
        "postgres://:secret@127.0.0.1",
        "sqlite:x?mode=other",
        "sqlite:x?other=1",
    ] {
        assert_misused(at(url));
    }
}
