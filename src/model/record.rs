use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version, response};

use super::error::{StoreError, StoreErrorKind};
use super::wire::{self, Head, Reader};

/// A final answer as a store keeps it: status, header fields, body, trailers.
///
/// It is one allocation of exactly its size, shared by every clone and every replay, and
/// never a slice of a network buffer, which would be kept alive as a whole. [`as_bytes`]
/// is what a persistent store writes and [`from_bytes`] what it reads; the format is
/// versioned, and a version that is not known is an error, never a reason to run a request
/// again.
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
/// let read_back = Record::from_bytes(record.as_bytes().to_vec().into())?;
/// assert_eq!(read_back, record);
/// assert_eq!(read_back.status(), 201);
/// assert_eq!(read_back.body(), "paid");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Record(Packed);

#[derive(Clone)]
enum Packed {
    /// Made here.
    Own(Arc<[u8]>),
    /// Read from a store.
    Read(Bytes),
}

impl Packed {
    fn share(&self) -> Bytes {
        match self {
            Self::Own(bytes) => Bytes::from_owner(Arc::clone(bytes)),
            Self::Read(bytes) => bytes.clone(),
        }
    }
}

/// The parts of a record that an answer is made of.
pub(crate) struct Decoded {
    pub(crate) status: StatusCode,
    pub(crate) omitted: bool,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) body: Bytes,
}

impl Record {
    /// The record of an answer whose body is at hand. Operators build with it the answer
    /// that [`KeyStore::resolve`](crate::store::KeyStore::resolve) gives to a sealed key.
    ///
    /// What the layer never records is left out here too: fields of the connection
    /// ([RFC 9110 §7.6.1](https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1)), those that
    /// are computed anew (`Content-Length`, `Transfer-Encoding`, `Date`,
    /// `Age`), and `Set-Cookie`.
    ///
    /// # Panics
    ///
    /// When the status is a 1xx, which is no final answer
    /// ([RFC 9110 §15.2](https://www.rfc-editor.org/rfc/rfc9110#section-15.2)).
    #[track_caller]
    pub fn new<B: AsRef<[u8]>>(answer: &Response<B>) -> Self {
        assert!(
            !answer.status().is_informational(),
            "a record keeps a final answer, and {} is none",
            answer.status()
        );
        let head = Source {
            status: answer.status(),
            version: answer.version(),
            fields: Fields::Of {
                headers: answer.headers(),
                keep_cookies: false,
            },
        };
        head.with_body([answer.body().as_ref()].into_iter(), None)
    }

    /// A record from what a store kept of [`as_bytes`](Self::as_bytes). Nothing is
    /// copied: the body is a slice of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](StoreErrorKind::Corrupt) when the bytes are cut short, of another
    /// format version, or no answer that could be sent.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, StoreError> {
        let record = Self(Packed::Read(bytes));
        match record.try_decode() {
            Some(_) => Ok(record),
            None => Err(StoreErrorKind::Corrupt.into()),
        }
    }

    /// The stored form.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Packed::Own(bytes) => bytes,
            Packed::Read(bytes) => bytes,
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.head()
            .map_or(StatusCode::INTERNAL_SERVER_ERROR, |head| head.status)
    }

    /// The HTTP version that the handler gave its answer. A replay has the version of its
    /// own connection.
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
    /// For people to read: nothing depends on it.
    pub fn recorded_at(&self) -> SystemTime {
        let ms = self.head().map_or(0, |head| head.recorded_at_ms);
        UNIX_EPOCH
            .checked_add(Duration::from_millis(ms))
            .unwrap_or(UNIX_EPOCH)
    }

    /// The same answer without its body, for a store that cannot take it whole.
    pub(crate) fn omitted(&self) -> Self {
        let fields = self.encoded_fields().unwrap_or_default();
        let head = Source {
            status: self.status(),
            version: self.version(),
            fields: Fields::Encoded(fields),
        };
        head.omitted(self.body_len())
    }

    pub(crate) fn decode(&self) -> Decoded {
        // Every record was checked by `from_bytes`, or written by this version.
        self.try_decode().unwrap_or_else(|| Decoded {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            omitted: true,
            headers: HeaderMap::new(),
            trailers: None,
            body: Bytes::new(),
        })
    }

    fn head(&self) -> Option<Head> {
        Reader::new(self.as_bytes()).head()
    }

    fn encoded_fields(&self) -> Option<&[u8]> {
        let mut reader = Reader::new(self.as_bytes());
        reader.head()?;
        let begin = reader.position();
        reader.skip_fields()?;
        self.as_bytes().get(begin..reader.position())
    }

    fn try_decode(&self) -> Option<Decoded> {
        let bytes = self.0.share();
        let mut reader = Reader::new(&bytes);
        let Head {
            status,
            omitted,
            has_trailers,
            body_len,
            ..
        } = reader.head()?;
        let headers = reader.fields(&bytes)?;
        let trailers = reader.fields(&bytes)?;
        let trailers = match (has_trailers, trailers.is_empty()) {
            (true, _) => Some(trailers),
            (false, true) => None,
            (false, false) => return None,
        };
        reader.skip_extensions()?;
        let body = bytes.slice(reader.position()..);
        let is_sendable = !status.is_informational()
            && !headers
                .keys()
                .chain(trailers.iter().flat_map(HeaderMap::keys))
                .any(|name| is_of_the_connection(name) || is_computed_anew(name));
        let whole = if omitted {
            body.is_empty()
        } else {
            body_len == Some(body.len() as u64)
        };
        (whole && is_sendable).then_some(Decoded {
            status,
            omitted,
            headers,
            trailers,
            body,
        })
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Record {}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("status", &self.status())
            .field("bytes", &self.as_bytes().len())
            .field("omitted", &self.is_omitted())
            .finish_non_exhaustive()
    }
}

