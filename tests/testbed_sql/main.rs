//! The example `testbed` over SQL: a transfer commits with its answer, several processes share
//! one database, and none serves on a database that it cannot use.
#![cfg(all(any(feature = "postgres", feature = "sqlite"), unix))]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::Value;

use support::Answer;
use support::testbed::{Testbed, run};

const PATIENCE: Duration = Duration::from_secs(20);

/// A store and where it is: an empty database.
#[derive(Clone, Copy)]
struct Place<'a> {
    store: &'a str,
    url: &'a str,
}

impl Place<'_> {
    async fn testbed(self) -> Testbed {
        self.testbed_with(&[]).await
    }

    async fn testbed_with(self, flags: &[&str]) -> Testbed {
        let place = ["--store", self.store, "--store-url", self.url];
        Testbed::start(&[&place[..], flags].concat()).await
    }

    /// The exit code and what is on stderr, of a process that cannot serve: there is no such
    /// address here.
    fn run_to_listen_nowhere(self) -> (Option<i32>, String) {
        let listen = ["--listen", "192.0.2.1:1"];
        let output = run(&[
            &["--store", self.store, "--store-url", self.url],
            &listen[..],
        ]
        .concat());
        assert!(output.stdout.is_empty());
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }
}

fn number(answer: &Answer, member: &str) -> i64 {
    let told: Value = serde_json::from_slice(&answer.body).unwrap();
    told[member].as_i64().unwrap()
}

/// Rows of the ledger, and distinct keys among them.
async fn ledger(testbed: &Testbed) -> (i64, i64) {
    let answer = testbed.ask("GET /ledger").await;
    assert_eq!(answer.status, StatusCode::OK);
    (number(&answer, "rows"), number(&answer, "keys"))
}

