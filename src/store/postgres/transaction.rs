//! The handler's own transaction.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Postgres, Transaction, raw_sql};

use super::PostgresStore;
use super::fault::{not_sent, store_error};
use super::statement::Value;
use super::stored;
use crate::model::claim::Hold;
use crate::model::error::StoreError;
use crate::model::record::Record;
use crate::store::sql::millis;
use crate::store::{Fence, TransactionalStore};

impl TransactionalStore for PostgresStore {
    type Connection = PgConnection;
    type Transaction = Transaction<'static, Postgres>;

    async fn begin(&self) -> Result<Self::Transaction, StoreError> {
        self.pool.begin().await.map_err(not_sent)
    }

    async fn fence(&self, connection: &mut PgConnection, hold: &Hold) -> Result<Fence, StoreError> {
        let values = [
            Value::Bytes(hold.id.as_bytes()),
            Value::Bytes(hold.owner.as_bytes()),
        ];
        let fence = &self.statements().fence;
        let row = self.ask_on(connection, fence, &values).await;
        Ok(match row.map_err(store_error)? {
            Some(row) if stored::verdict(&row)? == 1 => Fence::Held,
            Some(_) => Fence::Lost,
            None => Fence::Unknown,
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
        let row = self.ask_on(connection, complete, &values).await;
        if row.map_err(store_error)?.is_some() {
            return Ok(Fence::Held);
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
            .map_err(store_error)?;
        Ok(())
    }
}
