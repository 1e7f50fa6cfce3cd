//! `RedisStore` on real servers and clusters: the contract, what it costs, what it stores,
//! when things end, what its audit finds, and its options. Here is what every part of it
//! asks with: claims, answers, and the strings on the server.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod check;
#[cfg(feature = "conformance")]
mod contract;
mod monitor;
mod options;
mod records;
mod round_trips;
mod tap;
mod time;

use std::fmt::Write;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use support::claims::{
    LEASE, RETENTION, acquire, complete, fresh_record, misuse_of, record_of_len, request, retry_of,
    sealing,
};
use support::redis::{RedisServer, shared, unique_prefix};
use tower_idempotency::store::{
    ClaimRequest, Hold, KeyStore, Ownership, Record, RecordId, RedisStore, StoreErrorKind,
};

/// The length of what stands before the answer.
const HEAD_LEN: usize = 81;

/// A store with keys of its own on a server, and a way to the strings behind it.
struct Place<C = MultiplexedConnection> {
    store: RedisStore<C>,
    prefix: String,
    connection: MultiplexedConnection,
}

impl Place {
    /// On the server that all tests share.
    async fn new() -> Self {
        let connection = shared().await.multiplexed().await;
        Self::through(connection.clone(), connection)
    }

    async fn on(server: &RedisServer) -> Self {
        let connection = server.multiplexed().await;
        Self::through(connection.clone(), connection)
    }
}

impl<C> Place<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// The store asks through `asked`.
    fn through(asked: C, connection: MultiplexedConnection) -> Self {
        let prefix = unique_prefix();
        Self {
            store: RedisStore::new(asked).key_prefix(&prefix),
            prefix,
            connection,
        }
    }

    fn with(self, option: impl FnOnce(RedisStore<C>) -> RedisStore<C>) -> Self {
        Self {
            store: option(self.store),
            ..self
        }
    }

    /// Where the server keeps a record.
    fn key(&self, id: &RecordId) -> String {
        key(&self.prefix, id)
    }

    async fn command<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.unwrap()
    }

    /// A command with a record's key as its first argument.
    async fn at<T: redis::FromRedisValue>(&self, name: &str, id: &RecordId) -> T {
        self.command(redis::cmd(name).arg(self.key(id))).await
    }

    async fn raw(&self, id: &RecordId) -> Option<Vec<u8>> {
        self.at("GET", id).await
    }

    /// Puts a string where the record is, with what is left of its time.
    async fn put(&self, id: &RecordId, value: &[u8]) {
        let mut set = redis::cmd("SET");
        set.arg(self.key(id)).arg(value).arg("PX").arg(600_000);
        self.command::<()>(&set).await;
    }

    async fn acquire(&self, request: &ClaimRequest) -> Hold {
        acquire(&self.store, request).await
    }

    /// A run that has failed, or is sealed.
    async fn failed(&self, seal: bool) -> ClaimRequest {
        let request = request();
        let hold = self.acquire(&request).await;
        let failed = self.store.fail(&hold, seal, RETENTION).await;
        assert_eq!(failed.unwrap(), Ownership::Held);
        request
    }

    /// A run that has been completed with that answer.
    async fn completed(&self, record: &Record) -> ClaimRequest {
        let request = request();
        complete(&self.store, &request, record).await;
        request
    }
}

fn key(prefix: &str, id: &RecordId) -> String {
    let mut key = format!("{prefix}1:");
    for byte in id.as_bytes() {
        write!(key, "{byte:02x}").unwrap();
    }
    key
}

async fn refusal(store: &impl KeyStore, request: &ClaimRequest) -> StoreErrorKind {
    store.claim(request).await.unwrap_err().kind()
}
