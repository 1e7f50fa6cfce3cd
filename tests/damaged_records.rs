//! Bytes that come back from a store damaged, or from somebody else, are refused or read as
//! the record they have become: no panic, and no memory because they say so.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use http::Response;
use proptest::prelude::*;
use proptest::sample::Index;
use support::pieces::cases;
use tower_idempotency::store::{Record, StoreErrorKind};

/// 200 with a body of eight bytes, as far as before the fields.
const HEAD: &[u8] = b"\x1d\x01\0\x0b\0\xc8\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08";

/// With trailers and a field of each kind; with extensions; without a body.
const RECORDS: [&[u8]; 4] = [
    include_bytes!("golden/record-v1-trailers.bin"),
    include_bytes!("golden/record-v1-extensions.bin"),
    include_bytes!("golden/record-v1-sensitive.bin"),
    include_bytes!("golden/record-v1-omitted.bin"),
];

#[derive(Debug, Clone, Copy)]
enum Edit {
    Change(u8),
    Insert(u8),
    Remove,
}

impl Edit {
    fn apply(self, bytes: &mut Vec<u8>, at: usize) {
        match self {
            Self::Change(to) => bytes[at] = to,
            Self::Insert(byte) => bytes.insert(at, byte),
            Self::Remove => drop(bytes.remove(at)),
        }
    }
}

fn edits() -> impl Strategy<Value = Edit> {
    prop_oneof![
        any::<u8>().prop_map(Edit::Change),
        any::<u8>().prop_map(Edit::Insert),
        Just(Edit::Remove),
    ]
}

/// Whatever is taken for a record is one in every respect.
fn refused_or_whole(bytes: &[u8]) {
    let record = match Record::from_bytes(Bytes::copy_from_slice(bytes)) {
        Ok(record) => record,
        Err(error) => {
            assert_eq!(error.kind(), StoreErrorKind::Corrupt);
            return;
        }
    };
    ask_everything(&record);
    assert_eq!(record.as_bytes(), bytes);
    let body = record.body();
    assert!(bytes.ends_with(&body));
    if record.is_omitted() {
        assert!(body.is_empty());
    } else {
        assert_eq!(record.body_len(), Some(body.len() as u64));
    }
}

fn ask_everything(record: &Record) {
    let _ = (record.status(), record.version(), record.headers());
    let _ = (record.trailers(), record.body(), record.body_len());
    let _ = (record.is_omitted(), record.recorded_at());
    let _ = format!("{record:?}");
}

proptest! {
    #![proptest_config(cases(5000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        refused_or_whole(&bytes);
        // With a head that lets the rest be looked at.
        refused_or_whole(&[HEAD, &bytes].concat());
    }

    #[test]
    fn a_damaged_record_is_refused_or_is_another_record(
        record in prop::sample::select(RECORDS.to_vec()),
        edits in prop::collection::vec((any::<Index>(), edits()), 1..4),
        cut in prop::option::of(any::<Index>()),
    ) {
        let mut bytes = record.to_vec();
        for (at, edit) in edits {
            let at = at.index(bytes.len());
            edit.apply(&mut bytes, at);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        refused_or_whole(&bytes);
    }
}

#[test]
fn one_byte_too_many_or_too_few_or_another_never_panics() {
    for record in RECORDS {
        for at in 0..record.len() {
            let byte = record[at];
            let others = [byte ^ 1, byte ^ 0x80, 0, 1, 2, 0x7f, 0xff, b'\n'];
            let others = others.map(|byte| [Edit::Change(byte), Edit::Insert(byte)]);
            for edit in others.into_iter().flatten().chain([Edit::Remove]) {
                let mut bytes = record.to_vec();
                edit.apply(&mut bytes, at);
                refused_or_whole(&bytes);
            }
        }
    }
}

/// The most that was allocated at any time while all of it was looked at.
fn peak(bytes: Vec<u8>) -> usize {
    let bytes = Bytes::from(bytes);
    let info = allocation_counter::measure(|| {
        if let Ok(record) = Record::from_bytes(bytes) {
            ask_everything(&record);
        }
    });
    usize::try_from(info.bytes_max).unwrap()
}

#[test]
fn a_count_or_a_length_that_lies_is_given_no_room() {
    for record in RECORDS {
        for at in 0..record.len() {
            for lie in [&[0xff; 4][..], &[0x7f, 0xff], &[0x10, 0], &[0xff]] {
                // There is much to come, so that the lie is not found out by its size.
                let mut bytes = [record, &[0xff; 300_000]].concat();
                bytes[at..at + lie.len()].copy_from_slice(lie);
                let peak = peak(bytes);
                // A name is copied, and its length has two bytes.
                assert!(peak < 100_000, "{peak} bytes for {lie:?} at {at}");
            }
        }
    }
}

#[test]
fn as_many_lines_as_can_be_counted_take_room_by_their_size() {
    let one_name: fn(u16) -> String = |_| "a".to_owned();
    let own_names: fn(u16) -> String = |number| format!("{number:x}");
    for (count, name) in [(u16::MAX, one_name), (20_000, own_names)] {
        let mut bytes = HEAD.to_vec();
        bytes.extend(count.to_be_bytes());
        for number in 0..count {
            let name = name(number);
            bytes.extend([0, 0, u8::try_from(name.len()).unwrap(), 0, 0, 0, 0]);
            bytes.extend(name.as_bytes());
        }
        bytes.extend(b"\0\0\0\0the body");
        let size = bytes.len();
        let record = Record::from_bytes(bytes.clone().into()).unwrap();
        assert_eq!(record.headers().len(), usize::from(count));
        let peak = peak(bytes);
        assert!(peak < 32 * size, "{peak} bytes for {size}");
    }
}

#[test]
fn a_body_is_given_no_room_of_its_own() {
    let answer = Response::new(vec![b'x'; 1_000_000]);
    let bytes = Record::new(&answer).as_bytes().to_vec();
    let peak = peak(bytes);
    assert!(peak < 1_000, "{peak} bytes");
}
