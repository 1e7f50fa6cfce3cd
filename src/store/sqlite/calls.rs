//! Every call of the store but claims: one statement in most cases, or several of which
//! each is one whole step.

use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Row, SqlStr, Sqlite, SqliteExecutor};

use super::SqliteStore;
use super::fault::store_error;
use super::stored::{FAILED, SEALED, Stored};
use crate::model::claim::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, Lapse, Ownership, Snapshot,
};
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::record::Record;
use crate::model::scope::RecordId;
use crate::store::KeyStore;
use crate::store::sql::millis;

/// How many bytes of answers one statement removes at most, with all other writers waiting.
const PURGED_AT_ONCE: i64 = 8 * 1024 * 1024;

/// How often a completion may find that the record was lost and came back meanwhile.
const ROUNDS: usize = 4;

pub(super) type Statement = Query<'static, Sqlite, SqliteArguments>;

pub(super) fn statement(sql: &SqlStr, id: &RecordId) -> Statement {
    sqlx::query(sql.clone()).bind(id.as_bytes().to_vec())
}

pub(super) fn statement_of(sql: &SqlStr, hold: &Hold) -> Statement {
    statement(sql, &hold.id).bind(hold.owner.as_bytes().to_vec())
}

/// The first column of its row, if it gives one. All rows are asked for: the driver takes
/// the first one before the statement has committed, and would then not tell that the
/// commit failed.
pub(super) async fn returned(
    statement: Statement,
    executor: impl SqliteExecutor<'_>,
) -> Result<Option<bool>, StoreError> {
    let rows = statement.fetch_all(executor).await.map_err(store_error)?;
    let first = rows.first().map(|row| row.try_get(0)).transpose();
    first.map_err(store_error)
}

impl SqliteStore {
    /// Whether it changed the record. One that has come to end at quite another time gets
    /// another place in the purge, which is no part of its state.
    async fn change(&self, change: Statement, id: &RecordId) -> Result<bool, StoreError> {
        match returned(change, &self.pool).await? {
            None => Ok(false),
            Some(purge_is_off) => {
                if purge_is_off {
                    let requeue = statement(&self.statements.requeue, id);
                    // Done is done: it is only purged late.
                    let _ = requeue.execute(&self.pool).await;
                }
                Ok(true)
            }
        }
    }

    async fn affects(&self, statement: Statement) -> Result<bool, StoreError> {
        let done = statement.execute(&self.pool).await.map_err(store_error)?;
        Ok(done.rows_affected() > 0)
    }

    async fn stored(&self, id: &RecordId) -> Result<Option<Stored>, StoreError> {
        let row = statement(&self.statements.lookup, id)
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
        let stored = row.as_ref().map(Stored::read).transpose()?;
        Ok(stored.filter(|stored| !stored.has_expired()))
    }

    async fn restore(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let attempt = i64::try_from(hold.attempt).unwrap_or(i64::MAX);
        let restore = statement(&self.statements.restore, &hold.id)
            .bind(hold.fingerprint.as_bytes().to_vec())
            .bind(hold.owner.as_bytes().to_vec())
            .bind(attempt)
            .bind(hold.lapse == Lapse::Seal)
            .bind(record.as_bytes().to_vec())
            .bind(millis(retention));
        Ok(returned(restore, &self.pool).await?.is_some())
    }

    pub(super) fn complete_statement(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Statement {
        statement_of(&self.statements.complete, hold)
            .bind(record.as_bytes().to_vec())
            .bind(millis(retention))
    }
}

impl KeyStore for SqliteStore {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        self.claim_key(request).await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let extend = statement_of(&self.statements.extend, hold)
            .bind(millis(lease))
            .bind(millis(lease) + millis(retention));
        self.change(extend, &hold.id).await.map(ownership)
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        for _ in 0..ROUNDS {
            let complete = self.complete_statement(hold, record, retention);
            if self.change(complete, &hold.id).await? {
                return Ok(Completion::Stored);
            }
            match self.stored(&hold.id).await? {
                None if self.restore(hold, record, retention).await? => {
                    return Ok(Completion::Restored);
                }
                Some(stored) if stored.is_completed_by(&hold.owner) => {
                    return Ok(Completion::Stored);
                }
                // Claimed by the same owner again, or by anybody, since it was looked for.
                Some(stored) if stored.is_run_of(&hold.owner) => {}
                None => {}
                Some(_) => return Ok(Completion::NotOwner),
            }
        }
        let busy = "the record comes and goes";
        Err(StoreError::new(StoreErrorKind::Ambiguous, busy))
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let fail = statement_of(&self.statements.fail, hold)
            .bind(if seal { SEALED } else { FAILED })
            .bind(millis(retention));
        self.change(fail, &hold.id).await.map(ownership)
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        // The attempt of an owner does not change: what the first statement leaves alone,
        // the second one finds as it was.
        let first = statement_of(&self.statements.release_first, hold);
        let later = statement_of(&self.statements.release_later, hold);
        let held = self.affects(first).await? || self.affects(later).await?;
        Ok(ownership(held))
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        let stored = self.stored(id).await?;
        stored.map(Stored::snapshot).transpose()
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let forget = statement(&self.statements.forget, id);
        match returned(forget, &self.pool).await? {
            Some(true) => Ok(Forgot::Forgotten),
            // It had expired.
            Some(false) => Ok(Forgot::Absent),
            None => Ok(match self.stored(id).await? {
                Some(_) => Forgot::Live,
                None => Forgot::Absent,
            }),
        }
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let resolve = statement(&self.statements.resolve, id)
            .bind(record.as_bytes().to_vec())
            .bind(millis(retention));
        self.change(resolve, id).await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        let mut purged = 0;
        while purged < at_most {
            let left = i64::try_from(at_most - purged).unwrap_or(i64::MAX);
            let done = sqlx::query(self.statements.purge.clone())
                .bind(left)
                .bind(PURGED_AT_ONCE)
                .execute(&self.pool)
                .await
                .map_err(store_error)?;
            if done.rows_affected() == 0 {
                break;
            }
            purged += usize::try_from(done.rows_affected()).unwrap_or(usize::MAX);
        }
        Ok(purged)
    }
}

fn ownership(held: bool) -> Ownership {
    match held {
        true => Ownership::Held,
        false => Ownership::Lost,
    }
}
