use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version, response};

use super::error::{StoreError, StoreErrorKind};
use super::wire::{self, Head, Reader};

/// A final answer as a store keeps it: status, header fields, body, trailers.
///
/// It is one allocation of exactly its size, shared by every replay, and it is never a
/// slice of a network buffer, which would be kept alive as a whole. [`as_bytes`] is what
/// a persistent store writes and [`from_bytes`] what it reads; the format is versioned,
/// and a version that is not known is an error, never a reason to run a request again.
///
/// [`as_bytes`]: Self::as_bytes
/// [`from_bytes`]: Self::from_bytes
///
/// ```
/// use http::Response;
/// use tower_idempotency::store::Record;
///
/// let answer = Response::builder().status(201).header("location", "/payments/7").body("paid")?;
/// let record = Record::new(&answer);
/// let read_back = Record::from_bytes(record.as_bytes().clone())?;
/// assert_eq!(read_back, record);
/// assert_eq!(read_back.status(), 201);
/// assert_eq!(read_back.body(), "paid");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Bytes);

/// The parts of a record that an answer is made of.
pub(crate) struct Decoded {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) omitted: bool,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) body: Bytes,
}

impl Record {
    /// The record of an answer whose body is at hand. Operators build with it the answer
    /// that [`KeyStore::resolve`](crate::store::KeyStore::resolve) gives to a sealed key.
    ///
    /// What the layer never records is left out here too: fields of the connection,
    /// those that are computed anew (`Content-Length`, `Transfer-Encoding`, `Date`,
    /// `Age`), and `Set-Cookie`.
    pub fn new<B: AsRef<[u8]>>(answer: &Response<B>) -> Self {
        let (parts, ()) = {
            let mut head = Response::new(());
            *head.status_mut() = answer.status();
            *head.version_mut() = answer.version();
            head.headers_mut().clone_from(answer.headers());
            head.into_parts()
        };
        let body = answer.body().as_ref();
        RecordHead::new(&parts, false, body.len()).with_body([body].into_iter(), None)
    }

    /// A record from what a store kept of [`as_bytes`](Self::as_bytes). Nothing is
    /// copied: the body is a slice of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](StoreErrorKind::Corrupt) when the bytes are cut short, of another
    /// format version, or no answer that could be sent.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, StoreError> {
        let record = Self(bytes);
        match record.try_decode() {
            Some(_) => Ok(record),
            None => Err(StoreErrorKind::Corrupt.into()),
        }
    }

    /// The stored form.
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.head()
            .map_or(StatusCode::INTERNAL_SERVER_ERROR, |head| head.status)
    }

    /// The HTTP version that the handler gave its answer.
    pub fn version(&self) -> Version {
        self.head().map_or(Version::default(), |head| head.version)
    }

    /// The header fields, repeated ones in their order, values byte for byte.
    pub fn headers(&self) -> HeaderMap {
        self.decode().headers
    }

    /// The trailer fields, where the answer had any.
    pub fn trailers(&self) -> Option<HeaderMap> {
        self.decode().trailers
    }

    /// The body; empty where it [was omitted](Self::is_omitted).
    pub fn body(&self) -> Bytes {
        self.decode().body
    }

    /// Whether the answer had a body that was too large to be recorded, or that was
    /// still being streamed when the record had to be written.
    pub fn is_omitted(&self) -> bool {
        self.head().is_some_and(|head| head.omitted)
    }

    /// The length in bytes of the body that the first caller got; `None` where it was
    /// not known when the record was written.
    pub fn body_len(&self) -> Option<u64> {
        self.head().and_then(|head| head.body_len)
    }

    /// When the answer was recorded, by the clock of the process that ran the request.
    /// For people to read: no decision hangs on it.
    pub fn recorded_at(&self) -> SystemTime {
        let ms = self.head().map_or(0, |head| head.recorded_at_ms);
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    /// The same answer without its body, for a store that cannot take it whole.
    pub(crate) fn omitted(&self) -> Self {
        let head_end = self.head_end().unwrap_or(self.0.len());
        RecordHead(self.0[..head_end].to_vec()).omitted(self.body_len())
    }

    pub(crate) fn decode(&self) -> Decoded {
        // Every record was checked by `from_bytes`, or written by this version.
        self.try_decode().unwrap_or_else(|| Decoded {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            version: Version::default(),
            omitted: true,
            headers: HeaderMap::new(),
            trailers: None,
            body: Bytes::new(),
        })
    }

    fn head(&self) -> Option<Head> {
        Reader::new(&self.0).head()
    }

    fn head_end(&self) -> Option<usize> {
        let mut reader = Reader::new(&self.0);
        reader.head()?;
        reader.skip_fields()?;
        Some(reader.position())
    }

    fn try_decode(&self) -> Option<Decoded> {
        let mut reader = Reader::new(&self.0);
        let head = reader.head()?;
        let headers = reader.fields()?;
        let trailers = reader.fields()?;
        let trailers = match (head.has_trailers, trailers.is_empty()) {
            (true, _) => Some(trailers),
            (false, true) => None,
            (false, false) => return None,
        };
        reader.skip_extensions()?;
        let body = reader.rest();
        let Head {
            status,
            version,
            omitted,
            ..
        } = head;
        (!omitted || body.is_empty()).then_some(Decoded {
            status,
            version,
            omitted,
            headers,
            trailers,
            body,
        })
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("status", &self.status())
            .field("bytes", &self.0.len())
            .field("omitted", &self.is_omitted())
            .finish_non_exhaustive()
    }
}

