//! Makes HTTP APIs safe to retry.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod body;
mod exchange;
mod future;
mod layer;
mod model;
mod policy;
mod service;
pub mod store;

pub use self::body::{RequestBody, ResponseBody};
pub use self::exchange::{InFlight, Operation};
pub use self::future::ResponseFuture;
pub use self::layer::IdempotencyLayer;
pub use self::model::key::{IdempotencyKey, InvalidKey};
pub use self::model::scope::{RecordId, Scope};
pub use self::policy::behaviour::{ConflictPolicy, FailurePolicy, OutagePolicy, Outcome};
pub use self::policy::fingerprint::{Fingerprinter, RequestDigest, fingerprint_fn};
pub use self::policy::key::{HeaderKey, KeyExtractor, key_fn};
pub use self::policy::rejection::{
    ProblemJson, Rejection, RejectionKind, RejectionResponse, rejection_fn,
};
pub use self::policy::scope::{
    ScopeExtractor, SharedByAllCallers, by_extension, by_trusted_header, scope_fn,
};
pub use self::policy::verdict::{FinalAnswers, RecordPolicy, Retention, Verdict, verdict_fn};
pub use self::service::Idempotency;

/// Names of the header fields that the layer reads and sets, for CORS lists and clients.
pub mod header {
    use http::HeaderName;

    /// Request: the key, a Structured Field String (RFC 9651 §3.3.3) or bare.
    pub const IDEMPOTENCY_KEY: HeaderName = crate::policy::key::IDEMPOTENCY_KEY;

    /// Response: `true` on a replay, and on nothing else.
    pub const IDEMPOTENT_REPLAYED: HeaderName = crate::exchange::IDEMPOTENT_REPLAYED;

    /// Response: `false` where the handler ran and its answer is not on record, though it
    /// should be.
    pub const IDEMPOTENCY_STORED: HeaderName = crate::exchange::IDEMPOTENCY_STORED;

    /// Response: `omitted` on a replay whose body was not recorded.
    pub const IDEMPOTENCY_BODY: HeaderName = crate::exchange::IDEMPOTENCY_BODY;
}
