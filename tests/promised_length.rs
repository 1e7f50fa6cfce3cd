//! What an answer promises of its length is kept: it is seen to break off where it does, and
//! does not wait for what nobody reads.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use axum::Router;
use axum::body::Body as AxumBody;
use axum::routing::post as axum_post;
use http::Response;
use http::header::CONTENT_LENGTH;
use support::scripted::{Script, Seen, Step, answer, data, handling, let_run, secs};
use support::server::Server;
use support::stores::store;
use support::{post, send};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_idempotency::{IdempotencyLayer, SharedByAllCallers};

/// A body that ends with nothing where it promised ten bytes becomes a whole, empty answer.
#[tokio::test]
async fn an_empty_body_that_owes_its_length_is_seen_to_break_off() {
    let short = || Script::sized([], 10);
    let bare = Router::new().route(
        "/",
        axum_post(move || async move { Response::new(AxumBody::new(short())) }),
    );
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let layered = bare.clone().route_layer(layer);
    let request = "POST / HTTP/1.1\r\nhost: t\r\nidempotency-key: k\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let bare = Server::start(bare).await.exchange(request).await;
    let layered = Server::start(layered).await.exchange(request).await;
    // hyper gives up before it flushes the head. Whatever is seen, it must not be whole.
    assert!(!bare.contains("content-length: 0"));
    assert!(!layered.contains("content-length: 0"), "{layered}");
}

/// The same fault with the length in the head alone: it is recorded as a final answer.
#[tokio::test(start_paused = true)]
async fn a_body_short_of_the_length_in_its_head_is_no_answer() {
    for waits in [false, true] {
        let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
        let service = handling(&layer, move |_| async move {
            let mut steps = vec![data("12345")];
            if waits {
                steps.push(Step::Yield);
            }
            let mut answer = answer(200, Script::stream(steps));
            answer.headers_mut().insert(CONTENT_LENGTH, 10.into());
            answer
        });
        let _ = Seen::of(service.clone().oneshot(post("k", "")).await.unwrap()).await;
        let_run().await;
        let retry = send(&service, post("k", "")).await;
        assert!(!retry.is_replay(), "waits: {waits}: {retry:?}");
    }
}

/// A head that is the whole answer for HTTP waits for a body that nobody will read.
#[tokio::test(start_paused = true)]
async fn an_answer_without_a_body_is_not_held_back_for_one() {
    for status in [204, 304] {
        let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
        let service = handling(&layer, move |_| async move {
            answer(status, Script::stream([Step::Sleep(secs(100_000))]))
        });
        let head = timeout(secs(3_600), service.oneshot(post("k", ""))).await;
        assert!(head.is_ok(), "{status}: no head within an hour");
    }
}

/// Nor one whose length is complete, for an end that a server does not wait for.
#[tokio::test(start_paused = true)]
async fn a_complete_length_is_not_held_back_for_its_end() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let service = handling(&layer, move |_| async move {
        answer(
            200,
            Script::sized([data("12345"), Step::Sleep(secs(100_000))], 0),
        )
    });
    let head = timeout(secs(3_600), service.oneshot(post("k", ""))).await;
    assert!(head.is_ok(), "no head within an hour");
}
