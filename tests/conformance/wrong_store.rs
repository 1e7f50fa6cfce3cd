//! A store that is right, or wrong in one place: what it keeps, and how it decides.

mod calls;

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Response};
use tokio::time::Instant;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Fingerprint, Hold, Lapse, Owner, Record, RecordId, StoreError,
    StoreErrorKind,
};

use crate::faults::Fault;

/// Where a record says when it was made, which is not what a store gets wrong here.
const RECORDED_AT: Range<usize> = 6..14;

/// A small store that keeps the contract, but for one fault.
#[derive(Clone)]
pub(crate) struct Faulty {
    fault: Option<Fault>,
    records: Arc<Mutex<HashMap<RecordId, Entry>>>,
    is_another_node: bool,
}

#[derive(Clone)]
struct Entry {
    fingerprint: Fingerprint,
    owner: Owner,
    attempt: u64,
    lapse: Lapse,
    state: State,
    claimed: Instant,
    end: Instant,
}

#[derive(Clone, PartialEq)]
enum State {
    Running { lease_end: Instant },
    Failed,
    Sealed,
    Completed(Record),
}

impl Entry {
    fn new(request: &ClaimRequest, attempt: u64, now: Instant) -> Self {
        let lease_end = now + request.lease;
        Self {
            fingerprint: request.fingerprint,
            owner: request.owner,
            attempt,
            lapse: request.lapse,
            state: State::Running { lease_end },
            claimed: now,
            end: lease_end + request.retention,
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    fn has_lapsed(&self, now: Instant) -> bool {
        matches!(self.state, State::Running { lease_end } if lease_end <= now)
    }
}

impl Faulty {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self {
            fault,
            records: Arc::default(),
            is_another_node: false,
        }
    }

    pub(crate) fn another_node(&self) -> Self {
        Self {
            is_another_node: true,
            ..self.clone()
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn now(&self) -> Instant {
        let now = Instant::now();
        match self.fault {
            Some(Fault::NodeIsAhead) if self.is_another_node => now + Duration::from_secs(2),
            Some(Fault::NodeIsBehind) if self.is_another_node => now - Duration::from_secs(2),
            _ => now,
        }
    }

    async fn reach(&self) -> Result<(), StoreError> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        match self.fault {
            Some(Fault::Unreachable | Fault::UnreachableIsAbsent) => {
                Err(StoreError::new(StoreErrorKind::NotApplied, refused()))
            }
            Some(Fault::UnreachableWithoutSource) => Err(StoreErrorKind::NotApplied.into()),
            Some(Fault::UnreachableIsFull) => Err(StoreError::new(StoreErrorKind::Full, refused())),
            Some(Fault::UnreachableHangs) => pending().await,
            _ => Ok(()),
        }
    }

    /// Changes the record of an id, which is `None` once it has expired.
    fn change<T>(&self, id: &RecordId, change: impl FnOnce(&mut Option<Entry>) -> T) -> T {
        let now = self.now();
        let mut records = self.records.lock().unwrap();
        let mut entry = records.remove(id).filter(|entry| now < entry.end);
        let answer = change(&mut entry);
        if let Some(entry) = entry {
            records.insert(*id, entry);
        }
        answer
    }

    fn decide(&self, found: Option<&Entry>, request: &ClaimRequest) -> (Claimed, Option<Entry>) {
        let now = self.now();
        let acquired = |attempt| {
            let mut entry = Entry::new(request, attempt, now);
            if self.has(Fault::RunEndsBeforeItsLease) {
                entry.end = now + request.retention;
            }
            (Claimed::Acquired(request.hold(attempt)), Some(entry))
        };
        let Some(entry) = found else {
            return acquired(1);
        };
        let attempt = entry.attempt;
        let in_progress = |lease_left| {
            let running = Claimed::InProgress {
                attempt,
                lease_left,
            };
            (running, None)
        };
        let abandoned = (Claimed::Abandoned { attempt }, None);

        if now >= entry.end && !self.has(Fault::ExpiredWaitsForPurge) {
            return match self.fault {
                Some(Fault::ExpiredIsInProgress) if entry.is_running() => {
                    in_progress(Duration::ZERO)
                }
                Some(Fault::AttemptsGoOn) => acquired(attempt + 1),
                _ => acquired(1),
            };
        }
        let is_owner = entry.owner == request.owner;
        if entry.fingerprint != request.fingerprint {
            let is_free = match self.fault {
                Some(Fault::FailedIsFreeForAnother) => entry.state == State::Failed,
                Some(Fault::LapsedIsFreeForAnother) => entry.has_lapsed(now),
                Some(Fault::OwnerMayChangeRequest) => is_owner && entry.is_running(),
                _ => false,
            };
            let mismatch = (Claimed::Mismatch, None);
            return if is_free {
                acquired(attempt + 1)
            } else {
                mismatch
            };
        }
        match &entry.state {
            State::Completed(_) if is_owner && self.has(Fault::CompletedRunsAgain) => {
                acquired(attempt)
            }
            State::Completed(record) => {
                let record = record.clone();
                (Claimed::Completed { attempt, record }, None)
            }
            State::Failed => match self.fault {
                Some(Fault::FailedRunIsNotFree) => in_progress(Duration::ZERO),
                Some(Fault::FailureIsNotCounted) => acquired(attempt),
                _ => acquired(attempt + 1),
            },
            State::Sealed => match self.fault {
                Some(Fault::SealedIsTakenOver) => acquired(attempt + 1),
                _ => abandoned,
            },
            State::Running { .. } if is_owner => match self.fault {
                Some(Fault::SameClaimIsCounted) => acquired(attempt + 1),
                Some(Fault::SameClaimIsNotRenewed) => {
                    (Claimed::Acquired(request.hold(attempt)), None)
                }
                _ => acquired(attempt),
            },
            State::Running { lease_end } if *lease_end > now => match self.fault {
                Some(Fault::LiveRunIsTakenOver) => acquired(attempt + 1),
                Some(Fault::SealBeforeTheEnd) if entry.lapse == Lapse::Seal => abandoned,
                _ => in_progress(*lease_end - now),
            },
            State::Running { .. } => {
                let lapse = match self.fault {
                    Some(Fault::ChallengersLapseDecides) => request.lapse,
                    _ => entry.lapse,
                };
                match self.fault {
                    _ if lapse == Lapse::Seal => abandoned,
                    Some(Fault::LapsedRunIsNotFree) => in_progress(Duration::ZERO),
                    Some(Fault::TakeOverIsNotCounted) => acquired(attempt),
                    _ => acquired(attempt + 1),
                }
            }
        }
    }

    /// Whether a hold is that of the current owner of a running record.
    fn is_held(&self, entry: &Entry, hold: &Hold) -> bool {
        let fits = match self.fault {
            Some(Fault::LateOwnerIsRefused) => !entry.has_lapsed(self.now()),
            Some(Fault::AttemptsAreCompared) => entry.attempt == hold.attempt,
            _ => true,
        };
        fits && entry.owner == hold.owner && entry.is_running()
    }

    /// When a run that ends now is forgotten.
    fn kept_until(&self, entry: &Entry, retention: Duration) -> Instant {
        match self.fault {
            Some(Fault::RetentionCountsFromClaim) => entry.claimed + retention,
            _ => self.now() + retention,
        }
    }

    /// What is kept of an answer.
    fn kept(&self, record: &Record) -> Record {
        let headers = record.headers();
        let fields = headers.iter();
        let mut fields: Vec<(HeaderName, HeaderValue)> = fields
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let body = record.body();
        let mut kept = body.len();
        match self.fault {
            Some(Fault::FieldsAreSorted) => {
                fields.sort_by_key(|(name, _)| name.to_string());
            }
            Some(Fault::FieldsAreText) => {
                for (_, value) in &mut fields {
                    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    *value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
                }
            }
            Some(Fault::RecordIsCut) if kept > 64 * 1024 => kept = 64 * 1024,
            _ => return record.clone(),
        }
        let mut answer = Response::new(body.slice(..kept));
        *answer.status_mut() = record.status();
        *answer.headers_mut() = fields.into_iter().collect();
        let mut kept = Record::new(&answer).as_bytes().to_vec();
        kept[RECORDED_AT].copy_from_slice(&record.as_bytes()[RECORDED_AT]);
        Record::from_bytes(kept.into()).unwrap()
    }
}
