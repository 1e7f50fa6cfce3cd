//! A handler's effect happens exactly once in transaction mode, at whatever point its process
//! is killed; without it, the effect happens once or twice, and never twice if a failed run is
//! refused. Real processes and SIGKILL, over PostgreSQL and SQLite.
#![cfg(all(any(feature = "postgres", feature = "sqlite"), unix))]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod child;
mod ledger;
mod matrix;
mod parent;
mod random;
mod stopping;

use std::time::Duration;

/// Where a process stops, so that it can be killed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The request is there, and the store was not asked yet.
    BeforeClaim,
    /// The store has granted the claim, and its answer has not come.
    ClaimSent,
    /// The handler runs.
    Claimed,
    /// The handler has written its row, and not committed it.
    EffectWritten,
    /// The database has committed the handler's transaction, and its answer has not come.
    CommitSent,
    /// The handler knows that its transaction is committed, and has not returned.
    Committed,
    /// The handler has given one half of its answer's body, which it makes piece by piece.
    InBody,
    /// The layer has given the answer, and nothing of it is sent.
    Recorded,
    /// One half of the answer's body is sent.
    InAnswer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The row and the answer commit together.
    Transaction,
    /// The row commits by itself, and the layer records the answer afterwards.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnFailure {
    RunAgain,
    Refuse,
}

/// What a process is told.
#[derive(Clone, Copy, Debug)]
struct Settings {
    mode: Mode,
    on_failure: OnFailure,
    /// Short, since it has to end before another process may run, and longer than a claim
    /// takes on a busy machine: a run does not begin under a lease that is over.
    lease: Duration,
    stop: Option<Point>,
}

/// By its name, as [`Debug`] writes it.
fn named<T: std::fmt::Debug + Copy>(all: &[T], name: &str) -> Option<T> {
    all.iter().copied().find(|one| format!("{one:?}") == name)
}

impl Point {
    const ALL: [Self; 9] = [
        Self::BeforeClaim,
        Self::ClaimSent,
        Self::Claimed,
        Self::EffectWritten,
        Self::CommitSent,
        Self::Committed,
        Self::InBody,
        Self::Recorded,
        Self::InAnswer,
    ];
}
