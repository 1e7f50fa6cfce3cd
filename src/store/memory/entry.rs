//! One record, and what the contract says of it: no lock, no counter, no clock.
//!
//! The methods that act for a caller take for granted that the record has not expired: who
//! finds one that [has](Entry::has_expired) treats it as absent.

use std::time::Duration;

use super::time::Time;
use crate::model::claim::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, Lapse, Owner, Ownership, Phase, Snapshot,
};
use crate::model::fingerprint::Fingerprint;
use crate::model::record::Record;
use crate::model::scope::ScopeId;

pub(super) struct Entry {
    fingerprint: Fingerprint,
    owner: Owner,
    attempt: u64,
    state: State,
    end: Time,
    /// When the expiry queue looks at this record next: never after `end`.
    queued: Time,
    /// Boxed, since it is kept only where scopes are counted.
    scope: Option<Box<ScopeId>>,
}

enum State {
    Running { lease_end: Time, lapse: Lapse },
    Failed,
    Sealed,
    Completed(Record),
}

/// What a release comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Release {
    NotHeld,
    /// The record is to be removed.
    Freed,
    /// The record stays, as that of a failed run.
    Failed,
}

/// What becomes of a record whose time in the queue has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It is to be removed.
    Expired,
    /// It lives: its item is to be queued again, for then.
    Again(Time),
    /// It is gone, or another item counts.
    Leftover,
}

impl Entry {
    /// A first run.
    ///
    /// It is queued for the end of its lease, long before its own end: most keys that are
    /// given back are given back by then, and what is queued for them goes with the lease
    /// instead of staying for the whole retention.
    pub(super) fn running(request: &ClaimRequest, scope: Option<Box<ScopeId>>, now: Time) -> Self {
        let lease_end = now.plus(request.lease);
        Self {
            fingerprint: request.fingerprint,
            owner: request.owner,
            attempt: 1,
            state: State::Running {
                lease_end,
                lapse: request.lapse,
            },
            end: lease_end.plus(request.retention),
            queued: now.plus(request.lease.min(request.retention)),
            scope,
        }
    }

    /// The answer of a run whose claim was lost.
    pub(super) fn restored(
        hold: &Hold,
        scope: Option<Box<ScopeId>>,
        record: Record,
        end: Time,
    ) -> Self {
        Self {
            fingerprint: hold.fingerprint,
            owner: hold.owner,
            attempt: hold.attempt,
            state: State::Completed(record),
            end,
            queued: end,
            scope,
        }
    }

    pub(super) fn has_expired(&self, now: Time) -> bool {
        now >= self.end
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest, now: Time) -> Claimed {
        let attempt = self.attempt;
        if self.fingerprint != request.fingerprint {
            return Claimed::Mismatch;
        }
        match &self.state {
            State::Completed(record) => {
                let record = record.clone();
                Claimed::Completed { attempt, record }
            }
            State::Running { .. } if self.owner == request.owner => {
                let end = self.end;
                self.run(request, now);
                self.end = self.end.max(end);
                Claimed::Acquired(request.hold(attempt))
            }
            State::Running { lease_end, .. } if *lease_end > now => {
                let lease_left = now.until(*lease_end);
                Claimed::InProgress {
                    attempt,
                    lease_left,
                }
            }
            State::Sealed
            | State::Running {
                lapse: Lapse::Seal, ..
            } => Claimed::Abandoned { attempt },
            State::Failed
            | State::Running {
                lapse: Lapse::TakeOver,
                ..
            } => {
                self.attempt = attempt.saturating_add(1);
                self.run(request, now);
                Claimed::Acquired(request.hold(self.attempt))
            }
        }
    }

    fn run(&mut self, request: &ClaimRequest, now: Time) {
        let lease_end = now.plus(request.lease);
        self.owner = request.owner;
        self.end = lease_end.plus(request.retention);
        self.state = State::Running {
            lease_end,
            lapse: request.lapse,
        };
    }

