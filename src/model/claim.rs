use std::fmt;
use std::time::Duration;

use super::error::{StoreError, StoreErrorKind};
use super::fingerprint::Fingerprint;
use super::record::Record;
use super::scope::{RecordId, ScopeId};

/// Who holds a claim: 16 bytes from the operating system's randomness, new for every
/// claim. Equality of owners decides who may record and release.
///
/// Never taken from a generator of the process: a machine restored twice from one
/// snapshot would repeat it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner([u8; 16]);

impl Owner {
    /// A new owner.
    ///
    /// # Errors
    ///
    /// [`NotApplied`](StoreErrorKind::NotApplied) when the operating system has no
    /// randomness to give.
    pub fn random() -> Result<Self, StoreError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| StoreError::new(StoreErrorKind::NotApplied, error.to_string()))?;
        Ok(Self(bytes))
    }

    /// An owner from the bytes that [`as_bytes`](Self::as_bytes) gave.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes that a store keeps and compares.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Shows its first digits alone: who knows an owner may act for it.
impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, ..] = self.0;
        write!(f, "Owner({a:02x}{b:02x}…)")
    }
}

/// What another owner may do once a claim's lease has ended. Stored with the claim: the
/// one who took the risk decides, not the one who comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lapse {
    /// The same request may take over, as the next attempt.
    TakeOver,
    /// Nobody may: the outcome of the run is unknown, and the key is sealed.
    Seal,
}

/// What is asked of [`KeyStore::claim`](crate::store::KeyStore::claim).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimRequest {
    /// Which record.
    pub id: RecordId,
    /// Whose record, for quotas.
    pub scope: ScopeId,
    /// What makes a retry the same request.
    pub fingerprint: Fingerprint,
    /// Who asks.
    pub owner: Owner,
    /// How long the claim stands if it is not renewed.
    pub lease: Duration,
    /// How long the record of a run that never ends is kept, on top of the lease.
    pub retention: Duration,
    /// What happens when the lease ends.
    pub lapse: Lapse,
}

impl ClaimRequest {
    /// A claim of `id` for a new owner, with the layer's defaults: a lease of 30 s, a
    /// retention of 24 h, [`Lapse::TakeOver`]. The fields are public: set what differs.
    pub fn new(id: RecordId, scope: ScopeId, fingerprint: Fingerprint, owner: Owner) -> Self {
        Self {
            id,
            scope,
            fingerprint,
            owner,
            lease: Duration::from_secs(30),
            retention: Duration::from_secs(24 * 60 * 60),
            lapse: Lapse::TakeOver,
        }
    }

    /// What a store returns when it grants this claim as the given attempt.
    pub const fn hold(&self, attempt: u64) -> Hold {
        Hold {
            id: self.id,
            scope: self.scope,
            fingerprint: self.fingerprint,
            owner: self.owner,
            attempt,
            lapse: self.lapse,
        }
    }
}

/// An acquired claim: the right to run, and then to record, fail or release.
///
/// A store compares the [`owner`](Self::owner) alone. The rest is here so that a record
/// which the store has lost can be written again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hold {
    /// Which record.
    pub id: RecordId,
    /// Whose record, for quotas.
    pub scope: ScopeId,
    /// What makes a retry the same request.
    pub fingerprint: Fingerprint,
    /// Who holds it.
    pub owner: Owner,
    /// The number of this run, counted by the store from 1: the fencing number.
    pub attempt: u64,
    /// What happens when the lease ends.
    pub lapse: Lapse,
}

/// What a store answers to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The caller holds the key and may run.
    Acquired(Hold),
    /// The same request runs elsewhere.
    InProgress {
        /// The number of that run.
        attempt: u64,
        /// How long its claim stands if it is not renewed.
        lease_left: Duration,
    },
    /// The same request has its final answer.
    Completed {
        /// The number of the run that gave it.
        attempt: u64,
        /// The answer.
        record: Record,
    },
    /// Another request holds the key, or held it.
    Mismatch,
    /// The key is sealed: a run of the same request ended without a known outcome.
    Abandoned {
        /// The number of that run.
        attempt: u64,
    },
}

/// Whether a call acted for the current owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ownership {
    /// It did.
    Held,
    /// Somebody else holds the key, or nobody, or it is completed: nothing was changed.
    Lost,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Completion {
    /// It is kept; or this owner's first record is, and stands.
    Stored,
    /// It is kept, though the store had lost the claim.
    Restored,
    /// Another owner holds the key: nothing was changed.
    NotOwner,
}

/// What became of a record that was to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forgot {
    /// It is gone; the next request runs at attempt 1.
    Forgotten,
    /// Refused: its run holds a lease that has not ended.
    Live,
    /// There was none.
    Absent,
}

/// A record as it stands, without a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// What makes a retry the same request.
    pub fingerprint: Fingerprint,
    /// The number of the last run.
    pub attempt: u64,
    /// How far it has come.
    pub phase: Phase,
    /// How long the record is kept if nothing happens to it.
    pub retention_left: Duration,
}

impl Snapshot {
    /// For a store to return.
    pub const fn new(
        fingerprint: Fingerprint,
        attempt: u64,
        phase: Phase,
        retention_left: Duration,
    ) -> Self {
        Self {
            fingerprint,
            attempt,
            phase,
            retention_left,
        }
    }
}

/// How far the run behind a record has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// It runs, or its lease has ended and the same request may take over.
    Running {
        /// What is left of its lease; zero once it has ended.
        lease_left: Duration,
    },
    /// It failed, and the same request may run again.
    Failed,
    /// It ended without a known outcome: by [`fail`](crate::store::KeyStore::fail) with
    /// `seal`, or by the end of a lease under [`Lapse::Seal`].
    Sealed,
    /// It has its final answer.
    Completed(Record),
}
