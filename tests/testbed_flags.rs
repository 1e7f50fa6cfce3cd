//! The example `testbed` keeps its contract: flags, exit codes, and shutdown, seen from
//! outside of its process.
#![cfg(all(feature = "memory", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use http::StatusCode;
use support::testbed::{Testbed, run};
use support::wire::{Http1, Http2, http1_post};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_flag_takes_its_value_in_either_form() {
    for flags in [
        &["--listen", "localhost:0", "--scope-header", "x-account"][..],
        &["--listen=localhost:0", "--scope-header=x-account"],
        // The last one counts.
        &["--scope-header=x-other", "--scope-header=x-account"],
    ] {
        let testbed = Testbed::start(flags).await;
        let ann = &["x-account: ann"];
        assert!(!testbed.post_with("/echo", "k", ann, "").await.is_replay());
        assert!(testbed.post_with("/echo", "k", ann, "").await.is_replay());
        let bob = &["x-account: bob"];
        assert!(!testbed.post_with("/echo", "k", bob, "").await.is_replay());
        let nobody = testbed.post("/echo", "k").await;
        assert_eq!(nobody.status, StatusCode::FORBIDDEN);
        assert_eq!(nobody.code().as_deref(), Some("unknown-caller"));
        assert_eq!(testbed.runs().await, 2);
    }
}

