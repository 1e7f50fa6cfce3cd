//! What the tests need of a database, whichever it is.

use tower_idempotency::TransactionError;
use tower_idempotency::store::TransactionalStore;

/// A new database, with the tables of the store and an empty ledger.
pub trait Engine: Sized + Send + Sync + 'static {
    type Store: TransactionalStore<Connection = Self::Connection>;
    type Connection: Send;
    type Own: std::ops::DerefMut<Target = Self::Connection> + Send;

    fn start() -> impl Future<Output = Self> + Send;

    fn store(&self) -> &Self::Store;

    /// A store on the same database whose records are elsewhere.
    fn other_store(&self) -> impl Future<Output = Self::Store> + Send;

    fn insert(
        connection: &mut Self::Connection,
        key: &str,
    ) -> impl Future<Output = Result<(), TransactionError>> + Send;

    /// The keys in the ledger, in the order of their rows.
    fn ledger(&self) -> impl Future<Output = Vec<String>> + Send;

    /// A transaction as a handler opens one without the layer.
    fn own(&self) -> impl Future<Output = Self::Own> + Send;

    fn commit(own: Self::Own) -> impl Future<Output = ()> + Send;

    /// Behind the back of whoever has the transaction.
    fn rollback_by_hand(connection: &mut Self::Connection) -> impl Future<Output = ()> + Send;
}
