//! The calls of several processes, as lines in files, and the history that they make up.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tower_idempotency::store::{
    Fingerprint, Lapse, Owner, Phase, Record, RecordId, Snapshot, StoreErrorKind,
};

use crate::support::history::{Answer, Call, Caller, Event};

const ERRORS: [StoreErrorKind; 6] = [
    StoreErrorKind::NotApplied,
    StoreErrorKind::Ambiguous,
    StoreErrorKind::Full,
    StoreErrorKind::Quota,
    StoreErrorKind::Corrupt,
    StoreErrorKind::Misconfigured,
];

/// All calls of these files. The last line of one may be cut off: its process was killed.
pub(crate) fn events(logs: impl Iterator<Item = PathBuf>) -> Vec<Event> {
    let mut events = Vec::new();
    for log in logs {
        let log = std::fs::read_to_string(log).unwrap();
        let mut asked = HashMap::new();
        let mut lines = log
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        for line in lines.by_ref() {
            let line: Value = serde_json::from_str(line).unwrap();
            let number = line["number"].as_u64().unwrap();
            if line["call"].is_null() {
                let event: &mut Event = &mut events[asked[&number]];
                event.answered = duration(&line["answered"]);
                event.answer = read_answer(&line["answer"]);
            } else {
                asked.insert(number, events.len());
                events.push(read_event(&line));
            }
        }
    }
    let start = events.iter().map(|event| event.asked).min().unwrap();
    for event in &mut events {
        event.asked -= start;
        if event.answered != Duration::MAX {
            event.answered -= start;
        }
    }
    events.sort_by_key(|event| event.asked);
    events
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap()
}

fn duration(value: &Value) -> Duration {
    Duration::from_nanos(value.as_u64().unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    unhex(value).try_into().unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

fn record(value: &Value) -> Record {
    Record::from_bytes(unhex(value).into()).unwrap()
}

pub(crate) fn call(id: &RecordId, by: Option<&Caller>, call: &Call) -> Value {
    let by = by.map(|by| {
        json!([
            hex(by.owner.as_bytes()),
            hex(by.fingerprint.as_bytes()),
            by.attempt
        ])
    });
    let what = match call {
        Call::Claim {
            lease,
            retention,
            lapse,
        } => json!([
            "claim",
            nanos(*lease),
            nanos(*retention),
            *lapse == Lapse::Seal
        ]),
        Call::Extend { lease, retention } => {
            json!(["extend", nanos(*lease), nanos(*retention)])
        }
        Call::Complete { record, retention } => {
            json!(["complete", hex(record.as_bytes()), nanos(*retention)])
        }
        Call::Fail { seal, retention } => json!(["fail", seal, nanos(*retention)]),
        Call::Release => json!(["release"]),
        Call::Lookup => json!(["lookup"]),
        Call::Forget => json!(["forget"]),
        Call::Resolve { record, retention } => {
            json!(["resolve", hex(record.as_bytes()), nanos(*retention)])
        }
    };
    json!({ "id": hex(id.as_bytes()), "by": by, "what": what })
}

fn read_event(line: &Value) -> Event {
    let (call, what) = (&line["call"], &line["call"]["what"]);
    let by = call["by"].as_array().map(|by| Caller {
        owner: Owner::from_bytes(bytes(&by[0])),
        fingerprint: Fingerprint::from_bytes(bytes(&by[1])),
        attempt: by[2].as_u64().unwrap(),
    });
    let asked_for = match what[0].as_str().unwrap() {
        "claim" => Call::Claim {
            lease: duration(&what[1]),
            retention: duration(&what[2]),
            lapse: match what[3].as_bool().unwrap() {
                true => Lapse::Seal,
                false => Lapse::TakeOver,
            },
        },
        "extend" => Call::Extend {
            lease: duration(&what[1]),
            retention: duration(&what[2]),
        },
        "complete" => Call::Complete {
            record: record(&what[1]),
            retention: duration(&what[2]),
        },
        "fail" => Call::Fail {
            seal: what[1].as_bool().unwrap(),
            retention: duration(&what[2]),
        },
        "release" => Call::Release,
        "lookup" => Call::Lookup,
        "forget" => Call::Forget,
        "resolve" => Call::Resolve {
            record: record(&what[1]),
            retention: duration(&what[2]),
        },
        other => panic!("a call of {other}"),
    };
    Event {
        key: RecordId::from_bytes(bytes(&call["id"])),
        by,
        call: asked_for,
        asked: duration(&line["asked"]),
        answered: Duration::MAX,
        answer: Answer::Never,
    }
}

pub(crate) fn answer(answer: &Answer) -> Value {
    match answer {
        Answer::Acquired { attempt } => json!(["acquired", attempt]),
        Answer::InProgress { attempt } => json!(["in progress", attempt]),
        Answer::Completed { attempt, record } => {
            json!(["completed", attempt, hex(record.as_bytes())])
        }
        Answer::Abandoned { attempt } => json!(["abandoned", attempt]),
        Answer::Found(found) => {
            let phase = match &found.phase {
                Phase::Running { lease_left } => json!(["running", nanos(*lease_left)]),
                Phase::Failed => json!(["failed"]),
                Phase::Sealed => json!(["sealed"]),
                Phase::Completed(record) => json!(["completed", hex(record.as_bytes())]),
                other => panic!("a phase of {other:?}"),
            };
            let print = hex(found.fingerprint.as_bytes());
            json!([
                "found",
                found.attempt,
                print,
                nanos(found.retention_left),
                phase
            ])
        }
        Answer::Error(kind) => {
            json!([
                "error",
                ERRORS.iter().position(|error| error == kind).unwrap()
            ])
        }
        plain => json!([PLAIN.iter().position(|answer| answer == plain).unwrap()]),
    }
}

/// Those that say no more than their name.
const PLAIN: [Answer; 11] = [
    Answer::Mismatch,
    Answer::Held,
    Answer::Lost,
    Answer::Stored,
    Answer::Restored,
    Answer::NotOwner,
    Answer::Forgotten,
    Answer::Live,
    Answer::Resolved,
    Answer::NotSealed,
    Answer::Absent,
];

fn read_answer(value: &Value) -> Answer {
    let number = |at: usize| value[at].as_u64().unwrap();
    let Some(name) = value[0].as_str() else {
        return PLAIN[number(0) as usize].clone();
    };
    match name {
        "acquired" => Answer::Acquired { attempt: number(1) },
        "in progress" => Answer::InProgress { attempt: number(1) },
        "completed" => Answer::Completed {
            attempt: number(1),
            record: record(&value[2]),
        },
        "abandoned" => Answer::Abandoned { attempt: number(1) },
        "found" => {
            let phase = match value[4][0].as_str().unwrap() {
                "running" => Phase::Running {
                    lease_left: duration(&value[4][1]),
                },
                "failed" => Phase::Failed,
                "sealed" => Phase::Sealed,
                "completed" => Phase::Completed(record(&value[4][1])),
                other => panic!("a phase of {other}"),
            };
            let print = Fingerprint::from_bytes(bytes(&value[2]));
            Answer::Found(Snapshot::new(print, number(1), phase, duration(&value[3])))
        }
        "error" => Answer::Error(ERRORS[number(1) as usize]),
        other => panic!("an answer of {other}"),
    }
}
