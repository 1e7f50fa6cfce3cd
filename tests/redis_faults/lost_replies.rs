//! An answer of the server that does not come: the call may have been applied, or not, or may
//! be yet. Sent again by the same owner, it settles what stands.

use std::fmt::Debug;

use tower_idempotency::store::{Claimed, Completion, Forgot, KeyStore, Ownership, Phase};

use crate::scene::*;
use crate::support::proxy::Strike::{self, CutInMidReply, CutRequest, DropReply};
use crate::support::redis::{manager_config, shared};

/// Whether the server has applied what met the strike.
const STRIKES: [(Strike, bool); 3] = [
    (DropReply, true),
    (CutInMidReply(2), true),
    (CutRequest, false),
];

/// What the second call answers, where the first was applied, and where it was not.
#[track_caller]
fn assert_again<T: Debug + PartialEq>(again: &T, was_applied: bool, applied: &T, not: &T) {
    let expected = if was_applied { applied } else { not };
    assert_eq!(again, expected, "applied: {was_applied}");
}

#[tokio::test]
async fn a_claim_whose_reply_is_lost_is_granted_again_as_the_same_attempt() {
    for (strike, applied) in STRIKES {
        let line = Line::new().await;
        let request = request();
        for attempt in 1..=2 {
            let request = retry_of(&request);
            line.lose(strike, line.store.claim(&request)).await;
            let found = line.past.lookup(&request.id).await.unwrap();
            let is_there = found.is_some_and(|found| found.attempt == attempt);
            assert_eq!(is_there, applied, "{strike:?}");
            let hold = acquires(&line.store, &request).await;
            assert_eq!(hold.attempt, attempt, "{strike:?}");
            let other = line.past.claim(&retry_of(&request)).await.unwrap();
            assert!(matches!(other, Claimed::InProgress { .. }), "{other:?}");
            let failed = line.store.fail(&hold, false, KEPT).await.unwrap();
            assert_eq!(failed, Ownership::Held);
        }
    }
}

#[tokio::test]
async fn a_renewal_whose_reply_is_lost_is_made_again() {
    for (strike, applied) in STRIKES {
        let line = Line::new().await;
        let hold = acquires(&line.store, &request()).await;
        let lease_left = async || match phase(&line.past, &hold.id).await {
            Some(Phase::Running { lease_left }) => lease_left,
            other => panic!("it runs: {other:?}"),
        };
        let extend = line.store.extend(&hold, KEPT, KEPT);
        line.lose(strike, extend).await;
        assert_eq!(lease_left().await > KEPT / 2, applied, "{strike:?}");
        let again = line.store.extend(&hold, KEPT, KEPT).await.unwrap();
        assert_eq!(again, Ownership::Held);
        assert!(lease_left().await > KEPT / 2);
    }
}

#[tokio::test]
async fn a_completion_whose_reply_is_lost_is_stored_and_its_first_record_stands() {
    for (strike, applied) in STRIKES {
        // The second one is no longer given by a script.
        for len in [10, 300_000] {
            let line = Line::new().await;
            let request = request();
            let hold = acquires(&line.store, &request).await;
            let (first, second) = (record(vec![b'1'; len]), record(vec![b'2'; len]));
            line.lose(strike, line.store.complete(&hold, &first, KEPT))
                .await;
            let found = phase(&line.past, &hold.id).await;
            let stands = found == Some(Phase::Completed(first.clone()));
            assert_eq!(stands, applied, "{strike:?}");

            let again = line.store.complete(&hold, &second, KEPT).await.unwrap();
            assert_eq!(again, Completion::Stored);
            let record = if applied { first } else { second };
            let replay = line.store.claim(&retry_of(&request)).await.unwrap();
            assert_eq!(replay, Claimed::Completed { attempt: 1, record });
        }
    }
}

#[tokio::test]
async fn a_failure_whose_reply_is_lost_is_told_again_and_stands() {
    for (strike, applied) in STRIKES {
        for seal in [false, true] {
            let line = Line::new().await;
            let request = request();
            let hold = acquires(&line.store, &request).await;
            line.lose(strike, line.store.fail(&hold, seal, KEPT)).await;
            let found = phase(&line.past, &hold.id).await.unwrap();
            let ended = !matches!(found, Phase::Running { .. });
            assert_eq!(ended, applied, "{strike:?} {found:?}");

            let again = line.store.fail(&hold, seal, KEPT).await.unwrap();
            assert_again(&again, applied, &Ownership::Lost, &Ownership::Held);
            let next = line.store.claim(&retry_of(&request)).await.unwrap();
            match seal {
                true => assert_eq!(next, Claimed::Abandoned { attempt: 1 }),
                false => assert!(matches!(next, Claimed::Acquired(hold) if hold.attempt == 2)),
            }
        }
    }
}

