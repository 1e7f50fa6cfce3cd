use std::fmt;

use http::header::HeaderName;
use http::request::Parts;

use super::key::header_name;
use crate::model::scope::Scope;

/// Finds out whose key a request carries.
///
/// Required by [`IdempotencyLayer::new`](crate::IdempotencyLayer::new), since without it
/// one caller's answer could be shown to another. `None` refuses the request with 403
/// `unknown-caller`.
///
/// Read what your authentication has established, which must run outside this layer:
/// [`by_extension`] for what it left in the request's extensions, [`by_trusted_header`]
/// for what a proxy of yours sets, [`scope_fn`] for the rest.
#[diagnostic::on_unimplemented(
    note = "wrap a closure in `scope_fn`, or see `by_extension` and `by_trusted_header`"
)]
pub trait ScopeExtractor: Send + Sync + 'static {
    /// The owner of the key, or `None` where there is none.
    fn scope(&self, request: &Parts) -> Option<Scope>;
}

/// All callers share one set of keys. **Whoever sends a key that another caller has used
/// gets that caller's answer, if the request is the same**, and can block keys ahead of
/// others.
///
/// Right where there is one caller, or where a key cannot be guessed and the answer is
/// nobody's secret. Otherwise name the caller: [`by_extension`], [`by_trusted_header`].
#[derive(Debug, Clone, Copy, Default)]
pub struct SharedByAllCallers;

impl ScopeExtractor for SharedByAllCallers {
    fn scope(&self, _: &Parts) -> Option<Scope> {
        Some(Scope::shared())
    }
}

/// For operators, who name a record by [`RecordId::new`](crate::RecordId::new):
///
/// ```
/// use tower_idempotency::{IdempotencyKey, RecordId, Scope, SharedByAllCallers};
///
/// let key = IdempotencyKey::new("order-7")?;
/// let id = RecordId::new("", &Scope::from(SharedByAllCallers), &key);
/// # let _ = id;
/// # Ok::<(), tower_idempotency::InvalidKey>(())
/// ```
impl From<SharedByAllCallers> for Scope {
    fn from(_: SharedByAllCallers) -> Self {
        Self::shared()
    }
}

/// The scope from a value that an outer layer left in the request's extensions: the
/// authenticated user, the tenant. Absent, it is no scope; where the value itself may name
/// none, use [`scope_fn`].
///
/// ```
/// use tower_idempotency::store::MemoryStore;
/// use tower_idempotency::{IdempotencyLayer, Scope, by_extension};
///
/// #[derive(Clone)]
/// struct CurrentUser { account: String }
///
/// let layer = IdempotencyLayer::new(
///     MemoryStore::new(),
///     by_extension(|user: &CurrentUser| Scope::new(&user.account)),
/// );
/// # let _ = layer;
/// ```
pub fn by_extension<T>(f: impl Fn(&T) -> Scope + Send + Sync + 'static) -> impl ScopeExtractor
where
    T: Send + Sync + 'static,
{
    scope_fn(move |request| request.extensions.get().map(&f))
}

/// The scope from a header that **a proxy of yours sets and strips from what clients
/// send**. A client that may choose it takes any caller's place. Absent, empty or
/// repeated, it is no scope.
///
/// ```
/// use tower_idempotency::store::MemoryStore;
/// use tower_idempotency::{IdempotencyLayer, by_trusted_header};
///
/// let layer = IdempotencyLayer::new(MemoryStore::new(), by_trusted_header("x-account"));
/// # let _ = layer;
/// ```
///
/// # Panics
///
/// When `name` is no header name.
#[track_caller]
pub fn by_trusted_header<N>(name: N) -> impl ScopeExtractor
where
    N: TryInto<HeaderName>,
    N::Error: fmt::Display,
{
    TrustedHeader {
        name: header_name(name),
    }
}

struct TrustedHeader {
    name: HeaderName,
}

impl ScopeExtractor for TrustedHeader {
    fn scope(&self, request: &Parts) -> Option<Scope> {
        let mut lines = request.headers.get_all(&self.name).iter();
        let line = lines.next().filter(|line| !line.is_empty())?;
        lines.next().is_none().then(|| Scope::new(line))
    }
}

/// A [`ScopeExtractor`] from a closure.
///
/// ```
/// use tower_idempotency::{Scope, scope_fn};
///
/// let tenant_of_host = scope_fn(|request| request.uri.host().map(Scope::new));
/// # let _ = tenant_of_host;
/// ```
pub fn scope_fn<F>(f: F) -> impl ScopeExtractor
where
    F: Fn(&Parts) -> Option<Scope> + Send + Sync + 'static,
{
    ScopeFn(f)
}

struct ScopeFn<F>(F);

impl<F> ScopeExtractor for ScopeFn<F>
where
    F: Fn(&Parts) -> Option<Scope> + Send + Sync + 'static,
{
    fn scope(&self, request: &Parts) -> Option<Scope> {
        (self.0)(request)
    }
}
