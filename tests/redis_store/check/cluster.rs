//! What `check` finds in a cluster, and of those who do not know that they talk to one.

use std::time::{Duration, Instant};

use redis::cluster::ClusterClient;
use tokio::time::sleep;
use tower_idempotency::store::redis::{CheckError, Finding, Risk};
use tower_idempotency::store::{KeyStore, RecordId, RedisStore, StoreErrorKind};

use super::{AOF, risks, set, unfit};
use crate::support::redis::{RedisCluster, RedisServer, shared_cluster};
use crate::{key, request};

/// Which nodes they are about.
fn nodes(findings: &[Finding]) -> Vec<String> {
    let nodes = findings.iter().map(|finding| finding.node.clone());
    let mut nodes: Vec<_> = nodes.collect::<Option<_>>().expect("the address of a node");
    nodes.sort();
    nodes
}

#[tokio::test]
async fn a_sound_cluster_gives_no_finding_and_else_each_node_is_told_of_by_its_address() {
    let cluster = RedisCluster::start_with(&AOF).await;
    let store = RedisStore::new(cluster.connect().await);
    assert_eq!(store.check().await.unwrap(), []);
    for node in cluster.nodes() {
        set(node, "appendonly", "no").await;
    }
    let findings = store.check().await.unwrap();
    let mut expected: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|node| node.addr().to_string())
        .collect();
    expected.sort();
    assert_eq!(nodes(&findings), expected);
    assert_eq!(risks(findings), [const { Risk::NotDurable }; 3]);

    let evicting = cluster.node(1);
    set(evicting, "maxmemory-policy", "allkeys-lru").await;
    let findings = unfit(store.check().await);
    let (unfit, durable): (Vec<_>, Vec<_>) = findings
        .into_iter()
        .partition(|finding| finding.risk.is_unfit());
    assert_eq!(nodes(&unfit), [evicting.addr().to_string()]);
    assert_eq!(nodes(&durable), expected);
    let text = unfit[0].to_string();
    assert!(
        text.starts_with(&format!("{}: ", evicting.addr())),
        "{text}"
    );
}

#[tokio::test]
async fn a_connection_that_follows_no_redirections_is_found_at_every_node() {
    let cluster = shared_cluster().await;
    for node in cluster.nodes() {
        let store = RedisStore::new(node.multiplexed().await);
        let found = risks(unfit(store.check().await));
        assert_eq!(found, [Risk::NotDurable, Risk::NoRedirections]);

        // It serves a third of the slots, and nobody serves the others through it.
        let mut kinds = Vec::new();
        for _ in 0..30 {
            let request = request();
            let slot = cluster.slot_of(&key("idem", &request.id)).await;
            let is_here = cluster.node(cluster.owner_of(slot).await).port() == node.port();
            match store.claim(&request).await {
                Ok(_) => assert!(is_here),
                Err(error) => {
                    assert!(!is_here);
                    kinds.push(error.kind());
                }
            }
        }
        assert!(!kinds.is_empty());
        assert!(
            kinds
                .iter()
                .all(|kind| *kind == StoreErrorKind::Misconfigured),
            "{kinds:?}"
        );
    }
}

/// By default a cluster serves nothing then. It may be told to serve the other slots, and
/// the one that is asked for by `check` may be one of them or not.
#[tokio::test]
async fn a_cluster_that_lacks_slots_is_not_ready() {
    tokio::join!(
        is_not_ready("yes", "fail", true),
        is_not_ready("yes", "fail", false),
        is_not_ready("no", "ok", true),
        is_not_ready("no", "ok", false),
    );
}

async fn is_not_ready(full_coverage: &str, state: &str, serves_the_key: bool) {
    let cluster = ["--cluster-enabled", "yes"];
    let coverage = ["--cluster-require-full-coverage", full_coverage];
    let server = RedisServer::start_with(&[cluster, coverage, AOF].concat()).await;
    let command = |name: &str| redis::cmd("CLUSTER").arg(name).take();
    let nobody = RecordId::from_bytes([0; 32]);
    let mut slot = command("KEYSLOT");
    let slot: u16 = server.query(slot.arg(key("idem", &nobody))).await;
    let (first, last) = match (slot < 8192) == serves_the_key {
        true => (0, 8191),
        false => (8192, 16_383),
    };
    let mut half = command("ADDSLOTSRANGE");
    server.query::<()>(half.arg(first).arg(last)).await;
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let info: String = server.query(&command("INFO")).await;
        if info.contains(&format!("cluster_state:{state}")) {
            break;
        }
        assert!(Instant::now() < patience, "{info}");
        sleep(Duration::from_millis(20)).await;
    }

    let client = ClusterClient::builder([server.url()]).retries(2).build();
    let connection = client.unwrap().get_async_connection().await;
    let store = RedisStore::new(connection.unwrap());
    let found = store.check().await;
    let is_found = match &found {
        Err(CheckError::Unfit(findings)) => findings
            .iter()
            .any(|finding| matches!(finding.risk, Risk::ClusterNotReady { .. })),
        _ => false,
    };
    let key = if serves_the_key {
        "served"
    } else {
        "not served"
    };
    assert!(
        is_found,
        "full coverage: {full_coverage}, the key is {key}: {found:?}"
    );
}
