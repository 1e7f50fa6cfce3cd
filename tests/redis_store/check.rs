//! `check` finds what puts the promises at risk, on servers that are set up so, and tells
//! what to set.

mod acl;
mod cluster;

use std::error::Error;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tower_idempotency::store::redis::{CheckError, Finding, Risk};
use tower_idempotency::store::{RedisStore, StoreError, StoreErrorKind};

use crate::Place;
use crate::monitor::{Monitor, called, sent};
use crate::support::redis::RedisServer;

const AOF: [&str; 2] = ["--appendonly", "yes"];

async fn store(server: &RedisServer) -> RedisStore<MultiplexedConnection> {
    Place::on(server).await.store
}

async fn set(server: &RedisServer, name: &str, value: &str) {
    let mut set = redis::cmd("CONFIG");
    server
        .query::<()>(set.arg("SET").arg(name).arg(value))
        .await;
}

fn risks(findings: Vec<Finding>) -> Vec<Risk> {
    findings.into_iter().map(|finding| finding.risk).collect()
}

fn unfit(checked: Result<Vec<Finding>, CheckError>) -> Vec<Finding> {
    match checked {
        Err(CheckError::Unfit(findings)) => {
            assert!(findings.iter().any(|finding| finding.risk.is_unfit()));
            findings
        }
        other => panic!("not found to be unfit: {other:?}"),
    }
}

fn failed(checked: Result<Vec<Finding>, CheckError>) -> StoreError {
    match checked {
        Err(CheckError::Store(error)) => error,
        other => panic!("it could be asked: {other:?}"),
    }
}

#[tokio::test]
async fn a_sound_server_gives_no_finding_and_is_not_written_to() {
    let server = RedisServer::start_with(&AOF).await;
    let store = store(&server).await;
    let mut monitor = Monitor::start(&server).await;
    assert_eq!(store.check().await.unwrap(), []);
    let executed = monitor.executed().await;
    let mut asked = sent(&executed);
    asked.sort();
    assert_eq!(asked, ["eval", "evalsha", "info"]);
    assert_eq!(called(&executed), ["getrange"]);
    let keys: usize = server.query(&redis::cmd("DBSIZE")).await;
    assert_eq!(keys, 0);
}

#[tokio::test]
async fn a_server_that_a_restart_empties_is_warned_of() {
    let server = RedisServer::start().await;
    let findings = store(&server).await.check().await.unwrap();
    let [finding] = &findings[..] else {
        panic!("not one finding: {findings:?}");
    };
    assert_eq!(finding.node, None);
    assert_eq!(finding.risk, Risk::NotDurable);
    assert!(!finding.risk.is_unfit());
}

#[tokio::test]
async fn a_replica_keeps_records_over_a_restart_too_and_is_no_place_for_claims_itself() {
    let primary = RedisServer::start().await;
    let replica = RedisServer::start_replica_of(&primary).await;
    assert_eq!(store(&primary).await.check().await.unwrap(), []);
    let store = store(&replica).await;
    assert_eq!(risks(unfit(store.check().await)), [Risk::Replica]);
    let refused = crate::refusal(&store, &crate::request()).await;
    assert_eq!(refused, StoreErrorKind::NotApplied);
}

#[tokio::test]
async fn a_server_that_may_evict_is_unfit_whatever_it_evicts() {
    let server = RedisServer::start_with(&AOF).await;
    let store = store(&server).await;
    for policy in [
        "volatile-lru",
        "volatile-lfu",
        "volatile-ttl",
        "volatile-random",
        "allkeys-lru",
        "allkeys-lfu",
        "allkeys-random",
    ] {
        set(&server, "maxmemory-policy", policy).await;
        let policy = policy.to_owned();
        let found = risks(unfit(store.check().await));
        assert_eq!(found, [Risk::Evicts { policy }]);
    }
}

