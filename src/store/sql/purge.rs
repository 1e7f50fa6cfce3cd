use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::store::{KeyStore, StoreErrorKind, at_random_shorter};

/// Long enough to be worth the trip, short enough that nobody waits behind it.
const BATCH: usize = 1000;

/// A server that went silent is not waited for for ever; the next round begins anew.
const PATIENCE: Duration = Duration::from_secs(60);

/// Removes expired records from time to time, until it is dropped.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct PurgeTask(JoinHandle<()>);

impl PurgeTask {
    pub(crate) fn spawn<K: KeyStore>(store: K, interval: Duration) -> Self {
        Self(tokio::spawn(async move {
            loop {
                sleep(at_random_shorter(interval)).await;
                purge(&store).await;
            }
        }))
    }
}

impl Drop for PurgeTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn purge(store: &impl KeyStore) {
    loop {
        let batch = timeout(PATIENCE, store.purge_expired(BATCH)).await;
        match batch.unwrap_or_else(|_| Err(StoreErrorKind::Ambiguous.into())) {
            Ok(purged) if purged < BATCH => return,
            Ok(_) => tokio::task::yield_now().await,
            Err(_error) => {
                #[cfg(feature = "tracing")]
                tracing::warn!(
                    error = &_error as &dyn std::error::Error,
                    "expired records were not purged"
                );
                return;
            }
        }
    }
}
