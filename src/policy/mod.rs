//! What a user may swap. Plug points see `&Parts`, never a generic request, so that each
//! is object safe and the layer keeps one type parameter.

pub(crate) mod behaviour;
pub(crate) mod config;
pub(crate) mod fingerprint;
pub(crate) mod key;
pub(crate) mod rejection;
pub(crate) mod scope;
pub(crate) mod verdict;
