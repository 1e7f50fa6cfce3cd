//! One key, however it is written; anything else is refused before anything runs.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use support::faults::{Call, FaultStore};
use support::pieces::{assert_ran, assert_refused, assert_replays, handler, panic_of};
use support::stores::store;
use support::{counting, created, post, send};
use tower_idempotency::{
    HeaderKey, IdempotencyKey, IdempotencyLayer, InvalidKey, KeyExtractor, Operation,
    RejectionKind, SharedByAllCallers, by_trusted_header, key_fn,
};

const BODY: &str = "charge 5";

fn with_key(value: &[u8]) -> Request<Full<Bytes>> {
    let mut request = post("replaced", BODY);
    let value = HeaderValue::from_bytes(value).unwrap();
    request.headers_mut().insert("idempotency-key", value);
    request
}

fn with_lines(lines: &[&str]) -> Request<Full<Bytes>> {
    let mut request = post("replaced", BODY);
    request.headers_mut().remove("idempotency-key");
    for line in lines {
        let value = HeaderValue::from_str(line).unwrap();
        request.headers_mut().append("idempotency-key", value);
    }
    request
}

/// Sends one spelling, then the other: the handler must run once.
async fn assert_same(one: &[u8], other: &[u8]) {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (service, runs) = counting(&layer);
    let first = send(&service, with_key(one)).await;
    assert_eq!(first.status, StatusCode::CREATED, "{one:?}");
    assert_ran(&first, 1, true);
    let retry = send(&service, with_key(other)).await;
    assert_replays(&first, &retry);
    assert_eq!(runs.get(), 1, "{one:?} and {other:?}");
    assert_eq!(layer.in_flight().count(), 0);
}

async fn assert_invalid(value: &[u8]) {
    for required in [false, true] {
        let store = FaultStore::new(store());
        let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).require_key(required);
        let (service, runs) = counting(&layer);
        let answer = send(&service, with_key(value)).await;
        assert_refused(&answer, RejectionKind::InvalidKey);
        assert_eq!(runs.get(), 0, "{value:?}");
        assert_eq!(store.count(Call::Claim), 0);
        assert_eq!(layer.in_flight().count(), 0);
    }
}

#[tokio::test]
async fn quoted_bare_and_padded_spellings_are_one_key() {
    for spelling in [
        "abc",
        " abc",
        "abc   ",
        "\"abc\"",
        "  \"abc\"  ",
        "\"abc\";a",
        "\"abc\"; a=1;b=?0",
        "\"abc\";note=\"x;\\\"y\"",
        "\"abc\";*t=tok/en:1;d=@1700000000;b=:aGk=:;s=%\"%c3%a9\"",
    ] {
        assert_same(b"abc", spelling.as_bytes()).await;
        assert_same(spelling.as_bytes(), b"abc").await;
    }
}

#[tokio::test]
async fn keys_in_common_use_pass_bare_and_quoted() {
    for key in [
        "0",
        "k",
        "8e03978e-40d5-43dd-bc93-6894a57f9324",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "urn:uuid:8e03978e-40d5-43dd-bc93-6894a57f9324",
        "aGVsbG8+Pz8/d29ybGQ=",
        "aGVsbG8-Pz8_d29ybGQ==",
        "order/7:retry&x=1?y#z",
        "!#$%&'()*+-./:<=>?@[]^_`{|}~",
    ] {
        assert_same(key.as_bytes(), format!("\"{key}\"").as_bytes()).await;
    }
}

#[tokio::test]
async fn only_letter_case_or_one_more_byte_makes_another_key() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (service, runs) = counting(&layer);
    let keys = ["k", "K", "kk", "\"k \"", "\" k\"", "'k'", "k-"];
    for (before, key) in keys.iter().enumerate() {
        let answer = send(&service, with_key(key.as_bytes())).await;
        assert_ran(&answer, 1, true);
        assert_eq!(runs.get(), before + 1, "{key}");
    }
}

