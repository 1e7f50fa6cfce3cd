//! The routes. Every run of a handler adds 1 to one counter, whatever its method; a
//! request whose parameters are missing or bad gets 400 and runs no handler.
//!
//! | Route | Answer |
//! |---|---|
//! | `/echo` | 201, the request's body and `Content-Type`, `Location: /things/N` for run N |
//! | `/status/{code}` | that status, body `status:{code}` |
//! | `/slow?ms=N&status=S` | after N ms, status S (200 when absent), body `slept:N` |
//! | `/large?bytes=N` | N bytes of `x`, known length; `&chunked=true`: unknown length |
//! | `/drip?chunks=N&ms=M` | N chunks `tick`, one every M ms, the first at once |
//! | `/broken?after=N` | N bytes, then the body fails |
//! | `/headers` | repeated header fields, and one that is no UTF-8 |
//! | `/panic` | none: the connection is closed |
//! | `/flaky?failures=N` | 500 for the first N runs of its key, then 200; `attempt:A` |
//! | `/trailers` | `with-trailers`, and a trailer for clients that send `TE: trailers` |
//! | `/operation` | what the handler knows of its run |
//! | `/transfer?amount=N` | 201, `{"row": n}`: a new row of the ledger, committed with this answer |
//! | `GET /counter`, `POST /reset` | the counter, outside of the layer |
//! | `GET /ledger` | `{"rows": n, "keys": m}`, outside of the layer: its rows, and the distinct keys among them |
//!
//! Without the layer, or without a key, there is no operation: `/operation` answers
//! `null` three times, to `/flaky` every run is the first, and `/transfer` commits a row
//! that has no key.
//!
//! The ledger is a table in the database of the store. Over a store without transactions,
//! memory or Redis, `/transfer` and `/ledger` answer 501 and run no handler.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::{CONTENT_TYPE, ETAG, LINK, LOCATION, SET_COOKIE, TRAILER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Json, Router};
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tower_idempotency::{IdempotencyLayer, Operation};

use crate::ledger::{self, Ledger};

pub(crate) fn app(layer: Option<IdempotencyLayer>, ledger: Option<Arc<dyn Ledger>>) -> Router {
    let runs = Runs::default();
    let protected = Router::new()
        .route("/echo", any(echo))
        .route("/status/{code}", any(status))
        .route("/slow", any(slow))
        .route("/large", any(large))
        .route("/drip", any(drip))
        .route("/broken", any(broken))
        .route("/headers", any(headers))
        .route("/panic", any(panic))
        .route("/flaky", any(flaky))
        .route("/trailers", any(trailers))
        .route("/operation", any(operation))
        .merge(ledger::transfers(ledger.clone(), runs.clone()))
        // The layer has a limit of its own.
        .layer(DefaultBodyLimit::disable());
    let protected = match layer {
        Some(layer) => protected.route_layer(layer),
        None => protected,
    };
    Router::new()
        .route("/counter", get(counter))
        .route("/reset", post(reset))
        .merge(protected)
        .with_state(runs)
        .merge(ledger::totals(ledger))
}

/// How often a handler ran.
#[derive(Clone, Default)]
pub(crate) struct Runs(Arc<AtomicU64>);

