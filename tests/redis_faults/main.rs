//! Whatever fails between the layer and Redis, an answer is true, a handler does not run twice
//! behind what was acknowledged, and no key stays stuck; and where Redis loses what it had
//! acknowledged, it does so exactly where the documentation says.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod late_calls;
mod lost_in_a_run;
mod lost_replies;
mod out_of_memory;
mod outage;
mod replica_acks;
mod restarts;
mod scene;
mod scripts_flushed;
mod split_brain;
mod two_nodes;
