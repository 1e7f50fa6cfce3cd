//! PostgreSQL: many nodes share one table, and a handler's rows commit together with the
//! recorded answer.
//!
//! What the server has acknowledged it keeps, over a crash of its own and, with synchronous
//! replication, over the loss of the machine. A handler that writes to the same database can
//! do so in the transaction that records its answer: then the effect and the answer are both
//! there or neither is, whatever dies when, however late. For everything else a handler does,
//! the key is claimed in a transaction of its own, and the answer recorded in another.
//!
//! ```no_run
//! use std::time::Duration;
//! use tower_idempotency::sqlx::postgres::PgPoolOptions;
//! use tower_idempotency::store::{self, PostgresStore};
//! use tower_idempotency::{IdempotencyLayer, by_trusted_header};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = PgPoolOptions::new()
//!     .acquire_timeout(Duration::from_millis(1500))
//!     .after_release(store::postgres::after_release)
//!     .connect("postgres://localhost/shop?options[statement_timeout]=1500")
//!     .await?;
//! let store = PostgresStore::new(pool);
//! store.migrate().await?;
//! for warning in store.check().await? {
//!     eprintln!("postgres: {warning}");
//! }
//! let _purge = store.spawn_purge(Duration::from_secs(60));
//! let layer = IdempotencyLayer::new(store, by_trusted_header("x-account-id"));
//! # let _ = layer;
//! # Ok(())
//! # }
//! ```
//!
//! The pool is yours, of the `sqlx` that this crate re-exports as
//! [`tower_idempotency::sqlx`](crate::sqlx). It has the feature `postgres`; add `sqlx` to your
//! own dependencies for a runtime and TLS.
//!
//! # How it works
//!
//! A record is one row. A claim is one statement, and so is a completion: each is a
//! transaction of its own in one round trip. `READ COMMITTED`, the default, is all that they
//! need; under `REPEATABLE READ` and `SERIALIZABLE` the server refuses some of them in favour
//! of others, and they are run again. The server's clock alone compares. What is in the way
//! of a claim is only read: a replay and a conflict lock nothing and write nothing. Of the
//! records that this process has seen completed of late it asks by a smaller statement first,
//! which only reads.
//!
//! An open transaction that has [fenced](super::TransactionalStore::fence) its run keeps the
//! row locked, and that lock outlasts the lease: a claim does not wait for it, and answers
//! [`InProgress`](super::Claimed::InProgress) after some milliseconds. `complete`, `extend`, `fail`,
//! `release` and `resolve` of that key do wait, until the transaction ends or
//! `statement_timeout` does.
//!
//! Whoever waits for a run looks the record up now and then, at random every 25 ms to
//! 250 ms; that only reads.
//!
//! # Transactions of handlers
//!
//! [`Operation::begin`](crate::Operation::begin) opens one at the isolation level that the
//! connection has by default, `READ COMMITTED` unless you set `default_transaction_isolation`;
//! the record needs no more than that. A handler that needs another level for one route
//! begins its own transaction, and calls [`fence`](crate::Operation::fence) and
//! [`complete_in`](crate::Operation::complete_in) in it. The fence goes first: all
//! transactions then lock the record before anything else, and no two deadlock over it.
//!
//! A serialization failure (`40001`) or a deadlock (`40P01`) has rolled everything back:
//! [`TransactionError`](crate::TransactionError) makes 503 with `Retry-After` of it, the key
//! is released, and the client's next attempt is as good as the first. A handler that would
//! rather try again by itself may drop the transaction and begin another one.
//!
//! A fault that the handler swallows is none the less one: PostgreSQL rolls such a
//! transaction back when it is to commit, and `finish` says so.
//!
//! # The table
//!
//! [`migrate`](PostgresStore::migrate) makes it, and so does what
//! [`schema_sql`](PostgresStore::schema_sql) gives, in migrations of your own.
//!
//! | Column | Type | What it is |
//! |---|---|---|
//! | `id` | `bytea` | SHA-256 of namespace, scope and key, 32 bytes; the primary key |
//! | `fingerprint` | `bytea` | SHA-256 of the request, 32 bytes |
//! | `owner` | `bytea` | drawn at random by every claim, 16 bytes |
//! | `attempt` | `bigint` | counts the runs of this request |
//! | `state` | `smallint` | 0 running, 1 completed, 2 failed, 3 sealed |
//! | `seals` | `boolean` | whether the end of the lease seals the key |
//! | `lease_until` | `timestamptz` | end of the latest lease |
//! | `created_at` | `timestamptz` | first claim of this key |
//! | `expires_at` | `timestamptz` | from then on the row counts as absent |
//! | `purge_after` | `timestamptz` | `expires_at` within an hour; the one indexed column that changes |
//! | `record` | `bytea` | the answer in [its stored form](super::Record::as_bytes), uncompressed; present where `state` is 1 |
//!
//! No statement but a claim changes an indexed column, unless it moves the end of the record
//! by more than an hour: so most updates are heap-only and leave the indexes alone. The table
//! must not be `UNLOGGED`, and cannot be partitioned by time: its key is the `id` alone.
//!
//! The comment on the table tells its layout, `tower-idempotency 1`. A version of this crate
//! that needs another one says so in [`check`](PostgresStore::check), and its change log tells
//! the statements that lead there. Old and new nodes may share a table as long as `check`
//! passes on both.
//!
//! # Retention and purge
//!
//! A row whose time is over counts as absent from that moment on, and is taken by the next
//! claim of its key. Others stay until [`purge_expired`](super::KeyStore::purge_expired)
//! removes them, which [`spawn_purge`](PostgresStore::spawn_purge) calls in batches, on as
//! many nodes at once as you like; a row goes within an hour of its end.
//!
//! # Settings
//!
//! | Where | Setting | Why |
//! |---|---|---|
//! | server | `synchronous_commit = on` (default) | with `off`, a crash loses what was acknowledged just before |
//! | server | `synchronous_standby_names` | with it, so does a fail-over lose nothing |
//! | user or connection | `statement_timeout` of 1500 ms or so | below the layer's [`store_timeout`](crate::IdempotencyLayer::store_timeout) of 2 s: a call that was given up does not linger. It holds for the handler's statements too, where they share the pool |
//! | user or connection | `idle_in_transaction_session_timeout` | a handler that hangs in a transaction does not keep its key for ever |
//! | pool | `acquire_timeout`, 30 s by default | below `store_timeout` too, so that the layer hears what went wrong |
//! | pool | `max_connections` | a transaction of a handler holds one from its begin to its end, and a claim needs one for a moment: more than there are transactions at once, or claims wait behind them |
//! | pool | [`after_release`] | a connection in an open transaction, or a silent one, does not come back to the pool |
//! | pool | `test_before_acquire(false)` | saves a round trip for each call; a connection that broke while it was idle then costs an error |
//! | store | [`table`](PostgresStore::table), [`schema`](PostgresStore::schema) | several services in one database |
//! | store | [`persistent_statements`](PostgresStore::persistent_statements) | for PgBouncer |
//!
//! The user needs `SELECT`, `INSERT`, `UPDATE` and `DELETE` on the table, `USAGE` on its
//! schema, and for [`migrate`](PostgresStore::migrate) `CREATE` there.
//!
//! # PgBouncer
//!
//! In session mode there is nothing to do. In transaction mode a statement that was prepared
//! on one connection of the server meets another one: set
//! [`persistent_statements(false)`](PostgresStore::persistent_statements). Each call is then
//! one message with its values in it, for which PgBouncer needs nothing but
//! `ignore_startup_parameters = extra_float_digits`, which the driver sends, and the server its
//! `bytea_output = hex`, the default. Set `statement_timeout` for the user in the server, since
//! PgBouncer does not pass it on and refuses a URL with `options`. What your own handlers send through the same pool has the
//! same trouble: `sqlx::query(…).persistent(false)`, inside of a transaction. Statement mode
//! cannot work: it knows no transactions.
//!
//! # What it costs
//!
//! Throughput as a share of what stands in the second column, in the same run and through the
//! same pool: 1.10 is a tenth less. `cargo bench --features postgres,sqlite --bench
//! sql_stores`, 2026-11-24, PostgreSQL 15 with `fsync` on, answers of 256 B:
//!
//! | Work | Against | 1 task | 32 tasks |
//! |---|---|---:|---:|
//! | claim and completion | the same statements, sent raw | 0.99 | 0.99 |
//! | replay of what this process has seen completed | `SELECT` of the record by its key, sent raw | 1.20 | 1.09 |
//! | its first replay by another process | the same | 1.49 | 1.24 |
//! | a request in a transaction, with the layer | the handler's own transaction, without | 2.89 | 3.45 |
//! | claim and completion among 2 million records | among 10 thousand | 1.10 | 1.19 |
//! | replay among 2 million records | among 10 thousand | 1.03 | 1.00 |
//!
//! A batch of 1,000 out of 2 million records is purged in 2 to 4 ms. A request in a transaction
//! commits twice, once for its claim, and takes three round trips more than the handler's own.
//!
//! # Requirements
//!
//! PostgreSQL 13 or later. Tested with 15.

