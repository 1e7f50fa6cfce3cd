//! Durations and attempts as small and as large as they can be.

use std::time::{Duration, Instant};

use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, KeyStore, Ownership, Phase, RecordId,
};

use crate::{LEASE, Place, RETENTION, fresh_record, request, retry_of};

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
        (1_001, 1_000_999, 1_000, 1_002),
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
    // More than the server takes, and no more than its numbers are.
    let eon = Duration::from_millis(u64::MAX / 2);
    for (lease, retention) in [(MAX, MAX), (MAX, RETENTION), (LEASE, MAX), (eon, eon)] {
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
        let completed = store
            .complete(&hold, &fresh_record(), retention.max(eon))
            .await;
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
