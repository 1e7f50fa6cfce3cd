//! The tables, and the version of their layout.

use sqlx::{Error, SqliteExecutor};

use super::SqliteStore;
use super::fault::store_error;
use super::statements::LAYOUT;
use crate::model::error::{StoreError, StoreErrorKind};

impl SqliteStore {
    pub(super) async fn bring_up(&self) -> Result<(), StoreError> {
        // Nobody has to wait for a lock where nothing is to be done.
        if self.layout(&self.pool).await? == Some(LAYOUT) {
            return Ok(());
        }
        let mut transaction = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(store_error)?;
        match self.layout(&mut *transaction).await? {
            None => {}
            // Another process was faster.
            Some(LAYOUT) => return Ok(()),
            Some(other) => return Err(unknown(other)),
        }
        sqlx::raw_sql(self.statements.schema.clone())
            .execute(&mut *transaction)
            .await
            .map_err(store_error)?;
        transaction.commit().await.map_err(store_error)
    }

    /// Of the tables, if there are any.
    pub(super) async fn layout(
        &self,
        executor: impl SqliteExecutor<'_>,
    ) -> Result<Option<i64>, StoreError> {
        let layout = sqlx::query_scalar(self.statements.layout.clone());
        match layout.fetch_one(executor).await {
            Ok(layout) => Ok(layout),
            Err(Error::Database(error)) if error.message().starts_with("no such table") => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }
}

fn unknown(layout: i64) -> StoreError {
    StoreError::new(
        StoreErrorKind::Misconfigured,
        format!("the tables have layout {layout}, and this version knows {LAYOUT} alone"),
    )
}
