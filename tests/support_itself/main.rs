//! What the tests of the stores on a server stand on does what it says: servers that are
//! killed, restarted, stopped and replicated, clusters that move slots, and a network that
//! fails.
#![cfg(any(feature = "redis", feature = "postgres"))]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "redis")]
mod cluster;
#[cfg(feature = "redis")]
mod network;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod servers;

#[cfg(feature = "redis")]
use counter::{get, increment, read};

#[cfg(feature = "redis")]
mod counter {
    use redis::aio::ConnectionLike;
    use redis::{Cmd, RedisResult};

    /// The new value of a counter.
    pub(super) async fn increment(
        connection: &mut impl ConnectionLike,
        key: &str,
    ) -> RedisResult<u64> {
        redis::cmd("INCR").arg(key).query_async(connection).await
    }

    pub(super) async fn read(connection: &mut impl ConnectionLike, key: &str) -> Option<u64> {
        get(key).query_async(connection).await.unwrap()
    }

    pub(super) fn get(key: &str) -> Cmd {
        redis::cmd("GET").arg(key).take()
    }
}
