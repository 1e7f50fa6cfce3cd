use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The exchanges that a layer and its clones have under way: keyed requests, from the
/// first byte of their upload until their claim is concluded, whether or not their client
/// is still there. What is concluded may still be on its way to the client.
///
/// An upload that stalls is under way too: bound its time by a layer outside, such as
/// `tower_http::timeout::RequestBodyTimeoutLayer`, and the wait by a time-out.
///
/// ```no_run
/// # async fn shutdown(layer: tower_idempotency::IdempotencyLayer) {
/// // After the server has stopped accepting:
/// layer.in_flight().idle().await;
/// # }
/// ```
#[derive(Clone, Default)]
pub struct InFlight(Arc<Counter>);

#[derive(Default)]
struct Counter {
    exchanges: AtomicUsize,
    /// Everything that is to be waited for: exchanges, and what some of them left to do.
    all: AtomicUsize,
    idle: Notify,
}

impl InFlight {
    /// How many there are now.
    pub fn count(&self) -> usize {
        self.0.all.load(Ordering::Acquire)
    }

    /// Returns once there are none. Stop accepting requests first: it waits for those
    /// that come meanwhile too.
    pub async fn idle(&self) {
        loop {
            let mut idle = pin!(self.0.idle.notified());
            // Enabled before the count is read, so that the last end is not missed.
            idle.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Counts one more exchange, unless there are `at_most` already.
    pub(crate) fn enter(&self, at_most: usize) -> Option<Counted> {
        let counter = &self.0;
        let enter = |count| (count < at_most).then_some(count + 1);
        counter
            .exchanges
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, enter)
            .ok()?;
        counter.all.fetch_add(1, Ordering::AcqRel);
        Some(Counted {
            in_flight: self.clone(),
            is_exchange: true,
        })
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InFlight").field(&self.count()).finish()
    }
}

/// One exchange, or the work that it left behind, for as long as it lives.
pub(crate) struct Counted {
    in_flight: InFlight,
    is_exchange: bool,
}

impl Counted {
    /// Work that an exchange leaves behind is waited for, and takes no place: an outage of
    /// the store would otherwise outlast itself.
    pub(super) fn aftermath(&self) -> Self {
        self.in_flight.0.all.fetch_add(1, Ordering::AcqRel);
        Self {
            in_flight: self.in_flight.clone(),
            is_exchange: false,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let counter = &self.in_flight.0;
        if self.is_exchange {
            counter.exchanges.fetch_sub(1, Ordering::AcqRel);
        }
        if counter.all.fetch_sub(1, Ordering::AcqRel) == 1 {
            counter.idle.notify_waiters();
        }
    }
}