mod calls;
mod check;
mod fault;
mod migrate;
mod recent;
mod release;
mod statement;
mod stored;
mod transaction;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

pub use self::check::{CheckError, Finding};
use self::recent::Recent;
pub use self::release::after_release;
use self::statement::{Place, Statements};
use crate::model::error::StoreError;
use crate::store::sql::{InvalidName, Name, PurgeTask};

/// Claims and records in a table of a PostgreSQL database: shared by all nodes of a service,
/// and in one transaction with what a handler writes there. The [module](self) tells what to
/// set.
///
/// Clones are as cheap as those of the pool.
#[derive(Clone)]
pub struct PostgresStore {
    pool: PgPool,
    shape: Arc<Shape>,
}

struct Shape {
    place: Place,
    is_persistent: bool,
    statements: Statements,
    recent: Recent,
}

impl PostgresStore {
    /// A store in the database behind a pool. Nothing is sent until the first call.
    ///
    /// ```no_run
    /// use tower_idempotency::sqlx::PgPool;
    /// use tower_idempotency::store::PostgresStore;
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = PostgresStore::new(PgPool::connect("postgres://localhost/shop").await?);
    /// store.migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(pool: PgPool) -> Self {
        let place = Place {
            schema: None,
            table: "idempotency_record".to_owned(),
        };
        let shape = Shape {
            statements: Statements::new(&place),
            place,
            is_persistent: true,
            recent: Recent::new(),
        };
        Self {
            pool,
            shape: Arc::new(shape),
        }
    }

    /// Default: none, so that the `search_path` decides. The schema that the table is in; it
    /// has to be there already.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::PgPool, store::{InvalidName, PostgresStore}};
    /// # fn options(pool: PgPool) -> Result<(), InvalidName> {
    /// let store = PostgresStore::new(pool).schema("payments")?;
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If it is no name.
    pub fn schema(self, name: &str) -> Result<Self, InvalidName> {
        let schema = Some(Name::new(name)?.as_str().to_owned());
        let table = self.shape.place.table.clone();
        Ok(self.at(Place { schema, table }))
    }

    /// Default: `idempotency_record`. What the table is called. Two services with different
    /// tables share nothing.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::PgPool, store::{InvalidName, PostgresStore}};
    /// # fn options(pool: PgPool) -> Result<(), InvalidName> {
    /// let store = PostgresStore::new(pool).table("payments_idempotency")?;
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If it is no name.
    pub fn table(self, name: &str) -> Result<Self, InvalidName> {
        let schema = self.shape.place.schema.clone();
        let table = Name::new(name)?.as_str().to_owned();
        Ok(self.at(Place { schema, table }))
    }

    /// Default: `true`: each connection prepares a statement once, and only its values travel
    /// from then on. `false` sends each statement as one text with its values in it, for a
    /// proxy that gives each transaction another connection of the server, such as PgBouncer
    /// in transaction mode. A long answer is then twice as long on its way, and what the
    /// server or the driver logs of slow and failed statements has answers in it.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::PgPool, store::PostgresStore};
    /// # fn options(pool: PgPool) {
    /// let store = PostgresStore::new(pool).persistent_statements(false);
    /// # let _ = store;
    /// # }
    /// ```
    #[must_use]
    pub fn persistent_statements(self, persistent: bool) -> Self {
        let place = self.shape.place.clone();
        self.shaped(place, persistent)
    }

    /// Makes the table and its index where they are missing. Any number of nodes may do so at
    /// once, at each start.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::PgPool, store::{PostgresStore, StoreError}};
    /// # async fn run(pool: PgPool) -> Result<(), StoreError> {
    /// PostgresStore::new(pool).migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](super::StoreErrorKind::Misconfigured) where the schema is missing or
    /// the user may not create a table in it, or where there is one of that name which is not
    /// of this crate or of another version of it; and as for any other call.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.create().await
    }

    /// What [`migrate`](Self::migrate) runs, with the names put in, for migrations of your
    /// own: several statements, which do nothing where the table is there.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::PgPool, store::PostgresStore};
    /// # fn print(pool: PgPool) {
    /// println!("{}", PostgresStore::new(pool).schema_sql());
    /// # }
    /// ```
    pub fn schema_sql(&self) -> String {
        self.shape.place.schema_sql()
    }

    /// Looks at how the server, this connection to it and the table are set up: what puts the
    /// promises of the layer at risk, what may be lost, and what to set. For the start of a
    /// service; it writes nothing.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::PgPool, store::PostgresStore};
    /// # async fn run(pool: PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let store = PostgresStore::new(pool);
    /// for finding in store.check().await? {
    ///     eprintln!("postgres: {finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Unfit`](CheckError::Unfit) where the server breaks a promise sooner or later in
    /// ordinary operation: it refuses to write, or the table is missing, of another layout,
    /// `UNLOGGED` or out of bounds. [`Store`](CheckError::Store) where it could not be asked.
    pub async fn check(&self) -> Result<Vec<Finding>, CheckError> {
        self.audit().await
    }

    /// Removes expired records now and then, at random every half of `interval` to all of it,
    /// until the task is dropped. Every node may have one.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_idempotency::{sqlx::PgPool, store::PostgresStore};
    /// # fn start(pool: PgPool) {
    /// let purge = PostgresStore::new(pool).spawn_purge(Duration::from_secs(60));
    /// # drop(purge);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// When the interval is zero, and outside a Tokio runtime.
    #[track_caller]
    pub fn spawn_purge(&self, interval: Duration) -> PurgeTask {
        assert!(
            !interval.is_zero(),
            "spawn_purge waits between two purges: give it an interval, such as a minute"
        );
        PurgeTask::spawn(self.clone(), interval)
    }

    fn at(self, place: Place) -> Self {
        let is_persistent = self.shape.is_persistent;
        self.shaped(place, is_persistent)
    }

    fn shaped(self, place: Place, is_persistent: bool) -> Self {
        let shape = Shape {
            statements: Statements::new(&place),
            place,
            is_persistent,
            recent: Recent::new(),
        };
        Self {
            shape: Arc::new(shape),
            ..self
        }
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("schema", &self.shape.place.schema)
            .field("table", &self.shape.place.table)
            .field("persistent_statements", &self.shape.is_persistent)
            .finish_non_exhaustive()
    }
}
