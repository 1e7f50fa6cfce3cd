//! What a handler may do. Each way transfers once if it commits, and answers as the layer says.

use axum::body::Body;
use http::{Response, StatusCode};
use tower_idempotency::store::TransactionalStore;
use tower_idempotency::{Operation, TransactionError};

use crate::chance::Chance;
use crate::trail::Trail;

pub type Answered = Result<Response<Body>, TransactionError>;

/// A store in whose database there is a ledger.
pub trait Bank: TransactionalStore {
    fn insert(
        connection: &mut Self::Connection,
        key: &str,
    ) -> impl Future<Output = Result<(), TransactionError>> + Send;
}

#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// `begin` and `finish`.
    Transaction,
    /// A transaction of its own, with a fence or without one.
    OwnTransaction { fences: bool },
    /// Drops a transaction in the middle, and begins another one.
    OnSecondThoughts,
    /// Does everything again if it fails.
    TriesTwice,
    /// Leaves the work to a task, which goes on where the handler does not.
    InATask,
}

/// The ordinary one is drawn twice as often.
pub const WAYS: [Way; 7] = [
    Way::Transaction,
    Way::Transaction,
    Way::OwnTransaction { fences: true },
    Way::OwnTransaction { fences: false },
    Way::OnSecondThoughts,
    Way::TriesTwice,
    Way::InATask,
];

#[derive(Clone)]
pub struct Run<S> {
    pub operation: Operation,
    pub store: S,
    pub chance: Chance,
    pub trail: Trail,
}

impl<S: Bank> Run<S> {
    pub async fn go(self, way: Way) -> Answered {
        match way {
            Way::Transaction => self.transfer().await,
            Way::OwnTransaction { fences } => self.transfer_on_its_own(fences).await,
            Way::OnSecondThoughts => {
                let mut transaction = self.operation.begin(&self.store).await?;
                S::insert(&mut transaction, self.key()).await?;
                drop(transaction);
                self.transfer().await
            }
            Way::TriesTwice => match self.transfer().await {
                Ok(answer) => Ok(answer),
                Err(_) => self.transfer().await,
            },
            Way::InATask => {
                let task = tokio::spawn(crate::node::in_time(async move { self.transfer().await }));
                match task.await {
                    Ok(Some(answered)) => answered,
                    Ok(None) => Ok(answer(
                        StatusCode::GATEWAY_TIMEOUT,
                        "the task took too long",
                    )),
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                }
            }
        }
    }

    async fn transfer(&self) -> Answered {
        self.at("begins");
        let mut transaction = self.operation.begin(&self.store).await?;
        self.at("inserts");
        S::insert(&mut transaction, self.key()).await?;
        self.dawdle().await;
        self.at("finishes");
        let finished = self.operation.finish(transaction, transferred()).await?;
        self.at("has finished");
        Ok(finished.map(Body::new))
    }

    async fn transfer_on_its_own(&self, fences: bool) -> Answered {
        let Self {
            operation, store, ..
        } = self;
        self.at("begins on its own");
        let mut own = store.begin().await?;
        if fences {
            self.at("fences");
            operation.fence(store, &mut own).await?;
        }
        self.at("inserts");
        S::insert(&mut own, self.key()).await?;
        self.dawdle().await;
        self.at("records");
        let recorded = operation.complete_in(store, &mut own, transferred());
        let recorded = recorded.await?;
        self.at("commits");
        S::commit(own).await?;
        self.at("has committed");
        Ok(recorded.map(Body::new))
    }

    /// Up to most of a lease, now and then.
    async fn dawdle(&self) {
        if self.chance.one_in(4) {
            tokio::time::sleep(self.chance.up_to(200)).await;
        }
    }

    fn key(&self) -> &str {
        self.operation.key().as_str()
    }

    fn at(&self, step: &str) {
        let attempt = self.operation.attempt();
        self.trail.add(self.key(), format!("{attempt}: {step}"));
    }
}

pub fn transferred() -> Response<Body> {
    answer(StatusCode::CREATED, "transferred")
}

pub fn answer(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer
}