#[tokio::test]
async fn a_quoted_key_may_hold_what_a_bare_one_may_not() {
    for (wire, text) in [
        (r#""a b""#, "a b"),
        (r#""   ""#, "   "),
        (r#""a,b;c""#, "a,b;c"),
        (r#""a\"b""#, "a\"b"),
        (r#""a\\b""#, "a\\b"),
        (r#""\"\"""#, "\"\""),
        (r#""\\""#, "\\"),
    ] {
        let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
        let (service, runs) = handler(&layer, |_, request: Request<_>| {
            let operation: &Operation = request.extensions().get().unwrap();
            created(operation.key().as_str().to_owned())
        });
        let first = send(&service, with_key(wire.as_bytes())).await;
        assert_eq!(first.text(), text);
        let retry = send(&service, with_key(wire.as_bytes())).await;
        assert_replays(&first, &retry);
        assert_eq!(runs.get(), 1);
        assert_eq!(IdempotencyKey::new(text).unwrap().as_str(), text);
    }
}

#[tokio::test]
async fn a_malformed_key_is_refused_required_or_not() {
    let malformed: &[&[u8]] = &[
        b"",
        b" ",
        b"    ",
        b"\t",
        b"\"\"",
        b"\"\";a=1",
        b"\"",
        b"\"abc",
        b"abc\"",
        b"a\"b",
        b"a b",
        b"a\tb",
        b"a,b",
        b"a;b",
        b"abc;a=1",
        b"a\\b",
        b"\"a\\nb\"",
        b"\"a\\",
        b"\"a\\\"",
        b"\"a\tb\"",
        b"\"a\" b",
        b"\"a\"b",
        b"\"a\" \"b\"",
        b"\"a\", \"b\"",
        b"\"a\",",
        b"\"a\" ;b=1",
        b"\"a\";",
        b"\"a\";;b",
        b"\"a\";B",
        b"\"a\";1",
        b"\"a\";b=",
        b"\"a\";b= 1",
        b"\"a\";b =1",
        b"\"a\";b=1.",
        b"\"a\";b=1.2345",
        b"\"a\";b=1234567890123456",
        b"\"a\";b=-",
        b"\"a\";b=?2",
        b"\"a\";b=:YQ",
        b"\"a\";b=:Y:",
        b"\"a\";b=@1.5",
        b"\"a\";b=%\"%C3%A9\"",
        b"\"a\";b=%\"%ff\"",
        b"\"a\";b=\"open",
        b"\"a\";b=(1 2)",
        b"r\xc3\xa9q",
        b"\"r\xc3\xa9q\"",
        b"\xf1",
        b"\"\xf1\"",
        b"\xef\xbb\xbfabc",
        b"\xa0abc",
    ];
    for value in malformed {
        assert_invalid(value).await;
    }
}

#[tokio::test]
async fn length_counts_in_bytes_after_unquoting() {
    let escaped = |len: usize| format!("\"{}\"", "\\\"".repeat(len));
    let quoted = |len: usize| format!("\"{}\"", "k".repeat(len));
    let with_parameter = |len: usize| format!("{};p=\"{}\"", quoted(len), "x".repeat(600));
    let longest = "k".repeat(IdempotencyKey::MAX_LEN);
    assert_eq!(longest.len(), 255);
    assert_same(longest.as_bytes(), quoted(255).as_bytes()).await;
    assert_same(longest.as_bytes(), with_parameter(255).as_bytes()).await;
    assert_same(escaped(255).as_bytes(), escaped(255).as_bytes()).await;
    assert_same(b"k", b"\"k\"").await;

    assert_invalid("k".repeat(256).as_bytes()).await;
    assert_invalid(quoted(256).as_bytes()).await;
    assert_invalid(with_parameter(256).as_bytes()).await;
    assert_invalid(escaped(256).as_bytes()).await;
    assert_invalid("\u{e9}".repeat(100).as_bytes()).await;
}

#[tokio::test]
async fn more_than_one_line_is_refused_even_if_they_are_equal() {
    for lines in [
        &["k", "k"][..],
        &["k", "other"],
        &["k", "\"k\""],
        &["k", ""],
        &["", "k"],
        &["k", "k", "k"],
    ] {
        let store = FaultStore::new(store());
        let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
        let (service, runs) = counting(&layer);
        let answer = send(&service, with_lines(lines)).await;
        assert_refused(&answer, RejectionKind::InvalidKey);
        assert_eq!(runs.get(), 0, "{lines:?}");
        assert_eq!(store.count(Call::Claim), 0);
    }
}

#[tokio::test]
async fn an_absent_key_runs_unless_it_is_required_and_a_bad_one_is_not_called_absent() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let (service, runs) = counting(&layer);
    for run in 1..=2 {
        let answer = send(&service, with_lines(&[])).await;
        assert_eq!(answer.text(), format!("run {run}"));
        assert_eq!(answer.outcome, None);
        assert_eq!(answer.header("idempotent-replayed"), None);
    }
    assert_eq!(runs.get(), 2);
    assert_eq!(store.count(Call::Claim), 0);

    let (service, runs) = counting(&layer.require_key(true));
    let answer = send(&service, with_lines(&[])).await;
    assert_refused(&answer, RejectionKind::MissingKey);
    let answer = send(&service, with_lines(&[""])).await;
    assert_refused(&answer, RejectionKind::InvalidKey);
    assert_eq!(runs.get(), 0);
    assert_eq!(store.count(Call::Claim), 0);
}

#[tokio::test]
async fn another_header_stands_alone() {
    let layer =
        IdempotencyLayer::new(store(), SharedByAllCallers).key(HeaderKey::named("X-Request-Key"));
    let (service, runs) = counting(&layer);
    // The default header is no key then, not even a bad one.
    for run in 1..=2 {
        let answer = send(&service, with_key(b"a,b")).await;
        assert_eq!(answer.text(), format!("run {run}"));
        assert_eq!(answer.outcome, None);
    }
    let request = || {
        let mut request = with_key(b"a,b");
        let value = HeaderValue::from_static("\"k\"");
        request.headers_mut().insert("x-request-key", value);
        request
    };
    let first = send(&service, request()).await;
    assert_ran(&first, 1, true);
    assert_replays(&first, &send(&service, request()).await);
    assert_eq!(runs.get(), 3);
}

#[test]
fn a_header_name_that_is_none_panics_where_it_is_configured() {
    let names = [
        "",
        " ",
        "idempotency key",
        "key\r\n",
        "key:",
        "cl\u{e9}",
        "\0",
    ];
    for name in names {
        for panic in [
            panic_of(|| drop(HeaderKey::named(name))),
            panic_of(|| drop(by_trusted_header(name))),
        ] {
            let (message, place) = panic;
            assert!(message.contains("a header name is needed"), "{message}");
            assert!(place.ends_with("tests/keys.rs"), "{place}");
        }
    }
}

#[tokio::test]
async fn a_closure_may_find_the_key() {
    let by_event = key_fn(|request| {
        request
            .headers
            .get("webhook-id")
            .map(IdempotencyKey::try_from)
            .transpose()
    });
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers).key(by_event);
    let (service, runs) = counting(&layer);
    let event = |id: &'static str| {
        let mut request = with_lines(&[]);
        let id = HeaderValue::from_static(id);
        request.headers_mut().insert("webhook-id", id);
        request
    };
    let first = send(&service, event("evt_1")).await;
    assert_replays(&first, &send(&service, event("evt_1")).await);
    assert_ran(&send(&service, event("evt_2")).await, 1, true);
    let answer = send(&service, event("evt 3")).await;
    assert_refused(&answer, RejectionKind::InvalidKey);
    assert_eq!(runs.get(), 2);
}

/// The header if there is one, else the text before the first `|` of the body.
struct HeaderOrBody;

impl KeyExtractor for HeaderOrBody {
    fn key(&self, request: &http::request::Parts) -> Result<Option<IdempotencyKey>, InvalidKey> {
        HeaderKey::default().key(request)
    }

    fn reads_body(&self, request: &http::request::Parts) -> bool {
        request.uri.path() == "/things"
    }

    fn key_in_body(
        &self,
        _: &http::request::Parts,
        body: &[u8],
    ) -> Result<Option<IdempotencyKey>, InvalidKey> {
        let text = std::str::from_utf8(body).map_err(|_| InvalidKey::new("it is no text"))?;
        text.split_once('|')
            .map(|(key, _)| IdempotencyKey::new(key))
            .transpose()
    }
}

#[tokio::test]
async fn a_key_may_stand_in_the_body_and_the_header_comes_first() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).key(HeaderOrBody);
    let echo = |_: usize, request: Request<_>| created(format!("{}", request.uri()));
    let (service, runs) = handler(&layer, echo);
    let in_body = |body: &'static str| {
        let mut request = post("k", body);
        request.headers_mut().remove("idempotency-key");
        request
    };

    let first = send(&service, in_body("k1|pay")).await;
    assert_ran(&first, 1, true);
    assert_replays(&first, &send(&service, in_body("k1|pay")).await);
    // The key `0` of the header counts, whatever the body says.
    assert_ran(&send(&service, post("0", "k1|pay")).await, 1, true);
    assert_eq!((runs.get(), store.count(Call::Complete)), (2, 2));

    // No key anywhere: it runs, unprotected, as often as it comes.
    for _ in 0..2 {
        assert_eq!(send(&service, in_body("pay")).await.outcome, None);
    }
    assert_eq!((runs.get(), store.count(Call::Complete)), (4, 2));
    let answer = send(&service, in_body("|pay")).await;
    assert_refused(&answer, RejectionKind::InvalidKey);

    let (service, runs) = counting(&layer.clone().require_key(true));
    let answer = send(&service, in_body("pay")).await;
    assert_refused(&answer, RejectionKind::MissingKey);
    assert_replays(&first, &send(&service, in_body("k1|pay")).await);
    assert_eq!(runs.get(), 0);
    assert_eq!(layer.in_flight().count(), 0);
}
