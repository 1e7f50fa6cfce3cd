//! The handler's own transaction.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{PgPool, Postgres, Transaction, raw_sql};
use tokio::time::timeout;

use super::PostgresStore;
use super::fault::{commit_error, is_aborted, not_sent, store_error};
use super::statement::Value;
use super::stored;
use crate::model::claim::Hold;
use crate::model::error::{StoreError, StoreErrorKind};
use crate::model::record::Record;
use crate::store::sql::millis;
use crate::store::{Fence, TransactionalStore};

impl TransactionalStore for PostgresStore {
    type Connection = PgConnection;
    type Transaction = Transaction<'static, Postgres>;

    async fn begin(&self) -> Result<Self::Transaction, StoreError> {
        begin(&self.pool, "BEGIN").await
    }

    async fn fence(&self, connection: &mut PgConnection, hold: &Hold) -> Result<Fence, StoreError> {
        let values = [
            Value::Bytes(hold.id.as_bytes()),
            Value::Bytes(hold.owner.as_bytes()),
        ];
        let fence = &self.statements().fence;
        let row = self.ask_on(connection, fence, &values).await;
        Ok(match row {
            Ok(Some(row)) if stored::verdict(&row)? == 1 => Fence::Held,
            Ok(Some(_)) => Fence::Lost,
            Ok(None) => Fence::Unknown,
            Err(error) if is_aborted(&error) => Fence::NoTransaction,
            Err(error) => return Err(store_error(error)),
        })
    }

    async fn complete_in(
        &self,
        connection: &mut PgConnection,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Fence, StoreError> {
        Self::fits(record)?;
        let values = [
            Value::Bytes(hold.id.as_bytes()),
            Value::Bytes(hold.owner.as_bytes()),
            Value::Bytes(record.as_bytes()),
            Value::Number(millis(retention)),
        ];
        let complete = &self.statements().complete_in;
        match self.ask_on(connection, complete, &values).await {
            Ok(Some(_)) => {
                self.shape.recent.add(&hold.id);
                return Ok(Fence::Held);
            }
            Ok(None) => {}
            Err(error) if is_aborted(&error) => return Ok(Fence::NoTransaction),
            Err(error) => return Err(store_error(error)),
        }
        match self.fence(connection, hold).await? {
            Fence::Held => {}
            other => return Ok(other),
        }
        // It had written nothing before, and the lock has given it a number; or there is no
        // transaction, and the lock is gone again.
        let row = self.ask_on(connection, complete, &values).await;
        match row.map_err(store_error)? {
            Some(_) => Ok(Fence::Held),
            None => Ok(Fence::NoTransaction),
        }
    }

    /// `COMMIT` of a transaction that a failed statement has aborted answers `ROLLBACK`,
    /// which the driver takes for success. A query before it in the same message fails there
    /// instead, and costs no round trip. `AND CHAIN` leaves the driver the open transaction
    /// that it believes in: it rolls it back when it takes the connection back, while nobody
    /// waits.
    async fn commit(mut transaction: Self::Transaction) -> Result<(), StoreError> {
        let commit = raw_sql("SELECT 1; COMMIT AND CHAIN");
        commit
            .execute(&mut *transaction)
            .await
            .map_err(commit_error)?;
        Ok(())
    }
}

/// In a task of its own: where a `BEGIN` is given up half-way, the driver leaves the
/// connection in a transaction that it does not know of, and the pool hands it on.
pub(super) async fn begin(
    pool: &PgPool,
    statement: &'static str,
) -> Result<Transaction<'static, Postgres>, StoreError> {
    // It touches nothing: a server that has not answered it by then is not there, and the
    // connection is to be missed no longer.
    let at_most = pool.options().get_acquire_timeout() + Duration::from_secs(10);
    let pool = pool.clone();
    let begun = timeout(at_most, async move { pool.begin_with(statement).await });
    match tokio::spawn(begun).await {
        Ok(Ok(begun)) => begun.map_err(not_sent),
        Ok(Err(error)) => Err(StoreError::new(StoreErrorKind::NotApplied, error)),
        Err(error) => Err(StoreError::new(StoreErrorKind::NotApplied, error)),
    }
}
