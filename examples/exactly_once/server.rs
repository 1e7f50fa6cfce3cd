//! The server: a ledger in the database of the records.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Form, Json, Router};
use serde_json::{Value, json};
use sqlx::SqlitePool;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::net::TcpListener;
use tower_idempotency::store::SqliteStore;
use tower_idempotency::{IdempotencyLayer, Operation, SharedByAllCallers, TransactionError};

use crate::Fault;

/// How the ledger's row and the recorded answer come together.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    Transaction,
    Plain,
}

impl Mode {
    pub(crate) const ALL: [Self; 2] = [Self::Transaction, Self::Plain];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Plain => "plain",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Transaction => "In one transaction",
            Self::Plain => "Plain recording",
        }
    }
}

/// Every process opens the one file.
pub(crate) async fn open(file: &Path) -> Result<SqlitePool, Fault> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        // Readers and the one writer do not block each other.
        .journal_mode(SqliteJournalMode::Wal)
        // What was committed outlives a power failure.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(1));
    let pool = SqlitePoolOptions::new().max_connections(8);
    Ok(pool.connect_with(options).await?)
}

#[derive(Clone)]
struct Bank {
    store: SqliteStore,
    pool: SqlitePool,
}

pub(crate) async fn serve(mode: Mode, file: &Path) -> Result<(), Fault> {
    let pool = open(file).await?;
    let store = SqliteStore::new(pool.clone());
    store.migrate().await?;
    for warning in store.check().await? {
        eprintln!("sqlite: {warning}");
    }
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS ledger \
         (number INTEGER PRIMARY KEY, key TEXT NOT NULL, cents INTEGER NOT NULL)",
    )
    .execute(&pool)
    .await?;

    let idempotency = IdempotencyLayer::new(store.clone(), SharedByAllCallers)
        .require_key(true)
        // Short, so that a transfer whose server was killed may be tried again soon.
        .lease(Duration::from_millis(300));
    let transfer = match mode {
        Mode::Transaction => post(transfer),
        Mode::Plain => post(transfer_plainly),
    };
    let app = Router::new()
        .route("/transfers", transfer)
        .route_layer(idempotency)
        .with_state(Bank { store, pool });

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    Ok(axum::serve(listener, app).await?)
}

type Fields = Form<HashMap<String, String>>;

/// The row and the recorded answer are committed together, or neither is.
async fn transfer(
    State(bank): State<Bank>,
    Extension(operation): Extension<Operation>,
    Form(fields): Fields,
) -> Result<impl IntoResponse, Failed> {
    let cents = cents(&fields)?;
    let mut transaction = operation.begin(&bank.store).await?;
    let number = insert(&mut transaction, &operation, cents).await?;
    let receipt = receipt(number, cents).await;
    Ok(operation.finish(transaction, receipt).await?)
}

/// The row is committed, and the layer records the answer afterwards. A process that dies
/// in between leaves a row without a record, and the retry makes another one.
async fn transfer_plainly(
    State(bank): State<Bank>,
    Extension(operation): Extension<Operation>,
    Form(fields): Fields,
) -> Result<impl IntoResponse, Failed> {
    let cents = cents(&fields)?;
    let number = insert(&mut *bank.pool.acquire().await?, &operation, cents).await?;
    Ok(receipt(number, cents).await)
}

fn cents(fields: &HashMap<String, String>) -> Result<i64, Failed> {
    let cents = fields.get("cents").and_then(|cents| cents.parse().ok());
    cents.ok_or(Failed::Misread)
}

async fn insert(
    connection: &mut SqliteConnection,
    operation: &Operation,
    cents: i64,
) -> sqlx::Result<i64> {
    sqlx::query_scalar("INSERT INTO ledger (key, cents) VALUES (?, ?) RETURNING number")
        .bind(operation.key().as_str())
        .bind(cents)
        .fetch_one(connection)
        .await
}

/// Takes a moment, as the rest of a handler does.
async fn receipt(number: i64, cents: i64) -> Response {
    tokio::time::sleep(Duration::from_millis(1)).await;
    let receipt: Json<Value> = Json(json!({ "transfer": number, "cents": cents }));
    (StatusCode::CREATED, receipt).into_response()
}

enum Failed {
    Misread,
    Transaction(TransactionError),
}

/// So that `?` takes the errors of the transaction and of the statements in it.
impl<E: Into<TransactionError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Transaction(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        match self {
            Self::Misread => (StatusCode::BAD_REQUEST, "cents: a number").into_response(),
            Self::Transaction(error) => {
                eprintln!("a transfer failed: {error}");
                error.into_response().into_response()
            }
        }
    }
}
