//! A streamed answer that its client stops reading, or leaves, is still recorded, and its
//! key held meanwhile; within limits.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use http_body_util::BodyExt;
use support::faults::{Call, Fault, FaultStore};
use support::scripted::{
    Script, Seen, Step, answer, data, executed, handling, idle, let_run, ms, secs,
};
use support::stores::store;
use support::{Runs, post, read};
use tokio::time::{Instant, sleep};
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;
use tower_idempotency::store::{AnyStore, StoreErrorKind};
use tower_idempotency::{IdempotencyLayer, ResponseBody, SharedByAllCallers};

type Layer = IdempotencyLayer<FaultStore<AnyStore>>;
type Service = BoxCloneSyncService<
    http::Request<http_body_util::Full<Bytes>>,
    http::Response<ResponseBody<Script>>,
    std::convert::Infallible,
>;

fn layer() -> (FaultStore<AnyStore>, Layer) {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    (store, layer)
}

fn streaming(layer: &Layer, steps: Vec<Step>) -> (Service, Runs) {
    let runs = Runs::default();
    let service = handling(layer, {
        let runs = runs.clone();
        move |_| {
            runs.add();
            let body = Script::stream(steps.clone());
            async { answer(201, body) }
        }
    });
    (Service::new(service), runs)
}

