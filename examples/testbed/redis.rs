//! One server, or a cluster of them.

use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClient;
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo, RedisResult};
use tower_idempotency::store::{AnyStore, RedisStore};

use super::{misread, unusable};
use crate::Fault;

// The layer waits 2 s for a call. The driver gives up before that, for it knows more: that
// a connection was refused means that nothing was done, and silence does not.
//
// A call that finds the connection lost waits for the next one: at most four attempts of
// 300 ms, and between them 50, 100 and 200 ms, or at random up to twice as much. That is
// 1.9 s for a server that is silent, and 0.7 s for one that refuses. The next call begins
// anew: the server may be away for as long as it likes.
const TO_CONNECT: Duration = Duration::from_millis(300);
const RETRIES: usize = 3;
const BETWEEN_RETRIES: Duration = Duration::from_millis(50);

/// Half of the 2 s: long enough for a server that waits for its disk.
const TO_ANSWER: Duration = Duration::from_secs(1);

/// Several URLs, separated by commas, are those of a cluster.
pub(super) async fn open(urls: &str) -> Result<AnyStore, Fault> {
    let urls: Vec<&str> = urls.split(',').collect();
    if let [url] = urls[..] {
        let client = client(url).map_err(|error| misread(&error))?;
        check(ConnectionManager::new_with_config(client, reconnecting()).await).await
    } else {
        let client = cluster(&urls).map_err(|error| misread(&error))?;
        check(client.get_async_connection().await).await
    }
}

fn client(url: &str) -> RedisResult<Client> {
    Client::open(url.into_connection_info()?.set_tcp_settings(tcp()))
}

fn reconnecting() -> ConnectionManagerConfig {
    ConnectionManagerConfig::new()
        .set_connection_timeout(Some(TO_CONNECT))
        .set_number_of_retries(RETRIES)
        .set_min_delay(BETWEEN_RETRIES)
        .set_response_timeout(Some(TO_ANSWER))
}

/// Without these, a connection to a cluster waits for an answer for ever, and for 1.3 s and
/// more before it asks again.
fn cluster(urls: &[&str]) -> RedisResult<ClusterClient> {
    ClusterClient::builder(urls.iter().copied())
        .tcp_settings(tcp())
        .connection_timeout(TO_CONNECT)
        .response_timeout(TO_ANSWER)
        .overall_response_timeout(Some(Duration::from_millis(1900)))
        .min_retry_wait(50)
        .max_retry_wait(400)
        .build()
}

fn tcp() -> TcpSettings {
    let settings = TcpSettings::default();
    // A machine that is gone closes no connection, and the driver gives none up for its
    // silence alone: the system has to. By itself it does so after a quarter of an hour.
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(TO_ANSWER);
    settings
}

async fn check<C>(connection: RedisResult<C>) -> Result<AnyStore, Fault>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    let store = RedisStore::new(connection.map_err(|error| unusable(&error))?);
    for warning in store.check().await.map_err(|error| unusable(&error))? {
        eprintln!("testbed: warning: {warning}");
    }
    Ok(AnyStore::new(store))
}
