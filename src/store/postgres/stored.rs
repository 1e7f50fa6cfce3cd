//! What a row means.

use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::PgRow;

use super::calls::column;
use crate::model::claim::{ClaimRequest, Claimed, Hold, Phase, Snapshot};
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::fingerprint::Fingerprint;
use crate::model::record::Record;

/// What a claim has found.
pub(super) enum Found {
    Claimed(Claimed),
    /// It may be taken.
    Free,
    /// It would be free, or sealed by the end of its lease, if nobody had it locked.
    Locked {
        attempt: u64,
        /// As by an open transaction, and not by a single statement.
        is_fenced: bool,
    },
}

pub(super) fn verdict(row: &PgRow) -> Result<i64, StoreError> {
    column(row, "verdict")
}

pub(super) fn claimed(row: &PgRow, request: &ClaimRequest) -> Result<Found, StoreError> {
    let verdict = verdict(row)?;
    let attempt = column::<i64>(row, "attempt")?
        .try_into()
        .map_err(|_| corrupt())?;
    Ok(Found::Claimed(match verdict {
        0 => Claimed::Acquired(request.hold(attempt)),
        1 => Claimed::Mismatch,
        2 => Claimed::Completed {
            attempt,
            record: record(row)?,
        },
        3 => Claimed::InProgress {
            attempt,
            lease_left: left(row, "lease_left")?,
        },
        4 | 5 => Claimed::Abandoned { attempt },
        7 | 8 => {
            let is_fenced = verdict == 7;
            return Ok(Found::Locked { attempt, is_fenced });
        }
        9 => return Ok(Found::Free),
        _ => return Err(corrupt()),
    }))
}

pub(super) fn snapshot(row: &PgRow) -> Result<Snapshot, StoreError> {
    let fingerprint: Vec<u8> = column(row, "fingerprint")?;
    let fingerprint = fingerprint.try_into().map_err(|_| corrupt())?;
    let phase = match column::<i64>(row, "phase")? {
        0 => Phase::Running {
            lease_left: left(row, "lease_left")?,
        },
        1 => Phase::Completed(record(row)?),
        2 => Phase::Failed,
        3 => Phase::Sealed,
        _ => return Err(corrupt()),
    };
    Ok(Snapshot::new(
        Fingerprint::from_bytes(fingerprint),
        column::<i64>(row, "attempt")?
            .try_into()
            .map_err(|_| corrupt())?,
        phase,
        left(row, "retention_left")?,
    ))
}

/// The attempt that a lost record is restored with.
pub(super) fn attempt(hold: &Hold) -> i64 {
    i64::try_from(hold.attempt).unwrap_or(i64::MAX).max(1)
}

fn record(row: &PgRow) -> Result<Record, StoreError> {
    let bytes: Vec<u8> = column(row, "record")?;
    Record::from_bytes(Bytes::from(bytes))
}

fn left(row: &PgRow, name: &str) -> Result<Duration, StoreError> {
    let micros: i64 = column(row, name)?;
    Ok(Duration::from_micros(micros.try_into().unwrap_or(0)))
}

fn corrupt() -> StoreError {
    StoreErrorKind::Corrupt.into()
}
