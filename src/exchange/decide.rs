//! The rules, and nothing but the rules: pure functions over what is known.

use http::{HeaderMap, StatusCode, response};

use crate::policy::behaviour::{FailurePolicy, OutagePolicy, Outcome};
use crate::policy::rejection::RejectionKind;
use crate::policy::verdict::{RecordPolicy, Verdict};
use crate::store::{Claimed, Hold, Lapse, Record, StoreErrorKind};

/// What a store's answer to a claim means for the request.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Run(Hold),
    Replay(Record),
    /// The same request runs elsewhere: refuse or wait.
    Busy,
    Refuse(RejectionKind),
    RunUnprotected,
}

pub(super) fn step(claim: Result<Claimed, StoreErrorKind>, outage: OutagePolicy) -> Step {
    match claim {
        Ok(Claimed::Acquired(hold)) => Step::Run(hold),
        Ok(Claimed::Completed { record, .. }) => Step::Replay(record),
        Ok(Claimed::InProgress { .. }) => Step::Busy,
        Ok(Claimed::Mismatch) => Step::Refuse(RejectionKind::KeyReused),
        Ok(Claimed::Abandoned { .. }) => Step::Refuse(RejectionKind::OutcomeUnknown),
        Err(StoreErrorKind::NotApplied) => match outage {
            OutagePolicy::RunUnprotected => Step::RunUnprotected,
            OutagePolicy::Reject => Step::Refuse(RejectionKind::StoreUnavailable),
        },
        Err(StoreErrorKind::Ambiguous | StoreErrorKind::Full | StoreErrorKind::Misconfigured) => {
            Step::Refuse(RejectionKind::StoreUnavailable)
        }
        Err(StoreErrorKind::Quota) => Step::Refuse(RejectionKind::QuotaExceeded),
        Err(StoreErrorKind::Corrupt) => Step::Refuse(RejectionKind::RecordUnreadable),
    }
}

/// What the store is to be told of a run; `R` is what there is to record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Conclusion<R> {
    Record(R),
    Release,
    Fail { seal: bool },
}

/// A run that gave a whole answer, of this verdict.
pub(super) fn answered<R>(
    verdict: Verdict,
    policy: FailurePolicy,
    record: impl FnOnce() -> R,
) -> Conclusion<R> {
    match (verdict, policy) {
        (Verdict::Record, _) | (Verdict::Failed, FailurePolicy::Replay) => {
            Conclusion::Record(record())
        }
        (Verdict::Release, _) => Conclusion::Release,
        (Verdict::Failed, FailurePolicy::RunAgain) => Conclusion::Fail { seal: false },
        (Verdict::Failed, FailurePolicy::Refuse) => Conclusion::Fail { seal: true },
    }
}

/// A run that gave none: a panic, an error of the inner service, a dead process.
pub(super) fn no_answer<R>(policy: FailurePolicy) -> Conclusion<R> {
    Conclusion::Fail {
        seal: policy != FailurePolicy::RunAgain,
    }
}

/// A run whose answer, of this verdict, broke off.
pub(super) fn broke_off<R>(verdict: Verdict, policy: FailurePolicy) -> Conclusion<R> {
    match verdict {
        Verdict::Release => Conclusion::Release,
        Verdict::Record | Verdict::Failed => no_answer(policy),
    }
}

/// What others may do once the lease of a dead process has ended.
pub(super) fn lapse(policy: FailurePolicy) -> Lapse {
    match no_answer::<()>(policy) {
        Conclusion::Fail { seal: true } => Lapse::Seal,
        _ => Lapse::TakeOver,
    }
}

/// The verdict on the head of an answer, and whether the policy may change it at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct HeadVerdict {
    pub(super) verdict: Verdict,
    pub(super) is_final: bool,
}

impl HeadVerdict {
    /// The verdict once the body has ended, with these trailers.
    pub(super) fn at_end(self, trailers: Option<&HeaderMap>, policy: &dyn RecordPolicy) -> Verdict {
        match trailers {
            Some(trailers) if !self.is_final => policy.verdict_at_end(self.verdict, trailers),
            _ => self.verdict,
        }
    }
}

pub(super) fn head_verdict(answer: &response::Parts, policy: &dyn RecordPolicy) -> HeadVerdict {
    let fixed = |verdict| HeadVerdict {
        verdict,
        is_final: true,
    };
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        return fixed(Verdict::Release);
    }
    if answer.status.is_informational() {
        // No server sends one as an answer: the client sees a fault.
        return fixed(Verdict::Failed);
    }
    if matches!(answer.extensions.get(), Some(Outcome::Rejected(_))) {
        return fixed(Verdict::Release);
    }
    match answer.extensions.get() {
        Some(&verdict) => fixed(verdict),
        None => HeadVerdict {
            verdict: policy.verdict(answer),
            is_final: false,
        },
    }
}

#[cfg(test)]
mod tests;
