//! SQLite: the processes of one machine share one file, and a handler's rows commit together
//! with the recorded answer.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use tower_idempotency::sqlx::sqlite::{
//!     SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
//! };
//! use tower_idempotency::store::SqliteStore;
//! use tower_idempotency::{IdempotencyLayer, by_trusted_header};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let options = SqliteConnectOptions::new()
//!     .filename("payments.db")
//!     .create_if_missing(true)
//!     .journal_mode(SqliteJournalMode::Wal)
//!     .synchronous(SqliteSynchronous::Full)
//!     .busy_timeout(Duration::from_millis(1500));
//! let pool = SqlitePoolOptions::new()
//!     .max_connections(16)
//!     .acquire_timeout(Duration::from_millis(1500))
//!     .connect_with(options)
//!     .await?;
//! let store = SqliteStore::new(pool);
//! store.migrate().await?;
//! for warning in store.check().await? {
//!     eprintln!("sqlite: {warning}");
//! }
//! let _purge = store.spawn_purge(Duration::from_secs(60));
//! let layer = IdempotencyLayer::new(store, by_trusted_header("x-account-id"));
//! # let _ = layer;
//! # Ok(())
//! # }
//! ```
//!
//! The pool is yours, from the `sqlx` that this crate re-exports as
//! [`tower_idempotency::sqlx`](crate::sqlx). It has no runtime: add `sqlx` with the feature
//! `runtime-tokio` to your own dependencies, and whatever else you need of it.
//!
//! # What it guarantees
//!
//! Every clause of the [contract](super::KeyStore#the-contract), over any number of tasks and
//! processes on one file on one machine. What is acknowledged outlives the end of any
//! process, and with `synchronous = FULL` the loss of power.
//!
//! Where the handler writes to the same file, in a transaction that
//! [`Operation::begin`](crate::Operation) opened, its rows and the recorded answer are
//! committed together, or neither is, whatever dies in between and whatever the clock does.
//! What a handler does elsewhere in that time is not undone: hand it the
//! [`child_key`](crate::Operation::child_key).
//!
//! **One writer at a time.** From its begin to its end such a transaction holds the only
//! write lock of the file. Everything else that writes waits for it, a first claim of any key
//! too, for up to `busy_timeout`; replays, conflicts and look-ups do not wait. So nothing slow
//! belongs into one, above all no call to another service. A claim that finds a lease over
//! and the lock taken answers *in progress* within some 50 ms, since the holder of the lease
//! may be at its commit; on a file that others keep busy it may do so for a key that is free,
//! and the next retry gets it.
//!
//! After an error of any statement, drop the transaction. A full disk, among others, makes
//! SQLite roll all of it back by itself, and what a handler then does on the connection is
//! committed at once, statement by statement. Its answer is refused in that case.
//!
//! **Not on a network file system**, where locks and shared memory do not work as SQLite
//! needs them; nothing can find that out. The file, `-wal` and `-shm` belong together: who
//! copies or replaces one of them loses records. Back it up with `VACUUM INTO`, or SQLite's
//! own backup.
//!
//! # Settings
//!
//! | Where | Setting | Why |
//! |---|---|---|
//! | connection | `journal_mode(Wal)` | readers do not wait for writers; it stays with the file |
//! | connection | `synchronous(Full)` | a commit is on the disk when it is acknowledged. With NORMAL the loss of power loses the last ones, and finished requests run again; the death of a process loses nothing with either |
//! | connection | `busy_timeout`, 5 s by default | how long a writer waits for another one, before the call is refused and was not applied. Below the layer's [`store_timeout`](crate::IdempotencyLayer::store_timeout) of 2 s, so that the layer hears of it, and above the longest transaction |
//! | pool | `acquire_timeout`, 30 s by default | the same for a connection |
//! | pool | `max_connections`, 10 by default | each handler's transaction holds one, also while it waits for the lock |
//! | pool | `test_before_acquire(false)` | saves each call a step: a connection to a file does not break while it lies idle |
//! | machine | clock kept in step, by slewing | see below |
//!
//! [`check`](SqliteStore::check) looks at the first three.
//!
//! # Time
//!
//! All comparisons are made by SQLite with the clock of the machine, in whole milliseconds:
//! a time counts from the end of the present millisecond and ends at the beginning of one, so
//! that it lasts as long as was asked for, and up to two milliseconds longer. A clock that is
//! set forward ends leases and records early by as much, and one that is set back ends them
//! late. A run that loses its key to a clock cannot record any more, and in a transaction of
//! its own it has then done nothing.
//!
//! # Tables
//!
//! [`migrate`](SqliteStore::migrate) runs this, which is [`SCHEMA`]:
//!
//! ```sql
#![doc = include_str!("schema.sql")]
//! ```
//!
//! A row has a number of its own, and the id is an index beside it: in a table that is its
//! own index (`WITHOUT ROWID`) every answer of more than a kilobyte would be in the way of
//! those who look for another one.
//!
//! A later version of this crate that needs another layout has a higher version in the last
//! table. `migrate` takes older layouts along, refuses newer ones, and changes nothing where
//! there is nothing to do; then [`check`](SqliteStore::check) says so before a claim fails.
//!
//! # Retention and purge
//!
//! An expired record is gone for every call. Its row stays until the key is used again or a
//! purge removes it: [`spawn_purge`](SqliteStore::spawn_purge) in any of the processes, or in
//! all, or [`purge_expired`](super::KeyStore::purge_expired) from a job of your own. It
//! follows an index that is not corrected for less than an hour, so that a row may stay that
//! much longer than its record, and removes at most 8 MiB of answers in one statement, since all other
//! writers wait meanwhile. The file does not shrink, and its free pages are used again.
//!
//! # What it costs
//!
//! Throughput as a share of what stands in the second column, in the same run and through the
//! same pool: 1.10 is a tenth less. `cargo bench --features postgres,sqlite --bench
//! sql_stores`, 2026-11-24, answers of 256 B:
//!
//! | Work | Against | 1 task | 32 tasks |
//! |---|---|---:|---:|
//! | claim and completion | the same statements, sent raw | 1.01 | 0.90 |
//! | replay | `SELECT` of the record by its key, sent raw | 1.02 | 1.09 |
//! | a request in a transaction, with the layer | the handler's own transaction, without | 3.35 | 0.67 |
//! | claim and completion among 2 million records | among 10 thousand | 1.17 | 1.09 |
//! | replay among 2 million records | among 10 thousand | 1.00 | 1.00 |
//!
//! Writers that meet wait for each other in growing naps: 32 tasks together write about a
//! tenth of what one task writes alone, with the store or without. A batch of 1,000 out of 2
//! million records is purged in 20 to 60 ms, most of it for the pages of the index on `id`,
//! which the records are spread over, and the checkpoint that follows.

