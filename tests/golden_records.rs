//! A record that was stored stays readable: what version 1 of the form looked like is kept
//! in `golden/`, is read in every run, and is what is still written.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use support::pieces::{Script, Step, handler};
use support::{post, send};
use tower_idempotency::store::{KeyStore, MemoryStore, Phase, Record, StoreErrorKind};
use tower_idempotency::{IdempotencyKey, IdempotencyLayer, RecordId, Scope, Verdict, scope_fn};

/// Name, value, whether it is sensitive.
type Field = (String, Vec<u8>, bool);

fn shown(name: &str, value: impl AsRef<[u8]>) -> Field {
    (name.to_owned(), value.as_ref().to_vec(), false)
}

fn hidden(name: &str, value: impl AsRef<[u8]>) -> Field {
    (name.to_owned(), value.as_ref().to_vec(), true)
}

#[derive(Debug, Clone, PartialEq)]
enum Kept {
    Whole(Vec<u8>),
    /// The length that the first caller's body had.
    Omitted(Option<u64>),
}

/// What a file says.
#[derive(Debug, Clone, PartialEq)]
struct Golden {
    status: u16,
    version: Version,
    recorded_at_ms: u64,
    fields: Vec<Field>,
    trailers: Option<Vec<Field>>,
    body: Kept,
}

/// 200, HTTP/1.1, 2026-01-02T03:04:05.678Z, the body `ok`.
fn ok() -> Golden {
    Golden {
        status: 200,
        version: Version::HTTP_11,
        recorded_at_ms: 1_767_323_045_678,
        fields: Vec::new(),
        trailers: None,
        body: Kept::Whole(b"ok".to_vec()),
    }
}

impl Golden {
    fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    fn at(self, recorded_at_ms: u64) -> Self {
        Self {
            recorded_at_ms,
            ..self
        }
    }

    fn fields(self, fields: impl IntoIterator<Item = Field>) -> Self {
        let fields = fields.into_iter().collect();
        Self { fields, ..self }
    }

    fn trailers(self, trailers: impl IntoIterator<Item = Field>) -> Self {
        let trailers = Some(trailers.into_iter().collect());
        Self { trailers, ..self }
    }

    fn body(self, body: impl AsRef<[u8]>) -> Self {
        let body = Kept::Whole(body.as_ref().to_vec());
        Self { body, ..self }
    }

    fn omitted(self, len: Option<u64>) -> Self {
        let body = Kept::Omitted(len);
        Self { body, ..self }
    }
}

