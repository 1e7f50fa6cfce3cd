//! A record reads back as what was written, and anything else is refused, never guessed.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use proptest::prelude::*;
use support::pieces::{Script, Step, cases, handler};
use support::{post, send};
use tower_idempotency::store::{KeyStore, MemoryStore, Phase, Record, StoreErrorKind};
use tower_idempotency::{IdempotencyKey, IdempotencyLayer, RecordId, Scope, scope_fn};

// Where things are, as the format has it.
const FORMAT_AT: usize = 1;
const FLAGS_AT: usize = 2;
const VERSION_AT: usize = 3;
const STATUS_AT: usize = 4;
const BODY_LEN_AT: usize = 14;
const FIELDS_AT: usize = 22;
const OMITTED: u8 = 1;
const TRAILERS: u8 = 2;

const BODY: &[u8] = b"the body";

fn read(bytes: &[u8]) -> Option<Record> {
    match Record::from_bytes(Bytes::copy_from_slice(bytes)) {
        Ok(record) => Some(record),
        Err(error) => {
            assert_eq!(error.kind(), StoreErrorKind::Corrupt);
            None
        }
    }
}

/// Two fields, no trailers, no extensions.
fn sample() -> Vec<u8> {
    let answer = Response::builder()
        .status(201)
        .header("etag", "\"1\"")
        .header("link", "</2>");
    let record = Record::new(&answer.body(BODY).unwrap());
    record.as_bytes().to_vec()
}

/// The number of trailer fields and of extensions, two bytes each, stand before the body.
fn before_the_body(record: &[u8]) -> usize {
    record.len() - BODY.len()
}

fn with_extensions(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = sample();
    let count_at = before_the_body(&bytes) - 2;
    let mut encoded = u16::try_from(extensions.len())
        .unwrap()
        .to_be_bytes()
        .to_vec();
    for (tag, value) in extensions {
        encoded.extend(tag.to_be_bytes());
        encoded.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        encoded.extend(*value);
    }
    bytes.splice(count_at..count_at + 2, encoded);
    bytes
}

