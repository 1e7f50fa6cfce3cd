use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LINK, RETRY_AFTER};
use http::request::Parts;
use http::{Response, StatusCode, Uri};

/// Why the layer refused a request.
///
/// | [`code`](Self::code) | status | [`retryable`](Self::retryable) | [`new_key_safe`](Self::new_key_safe) | `Retry-After` |
/// |---|---|---|---|---|
/// | `missing-key` | 400 | no | yes | |
/// | `invalid-key` | 400 | no | yes | |
/// | `unknown-caller` | 403 | no | no | |
/// | `request-too-large` | 413 | no | no | |
/// | `unreadable-body` | 400 | yes | no | |
/// | `key-reused` | 422 | no | no | |
/// | `in-progress` | 409 | yes | no | 1 s |
/// | `quota-exceeded` | 429 | yes | no | 60 s |
/// | `outcome-unknown` | 500 | no | no | |
/// | `transaction-failed` | 500 | yes | no | |
/// | `record-unreadable` | 500 | no | no | |
/// | `store-unavailable` | 503 | yes | no | 1 s |
/// | `overloaded` | 503 | yes | no | 1 s |
///
/// A client that gets no answer at all, a 5xx of the handler, or an answer marked
/// `Idempotency-Stored: false` asks again under the same key as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// 400: a key is required and absent.
    MissingKey,
    /// 400: the key is malformed, empty, too long or repeated.
    InvalidKey,
    /// 403: the request has a key and no scope.
    UnknownCaller,
    /// 413: the body is over the limit.
    RequestTooLarge,
    /// 400: the body broke off.
    UnreadableBody,
    /// 422: the key belongs to another request, whether that runs, failed or is done.
    KeyReused,
    /// 409: the same request is running.
    InProgress,
    /// 429: one scope holds too many records.
    QuotaExceeded,
    /// 500: the key is sealed.
    OutcomeUnknown,
    /// 500: the handler's transaction, with its effect and its answer, was not committed.
    TransactionFailed,
    /// 500: there is a record, and it cannot be read.
    RecordUnreadable,
    /// 503: the store cannot be reached, is full, or did not answer in time.
    StoreUnavailable,
    /// 503: as many exchanges as allowed are under way.
    Overloaded,
}

impl RejectionKind {
    /// The machine-readable name, as in the member `code`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::MissingKey => "missing-key",
            Self::InvalidKey => "invalid-key",
            Self::UnknownCaller => "unknown-caller",
            Self::RequestTooLarge => "request-too-large",
            Self::UnreadableBody => "unreadable-body",
            Self::KeyReused => "key-reused",
            Self::InProgress => "in-progress",
            Self::QuotaExceeded => "quota-exceeded",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::TransactionFailed => "transaction-failed",
            Self::RecordUnreadable => "record-unreadable",
            Self::StoreUnavailable => "store-unavailable",
            Self::Overloaded => "overloaded",
        }
    }

    /// The status of the refusal.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::MissingKey | Self::InvalidKey | Self::UnreadableBody => StatusCode::BAD_REQUEST,
            Self::UnknownCaller => StatusCode::FORBIDDEN,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::InProgress => StatusCode::CONFLICT,
            Self::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
            Self::OutcomeUnknown | Self::TransactionFailed | Self::RecordUnreadable => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::StoreUnavailable | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether the same request may be sent again under the same key with a prospect of
    /// another answer.
    pub const fn retryable(self) -> bool {
        matches!(
            self,
            Self::UnreadableBody
                | Self::InProgress
                | Self::QuotaExceeded
                | Self::TransactionFailed
                | Self::StoreUnavailable
                | Self::Overloaded
        )
    }

    /// Whether a new key is safe: only where no earlier attempt under any key can have
    /// been applied. A client that takes a new key after a doubtful answer charges twice.
    pub const fn new_key_safe(self) -> bool {
        matches!(self, Self::MissingKey | Self::InvalidKey)
    }

    const fn title(self) -> &'static str {
        match self {
            Self::MissingKey => "An idempotency key is required",
            Self::InvalidKey => "The idempotency key is invalid",
            Self::UnknownCaller => "The owner of the idempotency key is unknown",
            Self::RequestTooLarge => "The request is too large to be protected",
            Self::UnreadableBody => "The request body could not be read",
            Self::KeyReused => "The idempotency key belongs to another request",
            Self::InProgress => "The same request is in progress",
            Self::QuotaExceeded => "Too many idempotency keys are in use",
            Self::OutcomeUnknown => "The outcome of the request is unknown",
            Self::TransactionFailed => "The transaction of the request failed",
            Self::RecordUnreadable => "The recorded answer cannot be read",
            Self::StoreUnavailable => "The store of idempotency keys is not available",
            Self::Overloaded => "Too many requests are in progress",
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            Self::MissingKey => "Send an idempotency key of your choice with the request.",
            Self::InvalidKey => "Send one key of 1 to 255 visible ASCII characters.",
            Self::UnknownCaller => {
                "No key is accepted from a caller who is not known: authenticate first."
            }
            Self::RequestTooLarge => "Nothing was run for this attempt: send a smaller body.",
            Self::UnreadableBody => "The body ended early. Nothing was run: send it again.",
            Self::KeyReused => {
                "The key was sent with another request before, which may have been applied."
            }
            Self::InProgress => "Its answer is not there yet: ask again under the same key.",
            Self::QuotaExceeded => "Nothing was run: send it again later under the same key.",
            Self::OutcomeUnknown => {
                "An earlier attempt ended without a final answer and may have been applied."
            }
            Self::TransactionFailed => {
                "Nothing was committed for this attempt: send it again under the same key."
            }
            Self::RecordUnreadable => {
                "The request was completed before. It was not run again: the record is unreadable."
            }
            Self::StoreUnavailable | Self::Overloaded => {
                "Nothing was run for this attempt: send it again under the same key."
            }
        }
    }

    const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::InProgress | Self::StoreUnavailable | Self::Overloaded => {
                Some(Duration::from_secs(1))
            }
            Self::QuotaExceeded => Some(Duration::from_secs(60)),
            _ => None,
        }
    }
}

