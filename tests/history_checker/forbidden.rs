//! Each way to break the contract.

use super::support::history::{Answer, Call, Rule};
use super::*;

#[test]
fn two_runs_at_once_are_found() {
    breaks(
        Rule::TwoRuns,
        [
            claim(1).at(0, 1, acquired(1)),
            claim(2).at(38, 39, acquired(2)),
        ],
    );
    breaks(
        Rule::TwoRuns,
        [
            claim(1).at(0, 1, acquired(1)),
            extend(1).at(30, 31, Answer::Held),
            claim(2).at(60, 61, acquired(2)),
        ],
    );
    // Answered at once: whichever came first, the other one should have waited.
    breaks(
        Rule::TwoRuns,
        [
            claim(1).at(0, 9, acquired(1)),
            claim(2).at(1, 8, acquired(2)),
        ],
    );
}

#[test]
fn an_attempt_has_one_owner_and_follows_from_those_before() {
    let first = || claim(1).at(0, 1, acquired(1));
    breaks(
        Rule::SharedAttempt,
        [first(), claim(2).at(50, 51, acquired(1))],
    );
    let second = || claim(2).at(50, 51, acquired(2));
    breaks(
        Rule::Attempt,
        [first(), second(), claim(3).at(100, 101, acquired(1))],
    );
    breaks(Rule::Attempt, [first(), claim(2).at(50, 51, acquired(3))]);
    breaks(Rule::Attempt, [claim(2).at(50, 51, acquired(2))]);
    breaks(Rule::Attempt, [first(), claim(1).at(50, 51, acquired(2))]);
    let asks_for_less = Answer::InProgress { attempt: 1 };
    breaks(
        Rule::Attempt,
        [first(), second(), claim(3).at(60, 61, asks_for_less)],
    );
    // Its owner knows no better: the answer to its claim was lost. The store does.
    let doubtful = |attempt| {
        [
            first(),
            claim(2).without_answer(50),
            complete(2, "paid").at(60, 61, Answer::Stored),
            claim(3).at(70, 71, completed(attempt, "paid")),
        ]
    };
    is_legal(doubtful(2));
    breaks(Rule::SharedAttempt, doubtful(1));
    // One in between may have been granted, and its owner never heard of it.
    is_legal([
        first(),
        claim(3).without_answer(45),
        claim(2).at(95, 96, acquired(3)),
    ]);
    is_legal([
        first(),
        fail(1, false).at(2, 3, Answer::Held),
        claim(1).at(4, 5, acquired(2)),
    ]);
}

#[test]
fn what_a_completed_key_may_not_give_is_found() {
    let done = |then| {
        [
            claim(1).at(0, 1, acquired(1)),
            complete(1, "paid").at(10, 11, Answer::Stored),
            then,
        ]
    };
    for answer in [
        acquired(2),
        Answer::InProgress { attempt: 1 },
        Answer::Abandoned { attempt: 1 },
    ] {
        breaks(Rule::NotReplayed, done(claim(2).at(309, 309, answer)));
    }
    // Under way when it was completed, or answered when retention may have ended.
    let in_progress = Answer::InProgress { attempt: 1 };
    is_legal(done(claim(2).at(11, 12, in_progress)));
    is_legal(done(claim(2).at(300, 310, acquired(1))));
    let failed = found(1, Phase::Failed);
    breaks(Rule::NotReplayed, done(lookup().at(20, 21, failed)));
    breaks(Rule::Vanished, done(lookup().at(20, 21, Answer::Absent)));
    breaks(Rule::Vanished, done(forget().at(20, 21, Answer::Absent)));
    breaks(Rule::Refused, done(forget().at(20, 21, Answer::Live)));
    let again = complete(1, "paid").at(20, 21, Answer::Restored);
    breaks(Rule::Vanished, done(again));
    let resolved = resolve("other").at(20, 21, Answer::Resolved);
    breaks(Rule::SecondCompletion, done(resolved));
    let other = complete(2, "other").at(20, 21, Answer::Restored);
    breaks(Rule::SecondCompletion, done(other));
    let other = complete(2, "other").at(20, 21, Answer::Stored);
    breaks(Rule::StaleOwner, done(other));
}

#[test]
fn an_answer_is_the_first_that_its_owner_recorded() {
    let done = |then| {
        [
            claim(1).at(0, 1, acquired(1)),
            complete(1, "paid").at(10, 11, Answer::Stored),
            complete(1, "other").at(12, 13, Answer::Stored),
            claim(2).request(2).at(14, 15, Answer::Mismatch),
            complete(2, "third").request(2).at(14, 15, Answer::NotOwner),
            then,
        ]
    };
    is_legal(done(claim(3).at(20, 21, completed(1, "paid"))));
    for wrong in ["other", "third", "nobody's"] {
        let wrong = claim(3).at(20, 21, completed(1, wrong));
        breaks(Rule::OtherBytes, done(wrong));
    }
    let wrong_attempt = claim(3).at(20, 21, completed(2, "paid"));
    breaks(Rule::OtherBytes, done(wrong_attempt));
    let phase = Phase::Completed(record("other"));
    breaks(Rule::OtherBytes, done(lookup().at(20, 21, found(1, phase))));
}

