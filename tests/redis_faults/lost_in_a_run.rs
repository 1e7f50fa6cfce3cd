//! The layer, and an answer of the server that does not come: the handler runs once, its
//! client gets what it answered, and a retry gets the same.

use std::sync::Arc;

use futures_util::future::join_all;
use tower_idempotency::{FailurePolicy, OutagePolicy, RejectionKind};

use crate::scene::*;
use crate::support::pieces::assert_refused;
use crate::support::proxy::Strike::{self, CutInMidReply, CutRequest, DropReply};

const STRIKES: [Strike; 3] = [DropReply, CutInMidReply(2), CutRequest];

#[tokio::test]
async fn a_lost_claim_is_made_again_and_its_handler_runs_once() {
    for strike in STRIKES {
        let line = Line::new().await;
        let layer = layer(&line.store);
        let (service, runs) = at_once(&layer);
        line.strike(strike);
        let first = charge(&service, "k").await;
        assert_true_answer(&first, "run 1 attempt 1", true);
        assert_eq!(line.proxy.pending_strikes(), 0);
        assert_on_record(&service, "k", &first, &runs).await;
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}

#[tokio::test]
async fn a_lost_completion_is_made_again_and_its_handler_runs_once() {
    for strike in STRIKES {
        let line = Line::new().await;
        let layer = layer(&line.store);
        let (service, runs) = running(&layer, {
            let proxy = Arc::clone(&line.proxy);
            move || {
                proxy.strike_only("EVALSHA", strike);
                async {}
            }
        });
        let first = charge(&service, "k").await;
        assert_true_answer(&first, "run 1 attempt 1", true);
        assert_eq!(line.proxy.pending_strikes(), 0);
        assert_on_record(&service, "k", &first, &runs).await;
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}

#[tokio::test]
async fn a_lost_failure_is_told_again_and_the_policy_holds() {
    for strike in STRIKES {
        for policy in [FailurePolicy::RunAgain, FailurePolicy::Refuse] {
            let line = Line::new().await;
            let layer = layer(&line.store).on_failure(policy);
            let (service, runs) = answering(&layer, 500, {
                let proxy = Arc::clone(&line.proxy);
                move || {
                    proxy.strike_only("EVALSHA", strike);
                    async {}
                }
            });
            let first = charge(&service, "k").await;
            assert_eq!(first.text(), "run 1 attempt 1", "{first:?}");
            assert_eq!(first.header("idempotency-stored"), None);
            assert_eq!(line.proxy.pending_strikes(), 0);
            let retry = charge(&service, "k").await;
            match policy {
                FailurePolicy::Refuse => assert_refused(&retry, RejectionKind::OutcomeUnknown),
                _ => assert_eq!(retry.text(), "run 2 attempt 2"),
            }
            assert_eq!(layer.in_flight().count(), 0);
            assert_eq!(runs.get(), 1 + usize::from(policy != FailurePolicy::Refuse));
        }
    }
}

#[tokio::test]
async fn a_lost_release_is_made_again_and_the_key_is_free() {
    for strike in STRIKES {
        let line = Line::new().await;
        let layer = layer(&line.store);
        let (service, _) = answering(&layer, 401, {
            let proxy = Arc::clone(&line.proxy);
            move || {
                proxy.strike_only("EVALSHA", strike);
                async {}
            }
        });
        for run in 1..=3 {
            let answer = charge(&service, "k").await;
            assert_eq!(answer.text(), format!("run {run} attempt 1"));
            assert_eq!(answer.header("idempotency-stored"), None);
            assert_eq!(line.proxy.pending_strikes(), 0);
        }
        assert_eq!(layer.in_flight().count(), 0);
    }
}

/// Nothing is known of either claim, and the second may have been applied.
#[tokio::test]
async fn a_claim_that_is_lost_twice_runs_nothing_and_does_not_hold_its_key() {
    let cases = STRIKES.map(|first| STRIKES.map(|second| [first, second]));
    let cases = cases.as_flattened().iter().flat_map(|strikes| {
        let policies = [OutagePolicy::Reject, OutagePolicy::RunUnprotected];
        policies.map(|policy| lost_twice(*strikes, policy))
    });
    join_all(cases).await;
}

async fn lost_twice(strikes: [Strike; 2], policy: OutagePolicy) {
    let line = Line::new().await;
    let layer = layer(&line.store).lease(ms(3_000)).on_outage(policy);
    let (service, runs) = at_once(&layer);
    for strike in strikes {
        line.strike(strike);
    }
    let refused = charge(&service, "k").await;
    assert_refused(&refused, RejectionKind::StoreUnavailable);
    assert_eq!((runs.get(), line.proxy.pending_strikes()), (0, 0));
    let retry = charge_patiently(&service, "k").await;
    assert_true_answer(&retry, "run 1 attempt 1", true);
    idle(&layer).await;
    assert_on_record(&service, "k", &retry, &runs).await;
}

/// The replay has no effect that could be doubled, so it is simply asked for again.
#[tokio::test]
async fn a_lost_replay_is_asked_for_again() {
    for strike in STRIKES {
        let line = Line::new().await;
        let layer = layer(&line.store);
        let (service, runs) = at_once(&layer);
        let first = charge(&service, "k").await;
        line.strike(strike);
        assert_on_record(&service, "k", &first, &runs).await;
        assert_eq!(line.proxy.pending_strikes(), 0);
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}
