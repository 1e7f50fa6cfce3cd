//! The network between the layer and the server fails while a handler runs, or before: the
//! client gets the true answer in time, the record is written once that is possible, and
//! protection is not switched off by a doubt.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use tokio::time::{Instant, sleep};
use tower_idempotency::{OutagePolicy, Outcome, RejectionKind};

use crate::scene::*;
use crate::support::gates::{Gate, gated as gated_body};
use crate::support::pieces::assert_refused;
use crate::support::proxy::{Proxy, Strike};
use crate::support::redis::RedisServer;
use crate::support::scripted::{Planned, answer, handling, spawn};
use crate::support::{Answer, Runs, post, read};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outage {
    Held,
    CutOff,
    Down,
}

impl Outage {
    const ALL: [Self; 3] = [Self::Held, Self::CutOff, Self::Down];

    fn begin(self, proxy: &Proxy) {
        match self {
            Self::Held => proxy.hold(),
            Self::CutOff => proxy.cut_off(),
            Self::Down => proxy.down(),
        }
    }
}

const STORE_TIMEOUT: Duration = ms(300);

/// Two calls are given up at the most, and a machine that is busy is slow.
const AT_ONCE: Duration = ms(3_000);

fn impatient(line: &Line) -> Layer {
    layer(&line.store)
        .store_timeout(STORE_TIMEOUT)
        .lease(ms(3_000))
}

#[tokio::test]
async fn an_outage_during_the_run_leaves_the_answer_true_and_in_time_and_the_record_for_later() {
    for outage in Outage::ALL {
        let line = Line::new().await;
        let layer = impatient(&line);
        let gate = Gate::default();
        let (service, runs) = gated(&layer, &gate);
        let first = spawn(&service, "k").await;
        gate.until_arrived(1).await;
        outage.begin(&line.proxy);
        gate.open_for_all();
        let began = Instant::now();
        let first = first.await.unwrap();
        assert!(began.elapsed() < AT_ONCE, "{outage:?}");
        assert_true_answer(&first, "run 1 attempt 1", false);
        let (attempt, stored) = (1, Some(false));
        assert_eq!(first.outcome, Some(Outcome::Executed { attempt, stored }));
        assert_eq!(layer.in_flight().count(), 1, "{outage:?}");

        line.proxy.pass();
        idle(&layer).await;
        let retry = charge_patiently(&service, "k").await;
        assert!(retry.is_replay(), "{outage:?} {retry:?}");
        assert_on_record(&service, "k", &first, &runs).await;
        assert_eq!(runs.get(), 1, "{outage:?}");
        idle(&layer).await;
    }
}

