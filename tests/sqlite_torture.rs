//! Whatever several processes do to a few keys of one file at once, one of them being killed
//! in the middle of it, every answer is one that the contract allows.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)]

#[path = "sqlite_torture/logged.rs"]
mod logged;
mod support;
#[path = "sqlite_torture/written.rs"]
mod written;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use logged::Logged;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use support::history::{Answer, Event, check};
use support::torture::{Plan, counts, torture};
use tower_idempotency::store::SqliteStore;

const FOLDER: &str = "IDEMPOTENCY_TEST_TORTURE_FOLDER";
const NUMBER: &str = "IDEMPOTENCY_TEST_TORTURE_NUMBER";
const SEED: &str = "IDEMPOTENCY_TEST_SEED";

const PROCESSES: u64 = 4;

/// The one that is killed.
const VICTIM: u64 = 0;

/// A folder that is removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("idempotency-sqlite-torture-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn log_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}.log"))
}

/// A disk that has to be waited for would leave little to happen; what only the loss of power
/// can lose is none of this.
async fn store(folder: &Path) -> SqliteStore {
    let options = SqliteConnectOptions::new()
        .filename(folder.join("records.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(Duration::from_secs(20));
    let pool = SqlitePoolOptions::new().max_connections(4);
    let pool = pool.acquire_timeout(Duration::from_secs(20));
    SqliteStore::new(pool.connect_with(options).await.unwrap())
}

/// A child, which is killed with it.
struct Process(Child);

impl Process {
    fn start(folder: &Folder, number: u64, seed: u64) -> Self {
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["one_of_the_processes", "--exact", "--ignored"])
            .env(FOLDER, &folder.0)
            .env(NUMBER, number.to_string())
            .env(SEED, seed.wrapping_add(number).to_string())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "what the children do"]
async fn one_of_the_processes() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let number = std::env::var(NUMBER).unwrap().parse().unwrap();
    let log = logged::Log::new(&log_of(&folder, number));
    let one = Logged::new(store(&folder).await, &log);
    let other = Logged::new(store(&folder).await, &log);
    let plan = Plan {
        tasks: 8,
        ..Plan::new()
    };
    torture(one, other, &plan).await;
}

#[tokio::test]
async fn processes_on_one_file_keep_the_contract_under_torture() {
    let folder = Folder::new();
    store(&folder.0).await.migrate().await.unwrap();
    let plan = Plan::new();
    let mut processes: Vec<_> = (0..PROCESSES)
        .map(|number| Process::start(&folder, number, plan.seed))
        .collect();
    tokio::time::sleep(plan.lasts / 2).await;
    processes[VICTIM as usize].0.kill().unwrap();
    for (number, process) in (0..).zip(&mut processes) {
        let status = process.0.wait().unwrap();
        assert_eq!(
            status.success(),
            number != VICTIM,
            "process {number}: {status}"
        );
    }
    let logs = (0..PROCESSES).map(|number| log_of(&folder.0, number));
    let events = written::events(logs);
    let checked = Instant::now();
    check(&events);
    let took = checked.elapsed();
    let counts = counts(&events);
    println!("{} calls, checked in {took:?}: {counts:#?}", events.len());
    let is_error = |event: &Event| matches!(event.answer, Answer::Error(_));
    let errors = events.iter().filter(|event| is_error(event));
    assert_eq!(errors.collect::<Vec<_>>(), Vec::<&Event>::new());
}
