//! The example `testbed` over Redis: several processes share one server, outlive the loss of
//! it, and none serves on a server that is unfit.
#![cfg(all(feature = "redis", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use http::StatusCode;
use support::Answer;
use support::redis::{RedisServer, shared_cluster};
use support::testbed::{Testbed, run};

const PATIENCE: Duration = Duration::from_secs(20);

/// The layer's time-out for a call to the store, twice since a call is repeated, and some
/// more for a machine that is busy.
const AT_MOST: Duration = Duration::from_secs(6);

async fn testbed(url: &str) -> Testbed {
    Testbed::start(&["--store", "redis", "--store-url", url]).await
}

/// It is not served, though the store is fine: there is no such address here.
fn run_to_listen_nowhere(url: &str) -> (Option<i32>, String) {
    run_over(&["--store-url", url, "--listen", "192.0.2.1:1"])
}

/// The exit code, and what is on stderr.
fn run_over(flags: &[&str]) -> (Option<i32>, String) {
    let output = run(&[&["--store", "redis"], flags].concat());
    assert!(output.stdout.is_empty(), "{flags:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), stderr)
}

/// Sends the same again, as long as the store is not there.
async fn post_patiently(testbed: &Testbed, path: &str, key: &str) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = testbed.post(path, key).await;
        let is_refused = answer.status == StatusCode::SERVICE_UNAVAILABLE;
        // A claim that is in doubt is given back, as soon as that is possible.
        if !is_refused && answer.status != StatusCode::CONFLICT {
            return answer;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn two_processes_run_a_request_once_between_them() {
    let server = RedisServer::start().await;
    let one = testbed(&server.url()).await;
    let other = testbed(&server.url()).await;
    let slow = "/slow?ms=1000";
    let (a, b) = tokio::join!(one.post(slow, "k"), other.post(slow, "k"));
    let mut statuses = [a.status.as_u16(), b.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    for testbed in [&one, &other] {
        let answer = testbed.post(slow, "k").await;
        assert!(answer.is_replay());
        assert_eq!(answer.text(), "slept:1000");
    }
    assert_eq!(one.runs().await + other.runs().await, 1);
}

#[tokio::test]
async fn records_outlive_the_process() {
    let server = RedisServer::start().await;
    let first = testbed(&server.url()).await;
    let answer = first.post_with("/echo", "k", &[], "hello").await;
    assert_eq!(answer.status, StatusCode::CREATED);
    first.terminate();
    assert_eq!(first.exit().await.0, Some(0));

    let second = testbed(&server.url()).await;
    let replay = second.post_with("/echo", "k", &[], "hello").await;
    assert!(replay.is_replay());
    assert_eq!((replay.status, replay.body), (answer.status, answer.body));
    assert_eq!(second.runs().await, 0);
}

#[tokio::test]
async fn databases_of_one_server_are_apart() {
    let server = RedisServer::start().await;
    for database in [0, 1] {
        let testbed = testbed(&format!("{}{database}", server.url())).await;
        assert!(!testbed.post("/echo", "k").await.is_replay());
        assert!(testbed.post("/echo", "k").await.is_replay());
    }
}

#[tokio::test]
async fn a_server_that_is_killed_is_refused_for_and_used_again_once_it_is_back() {
    let server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let testbed = testbed(&server.url()).await;
    testbed.post("/echo", "before").await;

    // Longer than the driver tries to reconnect for the sake of one call.
    server.kill();
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(3) {
        let begun = Instant::now();
        let refused = testbed.post("/echo", "while").await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.code().as_deref(), Some("store-unavailable"));
        assert!(begun.elapsed() < AT_MOST);
    }
    assert_eq!(testbed.runs().await, 1);

    server.restart().await;
    let before = post_patiently(&testbed, "/echo", "before").await;
    assert!(before.is_replay());
    for is_replay in [false, true] {
        let answer = post_patiently(&testbed, "/echo", "while").await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.is_replay(), is_replay);
    }
    assert_eq!(testbed.runs().await, 2);
}

#[tokio::test]
async fn a_server_that_hangs_is_refused_for_and_used_again_once_it_goes_on() {
    let server = RedisServer::start().await;
    let testbed = testbed(&server.url()).await;
    testbed.post("/echo", "before").await;

    server.stop().await;
    let begun = Instant::now();
    let refused = testbed.post("/echo", "while").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.code().as_deref(), Some("store-unavailable"));
    assert!(begun.elapsed() < AT_MOST);
    server.cont();

    assert!(
        post_patiently(&testbed, "/echo", "before")
            .await
            .is_replay()
    );
    for is_replay in [false, true] {
        let answer = post_patiently(&testbed, "/echo", "while").await;
        assert_eq!(answer.is_replay(), is_replay);
    }
    assert_eq!(testbed.runs().await, 2);
}

