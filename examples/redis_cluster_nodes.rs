//! Two nodes of a service share one store on Redis: whichever of them a retry meets, a
//! payment is charged once.
//!
//! ```sh
//! cargo run --features redis --example redis_cluster_nodes
//! cargo run --features redis --example redis_cluster_nodes -- redis://other-host:6379
//! cargo run --features redis --example redis_cluster_nodes -- redis://one,redis://two
//! ```
//!
//! Several URLs are those of a Redis cluster. The nodes are processes: this program starts
//! itself twice more, and is the client that is sent to one or the other. It exits with an
//! error if anything was charged twice.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Read;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClient;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::sleep;
use tower_idempotency::store::{AnyStore, RedisStore};
use tower_idempotency::{IdempotencyLayer, Operation, by_trusted_header, header};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => play("redis://127.0.0.1:6379").await,
        [urls] => play(urls).await,
        ["node", name, urls, prefix] => serve(name, urls, prefix).await,
        _ => Err("one argument at most: a URL, or those of a cluster with commas between".into()),
    }
}

// What happens to the client.

async fn play(urls: &str) -> Result<()> {
    // Keeps this run apart from those before it, whose keys the server still knows.
    let prefix = format!("nodes-{}-", SystemTime::UNIX_EPOCH.elapsed()?.as_nanos());
    let one = Node::start("1", urls, &prefix).await?;
    let two = Node::start("2", urls, &prefix).await?;

    println!("Nodes at {} and {}.", one.address, two.address);

    println!("The client loses the answer:");
    tokio::select! {
        answer = one.ask("order-1", "19.99") => return Err(format!("too early: {answer:?}").into()),
        charged = one.until_charged("order-1") => charged?,
    }
    println!("  node 1, order-1: is charging 19.99, and the client hangs up");
    let retry = two.pay("order-1", "19.99").await?;
    assert!(retry.is_replay);
    assert_eq!(one.pay("order-1", "19.99").await?, retry);

    println!("The client sends it to both nodes at once:");
    let (a, b) = tokio::try_join!(one.pay("order-2", "5.00"), two.pay("order-2", "5.00"))?;
    assert_eq!(a.text, b.text);
    assert!(a.is_replay != b.is_replay);

    println!("The client changes the amount:");
    for node in [&one, &two] {
        assert_eq!(node.pay("order-1", "50.00").await?.status, 422);
    }

    let mut charges = one.charges().await?;
    for (key, times) in two.charges().await? {
        *charges.entry(key).or_default() += times;
    }
    println!("Charges, by key: {charges:?}");
    let once = ["order-1", "order-2"].map(|key| (key.to_owned(), 1));
    assert_eq!(charges, BTreeMap::from(once));
    Ok(())
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    is_replay: bool,
    text: String,
}

/// A node, as its client sees it.
struct Node {
    name: &'static str,
    address: String,
    /// It ends when this is dropped.
    _process: Child,
}

impl Node {
    async fn start(name: &'static str, urls: &str, prefix: &str) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["node", name, urls, prefix])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().ok_or("its output is a pipe")?;
        let address = BufReader::new(stdout).lines().next_line().await?;
        Ok(Self {
            name,
            address: address.ok_or_else(|| format!("node {name} does not start"))?,
            _process: process,
        })
    }

    /// Asks again for as long as the payment is under way.
    async fn pay(&self, key: &str, amount: &str) -> Result<Answer> {
        loop {
            let answer = self.ask(key, amount).await?;
            let replayed = if answer.is_replay { ", replayed" } else { "" };
            let (name, status, text) = (self.name, answer.status, &answer.text);
            println!("  node {name}, {key}: {status} {text}{replayed}");
            match answer.status {
                // `Retry-After: 1`, it says.
                409 => sleep(Duration::from_secs(1)).await,
                _ => return Ok(answer),
            }
        }
    }

