use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tower::Layer;

use crate::exchange::InFlight;
use crate::policy::behaviour::{ConflictPolicy, FailurePolicy, OutagePolicy};
use crate::policy::config::{Config, Methods};
use crate::policy::fingerprint::Fingerprinter;
use crate::policy::key::KeyExtractor;
use crate::policy::rejection::RejectionResponse;
use crate::policy::scope::ScopeExtractor;
use crate::policy::verdict::RecordPolicy;
use crate::service::Idempotency;
use crate::store::{AnyStore, KeyStore};

/// Makes a service safe to retry.
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_idempotency::store::MemoryStore;
/// use tower_idempotency::{IdempotencyLayer, by_trusted_header};
///
/// let layer = IdempotencyLayer::new(MemoryStore::new(), by_trusted_header("x-account"));
/// let app: Router = Router::new()
///     .route("/payments", post(async || "paid"))
///     .route_layer(layer);
/// # let _ = app;
/// ```
///
/// Options consume the layer and give it back. A clone is cheap and shares the store, and
/// the count of [exchanges in flight](Self::in_flight).
///
/// In axum, prefer `route_layer`: under `layer`, the 404 of an unknown path is recorded
/// like any other final answer.
pub struct IdempotencyLayer<K = AnyStore> {
    store: Arc<K>,
    config: Arc<Config>,
    in_flight: InFlight,
}

impl<K: KeyStore> IdempotencyLayer<K> {
    /// A layer that keeps its records in `store`, apart for every scope.
    ///
    /// The scope is asked for because nothing can be assumed about it: without one, a
    /// caller who sends another's key gets the other's answer. See [`ScopeExtractor`].
    pub fn new(store: K, scope: impl ScopeExtractor) -> Self {
        Self {
            store: Arc::new(store),
            config: Arc::new(Config::new(scope)),
            in_flight: InFlight::default(),
        }
    }

    /// The same layer without the store in its type.
    ///
    /// ```
    /// use tower_idempotency::store::MemoryStore;
    /// use tower_idempotency::{IdempotencyLayer, SharedByAllCallers};
    ///
    /// struct App { idempotency: IdempotencyLayer }
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// let app = App { idempotency: layer.erased() };
    /// # let _ = app.idempotency;
    /// ```
    pub fn erased(self) -> IdempotencyLayer {
        IdempotencyLayer {
            store: Arc::new(AnyStore::new(self.store)),
            config: self.config,
            in_flight: self.in_flight,
        }
    }
}

impl<K> IdempotencyLayer<K> {
    fn set(mut self, set: impl FnOnce(&mut Config)) -> Self {
        set(Arc::make_mut(&mut self.config));
        self
    }

