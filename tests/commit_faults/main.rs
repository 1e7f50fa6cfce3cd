//! A commit whose answer is lost, whose server is killed, or that another transaction is in
//! the way of: the record is the proof of what became of it.
#![cfg(feature = "postgres")]
#![allow(unreachable_pub, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod conflicts;
mod given_up;
mod killed_server;
mod lost_replies;
mod scene;
