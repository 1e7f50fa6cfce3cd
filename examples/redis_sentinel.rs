//! Records on Redis servers that Sentinel watches: when the primary is lost, the service goes
//! on with the one that takes its place.
//!
//! ```sh
//! cargo run --features redis --example redis_sentinel -- \
//!     mymaster redis://one:26379 redis://two:26379 redis://three:26379
//! curl -i localhost:3000/orders -H 'X-Account: ann' -H 'Idempotency-Key: order-1' -d 'one coffee'
//! ```
//!
//! The first word is the name that Sentinel knows the primary by; the addresses are those of
//! the sentinels. `primary.rs` is what to copy. While there is no primary, requests with a
//! key are answered 503.

#[path = "redis_sentinel/primary.rs"]
mod primary;

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use redis::AsyncConnectionConfig;
use redis::sentinel::{SentinelClient, SentinelServerType};
use tokio::net::TcpListener;
use tower_idempotency::store::RedisStore;
use tower_idempotency::{IdempotencyLayer, by_trusted_header};

use self::primary::Primary;

static ORDERS: AtomicU32 = AtomicU32::new(0);

async fn order(order: String) -> (StatusCode, String) {
    let number = ORDERS.fetch_add(1, Ordering::Relaxed) + 1;
    (StatusCode::CREATED, format!("order {number}: {order}\n"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let name = words.next().ok_or("the name of the primary is missing")?;
    let sentinels: Vec<String> = words.collect();

    // Where the servers want a password or TLS, `SentinelClientBuilder` takes them.
    let client = SentinelClient::build(sentinels, name, None, SentinelServerType::Master)?;
    let store = RedisStore::new(Primary::new(client, AsyncConnectionConfig::new()))
        // A fail-over forgets what no replica has. This takes two replicas: once one of them
        // is the primary, a claim still finds another.
        .min_replica_acks(1, Duration::from_millis(200));
    // Is the server set up so that it keeps what the layer promises?
    for warning in store.check().await? {
        eprintln!("warning: {warning}");
    }

    // Whose key it is: here as told by a proxy of ours.
    let idempotency = IdempotencyLayer::new(store, by_trusted_header("x-account"));
    let app = Router::new()
        .route("/orders", post(order))
        .route_layer(idempotency);
    Ok(axum::serve(TcpListener::bind("127.0.0.1:3000").await?, app).await?)
}
