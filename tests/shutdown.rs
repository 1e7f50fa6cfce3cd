//! A shutdown can wait for every exchange, with or without its client, and for nothing else;
//! and their number can be bounded.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use support::faults::{Call, Fault, FaultStore};
use support::scripted::{
    Script, Step, answer, data, executed, handling, idle, let_run, ms, plan, secs, spawn,
};
use support::stores::{assert_noticed, store};
use support::{post, read, send};
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt;
use tower_idempotency::store::{AnyStore, StoreErrorKind};
use tower_idempotency::{
    ConflictPolicy, IdempotencyLayer, InFlight, Outcome, RejectionKind, SharedByAllCallers,
};

fn layer() -> (FaultStore<AnyStore>, IdempotencyLayer<FaultStore<AnyStore>>) {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    (store, layer)
}

/// Asserts that it is idle after this time, and not before.
async fn idle_after(in_flight: &InFlight, time: Duration) {
    idle_after_noticing(in_flight, time, 0).await;
}

/// The same where somebody has to notice so many changes of a record, one after the other.
async fn idle_after_noticing(in_flight: &InFlight, time: Duration, changes: u32) {
    let began = Instant::now();
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let in_flight = in_flight.clone();
            tokio::spawn(async move { in_flight.idle().await })
        })
        .collect();
    timeout(secs(3600), in_flight.idle()).await.unwrap();
    let took = began.elapsed();
    assert_noticed(took, time, changes);
    for wait in waits {
        wait.await.unwrap();
    }
    assert_eq!(began.elapsed(), took);
    assert_eq!(in_flight.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_under_way_is_nothing_to_wait_for() {
    let (_, layer) = layer();
    let (service, runs) = plan(&layer, [(Duration::ZERO, 201)]);
    idle_after(&layer.in_flight(), Duration::ZERO).await;
    send(&service, post("k", "charge 5")).await;
    send(&service, post("k", "charge 5")).await;
    send(&service, post("k", "charge 6")).await;
    idle_after(&layer.in_flight(), Duration::ZERO).await;
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_layer_leaves_alone_is_not_counted() {
    let (_, layer) = layer();
    let (service, _) = plan(&layer, [(secs(5), 201)]);
    let mut without_key = post("k", "charge 5");
    without_key.headers_mut().remove("idempotency-key");
    let mut safe = post("k", "charge 5");
    *safe.method_mut() = http::Method::GET;
    for request in [without_key, safe] {
        let under_way = tokio::spawn(service.clone().oneshot(request));
        let_run().await;
        assert_eq!(layer.in_flight().count(), 0);
        under_way.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn running_and_detached_exchanges_are_waited_for() {
    let (_, layer) = layer();
    let (service, runs) = plan(&layer, [(secs(5), 201), (secs(9), 201), (secs(7), 500)]);
    let running = spawn(&service, "a").await;
    let detached = spawn(&service, "b").await;
    let failing = spawn(&service, "c").await;
    assert_eq!(layer.in_flight().count(), 3);
    detached.abort();
    let_run().await;
    // A clone, and the erased layer, count the same.
    assert_eq!(layer.clone().erased().in_flight().count(), 3);
    idle_after(&layer.in_flight(), secs(9)).await;
    assert_eq!(running.await.unwrap().status, StatusCode::CREATED);
    assert_eq!(failing.await.unwrap().status, 500);
    assert_eq!(runs.get(), 3);
    assert!(send(&service, post("b", "charge 5")).await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_streamed_is_waited_for_until_it_is_on_record() {
    let (store, layer) = layer();
    let service = handling(&layer, move |_| async {
        let steps = [data("one"), Step::Sleep(secs(5)), data("two")];
        answer(201, Script::stream(steps))
    });
    // Read by its client, and by nobody.
    for leaves in [false, true] {
        store.once(Call::Complete, Fault::Slow(secs(1)));
        let key = if leaves { "left" } else { "read" };
        let response = service
            .clone()
            .oneshot(post(key, "charge 5"))
            .await
            .unwrap();
        assert_eq!(layer.in_flight().count(), 1);
        let reading = if leaves {
            drop(response);
            None
        } else {
            Some(tokio::spawn(read(response)))
        };
        idle_after(&layer.in_flight(), secs(6)).await;
        if let Some(reading) = reading {
            assert_eq!(reading.await.unwrap().text(), "onetwo");
        }
        let retry = service
            .clone()
            .oneshot(post(key, "charge 5"))
            .await
            .unwrap();
        assert!(read(retry).await.is_replay());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_read_is_waited_for_until_max_hold() {
    let (_, layer) = layer();
    let layer = layer.max_hold(secs(60));
    let service = handling(&layer, move |_| async {
        answer(201, Script::stream([data("one"), Step::Yield, data("two")]))
    });
    let mut response = service
        .clone()
        .oneshot(post("k", "charge 5"))
        .await
        .unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    idle_after(&layer.in_flight(), secs(60)).await;
    drop(response);
    let_run().await;
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_completion_in_the_background_is_waited_for() {
    let (store, layer) = layer();
    let (service, runs) = plan(&layer, [(Duration::ZERO, 201)]);
    store.always(Call::Complete, Fault::Refused(StoreErrorKind::NotApplied));
    let first = send(&service, post("k", "charge 5")).await;
    assert_eq!(first.outcome, executed(1, Some(false)));
    assert_eq!(layer.in_flight().count(), 1);
    let in_flight = layer.in_flight();
    assert!(timeout(secs(100), in_flight.idle()).await.is_err());
    store.heal(Call::Complete);
    idle(&layer).await;
    assert!(send(&service, post("k", "charge 5")).await.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_run_is_waited_for() {
    let (_, layer) = layer();
    let layer = layer.on_conflict(ConflictPolicy::Wait { at_most: secs(60) });
    let (service, runs) = plan(&layer, [(secs(5), 500), (secs(5), 201)]);
    let first = spawn(&service, "k").await;
    let waiter = spawn(&service, "k").await;
    assert_eq!(layer.in_flight().count(), 2);
    idle_after_noticing(&layer.in_flight(), secs(10), 1).await;
    assert_eq!(first.await.unwrap().status, 500);
    assert_eq!(waiter.await.unwrap().outcome, executed(2, Some(true)));
    assert_eq!(runs.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_upload_is_counted_and_ends_with_its_client() {
    let (store, layer) = layer();
    let service = handling(&layer, move |_| async {
        support::scripted::full(201, "done")
    });
    let request = Request::post("/things")
        .header("idempotency-key", "k")
        .body(Script::stream([data("charge"), Step::Sleep(secs(900))]))
        .unwrap();
    let upload = tokio::spawn(service.oneshot(request));
    let_run().await;
    assert_eq!(layer.in_flight().count(), 1);
    upload.abort();
    let_run().await;
    assert_eq!(layer.in_flight().count(), 0);
    assert_eq!(store.count(Call::Claim), 0);
}

#[tokio::test(start_paused = true)]
async fn so_many_exchanges_and_no_more() {
    let (store, layer) = layer();
    let layer = layer.max_in_flight(2);
    let (service, runs) = plan(&layer, [(secs(5), 201)]);
    let first = spawn(&service, "a").await;
    let second = spawn(&service, "b").await;
    // One whose client has left counts as well.
    second.abort();
    let_run().await;
    let refused = send(&service, post("c", "charge 5")).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.code().as_deref(), Some("overloaded"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let overloaded = Outcome::Rejected(RejectionKind::Overloaded);
    assert_eq!(refused.outcome, Some(overloaded));
    assert_eq!(layer.in_flight().count(), 2);
    // Even a replay is refused; what is not protected is not.
    assert_eq!(store.count(Call::Claim), 2);
    let mut without_key = post("c", "charge 5");
    without_key.headers_mut().remove("idempotency-key");
    assert_eq!(send(&service, without_key).await.status, 201);

    assert_eq!(first.await.unwrap().status, 201);
    let_run().await;
    assert_eq!(layer.in_flight().count(), 0);
    assert_eq!(send(&service, post("c", "charge 5")).await.status, 201);
    assert_eq!(runs.get(), 4);
    sleep(ms(1)).await;
}
