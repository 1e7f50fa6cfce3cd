//! What the contract allows, up to the edge of what it does not.

use tower_idempotency::store::{Lapse, Phase, StoreErrorKind};

use super::support::history::{Answer, Rule};
use super::*;

#[test]
fn a_key_may_live_a_full_life_and_then_another() {
    is_legal([
        claim(1).at(0, 1, acquired(1)),
        claim(2).at(5, 6, Answer::InProgress { attempt: 1 }),
        claim(3).request(2).at(6, 7, Answer::Mismatch),
        extend(1).at(20, 21, Answer::Held),
        claim(2).at(61, 62, acquired(2)),
        extend(1).at(70, 71, Answer::Lost),
        complete(1, "late").at(72, 73, Answer::NotOwner),
        claim(2).at(75, 76, acquired(2)),
        fail(2, false).attempt(2).at(80, 81, Answer::Held),
        lookup().at(82, 83, found(2, Phase::Failed)),
        claim(4).at(90, 91, acquired(3)),
        release(4).attempt(3).at(92, 93, Answer::Held),
        claim(5).at(95, 96, acquired(4)),
        complete(5, "paid").attempt(4).at(100, 101, Answer::Stored),
        complete(5, "other").attempt(4).at(102, 103, Answer::Stored),
        claim(6).at(110, 111, completed(4, "paid")),
        forget().at(112, 113, Answer::Forgotten),
        claim(7).request(2).at(120, 121, acquired(1)),
        release(7).request(2).at(122, 123, Answer::Held),
        claim_with(8, Lapse::Seal).at(130, 131, acquired(1)),
        claim(9).at(180, 181, Answer::Abandoned { attempt: 1 }),
        resolve("found out").at(190, 191, Answer::Resolved),
        lookup().at(192, 193, found(1, Phase::Completed(record("found out")))),
        lookup().at(491, 492, Answer::Absent),
        complete(8, "lost").at(493, 494, Answer::Restored),
        claim(9).at(500, 501, completed(1, "lost")),
        claim(9).request(3).at(800, 801, acquired(1)),
    ]);
}

#[test]
fn a_hold_lasts_from_its_answer_to_its_own_deadline() {
    is_legal([
        claim(1).at(0, 1, acquired(1)),
        claim(2).at(38, 40, acquired(2)),
    ]);
    is_legal([
        claim(1).at(0, 60, acquired(1)),
        claim(2).at(41, 42, acquired(2)),
    ]);
    for end in [fail(1, false), release(1)] {
        is_legal([
            claim(1).at(0, 1, acquired(1)),
            end.clone().without_answer(2),
            claim(2).at(5, 6, acquired(2)),
        ]);
        is_legal([
            claim(1).at(0, 1, acquired(1)),
            claim(2).at(4, 7, acquired(2)),
            end.at(5, 6, Answer::Held),
        ]);
    }
}

#[test]
fn attempts_begin_anew_after_a_release_a_forget_and_the_end_of_retention() {
    let first = || claim(1).at(0, 1, acquired(1));
    let second = || claim(2).at(50, 51, acquired(2));
    let anew = |at| claim(3).at(at, at + 1, acquired(1));
    is_legal([first(), release(1).at(2, 3, Answer::Held), anew(5)]);
    is_legal([
        first(),
        second(),
        forget().at(95, 96, Answer::Forgotten),
        anew(97),
    ]);
    is_legal([first(), second(), anew(390)]);
    breaks(Rule::SharedAttempt, [first(), second(), anew(338)]);
    breaks(Rule::Attempt, [first(), second(), anew(388)]);
    let given_up = release(2).attempt(2).at(60, 61, Answer::Held);
    breaks(Rule::Attempt, [first(), second(), given_up, anew(70)]);
}

#[test]
fn a_replay_proves_a_completion_whose_answer_was_lost() {
    let seen = |lost: Event, then: Event| {
        [
            claim(1).at(0, 1, acquired(1)),
            lost,
            claim(2).at(20, 21, completed(1, "paid")),
            then,
        ]
    };
    let never = complete(1, "paid").without_answer(10);
    let ambiguous = Answer::Error(StoreErrorKind::Ambiguous);
    let ambiguous = complete(1, "paid").at(10, 11, ambiguous);
    for lost in [never, ambiguous] {
        breaks(
            Rule::NotReplayed,
            seen(lost.clone(), claim(3).at(60, 61, acquired(2))),
        );
        is_legal(seen(lost, claim(3).at(320, 321, acquired(1))));
    }
    let refused = Answer::Error(StoreErrorKind::NotApplied);
    let refused = complete(1, "paid").at(10, 11, refused);
    let late = claim(3).at(320, 321, acquired(1));
    breaks(Rule::OtherBytes, seen(refused, late));
}
