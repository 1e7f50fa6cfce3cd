//! A server that charges cards, and a client to whom everything happens that makes people
//! pay twice. Nobody does.
//!
//! ```sh
//! cargo run --example payments              # plays the client, and checks the ledger
//! cargo run --example payments -- --serve   # stays up, for curl
//! ```
//!
//! Both keep their records in memory, or, with a URL, in a file, on a Redis server, or on a
//! PostgreSQL server:
//!
//! ```sh
//! cargo run --features sqlite --example payments -- sqlite:payments.db
//! cargo run --features redis --example payments -- redis://127.0.0.1:6379
//! cargo run --features postgres --example payments -- postgres://postgres@127.0.0.1/postgres
//! ```
//!
//! `server.rs` is what to imitate, `store.rs` opens the store, `gateway.rs` stands for the
//! bank, `client.rs` is the script. It exits with an error if anything was charged twice.

#[path = "payments/client.rs"]
mod client;
#[path = "payments/gateway.rs"]
mod gateway;
#[path = "payments/server.rs"]
mod server;
#[path = "payments/store.rs"]
mod store;

use std::error::Error;

use tokio::net::TcpListener;

use self::gateway::Gateway;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut stays_up = false;
    let mut url = None;
    for word in std::env::args().skip(1) {
        match &*word {
            "--serve" => stays_up = true,
            flag if flag.starts_with('-') => {
                return Err(format!("`{flag}` is no flag: there is --serve").into());
            }
            _ => url = Some(word),
        }
    }
    let gateway = Gateway::default();
    if stays_up {
        let store = store::open(url.as_deref()).await?;
        let listener = TcpListener::bind("127.0.0.1:3000").await?;
        println!("{TO_TRY}");
        Ok(server::serve(listener, store, "payments", gateway).await?)
    } else {
        let store = store::open(url.as_deref()).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let namespace = store::unique_namespace();
        tokio::spawn(async move { server::serve(listener, store, &namespace, gateway).await });
        client::play(address).await
    }
}

const TO_TRY: &str = "\
Listening on http://localhost:3000, until Ctrl-C. To try, from another shell:

# Pay, and send it again, as a client does that lost the answer: idempotent-replayed: true.
curl -i localhost:3000/payments -H 'Authorization: Bearer ann-token' -H 'Idempotency-Key: order-1' -d amount_cents=1999 -d card=visa

# The same key for another amount: 422.
curl -i localhost:3000/payments -H 'Authorization: Bearer ann-token' -H 'Idempotency-Key: order-1' -d amount_cents=5000 -d card=visa

# The same key of another account: a payment of its own.
curl -i localhost:3000/payments -H 'Authorization: Bearer bob-token' -H 'Idempotency-Key: order-1' -d amount_cents=1999 -d card=visa

# Two at once: 201 and 409.
for click in 1 2; do curl -i localhost:3000/payments -H 'Authorization: Bearer ann-token' -H 'Idempotency-Key: order-2' -d amount_cents=1999 -d card=visa & done; wait

# Hang up while the card is being charged. Without --max-time, the answer is there.
curl -i localhost:3000/payments -H 'Authorization: Bearer ann-token' -H 'Idempotency-Key: order-3' -d amount_cents=1999 -d card=visa --max-time 0.1

# A card whose bank is down at first: 502. Send it again.
curl -i localhost:3000/payments -H 'Authorization: Bearer ann-token' -H 'Idempotency-Key: order-4' -d amount_cents=1999 -d card=flaky

# No key: 400.
curl -i localhost:3000/payments -H 'Authorization: Bearer ann-token' -d amount_cents=1999 -d card=visa

# What was charged.
curl -i localhost:3000/ledger
";
