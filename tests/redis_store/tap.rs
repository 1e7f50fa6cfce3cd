//! A connection that a test can look into and step into.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Arg, Cmd, Pipeline, RedisFuture, Value};

enum Meddling {
    First(Pin<Box<dyn Future<Output = ()> + Send>>),
    Answer(Value),
}

/// Cheap to clone: keep one clone to look into what the others send.
#[derive(Clone)]
pub(crate) struct Tap {
    connection: MultiplexedConnection,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    sent: Mutex<Vec<Vec<u8>>>,
    gets: Mutex<usize>,
    meddling: Mutex<VecDeque<Meddling>>,
}

impl Tap {
    pub(crate) fn new(connection: MultiplexedConnection) -> Self {
        Self {
            connection,
            shared: Arc::default(),
        }
    }

    /// That happens before the next plain read reaches the server.
    pub(crate) fn before_next_get(&self, act: impl Future<Output = ()> + Send + 'static) {
        self.meddle(Meddling::First(Box::pin(act)));
    }

    /// The next plain read gets this, as from a replica that lags behind.
    pub(crate) fn answer_next_get(&self, value: Value) {
        self.meddle(Meddling::Answer(value));
    }

    fn meddle(&self, meddling: Meddling) {
        self.shared.meddling.lock().unwrap().push_back(meddling);
    }

    /// How many plain reads there were since this was last asked.
    pub(crate) fn gets(&self) -> usize {
        assert!(self.shared.meddling.lock().unwrap().is_empty());
        std::mem::take(&mut self.shared.gets.lock().unwrap())
    }

    /// The commands sent since this was last asked, as they went over the wire.
    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.shared.sent.lock().unwrap())
    }
}

impl ConnectionLike for Tap {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let sent = command.get_packed_command();
            self.shared.sent.lock().unwrap().push(sent);
            if command.args_iter().next() == Some(Arg::Simple(b"GET")) {
                *self.shared.gets.lock().unwrap() += 1;
                let meddling = self.shared.meddling.lock().unwrap().pop_front();
                match meddling {
                    None => {}
                    Some(Meddling::First(act)) => act.await,
                    Some(Meddling::Answer(value)) => return Ok(value),
                }
            }
            self.connection.req_packed_command(command).await
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        0
    }
}
