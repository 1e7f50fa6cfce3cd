//! A handler whose rows and whose recorded answer commit together, in PostgreSQL and with
//! the pool that the service has anyway.
//!
//! ```sh
//! cargo run --features postgres --example postgres_transaction -- postgres://localhost/test
//! ```
//!
//! It creates two tables in the database that the URL names: `idempotency_record` and
//! `order_line`. Two ways to the same end: `begin` and `finish`, and, for code that has its
//! transaction already, `fence` and `complete_in`.

use std::error::Error;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use http_body_util::BodyExt;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use tower::ServiceExt;
use tower_idempotency::header::{IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED};
use tower_idempotency::store::{self, PostgresStore};
use tower_idempotency::{IdempotencyLayer, Operation, SharedByAllCallers, TransactionError};

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    store: PostgresStore,
}

/// The row and the answer, or neither. Whatever fails on the way drops the transaction,
/// which rolls it back.
async fn order(
    State(shop): State<Shop>,
    Extension(operation): Extension<Operation>,
    article: String,
) -> Result<impl IntoResponse, Failed> {
    let mut transaction = operation.begin(&shop.store).await?;
    let number = insert(&mut transaction, &article).await?;
    Ok(operation.finish(transaction, ordered(number)).await?)
}

/// The same in a transaction of one's own: here because it needs an isolation level.
async fn order_serializably(
    State(shop): State<Shop>,
    Extension(operation): Extension<Operation>,
    article: String,
) -> Result<impl IntoResponse, Failed> {
    let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE";
    let mut transaction = shop.pool.begin_with(begin).await?;
    // First, so that a run which was taken over does no work in vain.
    operation.fence(&shop.store, &mut transaction).await?;
    let number = insert(&mut transaction, &article).await?;
    let answer = ordered(number);
    let answer = operation
        .complete_in(&shop.store, &mut transaction, answer)
        .await?;
    transaction.commit().await?;
    Ok(answer)
}

async fn insert(connection: &mut PgConnection, article: &str) -> Result<i64, Failed> {
    let insert = "INSERT INTO order_line (article) VALUES ($1) RETURNING number";
    let number = sqlx::query_scalar(insert)
        .bind(article)
        .fetch_one(connection)
        .await?;
    match article {
        // Too late for the row? No: it goes with the transaction.
        "sold out" => Err(Failed::SoldOut),
        _ => Ok(number),
    }
}

fn ordered(number: i64) -> Response {
    (StatusCode::CREATED, Json(json!({ "order": number }))).into_response()
}

enum Failed {
    SoldOut,
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
            // Recorded like any answer: the retry is told the same.
            Self::SoldOut => (StatusCode::CONFLICT, "sold out").into_response(),
            // 503 where it may be tried again at once, as after a serialization failure.
            Self::Transaction(error) => error.into_response().into_response(),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args()
        .nth(1)
        .ok_or("it takes a postgres:// URL")?;
    // Below the layer's `store_timeout` of 2 s, so that no call is applied long after it
    // was given up. It bounds the handler's own statements too.
    let options = url
        .parse::<PgConnectOptions>()?
        .options([("statement_timeout", "1500ms")]);
    let pool = PgPoolOptions::new()
        .acquire_timeout(Duration::from_secs(1))
        // A transaction that a handler left half-opened does not come back to the pool.
        .after_release(store::postgres::after_release)
        .connect_with(options)
        .await?;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await?;
    for warning in store.check().await? {
        eprintln!("postgres: {warning}");
    }
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS order_line \
         (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, article text NOT NULL)",
    )
    .execute(&pool)
    .await?;
    // Removes what has expired, until it is dropped.
    let _purge = store.spawn_purge(Duration::from_secs(60));

    let app = Router::new()
        .route("/orders", post(order))
        .route("/serializable-orders", post(order_serializably))
        .route_layer(IdempotencyLayer::new(store.clone(), SharedByAllCallers))
        .with_state(Shop {
            pool: pool.clone(),
            store,
        });
    play(&app, &pool).await
}

/// A client that sends everything twice.
async fn play(app: &Router, pool: &PgPool) -> Result<(), Box<dyn Error>> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| error.to_string())?;
    let run = u64::from_le_bytes(random);
    for (path, article, rows) in [
        ("/orders", "tea", 1),
        ("/orders", "sold out", 0),
        ("/serializable-orders", "coffee", 1),
        ("/serializable-orders", "sold out", 0),
    ] {
        let before = count(pool).await?;
        let request = || {
            Request::post(path)
                .header(
                    IDEMPOTENCY_KEY,
                    format!("{run:x}-{path}-{}", article.replace(' ', "-")),
                )
                .body(Body::from(article))
        };
        let (first, _) = told(app.clone().oneshot(request()?).await?).await?;
        let (again, replayed) = told(app.clone().oneshot(request()?).await?).await?;
        let new = count(pool).await? - before;
        println!("{path:<21} {article:<8} {first}; again: {again}; {new} new rows");
        if first != again || !replayed || new != rows {
            return Err(format!("expected one answer twice, and {rows} new rows").into());
        }
    }
    Ok(())
}

async fn told(answer: Response) -> Result<(String, bool), Box<dyn Error>> {
    let status = answer.status();
    let replayed = answer.headers().contains_key(IDEMPOTENT_REPLAYED);
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((
        format!("{status} {}", String::from_utf8_lossy(&body)),
        replayed,
    ))
}

async fn count(pool: &PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM order_line")
        .fetch_one(pool)
        .await
}
