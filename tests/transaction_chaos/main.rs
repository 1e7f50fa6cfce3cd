//! Two nodes transfer once under each key, whatever becomes of their handlers, their clients
//! and the network to the database: each effect is there once with its answer, and nothing is
//! left behind, neither a run, nor an open transaction, nor a connection.
//!
//! All that happens is drawn at random. A failure prints the seed of its draws, and
//! `TRANSACTION_CHAOS_SEED` gives it again: the same draws, in an order that the machine
//! decides.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(unreachable_pub, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod chance;
mod clients;
mod handlers;
mod node;
mod over_postgres;
mod over_sqlite;
mod trail;
