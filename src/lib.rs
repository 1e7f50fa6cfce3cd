//! Makes HTTP APIs safe to retry.
//!
//! A [`tower::Layer`] that reads the `Idempotency-Key` of a request, fingerprints the
//! request, claims the key in a [store], runs the handler once, records the answer for 24
//! hours and replays it to every retry.
//!
//! ```
//! use axum::{Router, routing::post};
//! use tower_idempotency::store::MemoryStore;
//! use tower_idempotency::{IdempotencyLayer, by_trusted_header};
//!
//! // Whose key it is: here from a header that the proxy in front sets.
//! let layer = IdempotencyLayer::new(MemoryStore::new(), by_trusted_header("x-account"));
//! let app: Router = Router::new()
//!     .route("/payments", post(async || "paid"))
//!     .route_layer(layer);
//! # let _ = app;
//! ```
//!
//! # What is where
//!
//! - [`IdempotencyLayer`] and its options; [`Idempotency`], the service it makes.
//! - What a handler gets and gives: [`Operation`] in the request's extensions, [`Verdict`]
//!   and [`Retention`] in the response's.
//! - An effect and its record in one transaction: [`Operation::begin`] and
//!   [`finish`](Operation::finish), [`Transaction`] and [`TransactionError`].
//! - What to do when things go wrong: [`FailurePolicy`], [`ConflictPolicy`],
//!   [`OutagePolicy`].
//! - What can be swapped: [`KeyExtractor`], [`ScopeExtractor`], [`Fingerprinter`],
//!   [`RecordPolicy`], [`RejectionResponse`], each with a `*_fn` that takes a closure.
//! - [`store`]: the contract of a store, the stores, and a test suite for your own.
//! - [`Outcome`] in the response's extensions, for layers outside; [`InFlight`], for a
//!   graceful shutdown; [`header`], for CORS lists and clients.
//!
//! # How it differs from a cache, a lock and a rate limit
//!
//! A cache may forget, and may answer two misses with two runs. A lock that times out lets
//! a second holder in beside the first. Here a key is claimed in one atomic step, the claim
//! is renewed while the handler runs, whoever was taken over can neither record nor release,
//! and once an answer is on record the handler does not run again until retention ends.
//!
//! # Hazards in deployment
//!
//! - The [scope](ScopeExtractor) must name the principal whose permissions decide.
//! - Authentication belongs outside this layer: a replay does not reach the handler.
//! - A handler that fails after its effect applies it again under
//!   [`FailurePolicy::RunAgain`], unless it hands [`Operation::child_key`] on, or the effect
//!   is in the transaction of its record.
//! - An exchange outlives its connection. Wait for [`InFlight::idle`] before you exit, and
//!   bound what is under way by
//!   [`max_in_flight`](IdempotencyLayer::max_in_flight).
//! - It needs a tokio runtime with its timer.
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
mod transaction;

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
pub use self::transaction::{Transaction, TransactionError};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use sqlx;

/// Names of the header fields that the layer reads and sets, for CORS lists and clients.
pub mod header {
    use http::HeaderName;

    /// Request: the key, a Structured Field String (RFC 9651 §3.3.3) or bare.
    pub const IDEMPOTENCY_KEY: HeaderName = crate::policy::key::IDEMPOTENCY_KEY;

    /// Response: `true` on a replay, and on nothing else.
    pub const IDEMPOTENT_REPLAYED: HeaderName = crate::exchange::IDEMPOTENT_REPLAYED;

    /// Response: `false` where the handler ran and the store has not acknowledged how the
    /// run ended, or where it ran without protection. A retry may run it again.
    pub const IDEMPOTENCY_STORED: HeaderName = crate::exchange::IDEMPOTENCY_STORED;

    /// Response: `omitted` on a replay whose body was not recorded.
    pub const IDEMPOTENCY_BODY: HeaderName = crate::exchange::IDEMPOTENCY_BODY;
}

#[cfg(all(
    doctest,
    feature = "memory",
    feature = "postgres",
    feature = "redis",
    feature = "sqlite"
))]
#[doc = include_str!("../README.md")]
struct Readme;
