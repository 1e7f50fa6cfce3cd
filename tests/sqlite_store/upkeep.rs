//! What is kept is kept byte for byte, replays write nothing, no lease ends early, and a
//! purge removes the dead alone.

use std::time::{Duration, Instant};

use sqlx::{Row, SqlitePool};
use tower_idempotency::store::{Claimed, Completion, Forgot, KeyStore, Record, SqliteStore};

use crate::place::Place;
use crate::{
    RETENTION, acquire, brief, complete, fresh_record, misuse_of, record_of_len, request, retry_of,
    sealing,
};

const MIB: usize = 1024 * 1024;

async fn rows(pool: &SqlitePool) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM idempotency_record");
    count.fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn records_come_back_byte_for_byte_whatever_their_length() {
    let place = Place::new().await;
    let (other, _pool) = place.other().await;
    let empty = Record::new(&http::Response::new(""));
    for record in [empty, record_of_len(4096), record_of_len(MIB)] {
        let request = request();
        complete(&place.store, &request, &record).await;
        let claimed = other.claim(&retry_of(&request)).await.unwrap();
        let Claimed::Completed {
            attempt: 1,
            record: found,
        } = claimed
        else {
            panic!("{claimed:?}");
        };
        assert_eq!(found.as_bytes(), record.as_bytes());
        // Also where the store had lost the claim.
        assert_eq!(other.forget(&request.id).await.unwrap(), Forgot::Forgotten);
        let restored = other.complete(&request.hold(3), &record, RETENTION).await;
        assert_eq!(restored.unwrap(), Completion::Restored);
        let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
        assert_eq!(claimed, Claimed::Completed { attempt: 3, record });
    }
}

/// Of the file, of its log, and of what a connection notices of others.
#[tokio::test]
async fn replays_conflicts_and_look_ups_write_nothing() {
    let place = Place::new().await;
    let (done, running, sealed) = (request(), request(), sealing(brief(request())));
    complete(&place.store, &done, &record_of_len(MIB)).await;
    acquire(&place.store, &running).await;
    acquire(&place.store, &sealed).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (_other, pool) = place.other().await;
    let mut witness = pool.acquire().await.unwrap();
    let mut see = async || {
        let version: i64 = sqlx::query_scalar("PRAGMA data_version")
            .fetch_one(&mut *witness)
            .await
            .unwrap();
        let log = place.folder.file().with_extension("db-wal");
        (version, std::fs::read(log).unwrap())
    };
    let before = see().await;
    for _ in 0..10 {
        let claimed = place.store.claim(&retry_of(&done)).await.unwrap();
        assert!(matches!(claimed, Claimed::Completed { .. }));
        let claimed = place.store.claim(&misuse_of(&done)).await.unwrap();
        assert_eq!(claimed, Claimed::Mismatch);
        let claimed = place.store.claim(&retry_of(&running)).await.unwrap();
        assert!(matches!(claimed, Claimed::InProgress { .. }));
        let claimed = place.store.claim(&retry_of(&sealed)).await.unwrap();
        assert_eq!(claimed, Claimed::Abandoned { attempt: 1 });
        for request in [&done, &running, &sealed] {
            place.store.lookup(&request.id).await.unwrap().unwrap();
        }
    }
    assert!(see().await == before);
    acquire(&place.store, &request()).await;
    assert!(see().await != before);
}

/// SQLite's clock has no parts of a millisecond.
#[tokio::test]
async fn no_lease_ends_before_its_time() {
    let place = Place::new().await;
    let lease = Duration::from_millis(3);
    for _ in 0..100 {
        let mut request = request();
        request.lease = lease;
        let hold = acquire(&place.store, &request).await;
        let renewed = Instant::now();
        place.store.extend(&hold, lease, RETENTION).await.unwrap();
        loop {
            let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
            if let Claimed::Acquired(_) = claimed {
                break;
            }
        }
        let held = renewed.elapsed();
        assert!(held >= lease, "it ended after {held:?}");
    }
}

#[tokio::test]
async fn what_is_left_is_never_told_to_be_more_than_it_is() {
    let place = Place::new().await;
    for _ in 0..50 {
        let request = request();
        let asked = Instant::now();
        let hold = acquire(&place.store, &request).await;
        let found = place.store.lookup(&request.id).await.unwrap().unwrap();
        assert!(found.retention_left <= crate::LEASE + RETENTION);
        let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
        let Claimed::InProgress { lease_left, .. } = claimed else {
            panic!("{claimed:?}");
        };
        let least = crate::LEASE - asked.elapsed() - Duration::from_millis(2);
        assert!(
            lease_left <= crate::LEASE && lease_left >= least,
            "{lease_left:?}"
        );
        let kept = Duration::from_millis(1500);
        place
            .store
            .complete(&hold, &fresh_record(), kept)
            .await
            .unwrap();
        let found = place.store.lookup(&request.id).await.unwrap().unwrap();
        assert!(found.retention_left <= kept);
    }
}

/// A record that has expired in a moment.
async fn expire(store: &SqliteStore, record: &Record) {
    let mut request = brief(request());
    request.retention = Duration::from_millis(1);
    let hold = acquire(store, &request).await;
    let done = store.complete(&hold, record, request.retention).await;
    done.unwrap();
}