/// A refusal, before it becomes a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    kind: RejectionKind,
    detail: &'static str,
}

impl Rejection {
    pub(crate) const fn with_detail(kind: RejectionKind, detail: &'static str) -> Self {
        Self { kind, detail }
    }

    /// The store cannot tell at the moment what became of a transaction.
    pub(crate) const fn in_doubt() -> Self {
        let detail = "Its outcome is not known yet: ask again under the same key.";
        Self::with_detail(RejectionKind::StoreUnavailable, detail)
    }

    /// A transaction of the handler's was in the way of another one, or the store failed.
    pub(crate) const fn rolled_back() -> Self {
        let detail = "The transaction was rolled back: send the request again under the same key.";
        Self::with_detail(RejectionKind::StoreUnavailable, detail)
    }

    /// Why the request was refused.
    pub const fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// A sentence for the client's developer. It holds no byte of the request.
    pub const fn detail(&self) -> &'static str {
        self.detail
    }

    /// When to ask again, where that is of use: 1 s, and 60 s for a quota. Sent as
    /// `Retry-After` ([RFC 9110 §10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3)).
    pub const fn retry_after(&self) -> Option<Duration> {
        self.kind.retry_after()
    }
}

impl From<RejectionKind> for Rejection {
    fn from(kind: RejectionKind) -> Self {
        Self {
            kind,
            detail: kind.detail(),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.title())
    }
}

/// Makes a response of a refusal. [`rejection_fn`] makes one of a closure:
///
/// ```
/// use bytes::Bytes;
/// use http::Response;
/// use tower_idempotency::rejection_fn;
///
/// let plain = rejection_fn(|rejection, _request| {
///     let mut response = Response::new(Bytes::from_static(rejection.kind().code().as_bytes()));
///     *response.status_mut() = rejection.kind().status();
///     response
/// });
/// # let _ = plain;
/// ```
#[diagnostic::on_unimplemented(note = "wrap a closure in `rejection_fn`, or use `ProblemJson`")]
pub trait RejectionResponse: Send + Sync + 'static {
    /// The response. The layer adds [`Outcome::Rejected`](crate::Outcome::Rejected) to
    /// its extensions.
    fn response(&self, rejection: &Rejection, request: &Parts) -> Response<Bytes>;
}

/// `application/problem+json` ([RFC 9457 §3](https://www.rfc-editor.org/rfc/rfc9457#section-3)), with
/// `Cache-Control: no-store`, and `Retry-After` where it helps. The default.
///
/// Members: `type`, `title`, `status`, `detail`, and as extensions `code`, `retryable`
/// and `new_key_safe` ([`RejectionKind`]). Neither the key nor any byte of the request
/// is echoed.
#[derive(Debug, Clone, Default)]
pub struct ProblemJson {
    documentation: Option<String>,
}

impl ProblemJson {
    /// Says where the codes are explained: the `type` of a problem is this URI with the
    /// code as its fragment, and a `Link` with `rel="describedby"` leads there.
    ///
    /// ```
    /// use tower_idempotency::ProblemJson;
    ///
    /// let problems = ProblemJson::documentation("https://api.example/docs/idempotency");
    /// # let _ = problems;
    /// ```
    ///
    /// # Panics
    ///
    /// When `uri` is no URI, or has a fragment of its own.
    #[track_caller]
    pub fn documentation(uri: &str) -> Self {
        let sound = uri.parse::<Uri>().is_ok() && !uri.contains(['#', '"', '\\', '<', '>']);
        assert!(
            sound,
            "the documentation must be a URI without a fragment, not {uri:?}"
        );
        Self {
            documentation: Some(uri.to_owned()),
        }
    }
}

impl RejectionResponse for ProblemJson {
    fn response(&self, rejection: &Rejection, _: &Parts) -> Response<Bytes> {
        let kind = rejection.kind();
        let code = kind.code();
        let about = self
            .documentation
            .as_ref()
            .map(|uri| format!("{uri}#{code}"));
        // Every string here is a constant of this file but the URI and a detail that a
        // user may have set, so those two alone can need escaping.
        let body = format!(
            r#"{{"type":"{}","title":"{}","status":{},"detail":"{}","code":"{code}","retryable":{},"new_key_safe":{}}}"#,
            about.as_deref().unwrap_or("about:blank"),
            kind.title(),
            kind.status().as_u16(),
            escaped(rejection.detail()),
            kind.retryable(),
            kind.new_key_safe(),
        );
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = kind.status();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = rejection.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        let link = about.map(|about| format!("<{about}>; rel=\"describedby\""));
        if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
            headers.insert(LINK, link);
        }
        response
    }
}

/// RFC 8259 §7.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\\' => escaped.extend(['\\', character]),
            '\0'..='\x1f' => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// A [`RejectionResponse`] from a closure.
pub fn rejection_fn<F>(f: F) -> impl RejectionResponse
where
    F: Fn(&Rejection, &Parts) -> Response<Bytes> + Send + Sync + 'static,
{
    RejectionFn(f)
}

struct RejectionFn<F>(F);

impl<F> RejectionResponse for RejectionFn<F>
where
    F: Fn(&Rejection, &Parts) -> Response<Bytes> + Send + Sync + 'static,
{
    fn response(&self, rejection: &Rejection, request: &Parts) -> Response<Bytes> {
        (self.0)(rejection, request)
    }
}
