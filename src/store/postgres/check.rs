//! The audit at the start of a service: can this server keep what the layer promises?

use std::fmt;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, raw_sql};

use super::PostgresStore;
use super::calls::column;
use super::fault::{not_sent, store_error};
use super::migrate::{self, Found, LAYOUT};
use crate::model::error::{StoreError, StoreErrorKind};

/// The layer's own time-out by default, in milliseconds.
const STORE_TIMEOUT: i64 = 2000;

/// What puts a promise at risk. Shown, it tells what may be lost and what to set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The server is a standby: it refuses every claim.
    Standby,
    /// Transactions are read only by default: every claim is refused.
    ReadOnly,
    /// There is no table.
    NoTable,
    /// There is a table of that name, and it was not made by this crate.
    ForeignTable,
    /// The table was made by another version of this crate.
    OtherLayout {
        /// The layout that it has.
        found: u32,
    },
    /// The table is `UNLOGGED`: a crash of the server empties it.
    Unlogged,
    /// The user may not do with the table what the store has to.
    Forbidden {
        /// What that is: `SELECT`, `INSERT`, `UPDATE` or `DELETE`.
        privilege: &'static str,
    },
    /// `synchronous_commit` is `off`: a crash loses what was acknowledged just before.
    LateCommit,
    /// `fsync` is `off`: the loss of power may destroy the database.
    NoSync,
    /// `full_page_writes` is `off`: the loss of power may destroy pages.
    NoFullPages,
    /// `statement_timeout` is longer than the layer waits, or there is none.
    LongStatements {
        /// What it is, in milliseconds; 0 is none.
        timeout: i64,
    },
}

impl Finding {
    /// Whether it breaks a promise sooner or later in ordinary operation. The other ones
    /// take a failure, and may be accepted with open eyes.
    pub const fn is_unfit(&self) -> bool {
        !matches!(
            self,
            Self::LateCommit | Self::NoSync | Self::NoFullPages | Self::LongStatements { .. }
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standby => f.write_str(
                "the server is a standby: it refuses to write, so every claim fails, and what it \
                 reads may be stale; connect to the primary (`target_session_attrs`, a proxy or a \
                 name that follows a fail-over)",
            ),
            Self::ReadOnly => f.write_str(
                "transactions are read only by default, so every claim fails; set \
                 `default_transaction_read_only = off` for this user",
            ),
            Self::NoTable => f.write_str(
                "there is no table; run `PostgresStore::migrate`, or what \
                 `PostgresStore::schema_sql` gives, and look at the `search_path` if you did",
            ),
            Self::ForeignTable => f.write_str(
                "there is a table of that name which was not made by this crate, or whose comment \
                 was changed; give the store another name for its own",
            ),
            Self::OtherLayout { found } => write!(
                f,
                "the table has layout {found}, and this version of the crate needs layout \
                 {LAYOUT}; the documentation of `store::postgres` tells how to come from one to \
                 the other"
            ),
            Self::Unlogged => f.write_str(
                "the table is UNLOGGED: a crash of the server empties it, and every finished \
                 request runs again; run `ALTER TABLE … SET LOGGED`",
            ),
            Self::Forbidden { privilege } => write!(
                f,
                "the user has no right to {privilege}; run `GRANT {privilege} ON …`"
            ),
            Self::LateCommit => f.write_str(
                "`synchronous_commit` is `off` for this connection: a crash of the server loses \
                 what it acknowledged last, and finished requests run again; set it to `on`",
            ),
            Self::NoSync => f.write_str(
                "`fsync` is `off`: the loss of power may destroy the database; set it to `on`",
            ),
            Self::NoFullPages => f.write_str(
                "`full_page_writes` is `off`: the loss of power may destroy pages of it; set it \
                 to `on` unless the file system writes them whole",
            ),
            Self::LongStatements { timeout: 0 } => f.write_str(
                "there is no `statement_timeout`: a call that the layer has given up may be \
                 applied much later; set one below the layer's `store_timeout`, such as \
                 `?options[statement_timeout]=1500` in the URL, or with `ALTER ROLE … SET`",
            ),
            Self::LongStatements { timeout } => write!(
                f,
                "`statement_timeout` is {timeout} ms: a call that the layer has given up may be \
                 applied later; set it below the layer's `store_timeout`"
            ),
        }
    }
}

