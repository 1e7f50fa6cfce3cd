//! The process that is killed: a server with one route, which stops where it is told to.

use std::convert::Infallible;
use std::io::Read;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tower_idempotency::store::TransactionalStore;
use tower_idempotency::{
    FailurePolicy, IdempotencyLayer, Operation, SharedByAllCallers, TransactionError,
};

use super::ledger::Ledger;
use super::stopping::{Stop, Stopping, say};
use super::{Mode, OnFailure, Point, Settings, named};

/// The name of the test below, by which the others start it.
pub(crate) const ENTRY: &str = "child::serves_until_it_is_killed";

pub(crate) const URL: &str = "KILLED_PROCESS_URL";
pub(crate) const MODE: &str = "KILLED_PROCESS_MODE";
pub(crate) const ON_FAILURE: &str = "KILLED_PROCESS_ON_FAILURE";
pub(crate) const LEASE: &str = "KILLED_PROCESS_LEASE_MS";
pub(crate) const STOP: &str = "KILLED_PROCESS_STOP";

/// The two halves of every answer's body.
pub(crate) const HALVES: [&str; 2] = ["one half, ", "the other half"];

/// A busy machine is not taken for a store that fails.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::test]
#[ignore = "the process that other tests start and kill"]
async fn serves_until_it_is_killed() {
    let told = |name| std::env::var(name).expect("only the other tests can start this one");
    let url = told(URL);
    let settings = Settings {
        mode: named(&[Mode::Transaction, Mode::Plain], &told(MODE)).unwrap(),
        on_failure: named(&[OnFailure::RunAgain, OnFailure::Refuse], &told(ON_FAILURE)).unwrap(),
        lease: Duration::from_millis(told(LEASE).parse().unwrap()),
        stop: named(&Point::ALL, &told(STOP)),
    };
    std::thread::spawn(end_with_the_parent);
    match url.split_once(':') {
        #[cfg(feature = "postgres")]
        Some(("postgres", _)) => {
            serve::<tower_idempotency::store::PostgresStore>(&url, settings).await;
        }
        #[cfg(feature = "sqlite")]
        Some(("sqlite", _)) => {
            serve::<tower_idempotency::store::SqliteStore>(&url, settings).await;
        }
        _ => panic!("{url}"),
    }
}

/// Its end of the pipe is closed, however it ends.
fn end_with_the_parent() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(1);
}

async fn serve<L: Ledger>(url: &str, settings: Settings) {
    let inner = L::open(url).await;
    let (mode, stop) = (settings.mode, Stop(settings.stop));
    let store = Stopping { inner, stop };
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers)
        .lease(settings.lease)
        .store_timeout(STORE_TIMEOUT)
        .on_failure(match settings.on_failure {
            OnFailure::RunAgain => FailurePolicy::RunAgain,
            OnFailure::Refuse => FailurePolicy::Refuse,
        });
    let app = Router::new()
        .route("/charge", post(charge::<L>))
        .with_state(Charging { store, mode })
        .route_layer(layer)
        .route_layer(from_fn(move |request, next| outside(stop, request, next)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    say(&format!("listening on {}", listener.local_addr().unwrap()));
    axum::serve(listener, app).await.unwrap();
}

#[derive(Clone)]
struct Charging<L> {
    store: Stopping<L>,
    mode: Mode,
}

async fn charge<L: Ledger>(
    State(Charging { store, mode }): State<Charging<L>>,
    Extension(operation): Extension<Operation>,
) -> Response {
    store.stop.at(Point::Claimed).await;
    let charged = match mode {
        Mode::Transaction => with_its_answer(&store, &operation).await,
        Mode::Plain => by_itself(&store, &operation).await,
    };
    charged.unwrap_or_else(|error| error.into_response().map(Body::new))
}

async fn with_its_answer<L: Ledger>(
    store: &Stopping<L>,
    operation: &Operation,
) -> Result<Response, TransactionError> {
    let mut transaction = operation.begin(store).await?;
    L::insert(&mut transaction, operation.key().as_str()).await?;
    store.stop.at(Point::EffectWritten).await;
    let answer = operation.finish(transaction, answer(store.stop)).await?;
    store.stop.at(Point::Committed).await;
    Ok(answer.map(Body::new))
}

async fn by_itself<L: Ledger>(
    store: &Stopping<L>,
    operation: &Operation,
) -> Result<Response, TransactionError> {
    let mut transaction = store.begin().await?;
    L::insert(&mut transaction, operation.key().as_str()).await?;
    store.stop.at(Point::EffectWritten).await;
    Stopping::<L>::commit(transaction).await?;
    store.stop.at(Point::Committed).await;
    Ok(answer(store.stop))
}

/// Its length is not told, so that the layer does not wait for the end of it by itself.
fn answer(stop: Stop) -> Response {
    let [one, other] = HALVES.map(Bytes::from);
    let other = stream::once(async move {
        stop.at(Point::InBody).await;
        other
    });
    let halves = stream::iter([one]).chain(other).map(Ok::<_, Infallible>);
    (StatusCode::CREATED, Body::from_stream(halves)).into_response()
}

/// What happens to the answer once the layer has given it.
async fn outside(stop: Stop, request: Request, next: Next) -> Response {
    let answer = next.run(request).await;
    stop.at(Point::Recorded).await;
    if stop.0 != Some(Point::InAnswer) {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let mut one = body.collect().await.unwrap().to_bytes();
    let other = one.split_off(HALVES[0].len());
    let other = stream::once(async move {
        stop.at(Point::InAnswer).await;
        other
    });
    let halves = stream::iter([one]).chain(other).map(Ok::<_, Infallible>);
    Response::from_parts(head, Body::from_stream(halves))
}
