//! The routes of the ledger: one writes a row of it and its answer in one transaction.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Json, Router};
use futures_util::future::BoxFuture;
use serde_json::json;
use tower_idempotency::{Operation, TransactionError};

use crate::routes::{BadParameter, Parameters, Runs, required};

pub(crate) trait Ledger: Send + Sync {
    /// Adds a row. It commits with the answer that the operation records, or by itself where
    /// there is no operation.
    fn transfer<'a>(
        &'a self,
        operation: Option<&'a Operation>,
        amount: i64,
    ) -> BoxFuture<'a, Result<Response, TransactionError>>;

    fn totals(&self) -> BoxFuture<'_, Result<Totals, sqlx::Error>>;
}

pub(crate) struct Totals {
    pub(crate) rows: i64,
    pub(crate) keys: i64,
}

type Kept = Option<Arc<dyn Ledger>>;

/// To be put under the layer. It may be merged into routes of any state.
pub(crate) fn transfers<S>(ledger: Kept, runs: Runs) -> Router<S> {
    Router::new()
        .route("/transfer", any(transfer))
        .with_state((ledger, runs))
}

pub(crate) fn totals(ledger: Kept) -> Router {
    Router::new().route("/ledger", get(show)).with_state(ledger)
}

async fn transfer(
    State((ledger, runs)): State<(Kept, Runs)>,
    operation: Option<Extension<Operation>>,
    query: Parameters,
) -> Result<Response, BadParameter> {
    let amount = required(&query, "amount")?;
    let Some(ledger) = ledger else {
        return Ok(no_transactions());
    };
    runs.add();
    let operation = operation.as_deref();
    let answer = ledger.transfer(operation, amount).await;
    Ok(answer.unwrap_or_else(|error| error.into_response().map(Body::new)))
}

async fn show(State(ledger): State<Kept>) -> Response {
    let Some(ledger) = ledger else {
        return no_transactions();
    };
    match ledger.totals().await {
        Ok(Totals { rows, keys }) => Json(json!({ "rows": rows, "keys": keys })).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

fn no_transactions() -> Response {
    let told = "the store has no transactions: take --store sqlite or --store postgres";
    (StatusCode::NOT_IMPLEMENTED, told).into_response()
}
