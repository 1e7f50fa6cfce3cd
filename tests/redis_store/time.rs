//! When leases and records end, by the clock of the server alone.

use std::time::{Duration, Instant};

use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Forgot, KeyStore, Ownership, Phase, RecordId,
};

use crate::support::redis::shared;
use crate::tap::Tap;
use crate::{
    LEASE, Place, RETENTION, complete, fresh_record, misuse_of, request, retry_of, sealing,
};

const LONGER: Duration = Duration::from_secs(3600);
const SHORTER: Duration = Duration::from_secs(20);

impl Place {
    /// When the server will remove a record.
    async fn left(&self, id: &RecordId) -> Duration {
        let left: i64 = self.at("PTTL", id).await;
        Duration::from_millis(left.try_into().unwrap())
    }

    /// The record of `id` must end that long after a moment between `began` and now.
    async fn ends(&self, id: &RecordId, after: Duration, began: Instant, what: &str) {
        let left = self.left(id).await;
        is_left_of(after, left, began, what);
    }

    /// The same of its lease.
    async fn lapses(&self, id: &RecordId, after: Duration, began: Instant, what: &str) {
        let seen = self.store.lookup(id).await.unwrap().unwrap();
        let Phase::Running { lease_left } = seen.phase else {
            panic!("{what}: not running: {seen:?}");
        };
        is_left_of(after, lease_left, began, what);
    }
}

/// Nothing more can be left, and less only by the time that has gone by.
fn is_left_of(whole: Duration, left: Duration, began: Instant, what: &str) {
    let passed = began.elapsed() + Duration::from_millis(2);
    assert!(
        left <= whole && left + passed >= whole,
        "{what}: of {whole:?} {left:?} are left after {passed:?}"
    );
}

#[tokio::test]
async fn a_claim_lasts_for_its_lease_and_its_record_for_the_retention_after_it() {
    let place = Place::new().await;
    for run in [request(), sealing(request())] {
        let began = Instant::now();
        place.acquire(&run).await;
        let what = "a claim";
        place.lapses(&run.id, LEASE, began, what).await;
        place.ends(&run.id, LEASE + RETENTION, began, what).await;
    }
}

#[tokio::test]
async fn a_claim_sent_again_renews_the_lease_and_never_shortens_the_record() {
    let place = Place::new().await;
    for (lease, retention, ends) in [
        (SHORTER, SHORTER, LEASE + RETENTION),
        (LONGER, SHORTER, LONGER + SHORTER),
        (SHORTER, LONGER, SHORTER + LONGER),
    ] {
        let mut run = request();
        let began = Instant::now();
        place.acquire(&run).await;
        (run.lease, run.retention) = (lease, retention);
        place.acquire(&run).await;
        let what = format!("again for {lease:?} and {retention:?}");
        place.lapses(&run.id, lease, began, &what).await;
        place.ends(&run.id, ends, began, &what).await;
    }
}

#[tokio::test]
async fn a_renewal_counts_from_now_and_never_shortens_the_record() {
    let place = Place::new().await;
    for (lease, retention, ends) in [
        (LEASE, RETENTION, LEASE + RETENTION),
        (SHORTER, SHORTER, LEASE + RETENTION),
        (LONGER, SHORTER, LONGER + SHORTER),
        (SHORTER, LONGER, SHORTER + LONGER),
    ] {
        let run = request();
        let began = Instant::now();
        let hold = place.acquire(&run).await;
        for _ in 0..2 {
            let extended = place.store.extend(&hold, lease, retention).await;
            assert_eq!(extended.unwrap(), Ownership::Held);
        }
        let what = format!("extended by {lease:?} and {retention:?}");
        place.lapses(&run.id, lease, began, &what).await;
        place.ends(&run.id, ends, began, &what).await;
    }
}

