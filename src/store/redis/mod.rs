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
//! let store = RedisStore::new(client.get_connection_manager().await?);
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
//! `redis` that this crate re-exports as [`tower_idempotency::redis`](crate::redis). It has
//! the features `connection-manager`, `script` and `tokio-comp`; for others, such as
//! `cluster-async`, `sentinel` or TLS, add `redis` to your own dependencies.
//!
//! # How it works
//!
//! A record is one string at one key, so that a cluster needs no hash tags: a head of 81
//! bytes, and then the answer in [its stored form](super::Record::as_bytes). Every call is
//! one script on that key: a claim, a completion, a replay and a conflict take one round
//! trip each. The server's clock alone compares: the key expires when retention ends, the
//! lease ends so much before that, and there is nothing to purge.
//!
//! Whoever waits for a run looks the record up now and then, at random every 25 ms to
//! 250 ms; that only reads.
//!
//! A call whose answer was lost is [`Ambiguous`](super::StoreErrorKind::Ambiguous), and the
//! layer sends it again: the scripts know their owner. A cluster connection sends again by
//! itself and tells of the last time alone; whatever fails there is `Ambiguous`, and so it is
//! with a connection of your own making. Only of a [`MultiplexedConnection`] and a
//! [`ConnectionManager`] is it known that a refused call was not applied, which
//! [`OutagePolicy::RunUnprotected`](crate::OutagePolicy::RunUnprotected) asks for.
//!
//! A full server refuses claims. It renews the leases of what runs, and takes that a run is
//! done, if need be without the answer's body.
//!
//! # Settings
//!
//! | Where | Setting | Why |
//! |---|---|---|
//! | server | `maxmemory-policy noeviction` | an evicted record is a request that runs again; a full server refuses claims instead, with 503 |
//! | server | `appendonly yes` | a restart keeps the records |
//! | server | `appendfsync always` | so does the loss of power; costs a disk write for each claim and completion |
//! | server | `min-replicas-to-write 1`, `min-replicas-max-lag 10` | from Redis 7.0 on, a primary that was cut off stops granting keys after ten seconds |
//! | server | clocks kept in step (NTP) | a lease is measured by the clock of the primary, which changes with it |
//! | store | [`min_replica_acks`](RedisStore::min_replica_acks) | a claim that no replica has is refused |
//! | store | [`inline_limit`](RedisStore::inline_limit) | longer answers are read without a script |
//! | store | [`key_prefix`](RedisStore::key_prefix) | several services on one server; what an ACL may allow |
//! | driver | `ConnectionManager` | connects anew when the connection breaks; a bare `MultiplexedConnection` never does |
//! | driver | its response time-out, 500 ms by default | below the layer's [`store_timeout`](crate::IdempotencyLayer::store_timeout) of 2 s, so that the layer hears what went wrong |
//! | driver | its `number_of_retries`, 6 by default: how often it tries to connect | with 1, a server that is down is known to be down before `store_timeout` ends |
//! | driver | [`TcpSettings::set_user_timeout`](::redis::io::tcp::TcpSettings) | a server that vanishes without a word is left after that long, and not after minutes |
//! | driver | no reading from replicas of a cluster | one that lags takes a run for lost that is not |
//!
//! An ACL needs `+evalsha +eval +get +getrange +set +setrange +strlen +del +unlink +pexpire
//! +pttl` on `~idem1:*`; with [`min_replica_acks`](RedisStore::min_replica_acks) also `+wait`,
//! for [`check`](RedisStore::check) also `+info` and `+cluster|info`, and in a cluster also
//! `+ping +asking +cluster|slots`, which the driver sends.
//!
//! # Cluster
//!
//! ```no_run
//! // redis = { version = "1.8", default-features = false, features = ["cluster-async", "tokio-comp"] }
//! # use std::time::Duration;
//! # use tower_idempotency::store::RedisStore;
//! # async fn run() -> redis::RedisResult<()> {
//! let nodes = ["redis://node-1", "redis://node-2", "redis://node-3"];
//! let client = redis::cluster::ClusterClientBuilder::new(nodes)
//!     // Without one it waits for ever.
//!     .response_timeout(Duration::from_millis(500))
//!     .overall_response_timeout(Some(Duration::from_millis(1500)))
//!     .retries(3)
//!     .min_retry_wait(50)
//!     .build()?;
//! let store = RedisStore::new(client.get_async_connection().await?);
//! # let _ = store;
//! # Ok(())
//! # }
//! ```
//!
//! Slots may move while requests run: the connection follows.
//!
//! # Sentinel
//!
//! The driver asks Sentinel for the primary when it connects, and not again. So either put
//! what follows a fail-over in front (a proxy, or a DNS name that your operator moves) and
//! connect to it with a `ConnectionManager`, or wrap the connection in a `ConnectionLike`
//! of your own that asks Sentinel again after an error: `examples/redis_sentinel.rs` is one.
//! Until then a former primary that knows of its end refuses every claim, which is 503; it
//! may still replay what it has.
//!
//! # What it costs
//!
//! Throughput of the store's code, as a share of what the same scripts reach when they are
//! sent raw over the same connection in the same run: 1.10 would be a tenth less, and below
//! 1 the store is ahead. `cargo bench --features redis --bench stores`, 2026-11-24, Redis
//! 7.0.15, one client thread:
//!
//! | Answer | Tasks | Claim and completion | Replay |
//! |---|---:|---:|---:|
//! | 256 B | 1 | 0.99 | 1.00 |
//! | 256 B | 64 | 1.00 | 1.00 |
//! | 16 KiB | 1 | 0.98 | 0.99 |
//! | 16 KiB | 64 | 0.97 | 0.93 |
//! | 1 MiB | 1 | 0.99 | 0.98 |
//! | 1 MiB | 64 | 0.89 | 0.85 |
//!
//! A record of a 256 B answer takes about 500 B of the server's memory.
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
//!
//! [`MultiplexedConnection`]: ::redis::aio::MultiplexedConnection
//! [`ConnectionManager`]: ::redis::aio::ConnectionManager

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
    /// let store = RedisStore::new(client.get_connection_manager().await?);
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
    /// # use tower_idempotency::{redis::aio::ConnectionManager, store::RedisStore};
    /// # fn options(connection: ConnectionManager) {
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
    /// # use tower_idempotency::{redis::aio::ConnectionManager, store::RedisStore};
    /// # fn options(connection: ConnectionManager) {
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
    /// What fewer have is on the primary and does not count:
    /// [`Ambiguous`](super::StoreErrorKind::Ambiguous). The layer asks once more, then refuses a claim
    /// with 503 and gives it back; a completion or a failure is sent again until enough
    /// replicas have it. A release needs none.
    ///
    /// This narrows the loss in a fail-over, and does not end it: a replica that never had
    /// the write may be promoted, and so may one that lost it in a restart. `WAIT` travels with
    /// the write in one round trip, and holds up what else is sent over the same connection,
    /// one after the other: give the store connections of its own, whose response time-out is
    /// several times this one.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_idempotency::{redis::aio::ConnectionManager, store::RedisStore};
    /// # fn options(connection: ConnectionManager) {
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
    /// may be lost, and what to set. For the start of a service; it writes nothing, and has
    /// no time-out but that of the connection.
    ///
    /// ```no_run
    /// # use tower_idempotency::{redis::aio::ConnectionManager, store::RedisStore};
    /// # async fn run(connection: ConnectionManager) -> Result<(), Box<dyn std::error::Error>> {
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