#[test]
fn an_owner_that_lost_the_key_and_is_not_told_so_is_found() {
    let taken_over = |then| {
        [
            claim(1).at(0, 1, acquired(1)),
            claim(2).at(50, 51, acquired(2)),
            then,
        ]
    };
    for (call, yes, no) in [
        (extend(1), Answer::Held, Answer::Lost),
        (fail(1, false), Answer::Held, Answer::Lost),
        (release(1), Answer::Held, Answer::Lost),
        (complete(1, "late"), Answer::Stored, Answer::NotOwner),
    ] {
        is_legal(taken_over(call.clone().at(60, 61, no)));
        // At once: nobody can have taken the key over from a run that is renewed, or over.
        let at_once = taken_over(call.clone().at(49, 52, yes.clone()));
        match call.call {
            Call::Extend { .. } => breaks(Rule::TwoRuns, at_once),
            Call::Complete { .. } => breaks(Rule::NotReplayed, at_once),
            _ => is_legal(at_once),
        }
        breaks(Rule::StaleOwner, taken_over(call.at(60, 61, yes)));
    }
    let restored = complete(1, "late").at(60, 61, Answer::Restored);
    breaks(Rule::Vanished, taken_over(restored));
    for end in [complete(1, "paid"), fail(1, false), release(1)] {
        let yes = match end.call {
            Call::Complete { .. } => Answer::Stored,
            _ => Answer::Held,
        };
        let ended = [
            claim(1).at(0, 1, acquired(1)),
            end.at(10, 11, yes),
            extend(1).at(20, 21, Answer::Held),
        ];
        breaks(Rule::StaleOwner, ended);
    }
}

#[test]
fn an_owner_that_is_refused_though_nobody_came_is_found() {
    let lost = extend(1).at(200, 201, Answer::Lost);
    let first = || claim(1).at(0, 1, acquired(1));
    breaks(Rule::Refused, [first(), lost.clone()]);
    is_legal([first(), claim(2).without_answer(100), lost]);
    let elsewhere = Answer::InProgress { attempt: 1 };
    let again = claim(1).at(10, 11, elsewhere);
    breaks(Rule::Refused, [first(), again]);
    let not_owner = complete(1, "late").at(200, 201, Answer::NotOwner);
    breaks(Rule::Refused, [first(), not_owner.clone()]);
    let known = complete(1, "paid").at(100, 101, Answer::Stored);
    breaks(Rule::Refused, [first(), known, not_owner.clone()]);
    is_legal([
        first(),
        fail(1, false).at(100, 101, Answer::Held),
        not_owner,
    ]);
}

#[test]
fn requests_that_are_not_told_apart_are_found() {
    let then = |answer| {
        [
            claim(1).at(0, 1, acquired(1)),
            complete(1, "paid").at(10, 11, Answer::Stored),
            claim(2).request(2).at(50, 51, answer),
        ]
    };
    is_legal(then(Answer::Mismatch));
    for answer in [
        acquired(1),
        acquired(2),
        Answer::InProgress { attempt: 1 },
        completed(1, "paid"),
        Answer::Abandoned { attempt: 1 },
    ] {
        breaks(Rule::Fingerprint, then(answer));
    }
    let failed = fail(1, false).at(10, 11, Answer::Held);
    breaks(
        Rule::Fingerprint,
        [
            claim(1).at(0, 1, acquired(1)),
            failed,
            claim(2).request(2).at(50, 51, acquired(2)),
        ],
    );
    breaks(
        Rule::Fingerprint,
        [
            claim(1).at(0, 1, acquired(1)),
            claim(2).at(50, 51, Answer::Mismatch),
        ],
    );
}

#[test]
fn a_seal_that_does_not_hold_is_found() {
    let sealed = |then| {
        [
            claim(1).at(0, 1, acquired(1)),
            fail(1, true).at(10, 11, Answer::Held),
            then,
        ]
    };
    is_legal(sealed(claim(2).at(
        20,
        21,
        Answer::Abandoned { attempt: 1 },
    )));
    breaks(Rule::Unsealed, sealed(claim(2).at(20, 21, acquired(2))));
    breaks(Rule::Unsealed, sealed(claim(1).at(20, 21, acquired(2))));
    let in_progress = Answer::InProgress { attempt: 1 };
    breaks(Rule::Unsealed, sealed(claim(2).at(20, 21, in_progress)));
    let failed = found(1, Phase::Failed);
    breaks(Rule::Unsealed, sealed(lookup().at(20, 21, failed)));
    let refused = resolve("found out").at(20, 21, Answer::NotSealed);
    breaks(Rule::Refused, sealed(refused));
    let lapsed = |then| {
        [
            claim_with(1, Lapse::Seal).at(0, 1, acquired(1)),
            then,
            claim(2).at(60, 61, acquired(2)),
        ]
    };
    breaks(Rule::Unsealed, lapsed(lookup().without_answer(50)));
    is_legal(lapsed(fail(1, false).without_answer(50)));
    is_legal(lapsed(claim(1).without_answer(10)));
}

#[test]
fn a_run_that_is_done_away_with_within_its_lease_is_found() {
    let during = |then| [claim(1).at(0, 1, acquired(1)), then];
    is_legal(during(forget().at(41, 42, Answer::Forgotten)));
    breaks(
        Rule::LiveRun,
        during(forget().at(30, 31, Answer::Forgotten)),
    );
    for phase in [Phase::Failed, Phase::Sealed] {
        is_legal(during(lookup().at(39, 40, found(1, phase.clone()))));
        breaks(Rule::LiveRun, during(lookup().at(38, 39, found(1, phase))));
    }
    let abandoned = Answer::Abandoned { attempt: 1 };
    breaks(Rule::LiveRun, during(claim(2).at(38, 39, abandoned)));
    breaks(
        Rule::LiveRun,
        during(resolve("found out").at(30, 31, Answer::Resolved)),
    );
}
