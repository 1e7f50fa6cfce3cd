//! Connections for tests, and what a server has counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ::redis::aio::{
    ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection,
};
use ::redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, RedisResult};

use super::RedisServer;

/// A client connection waits this long for a reply: no test hangs, and a busy machine is not
/// taken for a fault.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a server, or to a proxy before it. One `PING` has gone through it, so that
/// the proxy has it too, and not only the system's queue.
pub async fn multiplexed_at(addr: SocketAddr) -> MultiplexedConnection {
    let mut connection = connect(addr).await.unwrap();
    let _ = ping(&mut connection).await;
    connection
}

/// A managed connection to a server, or to a proxy before it, after one `PING`.
pub async fn manager_at(addr: SocketAddr, config: ConnectionManagerConfig) -> ConnectionManager {
    let made = ConnectionManager::new_with_config(client_at(addr), config).await;
    let mut manager = made.unwrap();
    let _ = ping(&mut manager).await;
    manager
}

/// Its connections send nothing of their own, so that the first request is the test's, and no
/// server counts a greeting that it does not know.
pub fn client_at(addr: SocketAddr) -> Client {
    let address = url(addr).into_connection_info().unwrap();
    let settings = address.redis_settings().clone().set_skip_set_lib_name();
    Client::open(address.set_redis_settings(settings)).unwrap()
}

pub(super) async fn connect(addr: SocketAddr) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(RESPONSE_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    let client = client_at(addr);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

pub(super) async fn ping(connection: &mut impl ConnectionLike) -> RedisResult<String> {
    ::redis::cmd("PING").query_async(connection).await
}

/// Reconnects within milliseconds, and gives up on a server that is down within about half a
/// second, until the next command.
pub fn manager_config() -> ConnectionManagerConfig {
    ConnectionManagerConfig::new()
        .set_min_delay(Duration::from_millis(5))
        .set_max_delay(Duration::from_millis(50))
        .set_number_of_retries(8)
        .set_connection_timeout(Some(RESPONSE_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
}

/// The calls of each command since the start or `reset_stats`, without those that this support
/// and the connections themselves send.
pub async fn command_stats(server: &RedisServer) -> BTreeMap<String, u64> {
    let mut stats = counts(&server.info("commandstats").await, "cmdstat_", "calls=");
    for own in [
        "info",
        "ping",
        "hello",
        "client|setinfo",
        "config|resetstat",
    ] {
        stats.remove(own);
    }
    stats
}

/// The errors answered since the start or `reset_stats`, by their first word: `MOVED`, `OOM`.
pub async fn error_stats(server: &RedisServer) -> BTreeMap<String, u64> {
    counts(&server.info("errorstats").await, "errorstat_", "count=")
}

pub async fn reset_stats(server: &RedisServer) {
    let command = ::redis::cmd("CONFIG").arg("RESETSTAT").take();
    server.query::<()>(&command).await;
}

/// Lines such as `cmdstat_get:calls=3,usec=8`.
fn counts(info: &str, prefix: &str, count: &str) -> BTreeMap<String, u64> {
    let lines = info.lines().filter_map(|line| {
        let (name, values) = line.strip_prefix(prefix)?.split_once(':')?;
        let value = values.split(',').find_map(|it| it.strip_prefix(count))?;
        Some((name.to_owned(), number(value)))
    });
    lines.filter(|(_, count)| *count > 0).collect()
}

pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

pub(super) fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

pub(super) fn url(addr: SocketAddr) -> String {
    format!("redis://{addr}/")
}
