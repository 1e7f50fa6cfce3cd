//! Clauses 6 and 12: what the owner of a run may do, and nobody else.

use std::fmt;
use std::time::Duration;

use super::check::{Answer, Check, KEPT, LONG, fresh_record, misuse_of, request, retry_of};
use super::race::{Start, race_two};
use super::scene::State;
use super::sighting::Shape;
use crate::store::{ClaimRequest, Claimed, Completion, Hold, KeyStore, Lapse, Ownership, Record};

/// What can be done to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Extend,
    Complete,
    Fail,
    Seal,
    Release,
}

impl Act {
    pub(super) const ALL: [Self; 5] = [
        Self::Extend,
        Self::Complete,
        Self::Fail,
        Self::Seal,
        Self::Release,
    ];
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Extend => "`extend`",
            Self::Complete => "`complete`",
            Self::Fail => "`fail` without `seal`",
            Self::Seal => "`fail` with `seal`",
            Self::Release => "`release`",
        })
    }
}

impl<K: KeyStore> Check<'_, K> {
    /// Whether the store says that it acted.
    pub(super) async fn act(
        &self,
        act: Act,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> bool {
        let held = match act {
            Act::Extend => self.extend(hold, LONG, retention).await,
            Act::Fail => self.fail(hold, false, retention).await,
            Act::Seal => self.fail(hold, true, retention).await,
            Act::Release => self.release(hold).await,
            Act::Complete => match self.complete(hold, record, retention).await {
                Completion::Stored => Ownership::Held,
                Completion::NotOwner => Ownership::Lost,
                Completion::Restored => {
                    self.broken("`complete` answered Restored over a record that was there")
                }
            },
        };
        held == Ownership::Held
    }

    /// `who` must act on the running record of `request`, which is at `attempt`.
    pub(super) async fn acts(
        &self,
        act: Act,
        who: &str,
        hold: &Hold,
        request: &ClaimRequest,
        attempt: u64,
    ) {
        let record = fresh_record();
        let acted = self.act(act, hold, &record, KEPT).await;
        let what = format!("{act} by {who}");
        self.holds(format_args!("{what} must act, but was refused"), acted);
        let after = match act {
            Act::Extend => Shape::Running(attempt),
            Act::Complete => Shape::Completed(attempt, record),
            Act::Release if attempt == 1 => Shape::Absent,
            Act::Fail | Act::Release => Shape::Failed(attempt),
            Act::Seal => Shape::Sealed(attempt),
        };
        self.shows(what, request, after).await;
    }

    /// `who` may change nothing about the record of `request`, and must be told so.
    pub(super) async fn is_refused(
        &self,
        act: Act,
        who: &str,
        hold: &Hold,
        request: &ClaimRequest,
    ) {
        let before = self.see(request).await;
        let acted = self.act(act, hold, &fresh_record(), KEPT).await;
        let what = format!("{act} by {who}");
        self.holds(
            format_args!("{what} must be refused, but was told that it acted"),
            !acted,
        );
        self.unchanged(what, request, &before).await;
    }
}

/// Clause 6: the owner of a running record acts on it, and nobody else does.
pub async fn clause_06_only_the_owner_acts<K: KeyStore>(store: &K) {
    let check = Check::new("clause 6", store);
    others_are_refused(&check).await;
    the_taken_over_are_refused(&check).await;
    the_owner_acts(&check).await;
    acts_race_a_take_over(&check).await;
}

/// Whoever never held the key; its owner, once the run has ended; and anybody, where
/// there is no record.
async fn others_are_refused<K: KeyStore>(check: &Check<'_, K>) {
    for scene in check.scenes(State::ALL).await {
        let stranger = retry_of(&scene.request).hold(1);
        let who = format!("another owner over {}", scene.state);
        for act in Act::ALL {
            check.is_refused(act, &who, &stranger, &scene.request).await;
        }
        let who = format!("the owner over {}", scene.state);
        for act in Act::ALL {
            // Repeating what completed the record is clause 7.
            let repeats = scene.state == State::Completed && act == Act::Complete;
            if !scene.state.is_running() && !repeats {
                check
                    .is_refused(act, &who, &scene.hold, &scene.request)
                    .await;
            }
        }
    }

    let nothing = request();
    for act in [Act::Extend, Act::Fail, Act::Seal, Act::Release] {
        let who = "anybody without a record";
        check.is_refused(act, who, &nothing.hold(1), &nothing).await;
    }
}