#[tokio::test]
async fn an_outage_that_ends_before_the_run_does_is_not_noticed() {
    for outage in Outage::ALL {
        let line = Line::new().await;
        let layer = layer(&line.store);
        let gate = Gate::default();
        let (service, runs) = gated(&layer, &gate);
        let first = spawn(&service, "k").await;
        gate.until_arrived(1).await;
        outage.begin(&line.proxy);
        line.proxy.pass();
        gate.open_for_all();
        let first = first.await.unwrap();
        assert_true_answer(&first, "run 1 attempt 1", true);
        assert_on_record(&service, "k", &first, &runs).await;
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_at_any_time_is_not_noticed() {
    let line = Line::new().await;
    let layer = layer(&line.store);
    let gate = Gate::default();
    let (service, runs) = gated(&layer, &gate);
    for number in 1..=10 {
        line.proxy.cut();
        let key: &str = format!("k{number}").leak();
        let first = spawn(&service, key).await;
        gate.until_arrived(number).await;
        line.proxy.cut();
        gate.open(1);
        let first = first.await.unwrap();
        assert_true_answer(&first, &format!("run {number} attempt 1"), true);
        line.proxy.cut();
        assert_on_record(&service, key, &first, &runs).await;
    }
    assert!(line.proxy.cut_connections() >= 20);
    assert_eq!((runs.get(), layer.in_flight().count()), (10, 0));
}

/// A handler whose body is streamed: its head is out before it ends.
fn streaming(layer: &Layer, gate: &Gate) -> (Streaming, Runs) {
    let runs = Runs::default();
    let service = handling(layer, {
        let (runs, gate) = (runs.clone(), gate.clone());
        move |_| {
            runs.add();
            let body = gated_body(&gate, &["charged ", "5"]);
            async move { answer(201, body) }
        }
    });
    (Streaming::new(service), runs)
}

type Streaming = tower::util::BoxCloneSyncService<
    http::Request<http_body_util::Full<bytes::Bytes>>,
    http::Response<tower_idempotency::ResponseBody<axum::body::Body>>,
    std::convert::Infallible,
>;

async fn stream(service: &Streaming) -> Answer {
    let answer = tower::ServiceExt::oneshot(service.clone(), post("k", "charge 5"));
    read(answer.await.unwrap()).await
}

#[tokio::test]
async fn an_outage_while_an_answer_streams_holds_its_end_back_no_longer_than_a_call_may_take() {
    for outage in Outage::ALL {
        let line = Line::new().await;
        let layer = impatient(&line);
        let gate = Gate::default();
        let (service, runs) = streaming(&layer, &gate);
        let first = tokio::spawn({
            let service = service.clone();
            async move { stream(&service).await }
        });
        gate.until_arrived(1).await;
        outage.begin(&line.proxy);
        gate.open_for_all();
        let began = Instant::now();
        let first = first.await.unwrap();
        assert!(began.elapsed() < AT_ONCE, "{outage:?}");
        assert_eq!(
            (first.status, first.text()),
            (StatusCode::CREATED, "charged 5")
        );
        // Its head was out.
        assert_eq!(first.header("idempotency-stored"), None);
        assert_eq!(layer.in_flight().count(), 1);

        line.proxy.pass();
        idle(&layer).await;
        let retry = loop {
            let retry = stream(&service).await;
            if retry.status == StatusCode::CREATED {
                break retry;
            }
            assert_refused(&retry, RejectionKind::StoreUnavailable);
        };
        assert!(retry.is_replay(), "{outage:?} {retry:?}");
        assert_eq!((retry.text(), runs.get()), ("charged 5", 1));
        idle(&layer).await;
    }
}

#[tokio::test]
async fn during_an_outage_nothing_runs_and_no_client_waits_for_long() {
    let cases = Outage::ALL.into_iter().flat_map(|outage| {
        let policies = [OutagePolicy::Reject, OutagePolicy::RunUnprotected];
        policies.map(|policy| nothing_runs_during(outage, policy))
    });
    join_all(cases).await;
}

async fn nothing_runs_during(outage: Outage, policy: OutagePolicy) {
    let line = Line::new().await;
    let layer = impatient(&line).on_outage(policy);
    let (service, runs) = at_once(&layer);
    outage.begin(&line.proxy);
    let began = Instant::now();
    let refused = charge(&service, "k").await;
    assert_refused(&refused, RejectionKind::StoreUnavailable);
    assert!(began.elapsed() < AT_ONCE, "{outage:?}");
    assert_eq!(runs.get(), 0);
    line.proxy.pass();
    // Whatever the network has kept of the claims is applied now, and given back.
    let answer = charge_patiently(&service, "k").await;
    assert_true_answer(&answer, "run 1 attempt 1", true);
    idle(&layer).await;
    assert_on_record(&service, "k", &answer, &runs).await;
}

#[tokio::test]
async fn protection_is_switched_off_for_a_server_that_is_known_to_be_down_and_not_for_a_doubt() {
    let server = RedisServer::start().await;
    let layer = layer(&store_on(&server).await)
        .lease(ms(500))
        .on_outage(OutagePolicy::RunUnprotected);
    let (service, runs) = at_once(&layer);
    let before = charge(&service, "before").await;
    assert_true_answer(&before, "run 1 attempt 1", true);
    server.kill();
    // It was sent over a connection that had broken: it may have been applied before.
    let refused = charge(&service, "k").await;
    assert_refused(&refused, RejectionKind::StoreUnavailable);
    for run in 2..=4 {
        let answer = charge(&service, "k").await;
        assert_true_answer(&answer, &format!("run {run} attempt 0"), false);
        assert_eq!(answer.outcome, Some(Outcome::Unprotected));
    }
    server.restart().await;
    let answer = charge_until_stored(&service).await;
    assert_on_record(&service, "k", &answer, &runs).await;
    idle(&layer).await;
}

async fn charge_until_stored(service: &Planned) -> Answer {
    let deadline = Instant::now() + ms(20_000);
    loop {
        let answer = charge_patiently(service, "k").await;
        if answer.outcome != Some(Outcome::Unprotected) {
            return answer;
        }
        assert!(Instant::now() < deadline);
        sleep(ms(10)).await;
    }
}

/// The first claim may have been applied, whatever is known of the second.
#[tokio::test]
async fn a_claim_in_doubt_does_not_switch_protection_off_though_the_server_is_down_by_then() {
    let line = Line::new().await;
    let layer = layer(&line.store)
        .lease(ms(3_000))
        .on_outage(OutagePolicy::RunUnprotected);
    let (service, runs) = at_once(&layer);
    line.strike(Strike::DropReply);
    // Connections that are there go on.
    line.proxy.refuse();
    let refused = charge(&service, "k").await;
    assert_refused(&refused, RejectionKind::StoreUnavailable);
    assert_eq!((runs.get(), line.proxy.pending_strikes()), (0, 0));
    assert!(line.proxy.refused_connections() > 0);
    line.proxy.pass();
    let answer = charge_patiently(&service, "k").await;
    assert_true_answer(&answer, "run 1 attempt 1", true);
    idle(&layer).await;
    assert_on_record(&service, "k", &answer, &runs).await;
}
