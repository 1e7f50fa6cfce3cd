//! Whatever two nodes do to a few keys of one PostgreSQL at once, every answer is one that the
//! contract allows: with prepared statements and without, through a pooler, under strict
//! isolation, and in transactions, whose rows commit with the answers or not at all.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod in_transactions;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use in_transactions::{InTransactions, Known, create_effects, effects};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use support::history::{Answer, Call, Event, check};
use support::postgres::{PgBouncer, PostgresServer};
use support::torture::{Plan, counts, torture};
use tower_idempotency::store::{KeyStore, Phase, PostgresStore, Record};

/// One that prepares its statements, and one that does not.
async fn nodes(server: &PostgresServer) -> (PostgresStore, PostgresStore) {
    let one = PostgresStore::new(pool(server.options()).await);
    one.migrate().await.unwrap();
    let other = PostgresStore::new(pool(server.options()).await).persistent_statements(false);
    (one, other)
}

async fn server() -> PostgresServer {
    PostgresServer::start_with(&[("fsync", "off")]).await
}

/// With a connection for every task of the plan: to wait for one is not what is tortured.
async fn pool(options: PgConnectOptions) -> PgPool {
    let options = options.disable_statement_logging();
    let pool = PgPoolOptions::new().max_connections(32);
    pool.connect_with(options).await.unwrap()
}

async fn keeps_the_contract(one: impl KeyStore, other: impl KeyStore, plan: &Plan) -> Vec<Event> {
    let events = torture(one, other, plan).await;
    let checked = Instant::now();
    check(&events);
    let counts = counts(&events);
    println!(
        "{} calls, checked in {:?}: {counts:#?}",
        events.len(),
        checked.elapsed()
    );
    let is_error = |answer: &Answer| matches!(answer, Answer::Error(_));
    assert!(!events.iter().any(|event| is_error(&event.answer)));
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_on_one_server_keep_the_contract_under_torture() {
    let server = server().await;
    let (one, other) = nodes(&server).await;
    keeps_the_contract(one, other, &Plan::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_behind_a_pooler_keep_the_contract_under_torture() {
    let server = server().await;
    let bouncer = PgBouncer::before(&server, 6).await;
    let one = PostgresStore::new(pool(bouncer.options()).await).persistent_statements(false);
    let other = PostgresStore::new(pool(bouncer.options()).await).persistent_statements(false);
    one.migrate().await.unwrap();
    keeps_the_contract(one, other, &Plan::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stricter_isolation_changes_no_answer_under_torture() {
    for isolation in ["repeatable read", "serializable"] {
        let strict = [
            ("default_transaction_isolation", isolation),
            ("fsync", "off"),
        ];
        let server = PostgresServer::start_with(&strict).await;
        let (one, other) = nodes(&server).await;
        let mut plan = Plan::new();
        plan.lasts = Duration::from_secs(5);
        keeps_the_contract(one, other, &plan).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_handlers_write_commits_with_the_answer_under_torture() {
    let server = server().await;
    let (one, other) = nodes(&server).await;
    let pool = server.pool().await;
    create_effects(&pool).await;
    let known = Known::default();
    let node = |store: PostgresStore, is_fenced| InTransactions {
        store,
        known: known.clone(),
        is_fenced,
    };
    let events = keeps_the_contract(node(one, true), node(other, false), &Plan::new()).await;

    let all = effects(&pool).await;
    let effects: BTreeSet<_> = all.iter().cloned().collect();
    assert_eq!(all.len(), effects.len(), "none happened twice");
    let committed = known.committed.lock().unwrap();
    assert!(committed.len() > 50, "only {}", committed.len());
    assert!(committed.is_subset(&effects), "a commit that was none");
    let without_effect = known.without_effect.lock().unwrap();
    for record in events.iter().filter_map(replayed) {
        let bytes = record.as_bytes();
        let is_explained = effects.contains(bytes) || without_effect.contains(bytes);
        assert!(is_explained, "an answer without its row");
    }
    // What was given up may have committed.
    let given_up = events.iter().filter(|it| it.answer == Answer::Never);
    let given_up: BTreeSet<_> = given_up.filter_map(completed).collect();
    for event in events.iter().filter(|it| it.answer == Answer::NotOwner) {
        let record = completed(event).unwrap();
        let may_be = committed.contains(record) || given_up.contains(record);
        assert!(may_be || !effects.contains(record), "a row of no owner");
    }
}

fn completed(event: &Event) -> Option<&[u8]> {
    match &event.call {
        Call::Complete { record, .. } => Some(record.as_bytes()),
        _ => None,
    }
}

fn replayed(event: &Event) -> Option<&Record> {
    match &event.answer {
        Answer::Completed { record, .. } => Some(record),
        Answer::Found(found) => match &found.phase {
            Phase::Completed(record) => Some(record),
            _ => None,
        },
        _ => None,
    }
}
