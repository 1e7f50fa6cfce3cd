//! Options do what their documentation says, and what cannot be meant is refused.

use std::collections::HashSet;
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Client, Cmd, Pipeline, RedisFuture, Value};
use tower_idempotency::store::{Forgot, KeyStore, Phase, RecordId, RedisStore};
use tower_idempotency::{IdempotencyKey, Scope};

use crate::support::redis::{RedisServer, shared, shared_cluster, unique_prefix};
use crate::{Place, acquire, complete, fresh_record, key, request};

/// Never asked.
#[derive(Clone)]
struct Nowhere;

impl ConnectionLike for Nowhere {
    fn req_packed_command<'a>(&'a mut self, _: &'a Cmd) -> RedisFuture<'a, Value> {
        unreachable!("nothing is sent")
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        unreachable!("nothing is sent")
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[tokio::test]
async fn keys_look_as_documented() {
    let server = RedisServer::start().await;
    let store = RedisStore::new(server.multiplexed().await);
    let id = RecordId::from_bytes(std::array::from_fn(|at| u8::try_from(at * 8).unwrap()));
    let digits = "0008101820283038404850586068707880889098a0a8b0b8c0c8d0d8e0e8f0f8";
    let mut run = request();
    run.id = id;
    for (prefix, expected) in [
        ("idem", format!("idem1:{digits}")),
        ("payments:idem", format!("payments:idem1:{digits}")),
        ("{pay}", format!("{{pay}}1:{digits}")),
        ("", format!("1:{digits}")),
        ("ä b\n", format!("ä b\n1:{digits}")),
    ] {
        let store = match prefix {
            // What it is where nothing else is said.
            "idem" => store.clone(),
            prefix => store.clone().key_prefix(prefix),
        };
        complete(&store, &run, &fresh_record()).await;
        let keys: Vec<String> = server.query(redis::cmd("KEYS").arg("*")).await;
        assert_eq!(keys, [expected], "one key a record");
        store.forget(&run.id).await.unwrap();
    }
}

/// Operators look for a record by what the client has sent.
#[tokio::test]
async fn the_key_of_a_record_is_that_of_its_id() {
    let place = Place::new().await;
    let key = IdempotencyKey::new("8e03978e-40d5-43e8-bc93-6894a57f9324").unwrap();
    let mut run = request();
    run.id = RecordId::new("payments", &Scope::new("account 7"), &key);
    place.acquire(&run).await;
    assert!(place.at::<bool>("EXISTS", &run.id).await);
}

#[tokio::test]
async fn two_prefixes_share_nothing() {
    let connection = shared().await.multiplexed().await;
    let prefix = unique_prefix();
    let run = request();
    let mut stores = Vec::new();
    for end in ["", "1", "1:", "a", "A"] {
        let prefix = format!("{prefix}{end}");
        let store = RedisStore::new(connection.clone()).key_prefix(prefix);
        assert_eq!(store.lookup(&run.id).await.unwrap(), None, "{end:?}");
        let record = fresh_record();
        let hold = complete(&store, &run, &record).await;
        assert_eq!(hold.attempt, 1, "{end:?}");
        stores.push((store, record));
    }
    for (store, record) in stores {
        let seen = store.lookup(&run.id).await.unwrap().unwrap();
        assert_eq!(seen.phase, Phase::Completed(record));
        assert_eq!(store.forget(&run.id).await.unwrap(), Forgot::Forgotten);
    }
}

#[tokio::test]
async fn a_prefix_with_a_hash_tag_puts_all_records_on_one_node() {
    let cluster = shared_cluster().await;
    let store = RedisStore::new(cluster.connect().await);
    let (mut slots, mut owners) = (HashSet::new(), HashSet::new());
    for prefix in ["{pay}", "idem"] {
        let store = store.clone().key_prefix(prefix);
        slots.clear();
        owners.clear();
        for _ in 0..30 {
            let run = request();
            acquire(&store, &run).await;
            let key = key(prefix, &run.id);
            let slot = cluster.slot_of(&key).await;
            let owner = cluster.owner_of(slot).await;
            let exists = redis::cmd("EXISTS").arg(key).take();
            assert!(cluster.node(owner).query::<bool>(&exists).await);
            slots.insert(slot);
            owners.insert(owner);
        }
        match prefix {
            "{pay}" => assert_eq!((slots.len(), owners.len()), (1, 1)),
            _ => assert_eq!((slots.len() > 20, owners.len()), (true, 3)),
        }
    }
}

#[test]
#[should_panic(expected = "min_replica_acks waits for at least one replica and for some time")]
fn to_wait_for_no_replica_is_a_mistake() {
    let _ = RedisStore::new(Nowhere).min_replica_acks(0, Duration::from_millis(200));
}

#[test]
#[should_panic(expected = "without the option nothing is waited for")]
fn to_wait_for_no_time_is_a_mistake() {
    let _ = RedisStore::new(Nowhere).min_replica_acks(1, Duration::ZERO);
}

#[test]
fn what_is_shown_of_a_store_are_its_options() {
    let store = RedisStore::new(Nowhere);
    let shown = format!("{store:?}");
    assert!(
        shown.contains("idem1:") && shown.contains("16384"),
        "{shown}"
    );
    let store = store.key_prefix("payments").inline_limit(99);
    let shown = format!(
        "{:?}",
        store.min_replica_acks(2, Duration::from_millis(250))
    );
    for option in ["payments1:", "99", "2", "250ms"] {
        assert!(shown.contains(option), "{option} is not in {shown}");
    }
}

#[tokio::test]
async fn no_secret_is_shown() {
    let server = RedisServer::start().await;
    let mut set = redis::cmd("ACL");
    set.arg("SETUSER")
        .arg("somebody")
        .arg("on")
        .arg(">pass-word");
    server.query::<()>(set.arg("allkeys").arg("+@all")).await;
    let url = format!("redis://somebody:pass-word@{}", server.addr());
    let client = Client::open(url).unwrap();
    let bare = client.get_multiplexed_async_connection().await.unwrap();
    let managed = client.get_connection_manager().await.unwrap();
    let (bare, managed) = (RedisStore::new(bare), RedisStore::new(managed));
    acquire(&bare, &request()).await;
    acquire(&managed, &request()).await;
    server.kill();
    let errors = [
        bare.claim(&request()).await.unwrap_err(),
        managed.claim(&request()).await.unwrap_err(),
    ];
    let mut shown = vec![format!("{bare:?}"), format!("{managed:#?}")];
    shown.extend(errors.iter().map(|error| format!("{error:?} {error}")));
    for shown in shown {
        for secret in ["somebody", "pass-word"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
