//! What is known of a call that failed.

use sqlx::Error;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::model::error::{StoreError, StoreErrorKind};
use crate::store::sql;

/// The error of a statement as the store's, with the driver's as its source.
pub(super) fn store_error(error: Error) -> StoreError {
    sql::store_error(error, |refusal| match ends_session(refusal) {
        // It stands in for an answer, and may have come before the call as well as after.
        true => StoreErrorKind::Ambiguous,
        false => kind_of(&code(refusal)),
    })
}

/// The error of a `COMMIT`. One that is cancelled may be waiting for a standby, and is there.
pub(super) fn commit_error(error: Error) -> StoreError {
    let is_cancelled = has_code(&error, "57014");
    let error = store_error(error);
    match is_cancelled {
        true => StoreError::new(StoreErrorKind::Ambiguous, error),
        false => error,
    }
}

/// Whether an earlier statement has failed, so that the transaction cannot commit.
pub(super) fn is_aborted(error: &Error) -> bool {
    has_code(error, "25P02")
}

fn has_code(error: &Error, wanted: &str) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| code(error) == wanted)
}

/// The same where no statement had been sent yet.
pub(super) fn not_sent(error: Error) -> StoreError {
    let kind = match &error {
        Error::Database(refusal) => kind_of(&code(&**refusal)),
        Error::Configuration(_) | Error::Tls(_) => StoreErrorKind::Misconfigured,
        _ => StoreErrorKind::NotApplied,
    };
    let kind = match kind {
        StoreErrorKind::Misconfigured => kind,
        _ => StoreErrorKind::NotApplied,
    };
    StoreError::new(kind, error)
}

/// Whether the database has rolled the statement back for the sake of others, and would take
/// it now: a conflict under a strict isolation level, a deadlock, a lock that was not to be
/// had.
pub(super) fn is_passing(error: &Error) -> bool {
    let code = error.as_database_error().map(code).unwrap_or_default();
    matches!(code.as_str(), "40001" | "40P01" | "55P03")
}

fn code(error: &dyn DatabaseError) -> String {
    error.code().unwrap_or_default().into_owned()
}

fn ends_session(error: &dyn DatabaseError) -> bool {
    let severity = error
        .try_downcast_ref::<PgDatabaseError>()
        .map(PgDatabaseError::severity);
    matches!(severity, None | Some(PgSeverity::Fatal | PgSeverity::Panic))
}

/// What a refusal means. The statement was rolled back, whatever the reason.
fn kind_of(code: &str) -> StoreErrorKind {
    match code {
        // It is not known, as it says itself.
        "40003" => StoreErrorKind::Ambiguous,
        // Read only, perhaps a standby; an aborted transaction; a time-out of the server's.
        "25006" | "25P02" | "57014" | "53300" => StoreErrorKind::NotApplied,
        // A connection that another client's statements were prepared on.
        "26000" | "0A000" | "53400" => StoreErrorKind::Misconfigured,
        "XX001" | "XX002" => StoreErrorKind::Corrupt,
        _ => match code.get(..2).unwrap_or_default() {
            // Rolled back for the sake of others; the server starts or stops.
            "40" | "55" | "57" => StoreErrorKind::NotApplied,
            // Disk or memory; a limit of the engine.
            "53" | "54" => StoreErrorKind::Full,
            // No such user, database, schema, table or column; no right to it; a constraint
            // or a trigger that is not of this crate.
            "28" | "3D" | "3F" | "42" | "22" | "23" => StoreErrorKind::Misconfigured,
            _ => StoreErrorKind::Ambiguous,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::kind_of;
    use crate::model::error::StoreErrorKind;

    #[test]
    fn a_refusal_that_passes_was_not_applied() {
        for code in [
            "40001", "40P01", "55P03", "25006", "25P02", "57014", "57P03", "53300",
        ] {
            assert_eq!(kind_of(code), StoreErrorKind::NotApplied, "{code}");
        }
    }

    #[test]
    fn what_does_not_fit_the_engine_is_full() {
        for code in ["53100", "53200", "54000"] {
            assert_eq!(kind_of(code), StoreErrorKind::Full, "{code}");
        }
    }

    #[test]
    fn what_only_a_setting_can_change_is_misconfigured() {
        for code in [
            "42P01", "42501", "42703", "42P05", "3F000", "3D000", "28P01", "26000", "23514",
        ] {
            assert_eq!(kind_of(code), StoreErrorKind::Misconfigured, "{code}");
        }
    }

    #[test]
    fn what_nothing_is_known_of_is_ambiguous() {
        for code in ["40003", "08006", "XX000", "", "é"] {
            assert_eq!(kind_of(code), StoreErrorKind::Ambiguous, "{code}");
        }
    }
}
