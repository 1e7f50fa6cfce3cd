//! The statements that the store sends, each with the name of its table.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The layout that [`SCHEMA`] brings about.
pub(super) const LAYOUT: i64 = 1;

pub(super) const SCHEMA: &str = include_str!("schema.sql");

/// What the table is called where nobody says otherwise.
pub(super) const TABLE: &str = "idempotency_record";

/// Whole milliseconds of the machine's clock, rounded down; the same throughout a statement,
/// and read when it has the lock that it needs. Whatever is to end later is counted from one
/// millisecond more, so that nothing ends early.
const NOW: &str = "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)";

/// A running record of an owner. `?1` is the id, `?2` the owner.
const HELD: &str = "id = ?1 AND owner = ?2 AND state = 0 AND expires_at > $NOW";

/// When the purge looks at a record, where it has come to be far from its end.
const PURGE_IS_OFF: &str = "abs(purge_after - expires_at) > 3600000";

#[derive(Debug)]
pub(super) struct Statements {
    pub(super) table: Box<str>,
    pub(super) schema: SqlStr,
    pub(super) layout: SqlStr,
    /// id, fingerprint
    pub(super) read: SqlStr,
    /// id
    pub(super) lookup: SqlStr,
    /// id, fingerprint, owner, seals, lease, lease and retention
    pub(super) claim: SqlStr,
    /// id, owner, lease, lease and retention
    pub(super) extend: SqlStr,
    /// id, owner, record, retention
    pub(super) complete: SqlStr,
    /// id, fingerprint, owner, attempt, seals, record, retention
    pub(super) restore: SqlStr,
    /// id, owner, state, retention
    pub(super) fail: SqlStr,
    /// id, owner
    pub(super) release_first: SqlStr,
    /// id, owner
    pub(super) release_later: SqlStr,
    /// id
    pub(super) forget: SqlStr,
    /// id, record, retention
    pub(super) resolve: SqlStr,
    /// id
    pub(super) requeue: SqlStr,
    /// at most, bytes
    pub(super) purge: SqlStr,
    /// id, owner
    pub(super) fence: SqlStr,
}

