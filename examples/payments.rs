//! A server that charges cards, and a client to whom everything happens that makes people
//! pay twice. Nobody does.
//!
//! ```sh
//! cargo run --example payments              # plays the client, and checks the ledger
//! cargo run --example payments -- --serve   # stays up, for curl
//! ```
//!
//! `server.rs` is what to imitate, `gateway.rs` stands for the bank, `client.rs` is the
//! script. It exits with an error if anything was charged twice.

#[path = "payments/client.rs"]
mod client;
#[path = "payments/gateway.rs"]
mod gateway;
#[path = "payments/server.rs"]
mod server;

use std::error::Error;

use tokio::net::TcpListener;

use self::gateway::Gateway;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        None => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            tokio::spawn(server::serve(listener, Gateway::default()));
            client::play(address).await
        }
        Some("--serve") => {
            let listener = TcpListener::bind("127.0.0.1:3000").await?;
            println!("{TO_TRY}");
            Ok(server::serve(listener, Gateway::default()).await?)
        }
        Some(other) => Err(format!("`{other}` is no flag: there is --serve").into()),
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
