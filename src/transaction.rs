mod error;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http_body::Body;

pub use self::error::TransactionError;
use crate::body::ResponseBody;
use crate::exchange::{Entry, Operation, Progress, Proof, in_time, prove, recorded};
use crate::model::error::BoxError;
use crate::store::{Fence, Hold, Record, StoreError, StoreErrorKind, TransactionalStore};

/// An open transaction of an [`Operation`]: the handler's own statements run on it, and
/// [`Operation::finish`] commits them together with the answer.
///
/// While it is open nobody can take the key over, and dropping it rolls it back.
///
/// It dereferences to the connection, such as `sqlx::PgConnection`: pass `&mut *transaction`
/// where one is wanted. A `BEGIN`, `COMMIT` or `ROLLBACK` of your own does not belong there;
/// a savepoint does. After an error of a statement, drop it: it is bound to roll back then,
/// and SQLite may have done so already, and would commit by itself what comes after.
pub struct Transaction<T: TransactionalStore> {
    // In this order they are dropped: the lock goes first, and then the word that it has.
    inner: T::Transaction,
    fenced: Fenced,
    store: T,
    hold: Hold,
}

impl<T: TransactionalStore> Deref for Transaction<T> {
    type Target = T::Connection;

    fn deref(&self) -> &T::Connection {
        &self.inner
    }
}

impl<T: TransactionalStore> DerefMut for Transaction<T> {
    fn deref_mut(&mut self) -> &mut T::Connection {
        &mut self.inner
    }
}

impl<T: TransactionalStore> fmt::Debug for Transaction<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}

/// Renewals pause for as long as it lives: the lock on the record is the lease.
struct Fenced(Arc<Progress>);

impl Drop for Fenced {
    fn drop(&mut self) {
        self.0.unfence();
    }
}

/// Transaction mode: the handler's effect and its recorded answer commit together, so that
/// no kill, no lost reply and no restart leaves one without the other.
///
/// `store` is the layer's store or any other of the same records. What the methods do with
/// the answer is final: no [`Verdict`](crate::Verdict) and no
/// [`FailurePolicy`](crate::FailurePolicy) follows, and the layer stores nothing. Layers
/// between the handler and this one change the first caller's answer and not the record.
impl Operation {
    /// Opens a transaction in which this run holds its key: no take-over succeeds while it
    /// is open, whatever became of the lease. An operation has one at a time. Two trips to the
    /// database.
    ///
    /// Dropped, it is rolled back, and the answer is judged as usual: a 402 is recorded. But an
    /// answer 2xx or 3xx without a [`Verdict`](crate::Verdict) is that of a handler which forgot
    /// to [`finish`](Self::finish): it is replaced by 500 `transaction-failed`, a failed run.
    ///
    #[cfg_attr(feature = "postgres", doc = "```")]
    #[cfg_attr(not(feature = "postgres"), doc = "```ignore")]
    /// use axum::{Extension, body::Body, extract::State, response::IntoResponse};
    /// use http::Response;
    /// use tower_idempotency::store::PostgresStore;
    /// use tower_idempotency::{Operation, TransactionError, sqlx};
    ///
    /// async fn pay(
    ///     store: &PostgresStore,
    ///     operation: &Operation,
    /// ) -> Result<impl IntoResponse, TransactionError> {
    ///     let mut transaction = operation.begin(store).await?;
    ///     sqlx::query("UPDATE account SET cents = cents - 1999")
    ///         .execute(&mut *transaction)
    ///         .await?;
    ///     // Whatever returns before this rolls back.
    ///     operation.finish(transaction, Response::new(Body::from("paid"))).await
    /// }
    ///
    /// async fn handler(
    ///     State(store): State<PostgresStore>,
    ///     Extension(operation): Extension<Operation>,
    /// ) -> impl IntoResponse {
    ///     match pay(&store, &operation).await {
    ///         Ok(answer) => answer.into_response(),
    ///         Err(error) => error.into_response().into_response(),
    ///     }
    /// }
    /// # let _ = axum::Router::new().route("/", axum::routing::post(handler));
    /// ```
    ///
    /// # Errors
    ///
    /// [`LostOwnership`](TransactionError::LostOwnership) when another run has taken over or
    /// this one is concluded; [`NotInStore`](TransactionError::NotInStore) when the store is
    /// not the layer's; [`Misuse`](TransactionError::Misuse) when one is open;
    /// [`Store`](TransactionError::Store) when the database fails, or takes longer than the
    /// layer's [`store_timeout`](crate::IdempotencyLayer::store_timeout).
    pub async fn begin<T: TransactionalStore>(
        &self,
        store: &T,
    ) -> Result<Transaction<T>, TransactionError> {
        if !self.progress.fence() {
            return Err(TransactionError::Misuse(
                "this operation has an open transaction already",
            ));
        }
        let fenced = Fenced(Arc::clone(&self.progress));
        let begun = async {
            let mut inner = store.begin().await?;
            let fence = store.fence(&mut inner, &self.hold).await?;
            Ok((inner, fence))
        };
        let (inner, fence) = self.in_time(begun).await?;
        held(fence)?;
        self.progress.set_entry(Some(Entry::Begun));
        Ok(Transaction {
            inner,
            fenced,
            store: store.clone(),
            hold: self.hold.clone(),
        })
    }

