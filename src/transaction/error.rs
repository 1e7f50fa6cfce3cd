use std::error::Error;
use std::fmt;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;

use crate::policy::behaviour::Outcome;
use crate::policy::rejection::{ProblemJson, Rejection, RejectionKind, RejectionResponse};
use crate::store::{StoreError, StoreErrorKind};

/// A transaction was not committed, or is not known to be.
///
/// [`into_response`](Self::into_response) makes the right answer of it. With `?` it also
/// takes the `sqlx::Error` of the handler's own statements, where the feature `postgres` or
/// `sqlite` is on: a serialization failure, a deadlock, a time-out of the server's and a busy
/// database become [`Store`](Self::Store), everything else [`Statement`](Self::Statement).
///
/// In axum, wrap it in an error type of your own that is an `IntoResponse`: the example at
/// [`Operation::begin`](crate::Operation::begin) does without one, and the README has one.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransactionError {
    /// Another run has taken the key over, or this one is concluded: rolled back.
    LostOwnership,
    /// The store has no record of this run: it is not the one that the layer claims in, or
    /// it has lost the claim. Rolled back.
    NotInStore,
    /// It was called as it cannot work: rolled back.
    Misuse(&'static str),
    /// The database failed or refused: rolled back.
    Store(StoreError),
    /// The answer to the commit was lost, and it could not be found out yet whether it
    /// counts.
    InDoubt(StoreError),
    /// A statement of the handler's failed: rolled back.
    Statement(Box<dyn Error + Send + Sync>),
    /// The body of the answer broke off before it was whole: rolled back.
    Body(Box<dyn Error + Send + Sync>),
}

impl TransactionError {
    /// The answer to the caller, `application/problem+json`
    /// ([RFC 9457 §3](https://www.rfc-editor.org/rfc/rfc9457#section-3)):
    ///
    /// | Error | Answer | What the layer makes of it |
    /// |---|---|---|
    /// | [`LostOwnership`](Self::LostOwnership) | 409 `in-progress`, `Retry-After: 1` | nothing: the other run counts |
    /// | [`Store`](Self::Store) that may pass, such as a conflict or a lost connection | 503 `store-unavailable`, `Retry-After: 1` | the key is released |
    /// | [`InDoubt`](Self::InDoubt) | the same | it finds out, and answers accordingly |
    /// | every other | 500 `transaction-failed` | a failed run |
    ///
    /// With the feature `tracing` it is an event, without what a statement of the handler's says
    /// of itself, since that may hold what the client sent: log the error where you see fit.
    ///
    /// The layer's [`rejection_response`](crate::IdempotencyLayer::rejection_response) is not
    /// asked: an answer of the handler's is its own.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let kind = match &self {
            Self::LostOwnership => RejectionKind::InProgress,
            Self::Store(error) => of_store(error.kind()),
            Self::InDoubt(_) => RejectionKind::StoreUnavailable,
            Self::NotInStore | Self::Misuse(_) | Self::Statement(_) | Self::Body(_) => {
                RejectionKind::TransactionFailed
            }
        };
        let rejection = match &self {
            Self::InDoubt(_) => Rejection::in_doubt(),
            Self::Store(_) if kind == RejectionKind::StoreUnavailable => Rejection::rolled_back(),
            _ => kind.into(),
        };
        self.report(kind);
        let (request, ()) = Request::new(()).into_parts();
        let mut response = ProblemJson::default().response(&rejection, &request);
        // A refusal lets its key go, and a handler that failed has to leave that to the policy.
        if kind != RejectionKind::TransactionFailed {
            response.extensions_mut().insert(Outcome::Rejected(kind));
        }
        response.map(Full::new)
    }

    /// Without what a statement of the handler's says of itself: it may hold what the client
    /// sent.
    fn report(&self, kind: RejectionKind) {
        #[cfg(feature = "tracing")]
        {
            let error = match self {
                Self::Store(error) | Self::InDoubt(error) => Some(error as &(dyn Error + 'static)),
                _ => None,
            };
            tracing::warn!(code = kind.code(), error, "{self}");
        }
        #[cfg(not(feature = "tracing"))]
        let _ = kind;
    }

    fn as_str(&self) -> &'static str {
        match self {
            Self::LostOwnership => "the run does not hold its key any more",
            Self::NotInStore => {
                "the store has no record of the run: it is not the one that the layer claims in, \
                 or has lost the claim"
            }
            Self::Misuse(what) => what,
            Self::Store(_) => "the database did not commit the transaction",
            Self::InDoubt(_) => "the transaction may or may not be committed",
            Self::Statement(_) => "a statement of the transaction failed",
            Self::Body(_) => "the body of the answer broke off",
        }
    }
}

/// What does not pass by itself is not to be tried again and again.
fn of_store(kind: StoreErrorKind) -> RejectionKind {
    match kind {
        StoreErrorKind::Misconfigured | StoreErrorKind::Corrupt => RejectionKind::TransactionFailed,
        _ => RejectionKind::StoreUnavailable,
    }
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Error for TransactionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::LostOwnership | Self::NotInStore | Self::Misuse(_) => None,
            Self::Store(error) | Self::InDoubt(error) => Some(error),
            Self::Statement(error) | Self::Body(error) => Some(&**error),
        }
    }
}

impl From<StoreError> for TransactionError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
impl From<sqlx::Error> for TransactionError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::error::DatabaseError;

        let refusal = error.as_database_error().and_then(DatabaseError::code);
        match refusal.is_some_and(|code| has_passed(&code)) {
            true => Self::Store(StoreError::new(StoreErrorKind::NotApplied, error)),
            false => Self::Statement(error.into()),
        }
    }
}

/// It passes, and everything is rolled back: in PostgreSQL (a SQLSTATE has five characters) a
/// serialization failure, a deadlock, a time-out of a statement, a lock or an idle transaction,
/// and `SQLITE_BUSY` or `SQLITE_LOCKED` in any extended form.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn has_passed(code: &str) -> bool {
    match code {
        "40001" | "40P01" | "55P03" | "57014" | "25P03" => true,
        _ if code.len() == 5 => false,
        _ => code
            .parse()
            .is_ok_and(|code: u32| matches!(code & 0xff, 5 | 6)),
    }
}
