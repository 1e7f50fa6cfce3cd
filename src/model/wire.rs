//! The bytes of a record: one encoding, for memory and for every persistent store.
//!
//! ```text
//!  0 u8  magic 0x1D        1 u8  format version 1   2 u8  flags: 1 body omitted, 2 trailers
//!  3 u8  HTTP version      4 u16 status             6 u64 recorded at, ms of the Unix epoch
//! 14 u64 body length of the answer (all ones: unknown)
//! 22 fields · fields of the trailers · extensions · body up to the end
//!
//! fields:     u16 count, then for each: u8 flags (1 sensitive), u16 name length,
//!             u32 value length, name, value
//! extensions: u16 count, then for each: u16 tag (high bit: must be understood),
//!             u32 length, bytes
//! ```
//!
//! Integers are big-endian. Every length is checked against what is there before
//! anything is allocated for it.

use bytes::{BufMut, Bytes};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};

const MAGIC: u8 = 0x1d;
const FORMAT: u8 = 1;
const OMITTED: u8 = 1;
const TRAILERS: u8 = 2;
const SENSITIVE: u8 = 1;
const MUST_UNDERSTAND: u16 = 0x8000;
const FIELD_OVERHEAD: usize = 1 + 2 + 4;
const LENGTH_UNKNOWN: u64 = u64::MAX;

/// The length of what stands before the fields.
pub(super) const HEAD_LEN: usize = 22;

/// The length of an empty list of extensions.
pub(super) const NO_EXTENSIONS_LEN: usize = 2;

/// What stands before the fields.
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) version: Version,
    pub(super) recorded_at_ms: u64,
    pub(super) body_len: Option<u64>,
    pub(super) omitted: bool,
    pub(super) has_trailers: bool,
}

impl Head {
    pub(super) fn put(&self, to: &mut impl BufMut) {
        let omitted = if self.omitted { OMITTED } else { 0 };
        let trailers = if self.has_trailers { TRAILERS } else { 0 };
        to.put_slice(&[
            MAGIC,
            FORMAT,
            omitted | trailers,
            version_code(self.version),
        ]);
        to.put_u16(self.status.as_u16());
        to.put_u64(self.recorded_at_ms);
        to.put_u64(self.body_len.unwrap_or(LENGTH_UNKNOWN));
    }
}

pub(super) fn fields_len<'a>(
    fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) -> usize {
    bounded(fields)
        .map(|(name, value)| FIELD_OVERHEAD + name.as_str().len() + value.len())
        .sum::<usize>()
        + 2
}

pub(super) fn put_fields<'a, I>(to: &mut impl BufMut, fields: impl Fn() -> I)
where
    I: Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
{
    let count = bounded(fields()).count();
    to.put_u16(u16::try_from(count).unwrap_or(u16::MAX));
    for (name, value) in bounded(fields()) {
        let name = name.as_str().as_bytes();
        to.put_u8(if value.is_sensitive() { SENSITIVE } else { 0 });
        to.put_u16(u16::try_from(name.len()).unwrap_or(u16::MAX));
        to.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        to.put_slice(name);
        to.put_slice(value.as_bytes());
    }
}

/// What the format can count. A `HeaderMap` bounds names below 64 KiB and its entries not
/// far from 64 Ki; no message carries a value of 4 GiB.
fn bounded<'a>(
    fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) -> impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)> {
    fields
        .filter(|(_, value)| u32::try_from(value.len()).is_ok())
        .take(usize::from(u16::MAX))
}

pub(super) fn put_no_extensions(to: &mut impl BufMut) {
    to.put_u16(0);
}

/// Reads a record from its front. Every method gives `None` where the bytes end too
/// early or say something impossible.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn head(&mut self) -> Option<Head> {
        if self.array()? != [MAGIC, FORMAT] {
            return None;
        }
        let [flags, version] = self.array()?;
        if flags & !(OMITTED | TRAILERS) != 0 {
            return None;
        }
        Some(Head {
            omitted: flags & OMITTED != 0,
            has_trailers: flags & TRAILERS != 0,
            version: version_from(version)?,
            status: StatusCode::from_u16(u16::from_be_bytes(self.array()?)).ok()?,
            recorded_at_ms: u64::from_be_bytes(self.array()?),
            body_len: Some(u64::from_be_bytes(self.array()?)).filter(|&len| len != LENGTH_UNKNOWN),
        })
    }

    /// Fields whose values are slices of `bytes`, which is what is read here.
    pub(super) fn fields(&mut self, bytes: &Bytes) -> Option<HeaderMap> {
        let count = usize::from(u16::from_be_bytes(self.array()?));
        if count * FIELD_OVERHEAD > self.left() {
            return None;
        }
        // Lines are counted, and capacity is for names: many lines may share one.
        let mut fields = HeaderMap::with_capacity(count.min(64));
        for _ in 0..count {
            let (flags, name, value) = self.field()?;
            let name = HeaderName::from_bytes(name).ok()?;
            let mut value = HeaderValue::from_maybe_shared(bytes.slice_ref(value)).ok()?;
            value.set_sensitive(flags & SENSITIVE != 0);
            fields.try_append(name, value).ok()?;
        }
        Some(fields)
    }

    pub(super) fn skip_fields(&mut self) -> Option<()> {
        let count = u16::from_be_bytes(self.array()?);
        (0..count).try_for_each(|_| self.field().map(drop))
    }

    fn field(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let [flags] = self.array()?;
        let name_len = usize::from(u16::from_be_bytes(self.array()?));
        let value_len = usize::try_from(u32::from_be_bytes(self.array()?)).ok()?;
        if flags & !SENSITIVE != 0 {
            return None;
        }
        let name = self.slice(name_len)?;
        let value = self.slice(value_len)?;
        Some((flags, name, value))
    }

    pub(super) fn skip_extensions(&mut self) -> Option<()> {
        let count = u16::from_be_bytes(self.array()?);
        for _ in 0..count {
            let tag = u16::from_be_bytes(self.array()?);
            let len = usize::try_from(u32::from_be_bytes(self.array()?)).ok()?;
            self.slice(len)?;
            if tag & MUST_UNDERSTAND != 0 {
                return None;
            }
        }
        Some(())
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let slice = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(slice)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }
}

fn version_code(version: Version) -> u8 {
    match version {
        Version::HTTP_09 => 9,
        Version::HTTP_10 => 10,
        Version::HTTP_2 => 20,
        Version::HTTP_3 => 30,
        _ => 11,
    }
}

fn version_from(code: u8) -> Option<Version> {
    Some(match code {
        9 => Version::HTTP_09,
        10 => Version::HTTP_10,
        11 => Version::HTTP_11,
        20 => Version::HTTP_2,
        30 => Version::HTTP_3,
        _ => return None,
    })
}
