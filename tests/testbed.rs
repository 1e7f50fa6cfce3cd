//! The example `testbed` keeps its contract: the ready line and the routes, seen from
//! outside of its process.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use http::StatusCode;
use support::testbed::{Testbed, run};
use support::wire::{Http2, http1_post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Everything that is sent back on a connection of its own, which the server closes.
async fn raw(testbed: &Testbed, line: &str, fields: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(testbed.addr).await.unwrap();
    let request = format!("{line} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

fn contains(answer: &[u8], part: &[u8]) -> bool {
    answer.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn the_ready_line_tells_a_port_that_accepts() {
    let testbed = Testbed::start(&[]).await;
    let expected = format!("listening on http://127.0.0.1:{}\n", testbed.addr.port());
    assert_eq!(testbed.ready_line, expected);
    assert_ne!(testbed.addr.port(), 0);
    assert_eq!(testbed.runs().await, 0);

    let taken = testbed.addr.to_string();
    let second = run(&["--listen", &taken]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains(&taken));
    assert!(second.stdout.is_empty());
}

#[tokio::test]
async fn the_counter_counts_runs_of_every_method_and_can_be_reset() {
    let testbed = Testbed::start(&[]).await;
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"];
    for (runs, method) in (1..).zip(methods) {
        let answer = testbed.ask(&format!("{method} /echo")).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        let location = format!("/things/{runs}");
        assert_eq!(answer.header("location"), Some(&*location));
        assert_eq!(testbed.runs().await, runs);
    }
    assert_eq!(testbed.ask("GET /counter").await.text(), r#"{"count":7}"#);

    let reset = testbed.ask("POST /reset").await;
    assert_eq!(reset.status, StatusCode::NO_CONTENT);
    assert_eq!(testbed.runs().await, 0);
    // Both are outside of the layer.
    testbed.post("/reset", "k").await;
    assert!(!testbed.post("/reset", "k").await.is_replay());
    let refused = testbed.ask("POST /counter").await;
    assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
    let unknown = testbed.post("/nothing", "k").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(!testbed.post("/nothing", "k").await.is_replay());
    assert_eq!(testbed.runs().await, 0);
}

#[tokio::test]
async fn echo_sends_back_body_and_media_type() {
    let testbed = Testbed::start(&[]).await;
    let media_type = &["content-type: text/x-poem; charset=utf-8"];
    for is_replay in [false, true] {
        let answer = testbed.post_with("/echo", "k", media_type, "a rose").await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.text(), "a rose");
        let echoed = answer.header("content-type");
        assert_eq!(echoed, Some("text/x-poem; charset=utf-8"));
        assert_eq!(answer.header("location"), Some("/things/1"));
        assert_eq!(answer.is_replay(), is_replay);
    }
    let plain = testbed.post_with("/echo", "k2", &[], "").await;
    assert_eq!(plain.header("content-type"), None);
    assert_eq!(testbed.runs().await, 2);

    // Without a key, the body may be larger than the layer reads.
    let body = "x".repeat(5 << 20);
    let mut connection = testbed.connect().await;
    let head = format!(
        "PUT /echo HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n",
        body.len()
    );
    connection.write(format!("{head}\r\n{body}")).await;
    assert_eq!(connection.answer().await.body.len(), body.len());
    let mut connection = testbed.connect().await;
    connection
        .write("POST /echo HTTP/1.1\r\nhost: test\r\nidempotency-key: k3\r\n")
        .await;
    connection.write("content-length: 5000000\r\n\r\n").await;
    let refused = connection.head().await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(testbed.runs().await, 3);
}

#[tokio::test]
async fn status_answers_any_status_with_the_body_it_allows() {
    let testbed = Testbed::start(&[]).await;
    for code in [200, 201, 302, 404, 418, 499, 500, 503, 600, 999] {
        let answer = testbed.ask(&format!("GET /status/{code}")).await;
        assert_eq!(answer.status.as_u16(), code);
        assert_eq!(answer.text(), format!("status:{code}"));
    }
    for code in [204, 205, 304] {
        let answer = testbed.ask(&format!("GET /status/{code}")).await;
        assert_eq!(answer.status.as_u16(), code);
        assert_eq!(answer.text(), "");
    }
    // Given to the server like any other; hyper makes a 500 of what is no final answer.
    let interim = testbed.ask("GET /status/103").await;
    assert_eq!(interim.status, StatusCode::INTERNAL_SERVER_ERROR);
    let upgrade = raw(&testbed, "GET /status/101", "").await;
    assert!(upgrade.starts_with(b"HTTP/1.1 101"));
    assert_eq!(testbed.runs().await, 15);

    for (key, code) in [("a", 404), ("b", 204), ("c", 302)] {
        let path = format!("/status/{code}");
        testbed.post(&path, key).await;
        let retry = testbed.post(&path, key).await;
        assert!(retry.is_replay());
        assert_eq!(retry.status.as_u16(), code);
    }
    assert_eq!(testbed.runs().await, 18);
}

#[tokio::test]
async fn a_missing_or_bad_parameter_is_400_and_no_run() {
    let testbed = Testbed::start(&[]).await;
    for target in [
        "/status/99",
        "/status/1000",
        "/status/abc",
        "/slow",
        "/slow?ms=-1",
        "/slow?ms=1&status=1000",
        "/large",
        "/large?bytes=many",
        "/large?bytes=1&chunked=maybe",
        "/drip?chunks=1",
        "/drip?ms=1",
        "/broken",
        "/flaky",
    ] {
        let answer = testbed.ask(&format!("POST {target}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{target}");
    }
    assert_eq!(testbed.runs().await, 0);
}

#[tokio::test]
async fn slow_waits_before_it_answers() {
    let testbed = Testbed::start(&[]).await;
    let begun = Instant::now();
    let answer = testbed.post("/slow?ms=300", "k").await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.text(), "slept:300");
    let refused = testbed.ask("GET /slow?ms=0&status=503").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.text(), "slept:0");
    assert_eq!(testbed.runs().await, 2);
}

#[tokio::test]
async fn large_is_exactly_as_long_as_asked_for() {
    let testbed = Testbed::start(&[]).await;
    for bytes in [0, 1, 16384, 16385, 3_000_000] {
        for (key, known) in [("", true), ("&chunked=true", false)] {
            let path = format!("/large?bytes={bytes}{key}");
            let answer = testbed.post(&path, &format!("{bytes}{known}")).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.body.len(), bytes);
            assert!(answer.body.iter().all(|&byte| byte == b'x'));
            let length = known.then(|| bytes.to_string());
            assert_eq!(answer.header("content-length"), length.as_deref());
            let coding = (!known).then_some("chunked");
            assert_eq!(answer.header("transfer-encoding"), coding);
        }
    }
    assert_eq!(testbed.runs().await, 10);
    let omitted = testbed.post("/large?bytes=3000000", "3000000true").await;
    assert_eq!(omitted.header("idempotency-body"), Some("omitted"));

    let mut connection = testbed.connect().await;
    let get = "GET /large?bytes=20000&chunked=true HTTP/1.1\r\nhost: test\r\n\r\n";
    connection.write(get).await;
    connection.head().await;
    assert_eq!(connection.chunk().await.len(), 16384);
    assert_eq!(connection.chunk().await.len(), 20000 - 16384);
    assert!(connection.chunk().await.is_empty());
}

#[tokio::test]
async fn drip_sends_the_first_chunk_at_once_and_the_others_in_time() {
    let testbed = Testbed::start(&[]).await;
    let begun = Instant::now();
    let mut connection = testbed.connect().await;
    connection
        .write(http1_post("/drip?chunks=3&ms=1000", "k", &[], ""))
        .await;
    connection.head().await;
    assert_eq!(connection.chunk().await, "tick");
    assert!(begun.elapsed() < Duration::from_millis(1000));
    assert_eq!(connection.chunk().await, "tick");
    assert!(begun.elapsed() >= Duration::from_millis(1000));
    assert_eq!(connection.chunk().await, "tick");
    assert!(begun.elapsed() >= Duration::from_millis(2000));
    assert!(connection.chunk().await.is_empty());

    let replay = testbed.post("/drip?chunks=3&ms=1000", "k").await;
    assert!(replay.is_replay());
    assert_eq!(replay.text(), "tickticktick");
    assert_eq!(testbed.ask("GET /drip?chunks=0&ms=1").await.text(), "");
    assert_eq!(testbed.runs().await, 2);
}

#[tokio::test]
async fn broken_sends_its_bytes_and_then_breaks_off() {
    let testbed = Testbed::start(&[]).await;
    for (key, bytes) in [("a", 0), ("b", 10), ("c", 16384)] {
        for runs in [1, 2] {
            testbed.ask("POST /reset").await;
            let mut connection = testbed.connect().await;
            let path = format!("/broken?after={bytes}");
            connection.write(http1_post(&path, key, &[], "")).await;
            let head = connection.head().await;
            assert_eq!(head.status, StatusCode::OK, "run {runs}");
            assert!(head.headers.contains_key("transfer-encoding"));
            if bytes > 0 {
                assert_eq!(connection.chunk().await.len(), bytes);
            }
            // No last chunk, and so no whole body.
            assert_eq!(connection.rest().await, "");
            assert_eq!(testbed.runs().await, 1);
        }
    }
}

#[tokio::test]
async fn headers_are_repeated_and_hold_any_byte() {
    let testbed = Testbed::start(&[]).await;
    let key = "idempotency-key: k\r\n";
    for cookies in [2, 0] {
        let answer = raw(&testbed, "POST /headers", key).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(text.matches("\r\nlink: ").count(), 2);
        assert_eq!(text.matches("\r\nset-cookie: ").count(), cookies);
        assert!(text.contains("\r\netag: \"v1\"\r\n"));
        assert!(text.contains("\r\nx-run: 1\r\n"));
        assert!(contains(&answer, b"\r\nx-bytes: caf\xe9 \xff\x80\r\n"));
    }
    assert_eq!(testbed.runs().await, 1);
}

#[tokio::test]
async fn panic_counts_and_closes_the_connection() {
    let testbed = Testbed::start(&[]).await;
    assert_eq!(raw(&testbed, "POST /panic", "").await, b"");
    assert_eq!(testbed.runs().await, 1);
    for runs in [2, 3] {
        let key = "idempotency-key: k\r\n";
        assert_eq!(raw(&testbed, "POST /panic", key).await, b"");
        assert_eq!(testbed.runs().await, runs);
    }
}

#[tokio::test]
async fn flaky_fails_as_often_as_asked_for() {
    let testbed = Testbed::start(&[]).await;
    for (key, attempts) in [("a", 1..=3), ("b", 1..=3)] {
        for attempt in attempts {
            let answer = testbed.post("/flaky?failures=2", key).await;
            let ok = answer.status == StatusCode::OK;
            assert_eq!(ok, attempt == 3);
            assert_eq!(answer.text(), format!("attempt:{attempt}"));
        }
        assert!(testbed.post("/flaky?failures=2", key).await.is_replay());
    }
    assert_eq!(testbed.runs().await, 6);
    // Without a key, every run is the first.
    for _ in 0..2 {
        let answer = testbed.ask("POST /flaky?failures=1").await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!(testbed.runs().await, 8);
}

#[tokio::test]
async fn trailers_follow_the_body() {
    let testbed = Testbed::start(&[]).await;
    for is_replay in [false, true] {
        let answer = testbed
            .post_with("/trailers", "k", &["te: trailers"], "")
            .await;
        assert_eq!(answer.text(), "with-trailers");
        assert_eq!(answer.header("trailer"), Some("x-checksum"));
        assert_eq!(answer.trailers.as_ref().unwrap()["x-checksum"], "abc");
        assert_eq!(answer.is_replay(), is_replay);
    }
    assert_eq!(testbed.runs().await, 1);
}

#[tokio::test]
async fn without_transactions_there_are_no_transfers() {
    for flags in [&["--store=memory"][..], &["--store=memory", "--no-layer"]] {
        let testbed = Testbed::start(flags).await;
        for _ in 0..2 {
            let answer = testbed.post("/transfer?amount=1", "k").await;
            assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
            assert!(answer.text().contains("no transactions"));
            assert!(!answer.is_replay());
        }
        let answer = testbed.ask("GET /ledger").await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
        let missing = testbed.post("/transfer", "l").await;
        assert_eq!(missing.status, StatusCode::BAD_REQUEST);
        assert_eq!(testbed.runs().await, 0);
    }
}

#[tokio::test]
async fn operation_tells_what_the_handler_knows() {
    let testbed = Testbed::start(&[]).await;
    let first = testbed.post("/operation", "\"k 1\"").await;
    let told: serde_json::Value = serde_json::from_slice(&first.body).unwrap();
    assert_eq!(told["key"], "k 1");
    assert_eq!(told["attempt"], 1);
    let child_key = told["child_key"].as_str().unwrap();
    assert_eq!(child_key.len(), 32);
    let other = testbed.post("/operation", "k2").await;
    assert!(!other.text().contains(child_key));
    let none = testbed.ask("POST /operation").await;
    let none: serde_json::Value = serde_json::from_slice(&none.body).unwrap();
    let nothing = serde_json::json!({ "key": null, "attempt": null, "child_key": null });
    assert_eq!(none, nothing);
    assert_eq!(testbed.runs().await, 3);
}

#[tokio::test]
async fn http2_is_served_without_an_upgrade() {
    let testbed = Testbed::start(&[]).await;
    let connection = Http2::connect(testbed.addr).await;
    for is_replay in [false, true] {
        let answer = connection.post("/echo", "k", "hello").await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.text(), "hello");
        assert_eq!(answer.is_replay(), is_replay);
    }
    let trailers = connection.post("/trailers", "t", "").await.trailers;
    assert_eq!(trailers.unwrap()["x-checksum"], "abc");
    assert_eq!(testbed.runs().await, 2);
}