/// The head of an answer, encoded while it is still at hand; the body follows later.
pub(crate) struct RecordHead {
    status: StatusCode,
    version: Version,
    fields: Vec<u8>,
}

impl RecordHead {
    pub(crate) fn new(parts: &response::Parts, keep_cookies: bool) -> Self {
        let mut fields = Vec::new();
        Fields::Of {
            headers: &parts.headers,
            keep_cookies,
        }
        .put(&mut fields);
        Self {
            status: parts.status,
            version: parts.version,
            fields,
        }
    }

    pub(crate) fn source(&self) -> Source<'_> {
        let fields = Fields::Encoded(&self.fields);
        Source {
            status: self.status,
            version: self.version,
            fields,
        }
    }
}

/// Where a record takes its head from.
pub(crate) struct Source<'a> {
    status: StatusCode,
    version: Version,
    fields: Fields<'a>,
}

enum Fields<'a> {
    Of {
        headers: &'a HeaderMap,
        keep_cookies: bool,
    },
    Encoded(&'a [u8]),
}

impl Fields<'_> {
    fn len(&self) -> usize {
        match *self {
            Self::Of {
                headers,
                keep_cookies,
            } => wire::fields_len(recorded(headers, keep_cookies)),
            Self::Encoded(fields) => fields.len(),
        }
    }

    fn put(&self, to: &mut impl BufMut) {
        match *self {
            Self::Of {
                headers,
                keep_cookies,
            } => {
                wire::put_fields(to, || recorded(headers, keep_cookies));
            }
            Self::Encoded(fields) => to.put_slice(fields),
        }
    }
}

impl<'a> Source<'a> {
    pub(crate) fn of(parts: &'a response::Parts, keep_cookies: bool) -> Self {
        let fields = Fields::Of {
            headers: &parts.headers,
            keep_cookies,
        };
        Self {
            status: parts.status,
            version: parts.version,
            fields,
        }
    }

    pub(crate) fn with_body<'b>(
        &self,
        frames: impl Iterator<Item = &'b [u8]> + Clone,
        trailers: Option<&HeaderMap>,
    ) -> Record {
        let len = frames.clone().map(<[u8]>::len).sum::<usize>();
        self.pack(Some(len as u64), false, len, frames, trailers)
    }

    pub(crate) fn omitted(&self, body_len: Option<u64>) -> Record {
        self.pack(body_len, true, 0, std::iter::empty(), None)
    }

    fn pack<'b>(
        &self,
        body_len: Option<u64>,
        omitted: bool,
        kept_len: usize,
        frames: impl Iterator<Item = &'b [u8]>,
        trailers: Option<&HeaderMap>,
    ) -> Record {
        let none = HeaderMap::new();
        let trailer_fields = Fields::Of {
            headers: trailers.unwrap_or(&none),
            keep_cookies: true,
        };
        let size = wire::HEAD_LEN
            + self.fields.len()
            + trailer_fields.len()
            + wire::NO_EXTENSIONS_LEN
            + kept_len;
        // An iterator that knows its length is collected into one allocation.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, size).collect();
        if let Some(mut room) = Arc::get_mut(&mut bytes) {
            let head = Head {
                status: self.status,
                version: self.version,
                recorded_at_ms: now_ms(),
                body_len,
                omitted,
                has_trailers: trailers.is_some(),
            };
            head.put(&mut room);
            self.fields.put(&mut room);
            trailer_fields.put(&mut room);
            wire::put_no_extensions(&mut room);
            frames.for_each(|frame| room.put_slice(frame));
        }
        Record(Packed::Own(bytes))
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
        // Of another layer inside, which may have failed where this one has not.
        || matches!(name.as_str(), "idempotent-replayed" | "idempotency-stored")
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
