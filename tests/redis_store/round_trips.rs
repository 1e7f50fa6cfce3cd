//! What a request costs on the wire: one script for each decision, and one plain read more
//! for a long answer. Whoever waits only reads.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use redis::aio::MultiplexedConnection;
use tokio::time::timeout;
use tower::Service;
use tower_idempotency::store::{KeyStore, RedisStore};
use tower_idempotency::{ConflictPolicy, IdempotencyLayer, ResponseBody, SharedByAllCallers};

use crate::monitor::{Monitor, called, sent};
use crate::support::gates::Gate;
use crate::support::redis::{RedisServer, command_stats, reset_stats};
use crate::support::scripted::{full, handling};
use crate::support::{counting, post, send};
use crate::{Place, fresh_record, request};

const PATIENCE: Duration = Duration::from_secs(20);

type Layered = IdempotencyLayer<RedisStore<MultiplexedConnection>>;

/// A server that nobody else asks, with all scripts known to it.
async fn alone() -> (RedisServer, Place, Monitor) {
    let server = RedisServer::start().await;
    let place = Place::on(&server).await;
    place.completed(&fresh_record()).await;
    place.store.lookup(&request().id).await.unwrap();
    let monitor = Monitor::start(&server).await;
    (server, place, monitor)
}

fn layer(place: &Place) -> Layered {
    IdempotencyLayer::new(place.store.clone(), SharedByAllCallers)
}

/// The layer around a handler that waits at a gate.
fn held(
    layer: &Layered,
    gate: &Gate,
) -> impl Service<
    Request<Full<Bytes>>,
    Response = Response<ResponseBody<Full<Bytes>>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let gate = gate.clone();
    handling(layer, move |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            full(201, "done")
        }
    })
}

/// Where the same counts are to be seen without the monitor, scripts and clients together.
fn stats<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.map(|(name, count)| (name.to_owned(), count)).into()
}

