//! What PostgreSQL has acknowledged is there after all of its processes were killed: answers,
//! and the rows of handlers that committed with them.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Response;
use sqlx::postgres::PgPool;
use support::postgres::{PostgresServer, execute};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fence, Fingerprint, KeyStore, Owner, Phase, PostgresStore,
    Record, RecordId, ScopeId, TransactionalStore,
};

const ACKNOWLEDGED: usize = 300;
const RETENTION: Duration = Duration::from_secs(3600);

/// Each of its tasks has a connection of its own, and so their commits share a write.
const TASKS: u64 = 8;

/// A disk that others write to as well is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// The answers whose completion somebody was told of, by their keys.
type Told = BTreeMap<u64, Record>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_answer_outlives_the_server() {
    let server = PostgresServer::start().await;
    let store = store(&server).await;
    let told = complete_until_killed(&server, &store).await;
    server.restart().await;
    let kept = kept(&store, &told).await;
    assert_eq!(kept, told.len(), "of those that were acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_would_be_seen_if_commits_were_acknowledged_before_they_are_written() {
    // The second keeps the background from writing them meanwhile.
    let settings = [("synchronous_commit", "off"), ("wal_writer_delay", "10s")];
    let server = PostgresServer::start_with(&settings).await;
    let store = store(&server).await;
    // The table itself is not to be lost.
    execute(&server.pool().await, "CHECKPOINT").await;
    let told = complete_until_killed(&server, &store).await;
    server.restart().await;
    assert!(kept(&store, &told).await < told.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_would_be_seen_if_the_table_were_unlogged() {
    let server = PostgresServer::start().await;
    let store = store(&server).await;
    let unlogged = "ALTER TABLE idempotency_record SET UNLOGGED";
    execute(&server.pool().await, unlogged).await;
    let told = complete_until_killed(&server, &store).await;
    server.restart().await;
    assert_eq!(kept(&store, &told).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_answers_of_transactions_outlive_the_server_together() {
    let server = PostgresServer::start().await;
    let store = store(&server).await;
    let pool = server.pool().await;
    execute(&pool, "CREATE TABLE effect (key bigint NOT NULL)").await;
    let on = store.clone();
    let told = until_killed(&server, move |key| complete_with_effect(on.clone(), key)).await;
    server.restart().await;

    assert_eq!(kept(&store, &told).await, told.len());
    let effects = effects(&pool).await;
    let distinct: BTreeSet<_> = effects.iter().copied().collect();
    assert_eq!(effects.len(), distinct.len(), "none happened twice");
    // Beyond those that were acknowledged, of each both or none.
    for key in 0..told.last_key_value().unwrap().0 + 100 {
        let answer = store.lookup(&id(key)).await.unwrap();
        let is_recorded = answer.is_some_and(|it| matches!(it.phase, Phase::Completed(_)));
        assert_eq!(is_recorded, distinct.contains(&key), "{key}");
    }
}

async fn store(server: &PostgresServer) -> PostgresStore {
    let store = PostgresStore::new(server.pool().await);
    store.migrate().await.unwrap();
    store
}

async fn complete_until_killed(server: &PostgresServer, store: &PostgresStore) -> Told {
    let store = store.clone();
    until_killed(server, move |key| complete(store.clone(), key)).await
}

/// Several at once complete one key after the other, and more than enough of them have been
/// told so when the server is killed among them.
async fn until_killed<F>(
    server: &PostgresServer,
    complete: impl Fn(u64) -> F + Clone + Send + 'static,
) -> Told
where
    F: Future<Output = Option<Record>> + Send + 'static,
{
    let (tell, mut hear) = mpsc::unbounded_channel();
    let (kill, killed) = watch::channel(());
    for first in 0..TASKS {
        let (tell, complete) = (tell.clone(), complete.clone());
        let mut killed = killed.clone();
        tokio::spawn(async move {
            for key in (first..).step_by(TASKS as usize) {
                let completed = tokio::select! {
                    biased;
                    completed = complete(key) => completed,
                    // A pool goes on to ask for connections that nobody gives.
                    _ = killed.changed() => None,
                };
                let Some(answer) = completed else {
                    break;
                };
                tell.send((key, answer)).unwrap();
            }
        });
    }
    drop(tell);
    let mut told = Told::new();
    let enough = async {
        while told.len() < ACKNOWLEDGED {
            told.extend([hear.recv().await.expect("nobody goes on")]);
        }
    };
    timeout(PATIENCE, enough).await.expect("never enough");
    server.kill();
    drop(kill);
    while let Some(late) = hear.recv().await {
        told.extend([late]);
    }
    told
}

/// `None` if no acknowledgement has come.
async fn complete(store: PostgresStore, key: u64) -> Option<Record> {
    let Ok(Claimed::Acquired(hold)) = store.claim(&request(key)).await else {
        return None;
    };
    let answer = answer(key);
    let completed = store.complete(&hold, &answer, RETENTION).await.ok()?;
    assert_eq!(completed, Completion::Stored);
    Some(answer)
}

async fn complete_with_effect(store: PostgresStore, key: u64) -> Option<Record> {
    let Ok(Claimed::Acquired(hold)) = store.claim(&request(key)).await else {
        return None;
    };
    let mut transaction = store.begin().await.ok()?;
    let effect = sqlx::query("INSERT INTO effect VALUES ($1)").bind(key.cast_signed());
    effect.execute(&mut *transaction).await.ok()?;
    let answer = answer(key);
    let written = store.complete_in(&mut transaction, &hold, &answer, RETENTION);
    assert_eq!(written.await.ok()?, Fence::Held);
    PostgresStore::commit(transaction).await.ok()?;
    Some(answer)
}

/// How many of these keys have their answer.
async fn kept(store: &PostgresStore, told: &Told) -> usize {
    let mut kept = 0;
    for (&key, answer) in told {
        match store.claim(&request(key)).await.unwrap() {
            Claimed::Completed { record, .. } => {
                assert_eq!(record, *answer);
                kept += 1;
            }
            // All of it is lost, or the completion alone.
            Claimed::Acquired(_) | Claimed::InProgress { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    kept
}

async fn effects(pool: &PgPool) -> Vec<u64> {
    let effects = sqlx::query_scalar("SELECT key FROM effect");
    let effects: Vec<i64> = effects.fetch_all(pool).await.unwrap();
    effects.into_iter().map(i64::cast_unsigned).collect()
}

fn id(key: u64) -> RecordId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&key.to_be_bytes());
    RecordId::from_bytes(id)
}

fn request(key: u64) -> ClaimRequest {
    let fingerprint = Fingerprint::from_bytes([1; 32]);
    let scope = ScopeId::from_bytes([2; 16]);
    let mut request = ClaimRequest::new(id(key), scope, fingerprint, Owner::random().unwrap());
    request.lease = RETENTION;
    request
}

fn answer(key: u64) -> Record {
    Record::new(&Response::new(format!("answer {key}")))
}
