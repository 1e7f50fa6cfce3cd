//! A row as it was read, and what it means.

use std::time::Duration;

use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::{Error, Row};

use crate::model::claim::{ClaimRequest, Claimed, Owner, Phase, Snapshot};
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::fingerprint::Fingerprint;
use crate::model::record::Record;

pub(super) const FAILED: i64 = 2;
pub(super) const SEALED: i64 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running { seals: bool },
    Completed,
    Failed,
    Sealed,
}

pub(super) struct Stored {
    fingerprint: Fingerprint,
    owner: Owner,
    attempt: u64,
    state: State,
    /// Milliseconds to the end of the lease.
    lease_left: i64,
    /// Milliseconds to the end of the record.
    left: i64,
    record: Option<Vec<u8>>,
}

/// What a claim comes to that finds a record.
pub(super) enum Found {
    /// It is in the way.
    Answer(Claimed),
    /// The key is free, and nobody can be at work under it.
    Free,
    /// The key is free, and whoever holds it may have a transaction open in which it is locked.
    FreeUnlessLocked {
        /// The number of that run.
        attempt: u64,
    },
    /// The lease ended under a seal, and whoever held it may have a transaction open in which
    /// it still commits.
    AbandonedUnlessLocked {
        /// The number of that run.
        attempt: u64,
    },
}

impl Stored {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Self::columns(row)
            .map_err(|error| StoreError::new(StoreErrorKind::Corrupt, error))?
            .ok_or_else(corrupt)
    }

    fn columns(row: &SqliteRow) -> Result<Option<Self>, Error> {
        let bytes = |column| row.try_get::<&[u8], usize>(column);
        let (Ok(fingerprint), Ok(owner)) = (bytes(0)?.try_into(), bytes(1)?.try_into()) else {
            return Ok(None);
        };
        let seals = row.try_get(4)?;
        let state = match row.try_get::<i64, _>(3)? {
            0 => State::Running { seals },
            1 => State::Completed,
            FAILED => State::Failed,
            SEALED => State::Sealed,
            _ => return Ok(None),
        };
        let Ok(attempt) = u64::try_from(row.try_get::<i64, _>(2)?) else {
            return Ok(None);
        };
        Ok(Some(Self {
            fingerprint: Fingerprint::from_bytes(fingerprint),
            owner: Owner::from_bytes(owner),
            attempt,
            state,
            lease_left: row.try_get(5)?,
            left: row.try_get(6)?,
            record: row.try_get(7)?,
        }))
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> i64 {
        self.left
    }

    pub(super) fn has_expired(&self) -> bool {
        self.left <= 0
    }

    pub(super) fn is_completed_by(&self, owner: &Owner) -> bool {
        self.owner == *owner && self.state == State::Completed
    }

    pub(super) fn is_run_of(&self, owner: &Owner) -> bool {
        self.owner == *owner && matches!(self.state, State::Running { .. })
    }

    /// The same decision as that of the statement that claims.
    pub(super) fn claimed(self, request: &ClaimRequest) -> Result<Found, StoreError> {
        let attempt = self.attempt;
        let is_running = matches!(self.state, State::Running { .. });
        Ok(match self.state {
            _ if self.has_expired() && is_running => Found::FreeUnlessLocked { attempt },
            _ if self.has_expired() => Found::Free,
            _ if self.fingerprint != request.fingerprint => Found::Answer(Claimed::Mismatch),
            State::Completed => {
                let record = self.answer()?;
                Found::Answer(Claimed::Completed { attempt, record })
            }
            State::Running { .. } if self.owner == request.owner => {
                Found::FreeUnlessLocked { attempt }
            }
            State::Running { .. } if self.lease_left > 0 => Found::Answer(Claimed::InProgress {
                attempt,
                lease_left: whole(self.lease_left),
            }),
            State::Running { seals: false } => Found::FreeUnlessLocked { attempt },
            State::Running { seals: true } => Found::AbandonedUnlessLocked { attempt },
            State::Sealed => Found::Answer(Claimed::Abandoned { attempt }),
            State::Failed => Found::Free,
        })
    }

    /// Of a record that has not expired.
    pub(super) fn snapshot(self) -> Result<Snapshot, StoreError> {
        let (fingerprint, attempt, left) = (self.fingerprint, self.attempt, self.left);
        let phase = match self.state {
            State::Running { seals: true } if self.lease_left <= 0 => Phase::Sealed,
            State::Running { .. } => Phase::Running {
                lease_left: whole(self.lease_left),
            },
            State::Failed => Phase::Failed,
            State::Sealed => Phase::Sealed,
            State::Completed => Phase::Completed(self.answer()?),
        };
        Ok(Snapshot::new(fingerprint, attempt, phase, whole(left)))
    }

    fn answer(self) -> Result<Record, StoreError> {
        let record = self.record.ok_or_else(corrupt)?;
        Record::from_bytes(Bytes::from(record))
    }
}

/// What is left of a time at least: up to one millisecond of it has passed already.
fn whole(millis_left: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis_left - 1).unwrap_or(0))
}

fn corrupt() -> StoreError {
    StoreErrorKind::Corrupt.into()
}