/// How [`check`](super::PostgresStore::check) fails.
pub type CheckError = crate::store::CheckError<Finding>;

impl PostgresStore {
    pub(super) async fn audit(&self) -> Result<Vec<Finding>, CheckError> {
        let mut findings = self.findings().await?;
        // What has to be mended is read first.
        findings.sort_by_key(|finding| !finding.is_unfit());
        match findings.iter().any(Finding::is_unfit) {
            true => Err(CheckError::Unfit(findings)),
            false => Ok(findings),
        }
    }

    async fn findings(&self) -> Result<Vec<Finding>, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(not_sent)?;
        let server = row(
            &mut connection,
            "SELECT pg_is_in_recovery() AS is_standby, \
             current_setting('transaction_read_only') = 'on' AS is_read_only, \
             current_setting('synchronous_commit') = 'off' AS commits_late, \
             current_setting('fsync') = 'off' AS has_no_sync, \
             current_setting('full_page_writes') = 'off' AS has_no_full_pages, \
             (SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout') \
             AS statement_timeout",
        );
        let server = server.await?;
        if column(&server, "is_standby")? {
            return Ok(vec![Finding::Standby]);
        }
        let mut findings = Vec::new();
        let settings = [
            ("is_read_only", Finding::ReadOnly),
            ("commits_late", Finding::LateCommit),
            ("has_no_sync", Finding::NoSync),
            ("has_no_full_pages", Finding::NoFullPages),
        ];
        for (name, finding) in settings {
            if column(&server, name)? {
                findings.push(finding);
            }
        }
        let timeout = column(&server, "statement_timeout")?;
        if !(1..=STORE_TIMEOUT).contains(&timeout) {
            findings.push(Finding::LongStatements { timeout });
        }
        findings.extend(self.findings_of_table(&mut connection).await?);
        Ok(findings)
    }

    async fn findings_of_table(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<Finding>, StoreError> {
        let place = &self.shape.place;
        let found = migrate::find(connection, place)
            .await
            .map_err(store_error)?;
        match found {
            Found::Nothing => return Ok(vec![Finding::NoTable]),
            Found::Foreign => return Ok(vec![Finding::ForeignTable]),
            Found::Layout(LAYOUT) => {}
            Found::Layout(found) => return Ok(vec![Finding::OtherLayout { found }]),
        }
        let query = format!(
            "SELECT relpersistence = 'u' AS is_unlogged, \
             has_table_privilege(oid, 'SELECT') AS may_select, \
             has_table_privilege(oid, 'INSERT') AS may_insert, \
             has_table_privilege(oid, 'UPDATE') AS may_update, \
             has_table_privilege(oid, 'DELETE') AS may_delete \
             FROM pg_class WHERE oid = to_regclass('{}')",
            place.qualified()
        );
        let table = row(connection, &query).await?;
        let mut findings = Vec::new();
        if column(&table, "is_unlogged")? {
            findings.push(Finding::Unlogged);
        }
        let rights = [
            ("may_select", "SELECT"),
            ("may_insert", "INSERT"),
            ("may_update", "UPDATE"),
            ("may_delete", "DELETE"),
        ];
        for (name, privilege) in rights {
            if !column::<bool>(&table, name)? {
                findings.push(Finding::Forbidden { privilege });
            }
        }
        Ok(findings)
    }
}

async fn row(connection: &mut PgConnection, sql: &str) -> Result<PgRow, StoreError> {
    let rows = raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await;
    let mut rows = rows.map_err(store_error)?;
    rows.pop().ok_or_else(|| StoreErrorKind::Corrupt.into())
}