#[tokio::test]
async fn a_release_whose_reply_is_lost_is_made_again_and_the_key_is_free() {
    for (strike, applied) in STRIKES {
        let line = Line::new().await;
        let request = request();
        let hold = acquires(&line.store, &request).await;
        line.lose(strike, line.store.release(&hold)).await;
        let found = phase(&line.past, &hold.id).await;
        assert_eq!(found.is_none(), applied, "{strike:?} {found:?}");

        let again = line.store.release(&hold).await.unwrap();
        assert_again(&again, applied, &Ownership::Lost, &Ownership::Held);
        assert_eq!(phase(&line.past, &hold.id).await, None);
        // The fingerprint is forgotten, too.
        assert_eq!(acquires(&line.store, &misuse_of(&request)).await.attempt, 1);
    }
}

#[tokio::test]
async fn a_read_whose_reply_is_lost_changes_nothing_and_is_made_again() {
    for (strike, _) in STRIKES {
        let line = Line::new().await;
        let request = request();
        let hold = acquires(&line.store, &request).await;
        let record = record("answer");
        line.store.complete(&hold, &record, KEPT).await.unwrap();
        line.lose(strike, line.store.lookup(&hold.id)).await;
        let found = line.store.lookup(&hold.id).await.unwrap().unwrap();
        assert_eq!(found.phase, Phase::Completed(record.clone()));
        assert_eq!((found.attempt, found.fingerprint), (1, request.fingerprint));

        line.lose(strike, line.store.claim(&retry_of(&request)))
            .await;
        let replay = line.store.claim(&retry_of(&request)).await.unwrap();
        assert_eq!(replay, Claimed::Completed { attempt: 1, record });
    }
}

/// It is read without a script, and then with one.
#[tokio::test]
async fn a_long_answer_that_breaks_off_is_asked_for_again_at_once() {
    let line = Line::new().await;
    let request = request();
    let hold = acquires(&line.store, &request).await;
    let record = record(vec![b'x'; 1 << 20]);
    line.store.complete(&hold, &record, KEPT).await.unwrap();
    for after in [0, 1, 100, 500_000, 1 << 20] {
        let read = "\r\nGET\r\n";
        line.proxy.strike_only(read, CutInMidReply(after));
        let found = line.store.claim(&retry_of(&request)).await.unwrap();
        assert_eq!(line.proxy.pending_strikes(), 0);
        let replay = Claimed::Completed {
            attempt: 1,
            record: record.clone(),
        };
        assert_eq!(found, replay, "{after}");
        line.proxy.strike_only(read, CutInMidReply(after));
        let found = line.store.lookup(&hold.id).await.unwrap().unwrap();
        assert_eq!(line.proxy.pending_strikes(), 0);
        assert_eq!(found.phase, Phase::Completed(record.clone()), "{after}");
    }
}

#[tokio::test]
async fn what_an_operator_does_stands_though_its_reply_is_lost() {
    for (strike, applied) in STRIKES {
        let line = Line::new().await;
        let hold = acquires(&line.store, &request()).await;
        line.store.fail(&hold, true, KEPT).await.unwrap();
        let found_out = record("found out");
        line.lose(strike, line.store.resolve(&hold.id, &found_out, KEPT))
            .await;
        let again = line.store.resolve(&hold.id, &found_out, KEPT).await;
        // It is sealed no longer.
        assert_again(&again.unwrap(), applied, &false, &true);
        let found = phase(&line.past, &hold.id).await;
        assert_eq!(found, Some(Phase::Completed(found_out)), "{strike:?}");

        line.lose(strike, line.store.forget(&hold.id)).await;
        let again = line.store.forget(&hold.id).await.unwrap();
        assert_again(&again, applied, &Forgot::Absent, &Forgot::Forgotten);
        assert_eq!(phase(&line.past, &hold.id).await, None);
    }
}

#[tokio::test]
async fn a_reply_that_never_comes_is_ambiguous_once_the_driver_gives_up() {
    let config = manager_config().set_response_timeout(Some(ms(150)));
    let line = Line::to(shared().await, config).await;
    let request = request();
    line.lose(Strike::DropReplySilently, line.store.claim(&request))
        .await;
    assert_eq!(acquires(&line.past, &request).await.attempt, 1);
    let other = line.past.claim(&retry_of(&request)).await.unwrap();
    assert!(matches!(other, Claimed::InProgress { attempt: 1, .. }));
}
