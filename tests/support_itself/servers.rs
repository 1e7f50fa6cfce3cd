//! Servers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::support::gates::until;
use super::support::redis::{
    RedisServer, command_stats, error_stats, reset_stats, shared, unique_prefix,
};
use super::{get, increment, read};

/// Not a test: what the tests below run in a process of its own.
const SUBJECT: &str = "servers::a_test_program_that_leaves_its_server_to_others";
const FATE: &str = "SUPPORT_ITSELF_FATE";

#[tokio::test]
async fn a_dropped_server_is_gone_at_once_with_its_directory() {
    let server = RedisServer::start().await;
    let mut connection = server.multiplexed().await;
    assert_eq!(increment(&mut connection, "n").await.unwrap(), 1);
    let (process, directory) = (server.process_id(), server.directory().to_owned());
    assert!(is_alive(process) && directory.exists());
    drop(server);
    assert!(!is_alive(process));
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_server_that_was_stopped_or_killed_is_gone_when_dropped_too() {
    let stopped = RedisServer::start().await;
    stopped.stop().await;
    let process = stopped.process_id();
    drop(stopped);
    assert!(!is_alive(process));

    let killed = RedisServer::start().await;
    killed.kill();
    let directory = killed.directory().to_owned();
    drop(killed);
    assert!(!directory.exists());
}

#[tokio::test]
#[ignore = "a part of the tests below, which run it in a process of its own"]
async fn a_test_program_that_leaves_its_server_to_others() {
    let Ok(fate) = std::env::var(FATE) else {
        return;
    };
    let server = shared().await;
    println!("\nprocess {}", server.process_id());
    println!("directory {}", server.directory().display());
    if fate == "is killed" {
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn a_test_program_that_is_killed_leaves_no_server_behind() {
    let (mut program, mut output) = subject("is killed");
    let (process, directory) = announced(&mut output);
    assert!(is_alive(process) && directory.exists());
    program.kill().unwrap();
    program.wait().unwrap();
    until_gone(process, &directory).await;
}

#[tokio::test]
async fn a_test_program_that_drops_nothing_at_its_end_leaves_no_server_behind() {
    let (mut program, mut output) = subject("ends");
    let (process, directory) = announced(&mut output);
    assert!(program.wait().unwrap().success());
    until_gone(process, &directory).await;
}

#[tokio::test]
async fn a_server_that_is_killed_and_restarted_keeps_what_its_log_has() {
    let server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut connection = server.manager().await;
    let before = (server.process_id(), server.addr());
    assert_eq!(increment(&mut connection, "n").await.unwrap(), 1);
    server.kill();
    assert!(!server.is_running());
    assert!(TcpStream::connect(server.addr()).is_err());
    assert!(increment(&mut connection, "n").await.is_err());
    server.restart().await;
    assert_ne!(server.process_id(), before.0);
    assert_eq!(server.addr(), before.1);
    assert_eq!(read(&mut server.multiplexed().await, "n").await, Some(1));
    let mut count = increment(&mut connection, "n").await;
    if count.is_err() {
        count = increment(&mut connection, "n").await;
    }
    assert_eq!(count.unwrap(), 2, "the manager finds the new process");
}

#[tokio::test]
async fn a_server_without_a_log_forgets_when_restarted() {
    let server = RedisServer::start().await;
    increment(&mut server.multiplexed().await, "n")
        .await
        .unwrap();
    server.restart().await;
    assert_eq!(read(&mut server.multiplexed().await, "n").await, None);
}

#[tokio::test]
async fn a_stopped_server_is_silent_and_then_goes_on() {
    let server = RedisServer::start().await;
    let mut connection = server.multiplexed().await;
    server.stop().await;
    let answer = increment(&mut connection, "n");
    tokio::pin!(answer);
    let silent = timeout(Duration::from_millis(100), &mut answer).await;
    assert!(silent.is_err());
    server.cont();
    assert_eq!(answer.await.unwrap(), 1);
}

#[tokio::test]
async fn a_replica_starts_in_sync_and_can_be_promoted() {
    let primary = RedisServer::start().await;
    let mut connection = primary.multiplexed().await;
    increment(&mut connection, "n").await.unwrap();
    let populate = redis::cmd("DEBUG").arg("POPULATE").arg(100_000).take();
    primary.query::<()>(&populate).await;
    let replica = RedisServer::start_replica_of(&primary).await;
    let mut on_replica = replica.multiplexed().await;
    assert_eq!(read(&mut on_replica, "n").await, Some(1));
    assert_eq!(replica.query::<u64>(&redis::cmd("DBSIZE")).await, 100_001);

    increment(&mut connection, "n").await.unwrap();
    replica.until_in_sync_with(&primary).await;
    assert_eq!(read(&mut on_replica, "n").await, Some(2));

    let refused = increment(&mut on_replica, "n").await.unwrap_err();
    assert_eq!(refused.code(), Some("READONLY"));
    replica.promote().await;
    assert_eq!(increment(&mut on_replica, "n").await.unwrap(), 3);
    assert_eq!(read(&mut connection, "n").await, Some(2), "two primaries");
}

#[tokio::test]
async fn a_small_replica_is_in_sync_within_a_second() {
    let primary = RedisServer::start().await;
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        let _replica = RedisServer::start_replica_of(&primary).await;
        fastest = fastest.min(started.elapsed());
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
}

#[tokio::test]
async fn further_arguments_win_over_the_defaults() {
    let server = RedisServer::start_with(&["--maxmemory", "3mb"]).await;
    let mut connection = server.multiplexed().await;
    let mut fill = redis::cmd("SET");
    fill.arg("big").arg(vec![b'x'; 3 << 20]);
    let _ = fill.query_async::<()>(&mut connection).await;
    let full = increment(&mut connection, "n").await.unwrap_err();
    assert_eq!(full.code(), Some("OOM"));
    assert!(error_stats(&server).await["OOM"] >= 1);
}

#[tokio::test]
async fn the_commands_of_a_test_are_counted_and_no_others() {
    let server = RedisServer::start().await;
    let mut connection = server.manager().await;
    increment(&mut connection, "n").await.unwrap();
    reset_stats(&server).await;
    assert_eq!(command_stats(&server).await, BTreeMap::new());
    for _ in 0..3 {
        increment(&mut connection, "n").await.unwrap();
    }
    server.query::<u64>(&get("n")).await;
    let expected = [("get".to_owned(), 1), ("incr".to_owned(), 3)];
    assert_eq!(command_stats(&server).await, expected.into());
}

#[tokio::test]
async fn tests_that_share_a_server_have_keys_of_their_own() {
    let (one, other) = (unique_prefix(), unique_prefix());
    assert_ne!(one, other);
    let mut connection = shared().await.multiplexed().await;
    increment(&mut connection, &one).await.unwrap();
    assert_eq!(read(&mut connection, &other).await, None);
    assert_eq!(shared().await.process_id(), shared().await.process_id());
}

#[test]
fn what_starts_and_waits_for_servers_may_be_spawned() {
    fn check<T: Send>(_: impl FnOnce() -> T) {}
    check(RedisServer::start);
    check(|| async {
        let primary = RedisServer::start().await;
        let replica = RedisServer::start_replica_of(&primary).await;
        primary.restart().await;
        replica.until_in_sync_with(&primary).await;
    });
}

fn subject(fate: &str) -> (Child, BufReader<ChildStdout>) {
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", SUBJECT, "--ignored", "--nocapture"])
        .env(FATE, fate)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(program.stdout.take().unwrap());
    (program, output)
}

fn announced(output: &mut impl BufRead) -> (u32, PathBuf) {
    let mut lines = output.lines().map(Result::unwrap);
    let mut value = |name: &str| lines.find_map(|line| line.strip_prefix(name).map(str::to_owned));
    let process = value("process ").unwrap().parse().unwrap();
    (process, value("directory ").unwrap().into())
}

async fn until_gone(process: u32, directory: &Path) {
    until("the server is gone", || !is_alive(process)).await;
    until("its directory is gone", || !directory.exists()).await;
}

fn is_alive(process: u32) -> bool {
    let mut asked = Command::new("kill");
    asked
        .args(["-0", &process.to_string()])
        .stderr(Stdio::null());
    asked.status().unwrap().success()
}
