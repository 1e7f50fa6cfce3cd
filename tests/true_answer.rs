//! Nothing that the store does changes the first caller's answer, but for the one mark.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use support::faults::{Call, Fault, FaultStore};
use support::post;
use support::scripted::{Script, Seen, Step, answer, data, handling, idle, ms, secs};
use support::stores::store;
use tower::ServiceExt;
use tower_idempotency::store::StoreErrorKind;
use tower_idempotency::{FailurePolicy, IdempotencyLayer, SharedByAllCallers};

/// Answers of every shape.
const SHAPES: [fn() -> Response<Script>; 10] = [
    || answer(204, Script::stream([])),
    || answer(201, Script::sized([], 0)),
    || {
        answer(
            201,
            Script::sized([data("one"), Step::Yield, data("two")], 0),
        )
    },
    || answer(201, Script::stream([data("one"), Step::Yield, data("two")])),
    || {
        let trailers = Step::Trailers("x-checksum", "abc");
        answer(201, Script::stream([data("one"), Step::Yield, trailers]))
    },
    || answer(201, Script::sized([data("one"), Step::Fail], 2)),
    || answer(201, Script::stream([data("one"), Step::Yield, Step::Fail])),
    || answer(500, Script::sized([data("failed")], 0)),
    || {
        let long = Step::Data(Bytes::from(vec![b'x'; 5_000]));
        answer(200, Script::sized([long.clone(), Step::Yield, long], 0))
    },
    || {
        let long = Step::Data(Bytes::from(vec![b'x'; 5_000]));
        let mut answer = answer(429, Script::stream([long.clone(), Step::Yield, long]));
        for cookie in ["a=1", "b=2"] {
            answer
                .headers_mut()
                .append("set-cookie", cookie.parse().unwrap());
        }
        answer
            .headers_mut()
            .insert("connection", "x-hop".parse().unwrap());
        answer
            .headers_mut()
            .insert("x-hop", "kept".parse().unwrap());
        answer
    },
];

fn faults() -> impl Iterator<Item = Fault> {
    let refused = [
        StoreErrorKind::NotApplied,
        StoreErrorKind::Ambiguous,
        StoreErrorKind::Full,
        StoreErrorKind::Quota,
        StoreErrorKind::Corrupt,
        StoreErrorKind::Misconfigured,
    ];
    refused.into_iter().map(Fault::Refused).chain([
        Fault::ReplyLost,
        Fault::Hangs,
        Fault::AppliedThenHangs,
        Fault::AppliedLate(secs(1)),
        Fault::AppliedLate(secs(40)),
        Fault::Slow(ms(1_900)),
        Fault::Suspends(3),
    ])
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_is_the_one_of_the_handler_byte_for_byte() {
    let ends = [Call::Complete, Call::Fail, Call::Release, Call::Extend];
    for (shape, bare) in SHAPES.into_iter().enumerate() {
        let (expected, _) = Seen::of(bare()).await;
        for call in ends {
            for fault in faults() {
                for policy in [FailurePolicy::RunAgain, FailurePolicy::Refuse] {
                    let store = FaultStore::new(store());
                    store.always(call, fault);
                    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers)
                        .response_body_limit(4_096)
                        .on_failure(policy);
                    let service = handling(&layer, move |_| async move {
                        tokio::time::sleep(secs(25)).await;
                        bare()
                    });
                    let first = service.oneshot(post("k", "charge 5")).await.unwrap();
                    let (seen, _) = Seen::of(first).await;
                    assert_eq!(seen.unmarked(), expected, "{shape} {call:?} {fault:?}");
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    store.heal(call);
                    idle(&layer).await;
                }
            }
        }
    }
}
