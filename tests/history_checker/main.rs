//! The proof of a history of store calls accepts what the contract allows, and finds each
//! way to break it.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod allowed;
mod forbidden;
#[cfg(feature = "memory")]
mod never_accused;
mod report;
#[cfg(feature = "memory")]
mod written_down;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use http::Response;
use support::history::{Answer, Call, Caller, Event, Rule, check, violations};
use tower_idempotency::store::{Fingerprint, Lapse, Owner, Phase, Record, RecordId, Snapshot};

/// Of every claim; the retention is 300 ms.
const LEASE: Duration = Duration::from_millis(40);
const RETENTION: Duration = Duration::from_millis(300);

/// A call of owner `by` for request 1, as long as nothing else is said.
#[derive(Clone)]
struct Asked {
    by: u8,
    request: u8,
    attempt: u64,
    call: Call,
}

impl Asked {
    fn new(by: u8, call: Call) -> Self {
        let (request, attempt) = (1, 1);
        Self {
            by,
            request,
            attempt,
            call,
        }
    }

    fn request(mut self, request: u8) -> Self {
        self.request = request;
        self
    }

    fn attempt(mut self, attempt: u64) -> Self {
        self.attempt = attempt;
        self
    }

    /// Asked and answered at these milliseconds.
    fn at(self, asked: u64, answered: u64, answer: Answer) -> Event {
        let is_claim = matches!(self.call, Call::Claim { .. });
        let by = Caller {
            owner: Owner::from_bytes([self.by; 16]),
            fingerprint: Fingerprint::from_bytes([self.request; 32]),
            attempt: if is_claim { 0 } else { self.attempt },
        };
        Event {
            key: RecordId::from_bytes([7; 32]),
            by: (self.by != 0).then_some(by),
            call: self.call,
            asked: Duration::from_millis(asked),
            answered: Duration::from_millis(answered),
            answer,
        }
    }

    fn without_answer(self, asked: u64) -> Event {
        let answered = Duration::MAX;
        Event {
            answered,
            ..self.at(asked, 0, Answer::Never)
        }
    }
}

fn claim_with(by: u8, lapse: Lapse) -> Asked {
    let (lease, retention) = (LEASE, RETENTION);
    let call = Call::Claim {
        lease,
        retention,
        lapse,
    };
    Asked::new(by, call)
}

fn claim(by: u8) -> Asked {
    claim_with(by, Lapse::TakeOver)
}

fn extend(by: u8) -> Asked {
    let (lease, retention) = (LEASE, RETENTION);
    Asked::new(by, Call::Extend { lease, retention })
}

fn complete(by: u8, body: &'static str) -> Asked {
    let (record, retention) = (record(body), RETENTION);
    Asked::new(by, Call::Complete { record, retention })
}

fn fail(by: u8, seal: bool) -> Asked {
    let retention = RETENTION;
    Asked::new(by, Call::Fail { seal, retention })
}

fn release(by: u8) -> Asked {
    Asked::new(by, Call::Release)
}

fn lookup() -> Asked {
    Asked::new(0, Call::Lookup)
}

fn forget() -> Asked {
    Asked::new(0, Call::Forget)
}

fn resolve(body: &'static str) -> Asked {
    let (record, retention) = (record(body), RETENTION);
    Asked::new(0, Call::Resolve { record, retention })
}

/// The same one each time: a record tells when it was made.
fn record(body: &'static str) -> Record {
    static RECORDS: LazyLock<Mutex<HashMap<&str, Record>>> = LazyLock::new(Mutex::default);
    let mut records = RECORDS.lock().unwrap();
    let record = records.entry(body);
    record
        .or_insert_with(|| Record::new(&Response::new(body)))
        .clone()
}

fn acquired(attempt: u64) -> Answer {
    Answer::Acquired { attempt }
}

fn completed(attempt: u64, body: &'static str) -> Answer {
    let record = record(body);
    Answer::Completed { attempt, record }
}

fn found(attempt: u64, phase: Phase) -> Answer {
    let fingerprint = Fingerprint::from_bytes([1; 32]);
    Answer::Found(Snapshot::new(fingerprint, attempt, phase, RETENTION))
}

#[track_caller]
fn is_legal(events: impl IntoIterator<Item = Event>) {
    let events: Vec<_> = events.into_iter().collect();
    check(&events);
}

#[track_caller]
fn breaks(rule: Rule, events: impl IntoIterator<Item = Event>) {
    let events: Vec<_> = events.into_iter().collect();
    let found = violations(&events);
    let broken: Vec<_> = found.iter().map(|violation| violation.rule).collect();
    assert!(broken.contains(&rule), "{rule:?} is not among {broken:?}");
    assert!(std::panic::catch_unwind(|| check(&events)).is_err());
}
