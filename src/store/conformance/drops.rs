//! Clause 11: what a call leaves behind that is dropped before it is done.

use std::fmt;
use std::time::Duration;

use super::check::{Check, KEPT_LONGER, LONG, fresh_record, request, retry_of, short_is_over};
use super::race::cut_short;
use super::runs::Act;
use super::scene::{Scene, State};
use super::sighting::{Shape, Span, timed};
use crate::store::{ClaimRequest, Claimed, Completion, KeyStore, Record};

/// A call that takes more polls than this is not followed any further.
const MOST_POLLS: usize = 64;

/// Clause 11: a call that is dropped has happened, or it has not.
///
/// Each method is dropped after every number of polls that it can be dropped after: before
/// the first, where it first waits, where it waits next, and so on. Then it is called
/// again, as the layer does, and must come to its end.
pub async fn clause_11_dropped_calls_leave_no_half<K: KeyStore>(store: &K) {
    let check = Check::new("clause 11", store);
    let acts = Act::ALL.map(Method::Act);
    let others = [
        Method::Claim,
        Method::ClaimAfterFailure,
        Method::TakeOver,
        Method::ReleaseAtAttempt2,
        Method::Restore,
        Method::Forget,
        Method::Resolve,
    ];
    for method in others.into_iter().chain(acts) {
        for polls in 0..MOST_POLLS {
            let trial = Trial::new(&check, method).await;
            if trial.is_whole(&check, polls).await {
                break;
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Method {
    Claim,
    ClaimAfterFailure,
    TakeOver,
    Act(Act),
    ReleaseAtAttempt2,
    Restore,
    Forget,
    Resolve,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Claim => "`claim`",
            Self::ClaimAfterFailure => "`claim` after a failure",
            Self::TakeOver => "`claim` that takes over",
            Self::Act(act) => return act.fmt(f),
            Self::ReleaseAtAttempt2 => "`release` at attempt 2",
            Self::Restore => "`complete` of a lost record",
            Self::Forget => "`forget`",
            Self::Resolve => "`resolve`",
        })
    }
}

/// A call on a record of its own, and what it is to leave there.
struct Trial {
    method: Method,
    request: ClaimRequest,
    attempt: u64,
    record: Record,
    after: Shape,
    /// The retention that it gives, which none of the calls before it gave.
    retention: Option<Duration>,
}

impl Trial {
    async fn new<K: KeyStore>(check: &Check<'_, K>, method: Method) -> Self {
        let record = fresh_record();
        let completed = Shape::Completed(1, record.clone());
        let longer = Some(KEPT_LONGER);
        let while_running = Some(LONG + KEPT_LONGER);
        let (request, attempt, after, retention) = match method {
            Method::Claim => (request(), 1, Shape::Running(1), while_running),
            Method::ClaimAfterFailure => {
                let retry = retry_of(&check.failed().await);
                (retry, 2, Shape::Running(2), while_running)
            }
            Method::TakeOver => {
                let lapsed = check.lasting(State::Lapsed).await;
                short_is_over().await;
                let retry = retry_of(&lapsed.request);
                (retry, 2, Shape::Running(2), while_running)
            }
            Method::Act(act) => {
                let Scene { request, .. } = check.lasting(State::Running).await;
                let (after, retention) = match act {
                    Act::Extend => (Shape::Running(1), while_running),
                    Act::Complete => (completed, longer),
                    Act::Fail => (Shape::Failed(1), longer),
                    Act::Seal => (Shape::Sealed(1), longer),
                    Act::Release => (Shape::Absent, None),
                };
                (request, 1, after, retention)
            }
            Method::ReleaseAtAttempt2 => {
                let (request, _) = check.second_attempt().await;
                (request, 2, Shape::Failed(2), None)
            }
            Method::Restore => (request(), 1, completed, longer),
            Method::Forget => {
                let Scene { request, .. } = check.lasting(State::Completed).await;
                (request, 1, Shape::Absent, None)
            }
            Method::Resolve => {
                let Scene { request, .. } = check.lasting(State::Sealed).await;
                (request, 1, completed, longer)
            }
        };
        Self {
            method,
            request: ClaimRequest {
                retention: KEPT_LONGER,
                ..request
            },
            attempt,
            record,
            after,
            retention,
        }
    }

    /// Drops the call after that many polls. `true` when it was done by then.
    async fn is_whole<K: KeyStore>(&self, check: &Check<'_, K>, polls: usize) -> bool {
        let Self {
            method, request, ..
        } = self;
        let before = check.see(request).await;
        let (output, first) = timed(cut_short(self.call(check), polls)).await;
        let seen = check.see(request).await;
        check.holds(
            format_args!(
                "{method} that is dropped after poll {polls} must leave the record as it was \
                 ({before}) or done ({:?}), but left it as {seen}",
                self.after
            ),
            seen.shape == self.after || before.becomes(&seen),
        );

        let (succeeded, again) = timed(self.call(check)).await;
        let what = format!("{method} that is sent again, having been dropped after poll {polls},");
        check.holds(
            format_args!("{what} must succeed, but was refused"),
            succeeded,
        );
        let seen = check.shows(&what, request, self.after.clone()).await;
        if let Some(retention) = self.retention {
            // By the first call or by the second, whichever it was that happened.
            let given = Span {
                asked: first.asked,
                answered: again.answered,
            };
            let what = format!("the retention left after {what}");
            check.leaves(what, (retention, given), seen.retention);
        }
        output.is_some()
    }

    /// Whether the answer is one that may come, be it of a first call or of a repeated one.
    async fn call<K: KeyStore>(&self, check: &Check<'_, K>) -> bool {
        let hold = self.request.hold(self.attempt);
        let id = &self.request.id;
        match self.method {
            Method::Claim | Method::ClaimAfterFailure | Method::TakeOver => {
                check.claim(&self.request).await == Claimed::Acquired(hold)
            }
            Method::Act(act @ (Act::Extend | Act::Complete)) => {
                check.act(act, &hold, &self.record, KEPT_LONGER).await
            }
            Method::Restore => {
                check.complete(&hold, &self.record, KEPT_LONGER).await != Completion::NotOwner
            }
            // Once these have happened there is nothing left that they could act on: the
            // record tells, and not the answer.
            Method::Act(act) => {
                check.act(act, &hold, &self.record, KEPT_LONGER).await;
                true
            }
            Method::ReleaseAtAttempt2 => {
                check.release(&hold).await;
                true
            }
            Method::Forget => {
                check.forget(id).await;
                true
            }
            Method::Resolve => {
                check.resolve(id, &self.record, KEPT_LONGER).await;
                true
            }
        }
    }
}
