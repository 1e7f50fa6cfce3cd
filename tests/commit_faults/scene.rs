//! A handler that transfers in a transaction, on a server behind a proxy.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ::sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::util::BoxCloneSyncService;
use tower::{Layer, service_fn};
use tower_idempotency::store::PostgresStore;
use tower_idempotency::{
    IdempotencyLayer, InFlight, Operation, RequestBody, ResponseBody, SharedByAllCallers,
    TransactionError,
};

use crate::support::postgres::{PostgresServer, execute};
use crate::support::proxy::Proxy;
use crate::support::{self, Answer, Runs};

pub const STORE_TIMEOUT: Duration = Duration::from_millis(700);
/// What the driver sends to commit.
pub const COMMIT: &str = "COMMIT";

pub struct Run {
    pub server: Arc<PostgresServer>,
    pub proxy: Arc<Proxy>,
    pub pool: PgPool,
    pub store: PostgresStore,
    pub operation: Operation,
    pub number: usize,
}

impl Run {
    /// Everything but `finish`.
    pub async fn begin(
        &self,
    ) -> Result<tower_idempotency::Transaction<PostgresStore>, TransactionError> {
        let mut transaction = self.operation.begin(&self.store).await?;
        ::sqlx::query("INSERT INTO ledger (key) VALUES ($1)")
            .bind(self.operation.key().as_str())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    pub async fn finish(
        &self,
        transaction: tower_idempotency::Transaction<PostgresStore>,
    ) -> Result<Response<Body>, TransactionError> {
        let answer = answer(StatusCode::CREATED, "transferred");
        let finished = self.operation.finish(transaction, answer).await?;
        Ok(finished.map(Body::new))
    }
}

pub fn answer(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer
}

type Service = BoxCloneSyncService<Request<Full<Bytes>>, Response<ResponseBody<Body>>, Infallible>;

pub struct Scene {
    pub server: Arc<PostgresServer>,
    pub proxy: Arc<Proxy>,
    pub service: Service,
    pub runs: Runs,
    pub in_flight: InFlight,
    direct: PgConnectOptions,
}

impl Scene {
    /// `handler` gets its runs with their numbers, from 1.
    pub async fn new<F, R>(handler: F) -> Self
    where
        F: Fn(Run) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<Response<Body>, TransactionError>> + Send + 'static,
    {
        let server = Arc::new(PostgresServer::start().await);
        let proxy = Arc::new(Proxy::start(server.addr()).await);
        let through = server.options().port(proxy.addr().port());
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_millis(500))
            .connect_with(through)
            .await
            .unwrap();
        let store = PostgresStore::new(pool.clone());
        store.migrate().await.unwrap();
        let ledger = "CREATE TABLE ledger \
                      (number bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL)";
        execute(&pool, ledger).await;

        let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers)
            .store_timeout(STORE_TIMEOUT)
            .lease(Duration::from_secs(3));
        let in_flight = layer.in_flight();
        let runs = Runs::default();
        let inner = service_fn({
            let (server, proxy, runs) = (server.clone(), proxy.clone(), runs.clone());
            move |request: Request<RequestBody<Full<Bytes>>>| {
                let operation: &Operation = request.extensions().get().unwrap();
                let ran = handler(Run {
                    server: server.clone(),
                    proxy: proxy.clone(),
                    pool: pool.clone(),
                    store: store.clone(),
                    operation: operation.clone(),
                    number: runs.add(),
                });
                async {
                    let answer = ran.await;
                    let refused = |error: TransactionError| error.into_response().map(Body::new);
                    Ok::<_, Infallible>(answer.unwrap_or_else(refused))
                }
            }
        });
        Self {
            direct: server.options(),
            server,
            proxy,
            service: BoxCloneSyncService::new(layer.layer(inner)),
            runs,
            in_flight,
        }
    }

    pub async fn send(&self, key: &str) -> Answer {
        support::send(&self.service, support::post(key, "")).await
    }

    /// As a client does that wants its answer.
    pub async fn send_until_final(&self, key: &str) -> Answer {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let answer = self.send(key).await;
            if answer.status.is_success() {
                return answer;
            }
            let now = tokio::time::Instant::now();
            assert!(now < deadline, "no final answer: {answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn ledger(&self) -> Vec<String> {
        use ::sqlx::{ConnectOptions, Connection};
        let mut connection = self.direct.connect().await.unwrap();
        let keys = ::sqlx::query_scalar("SELECT key FROM ledger ORDER BY number");
        let keys = keys.fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        keys
    }
}

#[track_caller]
pub fn assert_unavailable(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert_eq!(answer.code().as_deref(), Some("store-unavailable"));
    assert_eq!(answer.header("retry-after"), Some("1"));
}
