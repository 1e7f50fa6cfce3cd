//! The clients, and the one who kills their server.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower_idempotency::header::{IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED};

use crate::Fault;
use crate::server::{self, Mode};

const CLIENTS: usize = 8;
const TRANSFERS_OF_EACH: usize = 12;

/// What it came to.
pub(crate) struct Score {
    pub(crate) keys: usize,
    pub(crate) kills: usize,
    pub(crate) rows: usize,
    /// Keys with more than one row.
    pub(crate) twice: usize,
    /// Keys without a row.
    pub(crate) lost: usize,
    /// Answers that a client had seen and that came back byte for byte.
    pub(crate) replayed: usize,
}

impl Score {
    pub(crate) fn is_exact(&self) -> bool {
        self.rows == self.keys && self.twice + self.lost == 0 && self.replayed == self.keys
    }
}

pub(crate) async fn play(mode: Mode) -> Result<Score, Fault> {
    let directory = std::env::temp_dir().join(format!("exactly-once-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join(format!("{}.db", mode.name()));
    let score = play_on(mode, &file).await;
    std::fs::remove_dir_all(&directory)?;
    score
}

async fn play_on(mode: Mode, file: &Path) -> Result<Score, Fault> {
    let keys = CLIENTS * TRANSFERS_OF_EACH;
    let (mut server, address) = start(mode, file).await?;
    let (addresses, _) = watch::channel(address);
    let bank = Bank::at(addresses.subscribe());
    let mut clients: JoinSet<Result<Vec<Seen>, Fault>> = JoinSet::new();
    for client in 0..CLIENTS {
        let bank = Arc::clone(&bank);
        clients.spawn(async move {
            let mut seen = Vec::new();
            for number in 0..TRANSFERS_OF_EACH {
                seen.push(bank.transfer(format!("transfer-{client}-{number}")).await?);
            }
            Ok(seen)
        });
    }

    let mut kills = 0;
    let mut seen = Vec::new();
    while !clients.is_empty() {
        // At any instant: neither of these knows what the server is doing.
        let life = Duration::from_millis(u64::from(20 + random()? % 130));
        let began = Instant::now();
        while let Ok(Some(client)) =
            timeout(life.saturating_sub(began.elapsed()), clients.join_next()).await
        {
            seen.extend(client??);
        }
        if clients.is_empty() {
            break;
        }
        // SIGKILL: nothing of it runs any more.
        server.kill().await?;
        kills += 1;
        println!(
            "killed after {:>3} ms, with {:>2} of {keys} transfers acknowledged",
            life.as_millis(),
            bank.acknowledged.load(Ordering::Relaxed)
        );
        let address;
        (server, address) = start(mode, file).await?;
        addresses.send_replace(address);
    }
    let mut replayed = 0;
    for before in &seen {
        let again = bank.transfer(before.key.clone()).await?;
        replayed += usize::from(again.replayed && again.answer == before.answer);
    }
    server.kill().await?;
    let rows = rows(file).await?;
    Ok(Score {
        keys,
        kills,
        rows: rows.values().sum(),
        twice: rows.values().filter(|&&rows| rows > 1).count(),
        lost: keys - rows.len(),
        replayed,
    })
}

/// This program once more, as the server. It says its address once it listens.
async fn start(mode: Mode, file: &Path) -> Result<(Child, String), Fault> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["--serve", mode.name()])
        .arg(file)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = server.stdout.take().ok_or("the server has no stdout")?;
    let address = BufReader::new(stdout).lines().next_line().await?;
    Ok((server, address.ok_or("the server did not start")?))
}

/// How many rows each key has, by a connection of this process.
async fn rows(file: &Path) -> Result<BTreeMap<String, usize>, Fault> {
    let pool = server::open(file).await?;
    let keys: Vec<String> = sqlx::query_scalar("SELECT key FROM ledger")
        .fetch_all(&pool)
        .await?;
    pool.close().await;
    let mut rows = BTreeMap::new();
    for key in keys {
        *rows.entry(key).or_default() += 1;
    }
    Ok(rows)
}

/// A final answer, as a client has seen it.
struct Seen {
    key: String,
    answer: Bytes,
    replayed: bool,
}

/// The server, wherever it is at the moment.
struct Bank {
    client: Client<HttpConnector, Full<Bytes>>,
    address: watch::Receiver<String>,
    acknowledged: AtomicUsize,
}

impl Bank {
    fn at(address: watch::Receiver<String>) -> Arc<Self> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Arc::new(Self {
            client,
            address,
            acknowledged: AtomicUsize::new(0),
        })
    }

    /// Asks until there is a final answer, always under the same key: what any client of
    /// such a server has to do.
    async fn transfer(&self, key: String) -> Result<Seen, Fault> {
        loop {
            let asked = timeout(Duration::from_secs(5), self.ask(&key)).await;
            if let Ok(Ok(response)) = asked
                && response.status().is_success()
            {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                return Ok(Seen {
                    replayed: response.headers().contains_key(IDEMPOTENT_REPLAYED),
                    key,
                    answer: response.into_body(),
                });
            }
            // The connection broke, the run of a dead server still has its lease, or the
            // database is busy.
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(&self, key: &str) -> Result<Response<Bytes>, Fault> {
        let address = self.address.borrow().clone();
        let request = Request::post(format!("http://{address}/transfers"))
            .header(IDEMPOTENCY_KEY, key)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from("cents=1999"))?;
        let (head, body) = self.client.request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }
}

fn random() -> Result<u16, Fault> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    Ok(u16::from_le_bytes(bytes))
}
