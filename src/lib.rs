//! Makes HTTP APIs safe to retry.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod model;
pub mod store;

pub use self::model::key::{IdempotencyKey, InvalidKey};
pub use self::model::scope::{RecordId, Scope};