impl Statements {
    /// The name has been checked: it is put in as it is.
    pub(super) fn new(table: &str) -> Self {
        let of = |sql: &str| -> SqlStr {
            let sql = sql
                .replace("$HELD", HELD)
                .replace("$PURGE_IS_OFF", PURGE_IS_OFF)
                .replace("$NOW", NOW)
                .replace("$TABLE", table);
            AssertSqlSafe(Arc::<str>::from(sql)).into_sql_str()
        };
        Self {
            table: table.into(),
            schema: of(&SCHEMA.replace(TABLE, "$TABLE")),
            layout: of("SELECT max(version) FROM $TABLE_layout"),
            read: of("SELECT fingerprint, owner, attempt, state, seals,
                    lease_until - $NOW, expires_at - $NOW,
                    CASE WHEN state = 1 AND fingerprint = ?2 THEN record END
                FROM $TABLE WHERE id = ?1"),
            lookup: of("SELECT fingerprint, owner, attempt, state, seals,
                    lease_until - $NOW, expires_at - $NOW, record
                FROM $TABLE WHERE id = ?1"),
            claim: of(CLAIM),
            extend: of("UPDATE $TABLE SET lease_until = $NOW + 1 + ?3,
                    expires_at = max(expires_at, $NOW + 1 + ?4)
                WHERE $HELD RETURNING $PURGE_IS_OFF"),
            complete: of(
                "UPDATE $TABLE SET state = 1, record = ?3, expires_at = $NOW + 1 + ?4
                WHERE $HELD RETURNING $PURGE_IS_OFF",
            ),
            restore: of(RESTORE),
            fail: of("UPDATE $TABLE SET state = ?3, expires_at = $NOW + 1 + ?4
                WHERE $HELD RETURNING $PURGE_IS_OFF"),
            release_first: of("DELETE FROM $TABLE WHERE $HELD AND attempt = 1"),
            release_later: of("UPDATE $TABLE SET state = 2 WHERE $HELD AND attempt > 1"),
            forget: of("DELETE FROM $TABLE
                WHERE id = ?1 AND NOT (state = 0 AND lease_until > $NOW AND expires_at > $NOW)
                RETURNING expires_at > $NOW"),
            resolve: of(
                "UPDATE $TABLE SET state = 1, record = ?2, expires_at = $NOW + 1 + ?3
                WHERE id = ?1 AND expires_at > $NOW
                  AND (state = 3 OR (state = 0 AND seals AND lease_until <= $NOW))
                RETURNING $PURGE_IS_OFF",
            ),
            requeue: of("UPDATE $TABLE SET purge_after = expires_at
                WHERE id = ?1 AND $PURGE_IS_OFF"),
            purge: of(PURGE),
            // Changes nothing, and has the write lock from then on.
            fence: of("UPDATE $TABLE SET owner = owner WHERE $HELD"),
        }
    }
}

/// Everything that makes a key free stands in it, whatever was read before. No row: it is
/// not free.
const CLAIM: &str = "INSERT INTO $TABLE AS held
    (id, fingerprint, owner, attempt, state, seals, lease_until, created_at, expires_at,
     purge_after)
VALUES (?1, ?2, ?3, 1, 0, ?4, $NOW + 1 + ?5, $NOW, $NOW + 1 + ?6, $NOW + 1 + ?6)
ON CONFLICT (id) DO UPDATE SET
    attempt = CASE
        WHEN held.expires_at <= $NOW THEN 1
        WHEN held.state = 0 AND held.owner = excluded.owner THEN held.attempt
        ELSE held.attempt + 1 END,
    created_at = iif(held.expires_at <= $NOW, excluded.created_at, held.created_at),
    expires_at = CASE
        WHEN held.state = 0 AND held.owner = excluded.owner
        THEN max(held.expires_at, excluded.expires_at)
        ELSE excluded.expires_at END,
    purge_after = excluded.purge_after,
    fingerprint = excluded.fingerprint, owner = excluded.owner, state = 0,
    seals = excluded.seals, lease_until = excluded.lease_until, record = NULL
WHERE held.expires_at <= $NOW
   OR (held.fingerprint = excluded.fingerprint
       AND (held.state = 2
            OR (held.state = 0
                AND (held.owner = excluded.owner
                     OR (NOT held.seals AND held.lease_until <= $NOW)))))
RETURNING attempt";

/// No row: there is a record that has not expired.
const RESTORE: &str = "INSERT INTO $TABLE AS held
    (id, fingerprint, owner, attempt, state, seals, lease_until, created_at, expires_at,
     purge_after, record)
VALUES (?1, ?2, ?3, ?4, 1, ?5, $NOW, $NOW, $NOW + 1 + ?7, $NOW + 1 + ?7, ?6)
ON CONFLICT (id) DO UPDATE SET
    fingerprint = excluded.fingerprint, owner = excluded.owner, attempt = excluded.attempt,
    state = 1, seals = excluded.seals, lease_until = excluded.lease_until,
    created_at = excluded.created_at, expires_at = excluded.expires_at,
    purge_after = excluded.purge_after, record = excluded.record
WHERE held.expires_at <= $NOW
RETURNING 1";

/// Every page of a long answer has to be read to free it, and all other writers wait: so
/// many bytes at a time, and at least one record.
const PURGE: &str = "DELETE FROM $TABLE WHERE rowid IN (
    SELECT row FROM (
        SELECT row, size, sum(size) OVER (ORDER BY purge_after, row) AS bytes FROM (
            SELECT rowid AS row, purge_after, ifnull(length(record), 0) AS size
            FROM $TABLE INDEXED BY $TABLE_purge
            WHERE purge_after <= $NOW AND expires_at <= $NOW
            ORDER BY purge_after LIMIT ?1))
    WHERE bytes - size <= ?2)";
