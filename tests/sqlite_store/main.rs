//! `SqliteStore` on real files: the contract, transactions, what is stored, what a statement
//! costs, what its audit finds, faults, and several processes. Here is what every part of it
//! asks with.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod check;
#[cfg(feature = "conformance")]
mod contract;
mod faults;
mod options;
mod place;
mod processes;
mod transactions;
mod upkeep;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use place::Place;
use sqlx::sqlite::SqlitePoolOptions;
use support::claims::{
    LEASE, RETENTION, acquire, complete, fresh_record, misuse_of, record_of_len, request, retry_of,
    sealing,
};
use tower_idempotency::store::{ClaimRequest, SqliteStore};

/// The same, with a lease that is over in a moment.
fn brief(mut request: ClaimRequest) -> ClaimRequest {
    request.lease = Duration::from_millis(1);
    request
}

/// The same file through one connection alone.
async fn single(place: Place) -> Place {
    let Place { folder, pool, .. } = place;
    pool.close().await;
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(place::options(&folder.file()))
        .await
        .unwrap();
    let store = SqliteStore::new(pool.clone());
    Place {
        store,
        pool,
        folder,
    }
}

/// Drops a call after that many polls.
async fn cut_short<T>(call: impl Future<Output = T>, polls: usize) {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 || call.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
