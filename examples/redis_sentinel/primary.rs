//! A connection to whatever Sentinel calls the primary, which follows a fail-over. To be
//! copied: it needs `redis` with the features `sentinel` and `tokio-comp`, and `tokio`.

use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::sentinel::SentinelClient;
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, ServerError, Value,
};
use tokio::sync::OnceCell;

/// The first command asks Sentinel for the primary, and connects. When an answer says that
/// this is no longer the primary, the command fails and the next one asks again.
///
/// No command is sent twice: whoever sent it knows whether it may be. Clones share the
/// connection, and of those who need a new one at the same time, one makes it for all.
#[derive(Clone)]
pub(crate) struct Primary(Arc<Shared>);

struct Shared {
    sentinel: tokio::sync::Mutex<SentinelClient>,
    config: AsyncConnectionConfig,
    current: Mutex<Arc<Link>>,
}

/// One connection, or why there is none. Empty until a command needs it.
type Link = OnceCell<RedisResult<MultiplexedConnection>>;

impl Primary {
    /// The client is one for `SentinelServerType::Master`, the configuration that of the
    /// connections to the primary. A server that vanishes is left when a command reaches the
    /// response time-out, 500 ms by default: it has to be below the layer's `store_timeout`,
    /// since a command that was dropped tells nothing.
    pub(crate) fn new(sentinel: SentinelClient, config: AsyncConnectionConfig) -> Self {
        Self(Arc::new(Shared {
            sentinel: tokio::sync::Mutex::new(sentinel),
            config,
            current: Mutex::default(),
        }))
    }

    async fn connected(&self) -> RedisResult<(Arc<Link>, MultiplexedConnection)> {
        let link = Arc::clone(&self.current());
        match link.get_or_init(|| self.connect()).await.clone() {
            Ok(connection) => Ok((link, connection)),
            Err(error) => {
                self.leave(&link);
                Err(error)
            }
        }
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let mut sentinel = self.0.sentinel.lock().await;
        let config = &self.0.config;
        sentinel.get_async_connection_with_config(config).await
    }

    /// Has the next command connect anew, unless one has already.
    fn leave(&self, link: &Arc<Link>) {
        let mut current = self.current();
        if Arc::ptr_eq(&current, link) {
            *current = Arc::default();
        }
    }

    fn current(&self) -> MutexGuard<'_, Arc<Link>> {
        let current = self.0.current.lock();
        current.unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionLike for Primary {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let (link, mut connection) = self.connected().await?;
            let answer = connection.req_packed_command(cmd).await;
            if is_lost(answer.as_ref().map(slice::from_ref)) {
                self.leave(&link);
            }
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let (link, mut connection) = self.connected().await?;
            let answer = connection.req_packed_commands(pipeline, offset, count);
            let answer = answer.await;
            if is_lost(answer.as_deref()) {
                self.leave(&link);
            }
            answer
        })
    }

    fn get_db(&self) -> i64 {
        match self.current().get() {
            Some(Ok(connection)) => connection.get_db(),
            _ => 0,
        }
    }
}

/// Whether the connection is broken or silent, or leads to a server that is not, or should
/// not be, the primary. What a server refuses comes as a value here, not as an error.
fn is_lost(answer: Result<&[Value], &RedisError>) -> bool {
    match answer {
        Ok(values) => values.iter().any(|value| match value {
            Value::ServerError(error) => is_no_primary(error),
            _ => false,
        }),
        Err(error) if error.is_io_error() || error.is_unrecoverable_error() => true,
        // An aborted transaction.
        Err(error) => match error.clone().into_server_errors() {
            Some(errors) => errors.iter().any(|(_, error)| is_no_primary(error)),
            None => false,
        },
    }
}

fn is_no_primary(error: &ServerError) -> bool {
    match error.code() {
        // The last is a primary that was cut off: there may be another one by now.
        "READONLY" | "MASTERDOWN" | "NOREPLICAS" => true,
        // Before 7.0, what a script was refused for is told in the text.
        "ERR" => error
            .details()
            .is_some_and(|text| text.contains("-READONLY ")),
        _ => false,
    }
}