fn changed(at: usize, to: &[u8]) -> Vec<u8> {
    let mut bytes = sample();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn the_form_is_the_one_that_is_written_down() {
    let bytes = sample();
    assert_eq!(bytes[..FLAGS_AT], [0x1d, 1]);
    assert_eq!(bytes[FLAGS_AT..STATUS_AT], [0, 11]);
    assert_eq!(bytes[STATUS_AT..6], 201_u16.to_be_bytes());
    assert_eq!(bytes[BODY_LEN_AT..FIELDS_AT], 8_u64.to_be_bytes());
    assert_eq!(bytes[FIELDS_AT..FIELDS_AT + 2], 2_u16.to_be_bytes());
    let etag = b"\0\0\x04\0\0\0\x03etag\"1\"";
    assert_eq!(bytes[FIELDS_AT + 2..][..etag.len()], etag[..]);
    assert!(bytes.ends_with(b"\0\0\0\0the body"));
    let record = read(&bytes).unwrap();
    assert_eq!(record.status(), 201);
    assert_eq!(record.version(), Version::HTTP_11);
    assert_eq!(record.body(), BODY);
    assert_eq!(record.body_len(), Some(8));
    assert_eq!(record.headers()["link"], "</2>");
    assert_eq!(record.trailers(), None);
    let age = SystemTime::now().duration_since(record.recorded_at());
    assert!(age.unwrap() < Duration::from_secs(60));
}

#[test]
fn bytes_that_are_cut_short_are_no_record() {
    let bytes = sample();
    for len in 0..bytes.len() {
        assert_eq!(read(&bytes[..len]), None, "{len} of {}", bytes.len());
    }
    assert!(read(&bytes).is_some());
}

#[test]
fn bytes_that_go_on_are_no_record() {
    let mut bytes = sample();
    bytes.push(b'!');
    assert_eq!(read(&bytes), None);
}

#[test]
fn another_version_flag_or_number_is_no_record() {
    for (at, byte) in [
        (0, 0),
        (0, 0x1e),
        (FORMAT_AT, 0),
        (FORMAT_AT, 2),
        (FORMAT_AT, 255),
        (FLAGS_AT, 4),
        (FLAGS_AT, 0x80),
        (FLAGS_AT, OMITTED),
        (VERSION_AT, 0),
        (VERSION_AT, 12),
        (FIELDS_AT + 2, 2),
        (FIELDS_AT + 2, 0x80),
    ] {
        assert_eq!(read(&changed(at, &[byte])), None, "{byte} at {at}");
    }
    for status in [0_u16, 99, 100, 101, 199, 1000, u16::MAX] {
        assert_eq!(read(&changed(STATUS_AT, &status.to_be_bytes())), None);
    }
    for status in [200_u16, 599, 999] {
        let record = read(&changed(STATUS_AT, &status.to_be_bytes())).unwrap();
        assert_eq!(record.status().as_u16(), status);
    }
    let with_trailers = read(&changed(FLAGS_AT, &[TRAILERS])).unwrap();
    assert_eq!(with_trailers.trailers(), Some(HeaderMap::new()));
    // No field name, no field value, and more of them than there are bytes.
    assert_eq!(read(&changed(FIELDS_AT + 9, b"e ag")), None);
    assert_eq!(read(&changed(FIELDS_AT + 13, b"\"\n\"")), None);
    assert_eq!(read(&changed(FIELDS_AT, &[0xff, 0xff])), None);
    assert_eq!(read(&changed(FIELDS_AT + 3, &[0xff, 0xff])), None);
    assert_eq!(read(&changed(FIELDS_AT + 5, &[0xff; 4])), None);
}

#[test]
fn what_a_later_version_adds_is_skipped_unless_it_must_be_understood() {
    let optional: [&[(u16, &[u8])]; 3] = [
        &[(1, b"new")],
        &[(0x7fff, b"")],
        &[(1, b"a"), (1, b"b"), (0, &[0xff; 300])],
    ];
    for extensions in optional {
        let record = read(&with_extensions(extensions)).unwrap();
        assert_eq!(record.body(), BODY);
        assert_eq!(record.status(), 201);
    }
    for extensions in [&[(0x8000, &b""[..])][..], &[(1, b"a"), (0xffff, b"b")]] {
        assert_eq!(read(&with_extensions(extensions)), None);
    }
}

fn fields() -> impl Strategy<Value = HeaderMap> {
    // Few names, so that they repeat, or any; and none that is never recorded.
    let few = prop::sample::select(vec!["link", "etag", "x-a", "x-b", "grpc-status"]);
    let name = prop_oneof![
        few.prop_map(str::to_owned),
        "x[!#$%&'*+.^_`|~0-9a-z-]{0,20}"
    ];
    let byte = prop_oneof![0x20_u8..=0x7e, Just(b'\t'), 0x80_u8..=0xff];
    let value = prop::collection::vec(byte, 0..20);
    prop::collection::vec((name, value, any::<bool>()), 0..12).prop_map(|fields| {
        let mut map = HeaderMap::new();
        for (name, value, sensitive) in fields {
            let mut value = HeaderValue::from_bytes(&value).unwrap();
            value.set_sensitive(sensitive);
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        map
    })
}

/// Status, version, fields, body, trailers.
type Parts = (u16, Version, HeaderMap, Vec<u8>, Option<HeaderMap>);

fn answers() -> impl Strategy<Value = Parts> {
    let versions = vec![
        Version::HTTP_09,
        Version::HTTP_10,
        Version::HTTP_11,
        Version::HTTP_2,
        Version::HTTP_3,
    ];
    (
        200_u16..=999,
        prop::sample::select(versions),
        fields(),
        prop::collection::vec(any::<u8>(), 0..100),
        prop::option::of(fields()),
    )
}

/// The record that the layer makes of an answer.
fn recorded((status, version, fields, body, trailers): Parts) -> Record {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut steps = vec![Step::Data(body.into())];
    steps.extend(trailers.map(Step::Trailers));
    let mut answer = Response::builder().status(status).version(version);
    *answer.headers_mut().unwrap() = fields;
    let answer = answer
        .extension(tower_idempotency::Verdict::Record)
        .body(Script::new(steps))
        .unwrap();
    let store = MemoryStore::new();
    let scope = scope_fn(|_| Some(Scope::new("a")));
    let layer = IdempotencyLayer::new(store.clone(), scope);
    let (service, _) = handler(&layer, move |_, _: Request<_>| answer.clone());
    let id = RecordId::new("", &Scope::new("a"), &IdempotencyKey::new("k").unwrap());
    runtime.block_on(async {
        send(&service, post("k", "")).await;
        layer.in_flight().idle().await;
        let snapshot = store.lookup(&id).await.unwrap().unwrap();
        let Phase::Completed(record) = snapshot.phase else {
            panic!("{snapshot:?}");
        };
        record
    })
}

/// The body and every value are where the bytes were given.
#[track_caller]
fn assert_nothing_was_copied(record: &Record, given: &Bytes) {
    assert_eq!(record.as_bytes().as_ptr_range(), given.as_ptr_range());
    let body = record.body();
    if !body.is_empty() {
        assert_eq!(body.as_ptr_range().end, given.as_ptr_range().end);
    }
    let trailers = record.trailers().unwrap_or_default();
    for value in record.headers().values().chain(trailers.values()) {
        let place = value.as_bytes().as_ptr_range();
        let is_inside =
            given.as_ptr_range().start <= place.start && place.end <= given.as_ptr_range().end;
        assert!(value.is_empty() || is_inside, "{value:?}");
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn a_record_reads_back_as_the_answer_that_was_given(answer in answers()) {
        let written = recorded(answer.clone());
        // Out of the middle of a buffer, as a driver may hand it over.
        let buffer = Bytes::from([b"<", written.as_bytes(), b">"].concat());
        let given = buffer.slice(1..buffer.len() - 1);
        let record = Record::from_bytes(given.clone()).unwrap();
        prop_assert_eq!(&record, &written);
        assert_nothing_was_copied(&record, &given);
        let (status, version, fields, body, trailers) = answer;
        prop_assert_eq!(record.status().as_u16(), status);
        prop_assert_eq!(record.version(), version);
        prop_assert_eq!(record.body(), &body[..]);
        prop_assert_eq!(record.body_len(), Some(body.len() as u64));
        prop_assert!(!record.is_omitted());
        for (read, given) in [
            (Some(record.headers()), Some(fields)),
            (record.trailers(), trailers),
        ] {
            prop_assert_eq!(&read, &given);
            for ((_, read), (_, given)) in read.iter().flatten().zip(given.iter().flatten()) {
                prop_assert_eq!(read.is_sensitive(), given.is_sensitive());
            }
        }
    }

    #[test]
    fn a_record_of_an_operator_is_the_one_of_the_layer(answer in answers()) {
        let (status, version, fields, body, _) = answer;
        let mut plain = Response::builder().status(status).version(version);
        *plain.headers_mut().unwrap() = fields.clone();
        let own = Record::new(&plain.body(body.clone()).unwrap());
        let layers = recorded((status, version, fields, body, None));
        // All but the time it was recorded.
        let timeless = |record: &Record| {
            let bytes = record.as_bytes();
            [&bytes[..6], &bytes[BODY_LEN_AT..]].concat()
        };
        prop_assert_eq!(timeless(&own), timeless(&layers));
    }
}

/// A server trusts a length that comes with a body of known length.
#[test]
fn a_record_cannot_frame_its_own_message() {
    let with_field = |name: &str| {
        let mut bytes = sample();
        bytes[FIELDS_AT + 1] += 1;
        let name_len = u8::try_from(name.len()).unwrap();
        let field = [&[0, 0, name_len, 0, 0, 0, 1], name.as_bytes(), b"3"].concat();
        bytes.splice(FIELDS_AT + 2..FIELDS_AT + 2, field);
        read(&bytes)
    };
    for name in ["content-length", "Transfer-Encoding", "connection"] {
        assert_eq!(with_field(name), None, "{name}");
    }
    assert_eq!(with_field("x-length").unwrap().headers()["x-length"], "3");
}

#[test]
fn no_trailer_is_read_that_would_not_be_written() {
    let with_trailer = |name: &str| {
        let mut bytes = changed(FLAGS_AT, &[TRAILERS]);
        let count_at = before_the_body(&bytes) - 4;
        let name_len = u8::try_from(name.len()).unwrap();
        let field = [&[0, 1, 0, 0, name_len, 0, 0, 0, 1], name.as_bytes(), b"3"].concat();
        bytes.splice(count_at..count_at + 2, field);
        read(&bytes)
    };
    let record = with_trailer("x-length").unwrap();
    assert_eq!(record.trailers().unwrap()["x-length"], "3");
    for name in ["content-length", "Transfer-Encoding", "connection"] {
        assert_eq!(with_trailer(name), None, "{name}");
    }
}

#[test]
fn no_record_is_made_that_cannot_be_read() {
    for status in [100, 101, 103] {
        let answer = Response::builder().status(status).body(BODY).unwrap();
        // To refuse loudly is as good.
        if let Ok(record) = catch_unwind(AssertUnwindSafe(|| Record::new(&answer))) {
            assert_eq!(read(record.as_bytes()), Some(record), "{status}");
        }
    }
}
