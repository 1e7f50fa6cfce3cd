//! A panic, an error or a body that breaks off reaches the caller as without the layer, and
//! ends its run at once: a retry does not wait for the lease.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, response};
use http_body_util::{BodyExt, Full};
use support::faults::{Call, Fault, FaultStore};
use support::scripted::variant::{But, Variant};
use support::scripted::{
    Script, Seen, Step, answer, data, executed, full, handling, idle, let_run, plan, secs,
};
use support::stores::store;
use support::{Runs, post, read, send};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_idempotency::{
    FailurePolicy, FinalAnswers, IdempotencyLayer, RecordPolicy, SharedByAllCallers, Verdict,
};

/// Where the first run panics.
#[derive(Debug, Clone, Copy, PartialEq)]
enum At {
    Call,
    Future,
    BodyOfKnownLength,
    StreamedBody,
    Policy,
    PolicyAtEnd,
    PolicyAtEndOfStream,
}

const ALL: [At; 7] = [
    At::Call,
    At::Future,
    At::BodyOfKnownLength,
    At::StreamedBody,
    At::Policy,
    At::PolicyAtEnd,
    At::PolicyAtEndOfStream,
];

impl At {
    /// After the head is sent, the caller is no longer waiting in the future.
    fn is_in_stream(self) -> bool {
        matches!(self, Self::StreamedBody | Self::PolicyAtEndOfStream)
    }
}

/// Panics where it is told to, once.
struct Panicking(At, AtomicBool);

impl Panicking {
    fn asked(&self, at: &[At]) {
        if at.contains(&self.0) && !self.1.swap(true, Ordering::SeqCst) {
            panic!("planned");
        }
    }
}

impl RecordPolicy for Panicking {
    fn verdict(&self, answer: &response::Parts) -> Verdict {
        self.asked(&[At::Policy]);
        FinalAnswers.verdict(answer)
    }

    fn verdict_at_end(&self, first: Verdict, _: &HeaderMap) -> Verdict {
        self.asked(&[At::PolicyAtEnd, At::PolicyAtEndOfStream]);
        first
    }
}

type Service = tower::util::BoxCloneSyncService<
    Request<Full<Bytes>>,
    http::Response<tower_idempotency::ResponseBody<Script>>,
    std::convert::Infallible,
>;

fn panicking(at: At, policy: FailurePolicy) -> (IdempotencyLayer, Service, Runs) {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers)
        .on_failure(policy)
        .record_when(Panicking(at, AtomicBool::new(false)));
    let runs = Runs::default();
    let service = handling(&layer, {
        let runs = runs.clone();
        move |operation| {
            let first = runs.add() == 1;
            assert!(!(first && at == At::Call), "planned");
            async move {
                sleep(secs(1)).await;
                assert!(!(first && at == At::Future), "planned");
                let mut steps = vec![data("one"), Step::Yield, data("two"), Step::Yield];
                if first && matches!(at, At::BodyOfKnownLength | At::StreamedBody) {
                    steps.push(Step::Panic);
                }
                steps.push(Step::Trailers("x-checksum", "abc"));
                let body = match at.is_in_stream() {
                    true => Script::stream(steps),
                    false => Script::sized(steps, 0),
                };
                let mut answer = answer(201, body);
                let attempt = operation.unwrap().attempt();
                answer.headers_mut().insert("x-attempt", attempt.into());
                answer
            }
        }
    });
    (layer, Service::new(service), runs)
}

fn is_planned(panic: &(dyn Any + Send)) {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    let text = text.unwrap_or_default();
    assert!(text == "planned" || text == "the body panicked", "{text:?}");
}

async fn the_run_has_failed(
    layer: &IdempotencyLayer,
    service: &Service,
    runs: &Runs,
    policy: FailurePolicy,
    what: &str,
) {
    let began = Instant::now();
    let retry = read(
        service
            .clone()
            .oneshot(post("k", "charge 5"))
            .await
            .unwrap(),
    )
    .await;
    if policy == FailurePolicy::RunAgain {
        assert_eq!(began.elapsed(), secs(1), "{what}");
        assert_eq!(retry.header("x-attempt"), Some("2"), "{what}: {retry:?}");
        assert_eq!((retry.text(), runs.get()), ("onetwo", 2), "{what}");
        let again = read(
            service
                .clone()
                .oneshot(post("k", "charge 5"))
                .await
                .unwrap(),
        )
        .await;
        assert!(again.is_replay(), "{what}");
    } else {
        assert_eq!(began.elapsed(), Duration::ZERO, "{what}");
        assert_eq!(retry.code().as_deref(), Some("outcome-unknown"), "{what}");
        assert_eq!(runs.get(), 1, "{what}");
    }
    let_run().await;
    assert_eq!(layer.in_flight().count(), 0, "{what}");
}

