use std::error::Error;
use std::fmt;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// What is known of a store's call that failed.
///
/// The layer's answer depends on this split and on nothing else of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Nothing happened, nor will: the connection was refused, the pool was empty, the
    /// server said no.
    NotApplied,
    /// It may have happened, or may still: the answer was lost or came too late.
    Ambiguous,
    /// There is no room for a new record, or for a record of this size.
    Full,
    /// One scope holds as many records as it may.
    Quota,
    /// The stored record cannot be decoded.
    Corrupt,
    /// It will not work until somebody changes a setting: a missing table, no permission.
    Misconfigured,
}

impl StoreErrorKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotApplied => "the store did not apply the call",
            Self::Ambiguous => "the store may or may not have applied the call",
            Self::Full => "the store is full",
            Self::Quota => "the scope holds as many records as it may",
            Self::Corrupt => "the stored record cannot be decoded",
            Self::Misconfigured => "the store is misconfigured",
        }
    }
}

/// A store's call failed: of what [kind](Self::kind), and by what [source](Error::source).
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<BoxError>,
}

impl StoreError {
    /// An error with the engine's own error as its source.
    pub fn new(kind: StoreErrorKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }

    /// What is known of the call.
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl From<StoreErrorKind> for StoreError {
    fn from(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