/// Sends the same again until there is an answer that no retry changes.
async fn post_patiently(testbed: &Testbed, path: &str, key: &str) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = testbed.post(path, key).await;
        if !matches!(answer.status.as_u16(), 409 | 503) {
            return answer;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn one_key_is_one_row(place: Place<'_>) {
    let testbed = place.testbed().await;
    assert_eq!(ledger(&testbed).await, (0, 0));
    let first = testbed.post("/transfer?amount=5", "k").await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(first.header("idempotency-stored"), None);
    assert!(!first.is_replay());
    let retry = testbed.post("/transfer?amount=5", "k").await;
    assert!(retry.is_replay());
    assert_eq!((retry.status, &retry.body), (first.status, &first.body));
    assert_eq!(ledger(&testbed).await, (1, 1));

    let other_amount = testbed.post("/transfer?amount=6", "k").await;
    assert_eq!(other_amount.code().as_deref(), Some("key-reused"));
    let other_key = testbed.post("/transfer?amount=5", "l").await;
    assert_ne!(number(&other_key, "row"), number(&first, "row"));
    assert_eq!(ledger(&testbed).await, (2, 2));
    assert_eq!(testbed.runs().await, 2);

    for bad in ["/transfer", "/transfer?amount=", "/transfer?amount=1.5"] {
        let answer = testbed.ask(&format!("POST {bad}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    assert_eq!(ledger(&testbed).await, (2, 2));
    assert_eq!(testbed.runs().await, 2);
}

/// `execute` runs one of two statements on the database: from the first on, no answer can be
/// recorded, and from the second on it can.
async fn a_row_whose_answer_is_not_recorded_is_rolled_back(
    place: Place<'_>,
    execute: impl AsyncFn(&'static str),
    [forbid, allow]: [&'static str; 2],
) {
    let testbed = place.testbed().await;
    execute(forbid).await;
    let refused = testbed.post("/transfer?amount=1", "k").await;
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(refused.code().as_deref(), Some("transaction-failed"));
    assert_eq!(testbed.runs().await, 1);
    assert_eq!(ledger(&testbed).await, (0, 0));
    execute(allow).await;
    let answer = post_patiently(&testbed, "/transfer?amount=1", "k").await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(ledger(&testbed).await, (1, 1));
}

async fn without_an_operation_rows_have_no_key(place: Place<'_>) {
    let bare = place.testbed_with(&["--no-layer"]).await;
    for rows in 1..=2 {
        let answer = bare.post("/transfer?amount=1", "k").await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert!(!answer.is_replay());
        assert_eq!(ledger(&bare).await, (rows, 0));
    }
    let protected = place.testbed().await;
    let answer = protected.ask("POST /transfer?amount=1").await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(ledger(&protected).await, (3, 0));
    protected.post("/transfer?amount=1", "k").await;
    assert_eq!(ledger(&protected).await, (4, 1));
}

/// Duplicates of every key at once, at two processes.
async fn two_processes_give_every_key_one_row(place: Place<'_>) {
    let testbeds = [place.testbed().await, place.testbed().await];
    let keys: Vec<String> = (0..20).map(|key| key.to_string()).collect();
    let asked = keys.iter().flat_map(|key| {
        let twice = testbeds.iter().chain(&testbeds);
        twice.map(move |testbed| post_patiently(testbed, "/transfer?amount=1", key))
    });
    let answers = join_all(asked).await;
    let mut rows = Vec::new();
    for of_one_key in answers.chunks(4) {
        let row = number(&of_one_key[0], "row");
        for answer in of_one_key {
            assert_eq!(answer.status, StatusCode::CREATED);
            assert_eq!(number(answer, "row"), row);
        }
        rows.push(row);
    }
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), 20);
    for testbed in &testbeds {
        assert_eq!(ledger(testbed).await, (20, 20));
    }
    // A run that the database turned away is run again.
    let [one, other] = &testbeds;
    assert!(one.runs().await + other.runs().await >= 20);
}

async fn two_processes_run_a_request_once_between_them(place: Place<'_>) {
    let (one, other) = (place.testbed().await, place.testbed().await);
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

async fn rows_and_records_outlive_the_process(place: Place<'_>) {
    let first = place.testbed().await;
    let answer = first.post("/transfer?amount=5", "k").await;
    let echo = first.post_with("/echo", "l", &[], "hello").await;
    first.terminate();
    assert_eq!(first.exit().await.0, Some(0));

    let second = place.testbed().await;
    let replay = second.post("/transfer?amount=5", "k").await;
    assert!(replay.is_replay());
    assert_eq!(replay.body, answer.body);
    let replay = second.post_with("/echo", "l", &[], "hello").await;
    assert!(replay.is_replay());
    assert_eq!(replay.body, echo.body);
    assert_eq!(ledger(&second).await, (1, 1));
    assert_eq!(second.runs().await, 0);
}

/// None of them finds the tables.
async fn many_processes_start_at_once(place: Place<'_>) {
    let testbeds = join_all((0..6).map(|_| place.testbed())).await;
    let transfers = testbeds.iter().enumerate().map(async |(key, testbed)| {
        let answer = post_patiently(testbed, "/transfer?amount=1", &key.to_string()).await;
        assert_eq!(answer.status, StatusCode::CREATED);
    });
    join_all(transfers).await;
    assert_eq!(ledger(&testbeds[0]).await, (6, 6));
}

/// It is not served, and nothing secret is told.
fn assert_misused(place: Place<'_>) {
    let (code, stderr) = place.run_to_listen_nowhere();
    let url = place.url;
    assert_eq!(code, Some(2), "{url}: {stderr}");
    assert!(stderr.contains("--store-url cannot be used: "), "{stderr}");
    assert!(!stderr.contains("secret"), "{stderr}");
}

#[track_caller]
fn assert_unusable(place: Place<'_>, told: &str) {
    let (code, stderr) = place.run_to_listen_nowhere();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.starts_with("testbed: --store-url: "), "{stderr}");
    assert!(stderr.contains(told), "{stderr}");
    assert!(!stderr.contains("secret"), "{stderr}");
    assert!(!stderr.contains("192.0.2.1"), "{stderr}");
}

/// The exit code 2, since there is no URL.
fn assert_needs_a_url(store: &str) {
    let output = run(&["--store", store]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let told = format!("--store {store} needs a --store-url");
    assert!(stderr.contains(&told), "{stderr}");
}