#[test]
fn a_misused_command_line_is_told_on_stderr_with_exit_code_2() {
    for (flags, told) in [
        (&["--bogus"][..], "there is no flag `--bogus`"),
        (&["serve"], "there is no flag `serve`"),
        (&["--listen"], "--listen needs a value"),
        (&["--store", "--no-layer"], "--store needs a value"),
        (&["--no-layer=yes"], "--no-layer takes no value"),
        (&["--listen", "nowhere"], "--listen cannot be `nowhere`"),
        (&["--store", "paper"], "no store is called `paper`"),
        (&["--retention-ms", "0"], "--retention-ms cannot be `0`"),
        (&["--lease-ms=soon"], "--lease-ms cannot be `soon`"),
        (&["--lease-ms", "9"], "--lease-ms cannot be `9`"),
        (&["--lease-ms="], "--lease-ms cannot be ``"),
        (&["--max-hold-ms", "-1"], "--max-hold-ms cannot be `-1`"),
        (&["--scope-header", "x y"], "--scope-header cannot be `x y`"),
        (&["--on-conflict=wait"], "--on-conflict cannot be `wait`"),
        (&["--on-conflict=wait:0"], "--on-conflict cannot be `0`"),
        (&["--on-failure", "cry"], "--on-failure cannot be `cry`"),
        (&["--request-limit=-1"], "--request-limit cannot be `-1`"),
        (
            &["--response-limit", "1k"],
            "--response-limit cannot be `1k`",
        ),
    ] {
        let output = run(flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(told), "{flags:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
}

#[test]
fn a_store_that_is_not_compiled_in_or_has_no_url_is_misuse() {
    for (name, is_compiled_in) in [
        ("sqlite", cfg!(feature = "sqlite")),
        ("redis", cfg!(feature = "redis")),
        ("postgres", cfg!(feature = "postgres")),
    ] {
        let output = run(&["--store", name]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let told = match is_compiled_in {
            true => format!("--store {name} needs a --store-url"),
            false => format!("the store `{name}` is not compiled in"),
        };
        assert!(stderr.contains(&told), "{stderr}");
        assert!(output.stdout.is_empty(), "{name}");
    }
}

#[test]
fn help_names_every_flag() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
    let help = String::from_utf8_lossy(&output.stdout);
    for flag in [
        "--listen ",
        "--store ",
        "--store-url ",
        "--retention-ms ",
        "--lease-ms ",
        "--max-hold-ms ",
        "--require-key ",
        "--scope-header ",
        "--on-conflict ",
        "--on-failure ",
        "--request-limit ",
        "--response-limit ",
        "--no-layer ",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[tokio::test]
async fn the_memory_store_is_there_and_needs_no_url() {
    let testbed = Testbed::start(&["--store", "memory", "--store-url", ""]).await;
    testbed.post("/echo", "k").await;
    assert!(testbed.post("/echo", "k").await.is_replay());
    assert_eq!(testbed.runs().await, 1);
}

#[tokio::test]
async fn an_answer_is_kept_for_its_retention() {
    let testbed = Testbed::start(&["--retention-ms", "200"]).await;
    testbed.post("/echo", "k").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while testbed.post("/echo", "k").await.is_replay() {
        assert!(Instant::now() < deadline, "it is kept for longer");
    }
    assert_eq!(testbed.runs().await, 2);
}

#[tokio::test]
async fn a_run_that_is_held_for_too_long_is_taken_over_once_its_lease_ends() {
    let testbed = Testbed::start(&["--lease-ms=100", "--max-hold-ms=300"]).await;
    let mut first = testbed.connect().await;
    first.write(http1_post("/slow?ms=8000", "k", &[], "")).await;
    testbed.until_runs(1).await;
    let deadline = Instant::now() + Duration::from_secs(6);
    let mut others = Vec::new();
    while testbed.runs().await == 1 {
        assert!(Instant::now() < deadline, "it is held for longer");
        let mut other = testbed.connect().await;
        other.write(http1_post("/slow?ms=8000", "k", &[], "")).await;
        others.push(other);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(testbed.runs().await, 2);
}

#[tokio::test]
async fn a_key_may_be_required() {
    let testbed = Testbed::start(&["--require-key"]).await;
    let refused = testbed.ask("POST /echo").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.code().as_deref(), Some("missing-key"));
    assert_eq!(testbed.runs().await, 0);
    testbed.ask("PUT /echo").await;
    testbed.post("/echo", "k").await;
    assert_eq!(testbed.runs().await, 2);
}

#[tokio::test]
async fn a_conflict_is_refused_or_waited_for() {
    let slow = "/slow?ms=1000";
    for (flag, statuses) in [("reject", [200, 409]), ("wait:15000", [200, 200])] {
        let testbed = Testbed::start(&["--on-conflict", flag]).await;
        let (one, other) = tokio::join!(testbed.post(slow, "k"), testbed.post(slow, "k"));
        let mut got = [one.status.as_u16(), other.status.as_u16()];
        got.sort_unstable();
        assert_eq!(got, statuses, "{flag}");
        let replays = [&one, &other].iter().filter(|it| it.is_replay()).count();
        assert_eq!(replays, usize::from(flag != "reject"), "{flag}");
        assert_eq!(testbed.runs().await, 1);
    }
}

#[tokio::test]
async fn a_wait_ends_in_a_refusal() {
    let testbed = Testbed::start(&["--on-conflict=wait:200"]).await;
    let mut first = testbed.connect().await;
    first.write(http1_post("/slow?ms=5000", "k", &[], "")).await;
    testbed.until_runs(1).await;
    let begun = Instant::now();
    let refused = testbed.post("/slow?ms=5000", "k").await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!(testbed.runs().await, 1);
}

#[tokio::test]
async fn a_failed_run_is_run_again_replayed_or_refused() {
    for (flag, retry, code, runs) in [
        ("run-again", 200, None, 2),
        ("replay", 500, None, 1),
        ("refuse", 500, Some("outcome-unknown"), 1),
    ] {
        let testbed = Testbed::start(&["--on-failure", flag]).await;
        let first = testbed.post("/flaky?failures=1", "k").await;
        assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR);
        let second = testbed.post("/flaky?failures=1", "k").await;
        assert_eq!(second.status.as_u16(), retry, "{flag}");
        assert_eq!(second.code().as_deref(), code, "{flag}");
        assert_eq!(second.is_replay(), flag == "replay");
        assert_eq!(testbed.runs().await, runs, "{flag}");
    }
}

#[tokio::test]
async fn bodies_have_limits() {
    let testbed = Testbed::start(&["--request-limit=4", "--response-limit=4"]).await;
    let refused = testbed.post_with("/echo", "a", &[], "12345").await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(testbed.runs().await, 0);
    for (key, body, omitted) in [("b", "1234", None), ("c", "", None)] {
        testbed.post_with("/echo", key, &[], body).await;
        let retry = testbed.post_with("/echo", key, &[], body).await;
        assert!(retry.is_replay());
        assert_eq!(retry.text(), body);
        assert_eq!(retry.header("idempotency-body"), omitted);
    }
    assert_eq!(testbed.post("/large?bytes=5", "d").await.text(), "xxxxx");
    let retry = testbed.post("/large?bytes=5", "d").await;
    assert!(retry.is_replay());
    assert_eq!(retry.header("idempotency-body"), Some("omitted"));
    assert_eq!(testbed.runs().await, 3);
}

#[tokio::test]
async fn without_the_layer_the_routes_are_bare() {
    let testbed = Testbed::start(&["--no-layer"]).await;
    for _ in 0..2 {
        let answer = testbed.post_with("/echo", "k", &[], "hi").await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert!(!answer.is_replay());
        let flaky = testbed.post("/flaky?failures=0", "k").await;
        assert_eq!(flaky.text(), "attempt:1");
        let flaky = testbed.post("/flaky?failures=1", "k").await;
        assert_eq!(flaky.status, StatusCode::INTERNAL_SERVER_ERROR);
        let operation = testbed.post("/operation", "k").await;
        assert_eq!(operation.status, StatusCode::OK);
        assert!(operation.text().contains(r#""key":null"#));
        let trailers = testbed.post_with("/trailers", "k", &["te: trailers"], "");
        assert_eq!(trailers.await.trailers.unwrap()["x-checksum"], "abc");
    }
    assert_eq!(testbed.runs().await, 10);
}

/// What is left when nothing has to be waited for. The connections that a client holds
/// open are given five seconds at most, and need none.
const AT_ONCE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn sigterm_ends_it_at_once_though_clients_hold_connections_open() {
    let testbed = Testbed::start(&[]).await;
    let _silent = TcpStream::connect(testbed.addr).await.unwrap();
    let mut kept_alive = testbed.connect().await;
    kept_alive.post("/echo", "a", "").await;
    let http2 = Http2::connect(testbed.addr).await;
    http2.post("/echo", "b", "").await;

    let begun = Instant::now();
    testbed.terminate();
    assert_eq!(testbed.exit().await, (Some(0), String::new()));
    assert!(begun.elapsed() < AT_ONCE);
    assert_eq!(kept_alive.rest().await, "");
}

#[tokio::test]
async fn sigterm_lets_every_answer_in_progress_finish() {
    let testbed = Testbed::start(&[]).await;
    let slow = "/slow?ms=1500";
    let mut keyed = testbed.connect().await;
    keyed.write(http1_post(slow, "a", &[], "")).await;
    let mut bare = testbed.connect().await;
    let get = format!("GET {slow} HTTP/1.1\r\nhost: test\r\n\r\n");
    bare.write(get).await;
    let mut dripping = testbed.connect().await;
    let drip = http1_post("/drip?chunks=4&ms=500", "b", &[], "");
    dripping.write(drip).await;
    testbed.until_runs(3).await;

    testbed.terminate();
    for connection in [&mut keyed, &mut bare] {
        let answer = connection.answer().await;
        assert_eq!(answer.text(), "slept:1500");
    }
    assert_eq!(dripping.answer().await.text(), "tick".repeat(4));
    assert_eq!(testbed.exit().await.0, Some(0));
}

#[tokio::test]
async fn sigterm_waits_for_the_run_of_a_client_that_has_left() {
    let testbed = Testbed::start(&[]).await;
    let begun = Instant::now();
    let mut leaving = Http1::connect(testbed.addr).await;
    leaving
        .write(http1_post("/slow?ms=1500", "k", &[], ""))
        .await;
    testbed.until_runs(1).await;
    leaving.reset();

    let addr = testbed.addr;
    testbed.terminate();
    // Nothing new is accepted while it waits.
    while TcpStream::connect(addr).await.is_ok() {
        assert!(begun.elapsed() < Duration::from_millis(1500), "it accepts");
    }
    assert_eq!(testbed.exit().await.0, Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(1500));
}

#[tokio::test]
async fn sigterm_does_not_wait_for_ever_for_a_request_that_never_ends() {
    let testbed = Testbed::start(&[]).await;
    let mut stalled = testbed.connect().await;
    stalled.write("POST /echo HTTP/1.1\r\nhost:").await;
    testbed.runs().await;
    testbed.terminate();
    assert_eq!(testbed.exit().await.0, Some(0));
}