    pub(super) fn extend(
        &mut self,
        owner: &Owner,
        lease: Duration,
        retention: Duration,
        now: Time,
    ) -> Ownership {
        let is_owner = self.owner == *owner;
        match &mut self.state {
            State::Running { lease_end, .. } if is_owner => {
                *lease_end = now.plus(lease);
                self.end = lease_end.plus(retention).max(self.end);
                Ownership::Held
            }
            _ => Ownership::Lost,
        }
    }

    /// Whether this owner's answer is still to be kept, or else what it is told.
    pub(super) fn awaits_answer_of(&self, owner: &Owner) -> Result<(), Completion> {
        match &self.state {
            _ if self.owner != *owner => Err(Completion::NotOwner),
            State::Running { .. } => Ok(()),
            State::Completed(_) => Err(Completion::Stored),
            State::Failed | State::Sealed => Err(Completion::NotOwner),
        }
    }

    pub(super) fn complete(&mut self, record: Record, end: Time) {
        self.state = State::Completed(record);
        self.end = end;
    }

    pub(super) fn fail(&mut self, owner: &Owner, seal: bool, end: Time) -> Ownership {
        if !self.is_run_of(owner) {
            return Ownership::Lost;
        }
        self.state = if seal { State::Sealed } else { State::Failed };
        self.end = end;
        Ownership::Held
    }

    pub(super) fn release(&mut self, owner: &Owner) -> Release {
        if !self.is_run_of(owner) {
            Release::NotHeld
        } else if self.attempt == 1 {
            Release::Freed
        } else {
            self.state = State::Failed;
            Release::Failed
        }
    }

    /// What becomes of it when it is to be forgotten.
    pub(super) fn forget(&self, now: Time) -> Forgot {
        match self.state {
            State::Running { lease_end, .. } if lease_end > now => Forgot::Live,
            _ => Forgot::Forgotten,
        }
    }

    pub(super) fn is_sealed(&self, now: Time) -> bool {
        match self.state {
            State::Sealed => true,
            State::Running { lease_end, lapse } => lapse == Lapse::Seal && lease_end <= now,
            State::Failed | State::Completed(_) => false,
        }
    }

    pub(super) fn snapshot(&self, now: Time) -> Snapshot {
        let phase = match &self.state {
            State::Running { lease_end, .. } if !self.is_sealed(now) => Phase::Running {
                lease_left: now.until(*lease_end),
            },
            State::Running { .. } | State::Sealed => Phase::Sealed,
            State::Failed => Phase::Failed,
            State::Completed(record) => Phase::Completed(record.clone()),
        };
        Snapshot::new(self.fingerprint, self.attempt, phase, now.until(self.end))
    }

    fn is_run_of(&self, owner: &Owner) -> bool {
        self.owner == *owner && matches!(self.state, State::Running { .. })
    }

    pub(super) fn queued(&self) -> Time {
        self.queued
    }

    /// What is to be queued for it once more, where its end has come to lie before the time
    /// that it is queued for.
    pub(super) fn requeue(&mut self) -> Option<Time> {
        (self.end < self.queued).then(|| {
            self.queued = self.end;
            self.end
        })
    }

    /// What is found when an item of the queue is due.
    pub(super) fn look(&mut self, due: Time, now: Time) -> Look {
        if self.queued != due {
            Look::Leftover
        } else if self.has_expired(now) {
            Look::Expired
        } else {
            self.queued = self.end;
            Look::Again(self.end)
        }
    }

    /// The length of its answer, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match &self.state {
            State::Completed(record) => record.as_bytes().len(),
            State::Running { .. } | State::Failed | State::Sealed => 0,
        }
    }

    /// The scope that it is counted for.
    pub(super) fn counted_scope(&self) -> Option<&ScopeId> {
        self.scope.as_deref()
    }
}