#[tokio::test]
async fn a_fresh_request_costs_two_round_trips_and_a_replay_a_mismatch_one() {
    let (server, place, mut monitor) = alone().await;
    let (service, runs) = counting(&layer(&place));

    reset_stats(&server).await;
    monitor.executed().await;
    let first = send(&service, post("k", "charge 5")).await;
    let executed = monitor.executed().await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(sent(&executed), ["evalsha", "evalsha"], "a fresh request");
    assert_eq!(called(&executed), ["getrange", "set", "getrange", "set"]);
    let mut counted = command_stats(&server).await;
    counted.remove("echo");
    let expected = stats([("evalsha", 2), ("getrange", 2), ("set", 2)]);
    assert_eq!(counted, expected);

    monitor.executed().await;
    let replay = send(&service, post("k", "charge 5")).await;
    let executed = monitor.executed().await;
    assert!(replay.is_replay());
    assert_eq!(sent(&executed), ["evalsha"], "a replay");
    assert_eq!(called(&executed), ["getrange", "strlen", "get"]);

    let misused = send(&service, post("k", "charge 6")).await;
    let executed = monitor.executed().await;
    assert_eq!(misused.code().as_deref(), Some("key-reused"));
    assert_eq!(sent(&executed), ["evalsha"], "a mismatch");
    assert_eq!(called(&executed), ["getrange"]);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_conflict_costs_one_round_trip() {
    let (_server, place, mut monitor) = alone().await;
    let gate = Gate::default();
    let service = held(&layer(&place), &gate);
    let first = tokio::spawn({
        let service = service.clone();
        async move { send(&service, post("k", "charge 5")).await }
    });
    gate.until_arrived(1).await;

    monitor.executed().await;
    let refused = send(&service, post("k", "charge 5"));
    let refused = timeout(PATIENCE, refused).await.expect("it runs beside");
    let executed = monitor.executed().await;
    assert_eq!(refused.code().as_deref(), Some("in-progress"));
    assert_eq!(sent(&executed), ["evalsha"]);
    assert_eq!(called(&executed), ["getrange", "pttl"]);

    gate.open_for_all();
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
    assert_eq!(monitor.sent().await, ["evalsha"], "the completion");
}

#[tokio::test]
async fn a_failed_run_costs_two_round_trips_and_so_does_one_that_is_released() {
    let (_server, place, mut monitor) = alone().await;
    for status in [500, 401] {
        let service = handling(&layer(&place), move |_| async move { full(status, "no") });
        // The script of the ending has to be known.
        send(&service, post(&format!("first-{status}"), "")).await;
        monitor.executed().await;
        let answer = send(&service, post(&format!("second-{status}"), "")).await;
        assert_eq!(answer.status, status);
        assert_eq!(monitor.sent().await, ["evalsha", "evalsha"], "{status}");
    }
}

#[tokio::test]
async fn the_replay_of_a_long_answer_takes_one_plain_read_more() {
    let (_server, place, mut monitor) = alone().await;
    let layer = layer(&place);
    for (body, expected) in [
        (17 << 10, &["evalsha", "get"][..]),
        (15 << 10, &["evalsha"]),
    ] {
        let service = handling(&layer, move |_| async move { full(200, vec![b'x'; body]) });
        let key = format!("{body}-bytes");
        send(&service, post(&key, "charge 5")).await;
        monitor.executed().await;
        let replay = send(&service, post(&key, "charge 5")).await;
        assert!(replay.is_replay());
        assert_eq!(replay.body, vec![b'x'; body]);
        assert_eq!(monitor.sent().await, expected, "{body} bytes");
    }
}

#[tokio::test]
async fn each_script_that_the_server_has_forgotten_costs_one_round_trip_more() {
    let (server, place, mut monitor) = alone().await;
    let (service, runs) = counting(&layer(&place));
    server.query::<()>(redis::cmd("SCRIPT").arg("FLUSH")).await;
    monitor.executed().await;
    let first = send(&service, post("k", "charge 5")).await;
    let expected = ["evalsha", "eval", "evalsha", "eval"];
    assert_eq!(monitor.sent().await, expected, "both scripts are unknown");
    let replay = send(&service, post("k", "charge 5")).await;
    assert_eq!(monitor.sent().await, ["evalsha"], "one is known again");
    assert_eq!(first.body, replay.body);

    let second = send(&service, post("l", "charge 5")).await;
    assert_eq!(second.text(), "run 2");
    assert_eq!(monitor.sent().await, ["evalsha", "evalsha"], "both are");
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn whoever_waits_looks_up_now_and_then_and_writes_nothing() {
    const WAIT: Duration = Duration::from_secs(2);
    let (server, place, mut monitor) = alone().await;
    place.store.lookup(&request().id).await.unwrap();
    let lookup = monitor.executed().await;
    let lookup = &lookup[0].arguments[0];
    let gate = Gate::default();
    let layer = layer(&place).on_conflict(ConflictPolicy::Wait { at_most: WAIT });
    let service = held(&layer, &gate);
    let first = tokio::spawn({
        let service = service.clone();
        async move { send(&service, post("k", "charge 5")).await }
    });
    gate.until_arrived(1).await;

    reset_stats(&server).await;
    monitor.executed().await;
    let began = Instant::now();
    let refused = send(&service, post("k", "charge 5"));
    let refused = timeout(PATIENCE, refused).await.expect("it runs beside");
    let took = began.elapsed();
    assert_eq!(refused.code().as_deref(), Some("in-progress"));
    assert!(took >= WAIT && took < 2 * WAIT, "waited {took:?}");
    let executed = monitor.executed().await;
    let by_client = executed.iter().filter(|it| !it.by_script);
    let (looked, other): (Vec<_>, Vec<_>) =
        by_client.partition(|it| it.name == "evalsha" && it.arguments[0] == *lookup);
    // A claim at the beginning, and one at the end.
    assert_eq!(other.len(), 2, "{other:?}");
    assert!(other.iter().all(|it| it.name == "evalsha"), "{other:?}");

    // Every 250 ms at the longest, every 25 ms at the shortest. A machine that is busy looks
    // less often, and no machine more often.
    let looked = looked.len() as u64;
    let most = WAIT.as_millis() as u64 / 25 + 1;
    assert!((8..=most).contains(&looked), "looked {looked} times");

    let mut counted = command_stats(&server).await;
    counted.remove("echo");
    let asked = looked + 2;
    let expected = stats([("evalsha", asked), ("getrange", asked), ("pttl", asked)]);
    assert_eq!(counted, expected);

    gate.open_for_all();
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
}
