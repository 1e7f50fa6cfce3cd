//! An answer with as many fields as a header map can hold is recorded and replayed.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::Layer;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{IdempotencyLayer, Outcome, RequestBody, SharedByAllCallers};

use support::{post, send};

fn full() -> HeaderMap {
    let mut fields = HeaderMap::new();
    for number in 0.. {
        let name = HeaderName::try_from(format!("x-{number}")).unwrap();
        if fields.try_insert(name, HeaderValue::from(number)).is_err() {
            break;
        }
    }
    fields
}

#[tokio::test]
async fn a_replay_without_room_for_its_mark_is_a_replay_still() {
    let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    let service = layer.layer(tower::service_fn(
        async |_: Request<RequestBody<Full<Bytes>>>| {
            let mut answer = Response::new(Full::new(Bytes::from_static(b"full")));
            *answer.headers_mut() = full();
            Ok::<_, Infallible>(answer)
        },
    ));
    let first = send(&service, post("k", "")).await;
    let again = send(&service, post("k", "")).await;

    assert!(first.headers.len() > 20_000);
    assert_eq!(again.outcome, Some(Outcome::Replayed));
    assert_eq!(again.status, StatusCode::OK);
    assert_eq!(again.headers, first.headers);
    assert_eq!(again.text(), "full");
}
