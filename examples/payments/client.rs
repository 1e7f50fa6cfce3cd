//! The client, and everything that happens to it, over real HTTP.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tower_idempotency::header::{IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) async fn play(server: SocketAddr) -> Result<()> {
    let shop = Shop::at(server);
    let mut story = Story::begin();

    let order = Payment {
        token: "ann-token",
        key: "order-1",
        amount_cents: 1999,
        card: "visa",
    };
    let answer = shop.pay(order).await?;
    story.step("pays 19.99", &answer, 201, "no", 1);
    let answer = shop.pay(order).await?;
    story.step("lost the answer, and asks again", &answer, 201, "yes", 1);

    let order_2 = Payment {
        key: "order-2",
        ..order
    };
    let (one, other) = tokio::try_join!(shop.pay(order_2), shop.pay(order_2))?;
    let (refused, paid) = match one.status {
        409 => (one, other),
        _ => (other, one),
    };
    story.step("clicks twice: answered first", &refused, 409, "no", 1);
    story.step("clicks twice: the other one", &paid, 201, "no", 2);

    let changed = Payment {
        amount_cents: 5000,
        ..order
    };
    let answer = shop.pay(changed).await?;
    story.step("changes the amount to 50.00", &answer, 422, "no", 2);

    let order_3 = Payment {
        key: "order-3",
        ..order
    };
    let hung_up = timeout(Duration::from_millis(100), shop.pay(order_3)).await;
    let charges = shop.ledger().await?.len();
    story.silence("hangs up in the middle of it", hung_up.is_err(), charges);
    let answer = shop.pay_patiently(order_3).await?;
    story.step("asks again until it is done", &answer, 201, "yes", 3);

    let order_4 = Payment {
        key: "order-4",
        card: "flaky",
        ..order
    };
    let answer = shop.pay(order_4).await?;
    story.step("meets a gateway that is down", &answer, 502, "no", 3);
    let answer = shop.pay(order_4).await?;
    story.step("tries that payment again", &answer, 201, "no", 4);

    let bobs_order = Payment {
        token: "bob-token",
        ..order
    };
    let answer = shop.pay(bobs_order).await?;
    story.step("is another account, same key", &answer, 201, "no", 5);

    story.end(shop.requests.get(), &shop.ledger().await?)
}

#[derive(Clone, Copy)]
struct Payment {
    token: &'static str,
    key: &'static str,
    amount_cents: u64,
    card: &'static str,
}

/// What the client is told, and how many charges the ledger holds by then.
struct Answer {
    status: u16,
    replayed: &'static str,
    retry_after: Option<Duration>,
    charges: usize,
}

/// The server, as its clients see it.
struct Shop {
    server: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    requests: Cell<usize>,
}

impl Shop {
    fn at(server: SocketAddr) -> Self {
        Self {
            server,
            client: Client::builder(TokioExecutor::new()).build_http(),
            requests: Cell::new(0),
        }
    }

    async fn pay(&self, payment: Payment) -> Result<Answer> {
        let Payment {
            amount_cents, card, ..
        } = payment;
        self.requests.update(|requests| requests + 1);
        let request = Request::post(format!("http://{}/payments", self.server))
            .header(AUTHORIZATION, format!("Bearer {}", payment.token))
            .header(IDEMPOTENCY_KEY, payment.key)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(format!("amount_cents={amount_cents}&card={card}").into())?;
        let response = self.send(request).await?;
        let header = |name| response.headers().get(name)?.to_str().ok();
        Ok(Answer {
            status: response.status().as_u16(),
            replayed: match header(IDEMPOTENT_REPLAYED) {
                Some("true") => "yes",
                _ => "no",
            },
            retry_after: header(RETRY_AFTER)
                .and_then(|seconds| seconds.parse().ok())
                .map(Duration::from_secs),
            charges: self.ledger().await?.len(),
        })
    }

    /// As long as the payment is under way, asks again when it is told to.
    async fn pay_patiently(&self, payment: Payment) -> Result<Answer> {
        loop {
            let answer = self.pay(payment).await?;
            match answer.retry_after {
                Some(wait) if answer.status == 409 => sleep(wait).await,
                _ => return Ok(answer),
            }
        }
    }

    async fn ledger(&self) -> Result<Vec<Value>> {
        let request = Request::get(format!("http://{}/ledger", self.server));
        let response = self.send(request.body(Full::default())?).await?;
        Ok(serde_json::from_slice(response.body())?)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
        let (head, body) = self.client.request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

/// Tells what happens, and remembers what should not have.
struct Story {
    step: usize,
    surprises: Vec<String>,
}

impl Story {
    fn begin() -> Self {
        println!("step  the client …                     status  replayed?  charges so far");
        Self {
            step: 0,
            surprises: Vec::new(),
        }
    }

    fn step(&mut self, what: &str, answer: &Answer, status: u16, replayed: &str, charges: usize) {
        let expected = (status, replayed, charges);
        let told = (answer.status, answer.replayed, answer.charges);
        let (status, replayed, charges) = told;
        self.row(what, &status.to_string(), replayed, &charges.to_string());
        if told != expected {
            let step = self.step;
            let surprise = format!("step {step}: expected {expected:?}, got {told:?}");
            self.surprises.push(surprise);
        }
    }

    fn silence(&mut self, what: &str, no_answer: bool, charges: usize) {
        self.row(what, "-", "-", &charges.to_string());
        if !no_answer {
            let surprise = format!("step {}: expected no answer, got one", self.step);
            self.surprises.push(surprise);
        }
    }

    fn row(&mut self, what: &str, status: &str, replayed: &str, charges: &str) {
        self.step += 1;
        let step = self.step;
        println!("{step:>4}  {what:<32} {status:>6}  {replayed:<9}  {charges:>14}");
    }

    fn end(mut self, requests: usize, ledger: &[Value]) -> Result<()> {
        println!("\n{requests} requests, {} charges:", ledger.len());
        let mut paid = BTreeSet::new();
        for charge in ledger {
            let text = |name| charge[name].as_str().unwrap_or_default();
            let (account, key) = (text("account"), text("key"));
            println!("  {account}  {key}  {} cents", charge["amount_cents"]);
            if !paid.insert((account, key)) {
                self.surprises.push(format!("{account} paid {key} twice"));
            }
        }
        if self.surprises.is_empty() {
            println!("Nothing was charged twice.");
            return Ok(());
        }
        Err(self.surprises.join("; ").into())
    }
}
