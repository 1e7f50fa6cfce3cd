//! Whatever the store does, a handler does not run twice behind an answer that it
//! acknowledged, the first caller gets the true answer, and no key stays stuck.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use http::StatusCode;
use support::faults::{Call, Fault, FaultStore};
use support::scripted::{Planned, executed, idle, let_run, ms, plan, secs, spawn};
use support::stores::store;
use support::{Answer, Runs, post, send};
use tokio::time::{Instant, sleep};
use tower_idempotency::store::{AnyStore, MemoryStore, StoreErrorKind};
use tower_idempotency::{
    FailurePolicy, IdempotencyLayer, OutagePolicy, Outcome, RejectionKind, SharedByAllCallers,
};

use StoreErrorKind::{Ambiguous, Corrupt, Full, Misconfigured, NotApplied, Quota};

type Layer = IdempotencyLayer<FaultStore<AnyStore>>;

fn layer() -> (FaultStore<AnyStore>, Layer) {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    (store, layer)
}

/// A handler that takes no time and always answers with this status.
fn at_once(layer: &Layer, status: u16) -> (Planned, Runs) {
    plan(layer, [(Duration::ZERO, status)])
}

const SILENT: [Fault; 5] = [
    Fault::ReplyLost,
    Fault::Refused(Ambiguous),
    Fault::Hangs,
    Fault::AppliedThenHangs,
    Fault::AppliedLate(secs(1)),
];

