//! The smallest useful server: a retry gets the recorded answer, and orders nothing.
//!
//! `cargo run --example quickstart`, then send this order twice, and change it once:
//!
//! ```sh
//! curl -i localhost:3000/orders -H 'X-Account: ann' -H 'Idempotency-Key: order-1' -d 'one coffee'
//! curl -i localhost:3000/orders -H 'X-Account: ann' -H 'Idempotency-Key: order-1' -d 'two coffees'
//! ```

use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::net::TcpListener;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{IdempotencyLayer, by_trusted_header};

static ORDERS: AtomicU32 = AtomicU32::new(0);

async fn order(order: String) -> (StatusCode, String) {
    let number = ORDERS.fetch_add(1, Ordering::Relaxed) + 1;
    (StatusCode::CREATED, format!("order {number}: {order}\n"))
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    // Whose key it is: here as told by a proxy of ours. The example `payments` reads it
    // from its authentication.
    let idempotency = IdempotencyLayer::new(MemoryStore::new(), by_trusted_header("x-account"));
    let app = Router::new()
        .route("/orders", post(order))
        .route_layer(idempotency);
    axum::serve(TcpListener::bind("127.0.0.1:3000").await?, app).await
}
