//! The whole contract of a store holds: on one server, behind a replica that has to
//! acknowledge, on a cluster, and where the server cannot be reached.

mod moving;

use std::time::{Duration, Instant};

use redis::Client;
use redis::aio::ConnectionManager;
use tower_idempotency::store::{AnyStore, KeyStore, RedisStore, StoreErrorKind, conformance};

use crate::support::proxy::Proxy;
use crate::support::redis::{
    RedisCluster, RedisServer, manager_at, manager_config, shared, shared_cluster, unique_prefix,
};
use crate::{acquire, refusal, request};

/// In a task of its own, of which `what` tells if it fails.
async fn all_clauses_hold<K: KeyStore>(what: &str, store: K) {
    let clauses = tokio::spawn(async move { conformance::all(&store).await });
    assert!(clauses.await.is_ok(), "a clause does not hold {what}");
}

/// At the same time: each of them waits for leases to end for most of its ten seconds.
#[tokio::test]
async fn every_clause_holds_on_a_server_and_on_a_cluster_however_they_are_asked() {
    let server = shared().await;
    let of = |connection| RedisStore::new(connection).key_prefix(unique_prefix());
    let bare = of(server.multiplexed().await);

    let url = format!("{}?protocol=resp3", server.url());
    let client = Client::open(url).unwrap();
    let manager = ConnectionManager::new(client).await.unwrap();
    let managed = RedisStore::new(manager).key_prefix(unique_prefix());

    let reading = of(server.multiplexed().await).inline_limit(0);

    let primary = RedisServer::start().await;
    let _replica = RedisServer::start_replica_of(&primary).await;
    let replicated = of(primary.multiplexed().await);
    let replicated = replicated.min_replica_acks(1, Duration::from_secs(5));

    let cluster = RedisCluster::start().await;
    let clustered = RedisStore::new(cluster.connect().await);
    tokio::join!(
        all_clauses_hold("over a bare connection", bare),
        all_clauses_hold(
            "for an erased store, over a managed connection with RESP3",
            AnyStore::new(managed)
        ),
        all_clauses_hold("where each answer takes a read of its own", reading),
        all_clauses_hold("where a replica has to acknowledge", replicated),
        all_clauses_hold("on a cluster", clustered),
    );
    // Each of them has about a third of the hundreds that stay behind.
    for node in cluster.nodes() {
        let keys: usize = node.query(&redis::cmd("DBSIZE")).await;
        assert!(keys > 20, "{keys} keys on one of three nodes");
    }
}

#[tokio::test]
async fn two_connections_are_one_store_also_if_they_are_of_two_kinds() {
    let server = shared().await;
    let prefix = unique_prefix();
    let bare = || async {
        let connection = server.multiplexed().await;
        RedisStore::new(connection).key_prefix(&prefix)
    };
    let managed = RedisStore::new(server.manager().await).key_prefix(&prefix);
    let (one, other) = (bare().await, bare().await);
    let (managed, erased) = (AnyStore::new(managed), AnyStore::new(bare().await));
    let cluster = shared_cluster().await;
    let clustered = RedisStore::new(cluster.connect().await).key_prefix(&prefix);
    let beside = RedisStore::new(cluster.connect().await).key_prefix(&prefix);
    tokio::join!(
        conformance::clause_01_claim_is_atomic(&clustered, &beside),
        conformance::clause_10_one_clock_compares(&clustered, &beside),
        conformance::clause_01_claim_is_atomic(&one, &other),
        conformance::clause_10_one_clock_compares(&one, &other),
        conformance::clause_01_claim_is_atomic(&managed, &erased),
        conformance::clause_10_one_clock_compares(&managed, &erased),
    );
}

#[tokio::test]
async fn errors_are_typed_when_the_server_was_killed() {
    let server = RedisServer::start().await;
    let bare = RedisStore::new(server.multiplexed().await);
    let managed = RedisStore::new(server.manager().await);
    for store in [AnyStore::new(bare.clone()), AnyStore::new(managed.clone())] {
        acquire(&store, &request()).await;
    }
    server.kill();
    conformance::clause_14_errors_are_typed(&bare).await;
    conformance::clause_14_errors_are_typed(&managed).await;

    server.restart().await;
    let patience = Instant::now() + Duration::from_secs(10);
    while let Err(error) = managed.claim(&request()).await {
        assert_ne!(error.kind(), StoreErrorKind::Misconfigured);
        assert!(
            Instant::now() < patience,
            "it never connects anew: {error:?}"
        );
    }
    // What the documentation says of it: a bare connection stays broken.
    assert!(bare.claim(&request()).await.is_err());
}

/// With the time-outs that the driver has by default.
#[tokio::test]
async fn errors_are_typed_when_the_network_swallows_everything() {
    let proxy = Proxy::start(shared().await.addr()).await;
    let client = Client::open(format!("redis://{}", proxy.addr())).unwrap();
    let bare = client.get_multiplexed_async_connection().await.unwrap();
    let bare = RedisStore::new(bare).key_prefix(unique_prefix());
    let managed = manager_at(
        proxy.addr(),
        manager_config()
            .set_connection_timeout(Some(Duration::from_millis(300)))
            .set_response_timeout(Some(Duration::from_millis(300)))
            .set_number_of_retries(1),
    );
    let managed = RedisStore::new(managed.await).key_prefix(unique_prefix());
    acquire(&bare, &request()).await;
    acquire(&managed, &request()).await;

    proxy.cut_off();
    let began = Instant::now();
    // What went out may have been applied.
    assert_eq!(refusal(&bare, &request()).await, StoreErrorKind::Ambiguous);
    let took = began.elapsed();
    let documented = Duration::from_millis(500);
    assert!(took >= documented && took < 4 * documented, "took {took:?}");
    tokio::join!(
        conformance::clause_14_errors_are_typed(&bare),
        conformance::clause_14_errors_are_typed(&managed),
    );
    assert!(proxy.swallowed_bytes() > 0);
}

#[tokio::test]
async fn errors_are_typed_when_a_cluster_is_gone() {
    let cluster = RedisCluster::start().await;
    let client = cluster.client().retries(3).build().unwrap();
    let store = RedisStore::new(client.get_async_connection().await.unwrap());
    acquire(&store, &request()).await;
    cluster.nodes().iter().for_each(RedisServer::kill);
    conformance::clause_14_errors_are_typed(&store).await;
}
