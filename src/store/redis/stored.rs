//! The string at a record's key. `head.lua` tells where what stands.

use std::time::Duration;

use bytes::{BufMut, Bytes};

use super::script::millis;
use crate::model::claim::{ClaimRequest, Claimed, Hold, Lapse, Owner, Phase, Snapshot};
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::fingerprint::Fingerprint;
use crate::model::record::Record;

const HEAD_LEN: usize = 81;
const MAY_BE_TAKEN_OVER: u8 = b't';
const IS_SEALED_AT_LAPSE: u8 = b's';
const COMPLETED: u8 = b'C';
const FAILED: u8 = b'F';
const SEALED: u8 = b'S';
const NO_LEASE: u64 = 0;

/// The largest number that the server's scripts know exactly.
const LARGEST: u64 = (1 << 53) - 1;

/// The state of a run that ended without an answer.
pub(super) fn ended(seal: bool) -> [u8; 1] {
    [if seal { SEALED } else { FAILED }]
}

/// The record of a first run.
pub(super) fn claimed(request: &ClaimRequest) -> [u8; HEAD_LEN] {
    let state = match request.lapse {
        Lapse::TakeOver => MAY_BE_TAKEN_OVER,
        Lapse::Seal => IS_SEALED_AT_LAPSE,
    };
    head(
        &request.fingerprint,
        &request.owner,
        1,
        state,
        outlives_lease(request.lease, request.retention),
    )
}

pub(super) fn completed_len(record: &Record) -> usize {
    HEAD_LEN + record.as_bytes().len()
}

pub(super) fn put_completed(hold: &Hold, record: &Record, to: &mut dyn BufMut) {
    let head = head(
        &hold.fingerprint,
        &hold.owner,
        hold.attempt,
        COMPLETED,
        NO_LEASE,
    );
    to.put_slice(&head);
    to.put_slice(record.as_bytes());
}

/// What follows the attempt in a completed record.
pub(super) fn put_answer(record: &Record, to: &mut dyn BufMut) {
    to.put_u8(COMPLETED);
    to.put_slice(&digits(NO_LEASE));
    to.put_slice(record.as_bytes());
}

fn head(
    fingerprint: &Fingerprint,
    owner: &Owner,
    attempt: u64,
    state: u8,
    outlives: u64,
) -> [u8; HEAD_LEN] {
    let mut head = [state; HEAD_LEN];
    head[..32].copy_from_slice(fingerprint.as_bytes());
    head[32..48].copy_from_slice(owner.as_bytes());
    head[48..64].copy_from_slice(&digits(attempt));
    head[65..].copy_from_slice(&digits(outlives));
    head
}

fn digits(number: u64) -> [u8; 16] {
    let mut left = number.min(LARGEST);
    let mut digits = [b'0'; 16];
    for digit in digits.iter_mut().rev() {
        *digit += (left % 10) as u8;
        left /= 10;
    }
    digits
}

/// The retention, counted so that it and the lease make up the expiry of the key.
fn outlives_lease(lease: Duration, retention: Duration) -> u64 {
    millis(lease.saturating_add(retention)).saturating_sub(millis(lease))
}

/// A record as it was read, with or without its answer.
pub(super) struct Stored {
    fingerprint: Fingerprint,
    owner: Owner,
    attempt: u64,
    state: u8,
    outlives: u64,
    bytes: Bytes,
}

impl Stored {
    pub(super) fn read(bytes: Vec<u8>) -> Result<Self, StoreError> {
        Self::try_read(bytes).ok_or_else(corrupt)
    }

    fn try_read(bytes: Vec<u8>) -> Option<Self> {
        let (fingerprint, rest) = bytes.split_first_chunk()?;
        let (owner, rest) = rest.split_first_chunk()?;
        let (attempt, rest) = rest.split_first_chunk::<16>()?;
        let (&[state], rest) = rest.split_first_chunk()?;
        let (outlives, _) = rest.split_first_chunk::<16>()?;
        Some(Self {
            fingerprint: Fingerprint::from_bytes(*fingerprint),
            owner: Owner::from_bytes(*owner),
            attempt: number(attempt)?,
            state,
            outlives: number(outlives)?,
            bytes: Bytes::from(bytes),
        })
    }

    pub(super) fn is_completed(&self) -> bool {
        self.state == COMPLETED
    }

    /// Whether an answer was too long to be given with it: no answer is of no bytes.
    pub(super) fn lacks_answer(&self) -> bool {
        self.is_completed() && self.bytes.len() == HEAD_LEN
    }

    /// Whether both are of the same run. Owners are never used twice.
    pub(super) fn is_of_same_run(&self, other: &Self) -> bool {
        self.owner == other.owner && self.fingerprint == other.fingerprint
    }

    /// The answer, without a copy.
    fn answer(&self) -> Result<Record, StoreError> {
        Record::from_bytes(self.bytes.slice(HEAD_LEN..))
    }

    /// What it means for a claim that it is in the way of. While it runs, what is left of
    /// its lease stands in the place of an answer.
    pub(super) fn in_the_way(&self) -> Result<Claimed, StoreError> {
        let attempt = self.attempt;
        let rest = &self.bytes[HEAD_LEN..];
        match self.state {
            COMPLETED => self.completed(),
            MAY_BE_TAKEN_OVER | IS_SEALED_AT_LAPSE if !rest.is_empty() => {
                let lease_left = Duration::from_millis(number(rest).ok_or_else(corrupt)?);
                Ok(Claimed::InProgress {
                    attempt,
                    lease_left,
                })
            }
            IS_SEALED_AT_LAPSE | SEALED => Ok(Claimed::Abandoned { attempt }),
            _ => Err(corrupt()),
        }
    }

    pub(super) fn completed(&self) -> Result<Claimed, StoreError> {
        Ok(Claimed::Completed {
            attempt: self.attempt,
            record: self.answer()?,
        })
    }

    /// Without an expiry, which only somebody else can have taken away, it has no end, and a
    /// run no lease.
    pub(super) fn snapshot(&self, left: Option<u64>) -> Result<Snapshot, StoreError> {
        let retention_left = left.map_or(Duration::MAX, Duration::from_millis);
        let lease_left = left.map(|left| left.saturating_sub(self.outlives));
        let has_lapsed = left.is_some_and(|left| left < self.outlives);
        let phase = match self.state {
            IS_SEALED_AT_LAPSE if has_lapsed => Phase::Sealed,
            MAY_BE_TAKEN_OVER | IS_SEALED_AT_LAPSE => Phase::Running {
                lease_left: lease_left.map(Duration::from_millis).ok_or_else(corrupt)?,
            },
            SEALED => Phase::Sealed,
            FAILED => Phase::Failed,
            COMPLETED => Phase::Completed(self.answer()?),
            _ => return Err(corrupt()),
        };
        Ok(Snapshot::new(
            self.fingerprint,
            self.attempt,
            phase,
            retention_left,
        ))
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    // A sign would be read as well.
    let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn corrupt() -> StoreError {
    StoreErrorKind::Corrupt.into()
}
