//! A layer over a database, and handlers that are given what they need for a transaction.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::util::BoxCloneSyncService;
use tower::{Layer, service_fn};
use tower_idempotency::{
    IdempotencyLayer, Operation, RequestBody, ResponseBody, SharedByAllCallers, TransactionError,
};

use crate::engine::Engine;
use crate::support::{self, Answer, Runs};

pub type Inner = Response<Body>;

/// What a handler finds.
pub struct Run<E> {
    pub engine: Arc<E>,
    pub operation: Operation,
    /// Counts from 1.
    pub number: usize,
}

impl<E: Engine> Run<E> {
    pub fn key(&self) -> String {
        self.operation.key().as_str().to_owned()
    }

    /// A row of its key, and the answer, in one transaction.
    pub async fn transfer(&self) -> Result<Inner, TransactionError> {
        let mut transaction = self.operation.begin(self.engine.store()).await?;
        E::insert(&mut transaction, &self.key()).await?;
        self.finish(transaction, answer(201, "transferred")).await
    }

    pub async fn finish(
        &self,
        transaction: tower_idempotency::Transaction<E::Store>,
        answer: Inner,
    ) -> Result<Inner, TransactionError> {
        let answer = self.operation.finish(transaction, answer).await?;
        Ok(answer.map(Body::new))
    }
}

pub fn answer(status: u16, body: &'static str) -> Inner {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

pub fn refusal(error: TransactionError) -> Inner {
    error.into_response().map(Body::new)
}

pub type Service =
    BoxCloneSyncService<Request<Full<Bytes>>, Response<ResponseBody<Body>>, Infallible>;

/// A database behind a layer, and a handler on it.
pub struct Scene<E> {
    pub engine: Arc<E>,
    pub service: Service,
    pub runs: Runs,
}

impl<E: Engine> Scene<E> {
    pub async fn new<F, R>(handler: F) -> Self
    where
        F: Fn(Run<E>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<Inner, TransactionError>> + Send + 'static,
    {
        Self::with(|layer| layer, handler).await
    }

    pub async fn with<F, R>(
        options: impl FnOnce(IdempotencyLayer<E::Store>) -> IdempotencyLayer<E::Store>,
        handler: F,
    ) -> Self
    where
        F: Fn(Run<E>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<Inner, TransactionError>> + Send + 'static,
    {
        Self::on(E::start().await, options, handler)
    }

    pub fn on<F, R>(
        engine: E,
        options: impl FnOnce(IdempotencyLayer<E::Store>) -> IdempotencyLayer<E::Store>,
        handler: F,
    ) -> Self
    where
        F: Fn(Run<E>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<Inner, TransactionError>> + Send + 'static,
    {
        let engine = Arc::new(engine);
        let layer = IdempotencyLayer::new(engine.store().clone(), SharedByAllCallers);
        let layer = options(layer);
        let runs = Runs::default();
        let inner = service_fn({
            let (engine, runs) = (Arc::clone(&engine), runs.clone());
            move |request: Request<RequestBody<Full<Bytes>>>| {
                let operation: &Operation = request.extensions().get().unwrap();
                let ran = handler(Run {
                    engine: Arc::clone(&engine),
                    operation: operation.clone(),
                    number: runs.add(),
                });
                async { Ok::<_, Infallible>(ran.await.unwrap_or_else(refusal)) }
            }
        });
        let service = BoxCloneSyncService::new(layer.layer(inner));
        Self {
            engine,
            service,
            runs,
        }
    }

    pub async fn send(&self, key: &str) -> Answer {
        support::send(&self.service, support::post(key, "")).await
    }
}
