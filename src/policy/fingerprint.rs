use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::Uri;
use http::header::CONTENT_TYPE;
use http::request::Parts;

use crate::model::digest::Framed;
use crate::model::fingerprint::Fingerprint;

/// Counts up when the same request would get another fingerprint.
const FORMAT: u8 = 1;

/// Decides what makes two requests under one key the same request. The other gets 422
/// `key-reused`.
///
/// Must tell every two requests apart that may not share an answer, and must say the
/// same for a retry. [`fingerprint_fn`] makes one of a closure:
///
/// ```
/// use tower_idempotency::{Fingerprinter, RequestDigest, fingerprint_fn};
///
/// // A front end that adds the time of sending as the last line of the body.
/// let but_the_last_line = fingerprint_fn(|request, body| {
///     let end = body.iter().rposition(|&byte| byte == b'\n').unwrap_or(body.len());
///     RequestDigest::default().fingerprint(request, &body[..end])
/// });
/// # let _ = but_the_last_line;
/// ```
#[diagnostic::on_unimplemented(note = "wrap a closure in `fingerprint_fn`, or use `RequestDigest`")]
pub trait Fingerprinter: Send + Sync + 'static {
    /// The fingerprint of a request and its whole body.
    fn fingerprint(&self, request: &Parts, body: &[u8]) -> Fingerprint;
}

/// SHA-256 over method, path and query, media type of `Content-Type` without its
/// parameters, and the body as it came, each behind its length. The default.
///
/// The media type compares without regard to case
/// ([RFC 9110 §8.3.1](https://www.rfc-editor.org/rfc/rfc9110#section-8.3.1)). Scheme and host
/// are left out, and so are all other header fields. A body that means
/// the same in other bytes (JSON keys in another order, another multipart boundary) is
/// another request.
///
/// # Nested routers
///
/// `axum::Router::nest` hides the prefix from what is attached inside it, so `/a/pay`
/// and `/b/pay` look alike in there, and a key used on one would replay on the other.
/// Attach the layer outside of the nesting, give each inside layer a
/// [`namespace`](crate::IdempotencyLayer::namespace), or take the URI that axum keeps:
///
/// ```
/// use axum::extract::OriginalUri;
/// use tower_idempotency::RequestDigest;
///
/// let digest = RequestDigest::default()
///     .uri_from(|request| request.extensions.get::<OriginalUri>().map(|uri| uri.0.clone()));
/// # let _ = digest;
/// ```
#[derive(Clone, Default)]
pub struct RequestDigest {
    uri: Option<Arc<UriSource>>,
}

type UriSource = dyn Fn(&Parts) -> Option<Uri> + Send + Sync;

impl RequestDigest {
    /// Takes the URI from elsewhere; where `f` gives `None`, from the request as usual.
    #[must_use]
    pub fn uri_from(mut self, f: impl Fn(&Parts) -> Option<Uri> + Send + Sync + 'static) -> Self {
        self.uri = Some(Arc::new(f));
        self
    }
}

impl fmt::Debug for RequestDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestDigest").finish_non_exhaustive()
    }
}

impl Fingerprinter for RequestDigest {
    fn fingerprint(&self, request: &Parts, body: &[u8]) -> Fingerprint {
        let elsewhere = self.uri.as_ref().and_then(|source| source(request));
        let uri = elsewhere.as_ref().unwrap_or(&request.uri);
        let target = uri.path_and_query().map_or("", |target| target.as_str());
        let digest = Framed::new()
            .part(&[FORMAT])
            .part(request.method.as_str().as_bytes())
            .part(target.as_bytes())
            .part(&media_type(request))
            .part(body);
        Fingerprint::from_bytes(digest.finish())
    }
}

fn media_type(request: &Parts) -> Cow<'_, [u8]> {
    let value = request
        .headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |value| value.as_bytes());
    let media_type = value
        .split(|&byte| byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    if media_type.iter().any(u8::is_ascii_uppercase) {
        Cow::Owned(media_type.to_ascii_lowercase())
    } else {
        Cow::Borrowed(media_type)
    }
}

/// A [`Fingerprinter`] from a closure.
pub fn fingerprint_fn<F>(f: F) -> impl Fingerprinter
where
    F: Fn(&Parts, &[u8]) -> Fingerprint + Send + Sync + 'static,
{
    FingerprintFn(f)
}

struct FingerprintFn<F>(F);

impl<F> Fingerprinter for FingerprintFn<F>
where
    F: Fn(&Parts, &[u8]) -> Fingerprint + Send + Sync + 'static,
{
    fn fingerprint(&self, request: &Parts, body: &[u8]) -> Fingerprint {
        (self.0)(request, body)
    }
}
