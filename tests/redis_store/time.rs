//! When leases and records end, by the clock of the server alone.

mod extremes;

use std::time::{Duration, Instant};

use tower_idempotency::store::{Claimed, Completion, Forgot, KeyStore, Ownership, Phase, RecordId};

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