/// The head of an answer, encoded while it is still at hand; the body follows later.
pub(crate) struct RecordHead(Vec<u8>);

impl RecordHead {
    /// `body_len` is the room to leave for a body, where its size is known already.
    pub(crate) fn new(parts: &response::Parts, keep_cookies: bool, body_len: usize) -> Self {
        let fields = || recorded(&parts.headers, keep_cookies);
        let tail = 2 + 2 + body_len;
        let mut bytes = Vec::with_capacity(22 + wire::fields_len(fields()) + tail);
        let head = Head {
            status: parts.status,
            version: parts.version,
            recorded_at_ms: now_ms(),
            body_len: None,
            omitted: false,
            has_trailers: false,
        };
        wire::put_head(&mut bytes, &head);
        wire::put_fields(&mut bytes, fields());
        Self(bytes)
    }

    pub(crate) fn with_body<'a>(
        self,
        frames: impl Iterator<Item = &'a [u8]> + Clone,
        trailers: Option<&HeaderMap>,
    ) -> Record {
        let Self(mut bytes) = self;
        let len: usize = frames.clone().map(<[u8]>::len).sum();
        let no_fields = HeaderMap::new();
        let fields = || recorded(trailers.unwrap_or(&no_fields), true);
        bytes.reserve_exact(wire::fields_len(fields()) + 2 + len);
        wire::set_flags(&mut bytes, false, trailers.is_some());
        wire::set_body_len(&mut bytes, Some(len as u64));
        wire::put_fields(&mut bytes, fields());
        wire::put_no_extensions(&mut bytes);
        for frame in frames {
            bytes.extend_from_slice(frame);
        }
        Record(bytes.into_boxed_slice().into())
    }

    pub(crate) fn omitted(self, body_len: Option<u64>) -> Record {
        let Self(mut bytes) = self;
        wire::set_flags(&mut bytes, true, false);
        wire::set_body_len(&mut bytes, body_len);
        wire::put_fields(&mut bytes, std::iter::empty());
        wire::put_no_extensions(&mut bytes);
        Record(bytes.into_boxed_slice().into())
    }
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

fn recorded(
    fields: &HeaderMap,
    keep_cookies: bool,
) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    fields.iter().filter(move |(name, _)| {
        !is_of_the_connection(name)
            && !is_computed_anew(name)
            && (keep_cookies || *name != header::SET_COOKIE)
            && !is_named_by_connection(fields, name)
    })
}

/// RFC 9110 §7.6.1, with the authentication towards a proxy, which ends at that proxy.
/// `Trailer` is no such field: without it a server would not send the trailers.
fn is_of_the_connection(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::TE
            | header::TRANSFER_ENCODING
            | header::UPGRADE
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
    ) || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

fn is_computed_anew(name: &HeaderName) -> bool {
    matches!(*name, header::CONTENT_LENGTH | header::DATE | header::AGE)
}

fn is_named_by_connection(fields: &HeaderMap, name: &HeaderName) -> bool {
    fields.get_all(header::CONNECTION).iter().any(|value| {
        value.as_bytes().split(|&byte| byte == b',').any(|option| {
            option
                .trim_ascii()
                .eq_ignore_ascii_case(name.as_str().as_bytes())
        })
    })
}
