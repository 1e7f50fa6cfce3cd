//! PostgreSQL servers.

use std::io::{BufRead, BufReader, Lines};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Executor};
use tokio::time::timeout;

use super::support::gates::until;
use super::support::postgres::{
    PgBouncer, PostgresServer, execute, pool_at, scalar, shared, url_of,
};

/// Not a test: what the tests below run in a process of its own.
const SUBJECT: &str = "postgres::a_test_program_that_leaves_its_server_to_others";
const FATE: &str = "SUPPORT_ITSELF_FATE";

#[tokio::test]
async fn a_dropped_server_is_gone_at_once_with_its_processes_and_directory() {
    let server = PostgresServer::start().await;
    let directory = server.directory().to_owned();
    let mut connection = server.options().connect().await.unwrap();
    let at_work = tokio::spawn(async move { connection.execute("SELECT pg_sleep(60)").await });
    assert!(processes_in(&directory) > 3);
    drop(server);
    assert_eq!(processes_in(&directory), 0);
    assert!(!directory.exists());
    assert!(at_work.await.unwrap().is_err());
}

#[tokio::test]
async fn a_server_that_was_frozen_stopped_or_killed_is_gone_when_dropped_too() {
    let (frozen, stopped, killed) = tokio::join!(
        PostgresServer::start(),
        PostgresServer::start(),
        PostgresServer::start()
    );
    frozen.freeze();
    stopped.stop().await;
    killed.kill();
    for server in [frozen, stopped, killed] {
        let directory = server.directory().to_owned();
        drop(server);
        assert_eq!(processes_in(&directory), 0);
        assert!(!directory.exists());
    }
}

