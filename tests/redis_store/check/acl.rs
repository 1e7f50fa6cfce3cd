//! The permissions that the documentation names are enough, and each is needed.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};
use tower_idempotency::store::redis::Risk;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, Ownership, RedisStore, StoreError,
    StoreErrorKind,
};

use super::{AOF, failed, risks};
use crate::support::redis::{RedisCluster, RedisServer, shared};
use crate::{LEASE, RETENTION, fresh_record, refusal, request, retry_of};

const DOCUMENTATION: &str = include_str!("../../../src/store/redis/mod.rs");

/// What stands in quotes in the paragraph on permissions.
fn documented() -> Vec<&'static str> {
    let (_, paragraph) = DOCUMENTATION.split_once("//! An ACL needs").unwrap();
    let (paragraph, _) = paragraph.split_once("\n//!\n").unwrap();
    let quoted = paragraph.split('`').skip(1).step_by(2);
    let words = quoted.flat_map(str::split_whitespace);
    let rules: Vec<_> = words.filter(|word| word.starts_with(['+', '~'])).collect();
    assert!(rules.len() > 12, "{rules:?}");
    rules
}

/// What is needed without a cluster, a check or replicas.
fn documented_for_a_store() -> Vec<&'static str> {
    let rules = documented();
    let keys = rules.iter().position(|rule| rule.starts_with('~')).unwrap();
    assert_eq!(rules[keys], "~idem1:*");
    rules[..=keys].to_vec()
}

async fn set_user(server: &RedisServer, name: &str, rules: &[&str]) {
    let mut set = redis::cmd("ACL");
    set.arg("SETUSER").arg(name).arg("reset").arg("on");
    set.arg(">secret").arg(rules);
    server.query::<()>(&set).await;
}

async fn connect_as(server: &RedisServer, name: &str) -> MultiplexedConnection {
    let url = format!("redis://{name}:secret@{}", server.addr());
    let client = Client::open(url).unwrap();
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    connection.await.unwrap()
}

/// Everything that a store does, with whatever it is answered in the end.
async fn everything(store: &impl KeyStore) -> Result<(), StoreError> {
    let run = request();
    let hold = claim(store, &run).await?;
    assert_eq!(
        store.extend(&hold, LEASE, RETENTION).await?,
        Ownership::Held
    );
    // To end the lease earlier and the record not, something has to be written in between.
    assert_eq!(
        store.extend(&hold, LEASE / 2, RETENTION).await?,
        Ownership::Held
    );
    let busy = store.claim(&retry_of(&run)).await?;
    assert!(matches!(busy, Claimed::InProgress { .. }));
    store.lookup(&run.id).await?;
    let record = fresh_record();
    for _ in 0..2 {
        let completed = store.complete(&hold, &record, RETENTION).await?;
        assert_eq!(completed, Completion::Stored);
    }
    let replay = store.claim(&retry_of(&run)).await?;
    assert_eq!(replay, Claimed::Completed { attempt: 1, record });
    store.lookup(&run.id).await?;

    let run = request();
    let hold = claim(store, &run).await?;
    assert_eq!(store.fail(&hold, false, RETENTION).await?, Ownership::Held);
    let retry = retry_of(&run);
    let hold = claim(store, &retry).await?;
    assert_eq!(store.release(&hold).await?, Ownership::Held);
    let retry = retry_of(&run);
    let hold = claim(store, &retry).await?;
    assert_eq!(store.fail(&hold, true, RETENTION).await?, Ownership::Held);
    assert!(store.resolve(&run.id, &fresh_record(), RETENTION).await?);
    assert_eq!(store.forget(&run.id).await?, Forgot::Forgotten);
    let hold = claim(store, &retry).await?;
    assert_eq!(store.release(&hold).await?, Ownership::Held);
    Ok(())
}

async fn claim(store: &impl KeyStore, request: &ClaimRequest) -> Result<Hold, StoreError> {
    match store.claim(request).await? {
        Claimed::Acquired(hold) => Ok(hold),
        other => panic!("not acquired: {other:?}"),
    }
}

/// Once with short answers and once with long ones, on a server that knows no script yet.
async fn everything_as(server: &RedisServer, name: &str) -> Result<(), StoreError> {
    let store = RedisStore::new(connect_as(server, name).await);
    server.query::<()>(redis::cmd("SCRIPT").arg("FLUSH")).await;
    everything(&store).await?;
    everything(&store.inline_limit(0)).await
}

