//! What is told of a violation.

use super::support::history::{Answer, check};
use super::*;

#[test]
fn the_report_shows_the_calls_that_matter_and_no_others() {
    let events = [
        claim(9).at(0, 1, acquired(1)),
        complete(9, "old").at(2, 3, Answer::Stored),
        lookup().at(350, 351, Answer::Absent),
        claim(1).at(400, 401, acquired(1)),
        claim(3).at(410, 411, Answer::InProgress { attempt: 1 }),
        claim(2).at(420, 421, acquired(2)),
    ];
    let report = std::panic::catch_unwind(|| check(&events)).unwrap_err();
    let report = report.downcast_ref::<String>().unwrap();
    println!("{report}");
    let shown: Vec<_> = report.lines().skip(3).collect();
    assert_eq!(
        shown,
        [
            "▶    400.000 –    401.000  01010101  claim for 40ms + 300ms, then TakeOver, \
             request 0101: Acquired, attempt 1",
            "▶    420.000 –    421.000  02020202  claim for 40ms + 300ms, then TakeOver, \
             request 0101: Acquired, attempt 2",
        ],
    );
}
