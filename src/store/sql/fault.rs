//! What is known of a call that failed, as far as every engine has it in common.

use std::io;
use std::time::Duration;

use sqlx::Error;
use sqlx::error::DatabaseError;

use crate::model::error::{StoreError, StoreErrorKind};

/// The error of the driver as the store's, with the driver's as its source; `refusal` tells
/// what an answer of the database means.
pub(crate) fn store_error(
    error: Error,
    refusal: impl FnOnce(&dyn DatabaseError) -> StoreErrorKind,
) -> StoreError {
    let kind = match &error {
        Error::Database(error) => refusal(&**error),
        // Nothing was sent: no connection was to be had, or the values do not fit.
        Error::PoolTimedOut | Error::PoolClosed | Error::Encode(_) | Error::InvalidArgument(_) => {
            StoreErrorKind::NotApplied
        }
        Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            StoreErrorKind::NotApplied
        }
        Error::Configuration(_) | Error::Tls(_) => StoreErrorKind::Misconfigured,
        Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::ColumnDecode { .. }
        | Error::Decode(_)
        | Error::TypeNotFound { .. } => StoreErrorKind::Corrupt,
        _ => StoreErrorKind::Ambiguous,
    };
    StoreError::new(kind, error)
}

/// Gives no leave to run unprotected: something is on record under that key.
pub(crate) fn doubtful(error: StoreError) -> StoreError {
    match error.kind() {
        StoreErrorKind::NotApplied => StoreError::new(StoreErrorKind::Ambiguous, error),
        _ => error,
    }
}

/// Whole milliseconds, rounded up: nothing ends earlier than it was asked to.
pub(crate) fn millis(duration: Duration) -> i64 {
    const LONGEST: i64 = 1000 * 60 * 60 * 24 * 365 * 1000;
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).map_or(LONGEST, |ms| ms.min(LONGEST))
}
