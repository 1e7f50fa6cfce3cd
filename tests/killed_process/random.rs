//! Killed at random instants, so in the middle of a call of the store too, where no point can
//! be named: in transaction mode every key has its one effect, and its answer is kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;
#[cfg(feature = "postgres")]
use tower_idempotency::store::PostgresStore;
#[cfg(feature = "sqlite")]
use tower_idempotency::store::SqliteStore;

use super::child::HALVES;
use super::ledger::Ledger;
#[cfg(feature = "sqlite")]
use super::parent::Directory;
use super::parent::{Process, final_answer};
use super::support::wire::http1_post;
use super::{Mode, OnFailure, Settings};

const CLIENTS: usize = 4;
const KILLS: usize = 20;

/// Some requests long, from when the process serves, or has served one.
const LONGEST_LIFE: Duration = Duration::from_millis(100);

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Work {
    keys: AtomicUsize,
    answers: AtomicUsize,
    is_over: AtomicBool,
}

/// Sends one key after the other, each until it is answered.
async fn client(work: Arc<Work>, serving: watch::Receiver<SocketAddr>) {
    while !work.is_over.load(Ordering::SeqCst) {
        let key = work.keys.fetch_add(1, Ordering::SeqCst).to_string();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let addr = *serving.borrow();
            let answer = ask(addr, &key).await.unwrap_or_default();
            if answer.starts_with("HTTP/1.1 201") && answer.contains(HALVES[1]) {
                break;
            }
            assert!(Instant::now() < deadline, "{key} gets no answer: {answer}");
            sleep(Duration::from_millis(5)).await;
        }
        work.answers.fetch_add(1, Ordering::SeqCst);
    }
}

/// However slow the machine is, some keys get their answer between two kills.
async fn one_more_answer(work: &Work) {
    let deadline = Instant::now() + PATIENCE;
    let before = work.answers.load(Ordering::SeqCst);
    while work.answers.load(Ordering::SeqCst) == before {
        assert!(Instant::now() < deadline, "nothing is answered");
        sleep(Duration::from_millis(1)).await;
    }
}

/// As far as it comes.
async fn ask(addr: SocketAddr, key: &str) -> std::io::Result<String> {
    let request = http1_post("/charge", key, &["connection: close"], "");
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn killed_at_random<L: Ledger>(url: &str) {
    let store = L::open(url).await;
    store.create().await;
    let settings = Settings {
        mode: Mode::Transaction,
        on_failure: OnFailure::RunAgain,
        lease: Duration::from_millis(300),
        stop: None,
    };
    let start = || Process::start(url, settings);
    let mut process = start().await;
    let serving = watch::Sender::new(process.addr);
    let work = Arc::new(Work::default());
    let client = |_| tokio::spawn(client(work.clone(), serving.subscribe()));
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    for kill in 0..KILLS {
        if kill % 2 == 1 {
            one_more_answer(&work).await;
        }
        sleep(LONGEST_LIFE.mul_f64(random())).await;
        process.kill().await;
        process = start().await;
        serving.send_replace(process.addr);
    }
    work.is_over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let keys = work.keys.load(Ordering::SeqCst);
    for key in (0..keys).map(|key| key.to_string()) {
        assert_eq!(store.effects(&key).await, 1, "{key}");
        let answer = final_answer(process.addr, &key).await;
        assert!(answer.is_replay(), "{key}: {answer:?}");
    }
}

/// From 0 to 1.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(random >> 32).unwrap()) / f64::from(u32::MAX)
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn over_postgres_a_process_that_is_killed_at_any_instant_leaves_one_effect_of_every_key() {
    use super::support::postgres::{shared, url_of};
    let url = url_of(&shared().await.database().await);
    killed_at_random::<PostgresStore>(&url).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn over_sqlite_a_process_that_is_killed_at_any_instant_leaves_one_effect_of_every_key() {
    let directory = Directory::new();
    killed_at_random::<SqliteStore>(&directory.url()).await;
}
