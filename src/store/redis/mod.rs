//! Redis and Valkey: many nodes share one store.
//!
//! **What Redis can lose, it loses together with its records, and then a finished request
//! runs again.** It acknowledges a write before a replica or a disk has it. A fail-over
//! forgets what the new primary had not received, claims and answers alike, and while two
//! primaries live, both grant the same key. A server that may evict deletes records when
//! memory is short. Without an append-only file a restart forgets what came after the last
//! snapshot; with `appendfsync everysec`, the loss of power forgets up to a second. So: set
//! `maxmemory-policy noeviction` and `appendonly yes`, call [`check`](RedisStore::check) at
//! the start, ask for [replicas](RedisStore::min_replica_acks) where there are any, make the
//! handler hand its [`child_key`](crate::Operation::child_key) on to whoever moves the money,
//! and where a second run is not bearable at all, keep the records in the SQL database that
//! keeps the effects.
//!
//! ```no_run
//! use tower_idempotency::redis::Client;
//! use tower_idempotency::store::RedisStore;
//! use tower_idempotency::{IdempotencyLayer, by_trusted_header};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::open("redis://127.0.0.1:6379")?;
//! // With its feature `connection-manager`, the driver also connects anew by itself.
//! let connection = client.get_multiplexed_async_connection().await?;
//! let store = RedisStore::new(connection);
//! for warning in store.check().await? {
//!     eprintln!("redis: {warning}");
//! }
//! let layer = IdempotencyLayer::new(store, by_trusted_header("x-account-id"));
//! # let _ = layer;
//! # Ok(())
//! # }
//! ```
//!
//! The connection is yours: whatever is `redis::aio::ConnectionLike + Clone`, from the
//! `redis` that this crate re-exports as [`tower_idempotency::redis`](crate::redis). Add
//! `redis` to your own dependencies for the features you need, such as
//! `connection-manager`, `cluster-async`, `sentinel` or TLS.
//!
//! # How it works
//!
//! A record is one string at one key, so that a cluster needs no hash tags: a head of 81
//! bytes, and then the answer in [its stored form](super::Record::as_bytes). Every call is
//! one script on that key: a claim, a completion, a replay and a conflict take one round
//! trip each. The server's clock alone compares. Redis expires the key when retention ends;
//! there is nothing to purge.
//!
//! Whoever waits for a run looks the record up now and then, from every 25 ms to every
//! 250 ms, at random; that only reads.
//!
//! A call whose answer was lost is [`Ambiguous`](super::StoreErrorKind::Ambiguous), and may
//! be sent again: the scripts know their owner. That also covers a driver that
//! retries by itself, as a cluster connection does.
//!
//! # Settings
//!
//! | Where | Setting | Why |
//! |---|---|---|
//! | server | `maxmemory-policy noeviction` | an evicted record is a request that runs again; a full server refuses claims instead, with 503 |
//! | server | `appendonly yes` | a restart keeps the records |
//! | server | `appendfsync always` | so does the loss of power; costs a disk write for each claim and completion |
//! | server | `min-replicas-to-write 1`, `min-replicas-max-lag 10` | a primary that was cut off stops granting keys after ten seconds |
//! | server | clocks kept in step (NTP) | a lease is measured by the clock of the primary, which changes with it |
//! | store | [`min_replica_acks`](RedisStore::min_replica_acks) | a claim that no replica has is refused |
//! | store | [`inline_limit`](RedisStore::inline_limit) | longer answers are read without a script |
//! | store | [`key_prefix`](RedisStore::key_prefix) | several services on one server; what an ACL may allow |
//! | driver | `connection-manager` | connects anew when the connection breaks; a bare `MultiplexedConnection` never does |
//! | driver | response time-out, 500 ms by default | below the layer's [`store_timeout`](crate::IdempotencyLayer::store_timeout) of 2 s, so that the layer hears what went wrong; above the time-out of `min_replica_acks` |
//! | driver | cluster: 16 retries by default | their sum may pass `store_timeout`, after which the call counts as `Ambiguous`; lower it with `ClusterClientBuilder::retries` or `overall_response_timeout` |
//!
//! An ACL needs `+evalsha +eval +get +getrange +set +setrange +strlen +del +unlink +pexpire
//! +pttl` on `~idem1:*`, and for [`check`](RedisStore::check) `+info` and `+cluster|info`;
//! with [`min_replica_acks`](RedisStore::min_replica_acks) also `+wait`.
//!
//! # Cluster
//!
//! ```ignore
//! // redis = { version = "1.8", default-features = false, features = ["cluster-async", "tokio-comp"] }
//! let client = redis::cluster::ClusterClientBuilder::new(["redis://node-1", "redis://node-2"])
//!     .retries(3)
//!     .build()?;
//! let store = RedisStore::new(client.get_async_connection().await?);
//! ```
//!
//! Slots may move while requests run: the connection follows. Reading from replicas may be
//! switched on; only answers above the inline limit are read there, and whatever a replica
//! lacks is read from the primary.
//!
//! # Sentinel
//!
//! The driver asks Sentinel for the primary when it connects, and not again. So either put
//! what follows a fail-over in front (a proxy, or a DNS name that your operator moves) and
//! connect to it with a `ConnectionManager`, or wrap the connection in a `ConnectionLike`
//! of your own that asks Sentinel again after an error: `examples/redis_sentinel.rs` is one.
//! Until then a former primary answers `READONLY`, which is 503 and nothing worse.
//!
//! # When to choose SQL instead
//!
//! Redis is right when a second run after the loss of a server is bearable or made harmless
//! downstream, and when requests are many and short. Where the handler writes to a SQL
//! database anyway and a second run is not bearable, the record belongs into the same
//! transaction as the effect: no order of failures comes between the two then.
//!
//! # Requirements
//!
//! Redis 6.2 or later, or Valkey. Tested with Redis 7.0.

