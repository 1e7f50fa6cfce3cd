//! Over a server, which is killed, stopped, and set up badly.

use std::time::{Duration, Instant};

use http::StatusCode;
use sqlx::ConnectOptions;

use super::support::postgres::{PostgresServer, execute, shared, url_of};
use super::{Place, assert_misused, assert_needs_a_url, assert_unusable, ledger, post_patiently};

/// The layer's time-out for a call to the store, twice since a call is repeated, and some
/// more for a machine that is busy.
const AT_MOST: Duration = Duration::from_secs(6);

fn at(url: &str) -> Place<'_> {
    let store = "postgres";
    Place { store, url }
}

async fn empty_database() -> String {
    url_of(&shared().await.database().await)
}

#[tokio::test]
async fn one_key_is_one_row() {
    super::one_key_is_one_row(at(&empty_database().await)).await;
}

#[tokio::test]
async fn a_row_whose_answer_is_not_recorded_is_rolled_back() {
    let options = shared().await.database().await;
    let execute = async |statement: &'static str| {
        let mut connection = options.connect().await.unwrap();
        execute(&mut connection, statement).await;
    };
    let statements = [
        "ALTER TABLE idempotency_record ADD CONSTRAINT forbid CHECK (record IS NULL)",
        "ALTER TABLE idempotency_record DROP CONSTRAINT forbid",
    ];
    let url = url_of(&options);
    super::a_row_whose_answer_is_not_recorded_is_rolled_back(at(&url), execute, statements).await;
}

#[tokio::test]
async fn without_an_operation_rows_have_no_key() {
    super::without_an_operation_rows_have_no_key(at(&empty_database().await)).await;
}

#[tokio::test]
async fn two_processes_give_every_key_one_row() {
    super::two_processes_give_every_key_one_row(at(&empty_database().await)).await;
}

#[tokio::test]
async fn two_processes_run_a_request_once_between_them() {
    super::two_processes_run_a_request_once_between_them(at(&empty_database().await)).await;
}

#[tokio::test]
async fn rows_and_records_outlive_the_process() {
    super::rows_and_records_outlive_the_process(at(&empty_database().await)).await;
}

#[tokio::test]
async fn many_processes_start_at_once() {
    super::many_processes_start_at_once(at(&empty_database().await)).await;
}

#[tokio::test]
async fn databases_of_one_server_are_apart() {
    for url in [empty_database().await, empty_database().await] {
        let testbed = at(&url).testbed().await;
        assert!(!testbed.post("/transfer?amount=1", "k").await.is_replay());
        assert!(testbed.post("/transfer?amount=1", "k").await.is_replay());
        assert_eq!(ledger(&testbed).await, (1, 1));
    }
}

#[tokio::test]
async fn a_server_that_is_killed_is_refused_for_and_used_again_once_it_is_back() {
    let server = PostgresServer::start().await;
    let testbed = at(&server.url()).testbed().await;
    testbed.post("/transfer?amount=1", "before").await;

    server.kill();
    for _ in 0..3 {
        let begun = Instant::now();
        let refused = testbed.post("/transfer?amount=1", "while").await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.code().as_deref(), Some("store-unavailable"));
        assert!(begun.elapsed() < AT_MOST);
    }
    assert_eq!(testbed.runs().await, 1);
    let ledger_while = testbed.ask("GET /ledger").await;
    assert_eq!(ledger_while.status, StatusCode::SERVICE_UNAVAILABLE);

    server.restart().await;
    let before = post_patiently(&testbed, "/transfer?amount=1", "before").await;
    assert!(before.is_replay());
    for is_replay in [false, true] {
        let answer = post_patiently(&testbed, "/transfer?amount=1", "while").await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.is_replay(), is_replay);
    }
    assert_eq!(ledger(&testbed).await, (2, 2));
}

#[tokio::test]
async fn a_server_that_hangs_is_refused_for_and_used_again_once_it_goes_on() {
    let server = PostgresServer::start().await;
    let testbed = at(&server.url()).testbed().await;
    testbed.post("/transfer?amount=1", "before").await;

    server.freeze();
    let begun = Instant::now();
    let refused = testbed.post("/transfer?amount=1", "while").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.code().as_deref(), Some("store-unavailable"));
    assert!(begun.elapsed() < AT_MOST);
    server.thaw();

    let before = post_patiently(&testbed, "/transfer?amount=1", "before").await;
    assert!(before.is_replay());
    for is_replay in [false, true] {
        let answer = post_patiently(&testbed, "/transfer?amount=1", "while").await;
        assert_eq!(answer.is_replay(), is_replay);
    }
    assert_eq!(ledger(&testbed).await, (2, 2));
}

#[tokio::test]
async fn a_run_under_way_is_recorded_though_the_server_was_killed_meanwhile() {
    let server = PostgresServer::start().await;
    let testbed = at(&server.url()).testbed().await;
    let slow = "/slow?ms=1500";
    let first = async {
        let answer = testbed.post(slow, "k").await;
        assert_eq!(answer.text(), "slept:1500");
    };
    let restart = async {
        testbed.until_runs(1).await;
        server.restart().await;
    };
    tokio::join!(first, restart);
    assert!(post_patiently(&testbed, slow, "k").await.is_replay());
    assert_eq!(testbed.runs().await, 1);
}

#[tokio::test]
async fn what_is_a_risk_is_a_warning() {
    let server = PostgresServer::start().await;
    let sound = url_of(&server.database().await);
    let (code, stderr) = at(&sound).run_to_listen_nowhere();
    assert!(stderr.starts_with("testbed: 192.0.2.1:1: "), "{stderr}");
    assert_eq!(code, Some(1));

    let hasty = server.database().await;
    let mut connection = hasty.connect().await.unwrap();
    let name = hasty.get_database().unwrap();
    let set = format!("ALTER DATABASE {name} SET synchronous_commit = off");
    execute(&mut connection, &set).await;
    let (code, stderr) = at(&url_of(&hasty)).run_to_listen_nowhere();
    let (warning, error) = stderr.split_once('\n').unwrap();
    assert!(warning.starts_with("testbed: warning: "), "{stderr}");
    assert!(warning.contains("synchronous_commit"), "{stderr}");
    assert!(error.starts_with("testbed: 192.0.2.1:1: "), "{stderr}");
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_an_error() {
    let server = PostgresServer::start().await;
    let missing = format!(
        "postgres://postgres:secret@127.0.0.1:{}/missing",
        server.port()
    );
    assert_unusable(at(&missing), "database \"missing\" does not exist");
    let begun = Instant::now();
    server.kill();
    assert_unusable(at(&server.url()), "Connection refused");
    assert!(begun.elapsed() < AT_MOST);
}

#[test]
fn a_url_that_cannot_be_used_is_misuse_and_is_not_repeated() {
    assert_needs_a_url("postgres");
    for url in [
        "",
        "nowhere",
        "http://:secret@127.0.0.1",
        "postgres://user:secret@127.0.0.1:port",
        "postgres://user:secret@127.0.0.1:99999",
        "postgres://user:secret@127.0.0.1?sslmode=no",
        "postgres://user:secret@127.0.0.1?port=x",
    ] {
        assert_misused(at(url));
    }
}