mod calls;
mod check;
mod claim;
#[cfg(test)]
mod decisions;
mod fault;
mod migrate;
#[cfg(test)]
mod plans;
mod statements;
mod stored;
mod transaction;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;

pub use self::check::{CheckError, Finding};
use self::statements::Statements;
use super::sql::{InvalidName, Name, PurgeTask};
use crate::model::error::StoreError;

/// What [`SqliteStore::migrate`] runs, for those who migrate by themselves. For another
/// [table](SqliteStore::table), put its name in the place of `idempotency_record`.
pub const SCHEMA: &str = statements::SCHEMA;

/// Claims and records in a SQLite file: shared by the processes of one machine, and kept
/// beside what the handlers write, so that both commit together. The [module](self) tells
/// what that means, and what to set.
///
/// Clones are cheap, and are the same store.
#[derive(Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
    statements: Arc<Statements>,
}

impl SqliteStore {
    /// A store in the database of a pool. Nothing is read or written until the first call.
    ///
    /// ```no_run
    /// use tower_idempotency::sqlx::SqlitePool;
    /// use tower_idempotency::store::SqliteStore;
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = SqlitePool::connect("sqlite://payments.db").await?;
    /// let store = SqliteStore::new(pool);
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(pool: SqlitePool) -> Self {
        Self {
            pool,
            statements: Arc::new(Statements::new(statements::TABLE)),
        }
    }

    /// Default: `idempotency_record`. The name of the table; that of its index is the same
    /// with `_purge`, and that of the table with its version the same with `_layout`.
    ///
    /// Two services with different tables share nothing but the file, and its one writer at
    /// a time.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::SqlitePool, store::{InvalidName, SqliteStore}};
    /// # fn options(pool: SqlitePool) -> Result<(), InvalidName> {
    /// let store = SqliteStore::new(pool).table("payments_idempotency")?;
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When it is not 1 to 48 lower-case ASCII letters, digits and underscores, or begins
    /// with a digit.
    pub fn table(mut self, name: &str) -> Result<Self, InvalidName> {
        let name = Name::new(name)?;
        self.statements = Arc::new(Statements::new(name.as_str()));
        Ok(self)
    }

    /// Creates the tables, or takes those of an earlier version along; where nothing is to be
    /// done, it only reads. Any number of processes may do it at once.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::SqlitePool, store::{SqliteStore, StoreError}};
    /// # async fn run(pool: SqlitePool) -> Result<(), StoreError> {
    /// let store = SqliteStore::new(pool);
    /// store.migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](super::StoreErrorKind::Misconfigured) where the tables are of a later
    /// version than this one; otherwise as for any call that writes.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.bring_up().await
    }

    /// Looks at how the database is set up, as one connection of the pool has it: what puts
    /// the promises of the layer at risk, what may be lost, and what to set. For the start of
    /// a service, after [`migrate`](Self::migrate); it writes nothing, and may wait for
    /// another writer for as long as `busy_timeout`.
    ///
    /// ```no_run
    /// # use tower_idempotency::{sqlx::SqlitePool, store::SqliteStore};
    /// # async fn run(pool: SqlitePool) -> Result<(), Box<dyn std::error::Error>> {
    /// let store = SqliteStore::new(pool);
    /// for finding in store.check().await? {
    ///     eprintln!("sqlite: {finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Unfit`](CheckError::Unfit) where the database breaks a promise sooner or later in
    /// ordinary operation: it is read-only, in memory, without WAL, a busy time-out or the
    /// right tables, or the library is too old.
    /// [`Store`](CheckError::Store) where it could not be asked.
    pub async fn check(&self) -> Result<Vec<Finding>, CheckError> {
        self.audit().await
    }

    /// Removes expired records from time to time, until what it gives is dropped: each time
    /// all there are, at random every half an interval to a whole one.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_idempotency::{sqlx::SqlitePool, store::SqliteStore};
    /// # fn run(pool: SqlitePool) {
    /// let store = SqliteStore::new(pool);
    /// let purge = store.spawn_purge(Duration::from_secs(60));
    /// // For as long as the service runs.
    /// # drop(purge);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn_purge(&self, interval: Duration) -> PurgeTask {
        PurgeTask::spawn(self.clone(), interval)
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("table", &self.statements.table)
            .finish_non_exhaustive()
    }
}