mod calls;
mod check;
mod fault;
mod reply;
mod script;
mod stored;

use std::fmt;
use std::time::Duration;

use redis::aio::ConnectionLike;

pub use self::check::{CheckError, Finding, Risk};
use self::script::{Acks, Keys};

/// Claims and records on a Redis or Valkey server, or on a cluster of them: shared by all
/// nodes of a service, and as durable as the server is. The [module](self) tells what that
/// means, and what to set.
///
/// Clones are as cheap as those of the connection.
#[derive(Clone)]
pub struct RedisStore<C> {
    connection: C,
    keys: Keys,
    inline_limit: usize,
    acks: Option<Acks>,
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// A store on the server behind a connection. Nothing is sent until the first call.
    ///
    /// ```no_run
    /// use tower_idempotency::redis::Client;
    /// use tower_idempotency::store::RedisStore;
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::open("redis://127.0.0.1:6379")?;
    /// let store = RedisStore::new(client.get_multiplexed_async_connection().await?);
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(connection: C) -> Self {
        Self {
            connection,
            keys: Keys::new("idem"),
            inline_limit: 16 * 1024,
            acks: None,
        }
    }

    /// Default: `idem`. What every key begins with; the version of the layout, a colon and
    /// the record's id in hexadecimal digits follow: `idem1:` and 64 digits.
    ///
    /// Two services with different prefixes share nothing. A prefix with a hash tag, such
    /// as `{pay}`, puts all records on one node of a cluster.
    ///
    /// ```no_run
    /// # use tower_idempotency::{redis::aio::MultiplexedConnection, store::RedisStore};
    /// # fn options(connection: MultiplexedConnection) {
    /// let store = RedisStore::new(connection).key_prefix("payments:idem");
    /// # let _ = store;
    /// # }
    /// ```
    #[must_use]
    pub fn key_prefix(mut self, prefix: impl AsRef<str>) -> Self {
        self.keys = Keys::new(prefix.as_ref());
        self
    }

    /// Default: 16 KiB. The longest record, in bytes, that a claim brings along. A longer
    /// one takes a second round trip with a plain `GET`: through a script the server, which
    /// does one thing at a time, would copy it twice more.
    ///
    /// ```no_run
    /// # use tower_idempotency::{redis::aio::MultiplexedConnection, store::RedisStore};
    /// # fn options(connection: MultiplexedConnection) {
    /// let store = RedisStore::new(connection).inline_limit(64 * 1024);
    /// # let _ = store;
    /// # }
    /// ```
    #[must_use]
    pub fn inline_limit(mut self, bytes: usize) -> Self {
        self.inline_limit = bytes;
        self
    }

    /// Default: none. How many replicas have to have a write, and how long they are waited
    /// for, before it counts.
    ///
    /// A claim that fewer have is given back and refused:
    /// [`NotApplied`](super::StoreErrorKind::NotApplied), thus 503. A completion, a failure or a
    /// renewal that fewer have stands, and is [`Ambiguous`](super::StoreErrorKind::Ambiguous), so that
    /// it is sent again until they do.
    ///
    /// This narrows the loss in a fail-over, and does not end it: a replica that never had
    /// the write may be promoted, and so may one that lost it in a restart. `WAIT` travels with
    /// the write in one round trip, and holds up what else is sent over the same connection,
    /// for the time-out at most: give the store a connection of its own, whose response
    /// time-out is longer.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_idempotency::{redis::aio::MultiplexedConnection, store::RedisStore};
    /// # fn options(connection: MultiplexedConnection) {
    /// let store = RedisStore::new(connection).min_replica_acks(1, Duration::from_millis(200));
    /// # let _ = store;
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// When either is zero.
    #[track_caller]
    #[must_use]
    pub fn min_replica_acks(mut self, replicas: u32, timeout: Duration) -> Self {
        assert!(
            replicas > 0 && !timeout.is_zero(),
            "min_replica_acks waits for at least one replica and for some time: without the \
             option nothing is waited for"
        );
        self.acks = Some(Acks { replicas, timeout });
        self
    }

    /// Looks at how the server is set up: what puts the promises of the layer at risk, what
    /// may be lost, and what to set. For the start of a service; it writes nothing.
    ///
    /// ```no_run
    /// # use tower_idempotency::{redis::aio::MultiplexedConnection, store::RedisStore};
    /// # async fn run(connection: MultiplexedConnection) -> Result<(), Box<dyn std::error::Error>> {
    /// let store = RedisStore::new(connection);
    /// for finding in store.check().await? {
    ///     eprintln!("redis: {finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Unfit`](CheckError::Unfit) where the server breaks a promise sooner or later in
    /// ordinary operation: it evicts, is too old, is a replica, or is a cluster that is not
    /// ready or a connection that cannot follow it. [`Store`](CheckError::Store) where it
    /// could not be asked.
    pub async fn check(&self) -> Result<Vec<Finding>, CheckError> {
        self.audit().await
    }

    fn connection(&self) -> C {
        self.connection.clone()
    }

    fn acks(&self) -> Option<&Acks> {
        self.acks.as_ref()
    }
}

impl<C> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("keys", &self.keys)
            .field("inline_limit", &self.inline_limit)
            .field("acks", &self.acks)
            .finish_non_exhaustive()
    }
}