    /// Records the answer in the transaction and commits. The body is read first, up to the
    /// layer's [`response_body_limit`](crate::IdempotencyLayer::response_body_limit); of a
    /// longer one the head is recorded, and the body marked as omitted. Two trips to the
    /// database. A body that takes its time to come keeps the locks for as long.
    ///
    /// When the answer of the commit is lost, the record is looked for until it is known
    /// what became of it, for up to
    /// [`store_timeout`](crate::IdempotencyLayer::store_timeout).
    ///
    /// # Errors
    ///
    /// Nothing was committed, unless it is [`InDoubt`](TransactionError::InDoubt): then the
    /// layer goes on asking, and answers the caller by what it finds.
    /// [`Misuse`](TransactionError::Misuse) when the transaction is another operation's, or
    /// the answer has a status 1xx; [`Body`](TransactionError::Body) when the answer's body
    /// breaks off; [`LostOwnership`](TransactionError::LostOwnership);
    /// [`Store`](TransactionError::Store).
    #[doc(alias = "commit")]
    pub async fn finish<T, B>(
        &self,
        transaction: Transaction<T>,
        response: Response<B>,
    ) -> Result<Response<ResponseBody<B>>, TransactionError>
    where
        T: TransactionalStore,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if transaction.hold.owner != self.hold.owner {
            return Err(TransactionError::Misuse(
                "the transaction belongs to another operation",
            ));
        }
        let (record, retention, answer) = self.recorded(response).await?;
        // The lock is to be gone before the word that it is: the last is dropped first.
        let Transaction {
            fenced,
            mut inner,
            store,
            hold,
        } = transaction;
        let write = store.complete_in(&mut inner, &hold, &record, retention);
        held(self.in_time(write).await?)?;
        // Before it is sent: a time-out around the handler may drop this future.
        self.progress.set_entry(Some(Entry::Sent(record.status())));
        let Err(error) = self.in_time(T::commit(inner)).await else {
            return Ok(self.committed(answer));
        };
        drop(fenced);
        if error.kind() != StoreErrorKind::Ambiguous {
            self.progress.set_entry(Some(Entry::Begun));
            return Err(error.into());
        }
        let limit = self.config.store_timeout;
        match prove(&store, &hold, &self.progress, &self.config, limit).await {
            Proof::Committed(_) => Ok(self.committed(answer)),
            Proof::RolledBack => {
                self.progress.set_entry(Some(Entry::Begun));
                Err(error.into())
            }
            Proof::Lost => {
                self.progress.set_entry(Some(Entry::Begun));
                Err(TransactionError::LostOwnership)
            }
            Proof::Unknown => Err(TransactionError::InDoubt(error)),
        }
    }

    /// In a transaction of the handler's own: makes this run hold its key until that
    /// transaction ends. It has to be the first statement under `REPEATABLE READ` and
    /// `SERIALIZABLE`: a renewal of the lease would otherwise change the record after the
    /// snapshot, and [`complete_in`](Self::complete_in) fail for that. Under `READ COMMITTED` it
    /// is optional: a run that was taken over finds out in `complete_in`. In SQLite, begin with
    /// `BEGIN IMMEDIATE`.
    ///
    /// # Errors
    ///
    /// [`LostOwnership`](TransactionError::LostOwnership),
    /// [`NotInStore`](TransactionError::NotInStore), [`Store`](TransactionError::Store): the
    /// transaction is to be rolled back.
    ///
    #[cfg_attr(feature = "postgres", doc = "```")]
    #[cfg_attr(not(feature = "postgres"), doc = "```ignore")]
    /// # use axum::body::Body;
    /// # use http::Response;
    /// # use tower_idempotency::store::PostgresStore;
    /// # use tower_idempotency::{Operation, ResponseBody, TransactionError};
    /// use tower_idempotency::sqlx::{self, PgPool};
    ///
    /// async fn pay(
    ///     pool: &PgPool,
    ///     store: &PostgresStore,
    ///     operation: &Operation,
    /// ) -> Result<Response<ResponseBody<Body>>, TransactionError> {
    ///     let mut own = pool.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
    ///     operation.fence(store, &mut own).await?;
    ///     sqlx::query("UPDATE account SET cents = cents - 1999").execute(&mut *own).await?;
    ///     let answer = Response::new(Body::from("paid"));
    ///     let answer = operation.complete_in(store, &mut own, answer).await?;
    ///     own.commit().await?;
    ///     Ok(answer)
    /// }
    /// ```
    pub async fn fence<T: TransactionalStore>(
        &self,
        store: &T,
        connection: &mut T::Connection,
    ) -> Result<(), TransactionError> {
        held(self.in_time(store.fence(connection, &self.hold)).await?)?;
        self.progress.lock();
        Ok(())
    }

    /// In a transaction of the handler's own: records the answer. Commit, then return it.
    /// The body is read as [`finish`](Self::finish) does.
    ///
    /// The layer looks the record up before it answers. If it is not there, an answer of
    /// the status that was to be recorded is replaced by 500 `transaction-failed`, and the
    /// run has failed; any other answer is judged as usual.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish): the transaction is to be rolled back.
    pub async fn complete_in<T, B>(
        &self,
        store: &T,
        connection: &mut T::Connection,
        response: Response<B>,
    ) -> Result<Response<ResponseBody<B>>, TransactionError>
    where
        T: TransactionalStore,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (record, retention, answer) = self.recorded(response).await?;
        // Before it is sent: this future may be dropped, and the transaction commit.
        let before = self.progress.entry();
        let entry = Entry::Written(record.status());
        self.progress.set_entry(Some(entry));
        let write = store.complete_in(connection, &self.hold, &record, retention);
        held(self.in_time(write).await?).inspect_err(|_| self.progress.set_entry(before))?;
        Ok(answer)
    }

    async fn in_time<V>(
        &self,
        call: impl Future<Output = Result<V, StoreError>>,
    ) -> Result<V, StoreError> {
        in_time(self.config.store_timeout, call).await
    }

    async fn recorded<B>(
        &self,
        response: Response<B>,
    ) -> Result<(Record, Duration, Response<ResponseBody<B>>), TransactionError>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if response.status().is_informational() {
            return Err(TransactionError::Misuse(
                "an answer with a status 1xx is not final",
            ));
        }
        let (record, retention, answer) = recorded(response, &self.config)
            .await
            .map_err(TransactionError::Body)?;
        Ok((record, retention, answer.map(ResponseBody::from)))
    }

    fn committed<A>(&self, answer: A) -> A {
        self.progress.set_entry(Some(Entry::Committed));
        answer
    }
}

fn held(fence: Fence) -> Result<(), TransactionError> {
    match fence {
        Fence::Held => Ok(()),
        Fence::Lost => Err(TransactionError::LostOwnership),
        Fence::Unknown => Err(TransactionError::NotInStore),
        Fence::NoTransaction => Err(TransactionError::Misuse(
            "the transaction cannot commit: it was ended by hand, or a statement in it has failed",
        )),
    }
}