async fn call(service: &Service) -> http::Response<ResponseBody<Script>> {
    service
        .clone()
        .oneshot(post("k", "charge 5"))
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_reading_holds_the_key() {
    let (store, layer) = layer();
    let (service, runs) = streaming(&layer, vec![data("one"), Step::Yield, data("two")]);
    let mut slow = call(&service).await;
    assert_eq!(slow.extensions().get().copied(), executed(1, None));
    slow.body_mut().frame().await.unwrap().unwrap();
    for _ in 0..40 {
        sleep(secs(20)).await;
        let retry = read(call(&service).await).await;
        assert_eq!(retry.status, 409);
        assert_eq!(layer.in_flight().count(), 1);
    }
    assert!(store.count(Call::Extend) >= 79);
    let (seen, _) = Seen::of(slow).await;
    assert_eq!((&seen.body[..], seen.error), (&b"two"[..], None));
    let retry = read(call(&service).await).await;
    assert!(retry.is_replay());
    assert_eq!(retry.text(), "onetwo");
    idle(&layer).await;
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_replaced_until_the_end() {
    let (_, layer) = layer();
    let steps = vec![data("one"), Step::Sleep(secs(100)), data("two")];
    let (service, runs) = streaming(&layer, steps);
    drop(call(&service).await);
    let began = Instant::now();
    let_run().await;
    assert_eq!(layer.in_flight().count(), 1);
    assert_eq!(read(call(&service).await).await.status, 409);
    sleep(secs(99)).await;
    assert_eq!(read(call(&service).await).await.status, 409);
    idle(&layer).await;
    assert_eq!(began.elapsed(), secs(100));
    assert_eq!(read(call(&service).await).await.text(), "onetwo");
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_over_the_limit_is_on_record_as_soon_as_it_is() {
    // The limit itself is within it.
    for (limit, omitted) in [(6, false), (5, true)] {
        let (_, layer) = layer();
        let layer = layer.response_body_limit(limit);
        let steps = vec![data("one"), data("two"), Step::Sleep(secs(50)), Step::Fail];
        let (service, runs) = streaming(&layer, steps);
        let mut first = call(&service).await;
        first.body_mut().frame().await.unwrap().unwrap();
        let second = first.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(second.into_data().unwrap(), "two");
        let retry = read(call(&service).await).await;
        assert_eq!(retry.is_replay(), omitted);
        if omitted {
            assert_eq!(retry.header("idempotency-body"), Some("omitted"));
            assert_eq!(layer.in_flight().count(), 0);
        }
        // The record stands though the body fails later.
        let (seen, _) = Seen::of(first).await;
        assert_eq!(seen.error.as_deref(), Some("the body broke off"));
        idle(&layer).await;
        let retry = call(&service).await;
        let is_replay = retry.headers().contains_key("idempotent-replayed");
        assert_eq!(is_replay, omitted);
        drop(retry);
        idle(&layer).await;
        assert_eq!(runs.get(), if omitted { 1 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_read_on_to_the_limit_and_no_further() {
    let (_, layer) = layer();
    let layer = layer.response_body_limit(10);
    let (service, runs) = streaming(&layer, vec![Step::Endless(secs(1))]);
    drop(call(&service).await);
    let began = Instant::now();
    idle(&layer).await;
    // Four bytes at once and then every second: the third frame passes the limit.
    assert_eq!(began.elapsed(), secs(2));
    let retry = read(call(&service).await).await;
    assert!(retry.is_replay());
    assert_eq!(retry.header("idempotency-body"), Some("omitted"));
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_never_ends_is_read_on_until_max_hold() {
    for steps in [
        vec![Step::Endless(secs(7))],
        vec![data("one"), Step::Sleep(secs(100_000))],
    ] {
        let (_, layer) = layer();
        let layer = layer.max_hold(secs(60));
        let (service, runs) = streaming(&layer, steps);
        drop(call(&service).await);
        let began = Instant::now();
        idle(&layer).await;
        assert_eq!(began.elapsed(), secs(60));
        let retry = read(call(&service).await).await;
        assert!(retry.is_replay());
        assert_eq!(retry.header("idempotency-body"), Some("omitted"));
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_frame_is_withheld_until_the_record_is_written() {
    let steps = vec![data("one"), Step::Yield, data("two")];
    for (declared, trailers) in [(false, false), (true, false), (false, true)] {
        let (store, layer) = layer();
        let runs = Runs::default();
        let service = handling(&layer, {
            let (runs, steps) = (runs.clone(), steps.clone());
            move |_| {
                runs.add();
                let mut steps = steps.clone();
                if trailers {
                    steps.push(Step::Trailers("x-checksum", "abc"));
                }
                let mut answer = answer(201, Script::stream(steps));
                if declared {
                    answer.headers_mut().insert("content-length", 6.into());
                }
                async { answer }
            }
        });
        let service = Service::new(service);
        store.always(Call::Complete, Fault::Slow(ms(1_500)));
        let response = call(&service).await;
        let began = Instant::now();
        let (seen, _) = Seen::of(response).await;
        assert_eq!(began.elapsed(), ms(1_500));
        assert_eq!(&seen.body[..], b"onetwo");
        assert_eq!(seen.trailers.is_some(), trailers);
        assert!(read(call(&service).await).await.is_replay());
        idle(&layer).await;
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_does_not_withhold_the_last_frame_for_long() {
    for fault in [
        Fault::Hangs,
        Fault::Refused(StoreErrorKind::NotApplied),
        Fault::Refused(StoreErrorKind::Misconfigured),
    ] {
        let (store, layer) = layer();
        let (service, runs) = streaming(&layer, vec![data("one"), Step::Yield, data("two")]);
        store.always(Call::Complete, fault);
        let response = call(&service).await;
        let began = Instant::now();
        let (seen, _) = Seen::of(response).await;
        assert!(began.elapsed() <= ms(2_001), "{fault:?}");
        assert_eq!((&seen.body[..], seen.error), (&b"onetwo"[..], None));
        for _ in 0..10 {
            sleep(secs(17)).await;
            assert_eq!(read(call(&service).await).await.status, 409, "{fault:?}");
            assert_eq!(layer.in_flight().count(), 1);
        }
        store.heal(Call::Complete);
        idle(&layer).await;
        assert!(read(call(&service).await).await.is_replay());
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_after_a_length_that_was_declared_reach_the_client() {
    let (_, layer) = layer();
    let runs = Runs::default();
    let service = handling(&layer, {
        let runs = runs.clone();
        move |_| {
            runs.add();
            let steps = [
                data("one"),
                Step::Yield,
                data("two"),
                Step::Trailers("x-checksum", "abc"),
            ];
            let mut answer = answer(201, Script::stream(steps));
            answer.headers_mut().insert("content-length", 6.into());
            async { answer }
        }
    });
    let service = Service::new(service);
    let (seen, _) = Seen::of(call(&service).await).await;
    assert_eq!(&seen.body[..], b"onetwo");
    assert!(seen.trailers.is_some(), "the layer took the trailers");
    idle(&layer).await;
    let retry = read(call(&service).await).await;
    assert!(retry.is_replay());
    assert_eq!(runs.get(), 1);
}