#[tokio::test]
async fn a_run_under_way_is_recorded_though_the_server_was_killed_meanwhile() {
    let server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let testbed = testbed(&server.url()).await;
    let mut first = testbed.connect().await;
    let slow = "/slow?ms=1500";
    let request = support::wire::http1_post(slow, "k", &[], "");
    first.write(request).await;
    testbed.until_runs(1).await;
    server.restart().await;
    let answer = first.answer().await;
    assert_eq!(answer.text(), "slept:1500");
    assert!(post_patiently(&testbed, slow, "k").await.is_replay());
    assert_eq!(testbed.runs().await, 1);
}

#[tokio::test]
async fn urls_with_commas_between_them_are_a_cluster() {
    let cluster = shared_cluster().await;
    let urls: Vec<_> = cluster.nodes().iter().map(RedisServer::url).collect();
    let one = testbed(&urls.join(",")).await;
    let other = testbed(&format!("{0},{0}", urls[1])).await;
    // So many that there are some on every node.
    for key in 0..30 {
        let key = key.to_string();
        assert_eq!(one.post("/echo", &key).await.status, StatusCode::CREATED);
        assert!(other.post("/echo", &key).await.is_replay());
    }
    assert_eq!(one.runs().await, 30);
    assert_eq!(other.runs().await, 0);
    for node in cluster.nodes() {
        assert!(node.query::<u64>(&redis::cmd("DBSIZE")).await > 0);
    }
}

#[tokio::test]
async fn one_node_alone_is_no_connection_to_a_cluster() {
    for node in shared_cluster().await.nodes() {
        let (code, stderr) = run_to_listen_nowhere(&node.url());
        assert_eq!(code, Some(1));
        assert!(stderr.starts_with("testbed: --store-url: "), "{stderr}");
        assert!(stderr.contains("follows no redirections"), "{stderr}");
    }
}

#[tokio::test]
async fn an_unfit_server_is_an_error() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let (code, stderr) = run_to_listen_nowhere(&server.url());
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("testbed: --store-url: "), "{stderr}");
    assert!(
        stderr.contains("`maxmemory-policy` is `allkeys-lru`"),
        "{stderr}"
    );
    assert!(!stderr.contains("192.0.2.1"), "{stderr}");
}

#[tokio::test]
async fn what_is_a_risk_is_a_warning() {
    let server = RedisServer::start().await;
    let (code, stderr) = run_to_listen_nowhere(&server.url());
    let lines: Vec<_> = stderr.lines().collect();
    let [warning, error] = lines[..] else {
        panic!("{stderr}");
    };
    assert!(warning.starts_with("testbed: warning: there is neither an append-only file"));
    assert!(error.starts_with("testbed: 192.0.2.1:1: "), "{error}");
    assert_eq!(code, Some(1));

    let server = RedisServer::start_with(&["--appendonly", "yes"]).await;
    let (code, stderr) = run_to_listen_nowhere(&server.url());
    assert!(stderr.starts_with("testbed: 192.0.2.1:1: "), "{stderr}");
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error() {
    let server = RedisServer::start().await;
    server.kill();
    let url = server.url();
    for urls in [url.clone(), format!("{url},{url}")] {
        let begun = Instant::now();
        let (code, stderr) = run_over(&["--store-url", &urls]);
        assert_eq!(code, Some(1));
        assert!(stderr.starts_with("testbed: --store-url: "), "{stderr}");
        assert!(stderr.contains("Connection refused"), "{stderr}");
        assert!(begun.elapsed() < AT_MOST);
    }
}

#[test]
fn a_store_url_that_cannot_be_used_is_misuse_and_is_not_repeated() {
    let (code, stderr) = run_over(&[]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("--store redis needs a --store-url"),
        "{stderr}"
    );
    for url in [
        "",
        "nowhere",
        "http://:secret@127.0.0.1",
        "redis://:secret@127.0.0.1/x",
        "redis://:secret@127.0.0.1,",
        "redis://:secret@127.0.0.1,redis://:other-secret@127.0.0.1",
    ] {
        let (code, stderr) = run_over(&["--store-url", url]);
        assert_eq!(code, Some(2), "{url}: {stderr}");
        assert!(stderr.contains("--store-url cannot be used: "), "{stderr}");
        assert!(!stderr.contains("secret"), "{stderr}");
    }
}
