//! The suite passes what keeps the contract, and finds what does not: every clause is
//! given stores that break it in one place.

#![cfg(all(feature = "conformance", feature = "memory"))]
#![allow(clippy::unwrap_used)]

mod clauses;
mod faults;
mod judge;
mod passes;
mod wrong_store;
