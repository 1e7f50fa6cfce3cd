//! What the tests of the Redis store stand on does what it says: servers that are killed,
//! restarted, stopped and replicated, clusters that move slots, and a network that fails.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod network;
mod servers;

use redis::aio::ConnectionLike;
use redis::{Cmd, RedisResult};

/// The new value of a counter.
async fn increment(connection: &mut impl ConnectionLike, key: &str) -> RedisResult<u64> {
    redis::cmd("INCR").arg(key).query_async(connection).await
}

async fn read(connection: &mut impl ConnectionLike, key: &str) -> Option<u64> {
    get(key).query_async(connection).await.unwrap()
}

fn get(key: &str) -> Cmd {
    redis::cmd("GET").arg(key).take()
}
