//! Claims: a read first, and a write for what is free alone.

use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Error, SqlStr, Sqlite, SqliteConnection, SqliteExecutor};
use tokio::sync::{Mutex, MutexGuard};

use super::SqliteStore;
use super::fault::{is_busy, store_error};
use super::stored::{Found, Stored};
use crate::model::claim::{ClaimRequest, Claimed, Lapse};
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::scope::RecordId;
use crate::store::sql::{doubtful, millis};

/// How long a claim waits for a lock that may be a handler's, in milliseconds: many times
/// what a commit takes.
const BRIEFLY: i64 = 40;

/// Claims of one key that do not wait take turns in a process, so that the lock which one of
/// them finds taken is not that of another one. Kept is which key was found locked, and when.
static TURNS: [Mutex<Option<(RecordId, Instant)>>; 64] = [const { Mutex::const_new(None) }; 64];

/// How often a claim finds that others were faster. Each time one of them has come further.
const ROUNDS: usize = 16;

/// What a write that does not wait comes to.
enum Attempted {
    Acquired(u64),
    /// It was not free, as seen under the lock.
    NotFree,
    /// Another connection had the lock all the time.
    Locked,
}

impl SqliteStore {
    pub(super) async fn claim_key(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let mut was_unlocked = false;
        for _ in 0..ROUNDS {
            let stored = self.find(request).await?;
            let is_on_record = stored.is_some();
            let found = stored.map_or(Ok(Found::Free), |stored| stored.claimed(request));
            match found? {
                Found::Answer(claimed) => return Ok(claimed),
                Found::Free => {
                    let claim = self.statements.claim.clone();
                    match acquire(&self.pool, claim, request).await {
                        Ok(Some(attempt)) => return Ok(Claimed::Acquired(request.hold(attempt))),
                        Ok(None) => {}
                        Err(error) if is_on_record => return Err(doubtful(store_error(error))),
                        Err(error) => return Err(store_error(error)),
                    }
                }
                // It had the lock itself, and that run has still not committed.
                Found::AbandonedUnlessLocked { attempt } if was_unlocked => {
                    return Ok(Claimed::Abandoned { attempt });
                }
                Found::FreeUnlessLocked { attempt } | Found::AbandonedUnlessLocked { attempt } => {
                    match self.acquire_at_once(request).await? {
                        Attempted::Acquired(attempt) => {
                            return Ok(Claimed::Acquired(request.hold(attempt)));
                        }
                        Attempted::NotFree => was_unlocked = true,
                        Attempted::Locked => {
                            return Ok(Claimed::InProgress {
                                attempt,
                                lease_left: Duration::ZERO,
                            });
                        }
                    }
                }
            }
        }
        let busy = "others were faster each time";
        Err(StoreError::new(StoreErrorKind::Ambiguous, busy))
    }