impl Runs {
    /// Counts one more, and gives its number.
    pub(crate) fn add(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

async fn counter(State(runs): State<Runs>) -> Json<Value> {
    Json(json!({ "count": runs.0.load(Ordering::SeqCst) }))
}

async fn reset(State(runs): State<Runs>) -> StatusCode {
    runs.0.store(0, Ordering::SeqCst);
    StatusCode::NO_CONTENT
}

async fn echo(State(runs): State<Runs>, request: HeaderMap, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::CREATED;
    let location = format!("/things/{}", runs.add());
    let location = HeaderValue::try_from(location).expect("digits are a header value");
    response.headers_mut().insert(LOCATION, location);
    if let Some(media_type) = request.get(CONTENT_TYPE) {
        let media_type = media_type.clone();
        response.headers_mut().insert(CONTENT_TYPE, media_type);
    }
    response
}

/// A 1xx is given to the server like any other: hyper closes the connection after 101, and
/// makes a 500 of the others, which are not final answers.
async fn status(
    State(runs): State<Runs>,
    Path(code): Path<String>,
) -> Result<Response, BadParameter> {
    let status = code.parse().map_err(|_| BadParameter("code"))?;
    runs.add();
    Ok(text(status, format!("status:{code}")))
}

async fn slow(State(runs): State<Runs>, query: Parameters) -> Result<Response, BadParameter> {
    let ms = required(&query, "ms")?;
    let status = optional(&query, "status")?.unwrap_or(StatusCode::OK);
    runs.add();
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Ok(text(status, format!("slept:{ms}")))
}

async fn large(State(runs): State<Runs>, query: Parameters) -> Result<Body, BadParameter> {
    let body = Xs {
        left: required(&query, "bytes")?,
    };
    let chunked = optional(&query, "chunked")?.unwrap_or(false);
    runs.add();
    Ok(if chunked {
        Body::from_stream(body.into_data_stream())
    } else {
        Body::new(body)
    })
}

async fn drip(State(runs): State<Runs>, query: Parameters) -> Result<Body, BadParameter> {
    let chunks: u64 = required(&query, "chunks")?;
    let every = Duration::from_millis(required(&query, "ms")?);
    runs.add();
    let ticks = stream::iter(0..chunks).then(move |chunk| async move {
        if chunk > 0 {
            tokio::time::sleep(every).await;
        }
        Ok::<_, Infallible>("tick")
    });
    Ok(Body::from_stream(ticks))
}

async fn broken(State(runs): State<Runs>, query: Parameters) -> Result<Body, BadParameter> {
    let bytes = Xs {
        left: required(&query, "after")?,
    };
    runs.add();
    let failure = stream::once(async {
        // The bytes are sent first.
        tokio::task::yield_now().await;
        Err(io::Error::other("the body broke off"))
    });
    let bytes = bytes.into_data_stream().map_err(|never| match never {});
    Ok(Body::from_stream(bytes.chain(failure)))
}

async fn headers(State(runs): State<Runs>) -> impl IntoResponse {
    let no_utf8 = HeaderValue::from_bytes(b"caf\xe9 \xff\x80").expect("bytes above 0x7f may be");
    let fields = AppendHeaders([
        (LINK, HeaderValue::from_static("</things/1>; rel=\"self\"")),
        (LINK, HeaderValue::from_static("</things>; rel=\"up\"")),
        (SET_COOKIE, HeaderValue::from_static("a=1; Path=/")),
        (SET_COOKIE, HeaderValue::from_static("b=2; Path=/")),
        (ETAG, HeaderValue::from_static("\"v1\"")),
        (HeaderName::from_static("x-bytes"), no_utf8),
        (HeaderName::from_static("x-run"), runs.add().into()),
    ]);
    (fields, "headers")
}

/// Nobody catches it here: hyper drops the connection.
async fn panic(State(runs): State<Runs>) {
    runs.add();
    panic!("this is what /panic is for");
}

async fn flaky(
    State(runs): State<Runs>,
    operation: Option<Extension<Operation>>,
    query: Parameters,
) -> Result<Response, BadParameter> {
    let failures: u64 = required(&query, "failures")?;
    runs.add();
    let attempt = operation.map_or(1, |operation| operation.attempt());
    let status = if attempt <= failures {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    Ok(text(status, format!("attempt:{attempt}")))
}

/// Its length is not told: HTTP/1.1 has trailers after a chunked body alone.
async fn trailers(State(runs): State<Runs>) -> impl IntoResponse {
    runs.add();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("abc"));
    let frames = [
        Frame::data(Bytes::from("with-trailers")),
        Frame::trailers(trailers),
    ];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
    ([(TRAILER, "x-checksum")], Body::new(body))
}

async fn operation(
    State(runs): State<Runs>,
    operation: Option<Extension<Operation>>,
) -> Json<Value> {
    runs.add();
    Json(json!({
        "key": operation.as_ref().map(|operation| operation.key().as_str()),
        "attempt": operation.as_ref().map(|operation| operation.attempt()),
        "child_key": operation.as_ref().map(|operation| operation.child_key("testbed")),
    }))
}

fn text(status: StatusCode, body: String) -> Response {
    let has_no_body = status.is_informational()
        || matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        );
    if has_no_body {
        status.into_response()
    } else {
        (status, body).into_response()
    }
}

/// So many bytes of `x`, 16 KiB at a time: it knows its length, and is never in memory as
/// a whole.
struct Xs {
    left: u64,
}

impl http_body::Body for Xs {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const CHUNK: &[u8] = &[b'x'; 16 * 1024];
        let len = CHUNK
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= len as u64;
        let chunk = Bytes::from_static(&CHUNK[..len]);
        Poll::Ready((len > 0).then_some(Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}

pub(crate) type Parameters = Query<HashMap<String, String>>;

fn optional<T: FromStr>(query: &Parameters, name: &'static str) -> Result<Option<T>, BadParameter> {
    let value = query.get(name).map(|value| value.parse());
    value.transpose().map_err(|_| BadParameter(name))
}

pub(crate) fn required<T: FromStr>(
    query: &Parameters,
    name: &'static str,
) -> Result<T, BadParameter> {
    optional(query, name)?.ok_or(BadParameter(name))
}

/// A parameter is missing, or cannot be read.
pub(crate) struct BadParameter(&'static str);

impl IntoResponse for BadParameter {
    fn into_response(self) -> Response {
        let body = format!("{} is missing or bad", self.0);
        (StatusCode::BAD_REQUEST, body).into_response()
    }
}