#[tokio::test]
async fn the_documented_permissions_are_enough_for_a_store() {
    let server = RedisServer::start_with(&AOF).await;
    set_user(&server, "enough", &documented_for_a_store()).await;
    everything_as(&server, "enough").await.unwrap();
    // Nothing of all that is left elsewhere.
    let keys: Vec<String> = server.query(redis::cmd("KEYS").arg("*")).await;
    assert!(!keys.is_empty());
    assert!(keys.iter().all(|key| key.starts_with("idem1:")), "{keys:?}");
}

#[tokio::test]
async fn each_of_the_documented_permissions_is_needed_by_a_store() {
    let server = RedisServer::start().await;
    let rules = documented_for_a_store();
    let mut wrong = Vec::new();
    for (number, missing) in rules.iter().enumerate() {
        let rules: Vec<_> = rules
            .iter()
            .copied()
            .filter(|rule| rule != missing)
            .collect();
        let name = format!("lacks-{number}");
        set_user(&server, &name, &rules).await;
        let refused = everything_as(&server, &name).await;
        match refused.map_err(|error| (error.kind(), format!("{error:?}"))) {
            Err((StoreErrorKind::Misconfigured, _)) => {}
            other => wrong.push(format!("without {missing}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn keys_of_another_prefix_are_not_permitted() {
    let server = shared().await;
    set_user(server, "one-prefix", &documented_for_a_store()).await;
    let connection = connect_as(server, "one-prefix").await;
    let own = RedisStore::new(connection);
    claim(&own, &request()).await.unwrap();
    for prefix in ["other", "idem1", "ide", ""] {
        let other = own.clone().key_prefix(prefix);
        let kind = refusal(&other, &request()).await;
        assert_eq!(kind, StoreErrorKind::Misconfigured, "{prefix}");
    }
}

#[tokio::test]
async fn the_documented_permissions_are_enough_for_a_check_and_for_replicas() {
    let server = RedisServer::start_with(&AOF).await;
    let _replica = RedisServer::start_replica_of(&server).await;
    let mut rules = documented_for_a_store();
    for rule in ["+wait", "+info", "+cluster|info"] {
        assert!(documented().contains(&rule), "{rule} is not documented");
        rules.push(rule);
    }
    set_user(&server, "enough", &rules).await;
    let store = RedisStore::new(connect_as(&server, "enough").await);
    let store = store.min_replica_acks(1, Duration::from_secs(5));
    assert_eq!(store.check().await.unwrap(), []);
    everything(&store).await.unwrap();
}

#[tokio::test]
async fn the_documented_permissions_are_enough_in_a_cluster() {
    let cluster = RedisCluster::start_with(&AOF).await;
    for node in cluster.nodes() {
        set_user(node, "enough", &documented()).await;
    }
    let client = cluster.client().username("enough").password("secret");
    let connection = client.build().unwrap().get_async_connection().await;
    let store = RedisStore::new(connection.unwrap());
    assert_eq!(store.check().await.unwrap(), []);
    // On all three nodes.
    for _ in 0..20 {
        everything(&store).await.unwrap();
    }
    everything(&store.clone().inline_limit(0)).await.unwrap();

    // Through a move, in the middle of it and after it.
    let run = request();
    let slot = cluster.slot_of(&crate::key("idem", &run.id)).await;
    let from = cluster.owner_of(slot).await;
    let to = (from + 1) % 3;
    cluster.begin_move(from, to, slot).await;
    let hold = claim(&store, &run).await.unwrap();
    cluster.move_keys(from, to, slot).await;
    cluster.end_move(from, to, slot).await;
    let completed = store.complete(&hold, &fresh_record(), RETENTION).await;
    assert_eq!(completed.unwrap(), Completion::Stored);
}

#[tokio::test]
async fn without_info_a_server_is_not_audited_and_says_so() {
    let server = RedisServer::start().await;
    set_user(&server, "no-info", &documented_for_a_store()).await;
    let store = RedisStore::new(connect_as(&server, "no-info").await);
    let findings = store.check().await.unwrap();
    let text = findings[0].to_string();
    assert!(
        text.contains("no permissions") && text.contains("+info"),
        "{text}"
    );
    let found = risks(findings);
    assert!(matches!(found[..], [Risk::Unaudited { .. }]), "{found:?}");
}

#[tokio::test]
async fn without_scripts_a_server_is_misconfigured() {
    let server = shared().await;
    set_user(server, "no-scripts", &["allkeys", "+@all", "-evalsha"]).await;
    let store = RedisStore::new(connect_as(server, "no-scripts").await);
    let error = failed(store.check().await);
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured);
    assert_eq!(
        refusal(&store, &request()).await,
        StoreErrorKind::Misconfigured
    );
}