fn plain() -> Golden {
    let content_type = shown("content-type", "application/json");
    let fields = [content_type, shown("location", "/payments/7")];
    ok().status(201).fields(fields).body(r#"{"paid":true}"#)
}

fn repeated() -> [Field; 6] {
    [
        shown("link", "</2>; rel=next"),
        shown("link", "</1>; rel=prev"),
        shown("link", "</2>; rel=next"),
        shown("vary", "origin"),
        shown("vary", "accept"),
        shown("etag", "\"1\""),
    ]
}

fn unusual() -> [Field; 5] {
    [
        shown("x-latin-1", b"caf\xe9"),
        shown("x-high", (0x80..=0xff).collect::<Vec<u8>>()),
        shown("x-empty", ""),
        shown("x-tab", "a\tb"),
        shown("x-visible", (0x20..=0x7e).collect::<Vec<u8>>()),
    ]
}

fn sensitive() -> [Field; 4] {
    [
        hidden("x-token", "hidden"),
        shown("x-token", "shown"),
        hidden("x-token", "hidden too"),
        hidden("x-secret", b"\xff\xfe"),
    ]
}

fn cookies() -> [Field; 2] {
    ["a=1; HttpOnly", "b=2"].map(|cookie| shown("set-cookie", cookie))
}

fn grpc() -> Golden {
    let content_type = shown("content-type", "application/grpc");
    let status = shown("grpc-status", "0");
    ok().fields([content_type, shown("trailer", "grpc-status")])
        .body(b"\0\0\0\0\x02ok")
        .trailers([status, hidden("x-part", b"\xe9"), shown("x-part", "2")])
}

/// What this version reads and writes.
fn written() -> Vec<(&'static str, Golden)> {
    let many = (0..300).map(|n| shown(&format!("x-{n}"), format!("{}", n * n)));
    let long_name = shown(&"x".repeat(300), "long name");
    let long_value = shown("x-long", "v".repeat(66_000));
    let tagged = ok().status(201).fields([shown("etag", "\"1\"")]);
    let no_body = ok().status(204).fields([shown("etag", "\"7\"")]).body("");
    let late = ok().status(999).at(253_402_300_799_999);
    let trailers_alone = ok().trailers([shown("grpc-status", "5")]).body("");
    let every_byte: Vec<u8> = (0..=255).collect();
    vec![
        ("plain", plain()),
        ("no-fields", ok().body("no fields")),
        ("no-body", no_body),
        ("binary-body", ok().body(every_byte)),
        ("repeated-fields", ok().fields(repeated())),
        ("value-bytes", ok().fields(unusual())),
        ("sensitive", ok().fields(sensitive())),
        ("many-fields", ok().fields(many)),
        ("long-fields", ok().fields([long_name, long_value])),
        ("cookies", ok().fields(cookies())),
        ("http-0.9", ok().at(0).version(Version::HTTP_09)),
        ("http-1.0", ok().at(1).version(Version::HTTP_10)),
        ("http-2", ok().version(Version::HTTP_2)),
        ("http-3", ok().version(Version::HTTP_3)),
        ("status-999", late),
        ("trailers", grpc()),
        ("trailers-alone", trailers_alone),
        ("trailers-empty", ok().trailers([])),
        ("omitted", tagged.clone().omitted(Some(1_000_000))),
        ("omitted-unknown-length", tagged.omitted(None)),
    ]
}

/// What this version reads and does not write.
fn read_alone() -> Vec<(&'static str, Golden)> {
    let extended = plain().status(200).body("ok");
    vec![
        ("extension", plain()),
        ("extensions", extended.trailers([shown("x-sum", "1")])),
        ("omitted-huge", ok().omitted(Some(u64::MAX - 1))),
    ]
}

/// What makes a file a record after all, which shows what it is refused for.
type Repair = fn(&mut Vec<u8>);

const REFUSED: [(&str, Repair); 22] = [
    ("empty", finish),
    ("magic", |b| b[0] = 0x1d),
    ("version-0", |b| b[1] = 1),
    ("version-2", |b| b[1] = 1),
    ("flag", |b| b[2] = 0),
    ("http-version", |b| b[3] = 11),
    ("status-101", |b| b[5] = 201),
    ("status-1000", |b| b[5] -= 1),
    ("field-flag", |b| b[24] = 1),
    ("field-name", |b| b[32] = b'-'),
    ("field-value", |b| b[36] = b' '),
    ("content-length", |b| b[31] = b'x'),
    ("transfer-encoding", |b| b[31] = b'x'),
    ("must-understand", |b| b[96] = 0),
    ("cut-in-head", finish),
    ("cut-in-field", finish),
    ("cut-in-extension", |b| b.push(b'n')),
    ("cut-in-body", finish),
    ("longer-body", |b| b.truncate(b.len() - 1)),
    ("omitted-with-body", |b| b[2] = 0),
    ("unknown-length-with-body", |b| {
        b[14..22].copy_from_slice(&2_u64.to_be_bytes());
    }),
    ("trailers-without-flag", |b| b[2] = 2),
];

fn finish(bytes: &mut Vec<u8>) {
    bytes.extend(&file("record-v1-plain")[bytes.len()..]);
}

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden"]
        .iter()
        .collect()
}