#[tokio::test]
#[ignore = "a part of the tests below, which run it in a process of its own"]
async fn a_test_program_that_leaves_its_server_to_others() {
    let Ok(fate) = std::env::var(FATE) else {
        return;
    };
    let server = shared().await;
    let _connection = server.options().connect().await.unwrap();
    println!("\ndirectory {}", server.directory().display());
    if fate == "is killed" {
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn a_test_program_that_is_killed_leaves_no_server_behind() {
    let (mut program, _output, directory) = subject("is killed");
    assert!(processes_in(&directory) > 3);
    program.kill().unwrap();
    program.wait().unwrap();
    until_gone(&directory).await;
}

#[tokio::test]
async fn a_test_program_that_drops_nothing_at_its_end_leaves_no_server_behind() {
    let (mut program, _output, directory) = subject("ends");
    assert!(program.wait().unwrap().success());
    until_gone(&directory).await;
}

#[tokio::test]
async fn a_killed_server_comes_back_with_what_it_has_acknowledged() {
    let server = PostgresServer::start().await;
    let before = (server.process_id(), server.addr());
    let pool = server.pool().await;
    execute(&pool, "CREATE TABLE n (n bigint)").await;
    execute(&pool, "INSERT INTO n VALUES (1)").await;
    let mut open = pool.begin().await.unwrap();
    execute(&mut *open, "INSERT INTO n VALUES (2)").await;
    server.kill();
    assert!(!server.is_running());
    assert!(TcpStream::connect(server.addr()).is_err());
    assert!(open.commit().await.is_err());
    server.restart().await;
    assert_ne!(server.process_id(), before.0);
    assert_eq!(server.addr(), before.1);
    assert!(server.log().contains("not properly shut down"));
    assert_eq!(
        scalar::<i64>(&pool, "SELECT sum(n)::bigint FROM n").await,
        1
    );
}

#[tokio::test]
async fn a_stopped_server_has_nothing_to_recover() {
    let server = PostgresServer::start().await;
    let pool = server.pool().await;
    execute(&pool, "CREATE TABLE n (n bigint)").await;
    server.stop().await;
    assert!(TcpStream::connect(server.addr()).is_err());
    server.restart().await;
    assert!(!server.log().contains("not properly shut down"));
    assert_eq!(scalar::<i64>(&pool, "SELECT count(*) FROM n").await, 0);
}

#[tokio::test]
async fn a_frozen_server_is_silent_and_then_goes_on() {
    let server = PostgresServer::start().await;
    let mut connection = server.options().connect().await.unwrap();
    server.freeze();
    let answer = scalar::<i32>(&mut connection, "SELECT 7");
    tokio::pin!(answer);
    let silent = timeout(Duration::from_millis(100), &mut answer).await;
    assert!(silent.is_err());
    server.thaw();
    assert_eq!(answer.await, 7);
}

#[tokio::test]
async fn further_settings_win_over_the_defaults() {
    let durable = PostgresServer::start().await;
    let fast = PostgresServer::start_with(&[("fsync", "off"), ("max_connections", "7")]).await;
    for (server, fsync, connections) in [(&durable, "on", "200"), (&fast, "off", "7")] {
        let pool = server.pool().await;
        assert_eq!(scalar::<String>(&pool, "SHOW fsync").await, fsync);
        let most: String = scalar(&pool, "SHOW max_connections").await;
        assert_eq!(most, connections);
    }
}

#[tokio::test]
async fn a_server_is_not_taken_for_another_that_has_its_port() {
    let other = PostgresServer::start().await;
    let port = other.port().to_string();
    let refused = tokio::spawn(async move { PostgresServer::start_with(&[("port", &port)]).await });
    let panic = refused.await.err().unwrap().into_panic();
    let message = panic.downcast_ref::<&str>().unwrap();
    assert_eq!(*message, "every port is taken by somebody else");
}

#[tokio::test]
async fn tests_that_share_a_server_have_databases_of_their_own() {
    let server = shared().await;
    assert_eq!(server.process_id(), shared().await.process_id());
    let (one, other) = tokio::join!(server.database(), server.database());
    assert_ne!(url_of(&one), url_of(&other));
    execute(&pool_at(one).await, "CREATE TABLE n (n bigint)").await;
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(scalar::<i64>(&pool_at(other).await, tables).await, 0);
}

#[tokio::test]
async fn what_a_program_is_told_leads_to_the_same_database() {
    let options = shared().await.database().await;
    let told: sqlx::postgres::PgConnectOptions = url_of(&options).parse().unwrap();
    let name = "SELECT current_database()::text";
    let name: String = scalar(&mut told.connect().await.unwrap(), name).await;
    assert_eq!(Some(&*name), options.get_database());
}

#[tokio::test]
async fn a_pooler_gives_a_connection_for_one_transaction_only() {
    let server = shared().await;
    let bouncer = PgBouncer::before(server, 1).await;
    let options = bouncer.options().statement_cache_capacity(0);
    let mut one = options.connect().await.unwrap();
    let mut other = options.connect().await.unwrap();
    assert_eq!(backend(&mut one).await, backend(&mut other).await);

    execute(&mut one, "BEGIN").await;
    let waits = timeout(Duration::from_millis(100), backend(&mut other));
    assert!(waits.await.is_err(), "the only one is taken");
    execute(&mut one, "COMMIT").await;
    let mut third = options.connect().await.unwrap();
    timeout(Duration::from_secs(10), backend(&mut third))
        .await
        .unwrap();
}

#[test]
fn what_starts_and_waits_for_servers_may_be_spawned() {
    fn check<T: Send>(_: impl FnOnce() -> T) {}
    check(PostgresServer::start);
    check(|| async {
        let server = PostgresServer::start().await;
        server.restart().await;
        server.stop().await;
        server.database().await;
        PgBouncer::before(&server, 1).await;
    });
}

async fn backend(connection: &mut PgConnection) -> i32 {
    // By the simple protocol: a statement that is prepared could be looked for elsewhere.
    let row = connection.fetch_one("SELECT pg_backend_pid()").await;
    sqlx::Row::get_unchecked(&row.unwrap(), 0)
}

fn subject(fate: &str) -> (Child, Lines<BufReader<ChildStdout>>, PathBuf) {
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", SUBJECT, "--ignored", "--nocapture"])
        .env(FATE, fate)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut announced = lines.by_ref().map(Result::unwrap);
    let directory = announced.find_map(|line| line.strip_prefix("directory ").map(PathBuf::from));
    (program, lines, directory.unwrap())
}

async fn until_gone(directory: &Path) {
    until("the server is gone", || processes_in(directory) == 0).await;
    until("its directory is gone", || !directory.exists()).await;
}

/// How many processes of PostgreSQL live in it.
fn processes_in(directory: &Path) -> usize {
    let data = directory.join("data");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read_link(process.path().join("cwd")).ok())
        .filter(|cwd| cwd.starts_with(&data))
        .count()
}
