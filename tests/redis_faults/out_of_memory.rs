//! A server whose memory is full refuses new claims and keeps everything that it has
//! acknowledged, unless it may evict: then it forgets records without an error.

use http::StatusCode;
use tokio::time::{Instant, sleep};
use tower_idempotency::store::redis::{CheckError, Risk};
use tower_idempotency::store::{
    Claimed, Completion, Forgot, KeyStore, Ownership, Phase, StoreErrorKind,
};
use tower_idempotency::{OutagePolicy, RejectionKind};

use crate::scene::*;
use crate::support::gates::Gate;
use crate::support::pieces::assert_refused;
use crate::support::redis::RedisServer;
use crate::support::scripted::spawn;

/// Less than an empty server uses.
const NOTHING: &str = "1";

/// 0 is without a limit.
const UNLIMITED: &str = "0";

async fn limit_memory(server: &RedisServer, to: &str) {
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("maxmemory").arg(to);
    server.query::<()>(&set).await;
}

#[tokio::test]
async fn a_full_server_refuses_claims_and_keeps_what_it_acknowledged() {
    let server = RedisServer::start_with(&["--maxmemory", "3mb"]).await;
    let store = store_on(&server).await;
    let mut kept = Vec::new();
    let (refused, refused_for) = loop {
        let request = request();
        let hold = match store.claim(&request).await {
            Ok(Claimed::Acquired(hold)) => hold,
            other => break (request, error_of(other)),
        };
        let record = record(kept.len().to_string().repeat(5_000));
        match store.complete(&hold, &record, KEPT).await {
            Ok(completion) => assert_eq!(completion, Completion::Stored),
            Err(error) => {
                assert_eq!(error.kind(), StoreErrorKind::Full, "{error:?}");
                continue;
            }
        }
        kept.push((request, record));
        assert!(kept.len() < 1_000, "it never was full");
    };
    assert_eq!(refused_for, StoreErrorKind::Full);
    assert_eq!(store.lookup(&refused.id).await.unwrap(), None);
    assert!(kept.len() > 10, "{}", kept.len());
    for (request, record) in kept {
        let replay = store.claim(&retry_of(&request)).await.unwrap();
        assert_eq!(replay, Claimed::Completed { attempt: 1, record });
    }
}

#[tokio::test]
async fn while_the_server_is_full_keys_can_be_given_back_and_forgotten() {
    let server = RedisServer::start().await;
    let store = store_on(&server).await;
    let running = acquires(&store, &request()).await;
    let done = acquires(&store, &request()).await;
    store.complete(&done, &record("done"), KEPT).await.unwrap();
    limit_memory(&server, NOTHING).await;
    let refused = store.claim(&request()).await;
    assert_eq!(error_of(refused), StoreErrorKind::Full);
    assert_eq!(store.release(&running).await.unwrap(), Ownership::Held);
    assert_eq!(store.lookup(&running.id).await.unwrap(), None);
    assert_eq!(store.forget(&done.id).await.unwrap(), Forgot::Forgotten);
}

/// A lease that ended for want of memory would let the same request run twice.
#[tokio::test]
async fn while_the_server_is_full_leases_are_renewed() {
    let server = RedisServer::start().await;
    let store = store_on(&server).await;
    let hold = acquires(&store, &request()).await;
    limit_memory(&server, NOTHING).await;
    let held = store.extend(&hold, KEPT, KEPT).await;
    assert_eq!(held.unwrap(), Ownership::Held);
    let found = phase(&store, &hold.id).await;
    assert!(matches!(found, Some(Phase::Running { lease_left }) if lease_left > KEPT / 2));
}

#[tokio::test]
async fn while_the_server_is_full_failures_are_kept() {
    for attempt in 1..=2 {
        for seal in [false, true] {
            let server = RedisServer::start().await;
            let store = store_on(&server).await;
            let mut request = request();
            let mut hold = acquires(&store, &request).await;
            if attempt == 2 {
                store.fail(&hold, false, KEPT).await.unwrap();
                request = retry_of(&request);
                hold = acquires(&store, &request).await;
            }
            limit_memory(&server, NOTHING).await;
            let ended = match seal {
                true => store.fail(&hold, true, KEPT).await,
                // At a later attempt it is a failure.
                false => store.release(&hold).await,
            };
            assert_eq!(ended.unwrap(), Ownership::Held, "{attempt} {seal}");
            let expected = match (seal, attempt) {
                (true, _) => Some(Phase::Sealed),
                (false, 1) => None,
                (false, _) => Some(Phase::Failed),
            };
            assert_eq!(phase(&store, &hold.id).await, expected);
        }
    }
}

#[tokio::test]
async fn a_full_server_runs_nothing_new_and_replays_what_is_done() {
    for policy in [OutagePolicy::Reject, OutagePolicy::RunUnprotected] {
        let server = RedisServer::start().await;
        let layer = layer(&store_on(&server).await).on_outage(policy);
        let (service, runs) = at_once(&layer);
        let done = charge(&service, "done").await;
        limit_memory(&server, NOTHING).await;
        for _ in 0..3 {
            let refused = charge(&service, "new").await;
            assert_refused(&refused, RejectionKind::StoreUnavailable);
            assert_on_record(&service, "done", &done, &runs).await;
        }
        assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
        limit_memory(&server, UNLIMITED).await;
        let answer = charge(&service, "new").await;
        assert_true_answer(&answer, "run 2 attempt 1", true);
    }
}

