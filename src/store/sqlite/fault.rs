//! What is known of a statement that failed.

use sqlx::Error;
use sqlx::error::DatabaseError;

use crate::model::error::{StoreError, StoreErrorKind};
use crate::store::sql;

const ERROR: i32 = 1;
const PERM: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READONLY: i32 = 8;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const SCHEMA: i32 = 17;
const TOOBIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const AUTH: i32 = 23;
const FORMAT: i32 = 24;
const NOTADB: i32 = 26;

/// Of a statement, or of a transaction that is not committed: what fails is rolled back.
pub(super) fn store_error(error: Error) -> StoreError {
    sql::store_error(error, |refusal| match code(refusal) {
        Some(BUSY | LOCKED | READONLY | SCHEMA) => StoreErrorKind::NotApplied,
        // An answer that is too long has no room either.
        Some(FULL | TOOBIG) => StoreErrorKind::Full,
        Some(CORRUPT | FORMAT | NOTADB) => StoreErrorKind::Corrupt,
        // The statements are always the same: what is wrong is the schema.
        Some(ERROR | PERM | CANTOPEN | CONSTRAINT | AUTH) => StoreErrorKind::Misconfigured,
        // What could not be flushed may be found there after a restart.
        _ => StoreErrorKind::Ambiguous,
    })
}

/// Of COMMIT. Where no transaction is open, whoever ended it may have committed.
pub(super) fn commit_error(error: Error) -> StoreError {
    let is_over = matches!(&error, Error::Database(refusal) if code(&**refusal) == Some(ERROR));
    match is_over {
        true => StoreError::new(StoreErrorKind::Ambiguous, error),
        false => store_error(error),
    }
}

/// Another connection has the lock.
pub(super) fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Database(error) if matches!(code(&**error), Some(BUSY | LOCKED)))
}

pub(super) fn is_read_only(error: &Error) -> bool {
    matches!(error, Error::Database(error) if code(&**error) == Some(READONLY))
}

/// What `BEGIN` says within a transaction.
pub(super) fn is_logic_error(error: &Error) -> bool {
    matches!(error, Error::Database(error) if code(&**error) == Some(ERROR))
}

/// The primary code: what the driver gives has details in its higher bits.
fn code(error: &dyn DatabaseError) -> Option<i32> {
    Some(error.code()?.parse::<i32>().ok()? & 0xff)
}