#[tokio::test]
async fn everything_is_found_at_once() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let store = store(&server)
        .await
        .min_replica_acks(1, Duration::from_millis(50));
    let policy = "allkeys-lru".to_owned();
    let (wanted, connected) = (1, 0);
    let expected = [
        Risk::Evicts { policy },
        Risk::TooFewReplicas { wanted, connected },
        Risk::NotDurable,
    ];
    assert_eq!(risks(unfit(store.check().await)), expected);
}

#[tokio::test]
async fn fewer_replicas_than_have_to_acknowledge_are_unfit() {
    let server = RedisServer::start_with(&AOF).await;
    let asking = |store: RedisStore<_>, replicas| {
        store.min_replica_acks(replicas, Duration::from_millis(50))
    };
    let too_few = |wanted, connected| [Risk::TooFewReplicas { wanted, connected }];
    let one = asking(store(&server).await, 1);
    assert_eq!(risks(unfit(one.check().await)), too_few(1, 0));
    let _replica = RedisServer::start_replica_of(&server).await;
    assert_eq!(one.check().await.unwrap(), []);
    let two = asking(store(&server).await, 2);
    assert_eq!(risks(unfit(two.check().await)), too_few(2, 1));
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_cannot_be_checked() {
    let server = RedisServer::start().await;
    let bare = store(&server).await;
    let managed = RedisStore::new(server.manager().await);
    server.kill();
    for checked in [bare.check().await, managed.check().await] {
        let error = checked.unwrap_err();
        assert_eq!(error.to_string(), "the store could not be checked");
        let told = error.source().expect("the store's error");
        let told = told.downcast_ref::<StoreError>().unwrap();
        assert!(told.source().unwrap().is::<redis::RedisError>());
        let kinds = [StoreErrorKind::NotApplied, StoreErrorKind::Ambiguous];
        assert!(kinds.contains(&told.kind()), "{told:?}");
    }
}

/// What is at risk, and what to set.
#[test]
fn every_risk_is_told_with_what_to_do_about_it() {
    let told: [(Risk, bool, &[&str]); 8] = [
        (
            Risk::Evicts {
                policy: "allkeys-lru".to_owned(),
            },
            true,
            &["allkeys-lru", "run again", "maxmemory-policy", "noeviction"],
        ),
        (
            Risk::TooOld {
                version: "5.0.14".to_owned(),
            },
            true,
            &["5.0.14", "6.2", "upgrade"],
        ),
        (
            Risk::Replica,
            true,
            &["replica", "claim fails", "connect to the primary"],
        ),
        (
            Risk::ClusterNotReady {
                state: "fail".to_owned(),
            },
            true,
            &["cluster_state", "fail", "slots", "claims", "repair"],
        ),
        (
            Risk::NoRedirections,
            true,
            &["redirections", "claims", "fail", "redis::cluster_async"],
        ),
        (
            Risk::TooFewReplicas {
                wanted: 2,
                connected: 1,
            },
            true,
            &[
                "2 replicas",
                "1 are connected",
                "refused",
                "min_replica_acks",
            ],
        ),
        (
            Risk::NotDurable,
            false,
            &["restart", "run again", "appendonly yes"],
        ),
        (
            Risk::Unaudited {
                reason: "NOPERM".to_owned(),
            },
            false,
            &["NOPERM", "not known", "evicted", "+info"],
        ),
    ];
    for (risk, is_unfit, words) in told {
        assert_eq!(risk.is_unfit(), is_unfit, "{risk:?}");
        let text = risk.to_string();
        for word in words {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
        assert_eq!(text.lines().count(), 1);
    }
}

#[tokio::test]
async fn whoever_is_told_that_a_server_is_unfit_is_told_why() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "volatile-ttl"]).await;
    let error = store(&server).await.check().await.unwrap_err();
    assert!(error.source().is_none());
    let text = error.to_string();
    for word in ["volatile-ttl", "noeviction", "appendonly yes"] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}
