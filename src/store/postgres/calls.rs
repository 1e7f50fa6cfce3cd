//! Every call of the store: one statement, and what its row means.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Error, Row};
use tokio::time::sleep;

use super::PostgresStore;
use super::fault::{is_passing, not_sent, store_error};
use super::statement::{Statement, Statements, Value};
use super::stored::{self, Found};
use crate::model::claim::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, Lapse, Ownership, Snapshot,
};
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::record::Record;
use crate::model::scope::RecordId;
use crate::store::sql::{doubtful, millis};
use crate::store::{KeyStore, at_random_shorter};

/// In bytes. The server takes 1 GiB at once, and as text a record is twice as long.
const LONGEST_RECORD: usize = 500_000_000;

/// How often a call is run that lost a race, each time after a longer pause.
const TRIES: u32 = 32;

/// A deletion locks a row as a fence does, for a moment: a lock that is met as often is that
/// of an open transaction.
const LOOKS: u32 = 6;

impl PostgresStore {
    pub(super) fn statements(&self) -> &Statements {
        &self.shape.statements
    }

    /// On a connection of the caller's.
    pub(super) async fn ask_on(
        &self,
        connection: &mut PgConnection,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Option<PgRow>, Error> {
        match self.shape.is_persistent {
            true => statement.prepared(values, connection).await,
            false => statement.plain(values, connection).await,
        }
    }

    /// What is more than the server takes in one value would cost the connection.
    pub(super) fn fits(record: &Record) -> Result<(), StoreError> {
        match record.as_bytes().len() <= LONGEST_RECORD {
            true => Ok(()),
            false => Err(StoreError::new(
                StoreErrorKind::Full,
                "a record of more than 500 MB",
            )),
        }
    }

    /// As a transaction of its own, which is run again where the database asks for it.
    async fn ask(
        &self,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Option<PgRow>, StoreError> {
        for tried in 0..TRIES {
            let mut connection = self.pool.acquire().await.map_err(not_sent)?;
            let error = match self.ask_on(&mut connection, statement, values).await {
                Ok(row) => return Ok(row),
                Err(error) => error,
            };
            if !is_passing(&error) || tried + 1 == TRIES {
                return Err(store_error(error));
            }
            drop(connection);
            pause(tried).await;
        }
        Err(contended())
    }

    async fn acts(
        &self,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Ownership, StoreError> {
        Ok(match self.ask(statement, values).await? {
            Some(_) => Ownership::Held,
            None => Ownership::Lost,
        })
    }
}

impl KeyStore for PostgresStore {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let values = [
            Value::Bytes(request.id.as_bytes()),
            Value::Bytes(request.fingerprint.as_bytes()),
            Value::Bytes(request.owner.as_bytes()),
            Value::Number(millis(request.lease)),
            Value::Number(both(request.lease, request.retention)),
            Value::Flag(request.lapse == Lapse::Seal),
        ];
        let Statements {
            read, claim, take, ..
        } = self.statements();
        let recent = &self.shape.recent;
        if recent.has(&request.id)
            && let Some(row) = self.ask(read, &values[..3]).await?
            && let Found::Claimed(claimed) = stored::claimed(&row, request)?
        {
            return Ok(claimed);
        }
        let (mut statement, mut locked) = (claim, 0);
        for tried in 0..TRIES {
            let asked = self.ask(statement, &values).await;
            // No leave to run unprotected: others have been seen at work under that key.
            let asked = asked.map_err(|error| if tried > 0 { doubtful(error) } else { error });
            // Whoever is in the way of a taker may be gone by now.
            statement = claim;
            if let Some(row) = asked? {
                match stored::claimed(&row, request)? {
                    Found::Claimed(claimed) => {
                        if matches!(claimed, Claimed::Completed { .. }) {
                            recent.add(&request.id);
                        }
                        return Ok(claimed);
                    }
                    Found::Free => {
                        statement = take;
                        continue;
                    }
                    Found::Locked { attempt, is_fenced } => {
                        statement = take;
                        locked += u32::from(is_fenced);
                        if locked == LOOKS || tried + 1 == TRIES {
                            return Ok(Claimed::InProgress {
                                attempt,
                                lease_left: Duration::ZERO,
                            });
                        }
                    }
                }
            }
            pause(tried).await;
        }
        Err(doubtful(contended()))
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let values = [
            Value::Bytes(hold.id.as_bytes()),
            Value::Bytes(hold.owner.as_bytes()),
            Value::Number(millis(lease)),
            Value::Number(both(lease, retention)),
        ];
        for tried in 0..LOOKS {
            let row = self.ask(&self.statements().extend, &values).await?;
            match row.as_ref().map(stored::verdict).transpose()? {
                Some(1) => return Ok(Ownership::Held),
                None => return Ok(Ownership::Lost),
                _ => pause(tried).await,
            }
        }
        let locked = "an open transaction has the record locked";
        Err(StoreError::new(StoreErrorKind::NotApplied, locked))
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        Self::fits(record)?;
        let values = [
            Value::Bytes(hold.id.as_bytes()),
            Value::Bytes(hold.owner.as_bytes()),
            Value::Bytes(record.as_bytes()),
            Value::Number(millis(retention)),
            Value::Bytes(hold.fingerprint.as_bytes()),
            Value::Number(stored::attempt(hold)),
            Value::Flag(hold.lapse == Lapse::Seal),
        ];
        let Statements {
            complete, restore, ..
        } = self.statements();
        for tried in 0..TRIES {
            if self.acts(complete, &values[..4]).await? == Ownership::Held {
                self.shape.recent.add(&hold.id);
                return Ok(Completion::Stored);
            }
            // Most often it was stored by an earlier call; or there is no run of its own.
            let row = self.ask(restore, &values).await?;
            match row.as_ref().map(stored::verdict).transpose()? {
                Some(0) => return Ok(Completion::NotOwner),
                Some(1) => return Ok(Completion::Stored),
                Some(2) => return Ok(Completion::Restored),
                _ => pause(tried).await,
            }
        }
        Err(contended())
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let values = [
            Value::Bytes(hold.id.as_bytes()),
            Value::Bytes(hold.owner.as_bytes()),
            Value::Flag(seal),
            Value::Number(millis(retention)),
        ];
        self.acts(&self.statements().fail, &values).await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        let values = [
            Value::Bytes(hold.id.as_bytes()),
            Value::Bytes(hold.owner.as_bytes()),
        ];
        let Statements { free, give_up, .. } = self.statements();
        match self.acts(free, &values).await? {
            Ownership::Held => Ok(Ownership::Held),
            Ownership::Lost => self.acts(give_up, &values).await,
        }
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        let values = [Value::Bytes(id.as_bytes())];
        let row = self.ask(&self.statements().lookup, &values).await?;
        row.as_ref().map(stored::snapshot).transpose()
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let values = [Value::Bytes(id.as_bytes())];
        for tried in 0..2 * LOOKS {
            let row = self.ask(&self.statements().forget, &values).await?;
            match row.as_ref().map(stored::verdict).transpose()? {
                None | Some(0) => return Ok(Forgot::Absent),
                Some(1) => return Ok(Forgot::Forgotten),
                Some(2) => return Ok(Forgot::Live),
                _ => pause(tried).await,
            }
        }
        // An open transaction of its run may yet commit.
        Ok(Forgot::Live)
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        Self::fits(record)?;
        let values = [
            Value::Bytes(id.as_bytes()),
            Value::Bytes(record.as_bytes()),
            Value::Number(millis(retention)),
        ];
        let resolved = self.acts(&self.statements().resolve, &values).await?;
        Ok(resolved == Ownership::Held)
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        let values = [Value::Number(at_most)];
        match self.ask(&self.statements().purge, &values).await? {
            Some(row) => usize::try_from(stored::verdict(&row)?).map_err(|_| contended()),
            None => Ok(0),
        }
    }
}

/// Lease and retention, so that the record outlives the lease by no less than was asked for.
fn both(lease: Duration, retention: Duration) -> i64 {
    millis(lease).saturating_add(millis(retention))
}

/// Every run of it was rolled back, or found that there was nothing to do yet.
fn contended() -> StoreError {
    StoreError::new(
        StoreErrorKind::NotApplied,
        "too many others ask for the same record",
    )
}

async fn pause(tried: u32) {
    let longest = Duration::from_millis(1 << tried.min(5));
    sleep(at_random_shorter(longest)).await;
}

pub(super) fn column<'r, T>(row: &'r PgRow, name: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(name).map_err(store_error)
}