#[tokio::test]
async fn an_answer_is_kept_from_its_completion_on_and_its_end_stands() {
    let place = Place::new().await;
    for retention in [SHORTER, LONGER] {
        let run = request();
        let hold = place.acquire(&run).await;
        let began = Instant::now();
        let record = fresh_record();
        let completed = place.store.complete(&hold, &record, retention).await;
        assert_eq!(completed.unwrap(), Completion::Stored);
        place.ends(&run.id, retention, began, "completed").await;
        for again in [SHORTER, LONGER] {
            let completed = place.store.complete(&hold, &record, again).await;
            assert_eq!(completed.unwrap(), Completion::Stored);
            let lost = place.store.extend(&hold, again, again).await;
            assert_eq!(lost.unwrap(), Ownership::Lost);
        }
        place
            .ends(&run.id, retention, began, "completed again")
            .await;
    }

    let lost = request();
    let began = Instant::now();
    let restored = place
        .store
        .complete(&lost.hold(1), &fresh_record(), SHORTER)
        .await;
    assert_eq!(restored.unwrap(), Completion::Restored);
    place.ends(&lost.id, SHORTER, began, "restored").await;
}

#[tokio::test]
async fn a_failed_run_is_kept_from_its_failure_on() {
    let place = Place::new().await;
    for seal in [false, true] {
        for retention in [SHORTER, LONGER] {
            let run = request();
            let hold = place.acquire(&run).await;
            let began = Instant::now();
            let failed = place.store.fail(&hold, seal, retention).await;
            assert_eq!(failed.unwrap(), Ownership::Held);
            let what = format!("failed, sealed: {seal}");
            place.ends(&run.id, retention, began, &what).await;

            if seal {
                let began = Instant::now();
                let resolved = place.store.resolve(&run.id, &fresh_record(), LONGER).await;
                assert!(resolved.unwrap());
                place.ends(&run.id, LONGER, began, "resolved").await;
            } else {
                // The next attempt is a claim like any other.
                let began = Instant::now();
                place.acquire(&retry_of(&run)).await;
                let what = "a claim after a failure";
                place.lapses(&run.id, LEASE, began, what).await;
                place.ends(&run.id, LEASE + RETENTION, began, what).await;
            }
        }
    }
}

#[tokio::test]
async fn a_release_ends_a_first_attempt_at_once_and_a_later_one_when_it_would_have_ended() {
    let place = Place::new().await;
    let run = request();
    let hold = place.acquire(&run).await;
    assert_eq!(place.store.release(&hold).await.unwrap(), Ownership::Held);
    assert_eq!(place.raw(&run.id).await, None);

    let began = Instant::now();
    let retry = retry_of(&place.failed(false).await);
    let hold = place.acquire(&retry).await;
    assert_eq!(place.store.release(&hold).await.unwrap(), Ownership::Held);
    let ends = LEASE + RETENTION;
    place
        .ends(&retry.id, ends, began, "released at attempt 2")
        .await;
}

#[tokio::test]
async fn reading_moves_no_end() {
    let place = Place::new().await;
    let began = Instant::now();
    let (running, completed) = (request(), request());
    place.acquire(&running).await;
    complete(&place.store, &completed, &fresh_record()).await;
    let sealed = place.failed(true).await;
    for run in [&running, &completed, &sealed] {
        for claim in [retry_of(run), misuse_of(run)] {
            let claimed = place.store.claim(&claim).await.unwrap();
            assert!(!matches!(claimed, Claimed::Acquired(_)), "{claimed:?}");
        }
        place.store.lookup(&run.id).await.unwrap().unwrap();
    }
    assert_eq!(place.store.forget(&running.id).await.unwrap(), Forgot::Live);
    place.lapses(&running.id, LEASE, began, "running").await;
    place
        .ends(&running.id, LEASE + RETENTION, began, "running")
        .await;
    place
        .ends(&completed.id, RETENTION, began, "completed")
        .await;
    place.ends(&sealed.id, RETENTION, began, "sealed").await;
}