    /// Default: [`HeaderKey`](crate::HeaderKey), the header `Idempotency-Key`. Where the
    /// key of a request is found.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use tower_idempotency::HeaderKey;
    ///
    /// let layer = layer.key(HeaderKey::named("x-request-key"));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn key(self, extractor: impl KeyExtractor) -> Self {
        self.set(|config| config.key = Arc::new(extractor))
    }

    /// Default: `false`. Whether POST and PATCH without a key are refused, with 400
    /// `missing-key`. PUT and DELETE are idempotent by definition (RFC 9110 §9.2.2).
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// let layer = layer.require_key(true);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn require_key(self, required: bool) -> Self {
        self.set(|config| config.require_key = required)
    }

    /// Default: empty. Keeps two layers on one store apart: a part of every record's id.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// let store = MemoryStore::new();
    /// let payments = IdempotencyLayer::new(store.clone(), SharedByAllCallers).namespace("payments");
    /// let mails = IdempotencyLayer::new(store, SharedByAllCallers).namespace("mails");
    /// # let _ = (payments, mails);
    /// ```
    #[must_use]
    pub fn namespace(self, name: impl AsRef<[u8]>) -> Self {
        self.set(|config| config.namespace = Arc::from(name.as_ref()))
    }

    /// Default: every method that is not safe (RFC 9110 §9.2.1). The methods that are
    /// protected when a key is sent; others pass untouched, key or not.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use http::Method;
    ///
    /// let layer = layer.methods([Method::POST]);
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// When there are none: the layer would protect nothing.
    #[must_use]
    #[track_caller]
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        let methods: Arc<[Method]> = methods.into_iter().collect();
        assert!(
            !methods.is_empty(),
            "name at least one method, such as Method::POST, or leave the layer out"
        );
        self.set(|config| config.methods = Methods::These(methods))
    }

    /// Default: [`RequestDigest`](crate::RequestDigest), method, target, media type and
    /// body. What makes two requests the same.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use axum::extract::OriginalUri;
    /// use tower_idempotency::RequestDigest;
    ///
    /// // Inside of `Router::nest`, the prefix is hidden from `Request::uri`.
    /// let layer = layer.fingerprint(RequestDigest::default().uri_from(|request| {
    ///     request.extensions.get::<OriginalUri>().map(|uri| uri.0.clone())
    /// }));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn fingerprint(self, fingerprinter: impl Fingerprinter) -> Self {
        self.set(|config| config.fingerprint = Arc::new(fingerprinter))
    }

    /// Default: [`FinalAnswers`](crate::FinalAnswers). Which answers are recorded.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use tower_idempotency::{FinalAnswers, RecordPolicy, Verdict, verdict_fn};
    ///
    /// let layer = layer.record_when(verdict_fn(|answer| match answer.status.as_u16() {
    ///     404 => Verdict::Release,
    ///     _ => FinalAnswers.verdict(answer),
    /// }));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn record_when(self, policy: impl RecordPolicy) -> Self {
        self.set(|config| config.record_when = Arc::new(policy))
    }

    /// Default: [`FailurePolicy::RunAgain`]. What a failed run means for its key.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use tower_idempotency::FailurePolicy;
    ///
    /// // Rather ask a person than pay out twice.
    /// let layer = layer.on_failure(FailurePolicy::Refuse);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn on_failure(self, policy: FailurePolicy) -> Self {
        self.set(|config| config.on_failure = policy)
    }

    /// Default: [`ConflictPolicy::Reject`]. What happens while the same request runs.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use std::time::Duration;
    /// use tower_idempotency::ConflictPolicy;
    ///
    /// let layer = layer.on_conflict(ConflictPolicy::Wait { at_most: Duration::from_secs(10) });
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// When the wait is zero: that is [`ConflictPolicy::Reject`].
    #[must_use]
    #[track_caller]
    pub fn on_conflict(self, policy: ConflictPolicy) -> Self {
        if let ConflictPolicy::Wait { at_most } = policy {
            not_zero("the wait on a conflict", at_most);
        }
        self.set(|config| config.on_conflict = policy)
    }

    /// Default: [`OutagePolicy::Reject`]. What happens while the store cannot be reached.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use tower_idempotency::OutagePolicy;
    ///
    /// // A comment posted twice is better than none.
    /// let layer = layer.on_outage(OutagePolicy::RunUnprotected);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn on_outage(self, policy: OutagePolicy) -> Self {
        self.set(|config| config.on_outage = policy)
    }

    /// Default: 30 s. How long a claim stands unless it is renewed, which happens at a
    /// third of it for as long as the handler runs. After a crash, a retry has to wait
    /// for what is left of it.
    ///
    /// A handler that blocks its thread for longer stops the renewal.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use std::time::Duration;
    ///
    /// let layer = layer.lease(Duration::from_secs(10));
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// When it is shorter than 10 ms, which could not be renewed in time.
    #[must_use]
    #[track_caller]
    pub fn lease(self, lease: Duration) -> Self {
        assert!(
            lease >= Duration::from_millis(10),
            "the lease must be 10 ms or longer: timers count milliseconds, and it is renewed at a third"
        );
        self.set(|config| config.lease = lease)
    }

    /// Default: 15 min. How long one run may hold its key, however often its lease is
    /// renewed. A handler is not stopped then; its lease ends, and the
    /// [`FailurePolicy`] decides what a retry may do. An answer that is still being
    /// streamed is recorded without its body.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use std::time::Duration;
    ///
    /// let layer = layer.max_hold(Duration::from_secs(60));
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// When it is zero.
    #[must_use]
    #[track_caller]
    pub fn max_hold(self, max_hold: Duration) -> Self {
        not_zero("max_hold", max_hold);
        self.set(|config| config.max_hold = max_hold)
    }

    /// Default: 24 h. How long an answer is kept, counted from its completion. A
    /// [`Retention`](crate::Retention) in a response's extensions comes before it.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use std::time::Duration;
    ///
    /// let layer = layer.retention(Duration::from_secs(7 * 24 * 60 * 60));
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// When it is zero.
    #[must_use]
    #[track_caller]
    pub fn retention(self, retention: Duration) -> Self {
        not_zero("the retention", retention);
        self.set(|config| config.retention = retention)
    }

    /// Default: 2 s. The longest that one call of the store may take; a renewal may take
    /// the smaller of this and a third of the lease. A claim without an answer is sent
    /// twice before the request is refused. It is also how long an answer is held back for
    /// its record to be written.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use std::time::Duration;
    ///
    /// let layer = layer.store_timeout(Duration::from_millis(500));
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// When it is zero.
    #[must_use]
    #[track_caller]
    pub fn store_timeout(self, timeout: Duration) -> Self {
        not_zero("the store's time-out", timeout);
        self.set(|config| config.store_timeout = timeout)
    }

    /// Default: unbounded. How many exchanges may be under way at once, over all clones
    /// of this layer; one more is refused with 503 `overloaded`.
    ///
    /// An exchange outlives its connection, so a limit outside this layer does not
    /// bound them: a client that resets its streams frees those permits and not this one.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// let layer = layer.max_in_flight(10_000);
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// When it is zero.
    #[must_use]
    #[track_caller]
    pub fn max_in_flight(self, exchanges: usize) -> Self {
        assert!(
            exchanges > 0,
            "at least one exchange must be allowed in flight"
        );
        self.set(|config| config.max_in_flight = exchanges)
    }

    /// Default: 2 MiB. The largest body, in bytes, of a request with a key: it is read
    /// into memory before the handler runs. A larger one is refused with 413
    /// `request-too-large`. So is one in whose body a
    /// [key](crate::KeyExtractor::reads_body) is looked for, whether or not it has one.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// let layer = layer.request_body_limit(64 * 1024);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn request_body_limit(self, bytes: usize) -> Self {
        self.set(|config| config.request_body_limit = bytes)
    }

    /// Default: 1 MiB. The largest body, in bytes, that is recorded. The first caller gets
    /// a larger one whole; a retry gets status and header fields and
    /// `Idempotency-Body: omitted`.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// let layer = layer.response_body_limit(16 * 1024);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn response_body_limit(self, bytes: usize) -> Self {
        self.set(|config| config.response_body_limit = bytes)
    }

    /// Default: `false`. Whether `Set-Cookie` is recorded and replayed. A session that a
    /// first answer opened is opened again by every replay then.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// let layer = layer.replay_cookies(true);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn replay_cookies(self, yes: bool) -> Self {
        self.set(|config| config.replay_cookies = yes)
    }

    /// Default: [`ProblemJson`](crate::ProblemJson). What refusals look like.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// use tower_idempotency::ProblemJson;
    ///
    /// let layer = layer
    ///     .rejection_response(ProblemJson::documentation("https://api.example/docs/idempotency"));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn rejection_response(self, response: impl RejectionResponse) -> Self {
        self.set(|config| config.rejection = Arc::new(response))
    }

    /// The exchanges under way, for a shutdown that waits for them: first let the server
    /// finish its connections, then wait for what outlived them.
    ///
    /// ```
    /// # use tower_idempotency::{store::MemoryStore, IdempotencyLayer, SharedByAllCallers};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    /// let in_flight = layer.in_flight();
    /// // … serve, then stop accepting …
    /// in_flight.idle().await;
    /// # }
    /// ```
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.clone()
    }
}

#[track_caller]
fn not_zero(what: &str, duration: Duration) {
    assert!(!duration.is_zero(), "{what} must be longer than zero");
}

impl<K> Clone for IdempotencyLayer<K> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            config: Arc::clone(&self.config),
            in_flight: self.in_flight.clone(),
        }
    }
}

impl<K> fmt::Debug for IdempotencyLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("store", &std::any::type_name::<K>())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl<S, K> Layer<S> for IdempotencyLayer<K> {
    type Service = Idempotency<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotency {
            inner,
            store: Arc::clone(&self.store),
            config: Arc::clone(&self.config),
            in_flight: self.in_flight.clone(),
        }
    }
}
