//! Records in every state that they can be in.

use std::fmt;
use std::time::Duration;

use super::check::{Check, KEPT, LONG, SHORT, fresh_record, request, retry_of, short_is_over};
use crate::store::{ClaimRequest, Completion, Hold, KeyStore, Lapse, Ownership, Record};

/// A state that a record can be brought into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Lapsed,
    LapsedSeal,
    Failed,
    Sealed,
    Completed,
}

impl State {
    pub(super) const ALL: [Self; 6] = [
        Self::Running,
        Self::Lapsed,
        Self::LapsedSeal,
        Self::Failed,
        Self::Sealed,
        Self::Completed,
    ];

    /// Whether its run has not come to an end.
    pub(super) fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Lapsed | Self::LapsedSeal)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "a running record",
            Self::Lapsed => "a record whose lease ended under `Lapse::TakeOver`",
            Self::LapsedSeal => "a record whose lease ended under `Lapse::Seal`",
            Self::Failed => "a failed record",
            Self::Sealed => "a sealed record",
            Self::Completed => "a completed record",
        })
    }
}

/// A record in a state, and the claim that led to it.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) state: State,
    pub(super) request: ClaimRequest,
    pub(super) hold: Hold,
    /// The answer that it holds, where it is completed.
    pub(super) record: Record,
}

impl<K: KeyStore> Check<'_, K> {
    /// Records at their first attempt in these states, which last while a clause runs.
    pub(super) async fn scenes(&self, states: impl IntoIterator<Item = State>) -> Vec<Scene> {
        let mut scenes = Vec::new();
        for state in states {
            scenes.push(self.lasting(state).await);
        }
        // One wait for all of those whose lease has to end.
        short_is_over().await;
        scenes
    }

    /// One of these, for a state that takes no wait.
    pub(super) async fn lasting(&self, state: State) -> Scene {
        self.scene(state, request(), 1, KEPT).await
    }

    /// Records in these states that have expired. Those whose run has ended are at their
    /// second attempt.
    pub(super) async fn expired_scenes(
        &self,
        states: impl IntoIterator<Item = State>,
    ) -> Vec<Scene> {
        let mut scenes = Vec::new();
        for state in states {
            scenes.push(if state.is_running() {
                self.scene(state, request(), 1, SHORT).await
            } else {
                let retry = retry_of(&self.failed().await);
                self.scene(state, retry, 2, SHORT).await
            });
        }
        short_is_over().await;
        scenes
    }

    /// A first attempt that failed.
    pub(super) async fn failed(&self) -> ClaimRequest {
        let request = request();
        let hold = self.acquires("a claim of a free key", &request, 1).await;
        let failed = self.fail(&hold, false, KEPT).await;
        self.answers("`fail` by the owner", failed, Ownership::Held);
        request
    }

    /// A second attempt that runs.
    pub(super) async fn second_attempt(&self) -> (ClaimRequest, Hold) {
        let request = retry_of(&self.failed().await);
        let hold = self.acquires("a claim after a failure", &request, 2).await;
        (request, hold)
    }

    /// Claims a key and brings its record into a state, which an ended lease is only once
    /// [`short_is_over`]. With a retention of [`SHORT`] it has expired by then.
    async fn scene(
        &self,
        state: State,
        mut request: ClaimRequest,
        attempt: u64,
        retention: Duration,
    ) -> Scene {
        let expires = retention == SHORT;
        request.lease = match state {
            State::Lapsed | State::LapsedSeal => SHORT,
            State::Running if expires => SHORT,
            _ => LONG,
        };
        request.lapse = match state {
            State::LapsedSeal => Lapse::Seal,
            _ => Lapse::TakeOver,
        };
        // A run that comes to an end gets the retention of that end.
        request.retention = if state.is_running() { retention } else { KEPT };
        let what = match attempt {
            1 => "a claim of a free key",
            _ => "a claim after a failure",
        };
        let hold = self.acquires(what, &request, attempt).await;
        let record = fresh_record();
        match state {
            State::Running | State::Lapsed | State::LapsedSeal => {}
            State::Failed | State::Sealed => {
                let seal = state == State::Sealed;
                let failed = self.fail(&hold, seal, retention).await;
                self.answers("`fail` by the owner", failed, Ownership::Held);
            }
            State::Completed => {
                let completed = self.complete(&hold, &record, retention).await;
                self.answers("`complete` by the owner", completed, Completion::Stored);
            }
        }
        Scene {
            state,
            request,
            hold,
            record,
        }
    }
}
