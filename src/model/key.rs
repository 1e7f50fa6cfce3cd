use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::HeaderValue;

use super::structured;

/// The key under which a caller may repeat a request.
///
/// 1 to 255 bytes of printable ASCII. `Debug` does not show it, so that it does not
/// slip into a log: a key stands for an operation that money may hang on.
///
/// # Wire form
///
/// `Idempotency-Key` is a Structured Field Item of type String
/// ([RFC 9651 §3.3.3](https://www.rfc-editor.org/rfc/rfc9651#section-3.3.3)), but most
/// clients send the text bare. Both are accepted and are the same key:
///
/// ```
/// use http::HeaderValue;
/// use tower_idempotency::IdempotencyKey;
///
/// let quoted = IdempotencyKey::try_from(&HeaderValue::from_static("\"order-7\""))?;
/// let bare = IdempotencyKey::try_from(&HeaderValue::from_static("order-7"))?;
/// assert_eq!(quoted, bare);
/// assert_eq!(bare.as_str(), "order-7");
/// # Ok::<(), tower_idempotency::InvalidKey>(())
/// ```
///
/// A value that begins with `"` must parse as a String (its parameters are ignored). A
/// bare value is visible ASCII without `"`, `,`, `;` and `\`, and without space.
#[derive(Clone)]
pub struct IdempotencyKey(Text);

/// The usual key is a UUID, which is not worth an allocation.
#[derive(Clone)]
enum Text {
    Short { len: u8, bytes: [u8; Text::SHORT] },
    Long(Arc<str>),
}

impl Text {
    const SHORT: usize = 38;

    fn new(text: &str) -> Self {
        let mut bytes = [0; Self::SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(Arc::from(text)),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            // It was a whole string when it came in.
            Self::Short { len, bytes } => {
                std::str::from_utf8(&bytes[..usize::from(*len)]).unwrap_or_default()
            }
            Self::Long(text) => text,
        }
    }
}

impl IdempotencyKey {
    /// The longest key, in bytes, after unquoting.
    pub const MAX_LEN: usize = 255;

    /// A key from its plain text, as an operator or a JSON body has it: nothing is
    /// unquoted or trimmed.
    ///
    /// # Errors
    ///
    /// When the text is empty, longer than [`MAX_LEN`](Self::MAX_LEN) bytes, or holds
    /// anything but printable ASCII (0x20 to 0x7e, the range of a String in RFC 9651).
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        if text.is_empty() {
            return Err(InvalidKey::new("The key is empty."));
        }
        if text.len() > Self::MAX_LEN {
            return Err(InvalidKey::new("The key is longer than 255 bytes."));
        }
        if !text.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
            return Err(InvalidKey::new(
                "The key holds a byte that is not printable ASCII.",
            ));
        }
        Ok(Self(Text::new(text)))
    }

    /// The key's text, unquoted.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for IdempotencyKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for IdempotencyKey {}

impl Hash for IdempotencyKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

/// Reads the field value of one `Idempotency-Key` line, quoted or bare.
impl TryFrom<&HeaderValue> for IdempotencyKey {
    type Error = InvalidKey;

    fn try_from(value: &HeaderValue) -> Result<Self, InvalidKey> {
        let value = value.as_bytes().trim_ascii();
        let text = if value.starts_with(b"\"") {
            let text = structured::string_item(value).ok_or_else(|| {
                InvalidKey::new(
                    "The key begins with a quotation mark and is no Structured Field String.",
                )
            })?;
            Cow::Owned(text)
        } else if value.iter().all(|&byte| is_bare(byte)) {
            Cow::Borrowed(value)
        } else {
            return Err(InvalidKey::new(
                "The key holds a byte that must be quoted, or is not visible ASCII.",
            ));
        };
        std::str::from_utf8(&text)
            .map_err(|_| InvalidKey::new("The key is not ASCII."))
            .and_then(Self::new)
    }
}

fn is_bare(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKey").finish_non_exhaustive()
    }
}

/// Why a key was refused: the request gets 400 `invalid-key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidKey {
    reason: &'static str,
}

impl InvalidKey {
    /// `reason` is a sentence that reaches the client. It is a constant, so that no byte of
    /// a request can be echoed.
    pub const fn new(reason: &'static str) -> Self {
        Self { reason }
    }

    /// What is wrong with the key.
    pub const fn reason(&self) -> &'static str {
        self.reason
    }
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

impl Error for InvalidKey {}