#[tokio::test(start_paused = true)]
async fn a_claim_that_fails_is_refused_and_the_key_is_free_again() {
    let refusals = [
        (Fault::Refused(NotApplied), RejectionKind::StoreUnavailable),
        (Fault::Refused(Full), RejectionKind::StoreUnavailable),
        (
            Fault::Refused(Misconfigured),
            RejectionKind::StoreUnavailable,
        ),
        (Fault::Refused(Quota), RejectionKind::QuotaExceeded),
        (Fault::Refused(Corrupt), RejectionKind::RecordUnreadable),
    ];
    let silent = SILENT.map(|fault| (fault, RejectionKind::StoreUnavailable));
    for (fault, kind) in refusals.into_iter().chain(silent) {
        let (store, layer) = layer();
        let (service, runs) = at_once(&layer, 201);
        store.always(Call::Claim, fault);
        let began = Instant::now();
        let refused = send(&service, post("k", "charge 5")).await;
        // Asked twice at most, 2 s each.
        assert!(began.elapsed() <= ms(4_002), "{fault:?}");
        assert_eq!(refused.status, kind.status(), "{fault:?}");
        assert_eq!(refused.code().as_deref(), Some(kind.code()), "{fault:?}");
        assert_eq!(refused.outcome, Some(Outcome::Rejected(kind)));
        if kind == RejectionKind::StoreUnavailable {
            assert_eq!(refused.header("retry-after"), Some("1"));
        }
        assert_eq!(runs.get(), 0, "{fault:?}");
        let is_silent = SILENT
            .iter()
            .any(|silent| format!("{silent:?}") == format!("{fault:?}"));
        assert!(store.count(Call::Claim) == if is_silent { 2 } else { 1 });

        store.heal(Call::Claim);
        sleep(secs(2)).await;
        let retry = send(&service, post("k", "charge 5")).await;
        assert_eq!(retry.text(), "run 1 attempt 1", "{fault:?}");
        let began = Instant::now();
        idle(&layer).await;
        assert!(began.elapsed() <= secs(30), "{fault:?}");
        assert!(send(&service, post("k", "charge 5")).await.is_replay());
        assert_eq!(runs.get(), 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_is_lost_once_is_asked_for_again() {
    for fault in SILENT {
        let (store, layer) = layer();
        let (service, runs) = at_once(&layer, 201);
        store.once(Call::Claim, fault);
        let first = send(&service, post("k", "charge 5")).await;
        assert_eq!(first.text(), "run 1 attempt 1", "{fault:?}");
        assert_eq!(first.outcome, executed(1, Some(true)));
        assert_eq!(store.count(Call::Claim), 2);
        sleep(secs(5)).await;
        assert!(send(&service, post("k", "charge 5")).await.is_replay());
        idle(&layer).await;
        assert_eq!(runs.get(), 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_applied_after_its_run_has_ended_does_not_hold_the_key() {
    for (status, policy, next) in [
        (401, FailurePolicy::RunAgain, "run 2 attempt 1"),
        (401, FailurePolicy::Refuse, "run 2 attempt 1"),
        (500, FailurePolicy::RunAgain, "run 2 attempt"),
    ] {
        let (store, layer) = layer();
        let layer = layer.on_failure(policy);
        let (service, runs) = plan(&layer, [(Duration::ZERO, status), (Duration::ZERO, 201)]);
        // Given up after 2 s, asked for again and got, and applied once more at 10 s.
        store.once(Call::Claim, Fault::AppliedLate(secs(10)));
        let first = send(&service, post("k", "charge 5")).await;
        assert_eq!(first.text(), "run 1 attempt 1");
        assert_eq!(first.status.as_u16(), status);
        sleep(secs(13)).await;
        let retry = send(&service, post("k", "charge 5")).await;
        assert!(
            retry.text().starts_with(next),
            "{status} {policy:?}: {retry:?}"
        );
        idle(&layer).await;
        assert_eq!(runs.get(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_given_up_twice_is_released_however_late_it_is_applied() {
    for policy in [FailurePolicy::RunAgain, FailurePolicy::Refuse] {
        for late in [[1, 1], [3, 3], [10, 10], [10, 20], [1, 25], [25, 1]] {
            let (store, layer) = layer();
            let layer = layer.on_failure(policy);
            let (service, runs) = at_once(&layer, 201);
            for after in late {
                store.once(Call::Claim, Fault::AppliedLate(secs(after)));
            }
            let refused = send(&service, post("k", "charge 5")).await;
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!((runs.get(), layer.in_flight().count()), (0, 1));
            // Both have been applied by now, and released.
            sleep(secs(29)).await;
            let retry = send(&service, post("k", "charge 5")).await;
            assert_eq!(retry.text(), "run 1 attempt 1", "{policy:?} {late:?}");
            idle(&layer).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_but_a_claim_that_was_not_applied_switches_protection_off() {
    let not_applied: &[Fault] = &[Fault::Refused(NotApplied); 2];
    let doubtful: &[&[Fault]] = &[
        &[Fault::Refused(Full)],
        &[Fault::Refused(Misconfigured)],
        &[Fault::Refused(Quota)],
        &[Fault::Refused(Corrupt)],
        &[Fault::Refused(Ambiguous), Fault::Refused(Ambiguous)],
        &[Fault::Hangs, Fault::Hangs],
        &[Fault::AppliedThenHangs, Fault::AppliedThenHangs],
        &[Fault::ReplyLost, Fault::Refused(NotApplied)],
        &[Fault::Hangs, Fault::Refused(NotApplied)],
        &[Fault::AppliedLate(secs(3)), Fault::Refused(NotApplied)],
    ];
    for faults in doubtful {
        let (store, layer) = layer();
        let layer = layer.on_outage(OutagePolicy::RunUnprotected);
        let (service, runs) = at_once(&layer, 201);
        for fault in *faults {
            store.once(Call::Claim, *fault);
        }
        let refused = send(&service, post("k", "charge 5")).await;
        assert!(!refused.status.is_success(), "{faults:?}: {refused:?}");
        assert!(matches!(refused.outcome, Some(Outcome::Rejected(_))));
        assert_eq!(runs.get(), 0, "{faults:?}");
        sleep(secs(5)).await;
        let retry = send(&service, post("k", "charge 5")).await;
        assert_eq!(retry.text(), "run 1 attempt 1");
        idle(&layer).await;
    }

    let (store, layer) = layer();
    let layer = layer.on_outage(OutagePolicy::RunUnprotected);
    let (service, runs) = at_once(&layer, 201);
    for fault in not_applied {
        store.once(Call::Claim, *fault);
    }
    for run in 1..=2 {
        let answer = send(&service, post("k", "charge 5")).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        // No operation: there is no attempt of anything.
        assert_eq!(answer.text(), format!("run {run} attempt 0"));
        assert_eq!(answer.header("idempotency-stored"), Some("false"));
        assert_eq!(answer.header("x-answer"), Some("true"));
        assert_eq!(answer.outcome, Some(Outcome::Unprotected));
        assert!(!answer.is_replay());
    }
    let healed = send(&service, post("k", "charge 5")).await;
    assert_eq!(healed.text(), "run 3 attempt 1");
    assert_eq!((runs.get(), layer.in_flight().count()), (3, 0));
}

/// What the store is told at the end of a run that answers with the status.
const ENDS: [(Call, u16); 3] = [
    (Call::Complete, 201),
    (Call::Fail, 500),
    (Call::Release, 401),
];

fn is_true(answer: &Answer, status: u16) {
    assert_eq!(answer.status.as_u16(), status);
    assert_eq!(answer.text(), "run 1 attempt 1");
    assert_eq!(answer.header("x-answer"), Some("true"));
    assert!(!answer.is_replay());
}

/// A retry once the store has learned how the run ended.
async fn retry_finds_the_end(service: &Planned, status: u16, runs: &Runs, what: &str) {
    let retry = send(service, post("k", "charge 5")).await;
    match status {
        201 => {
            assert!(retry.is_replay(), "{what}: {retry:?}");
            assert_eq!((retry.text(), runs.get()), ("run 1 attempt 1", 1));
        }
        500 => assert_eq!(retry.text(), "run 2 attempt 2", "{what}"),
        _ => assert_eq!(retry.text(), "run 2 attempt 1", "{what}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_within_its_time_is_only_slow() {
    for call in [
        Call::Claim,
        Call::Extend,
        Call::Complete,
        Call::Fail,
        Call::Release,
    ] {
        for fault in [Fault::Slow(ms(1_900)), Fault::Suspends(5)] {
            for (_, status) in ENDS {
                let (store, layer) = layer();
                let (service, runs) = plan(&layer, [(secs(15), status)]);
                store.always(call, fault);
                let first = send(&service, post("k", "charge 5")).await;
                is_true(&first, status);
                assert_eq!(first.header("idempotency-stored"), None);
                assert_eq!(first.outcome, executed(1, Some(status == 201)));
                assert_eq!(layer.in_flight().count(), 0);
                retry_finds_the_end(&service, status, &runs, "slow").await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_at_the_end_that_fails_once_is_made_again() {
    for (call, status) in ENDS {
        for fault in [
            Fault::Refused(NotApplied),
            Fault::Refused(Ambiguous),
            Fault::ReplyLost,
        ] {
            let (store, layer) = layer();
            let (service, runs) = at_once(&layer, status);
            store.once(call, fault);
            let what = format!("{call:?} {fault:?}");
            let first = send(&service, post("k", "charge 5")).await;
            is_true(&first, status);
            assert_eq!(first.header("idempotency-stored"), None, "{what}");
            assert_eq!(first.outcome, executed(1, Some(status == 201)), "{what}");
            assert_eq!((store.count(call), layer.in_flight().count()), (2, 0));
            retry_finds_the_end(&service, status, &runs, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_at_the_end_goes_on_failing_and_is_made_in_the_background() {
    for (call, status) in ENDS {
        for fault in [
            Fault::Refused(NotApplied),
            Fault::Refused(Ambiguous),
            Fault::Hangs,
        ] {
            let (store, layer) = layer();
            let (service, runs) = at_once(&layer, status);
            store.always(call, fault);
            let what = format!("{call:?} {fault:?}");
            let began = Instant::now();
            let first = send(&service, post("k", "charge 5")).await;
            assert!(began.elapsed() <= ms(2_001), "{what}");
            is_true(&first, status);
            assert_eq!(first.header("idempotency-stored"), Some("false"), "{what}");
            assert_eq!(first.outcome, executed(1, Some(false)), "{what}");
            // Far beyond a lease, which is renewed.
            for _ in 0..20 {
                assert_eq!(layer.in_flight().count(), 1, "{what}");
                let retry = send(&service, post("k", "charge 5")).await;
                assert_eq!(retry.status, StatusCode::CONFLICT, "{what}");
                sleep(secs(7)).await;
            }
            store.heal(call);
            let began = Instant::now();
            idle(&layer).await;
            // The pause between two calls is 5 s at most; one that hangs takes 2 s.
            assert!(began.elapsed() <= secs(8), "{what}");
            retry_finds_the_end(&service, status, &runs, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_at_the_end_that_was_applied_stands_though_no_answer_comes() {
    for (call, status) in ENDS {
        for fault in [
            Fault::ReplyLost,
            Fault::AppliedThenHangs,
            Fault::AppliedLate(secs(10)),
        ] {
            let (store, layer) = layer();
            let (service, runs) = at_once(&layer, status);
            store.always(call, fault);
            let what = format!("{call:?} {fault:?}");
            let first = send(&service, post("k", "charge 5")).await;
            is_true(&first, status);
            sleep(secs(15)).await;
            assert_eq!(layer.in_flight().count(), 1, "{what}");
            retry_finds_the_end(&service, status, &runs, &what).await;
            store.heal(call);
            idle(&layer).await;
            assert_eq!(runs.get(), if status == 201 { 1 } else { 2 }, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_refused_for_what_it_is_is_kept_without_its_body() {
    for kind in [Full, Quota, Corrupt, Misconfigured] {
        let (store, layer) = layer();
        let (service, runs) = at_once(&layer, 201);
        store.once(Call::Complete, Fault::Refused(kind));
        let first = send(&service, post("k", "charge 5")).await;
        is_true(&first, 201);
        assert_eq!(first.header("idempotency-stored"), None);
        assert_eq!(first.outcome, executed(1, Some(true)));
        let retry = send(&service, post("k", "charge 5")).await;
        assert!(retry.is_replay());
        assert_eq!(retry.status, StatusCode::CREATED);
        assert_eq!(retry.header("x-answer"), Some("true"));
        assert_eq!(retry.header("idempotency-body"), Some("omitted"));
        assert!(retry.body.is_empty());
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
    // As the store in memory does it by itself.
    let small = IdempotencyLayer::new(MemoryStore::new().max_bytes(40), SharedByAllCallers);
    let (service, runs) = plan(&small, [(Duration::ZERO, 201)]);
    let first = send(&service, post("k", "charge 5")).await;
    is_true(&first, 201);
    assert_eq!(first.outcome, executed(1, Some(true)));
    let retry = send(&service, post("k", "charge 5")).await;
    assert_eq!(retry.header("idempotency-body"), Some("omitted"));
    assert_eq!((runs.get(), small.in_flight().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_gone_for_good_is_given_up_at_max_hold() {
    for fault in [
        Fault::Refused(NotApplied),
        Fault::Refused(Full),
        Fault::Hangs,
    ] {
        let store = FaultStore::new(MemoryStore::new());
        let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).max_hold(secs(60));
        let (service, runs) = plan(&layer, [(Duration::ZERO, 201)]);
        store.always(Call::Complete, fault);
        let first = send(&service, post("k", "charge 5")).await;
        is_true(&first, 201);
        let began = Instant::now();
        idle(&layer).await;
        let took = began.elapsed();
        assert!(took >= secs(55) && took <= secs(65), "{fault:?}: {took:?}");
        sleep(secs(31)).await;
        store.heal(Call::Complete);
        let retry = send(&service, post("k", "charge 5")).await;
        assert_eq!(retry.text(), "run 2 attempt 2");
        assert_eq!((runs.get(), layer.in_flight().count()), (2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_that_fail_do_not_touch_the_answer() {
    let faults = [NotApplied, Ambiguous, Full, Quota, Corrupt, Misconfigured].map(Fault::Refused);
    for fault in faults.into_iter().chain(SILENT) {
        for (_, status) in ENDS {
            let (store, layer) = layer();
            let (service, runs) = plan(&layer, [(secs(29), status), (secs(29), status)]);
            store.always(Call::Extend, fault);
            let first = spawn(&service, "k").await;
            sleep(secs(28)).await;
            assert_eq!(send(&service, post("k", "charge 5")).await.status, 409);
            let first = first.await.unwrap();
            is_true(&first, status);
            assert_eq!(first.outcome, executed(1, Some(status == 201)));
            let_run().await;
            assert_eq!(layer.in_flight().count(), 0);
            retry_finds_the_end(&service, status, &runs, &format!("{fault:?}")).await;
        }
    }
}
