//! The store that a behaviour test runs over: the same test, whichever it is.
//!
//! The environment variable `IDEMPOTENCY_TEST_STORE` decides: `memory`, which is the
//! default, `redis`, `postgres` or `sqlite`.

#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod asking;
#[cfg(feature = "redis")]
mod over_redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod over_sql;

use std::time::{Duration, Instant};

use http::StatusCode;
use tower_idempotency::store::{AnyStore, Snapshot};

use super::Answer;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Memory,
    #[cfg(feature = "redis")]
    Redis,
    #[cfg(feature = "postgres")]
    Postgres,
    #[cfg(feature = "sqlite")]
    Sqlite,
}

fn kind() -> Kind {
    match std::env::var("IDEMPOTENCY_TEST_STORE").as_deref() {
        Err(_) | Ok("memory") => Kind::Memory,
        #[cfg(feature = "redis")]
        Ok("redis") => Kind::Redis,
        #[cfg(feature = "postgres")]
        Ok("postgres") => Kind::Postgres,
        #[cfg(feature = "sqlite")]
        Ok("sqlite") => Kind::Sqlite,
        Ok(other) => panic!(
            "IDEMPOTENCY_TEST_STORE is `{other}`: there are `memory` and, each with the \
             feature of its name, `redis`, `postgres` and `sqlite`"
        ),
    }
}

/// A store without any record.
pub fn store() -> AnyStore {
    store_pair().0
}

/// One set of records, empty, as two nodes have it before them: each with a connection of
/// its own where the store is on a server.
pub fn store_pair() -> (AnyStore, AnyStore) {
    match kind() {
        #[cfg(feature = "memory")]
        Kind::Memory => {
            let store = tower_idempotency::store::MemoryStore::new();
            (AnyStore::new(store.clone()), AnyStore::new(store))
        }
        #[cfg(not(feature = "memory"))]
        Kind::Memory => panic!("the feature `memory` is off"),
        #[cfg(feature = "redis")]
        Kind::Redis => over_redis::store_pair(),
        #[cfg(feature = "postgres")]
        Kind::Postgres => over_sql::postgres::store_pair(),
        #[cfg(feature = "sqlite")]
        Kind::Sqlite => over_sql::sqlite::store_pair(),
    }
}

/// Between two look-ups of one who waits.
#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
const AT_MOST: Duration = Duration::from_millis(250);

/// How long a change may go unnoticed by one who waits for it: a store that other processes
/// write to is asked from time to time.
pub fn notice() -> Duration {
    match kind() {
        Kind::Memory => Duration::ZERO,
        #[cfg(feature = "redis")]
        Kind::Redis => AT_MOST,
        #[cfg(feature = "postgres")]
        Kind::Postgres => AT_MOST,
        #[cfg(feature = "sqlite")]
        Kind::Sqlite => AT_MOST,
    }
}

/// Asserts that a wait on paused time was over at this time, or as soon as so many changes,
/// one after the other, could be noticed.
#[track_caller]
pub fn assert_noticed(took: Duration, at: Duration, changes: u32) {
    assert!(
        took >= at && took <= at + changes * notice(),
        "took {took:?}"
    );
}

/// Asserts that a record, written at this moment or later, was to be kept for this long.
#[track_caller]
pub fn assert_kept(record: Option<Snapshot>, kept: Duration, since: Instant) {
    // A store counts whole milliseconds.
    let spent = since.elapsed() + Duration::from_millis(2);
    let left = record.map_or(Duration::ZERO, |record| record.retention_left);
    assert!(left <= kept && left + spent >= kept, "{left:?} of {kept:?}");
}

/// Asks again for as long as that is the answer, and gives the one that is another.
pub async fn once_not(status: StatusCode, mut ask: impl AsyncFnMut() -> Answer) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask().await;
        if answer.status != status {
            return answer;
        }
        assert!(Instant::now() < deadline, "always {status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asserts that so much time has passed since then, as a store counts it: in whole
/// milliseconds.
#[track_caller]
pub fn assert_passed(time: Duration, since: Instant) {
    let passed = since.elapsed();
    assert!(passed + Duration::from_millis(2) >= time, "only {passed:?}");
}

/// Returns once every call to a store has its answer, without any time passing.
pub async fn answered() {
    while is_asked() {
        tokio::task::yield_now().await;
    }
}

/// Whether a call to a store is under way, on a runtime of one thread.
pub fn is_asked() -> bool {
    #[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
    return asking::is_asked();
    #[cfg(not(any(feature = "redis", feature = "postgres", feature = "sqlite")))]
    false
}

/// What makes the testbed use the store: a database of its own.
pub fn testbed_flags() -> Vec<String> {
    #[allow(unused)]
    let flags =
        |store: &str, url: String| vec![format!("--store={store}"), format!("--store-url={url}")];
    match kind() {
        Kind::Memory => Vec::new(),
        #[cfg(feature = "redis")]
        Kind::Redis => flags("redis", over_redis::database()),
        #[cfg(feature = "postgres")]
        Kind::Postgres => flags("postgres", over_sql::postgres::database()),
        #[cfg(feature = "sqlite")]
        Kind::Sqlite => flags("sqlite", over_sql::sqlite::database()),
    }
}
