use std::time::Duration;

use http::{HeaderMap, Response, StatusCode, response};

use super::*;
use crate::policy::verdict::{FinalAnswers, Verdict};
use crate::store::{ClaimRequest, Fingerprint, Owner, RecordId, ScopeId};

fn hold() -> Hold {
    let id = RecordId::from_bytes([1; 32]);
    let fingerprint = Fingerprint::from_bytes([2; 32]);
    let owner = Owner::from_bytes([3; 16]);
    ClaimRequest::new(id, ScopeId::from_bytes([4; 16]), fingerprint, owner).hold(7)
}

#[test]
fn every_answer_of_a_store_has_one_meaning() {
    let record = Record::new(&Response::new("paid"));
    let lease_left = Duration::from_secs(1);
    let attempt = 7;
    let unavailable = || Step::Refuse(RejectionKind::StoreUnavailable);
    let table = [
        (Ok(Claimed::Acquired(hold())), Step::Run(hold())),
        (
            Ok(Claimed::Completed {
                attempt,
                record: record.clone(),
            }),
            Step::Replay(record),
        ),
        (
            Ok(Claimed::InProgress {
                attempt,
                lease_left,
            }),
            Step::Busy,
        ),
        (
            Ok(Claimed::Mismatch),
            Step::Refuse(RejectionKind::KeyReused),
        ),
        (
            Ok(Claimed::Abandoned { attempt }),
            Step::Refuse(RejectionKind::OutcomeUnknown),
        ),
        (Err(StoreErrorKind::Ambiguous), unavailable()),
        (Err(StoreErrorKind::Full), unavailable()),
        (Err(StoreErrorKind::Misconfigured), unavailable()),
        (
            Err(StoreErrorKind::Quota),
            Step::Refuse(RejectionKind::QuotaExceeded),
        ),
        (
            Err(StoreErrorKind::Corrupt),
            Step::Refuse(RejectionKind::RecordUnreadable),
        ),
    ];
    for (answer, expected) in table {
        for outage in [OutagePolicy::Reject, OutagePolicy::RunUnprotected] {
            assert_eq!(
                step(answer.clone(), outage),
                expected,
                "{answer:?} {outage:?}"
            );
        }
    }
}

#[test]
fn protection_is_switched_off_by_choice_and_only_where_nothing_was_applied() {
    let refused = Err(StoreErrorKind::NotApplied);
    assert_eq!(
        step(refused.clone(), OutagePolicy::Reject),
        Step::Refuse(RejectionKind::StoreUnavailable)
    );
    assert_eq!(
        step(refused, OutagePolicy::RunUnprotected),
        Step::RunUnprotected
    );
}

#[test]
fn verdict_and_failure_policy_decide_what_the_store_is_told() {
    use Conclusion::{Fail, Record, Release};
    use FailurePolicy::{Refuse, Replay, RunAgain};
    let again = Fail { seal: false };
    let sealed = Fail { seal: true };
    let table = [
        (Verdict::Record, RunAgain, Record(())),
        (Verdict::Record, Replay, Record(())),
        (Verdict::Record, Refuse, Record(())),
        (Verdict::Release, RunAgain, Release),
        (Verdict::Release, Replay, Release),
        (Verdict::Release, Refuse, Release),
        (Verdict::Failed, RunAgain, again),
        (Verdict::Failed, Replay, Record(())),
        (Verdict::Failed, Refuse, sealed),
    ];
    for (verdict, policy, expected) in table {
        assert_eq!(
            answered(verdict, policy, || ()),
            expected,
            "{verdict:?} {policy:?}"
        );
    }
    let table = [
        (RunAgain, again, Lapse::TakeOver),
        (Replay, sealed, Lapse::Seal),
        (Refuse, sealed, Lapse::Seal),
    ];
    for (policy, expected, lapses) in table {
        assert_eq!(no_answer::<()>(policy), expected, "{policy:?}");
        assert_eq!(lapse(policy), lapses, "{policy:?}");
        for verdict in [Verdict::Record, Verdict::Failed] {
            assert_eq!(
                broke_off::<()>(verdict, policy),
                expected,
                "{verdict:?} {policy:?}"
            );
        }
        // It was refused before anything was done, however its body ended.
        assert_eq!(
            broke_off::<()>(Verdict::Release, policy),
            Release,
            "{policy:?}"
        );
    }
}

#[test]
fn a_record_is_made_where_there_is_one_to_keep_and_nowhere_else() {
    let made = |verdict, policy| {
        let mut made = false;
        answered(verdict, policy, || made = true);
        made
    };
    assert!(made(Verdict::Record, FailurePolicy::RunAgain));
    assert!(!made(Verdict::Failed, FailurePolicy::RunAgain));
    assert!(!made(Verdict::Release, FailurePolicy::Replay));
}

fn head(status: u16) -> response::Parts {
    let status = StatusCode::from_u16(status).unwrap_or_default();
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts
}

#[test]
fn every_status_has_a_verdict() {
    for status in 100..=999 {
        let expected = match status {
            101 | 401 | 407 | 421 | 425 | 429 => Verdict::Release,
            100..=199 | 408 | 500.. => Verdict::Failed,
            _ => Verdict::Record,
        };
        let found = head_verdict(&head(status), &FinalAnswers);
        assert_eq!(found.verdict, expected, "{status}");
        assert_eq!(found.is_final, status < 200, "{status}");
    }
}

#[test]
fn the_handlers_word_comes_before_the_policy_and_the_protocol_before_both() {
    let mut created = head(201);
    created.extensions.insert(Verdict::Failed);
    let fixed = |verdict| HeadVerdict {
        verdict,
        is_final: true,
    };
    assert_eq!(
        head_verdict(&created, &FinalAnswers),
        fixed(Verdict::Failed)
    );

    let mut switching = head(101);
    switching.extensions.insert(Verdict::Record);
    assert_eq!(
        head_verdict(&switching, &FinalAnswers),
        fixed(Verdict::Release)
    );

    let mut refused = head(422);
    refused.extensions.insert(Verdict::Record);
    refused
        .extensions
        .insert(Outcome::Rejected(RejectionKind::KeyReused));
    assert_eq!(
        head_verdict(&refused, &FinalAnswers),
        fixed(Verdict::Release)
    );
}

struct ByTrailers;

impl RecordPolicy for ByTrailers {
    fn verdict(&self, _: &response::Parts) -> Verdict {
        Verdict::Record
    }

    fn verdict_at_end(&self, _: Verdict, _: &HeaderMap) -> Verdict {
        Verdict::Failed
    }
}

#[test]
fn trailers_change_a_verdict_that_is_the_policys_own() {
    let open = head_verdict(&head(200), &ByTrailers);
    assert_eq!(open.at_end(None, &ByTrailers), Verdict::Record);
    assert_eq!(
        open.at_end(Some(&HeaderMap::new()), &ByTrailers),
        Verdict::Failed
    );
    let fixed = HeadVerdict {
        verdict: Verdict::Record,
        is_final: true,
    };
    assert_eq!(
        fixed.at_end(Some(&HeaderMap::new()), &ByTrailers),
        Verdict::Record
    );
}
