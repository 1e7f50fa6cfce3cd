use std::future::Future;
use std::ops::DerefMut;
use std::time::Duration;

use super::{Hold, KeyStore, Record, StoreError};

/// A store whose records live in the database that the handler writes to as well, so that
/// an effect and its record commit together: what
/// [`Operation::begin`](crate::Operation::begin) and its kin build on.
///
/// # The contract
///
/// 1. As long as a transaction is open in which [`fence`](Self::fence) said
///    [`Held`](Fence::Held), nobody can take the key over, whatever became of the lease; a
///    claim of the same key answers [`InProgress`](super::Claimed::InProgress) once the
///    lease is over, and does not wait for the transaction.
/// 2. [`complete_in`](Self::complete_in) writes for the current owner of a running record
///    alone, also past its lease as long as nobody has taken over. The record is seen by
///    others when the transaction commits, and never if it does not.
/// 3. A claim by the same owner, once the transaction has ended, tells how: it is
///    [`Completed`](super::Claimed::Completed) if it committed, and
///    [`Acquired`](super::Claimed::Acquired) if it did not. While it has not ended, it is
///    `InProgress`.
/// 4. An error of [`commit`](Self::commit) is
///    [`Ambiguous`](super::StoreErrorKind::Ambiguous) if the transaction may have committed
///    and of another kind if it has not. After an error of any other method the transaction
///    is good for nothing but a rollback.
pub trait TransactionalStore: KeyStore + Clone {
    /// What statements run on.
    type Connection: Send;

    /// An open transaction of the store's own pool; rolled back when it is dropped.
    type Transaction: DerefMut<Target = Self::Connection> + Send;

    /// Opens a transaction.
    ///
    /// # Errors
    ///
    /// When the database does not open one.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction, StoreError>> + Send;

    /// Locks the record of a hold until the transaction on this connection ends.
    ///
    /// # Errors
    ///
    /// When the database refuses, or the connection breaks.
    fn fence(
        &self,
        connection: &mut Self::Connection,
        hold: &Hold,
    ) -> impl Future<Output = Result<Fence, StoreError>> + Send;

    /// Writes the final answer in the transaction on this connection; it is kept for
    /// `retention` from now.
    ///
    /// # Errors
    ///
    /// When the database refuses, or the connection breaks.
    fn complete_in(
        &self,
        connection: &mut Self::Connection,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> impl Future<Output = Result<Fence, StoreError>> + Send;

    /// Commits.
    ///
    /// # Errors
    ///
    /// [`Ambiguous`](super::StoreErrorKind::Ambiguous) when it may have committed, and of
    /// another kind when it has not.
    fn commit(
        transaction: Self::Transaction,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Whether a hold still stands, as the transaction sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fence {
    /// The run is under way and its owner holds the key.
    Held,
    /// The run is over, or another owner has the key.
    Lost,
    /// The store has no such record: it is not the one that granted the claim, or it has
    /// lost it.
    Unknown,
    /// No transaction that could commit is open on the connection, as far as the store can
    /// tell: it was ended by hand, or a statement in it has failed. Nothing was written.
    NoTransaction,
}
