//! A handler's transaction, and the record in it.

use std::time::Duration;

use sqlx::{Connection, Error, Sqlite, SqliteConnection, Transaction};

use super::SqliteStore;
use super::calls::{returned, statement, statement_of};
use super::fault::{commit_error, is_logic_error, store_error};
use super::stored::Stored;
use crate::model::claim::Hold;
use crate::model::error::StoreError;
use crate::model::record::Record;
use crate::store::{Fence, TransactionalStore};

impl TransactionalStore for SqliteStore {
    type Connection = SqliteConnection;
    type Transaction = Transaction<'static, Sqlite>;

    async fn begin(&self) -> Result<Self::Transaction, StoreError> {
        let mut broken_at_most = self.pool.options().get_max_connections();
        loop {
            match self.pool.begin_with("BEGIN IMMEDIATE").await {
                Err(Error::InvalidSavePointStatement) if broken_at_most > 0 => {
                    broken_at_most -= 1;
                    self.close_if_broken().await?;
                }
                begun => return begun.map_err(store_error),
            }
        }
    }

    async fn fence(
        &self,
        connection: &mut SqliteConnection,
        hold: &Hold,
    ) -> Result<Fence, StoreError> {
        if !is_open(connection).await? {
            return Ok(Fence::NoTransaction);
        }
        let fence = self.fence_in(connection, hold).await;
        kept_open(fence, connection).await
    }

    async fn complete_in(
        &self,
        connection: &mut SqliteConnection,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Fence, StoreError> {
        if !is_open(connection).await? {
            return Ok(Fence::NoTransaction);
        }
        let fence = self.record_in(connection, hold, record, retention).await;
        kept_open(fence, connection).await
    }

    async fn commit(transaction: Self::Transaction) -> Result<(), StoreError> {
        transaction.commit().await.map_err(commit_error)
    }
}

impl SqliteStore {
    /// The driver takes a transaction for open that SQLite has rolled back by itself, and
    /// begins no other one on that connection.
    async fn close_if_broken(&self) -> Result<(), StoreError> {
        let connection = self.pool.acquire().await.map_err(store_error)?;
        match connection.is_in_transaction() {
            true => connection.close().await.map_err(store_error),
            false => Ok(()),
        }
    }

    async fn fence_in(
        &self,
        connection: &mut SqliteConnection,
        hold: &Hold,
    ) -> Result<Fence, StoreError> {
        let fence = statement_of(&self.statements.fence, hold);
        let fenced = fence.execute(&mut *connection).await.map_err(store_error)?;
        match fenced.rows_affected() {
            0 => self.why_not(connection, hold).await,
            _ => Ok(Fence::Held),
        }
    }

    async fn record_in(
        &self,
        connection: &mut SqliteConnection,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Fence, StoreError> {
        let complete = self.complete_statement(hold, record, retention);
        match returned(complete, &mut *connection).await? {
            None => self.why_not(connection, hold).await,
            Some(purge_is_off) => {
                if purge_is_off {
                    let requeue = statement(&self.statements.requeue, &hold.id);
                    requeue.execute(connection).await.map_err(store_error)?;
                }
                Ok(Fence::Held)
            }
        }
    }

    async fn why_not(
        &self,
        connection: &mut SqliteConnection,
        hold: &Hold,
    ) -> Result<Fence, StoreError> {
        let row = statement(&self.statements.lookup, &hold.id)
            .fetch_optional(connection)
            .await
            .map_err(store_error)?;
        let stored = row.as_ref().map(Stored::read).transpose()?;
        Ok(match stored {
            Some(stored) if !stored.has_expired() => Fence::Lost,
            _ => Fence::Unknown,
        })
    }
}

/// A full disk, among others, makes SQLite roll the whole transaction back by itself; what
/// comes after that on the connection would be committed alone, statement by statement. If
/// the handler did not mind that error, its answer must not be recorded without its effect.
///
/// SQLite tells whether a transaction is open by refusing to begin another one.
async fn is_open(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let spoiled = sqlx::query("ROLLBACK TO idempotency_spoiled");
    if spoiled.execute(&mut *connection).await.is_ok() {
        return Ok(false);
    }
    match begin(connection).await {
        Err(error) if is_logic_error(&error) => return Ok(true),
        Err(error) => return Err(store_error(error)),
        Ok(()) => {}
    }
    // The driver, where it believes in a transaction, rolls this one back in its place.
    if connection.is_in_transaction() {
        spoil(connection).await;
    } else {
        let rollback = sqlx::query("ROLLBACK").execute(connection).await;
        rollback.map_err(store_error)?;
    }
    Ok(false)
}

/// After an error that has rolled the transaction back, an empty one for the driver to roll
/// back: it would take the connection for one within a transaction for ever.
async fn kept_open<T>(
    result: Result<T, StoreError>,
    connection: &mut SqliteConnection,
) -> Result<T, StoreError> {
    if result.is_err() && connection.is_in_transaction() && begin(connection).await.is_ok() {
        spoil(connection).await;
    }
    result
}

/// Marks a transaction that is there for the driver alone: nothing is to be recorded in it.
async fn spoil(connection: &mut SqliteConnection) {
    let mark = sqlx::query("SAVEPOINT idempotency_spoiled");
    let _ = mark.execute(connection).await;
}

async fn begin(connection: &mut SqliteConnection) -> Result<(), Error> {
    sqlx::query("BEGIN").execute(connection).await?;
    Ok(())
}
