//! One server for all tests of a program; keys of its own for each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use ::redis::aio::{ConnectionLike, ConnectionManager};
use ::redis::{Cmd, Pipeline, RedisFuture, Value};
use tokio::runtime::Builder;
use tokio::sync::OnceCell;
use tower_idempotency::store::{AnyStore, RedisStore};

use super::asking::ask;
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

/// A connection that is made when it is needed, and during whose calls no paused time
/// passes.
#[derive(Clone, Default)]
struct Connection(Arc<OnceCell<ConnectionManager>>);

impl Connection {
    async fn ask<T, F>(&self, call: impl FnOnce(ConnectionManager) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send,
    {
        let manager = Arc::clone(&self.0);
        ask(async move {
            let manager = manager.get_or_init(|| server().manager()).await.clone();
            call(manager).await
        })
        .await
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
