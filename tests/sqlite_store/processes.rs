//! Several processes on one file: each of them this program once more, as a child.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tower_idempotency::store::{
    ClaimRequest, Claimed, Fingerprint, KeyStore, Owner, RecordId, ScopeId, SqliteStore,
    TransactionalStore,
};

use crate::place::{Folder, Place, options, pool};
use crate::{RETENTION, acquire, fresh_record, retry_of};

const FILE: &str = "IDEMPOTENCY_TEST_SQLITE_FILE";
const ROLE: &str = "IDEMPOTENCY_TEST_SQLITE_ROLE";

/// A child, which is killed with it.
struct Process(Child);

impl Process {
    fn start(role: &str, folder: &Folder) -> Self {
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["processes::child", "--exact", "--ignored", "--nocapture"])
            .env(FILE, folder.file())
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// Returns when it says so.
    fn says(&mut self, word: &str) {
        let output = self.0.stdout.as_mut().unwrap();
        let mut lines = BufReader::new(output).lines();
        let said = lines.any(|line| line.unwrap().ends_with(word));
        assert!(said, "the child never said {word}");
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The request of the child that is killed.
fn request() -> ClaimRequest {
    let id = RecordId::from_bytes([1; 32]);
    let scope = ScopeId::from_bytes([2; 16]);
    let fingerprint = Fingerprint::from_bytes([3; 32]);
    let owner = Owner::from_bytes([4; 16]);
    let mut request = ClaimRequest::new(id, scope, fingerprint, owner);
    request.lease = Duration::from_millis(500);
    request.retention = RETENTION;
    request
}

#[tokio::test]
#[ignore = "what the children do"]
async fn child() {
    let file = std::env::var_os(FILE).unwrap();
    let pool = pool(options(file.as_ref())).await;
    let store = SqliteStore::new(pool);
    let role = std::env::var(ROLE).unwrap();
    if role == "migrates" {
        store.migrate().await.unwrap();
        println!("migrated");
        return;
    }
    let hold = acquire(&store, &request()).await;
    if role == "claims" {
        println!("claimed");
        std::future::pending::<()>().await;
    }
    let mut transaction = store.begin().await.unwrap();
    let effect = sqlx::query("INSERT INTO ledger VALUES (1)");
    effect.execute(&mut *transaction).await.unwrap();
    let record = fresh_record();
    let done = store.complete_in(&mut transaction, &hold, &record, RETENTION);
    done.await.unwrap();
    if role == "commits" {
        SqliteStore::commit(transaction).await.unwrap();
    }
    println!("recorded");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn processes_that_migrate_at_once_all_succeed() {
    let folder = Folder::new();
    // WAL is set once and for all: it needs the file alone.
    let pool = pool(options(&folder.file())).await;
    let writer = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut processes: Vec<_> = (0..8)
        .map(|_| Process::start("migrates", &folder))
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Now they all wait for this lock.
    writer.rollback().await.unwrap();
    for process in &mut processes {
        process.says("migrated");
        assert!(process.0.wait().unwrap().success());
    }
    let store = SqliteStore::new(pool);
    assert_eq!(store.check().await.unwrap(), []);
}

async fn with_ledger() -> Place {
    let place = Place::new().await;
    let create = sqlx::query("CREATE TABLE ledger (amount INTEGER)");
    create.execute(&place.pool).await.unwrap();
    place
}

async fn effects(place: &Place) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM ledger");
    count.fetch_one(&place.pool).await.unwrap()
}

/// Asks until the key is not in progress any more.
async fn outcome(place: &Place) -> Claimed {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match place.store.claim(&retry_of(&request())).await.unwrap() {
            Claimed::InProgress { .. } => assert!(Instant::now() < deadline),
            outcome => return outcome,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_key_whose_process_was_killed_is_taken_over_when_its_lease_is_over() {
    let place = Place::new().await;
    let mut process = Process::start("claims", &place.folder);
    process.says("claimed");
    let claimed = place.store.claim(&retry_of(&request())).await.unwrap();
    assert!(
        matches!(claimed, Claimed::InProgress { attempt: 1, .. }),
        "{claimed:?}"
    );
    process.kill();
    let outcome = outcome(&place).await;
    assert!(
        matches!(&outcome, Claimed::Acquired(hold) if hold.attempt == 2),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_process_that_is_killed_before_it_commits_leaves_neither_effect_nor_answer() {
    let place = with_ledger().await;
    let mut process = Process::start("records", &place.folder);
    process.says("recorded");
    let deadline = Instant::now() + Duration::from_secs(20);
    // Its lease is over, and its transaction open.
    while place
        .store
        .lookup(&request().id)
        .await
        .unwrap()
        .unwrap()
        .phase
        != (tower_idempotency::store::Phase::Running {
            lease_left: Duration::ZERO,
        })
    {
        assert!(Instant::now() < deadline);
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let claimed = place.store.claim(&retry_of(&request())).await.unwrap();
    assert!(matches!(claimed, Claimed::InProgress { .. }), "{claimed:?}");
    process.kill();
    let outcome = outcome(&place).await;
    assert!(
        matches!(&outcome, Claimed::Acquired(hold) if hold.attempt == 2),
        "{outcome:?}"
    );
    assert_eq!(effects(&place).await, 0);
}

#[tokio::test]
async fn a_process_that_is_killed_after_it_committed_leaves_both() {
    let place = with_ledger().await;
    let mut process = Process::start("commits", &place.folder);
    process.says("recorded");
    process.kill();
    let outcome = outcome(&place).await;
    assert!(
        matches!(outcome, Claimed::Completed { attempt: 1, .. }),
        "{outcome:?}"
    );
    assert_eq!(effects(&place).await, 1);
}