/// The handler runs for longer than its lease was when memory ran out, and there is never
/// room for its answer.
#[tokio::test]
async fn a_run_that_ends_on_a_full_server_is_on_record_without_its_body() {
    let server = RedisServer::start().await;
    let layer = layer(&store_on(&server).await).lease(ms(1_000));
    let gate = Gate::default();
    let (service, runs) = gated(&layer, &gate);
    let first = spawn(&service, "k").await;
    gate.until_arrived(1).await;
    limit_memory(&server, NOTHING).await;
    let full_since = Instant::now();
    while full_since.elapsed() < ms(1_500) {
        let retry = charge(&service, "k").await;
        assert_refused(&retry, RejectionKind::InProgress);
        sleep(ms(50)).await;
    }
    gate.open_for_all();
    let first = first.await.unwrap();
    assert_true_answer(&first, "run 1 attempt 1", true);
    assert_eq!(layer.in_flight().count(), 0);
    for to in [NOTHING, UNLIMITED] {
        limit_memory(&server, to).await;
        let retry = charge(&service, "k").await;
        assert!(retry.is_replay(), "{retry:?}");
        assert_eq!(retry.status, first.status);
        assert_eq!(retry.header("x-answer"), Some("true"));
        assert_eq!(retry.header("idempotency-body"), Some("omitted"));
        assert_eq!((retry.text(), runs.get()), ("", 1));
    }
}

#[tokio::test]
async fn a_run_that_fails_on_a_full_server_has_failed() {
    let server = RedisServer::start().await;
    let layer = layer(&store_on(&server).await);
    let gate = Gate::default();
    let (service, runs) = answering(&layer, 500, {
        let gate = gate.clone();
        move || {
            let gate = gate.clone();
            async move { gate.pass().await }
        }
    });
    let first = spawn(&service, "k").await;
    gate.until_arrived(1).await;
    limit_memory(&server, NOTHING).await;
    gate.open_for_all();
    let first = first.await.unwrap();
    assert_eq!(first.text(), "run 1 attempt 1");
    assert_eq!(first.header("idempotency-stored"), None);
    assert_eq!(layer.in_flight().count(), 0);
    let retry = charge(&service, "k").await;
    assert_refused(&retry, RejectionKind::StoreUnavailable);
    limit_memory(&server, UNLIMITED).await;
    let retry = charge(&service, "k").await;
    assert_eq!((retry.text(), runs.get()), ("run 2 attempt 2", 2));
}

#[tokio::test]
async fn requests_that_fill_a_server_run_once_each_and_what_was_stored_is_replayed() {
    let server = RedisServer::start_with(&["--maxmemory", "3mb"]).await;
    let layer = layer(&store_on(&server).await);
    let (service, runs) = handled(&layer, |run| run.to_string().repeat(5_000));
    let mut answers = Vec::new();
    for number in 0.. {
        assert!(number < 1_000, "it never was full");
        let key = format!("k{number}");
        let answer = charge(&service, &key).await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            assert_refused(&answer, RejectionKind::StoreUnavailable);
            break;
        }
        assert_eq!(answer.text(), (number + 1).to_string().repeat(5_000));
        answers.push((key, answer));
    }
    assert_eq!(runs.get(), answers.len());
    limit_memory(&server, UNLIMITED).await;
    idle(&layer).await;
    let mut omitted = 0;
    for (key, answer) in &answers {
        let retry = charge(&service, key).await;
        assert!(retry.is_replay(), "{retry:?}");
        assert_eq!((retry.status, runs.get()), (answer.status, answers.len()));
        match retry.header("idempotency-body") {
            None => assert_eq!(retry.body, answer.body),
            // There was room for so much, and at that time for no more.
            Some(mark) => omitted += usize::from(mark == "omitted"),
        }
    }
    assert!(omitted < answers.len() / 2, "{omitted}");
}

#[tokio::test]
async fn a_server_that_evicts_is_unfit_because_it_forgets_what_it_acknowledged() {
    let evicts = ["--maxmemory", "3mb", "--maxmemory-policy", "volatile-lru"];
    let server = RedisServer::start_with(&evicts).await;
    let store = store_on(&server).await;
    let unfit = match store.check().await {
        Err(CheckError::Unfit(findings)) => findings,
        other => panic!("it is unfit: {other:?}"),
    };
    let policy = "volatile-lru".to_owned();
    assert!(unfit.iter().any(|found| found.risk
        == Risk::Evicts {
            policy: policy.clone()
        }));

    let layer = layer(&store);
    let (service, runs) = handled(&layer, |run| run.to_string().repeat(5_000));
    for key in 1..=400 {
        let answer = charge(&service, &format!("k{key}")).await;
        assert_eq!((answer.status.as_u16(), runs.get()), (201, key));
        assert_eq!(answer.header("idempotency-stored"), None);
    }
    let mut again = 0;
    for key in 1..=400 {
        let retry = charge(&service, &format!("k{key}")).await;
        again += usize::from(!retry.is_replay());
    }
    assert!(again > 0);
    assert_eq!(runs.get(), 400 + again);
}
