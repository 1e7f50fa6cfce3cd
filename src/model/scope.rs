use std::fmt;

use super::digest::Framed;
use super::key::IdempotencyKey;

/// Who owns a key: an account, a tenant, a user. Two scopes never meet, whatever keys
/// their callers choose.
///
/// Name the principal whose permissions decide, by a stable identity. A token that is
/// refreshed between two attempts would run the request twice; a field that the client
/// may choose would show one caller's answer to another.
///
/// ```
/// use tower_idempotency::Scope;
///
/// let account = Scope::new("acct_1");
/// let user_of_account = Scope::new("acct_1").and("user_7");
/// assert_ne!(account, user_of_account);
/// // Parts do not run into each other.
/// assert_ne!(Scope::new("ab").and("c"), Scope::new("a").and("bc"));
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scope(Vec<u8>);

impl Scope {
    /// The scope of one part: text or bytes. A number goes in as `id.to_be_bytes()`.
    pub fn new(part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        Self(Vec::with_capacity(part.len() + 8)).and(part)
    }

    /// The same scope, narrowed by one more part.
    #[must_use]
    pub fn and(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.extend_from_slice(&(part.len() as u64).to_be_bytes());
        self.0.extend_from_slice(part);
        self
    }

    /// The one scope of all callers. It holds no part, so no [`Scope::new`] equals it.
    pub(crate) const fn shared() -> Self {
        Self(Vec::new())
    }
}

/// Shows the length alone: an account's name is nothing for a log.
impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("bytes", &self.0.len())
            .finish_non_exhaustive()
    }
}

/// What a store knows a record by: SHA-256 over namespace, scope and key.
///
/// Neither the key nor the scope can be read back from it. `Debug` and `Display` show
/// its first 8 hexadecimal digits, enough to follow a request through a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId([u8; 32]);

impl RecordId {
    /// The id under which a layer with this
    /// [`namespace`](crate::IdempotencyLayer::namespace) keeps the record of `key` for
    /// `scope`. Operators use it with [`KeyStore::lookup`](crate::store::KeyStore::lookup),
    /// [`forget`](crate::store::KeyStore::forget) and
    /// [`resolve`](crate::store::KeyStore::resolve).
    pub fn new(namespace: impl AsRef<[u8]>, scope: &Scope, key: &IdempotencyKey) -> Self {
        Self::with_scope(namespace.as_ref(), scope, key).0
    }

    pub(crate) fn with_scope(
        namespace: &[u8],
        scope: &Scope,
        key: &IdempotencyKey,
    ) -> (Self, ScopeId) {
        let owner = Framed::new().part(namespace).part(&scope.0);
        let scope_id = ScopeId(owner.clone().finish_short());
        let id = Self(owner.part(key.as_str().as_bytes()).finish());
        (id, scope_id)
    }

    /// An id from the bytes that [`as_bytes`](Self::as_bytes) gave.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Eight of the id's own bytes: a digest is uniform already and needs no hashing again.
    fn word(&self) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(word)
    }
}

/// Feeds 64 of the id's own bits, in one `write_u64`: the id is a digest.
impl std::hash::Hash for RecordId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.word());
    }
}

/// Its first eight digits, as in events; all 64 with `{:#}`.
impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if f.alternate() { self.0.len() } else { 4 };
        self.0[..shown]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({self}…)")
    }
}

/// A short digest of namespace and scope, by which a store counts one caller's records.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScopeId([u8; 16]);

impl ScopeId {
    /// An id from the bytes that [`as_bytes`](Self::as_bytes) gave.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the digest.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for ScopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "ScopeId({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}
