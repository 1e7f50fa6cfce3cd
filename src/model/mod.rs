//! The words that every other part shares: no I/O, nothing asynchronous.

pub(crate) mod claim;
pub(crate) mod digest;
pub(crate) mod error;
pub(crate) mod fingerprint;
pub(crate) mod key;
pub(crate) mod record;
pub(crate) mod scope;
mod structured;
mod wire;
