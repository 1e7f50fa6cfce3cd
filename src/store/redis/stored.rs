//! The string at a record's key. `head.lua` tells where what stands.

use bytes::{BufMut, Bytes};

use crate::model::claim::{Hold, Lapse, Owner, Phase, Snapshot};
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::fingerprint::Fingerprint;
use crate::model::record::Record;
use std::time::Duration;

const HEAD_LEN: usize = 81;
const COMPLETED: u8 = b'C';
const FAILED: u8 = b'F';
const SEALED: u8 = b'S';
const NO_LEASE: &[u8; 16] = b"0000000000000000";

/// The largest attempt that the server's scripts count exactly.
const LAST_ATTEMPT: u64 = (1 << 53) - 1;

/// The state of a run under way.
pub(super) fn running(lapse: Lapse) -> &'static [u8] {
    match lapse {
        Lapse::TakeOver => b"t",
        Lapse::Seal => b"s",
    }
}

/// The state of a run that ended without an answer.
pub(super) fn ended(seal: bool) -> [u8; 1] {
    [if seal { SEALED } else { FAILED }]
}

pub(super) fn completed_len(record: &Record) -> usize {
    HEAD_LEN + record.as_bytes().len()
}

pub(super) fn put_completed(hold: &Hold, record: &Record, to: &mut (impl BufMut + ?Sized)) {
    to.put_slice(hold.fingerprint.as_bytes());
    to.put_slice(hold.owner.as_bytes());
    to.put_slice(format!("{:016}", hold.attempt.min(LAST_ATTEMPT)).as_bytes());
    put_answer(record, to);
}

/// What follows the attempt in a completed record.
pub(super) fn put_answer(record: &Record, to: &mut (impl BufMut + ?Sized)) {
    to.put_u8(COMPLETED);
    to.put_slice(NO_LEASE);
    to.put_slice(record.as_bytes());
}

/// A record as it was read, with or without its answer.
pub(super) struct Stored {
    pub(super) fingerprint: Fingerprint,
    pub(super) owner: Owner,
    pub(super) attempt: u64,
    state: u8,
    bytes: Bytes,
}

impl Stored {
    pub(super) fn read(bytes: Vec<u8>) -> Result<Self, StoreError> {
        Self::try_read(bytes).ok_or_else(|| StoreErrorKind::Corrupt.into())
    }

    fn try_read(bytes: Vec<u8>) -> Option<Self> {
        let (fingerprint, rest) = bytes.split_first_chunk()?;
        let (owner, rest) = rest.split_first_chunk()?;
        let (attempt, rest) = rest.split_first_chunk::<16>()?;
        let (&[state], rest) = rest.split_first_chunk()?;
        rest.split_first_chunk::<16>()?;
        Some(Self {
            fingerprint: Fingerprint::from_bytes(*fingerprint),
            owner: Owner::from_bytes(*owner),
            attempt: std::str::from_utf8(attempt).ok()?.parse().ok()?,
            state,
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
    pub(super) fn answer(&self) -> Result<Record, StoreError> {
        Record::from_bytes(self.bytes.slice(HEAD_LEN..))
    }

    pub(super) fn snapshot(
        &self,
        lease_left: Duration,
        retention_left: Duration,
    ) -> Result<Snapshot, StoreError> {
        let phase = match self.state {
            b't' => Phase::Running { lease_left },
            b's' if !lease_left.is_zero() => Phase::Running { lease_left },
            b's' | SEALED => Phase::Sealed,
            FAILED => Phase::Failed,
            COMPLETED => Phase::Completed(self.answer()?),
            _ => return Err(StoreErrorKind::Corrupt.into()),
        };
        Ok(Snapshot::new(
            self.fingerprint,
            self.attempt,
            phase,
            retention_left,
        ))
    }
}