fn file(name: &str) -> Vec<u8> {
    let path = folder().join(format!("{name}.bin"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn record_file(name: &str) -> Vec<u8> {
    file(&format!("record-v1-{name}"))
}

fn map(fields: &[Field]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value, sensitive) in fields {
        let mut value = HeaderValue::from_bytes(value).unwrap();
        value.set_sensitive(*sensitive);
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
    }
    map
}

fn list(fields: &HeaderMap) -> Vec<Field> {
    fields
        .iter()
        .map(|(name, value)| {
            let name = name.as_str().to_owned();
            (name, value.as_bytes().to_vec(), value.is_sensitive())
        })
        .collect()
}

fn said_by(record: &Record) -> Golden {
    let recorded_at = record.recorded_at().duration_since(UNIX_EPOCH).unwrap();
    let body = if record.is_omitted() {
        assert!(record.body().is_empty());
        Kept::Omitted(record.body_len())
    } else {
        assert_eq!(record.body_len(), Some(record.body().len() as u64));
        Kept::Whole(record.body().to_vec())
    };
    Golden {
        status: record.status().as_u16(),
        version: record.version(),
        recorded_at_ms: u64::try_from(recorded_at.as_millis()).unwrap(),
        fields: list(&record.headers()),
        trailers: record.trailers().as_ref().map(list),
        body,
    }
}

fn head(golden: &Golden) -> http::response::Builder {
    let mut answer = Response::builder()
        .status(golden.status)
        .version(golden.version);
    *answer.headers_mut().unwrap() = map(&golden.fields);
    answer
}

/// The record that the layer makes of a handler's answer.
async fn recorded_by_the_layer(golden: &Golden) -> Record {
    let mut body = match &golden.body {
        Kept::Whole(body) => Script::new(
            [Step::Data(body.clone().into())]
                .into_iter()
                .chain(golden.trailers.as_deref().map(map).map(Step::Trailers)),
        ),
        Kept::Omitted(len) => {
            let len = usize::try_from(len.unwrap_or(2_000_000)).unwrap();
            Script::new([Step::Data(vec![0; len].into())])
        }
    };
    if let Kept::Omitted(Some(len)) = golden.body {
        body = body.sized(len);
    }
    let answer = head(golden).extension(Verdict::Record).body(body).unwrap();
    let store = MemoryStore::new();
    let layer = IdempotencyLayer::new(store.clone(), scope_fn(|_| Some(Scope::new("a"))))
        .response_body_limit(999_999)
        .replay_cookies(true);
    let (service, _) = handler(&layer, move |_, _: Request<_>| answer.clone());
    send(&service, post("k", "")).await;
    layer.in_flight().idle().await;
    let id = RecordId::new("", &Scope::new("a"), &IdempotencyKey::new("k").unwrap());
    match store.lookup(&id).await.unwrap().unwrap().phase {
        Phase::Completed(record) => record,
        phase => panic!("{phase:?}"),
    }
}

/// All but the eight bytes that say when.
fn timeless(bytes: &[u8]) -> Vec<u8> {
    [&bytes[..6], &bytes[14..]].concat()
}

#[test]
fn the_files_are_those_that_are_expected_here() {
    let records = written().into_iter().chain(read_alone());
    let expected: BTreeSet<String> = records
        .map(|(name, _)| format!("record-v1-{name}.bin"))
        .chain(
            REFUSED
                .iter()
                .map(|(name, _)| format!("refused-{name}.bin")),
        )
        .collect();
    let there: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .collect();
    assert_eq!(there, expected);
}

#[test]
fn every_record_reads_as_what_was_recorded() {
    for (name, golden) in written().into_iter().chain(read_alone()) {
        let bytes = record_file(name);
        let record = Record::from_bytes(bytes.clone().into())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(said_by(&record), golden, "{name}");
        assert_eq!(record.as_bytes(), bytes, "{name}");
    }
}

/// Should this fail with the test above still passing, the writer has changed: give the
/// form a new version number, and keep these files.
#[tokio::test]
async fn what_the_layer_writes_is_what_was_written() {
    for (name, golden) in written() {
        let record = recorded_by_the_layer(&golden).await;
        let bytes = record_file(name);
        assert_eq!(timeless(record.as_bytes()), timeless(&bytes), "{name}");
    }
}

#[test]
fn what_an_operator_writes_is_what_was_written() {
    let mut compared = 0;
    for (name, golden) in written() {
        // Neither an omitted body nor trailers nor cookies are an operator's to give.
        let (Kept::Whole(body), None) = (&golden.body, &golden.trailers) else {
            continue;
        };
        if name == "cookies" {
            continue;
        }
        let record = Record::new(&head(&golden).body(body).unwrap());
        let bytes = record_file(name);
        assert_eq!(timeless(record.as_bytes()), timeless(&bytes), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 14);
}

#[test]
fn what_was_refused_is_refused_still_for_one_reason_each() {
    for (name, repair) in REFUSED {
        let mut bytes = file(&format!("refused-{name}"));
        let error = Record::from_bytes(Bytes::from(bytes.clone()))
            .expect_err(&format!("{name} is not to be read"));
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{name}");
        repair(&mut bytes);
        Record::from_bytes(bytes.into()).unwrap_or_else(|_| panic!("{name} has another fault"));
    }
}