    async fn ask(&self, key: &str, amount: &str) -> Result<Answer> {
        let request = Request::post(format!("http://{}/payments", self.address))
            .header("x-account", "ann")
            .header(header::IDEMPOTENCY_KEY, key)
            .body(amount.to_owned())?;
        send(request).await
    }

    async fn charges(&self) -> Result<BTreeMap<String, u64>> {
        let request = Request::get(format!("http://{}/charges", self.address));
        let answer = send(request.body(String::new())?).await?;
        Ok(serde_json::from_str(&answer.text)?)
    }

    async fn until_charged(&self, key: &str) -> Result<()> {
        while !self.charges().await?.contains_key(key) {
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// On a connection of its own, which is closed when this is dropped.
async fn send(request: Request<String>) -> Result<Answer> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    // Of a refusal, its code.
    let code = serde_json::from_slice(&body).ok();
    let code = code.and_then(|problem: Value| Some(problem.get("code")?.as_str()?.to_owned()));
    Ok(Answer {
        status: head.status.as_u16(),
        is_replay: head.headers.contains_key(header::IDEMPOTENT_REPLAYED),
        text: code.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()),
    })
}

// What a node is.

async fn serve(name: &str, urls: &str, prefix: &str) -> Result<()> {
    end_with_the_client();
    let store = open(urls, prefix).await.inspect_err(|error| {
        eprintln!("node {name}: no store at {urls}: {error}\n{TO_START_ONE}");
    })?;
    // Whose key it is: here as told by a proxy of ours.
    let idempotency = IdempotencyLayer::new(store, by_trusted_header("x-account"));
    let app = Router::new()
        .route("/payments", post(pay))
        .route_layer(idempotency.require_key(true))
        .route("/charges", get(charges))
        .with_state(Bank {
            node: name.into(),
            charges: Arc::default(),
        });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

const TO_START_ONE: &str = "\
To start one: `redis-server --appendonly yes`, or `docker run --rm -p 6379:6379 redis`.";

/// Its input is a pipe from the client, which closes when the client ends, however it does.
fn end_with_the_client() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
}

/// Several URLs are those of a cluster.
async fn open(urls: &str, prefix: &str) -> Result<AnyStore> {
    let urls: Vec<&str> = urls.split(',').collect();
    if let [url] = urls[..] {
        // Connects anew by itself when the connection is lost. Its six retries would take 6 s
        // and more, and the layer waits 2 s for its store.
        let config = ConnectionManagerConfig::new().set_number_of_retries(3);
        let client = redis::Client::open(url)?;
        check(
            ConnectionManager::new_with_config(client, config).await?,
            prefix,
        )
        .await
    } else {
        // It waits for ever otherwise.
        let client = ClusterClient::builder(urls).response_timeout(Duration::from_secs(1));
        check(client.build()?.get_async_connection().await?, prefix).await
    }
}

/// Is the server set up so that it keeps what the layer promises?
async fn check<C>(connection: C, prefix: &str) -> Result<AnyStore>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    let store = RedisStore::new(connection).key_prefix(prefix);
    for warning in store.check().await? {
        eprintln!("warning: {warning}");
    }
    Ok(AnyStore::new(store))
}

#[derive(Clone)]
struct Bank {
    node: Arc<str>,
    /// How often each key was charged by this node.
    charges: Arc<Mutex<BTreeMap<String, u64>>>,
}

async fn pay(
    State(bank): State<Bank>,
    Extension(operation): Extension<Operation>,
    amount: String,
) -> (StatusCode, String) {
    let key = operation.key().as_str().to_owned();
    let charges = || bank.charges.lock().unwrap_or_else(PoisonError::into_inner);
    *charges().entry(key).or_default() += 1;
    // Time enough to lose the answer.
    sleep(Duration::from_secs(2)).await;
    (
        StatusCode::CREATED,
        format!("node {} charged {amount}", bank.node),
    )
}

async fn charges(State(bank): State<Bank>) -> Json<BTreeMap<String, u64>> {
    let charges = bank.charges.lock().unwrap_or_else(PoisonError::into_inner);
    Json(charges.clone())
}
