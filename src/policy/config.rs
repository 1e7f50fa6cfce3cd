use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::behaviour::{ConflictPolicy, FailurePolicy, OutagePolicy};
use super::fingerprint::{Fingerprinter, RequestDigest};
use super::key::{HeaderKey, KeyExtractor};
use super::rejection::{ProblemJson, RejectionResponse};
use super::scope::ScopeExtractor;
use super::verdict::{FinalAnswers, RecordPolicy};

/// Every choice of a user, in one place that all exchanges share.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) key: Arc<dyn KeyExtractor>,
    pub(crate) scope: Arc<dyn ScopeExtractor>,
    pub(crate) fingerprint: Arc<dyn Fingerprinter>,
    pub(crate) record_when: Arc<dyn RecordPolicy>,
    pub(crate) rejection: Arc<dyn RejectionResponse>,
    pub(crate) require_key: bool,
    pub(crate) namespace: Arc<[u8]>,
    pub(crate) methods: Methods,
    pub(crate) on_failure: FailurePolicy,
    pub(crate) on_conflict: ConflictPolicy,
    pub(crate) on_outage: OutagePolicy,
    pub(crate) lease: Duration,
    pub(crate) max_hold: Duration,
    pub(crate) retention: Duration,
    pub(crate) store_timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) request_body_limit: usize,
    pub(crate) response_body_limit: usize,
    pub(crate) replay_cookies: bool,
}

impl Config {
    pub(crate) fn new(scope: impl ScopeExtractor) -> Self {
        Self {
            key: Arc::new(HeaderKey::default()),
            scope: Arc::new(scope),
            fingerprint: Arc::new(RequestDigest::default()),
            record_when: Arc::new(FinalAnswers),
            rejection: Arc::new(ProblemJson::default()),
            require_key: false,
            namespace: Arc::default(),
            methods: Methods::Unsafe,
            on_failure: FailurePolicy::default(),
            on_conflict: ConflictPolicy::default(),
            on_outage: OutagePolicy::default(),
            lease: Duration::from_secs(30),
            max_hold: Duration::from_secs(15 * 60),
            retention: Duration::from_secs(24 * 60 * 60),
            store_timeout: Duration::from_secs(2),
            max_in_flight: usize::MAX,
            request_body_limit: 2 * 1024 * 1024,
            response_body_limit: 1024 * 1024,
            replay_cookies: false,
        }
    }

    /// PUT and DELETE are idempotent by themselves (RFC 9110 §9.2.2).
    pub(crate) fn requires_key(&self, method: &Method) -> bool {
        self.require_key && matches!(*method, Method::POST | Method::PATCH)
    }
}

/// The methods that are protected when a key is sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Methods {
    /// All that are not safe by RFC 9110 §9.2.1, and neither CONNECT, which opens a
    /// tunnel, nor QUERY, which is safe by its own definition.
    Unsafe,
    These(Arc<[Method]>),
}

impl Methods {
    pub(crate) fn protect(&self, method: &Method) -> bool {
        match self {
            Self::Unsafe => {
                !method.is_safe() && *method != Method::CONNECT && method.as_str() != "QUERY"
            }
            Self::These(methods) => methods.contains(method),
        }
    }
}
