//! An answer comes back byte for byte, whichever way it takes, and never another one.

mod between;
mod damage;
mod layout;

use tower_idempotency::store::{Claimed, KeyStore, Phase, Record};

use crate::support::redis::shared;
use crate::tap::Tap;
use crate::{Place, record_of_len, retry_of};

impl Place<Tap> {
    /// A store whose connection can be looked into.
    async fn tapped() -> (Self, Tap) {
        let connection = shared().await.multiplexed().await;
        let tap = Tap::new(connection.clone());
        (Self::through(tap.clone(), connection), tap)
    }

    /// Completes a key with a record of that length, replays it and looks it up, and tells
    /// how many plain reads each of the two has taken.
    async fn reads_for(&self, tap: &Tap, len: usize) -> [usize; 2] {
        let record = record_of_len(len);
        let request = self.completed(&record).await;
        assert_eq!(tap.gets(), 0);
        let replay = self.store.claim(&retry_of(&request)).await.unwrap();
        let by_claim = tap.gets();
        assert_is(&replay, 1, &record);
        let seen = self.store.lookup(&request.id).await.unwrap().unwrap();
        let by_lookup = tap.gets();
        assert_eq!(seen.fingerprint, request.fingerprint);
        let Phase::Completed(seen) = seen.phase else {
            panic!("not completed: {seen:?}");
        };
        assert!(seen.as_bytes() == record.as_bytes(), "{len} bytes");
        [by_claim, by_lookup]
    }
}

fn assert_is(claimed: &Claimed, expected: u64, record: &Record) {
    let Claimed::Completed {
        attempt,
        record: replay,
    } = claimed
    else {
        panic!("not completed: {claimed:?}");
    };
    assert_eq!(*attempt, expected);
    let bytes = record.as_bytes().len();
    assert!(replay.as_bytes() == record.as_bytes(), "{bytes} bytes");
    assert_eq!(replay.body(), record.body());
}

#[tokio::test]
async fn an_answer_above_the_limit_and_no_other_takes_a_read_of_its_own() {
    for limit in [1000, 64 << 10] {
        let (place, tap) = Place::tapped().await;
        let place = place.with(|store| store.inline_limit(limit));
        assert_eq!(place.reads_for(&tap, limit - 1).await, [0, 0]);
        assert_eq!(place.reads_for(&tap, limit).await, [0, 0]);
        assert_eq!(place.reads_for(&tap, limit + 1).await, [1, 1]);
    }
}

#[tokio::test]
async fn the_limit_is_16_kib_where_none_is_set() {
    let (place, tap) = Place::tapped().await;
    assert_eq!(place.reads_for(&tap, 16 << 10).await, [0, 0]);
    assert_eq!(place.reads_for(&tap, (16 << 10) + 1).await, [1, 1]);
}

#[tokio::test]
async fn with_a_limit_of_0_every_answer_takes_a_read_of_its_own() {
    let (place, tap) = Place::tapped().await;
    let place = place.with(|store| store.inline_limit(0));
    for len in [28, 29, 1000, 17 << 10] {
        assert_eq!(place.reads_for(&tap, len).await, [1, 1]);
    }
}

#[tokio::test]
async fn with_a_limit_that_nothing_reaches_none_does() {
    let (place, tap) = Place::tapped().await;
    let place = place.with(|store| store.inline_limit(usize::MAX));
    for len in [28, 17 << 10, 3 << 20] {
        assert_eq!(place.reads_for(&tap, len).await, [0, 0]);
    }
}

#[tokio::test]
async fn a_mebibyte_comes_back_byte_for_byte() {
    let (place, tap) = Place::tapped().await;
    for len in [1 << 20, (1 << 20) + 28, (5 << 20) + 1] {
        assert_eq!(place.reads_for(&tap, len).await, [1, 1]);
    }
}

/// A conflict, a mismatch and a sealed key carry no answer, whatever the limit is.
#[tokio::test]
async fn only_a_completed_record_is_read() {
    let (place, tap) = Place::tapped().await;
    let place = place.with(|store| store.inline_limit(0));
    let running = crate::request();
    place.acquire(&running).await;
    let sealed = place.failed(true).await;
    let completed = place.completed(&record_of_len(100)).await;
    let asked = [
        (retry_of(&running), "InProgress"),
        (retry_of(&sealed), "Abandoned"),
        (crate::misuse_of(&completed), "Mismatch"),
    ];
    for (claim, expected) in asked {
        let claimed = place.store.claim(&claim).await.unwrap();
        assert!(format!("{claimed:?}").starts_with(expected), "{claimed:?}");
    }
    for id in [running.id, sealed.id] {
        place.store.lookup(&id).await.unwrap().unwrap();
    }
    assert_eq!(tap.gets(), 0);
}
