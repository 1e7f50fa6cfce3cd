//! What a lookup shows, and when it was seen.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{Fingerprint, Phase, Record, Snapshot};

/// By how much a duration that is shown may be off: rounding, and two clocks that do not
/// run at quite the same speed.
const GRAIN: Duration = Duration::from_millis(100);

/// What a lookup shows, times aside; with the number of the last run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    Absent,
    Running(u64),
    /// Its lease has ended, and the same request may take over.
    Lapsed(u64),
    Failed(u64),
    Sealed(u64),
    Completed(u64, Record),
}

impl Shape {
    fn of(snapshot: Option<&Snapshot>) -> Self {
        let Some(snapshot) = snapshot else {
            return Self::Absent;
        };
        let attempt = snapshot.attempt;
        match &snapshot.phase {
            Phase::Running { lease_left } if lease_left.is_zero() => Self::Lapsed(attempt),
            Phase::Running { .. } => Self::Running(attempt),
            Phase::Failed => Self::Failed(attempt),
            Phase::Sealed => Self::Sealed(attempt),
            Phase::Completed(record) => Self::Completed(attempt, record.clone()),
        }
    }

    pub(super) fn record(&self) -> Option<&Record> {
        match self {
            Self::Completed(_, record) => Some(record),
            _ => None,
        }
    }
}

/// When the engine handled a call: at some moment between the two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) asked: Instant,
    pub(super) answered: Instant,
}

impl Span {
    /// How much time has gone by until `later`, at least and at most.
    fn until(self, later: Self) -> (Duration, Duration) {
        (
            later.asked.saturating_duration_since(self.answered),
            later.answered.saturating_duration_since(self.asked),
        )
    }
}

/// Makes a call, and notes when.
pub(super) async fn timed<T>(call: impl Future<Output = T>) -> (T, Span) {
    let asked = Instant::now();
    let output = call.await;
    let answered = Instant::now();
    (output, Span { asked, answered })
}

/// What is left of a lease or a retention, as of some call: all of it in the call that
/// gave it, less in a later one that shows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) left: Duration,
    pub(super) at: Span,
}

impl Left {
    /// Whether it can be this which `later` is left of. Holds on a machine of any speed,
    /// since it was measured when both calls began and ended.
    pub(super) fn becomes(self, later: Self) -> bool {
        let (at_least, at_most) = self.at.until(later.at);
        let not_too_early = later.left.saturating_add(at_most).saturating_add(GRAIN) >= self.left;
        let not_too_late = later.left.is_zero()
            || later.left.saturating_add(at_least) <= self.left.saturating_add(GRAIN);
        not_too_early && not_too_late
    }

    /// How much time has gone by until `later`, for people to read.
    pub(super) fn passed(self, later: Self) -> Duration {
        self.at.until(later.at).0
    }
}

/// What a lookup showed.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) shape: Shape,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) lease: Left,
    pub(super) retention: Left,
}

impl Sighting {
    pub(super) fn new(snapshot: Option<Snapshot>, at: Span) -> Self {
        let shape = Shape::of(snapshot.as_ref());
        let lease_left = match snapshot.as_ref().map(|seen| &seen.phase) {
            Some(&Phase::Running { lease_left }) => lease_left,
            _ => Duration::ZERO,
        };
        let retention_left = snapshot.as_ref().map(|seen| seen.retention_left);
        let left = |left| Left { left, at };
        Self {
            shape,
            fingerprint: snapshot.map(|seen| seen.fingerprint),
            lease: left(lease_left),
            retention: left(retention_left.unwrap_or_default()),
        }
    }

    /// Whether nothing happened to the record until `later`, but for time going by.
    pub(super) fn becomes(&self, later: &Self) -> bool {
        self.shape == later.shape
            && self.fingerprint == later.fingerprint
            && self.lease.becomes(later.lease)
            && self.retention.becomes(later.retention)
    }
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shape)?;
        match self.shape {
            Shape::Absent => return Ok(()),
            Shape::Running(_) => write!(f, ", leased for {:?}", self.lease.left)?,
            _ => {}
        }
        write!(f, ", kept for {:?}", self.retention.left)
    }
}
