//! A store that says where it is, and goes no further.

use std::future::pending;
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fence, Forgot, Hold, KeyStore, Ownership, Record, RecordId,
    Snapshot, StoreError, TransactionalStore,
};

use super::Point;

/// The point at which this process stops, if any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop(pub(crate) Option<Point>);

impl Stop {
    /// Says so and stays there, if that is the point.
    pub(crate) async fn at(self, point: Point) {
        if self.0 == Some(point) {
            say(&format!("at {point:?}"));
            pending::<()>().await;
        }
    }
}

/// On a line of its own: the test harness writes there too.
pub(crate) fn say(what: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "\n{what}").unwrap();
    stdout.flush().unwrap();
}

/// Stops around the claim and around the commit. What was asked is done by then, and the
/// answer kept back: all that a lost answer means to a process that is about to be killed.
#[derive(Clone)]
pub(crate) struct Stopping<T> {
    pub(crate) inner: T,
    pub(crate) stop: Stop,
}

pub(crate) struct StoppingTransaction<T> {
    inner: T,
    stop: Stop,
}

impl<T: Deref> Deref for StoppingTransaction<T> {
    type Target = T::Target;

    fn deref(&self) -> &T::Target {
        &self.inner
    }
}

impl<T: DerefMut> DerefMut for StoppingTransaction<T> {
    fn deref_mut(&mut self) -> &mut T::Target {
        &mut self.inner
    }
}

impl<T: TransactionalStore> TransactionalStore for Stopping<T> {
    type Connection = T::Connection;
    type Transaction = StoppingTransaction<T::Transaction>;

    async fn begin(&self) -> Result<Self::Transaction, StoreError> {
        Ok(StoppingTransaction {
            inner: self.inner.begin().await?,
            stop: self.stop,
        })
    }

    async fn fence(
        &self,
        connection: &mut T::Connection,
        hold: &Hold,
    ) -> Result<Fence, StoreError> {
        self.inner.fence(connection, hold).await
    }

    async fn complete_in(
        &self,
        connection: &mut T::Connection,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Fence, StoreError> {
        self.inner
            .complete_in(connection, hold, record, retention)
            .await
    }

    async fn commit(transaction: Self::Transaction) -> Result<(), StoreError> {
        let committed = T::commit(transaction.inner).await;
        transaction.stop.at(Point::CommitSent).await;
        committed
    }
}

impl<T: KeyStore> KeyStore for Stopping<T> {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        self.stop.at(Point::BeforeClaim).await;
        let claimed = self.inner.claim(request).await;
        self.stop.at(Point::ClaimSent).await;
        claimed
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        self.inner.extend(hold, lease, retention).await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        self.inner.complete(hold, record, retention).await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        self.inner.fail(hold, seal, retention).await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        self.inner.release(hold).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        self.inner.lookup(id).await
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        self.inner.forget(id).await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        self.inner.resolve(id, record, retention).await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        self.inner.purge_expired(at_most).await
    }

    async fn changed(&self, id: &RecordId, at_most: Duration) {
        self.inner.changed(id, at_most).await;
    }
}