/// Whatever the clock of the caller says, it asks the same.
#[tokio::test]
async fn no_call_carries_a_time_of_the_caller() {
    let connection = shared().await.multiplexed().await;
    let tap = Tap::new(connection.clone());
    let place = Place::through(tap.clone(), connection);
    let (store, run, record) = (&place.store, request(), fresh_record());
    let hold = run.hold(1);
    let calls = async || {
        let _ = store.claim(&run).await;
        let _ = store.extend(&hold, LEASE, RETENTION).await;
        let _ = store.lookup(&run.id).await;
        let _ = store.release(&hold).await;
        let _ = store.fail(&hold, true, RETENTION).await;
        let _ = store.complete(&hold, &record, RETENTION).await;
        let _ = store.resolve(&run.id, &record, RETENTION).await;
        let _ = store.forget(&run.id).await;
    };
    // Whichever of the scripts the server does not know yet, it does afterwards.
    calls().await;
    tap.sent();
    calls().await;
    let before = tap.sent();
    assert_eq!(before.len(), 8);
    tokio::time::sleep(Duration::from_millis(20)).await;
    calls().await;
    assert_eq!(tap.sent(), before);
}

fn lasting(lease: Duration, retention: Duration) -> ClaimRequest {
    let mut run = request();
    (run.lease, run.retention) = (lease, retention);
    run
}

