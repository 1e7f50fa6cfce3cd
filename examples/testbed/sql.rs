//! The ledger beside the records, whichever SQL they speak.

use axum::Json;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use serde_json::json;
use tower_idempotency::store::TransactionalStore;
use tower_idempotency::{Operation, TransactionError};

use crate::ledger::{Ledger, Totals};

pub(super) const INSERT: &str =
    "INSERT INTO ledger (key, amount, attempt) VALUES ($1, $2, $3) RETURNING id";
pub(super) const COUNT: &str = "SELECT COUNT(*), COUNT(DISTINCT key) FROM ledger";

/// What the driver has to be asked for by name.
pub(super) trait Database: Send + Sync + 'static {
    type Store: TransactionalStore;

    fn store(&self) -> &Self::Store;

    /// Gives the number of the new row.
    fn insert(
        connection: &mut <Self::Store as TransactionalStore>::Connection,
        row: Row<'_>,
    ) -> impl Future<Output = sqlx::Result<i64>> + Send;

    /// Rows, and distinct keys among them.
    fn count(&self) -> impl Future<Output = sqlx::Result<(i64, i64)>> + Send;
}

pub(super) struct Row<'a> {
    pub(super) key: Option<&'a str>,
    pub(super) amount: i64,
    pub(super) attempt: i64,
}

impl<D: Database> Ledger for D {
    fn transfer<'a>(
        &'a self,
        operation: Option<&'a Operation>,
        amount: i64,
    ) -> BoxFuture<'a, Result<Response, TransactionError>> {
        Box::pin(async move {
            match operation {
                Some(operation) => with_its_answer::<D>(self.store(), operation, amount).await,
                None => by_itself::<D>(self.store(), amount).await,
            }
        })
    }

    fn totals(&self) -> BoxFuture<'_, Result<Totals, sqlx::Error>> {
        Box::pin(async {
            let (rows, keys) = self.count().await?;
            Ok(Totals { rows, keys })
        })
    }
}

async fn with_its_answer<D: Database>(
    store: &D::Store,
    operation: &Operation,
    amount: i64,
) -> Result<Response, TransactionError> {
    let mut transaction = operation.begin(store).await?;
    let row = Row {
        key: Some(operation.key().as_str()),
        amount,
        attempt: i64::try_from(operation.attempt()).unwrap_or(i64::MAX),
    };
    let number = D::insert(&mut transaction, row).await?;
    let answer = operation.finish(transaction, created(number)).await?;
    Ok(answer.map(Body::new))
}

async fn by_itself<D: Database>(
    store: &D::Store,
    amount: i64,
) -> Result<Response, TransactionError> {
    let mut transaction = store.begin().await?;
    let row = Row {
        key: None,
        amount,
        attempt: 1,
    };
    let number = D::insert(&mut transaction, row).await?;
    D::Store::commit(transaction).await?;
    Ok(created(number))
}

fn created(number: i64) -> Response {
    (StatusCode::CREATED, Json(json!({ "row": number }))).into_response()
}
