//! The card gateway, and the ledger that it keeps.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

pub(crate) struct Charge {
    pub(crate) account: &'static str,
    pub(crate) key: String,
    pub(crate) gateway_key: String,
    pub(crate) amount_cents: u64,
}

pub(crate) struct GatewayDown;

#[derive(Clone, Default)]
pub(crate) struct Gateway(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    charges: Vec<Charge>,
    /// The payments that met a bank that was down.
    turned_away: HashSet<String>,
}

impl Gateway {
    /// Charges, and gives the number of the charge. It takes 300 ms, and the card `flaky`
    /// fails at the first try of every payment.
    ///
    /// A real gateway answers a key that it knows with the charge it made before. This one
    /// charges whatever it is told to, so that nothing is hidden from the ledger.
    pub(crate) async fn charge(&self, charge: Charge, card: &str) -> Result<usize, GatewayDown> {
        sleep(Duration::from_millis(300)).await;
        let mut books = self.books();
        if card == "flaky" && books.turned_away.insert(charge.gateway_key.clone()) {
            return Err(GatewayDown);
        }
        books.charges.push(charge);
        Ok(books.charges.len())
    }

    pub(crate) fn ledger(&self) -> Value {
        let books = self.books();
        let charges = books.charges.iter().map(|charge| {
            json!({
                "account": charge.account,
                "key": charge.key,
                "gateway_key": charge.gateway_key,
                "amount_cents": charge.amount_cents,
            })
        });
        charges.collect()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