const POLICIES: [FailurePolicy; 3] = [
    FailurePolicy::RunAgain,
    FailurePolicy::Replay,
    FailurePolicy::Refuse,
];

#[tokio::test(start_paused = true)]
async fn a_panic_reaches_the_caller_and_fails_the_run_at_once() {
    for policy in POLICIES {
        for at in ALL {
            let what = format!("{policy:?} {at:?}");
            let (layer, service, runs) = panicking(at, policy);
            let response = service.clone().oneshot(post("k", "charge 5"));
            let caught = AssertUnwindSafe(response).catch_unwind().await;
            if at.is_in_stream() {
                let response = caught.unwrap().unwrap();
                assert_eq!(response.extensions().get().copied(), executed(1, None));
                let read = AssertUnwindSafe(Seen::of(response)).catch_unwind().await;
                match read {
                    Err(panic) => is_planned(&*panic),
                    // Nobody could tell the client any more.
                    Ok((seen, _)) => assert_eq!(&seen.body[..], b"onetwo", "{what}"),
                }
            } else {
                is_planned(&*caught.unwrap_err());
            }
            the_run_has_failed(&layer, &service, &runs, policy, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_without_a_client_fails_the_run_as_well() {
    for policy in POLICIES {
        for at in ALL {
            let what = format!("{policy:?} {at:?}");
            let (layer, service, runs) = panicking(at, policy);
            let run = tokio::spawn(service.clone().oneshot(post("k", "charge 5")));
            let_run().await;
            run.abort();
            idle(&layer).await;
            if at == At::PolicyAtEndOfStream && policy == FailurePolicy::Replay {
                continue;
            }
            the_run_has_failed(&layer, &service, &runs, policy, &what).await;
        }
        // Once the head is out, and at every frame.
        for frames in 0..=2 {
            let (layer, service, runs) = panicking(At::StreamedBody, policy);
            let response = service.clone().oneshot(post("k", "charge 5")).await;
            let mut response = response.unwrap();
            for _ in 0..frames {
                response.body_mut().frame().await.unwrap().unwrap();
            }
            drop(response);
            idle(&layer).await;
            the_run_has_failed(&layer, &service, &runs, policy, "dropped").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_catches_panics_does_so_inside_and_outside() {
    let handler = |runs: Runs| {
        tower::service_fn(move |_: Request<_>| {
            let run = runs.add();
            async move {
                sleep(secs(1)).await;
                assert!(run > 1, "planned");
                Ok::<_, std::convert::Infallible>(full(201, format!("run {run}")))
            }
        })
    };
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (inside, outside) = (Runs::default(), Runs::default());
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .layer(CatchPanicLayer::new())
        .service(handler(inside.clone()));
    assert_eq!(send(&service, post("inside", "charge 5")).await.status, 500);
    let retry = send(&service, post("inside", "charge 5")).await;
    assert_eq!(retry.text(), "run 2");
    assert_eq!(retry.outcome, executed(2, Some(true)));
    assert!(send(&service, post("inside", "charge 5")).await.is_replay());

    let service = ServiceBuilder::new()
        .layer(CatchPanicLayer::new())
        .layer(layer.clone())
        .service(handler(outside.clone()));
    assert_eq!(
        send(&service, post("outside", "charge 5")).await.status,
        500
    );
    let retry = send(&service, post("outside", "charge 5")).await;
    assert_eq!(retry.text(), "run 2");
    assert!(
        send(&service, post("outside", "charge 5"))
            .await
            .is_replay()
    );
    assert_eq!((inside.get(), outside.get()), (2, 2));
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_inner_service_passes_unchanged_and_is_a_failed_run() {
    #[derive(Debug, PartialEq)]
    struct OutOfOrder(u8);
    for policy in POLICIES {
        let store = store();
        let layer = IdempotencyLayer::new(store, SharedByAllCallers).on_failure(policy);
        let runs = Runs::default();
        let service = layer.layer(tower::service_fn({
            let runs = runs.clone();
            move |_: Request<_>| {
                let run = runs.add();
                async move {
                    match run {
                        1 => Err(OutOfOrder(7)),
                        _ => Ok(full(201, "done")),
                    }
                }
            }
        }));
        let first = service.clone().oneshot(post("k", "charge 5")).await;
        assert_eq!(first.unwrap_err(), OutOfOrder(7));
        let retry = read(service.oneshot(post("k", "charge 5")).await.unwrap()).await;
        if policy == FailurePolicy::RunAgain {
            assert_eq!(retry.outcome, executed(2, Some(true)));
        } else {
            assert_eq!(retry.code().as_deref(), Some("outcome-unknown"));
        }
        let expected = if policy == FailurePolicy::RunAgain {
            2
        } else {
            1
        };
        assert_eq!((runs.get(), layer.in_flight().count()), (expected, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_reaches_the_client_as_far_as_it_came() {
    let broken = [data("one"), Step::Yield, data("two"), Step::Fail];
    let bodies: [fn(Vec<Step>) -> Script; 2] = [|steps| Script::sized(steps, 5), Script::stream];
    for body in bodies {
        for policy in POLICIES {
            let store = store();
            let layer = IdempotencyLayer::new(store, SharedByAllCallers).on_failure(policy);
            let runs = Runs::default();
            let service = handling(&layer, {
                let (runs, steps) = (runs.clone(), broken.to_vec());
                move |_| {
                    let steps = match runs.add() {
                        1 => steps.clone(),
                        _ => vec![data("whole")],
                    };
                    async move { answer(201, body(steps)) }
                }
            });
            let (bare, _) = Seen::of(answer(201, body(broken.to_vec()))).await;
            let first = service
                .clone()
                .oneshot(post("k", "charge 5"))
                .await
                .unwrap();
            let (first, _) = Seen::of(first).await;
            assert_eq!(first.unmarked(), bare);
            let_run().await;
            let retry = service
                .clone()
                .oneshot(post("k", "charge 5"))
                .await
                .unwrap();
            let (retry, parts) = Seen::of(retry).await;
            if policy == FailurePolicy::RunAgain {
                assert!(retry.body.starts_with(b"whole"), "{retry:?}");
                assert_eq!(runs.get(), 2);
            } else {
                assert_eq!(parts.status, 500);
                assert_eq!(runs.get(), 1);
            }
            idle(&layer).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_short_of_its_length_is_not_made_whole() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let short = || answer(201, Script::sized([data("one")], 5));
    let service = handling(&layer, move |_| async move { short() });
    let (bare, _) = Seen::of(short()).await;
    let first = service.oneshot(post("k", "charge 5")).await.unwrap();
    let (first, _) = Seen::of(first).await;
    assert_eq!(first.exact_len, bare.exact_len);
    assert_eq!(first.body, bare.body);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_in_a_claim_leaves_nothing_behind() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let (service, runs) = plan(&layer, [(Duration::ZERO, 201)]);
    store.always(Call::Claim, Fault::Panics);
    let first = tokio::spawn(service.clone().oneshot(post("k", "charge 5"))).await;
    // As a panic of the caller, or as a store that cannot be asked.
    match first {
        Ok(refused) => assert_eq!(refused.unwrap().status(), 503),
        Err(error) => assert!(error.is_panic()),
    }
    assert_eq!(runs.get(), 0);
    store.heal(Call::Claim);
    let retry = send(&service, post("k", "charge 5")).await;
    assert_eq!(retry.text(), "run 1 attempt 1");
    idle(&layer).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_later_does_not_cost_the_caller_its_answer() {
    for but in [But::PanicsOnExtend, But::PanicsOnComplete] {
        let store = Variant::of(store(), but);
        let layer = IdempotencyLayer::new(store, SharedByAllCallers).max_hold(secs(60));
        let (service, runs) = plan(&layer, [(secs(15), 201)]);
        let first = tokio::spawn(service.clone().oneshot(post("k", "charge 5"))).await;
        let first = read(first.expect("the store's panic is the caller's").unwrap()).await;
        assert_eq!(first.text(), "run 1 attempt 1", "{but:?}");
        idle(&layer).await;
        assert_eq!(runs.get(), 1);
    }
}

/// Design section 2: a panic never releases.
#[tokio::test(start_paused = true)]
async fn a_panic_in_a_streamed_body_never_releases() {
    let layer =
        IdempotencyLayer::new(store(), SharedByAllCallers).on_failure(FailurePolicy::Refuse);
    let service = handling(&layer, move |_| async move {
        answer(429, Script::stream([data("one"), Step::Yield, Step::Panic]))
    });
    let first = service.clone().oneshot(post("k", "a")).await.unwrap();
    let read = tokio::spawn(async move { first.into_body().collect().await.map(|_| ()) });
    assert!(read.await.unwrap_err().is_panic());
    let_run().await;
    // Another request under the key: of a released key it runs, of a failed one it does not.
    let other = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(other.status(), 422);
}
