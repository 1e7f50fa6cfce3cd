use std::fmt;

use http::header::HeaderName;
use http::request::Parts;

use crate::model::key::{IdempotencyKey, InvalidKey};

/// `Idempotency-Key`, the header of the draft
/// [draft-ietf-httpapi-idempotency-key-header](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/).
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Finds the key of a request.
///
/// Called once for every request with a protected method, before its body is read.
/// [`key_fn`] makes one of a closure:
///
/// ```
/// use tower_idempotency::{IdempotencyKey, IdempotencyLayer, SharedByAllCallers, key_fn};
/// use tower_idempotency::store::MemoryStore;
///
/// // A webhook names its event, and that is the key.
/// let by_event = key_fn(|request| {
///     request.headers.get("webhook-id").map(IdempotencyKey::try_from).transpose()
/// });
/// let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers)
///     .key(by_event)
///     .require_key(true);
/// # let _ = layer;
/// ```
#[diagnostic::on_unimplemented(
    note = "wrap a closure in `key_fn`; for a header of another name use `HeaderKey::named`"
)]
pub trait KeyExtractor: Send + Sync + 'static {
    /// The key, or `None` where the request has none.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] when there is a key that cannot be used. The request is refused:
    /// to ignore a bad key would run it unprotected while the client believes otherwise.
    fn key(&self, request: &Parts) -> Result<Option<IdempotencyKey>, InvalidKey>;

    /// Whether [`key_in_body`](Self::key_in_body) is to be asked when
    /// [`key`](Self::key) found none. The body is buffered then, within the layer's limits,
    /// even if it turns out to hold no key. Provided: no.
    fn reads_body(&self, request: &Parts) -> bool {
        let _ = request;
        false
    }

    /// The key that the body holds. Provided: none.
    ///
    /// # Errors
    ///
    /// As [`key`](Self::key).
    fn key_in_body(
        &self,
        request: &Parts,
        body: &[u8],
    ) -> Result<Option<IdempotencyKey>, InvalidKey> {
        let _ = (request, body);
        Ok(None)
    }
}

/// The key from a header of one line: `Idempotency-Key` by default.
///
/// More than one line is refused, even if they are equal: which one a proxy in between
/// looked at is not known.
///
/// ```
/// use tower_idempotency::store::MemoryStore;
/// use tower_idempotency::{HeaderKey, IdempotencyLayer, SharedByAllCallers};
///
/// let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers)
///     .key(HeaderKey::named("paypal-request-id"));
/// # let _ = layer;
/// ```
#[derive(Debug, Clone)]
pub struct HeaderKey {
    name: HeaderName,
}

impl HeaderKey {
    /// The key from another header, which then stands alone: `Idempotency-Key` is not
    /// looked at.
    ///
    /// # Panics
    ///
    /// When `name` is no header name.
    #[track_caller]
    pub fn named<N>(name: N) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: fmt::Display,
    {
        Self {
            name: header_name(name),
        }
    }
}

impl Default for HeaderKey {
    fn default() -> Self {
        Self {
            name: IDEMPOTENCY_KEY,
        }
    }
}

impl KeyExtractor for HeaderKey {
    fn key(&self, request: &Parts) -> Result<Option<IdempotencyKey>, InvalidKey> {
        let mut lines = request.headers.get_all(&self.name).iter();
        let Some(line) = lines.next() else {
            return Ok(None);
        };
        if lines.next().is_some() {
            return Err(InvalidKey::new(
                "The key is sent in more than one header field.",
            ));
        }
        IdempotencyKey::try_from(line).map(Some)
    }
}

#[track_caller]
pub(super) fn header_name<N>(name: N) -> HeaderName
where
    N: TryInto<HeaderName>,
    N::Error: fmt::Display,
{
    match name.try_into() {
        Ok(name) => name,
        Err(error) => panic!("a header name is needed, such as \"x-account\": {error}"),
    }
}

/// A [`KeyExtractor`] from a closure.
pub fn key_fn<F>(f: F) -> impl KeyExtractor
where
    F: Fn(&Parts) -> Result<Option<IdempotencyKey>, InvalidKey> + Send + Sync + 'static,
{
    KeyFn(f)
}

struct KeyFn<F>(F);

impl<F> KeyExtractor for KeyFn<F>
where
    F: Fn(&Parts) -> Result<Option<IdempotencyKey>, InvalidKey> + Send + Sync + 'static,
{
    fn key(&self, request: &Parts) -> Result<Option<IdempotencyKey>, InvalidKey> {
        (self.0)(request)
    }
}
