//! What is recorded, and what the callers get.

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tower::util::MapResponse;
use tower_idempotency::{Outcome, Verdict};

use crate::engine::Engine;
use crate::over_both;
use crate::scene::{Scene, answer};
use crate::support;

over_both!(
    a_row_and_its_answer_are_committed_together,
    a_dropped_transaction_leaves_nothing_and_the_answer_is_judged_as_usual,
    a_panic_rolls_back_and_is_a_failed_run,
    what_finish_was_given_is_final_whatever_it_is,
    an_inner_layer_that_drops_all_extensions_changes_nothing,
    every_header_byte_and_trailer_is_recorded,
    a_body_over_the_limit_is_sent_whole_and_recorded_as_omitted,
    a_stream_over_the_limit_is_sent_whole_and_recorded_as_omitted,
    a_body_that_breaks_off_rolls_back,
    a_status_that_has_no_body_is_recorded_without,
    the_answer_may_be_kept_for_a_time_of_its_own,
);

async fn a_row_and_its_answer_are_committed_together<E: Engine>() {
    let scene = Scene::<E>::new(async |run| run.transfer().await).await;
    let first = scene.send("k").await;
    assert_eq!((first.status.as_u16(), first.text()), (201, "transferred"));
    let executed = Outcome::Executed {
        attempt: 1,
        stored: Some(true),
    };
    assert_eq!(first.outcome, Some(executed));
    assert!(!first.is_replay());
    let retry = scene.send("k").await;
    assert_eq!((retry.status, &retry.body), (first.status, &first.body));
    assert!(retry.is_replay());
    assert_eq!(scene.runs.get(), 1);
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn a_dropped_transaction_leaves_nothing_and_the_answer_is_judged_as_usual<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        drop(transaction);
        Ok(answer(409, "not enough on the account"))
    })
    .await;
    let first = scene.send("k").await;
    let retry = scene.send("k").await;
    assert_eq!((first.status.as_u16(), retry.status.as_u16()), (409, 409));
    assert!(!first.is_replay() && retry.is_replay());
    assert_eq!(scene.runs.get(), 1);
    assert!(scene.engine.ledger().await.is_empty());
}

async fn a_panic_rolls_back_and_is_a_failed_run<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        assert!(run.number > 1, "the first run panics");
        run.finish(transaction, answer(201, "transferred")).await
    })
    .await;
    let service = scene.service.clone();
    let panicked =
        tokio::spawn(async move { support::send(&service, support::post("k", "")).await });
    assert!(panicked.await.unwrap_err().is_panic());
    let retry = scene.send("k").await;
    let executed = Outcome::Executed {
        attempt: 2,
        stored: Some(true),
    };
    assert_eq!(retry.outcome, Some(executed));
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn what_finish_was_given_is_final_whatever_it_is<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        let mut failure = answer(500, "half done, and that is final");
        failure.extensions_mut().insert(Verdict::Release);
        run.finish(transaction, failure).await
    })
    .await;
    let first = scene.send("k").await;
    let retry = scene.send("k").await;
    assert_eq!((first.status.as_u16(), retry.status.as_u16()), (500, 500));
    assert_eq!(retry.text(), "half done, and that is final");
    assert!(retry.is_replay());
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn an_inner_layer_that_drops_all_extensions_changes_nothing<E: Engine>() {
    // As a handler, behind a layer that makes a new response of every one.
    let scene = Scene::<E>::new(async |run| {
        let answer = run.transfer().await?;
        let renewed = |old: Response<_>| {
            let mut new = Response::new(old.into_body());
            *new.status_mut() = http::StatusCode::ACCEPTED;
            new
        };
        let inner = tower::service_fn(|answer| async { Ok::<_, std::convert::Infallible>(answer) });
        let layered = MapResponse::new(inner, renewed);
        Ok(tower::ServiceExt::oneshot(layered, answer).await.unwrap())
    })
    .await;
    // The caller gets what the layers inside made of it, and the record is the handler's.
    let first = scene.send("k").await;
    assert_eq!((first.status.as_u16(), first.text()), (202, "transferred"));
    let retry = scene.send("k").await;
    assert_eq!((retry.status.as_u16(), retry.text()), (201, "transferred"));
    assert_eq!(scene.runs.get(), 1);
}

