//! The server: authentication outside, the layer inside of it, the handler inside of that.

use std::collections::HashMap;
use std::io;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Form, Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_idempotency::store::AnyStore;
use tower_idempotency::{IdempotencyLayer, Operation, Scope, by_extension};

use crate::gateway::{Charge, Gateway, GatewayDown};

pub(crate) async fn serve(
    listener: TcpListener,
    store: AnyStore,
    namespace: &str,
    gateway: Gateway,
) -> io::Result<()> {
    let scope = by_extension(|account: &Account| Scope::new(account.0));
    let idempotency = IdempotencyLayer::new(store, scope)
        .namespace(namespace)
        .require_key(true);
    let in_flight = idempotency.in_flight();

    let app = Router::new()
        .route("/payments", post(pay))
        .route_layer(idempotency)
        // Added later, so outside: a stranger gets no replay either.
        .route_layer(from_fn(authenticate))
        // Added after the layers, so open to everybody. For this example only.
        .route("/ledger", get(ledger))
        .with_state(gateway);
    axum::serve(listener, app)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    // A payment whose client has left is finished and recorded all the same.
    in_flight.idle().await;
    Ok(())
}

/// Who pays. The account owns the keys, and not the token, which changes when it is renewed.
#[derive(Clone, Copy)]
struct Account(&'static str);

/// Stands for the check of a session or of a signature.
async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    let credentials = request.headers().get(AUTHORIZATION);
    let account = match credentials.map(HeaderValue::as_bytes) {
        Some(b"Bearer ann-token") => Account("ann"),
        Some(b"Bearer bob-token") => Account("bob"),
        _ => return Err(StatusCode::UNAUTHORIZED),
    };
    request.extensions_mut().insert(account);
    Ok(next.run(request).await)
}

async fn pay(
    State(gateway): State<Gateway>,
    Extension(account): Extension<Account>,
    Extension(operation): Extension<Operation>,
    Form(payment): Form<HashMap<String, String>>,
) -> Result<impl IntoResponse, PaymentError> {
    let amount = payment.get("amount_cents").and_then(|it| it.parse().ok());
    let (Some(amount_cents), Some(card)) = (amount, payment.get("card")) else {
        return Err(PaymentError::Incomplete);
    };
    let charge = Charge {
        account: account.0,
        key: operation.key().as_str().to_owned(),
        // The gateway's own idempotency key. It is the same in every attempt at this
        // payment, so that a charge whose answer was lost is not made again.
        gateway_key: operation.child_key("charge"),
        amount_cents,
    };
    let number = gateway.charge(charge, card).await?;
    Ok((
        StatusCode::CREATED,
        [(LOCATION, format!("/payments/{number}"))],
        Json(json!({ "payment": number, "amount_cents": amount_cents })),
    ))
}

async fn ledger(State(gateway): State<Gateway>) -> Json<Value> {
    Json(gateway.ledger())
}

enum PaymentError {
    Incomplete,
    GatewayDown,
}

impl From<GatewayDown> for PaymentError {
    fn from(_: GatewayDown) -> Self {
        Self::GatewayDown
    }
}

impl IntoResponse for PaymentError {
    fn into_response(self) -> Response {
        match self {
            Self::Incomplete => {
                (StatusCode::BAD_REQUEST, "amount_cents and card are needed").into_response()
            }
            // A 5xx is not final: the same payment may be tried again under its key.
            Self::GatewayDown => {
                (StatusCode::BAD_GATEWAY, "the card gateway is down").into_response()
            }
        }
    }
}