    async fn find(&self, request: &ClaimRequest) -> Result<Option<Stored>, StoreError> {
        let row = sqlx::query(self.statements.read.clone())
            .bind(request.id.as_bytes().as_slice())
            .bind(request.fingerprint.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
        row.as_ref().map(Stored::read).transpose()
    }

    /// Without waiting for a handler's transaction. As long as others commit, the lock is
    /// none of those.
    async fn acquire_at_once(&self, request: &ClaimRequest) -> Result<Attempted, StoreError> {
        let came = Instant::now();
        let turn = TURNS[usize::from(request.id.as_bytes()[0]) % TURNS.len()]
            .lock()
            .await;
        // Whoever waited for a turn shares what was found meanwhile.
        if turn.is_some_and(|(id, at)| id == request.id && at >= came) {
            return Ok(Attempted::Locked);
        }
        let found = self.find(request).await.map_err(doubtful)?;
        let found = found.map(|stored| stored.claimed(request)).transpose()?;
        if !matches!(
            found,
            Some(Found::FreeUnlessLocked { .. } | Found::AbandonedUnlessLocked { .. })
        ) {
            return Ok(Attempted::NotFree);
        }
        let connection = self.pool.acquire().await;
        let connection = connection.map_err(|error| doubtful(store_error(error)))?;
        let claim = self.statements.claim.clone();
        // In a task of its own: a connection that came back from a dropped call with another
        // time-out would fail its next user.
        let attempt = tokio::spawn(take_turn(turn, connection, claim, request.clone()));
        match attempt.await {
            Ok(Ok(attempted)) => Ok(attempted),
            Ok(Err(error)) => Err(doubtful(store_error(error))),
            Err(error) => Err(StoreError::new(StoreErrorKind::Ambiguous, error)),
        }
    }
}

async fn take_turn(
    mut turn: MutexGuard<'static, Option<(RecordId, Instant)>>,
    connection: PoolConnection<Sqlite>,
    claim: SqlStr,
    request: ClaimRequest,
) -> Result<Attempted, Error> {
    let id = request.id;
    let attempted = acquire_briefly(connection, claim, request).await?;
    if matches!(attempted, Attempted::Locked) {
        *turn = Some((id, Instant::now()));
    }
    Ok(attempted)
}

async fn acquire_briefly(
    mut connection: PoolConnection<Sqlite>,
    claim: SqlStr,
    request: ClaimRequest,
) -> Result<Attempted, Error> {
    let usual: i64 = pragma(&mut connection, "PRAGMA busy_timeout").await?;
    set_busy_timeout(&mut connection, usual.min(BRIEFLY)).await?;
    let attempted = try_while_others_commit(&mut connection, &claim, &request).await;
    if let Err(error) = set_busy_timeout(&mut connection, usual).await {
        connection.close_on_drop();
        return attempted.or(Err(error));
    }
    attempted
}

async fn try_while_others_commit(
    connection: &mut SqliteConnection,
    claim: &SqlStr,
    request: &ClaimRequest,
) -> Result<Attempted, Error> {
    let mut version: i64 = pragma(connection, "PRAGMA data_version").await?;
    for _ in 0..ROUNDS {
        match acquire(&mut *connection, claim.clone(), request).await {
            Ok(attempt) => return Ok(attempt.map_or(Attempted::NotFree, Attempted::Acquired)),
            Err(error) if is_busy(&error) => {}
            Err(error) => return Err(error),
        }
        let latest = pragma(connection, "PRAGMA data_version").await?;
        if latest == version {
            break;
        }
        version = latest;
    }
    Ok(Attempted::Locked)
}

async fn pragma(connection: &mut SqliteConnection, pragma: &'static str) -> Result<i64, Error> {
    sqlx::query_scalar(pragma).fetch_one(connection).await
}

async fn set_busy_timeout(connection: &mut SqliteConnection, millis: i64) -> Result<(), Error> {
    let set = AssertSqlSafe(format!("PRAGMA busy_timeout = {millis}"));
    sqlx::query(set)
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

/// The attempt that it has become, or none where the key is not free.
///
/// All rows are asked for, though there is but one: the driver takes the first one before
/// the statement has committed, and would then not tell that the commit failed.
async fn acquire(
    executor: impl SqliteExecutor<'_>,
    claim: SqlStr,
    request: &ClaimRequest,
) -> Result<Option<u64>, Error> {
    let seals = request.lapse == Lapse::Seal;
    let lease = millis(request.lease);
    let rows: Vec<SqliteRow> = sqlx::query(claim)
        .bind(request.id.as_bytes().as_slice())
        .bind(request.fingerprint.as_bytes().as_slice())
        .bind(request.owner.as_bytes().as_slice())
        .bind(seals)
        .bind(lease)
        .bind(lease + millis(request.retention))
        .fetch_all(executor)
        .await?;
    let attempt = |row| sqlx::Row::try_get::<i64, usize>(row, 0);
    let attempt = rows.first().map(attempt).transpose()?;
    Ok(attempt.map(|attempt| u64::try_from(attempt).unwrap_or_default()))
}