async fn every_header_byte_and_trailer_is_recorded<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let transaction = run.operation.begin(run.engine.store()).await?;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("abc"));
        let frames = [
            Frame::data(Bytes::from_static(b"a\0b")),
            Frame::trailers(trailers),
        ];
        let frames = frames.map(Ok::<_, std::convert::Infallible>);
        let body = Body::new(StreamBody::new(stream::iter(frames)));
        let mut answer = Response::new(body);
        let headers = answer.headers_mut();
        headers.append("link", HeaderValue::from_static("</a>"));
        headers.append("link", HeaderValue::from_static("</b>"));
        headers.insert("x-bytes", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        headers.insert("set-cookie", HeaderValue::from_static("session=1"));
        run.finish(transaction, answer).await
    })
    .await;
    let first = scene.send("k").await;
    let mut retry = scene.send("k").await;
    assert!(retry.is_replay());
    retry.headers.remove("idempotent-replayed");
    let mut recorded = first.headers.clone();
    assert!(recorded.remove("set-cookie").is_some());
    assert_eq!(retry.headers, recorded);
    assert_eq!(retry.headers.get_all("link").iter().count(), 2);
    assert_eq!((retry.body, retry.trailers), (first.body, first.trailers));
}

async fn a_body_over_the_limit_is_sent_whole_and_recorded_as_omitted<E: Engine>() {
    let scene = Scene::<E>::with(
        |layer| layer.response_body_limit(8),
        async |run| {
            let mut transaction = run.operation.begin(run.engine.store()).await?;
            E::insert(&mut transaction, &run.key()).await?;
            run.finish(transaction, answer(201, "nine byte")).await
        },
    )
    .await;
    omitted(&scene, "nine byte").await;
}

async fn a_stream_over_the_limit_is_sent_whole_and_recorded_as_omitted<E: Engine>() {
    let scene = Scene::<E>::with(
        |layer| layer.response_body_limit(8),
        async |run| {
            let mut transaction = run.operation.begin(run.engine.store()).await?;
            E::insert(&mut transaction, &run.key()).await?;
            let chunks = ["four", "more", " and ", "more"];
            let chunks =
                chunks.map(|chunk| Ok::<_, std::convert::Infallible>(Frame::data(chunk.into())));
            let mut answer = Response::new(Body::new(StreamBody::new(stream::iter(chunks))));
            *answer.status_mut() = http::StatusCode::CREATED;
            run.finish(transaction, answer).await
        },
    )
    .await;
    omitted(&scene, "fourmore and more").await;
}

async fn omitted<E: Engine>(scene: &Scene<E>, whole: &str) {
    let first = scene.send("k").await;
    assert_eq!((first.status.as_u16(), first.text()), (201, whole));
    let retry = scene.send("k").await;
    assert_eq!((retry.status.as_u16(), retry.text()), (201, ""));
    assert_eq!(retry.header("idempotency-body"), Some("omitted"));
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn a_body_that_breaks_off_rolls_back<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let mut transaction = run.operation.begin(run.engine.store()).await?;
        E::insert(&mut transaction, &run.key()).await?;
        if run.number > 1 {
            return run.finish(transaction, answer(201, "whole")).await;
        }
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"half"))),
            Err("it broke"),
        ];
        let body = Body::new(StreamBody::new(stream::iter(frames)));
        run.finish(transaction, Response::new(body)).await
    })
    .await;
    let first = scene.send("k").await;
    assert_eq!(first.status.as_u16(), 500);
    assert_eq!(first.code().as_deref(), Some("transaction-failed"));
    assert!(scene.engine.ledger().await.is_empty());
    // A failed run: the next attempt.
    assert_eq!(scene.send("k").await.text(), "whole");
    assert_eq!(scene.engine.ledger().await, ["k"]);
}

async fn a_status_that_has_no_body_is_recorded_without<E: Engine>() {
    let scene = Scene::<E>::new(async |run| {
        let transaction = run.operation.begin(run.engine.store()).await?;
        let mut answer = Response::new(Body::from("nobody reads this"));
        *answer.status_mut() = http::StatusCode::NO_CONTENT;
        run.finish(transaction, answer).await
    })
    .await;
    scene.send("k").await;
    let retry = scene.send("k").await;
    assert!(retry.is_replay());
    assert_eq!((retry.status.as_u16(), retry.text()), (204, ""));
    assert_eq!(retry.header("idempotency-body"), None);
}

async fn the_answer_may_be_kept_for_a_time_of_its_own<E: Engine>() {
    use std::time::Duration;
    use tower_idempotency::Retention;
    use tower_idempotency::store::KeyStore;

    let week = Duration::from_secs(7 * 24 * 60 * 60);
    let id = std::sync::Arc::new(std::sync::Mutex::new(None));
    let seen = id.clone();
    let scene = Scene::<E>::new(move |run| {
        *seen.lock().unwrap() = Some(*run.operation.id());
        async move {
            let transaction = run.operation.begin(run.engine.store()).await?;
            let mut kept = answer(201, "kept");
            kept.extensions_mut().insert(Retention(week));
            run.finish(transaction, kept).await
        }
    })
    .await;
    scene.send("k").await;
    let id = id.lock().unwrap().unwrap();
    let left = scene
        .engine
        .store()
        .lookup(&id)
        .await
        .unwrap()
        .unwrap()
        .retention_left;
    assert!(
        left <= week && left > week - Duration::from_secs(60),
        "{left:?}"
    );
}
