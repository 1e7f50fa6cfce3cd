//! One server for all tests of a program; keys of its own for each.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use ::redis::aio::{ConnectionLike, ConnectionManager};
use ::redis::{Cmd, Pipeline, RedisFuture, Value};
use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio::sync::OnceCell;
use tower_idempotency::store::{AnyStore, RedisStore};

use crate::support::redis::{RedisServer, unique_prefix};

const DATABASES: usize = 1024;

fn server() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let databases = DATABASES.to_string();
        let start = || {
            // The runtime of a test may be on paused time.
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(RedisServer::start_with(&["--databases", &databases]))
        };
        std::thread::scope(|scope| scope.spawn(start).join().unwrap())
    })
}

pub fn store_pair() -> (AnyStore, AnyStore) {
    server();
    let prefix = unique_prefix();
    let node = || AnyStore::new(RedisStore::new(Connection::default()).key_prefix(&prefix));
    (node(), node())
}

/// The URL of a database that nobody else uses.
pub fn database() -> String {
    static USED: AtomicUsize = AtomicUsize::new(1);
    let database = USED.fetch_add(1, Ordering::Relaxed);
    assert!(database < DATABASES, "every database is used");
    format!("{}{database}", server().url())
}

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

pub fn is_asked() -> bool {
    ASKED.get() > 0
}

/// A connection that is made when it is needed, and during whose calls no paused time
/// passes.
#[derive(Clone, Default)]
struct Connection(Arc<OnceCell<ConnectionManager>>);

impl Connection {
    /// In a task of its own, which comes to its end while nobody polls the caller: on the
    /// wire a call cannot be taken back.
    async fn ask<T, F>(&self, call: impl FnOnce(ConnectionManager) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send,
    {
        let manager = Arc::clone(&self.0);
        let asking = Asking::begin();
        let answer = tokio::spawn(async move {
            let _asking = asking;
            let manager = manager.get_or_init(|| server().manager()).await.clone();
            call(manager).await
        });
        answer.await.unwrap()
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let command = command.clone();
        Box::pin(self.ask(async move |mut manager| manager.req_packed_command(&command).await))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let pipeline = pipeline.clone();
        Box::pin(self.ask(async move |mut manager| {
            manager.req_packed_commands(&pipeline, offset, count).await
        }))
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// While it is kept, paused time stands still: tokio takes a runtime that waits for a socket
/// for an idle one, and would jump to the next timer, but never while a blocking task runs.
struct Asking(Option<mpsc::Sender<()>>);

impl Asking {
    fn begin() -> Self {
        let runtime = Handle::current();
        if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
            return Self(None);
        }
        let (asking, answered) = mpsc::channel();
        runtime.spawn_blocking(move || {
            // Returns when the other end is dropped.
            let _ = answered.recv();
        });
        ASKED.set(ASKED.get() + 1);
        Self(Some(asking))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.0.is_some() {
            ASKED.set(ASKED.get() - 1);
        }
    }
}