async fn the_taken_over_are_refused<K: KeyStore>(check: &Check<'_, K>) {
    let ends = [None, Some(Act::Complete), Some(Act::Fail), Some(Act::Seal)];
    let scenes = check.scenes([State::Lapsed; 4]).await;
    for (scene, end) in scenes.into_iter().zip(ends) {
        let successor = retry_of(&scene.request);
        let hold = check.acquires("a take-over", &successor, 2).await;
        let who = match end {
            None => "the owner that was taken over".to_owned(),
            Some(end) => {
                let who = "the successor";
                check.acts(end, who, &hold, &successor, 2).await;
                format!("the owner that was taken over, and {end} by its successor")
            }
        };
        for act in Act::ALL {
            check.is_refused(act, &who, &scene.hold, &successor).await;
        }
    }
}

/// Also past its lease, and also with a hold that says another attempt than the store
/// has counted.
async fn the_owner_acts<K: KeyStore>(check: &Check<'_, K>) {
    let acts = Act::ALL.into_iter().flat_map(|act| [act; 3]);
    let states = [State::Running, State::Lapsed, State::LapsedSeal];
    let scenes = check.scenes(states.into_iter().cycle().take(acts.clone().count()));
    for (act, scene) in acts.zip(scenes.await) {
        let who = format!("the owner over {}", scene.state);
        check.acts(act, &who, &scene.hold, &scene.request, 1).await;
    }
    for act in Act::ALL {
        let (second, _) = check.second_attempt().await;
        let who = "the owner of attempt 2 with a hold that says 1";
        check.acts(act, who, &second.hold(1), &second, 2).await;
    }
}

/// An owner that comes back late acts before it is taken over or not at all.
async fn acts_race_a_take_over<K: KeyStore>(check: &Check<'_, K>) {
    let acts = Act::ALL.into_iter();
    let races = acts.flat_map(|act| Start::ALL.map(|start| (act, start)));
    let scenes = check.scenes(races.clone().map(|_| State::Lapsed));
    for ((act, start), scene) in races.zip(scenes.await) {
        let record = fresh_record();
        let successor = retry_of(&scene.request);
        let (acted, came) = race_two(
            start,
            Box::pin(check.act(act, &scene.hold, &record, KEPT)),
            Box::pin(check.claim(&successor)),
        )
        .await;
        let expected = match (acted, act) {
            (false, _) | (true, Act::Fail) => Answer::Acquired(2),
            (true, Act::Release) => Answer::Acquired(1),
            (true, Act::Extend) => Answer::InProgress(1),
            (true, Act::Complete) => Answer::Completed(1, &record),
            (true, Act::Seal) => Answer::Abandoned(1),
        };
        let acted = if acted { "acted" } else { "was refused" };
        let what = format!("a take-over at the moment of {act} which {acted}");
        check.is_answered(&what, &successor, &came, expected);
        if let Claimed::Acquired(hold) = &came {
            check
                .acts(Act::Seal, "the successor", hold, &successor, hold.attempt)
                .await;
        }
    }
}

/// Clause 12: how a run ends without an answer.
pub async fn clause_12_fail_and_release<K: KeyStore>(store: &K) {
    let check = Check::new("clause 12", store);

    for lapse in [Lapse::TakeOver, Lapse::Seal] {
        for (end, of_another_request, of_the_same) in [
            (Act::Fail, Answer::Mismatch, Answer::Acquired(2)),
            (Act::Seal, Answer::Mismatch, Answer::Abandoned(1)),
            // Whoever claims a key that was given back is the first.
            (Act::Release, Answer::Acquired(1), Answer::Mismatch),
        ] {
            let first = ClaimRequest { lapse, ..request() };
            let hold = check.acquires("a claim of a free key", &first, 1).await;
            check.acts(end, "the owner", &hold, &first, 1).await;
            let other = misuse_of(&first);
            let what = format!("a claim of another request after {end} at attempt 1");
            check.claims(what, &other, of_another_request).await;
            let retry = retry_of(&first);
            let what = format!("a claim of the first request after {end} at attempt 1");
            check.claims(what, &retry, of_the_same).await;
        }

        // The first attempt may have been applied: its request alone may go on.
        for told in [1, 2] {
            let failed = check.failed().await;
            let second = ClaimRequest {
                lapse,
                ..retry_of(&failed)
            };
            check.acquires("a claim after a failure", &second, 2).await;
            let who = format!("the owner of attempt 2 with a hold that says {told}");
            let hold = second.hold(told);
            check.acts(Act::Release, &who, &hold, &second, 2).await;
            let what = "a claim of another request after `release` at attempt 2";
            let other = misuse_of(&second);
            check.claims(what, &other, Answer::Mismatch).await;
            let what = "a claim after `release` at attempt 2";
            check.acquires(what, &retry_of(&second), 3).await;
        }
    }
}