/// So many records that have expired.
async fn expired(place: &Place, records: usize, record: &Record) {
    for _ in 0..records {
        expire(&place.store, record).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[tokio::test]
async fn a_purge_removes_as_many_as_it_may_and_tells_how_many() {
    let place = Place::new().await;
    let kept = request();
    complete(&place.store, &kept, &fresh_record()).await;
    acquire(&place.store, &request()).await;
    expired(&place, 25, &fresh_record()).await;
    assert_eq!(rows(&place.pool).await, 27);
    for (at_most, purged) in [(0, 0), (10, 10), (10, 10), (10, 5), (10, 0)] {
        assert_eq!(place.store.purge_expired(at_most).await.unwrap(), purged);
    }
    assert_eq!(rows(&place.pool).await, 2);
}

/// One statement removes some of them alone.
#[tokio::test]
async fn a_purge_of_long_answers_removes_them_all_the_same() {
    let place = Place::new().await;
    expired(&place, 20, &record_of_len(MIB)).await;
    assert_eq!(place.store.purge_expired(19).await.unwrap(), 19);
    assert_eq!(place.store.purge_expired(19).await.unwrap(), 1);
    // And one that is longer than what a statement may remove.
    expired(&place, 2, &record_of_len(9 * MIB)).await;
    assert_eq!(place.store.purge_expired(19).await.unwrap(), 2);
    assert_eq!(rows(&place.pool).await, 0);
}

/// Where retention is changed by hours, the purge still finds a record when it expires.
#[tokio::test]
async fn a_record_that_ends_much_earlier_than_its_claim_said_is_purged_in_time() {
    let place = Place::new().await;
    let mut request = request();
    request.retention = Duration::from_secs(48 * 60 * 60);
    let hold = acquire(&place.store, &request).await;
    let soon = Duration::from_millis(1);
    place
        .store
        .complete(&hold, &fresh_record(), soon)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(place.store.purge_expired(10).await.unwrap(), 1);
}

/// The index says that its time has come, and the record says that it has not.
#[tokio::test]
async fn a_record_that_ends_later_than_its_claim_said_is_not_purged() {
    let place = Place::new().await;
    let mut request = request();
    request.lease = Duration::from_secs(2);
    request.retention = Duration::from_millis(1);
    let record = fresh_record();
    complete(&place.store, &request, &record).await;
    // A second more, since that is how it is looked at.
    tokio::time::sleep(request.lease + Duration::from_millis(1050)).await;
    let due = "SELECT count(*) FROM idempotency_record WHERE purge_after < unixepoch() * 1000";
    let due: i64 = sqlx::query_scalar(due)
        .fetch_one(&place.pool)
        .await
        .unwrap();
    assert_eq!(due, 1);
    assert_eq!(place.store.purge_expired(10).await.unwrap(), 0);
    let claimed = place.store.claim(&retry_of(&request)).await.unwrap();
    assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
}

#[tokio::test]
async fn completing_touches_no_index_in_the_ordinary_case() {
    let place = Place::new().await;
    let request = request();
    let hold = acquire(&place.store, &request).await;
    let purge_after = async || {
        let row = sqlx::query("SELECT purge_after, expires_at FROM idempotency_record");
        let row = row.fetch_one(&place.pool).await.unwrap();
        (row.get::<i64, _>(0), row.get::<i64, _>(1))
    };
    let before = purge_after().await;
    place
        .store
        .extend(&hold, crate::LEASE, RETENTION)
        .await
        .unwrap();
    place
        .store
        .complete(&hold, &fresh_record(), RETENTION)
        .await
        .unwrap();
    let after = purge_after().await;
    assert_eq!(before.0, after.0);
    assert_ne!(before.1, after.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_at_the_same_time_remove_no_record_that_lives() {
    let place = Place::new().await;
    let (other, _pool) = place.other().await;
    let end = Instant::now() + Duration::from_secs(2);
    let purges = [&place.store, &other, &place.store, &other].map(|store| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut purged = 0;
            while Instant::now() < end {
                purged += store.purge_expired(7).await.unwrap();
            }
            purged
        })
    });
    let (mut living, mut dead) = (Vec::new(), 0);
    while Instant::now() < end {
        let (request, record) = (request(), fresh_record());
        complete(&place.store, &request, &record).await;
        living.push((request, record.clone()));
        expire(&other, &record).await;
        dead += 1;
    }
    let mut purged = 0;
    for purge in purges {
        purged += purge.await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    purged += place.store.purge_expired(usize::MAX).await.unwrap();
    // One that was purged between its claim and its completion is written once more.
    assert!(purged >= dead, "{purged} of {dead}");
    assert_eq!(rows(&place.pool).await, living.len() as i64);
    assert!(dead > 10, "only {dead}");
    for (request, record) in living {
        let claimed = other.claim(&retry_of(&request)).await.unwrap();
        assert_eq!(claimed, Claimed::Completed { attempt: 1, record });
    }
}

#[tokio::test]
async fn a_purge_task_removes_what_expires_until_it_is_dropped() {
    let place = Place::new().await;
    let task = place.store.spawn_purge(Duration::from_millis(10));
    expired(&place, 3, &fresh_record()).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while rows(&place.pool).await > 0 {
        assert!(Instant::now() < deadline, "nothing is purged");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(task);
    tokio::task::yield_now().await;
    // A purge under way may still come to its end.
    tokio::time::sleep(Duration::from_millis(50)).await;
    expired(&place, 1, &fresh_record()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rows(&place.pool).await, 1);
}