async fn until_gone(place: &Place, id: &RecordId) {
    let patience = Instant::now() + Duration::from_secs(10);
    while place.store.lookup(id).await.unwrap().is_some() {
        assert!(Instant::now() < patience, "a record never ends");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn durations_of_nothing_end_at_once_and_do_no_harm() {
    let place = Place::new().await;
    let store = &place.store;
    for nothing in [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_micros(999),
    ] {
        let run = lasting(nothing, nothing);
        place.acquire(&run).await;
        until_gone(&place, &run.id).await;

        // A lease of nothing over a record that stays is one to be taken over.
        let run = lasting(nothing, RETENTION);
        let began = Instant::now();
        let hold = place.acquire(&run).await;
        place
            .ends(
                &run.id,
                RETENTION + Duration::from_millis(1),
                began,
                "claimed",
            )
            .await;
        let patience = Instant::now() + Duration::from_secs(10);
        let next = retry_of(&run);
        let attempt = loop {
            match store.claim(&next).await.unwrap() {
                Claimed::Acquired(hold) => break hold.attempt,
                in_progress => assert!(Instant::now() < patience, "{in_progress:?}"),
            }
        };
        assert_eq!(attempt, 2);
        let lost = store.extend(&hold, LEASE, RETENTION).await;
        assert_eq!(lost.unwrap(), Ownership::Lost);

        let run = request();
        let hold = place.acquire(&run).await;
        let began = Instant::now();
        let extended = store.extend(&hold, nothing, nothing).await;
        assert_eq!(extended.unwrap(), Ownership::Held);
        place
            .ends(&run.id, LEASE + RETENTION, began, "extended by nothing")
            .await;
        let completed = store.complete(&hold, &fresh_record(), nothing).await;
        assert_eq!(completed.unwrap(), Completion::Stored);
        until_gone(&place, &run.id).await;

        let run = request();
        let hold = place.acquire(&run).await;
        assert_eq!(
            store.fail(&hold, true, nothing).await.unwrap(),
            Ownership::Held
        );
        until_gone(&place, &run.id).await;

        let sealed = place.failed(true).await;
        assert!(
            store
                .resolve(&sealed.id, &fresh_record(), nothing)
                .await
                .unwrap()
        );
        until_gone(&place, &sealed.id).await;

        let lost = request();
        let restored = store
            .complete(&lost.hold(1), &fresh_record(), nothing)
            .await;
        assert_eq!(restored.unwrap(), Completion::Restored);
        until_gone(&place, &lost.id).await;
    }
}

#[tokio::test]
async fn parts_of_a_millisecond_are_rounded_up() {
    let place = Place::new().await;
    for (lease, retention, outlives, ends) in [
        (1_000, 1_000_000, 1_000, 1_001),
        (1_001, 1_000_000, 1_000, 1_002),
        (999, 999_001, 999, 1_000),
        (500, 500, 0, 1),
    ] {
        let run = lasting(
            Duration::from_micros(lease),
            Duration::from_micros(retention),
        );
        let began = Instant::now();
        place.acquire(&run).await;
        // The shortest may be gone by now.
        if let Some(value) = place.raw(&run.id).await {
            let digits = str::from_utf8(&value[65..]).unwrap();
            assert_eq!(
                digits,
                format!("{outlives:016}"),
                "{lease} µs, {retention} µs"
            );
        }
        if ends > 100 {
            let ends = Duration::from_millis(ends);
            place.ends(&run.id, ends, began, "claimed").await;
        }
    }
}

#[tokio::test]
async fn durations_without_end_last_for_a_century_and_do_no_harm() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    const MAX: Duration = Duration::MAX;
    let place = Place::new().await;
    let store = &place.store;
    for (lease, retention) in [(MAX, MAX), (MAX, RETENTION), (LEASE, MAX)] {
        let run = lasting(lease, retention);
        let hold = place.acquire(&run).await;
        assert!(place.left(&run.id).await > 99 * YEAR);
        let claimed = store.claim(&retry_of(&run)).await.unwrap();
        let least = lease.min(99 * YEAR) - Duration::from_secs(20);
        let Claimed::InProgress {
            attempt: 1,
            lease_left,
        } = claimed
        else {
            panic!("not in progress: {claimed:?}");
        };
        assert!(lease_left > least, "{lease_left:?} of {lease:?} are left");
        for _ in 0..2 {
            let extended = store.extend(&hold, lease, retention).await;
            assert_eq!(extended.unwrap(), Ownership::Held);
        }
        assert!(place.left(&run.id).await > 99 * YEAR);
        let seen = store.lookup(&run.id).await.unwrap().unwrap();
        assert!(seen.retention_left > 99 * YEAR);
        assert!(matches!(seen.phase, Phase::Running { lease_left } if lease_left > least));
        let completed = store.complete(&hold, &fresh_record(), MAX).await;
        assert_eq!(completed.unwrap(), Completion::Stored);
        assert!(place.left(&run.id).await > 99 * YEAR);
    }

    let run = request();
    let hold = place.acquire(&run).await;
    assert_eq!(store.fail(&hold, true, MAX).await.unwrap(), Ownership::Held);
    assert!(place.left(&run.id).await > 99 * YEAR);
    assert!(store.resolve(&run.id, &fresh_record(), MAX).await.unwrap());
    assert!(place.left(&run.id).await > 99 * YEAR);
}

#[tokio::test]
async fn attempts_are_counted_exactly_up_to_the_largest_that_a_script_knows() {
    const LARGEST: u64 = (1 << 53) - 1;
    let place = Place::new().await;
    let store = &place.store;
    for before in [9, 99_999_999, LARGEST / 10, LARGEST - 1] {
        let run = place.failed(false).await;
        let mut value = place.raw(&run.id).await.unwrap();
        value[48..64].copy_from_slice(format!("{before:016}").as_bytes());
        place.put(&run.id, &value).await;
        let next = retry_of(&run);
        let hold = place.acquire(&next).await;
        assert_eq!(hold.attempt, before + 1);
        let value = place.raw(&run.id).await.unwrap();
        assert_eq!(value.len(), 81);
        assert_eq!(value[48..64], *format!("{:016}", before + 1).as_bytes());
        let seen = store.lookup(&run.id).await.unwrap().unwrap();
        assert_eq!(seen.attempt, before + 1);

        // The number on record is the true one, not that of a hold.
        let record = fresh_record();
        let completed = store
            .complete(&next.hold(u64::MAX), &record, RETENTION)
            .await;
        assert_eq!(completed.unwrap(), Completion::Stored);
        let replay = Claimed::Completed {
            attempt: before + 1,
            record,
        };
        assert_eq!(store.claim(&retry_of(&run)).await.unwrap(), replay);
    }

    let lost = request();
    let record = fresh_record();
    let restored = store
        .complete(&lost.hold(u64::MAX), &record, RETENTION)
        .await;
    assert_eq!(restored.unwrap(), Completion::Restored);
    let replay = Claimed::Completed {
        attempt: LARGEST,
        record,
    };
    assert_eq!(store.claim(&retry_of(&lost)).await.unwrap(), replay);
}
