//! Whatever two nodes do to a few keys of one server at once, every answer is one that the
//! contract allows.

use tower_idempotency::store::PostgresStore;

use crate::Place;
use crate::support::history::{Answer, Event, check};
use crate::support::postgres::{PostgresServer, pool_at};
use crate::support::torture::{Plan, counts, torture};

pub(crate) fn judge(events: &[Event]) {
    check(events);
    println!("{} calls: {:#?}", events.len(), counts(events));
    let is_error = |answer: &Answer| matches!(answer, Answer::Error(_));
    let errors: Vec<_> = events.iter().filter(|it| is_error(&it.answer)).collect();
    assert!(
        errors.is_empty(),
        "{} errors: {:?}",
        errors.len(),
        errors[0]
    );
}

/// On a server that writes to the disk, so that commits take their time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_on_one_server_keep_the_contract_under_torture() {
    let server = PostgresServer::start().await;
    let place = Place::at(server.database().await).await;
    let other = PostgresStore::new(pool_at(place.options.clone()).await);
    let other = other.persistent_statements(false);
    judge(&torture(place.store, other, &Plan::new()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_of_different_isolation_levels_keep_the_contract_under_torture() {
    let place = Place::new().await;
    let under = async |level| {
        let options = place.options.clone();
        let options = options.options([("default_transaction_isolation", level)]);
        PostgresStore::new(pool_at(options).await)
    };
    let (one, other) = (under("repeatable read").await, under("serializable").await);
    judge(&torture(one, other, &Plan::new()).await);
}
