//! The audit at the start of a service: can this file keep what the layer promises?

use std::fmt;

use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use super::SqliteStore;
use super::fault::{is_busy, is_read_only, store_error};
use super::statements::LAYOUT;
use crate::model::scope::RecordId;
use crate::store::KeyStore;

/// What the milliseconds of its clock need.
const OLDEST: (u32, u32) = (3, 42);

/// The value of `PRAGMA synchronous` from which on a commit is on the disk.
const FULL: i64 = 2;

/// Something that puts a promise of the layer at risk. Shown, it tells what may be lost and
/// what to set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The tables are missing.
    NoTables,
    /// The tables are of another version of this crate.
    OtherLayout {
        /// Theirs.
        found: i64,
        /// The one that is needed.
        needed: i64,
    },
    /// Nothing can be written.
    ReadOnly,
    /// It is in memory.
    InMemory,
    /// Readers and writers are in each other's way.
    NotWal {
        /// Its `journal_mode`.
        mode: String,
    },
    /// A crash in the middle of a commit breaks the file.
    NoJournal {
        /// Its `journal_mode`.
        mode: String,
    },
    /// Commits may be lost with the power.
    NotDurable {
        /// The value of `synchronous`: 0 is OFF, 1 is NORMAL.
        synchronous: i64,
    },
    /// A writer that meets another one fails at once.
    NoBusyTimeout,
    /// The library lacks what the statements need.
    TooOld {
        /// Its version.
        version: String,
    },
}

impl Finding {
    /// Whether it breaks a promise sooner or later in ordinary operation. The other one takes
    /// the loss of power, and may be accepted with open eyes.
    pub const fn is_unfit(&self) -> bool {
        !matches!(self, Self::NotDurable { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTables => f.write_str(
                "the tables are missing: every claim fails; call `migrate`, or run `schema.sql`",
            ),
            Self::OtherLayout { found, needed } => write!(
                f,
                "the tables have layout {found} and this version needs {needed}: claims fail or \
                 go wrong; call `migrate`, or run the version that made them"
            ),
            Self::ReadOnly => f.write_str(
                "the database is read-only: every claim fails; check the permissions of the file \
                 and its folder, and the options `read_only` and `immutable`",
            ),
            Self::InMemory => f.write_str(
                "the database is in memory: it is gone with its connection, which the pool \
                 replaces when it is idle or old or a call was dropped, and several connections \
                 have one each; use a file",
            ),
            Self::NotWal { mode } => write!(
                f,
                "`journal_mode` is `{mode}`: readers and writers wait for each other, and are \
                 refused where both would wait for ever; set it to `wal`"
            ),
            Self::NoJournal { mode } => write!(
                f,
                "`journal_mode` is `{mode}`: a process that dies while it commits may leave a \
                 file that cannot be read; set it to `wal`"
            ),
            Self::NotDurable { synchronous } => write!(
                f,
                "`synchronous` is {synchronous}: the loss of power loses the last commits, and \
                 finished requests run again; set it to FULL"
            ),
            Self::NoBusyTimeout => f.write_str(
                "`busy_timeout` is 0: whoever meets another writer is refused at once; set it to \
                 some seconds",
            ),
            Self::TooOld { version } => write!(
                f,
                "SQLite {version} is older than {}.{}: statements fail; link a later one",
                OLDEST.0, OLDEST.1
            ),
        }
    }
}

/// How [`check`](super::SqliteStore::check) fails.
pub type CheckError = crate::store::CheckError<Finding>;

impl From<sqlx::Error> for CheckError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(store_error(error))
    }
}

impl SqliteStore {
    pub(super) async fn audit(&self) -> Result<Vec<Finding>, CheckError> {
        let mut findings = Vec::new();
        let mut connection = self.pool.acquire().await?;
        findings.extend(old_library(&mut connection).await?);
        findings.extend(journal(&mut connection).await?);
        findings.extend(settings(&mut connection).await?);
        findings.extend(read_only(&mut connection).await?);
        let layout = self.layout(&mut *connection).await;
        match layout? {
            Some(LAYOUT) => {}
            Some(found) => findings.push(Finding::OtherLayout {
                found,
                needed: LAYOUT,
            }),
            None => findings.push(Finding::NoTables),
        }
        drop(connection);
        if findings.iter().any(Finding::is_unfit) {
            return Err(CheckError::Unfit(findings));
        }
        // A statement of the store has to run there at all.
        let nobody = RecordId::from_bytes([0; 32]);
        self.lookup(&nobody).await?;
        Ok(findings)
    }
}

async fn old_library(connection: &mut SqliteConnection) -> sqlx::Result<Option<Finding>> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(connection)
        .await?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok((found < OLDEST).then_some(Finding::TooOld { version }))
}

async fn journal(connection: &mut SqliteConnection) -> sqlx::Result<Option<Finding>> {
    let file: Option<String> =
        sqlx::query_scalar("SELECT file FROM pragma_database_list WHERE name = 'main'")
            .fetch_one(&mut *connection)
            .await?;
    if file.is_none_or(|file| file.is_empty()) {
        return Ok(Some(Finding::InMemory));
    }
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(connection)
        .await?;
    Ok(match mode.as_str() {
        "wal" => None,
        "off" | "memory" => Some(Finding::NoJournal { mode }),
        _ => Some(Finding::NotWal { mode }),
    })
}

async fn settings(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let synchronous = number(connection, "synchronous").await?;
    if synchronous < FULL {
        findings.push(Finding::NotDurable { synchronous });
    }
    if number(connection, "busy_timeout").await? == 0 {
        findings.push(Finding::NoBusyTimeout);
    }
    Ok(findings)
}

/// Only a writer is told, and of a read-only file not before it writes: what it does here is
/// rolled back. What another one has locked can be written.
async fn read_only(connection: &mut SqliteConnection) -> sqlx::Result<Option<Finding>> {
    let written = async {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("CREATE TABLE idempotency_write_probe (number INTEGER)")
            .persistent(false)
            .execute(&mut *transaction)
            .await?;
        transaction.rollback().await
    };
    match written.await {
        Ok(()) => Ok(None),
        Err(error) if is_busy(&error) => Ok(None),
        Err(error) if is_read_only(&error) => Ok(Some(Finding::ReadOnly)),
        Err(error) => Err(error),
    }
}

async fn number(connection: &mut SqliteConnection, name: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar(AssertSqlSafe(format!("PRAGMA {name}")))
        .fetch_one(connection)
        .await
}
