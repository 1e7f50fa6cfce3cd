//! Bodies that are read whole, within a bound.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Sleep, sleep};

use crate::model::error::BoxError;
use crate::policy::config::Config;
use crate::policy::rejection::RejectionKind;

/// A body that is at hand: its data in the frames it came in, and its trailers.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    // Most bodies are one frame, and one frame needs no allocation here.
    first: Option<Bytes>,
    rest: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    len_untold: bool,
}

impl Collected {
    pub(crate) fn new(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        let mut collected = Self {
            trailers,
            ..Self::default()
        };
        collected.push(data);
        collected
    }

    pub(crate) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
        } else if self.first.is_none() && self.rest.is_empty() {
            self.first = Some(data);
        } else {
            self.rest.push_back(data);
        }
    }

    pub(crate) fn set_trailers(&mut self, trailers: HeaderMap) {
        self.trailers = Some(trailers);
    }

    pub(crate) fn frames(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.first.iter().chain(&self.rest).map(|data| &data[..])
    }

    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.frames().map(<[u8]>::len).sum()
    }

    pub(crate) fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        self.first
            .take()
            .or_else(|| self.rest.pop_front())
            .map(Frame::data)
            .or_else(|| self.trailers.take().map(Frame::trailers))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_empty() && self.trailers.is_none() && !self.len_untold
    }

    /// Its client gets it as its handler gave it: without a length.
    pub(super) fn keep_len_untold(&mut self) {
        self.len_untold = true;
    }

    /// Exact without trailers alone: a server that knows a length sends none.
    pub(crate) fn size_hint(&self) -> SizeHint {
        let len = self.len() as u64;
        if self.trailers.is_none() && !self.len_untold {
            SizeHint::with_exact(len)
        } else {
            let mut hint = SizeHint::new();
            hint.set_lower(len);
            hint
        }
    }
}

/// A server does not ask for the body of such an answer: its head is its end.
pub(super) fn has_no_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The length that the head of a message declares, or its body.
pub(crate) fn declared_len(headers: &HeaderMap, hint: &SizeHint) -> Option<u64> {
    hint.exact().or_else(|| {
        let value = headers.get(http::header::CONTENT_LENGTH)?;
        value.to_str().ok()?.trim().parse().ok()
    })
}

/// Reads a request's body into one piece, for the fingerprint is taken over all of it.
pub(super) async fn request<B: Body>(
    body: B,
    declared: Option<u64>,
    limit: usize,
) -> Result<(Bytes, Option<HeaderMap>), RejectionKind> {
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| RejectionKind::UnreadableBody)?;
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok().or(trailers);
                continue;
            }
        };
        let len = first.len() + joined.len();
        if data.remaining() > limit - len {
            return Err(RejectionKind::RequestTooLarge);
        }
        if len == 0 {
            first = data.copy_to_bytes(data.remaining());
        } else {
            if joined.is_empty() {
                joined.put(std::mem::take(&mut first));
            }
            if joined.capacity() - joined.len() < data.remaining() {
                // In steps, up to what was declared: who declares much and sends little
                // gets little.
                let declared = declared.and_then(|len| usize::try_from(len).ok());
                let left = declared.unwrap_or(0).min(limit).saturating_sub(len);
                joined.reserve(data.remaining().max(left.min(3 * len)));
            }
            joined.put(data);
        }
    }
    let data = if joined.is_empty() {
        first
    } else {
        joined.freeze()
    };
    Ok((data, trailers))
}

/// Reads a response's body to its end, and not further than the limit: true if it ended.
pub(crate) async fn whole<B>(
    mut body: Pin<&mut B>,
    limit: usize,
    collected: &mut Collected,
) -> Result<bool, BoxError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        match frame.map_err(Into::into)?.into_data() {
            Ok(mut data) => {
                len += data.remaining();
                collected.push(data.copy_to_bytes(data.remaining()));
                if len > limit {
                    return Ok(false);
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    collected.set_trailers(trailers);
                    return Ok(true);
                }
            }
        }
    }
    Ok(true)
}

/// How far a response's body was read.
pub(super) enum Read {
    /// To its end, or to where it broke off.
    Ended(Option<BoxError>),
    /// What is there of it was read. More may come, and without end.
    Pending,
    /// More may be there: it was not asked for.
    Unfinished,
}

/// Reads a body before its head is sent: one that says how long it is to its end, and of
/// any other what is there already. The first of that leaves with the head, and where it
/// was all, it is on record before.
pub(super) async fn response<B>(
    mut body: Pin<&mut B>,
    expected: Option<u64>,
    config: &Config,
    collected: &mut Collected,
) -> Read
where
    B: Body,
    B::Error: Into<BoxError>,
{
    // A handler that can give without end is not asked for all of it.
    const ENOUGH: usize = 64 * 1024;
    let at_most = expected.unwrap_or(config.response_body_limit.min(ENOUGH) as u64);
    let mut len = 0;
    // One for all frames: a body that gives nothing now and then is not waited for either.
    let mut patience: Option<Pin<Box<Sleep>>> = None;
    while len <= at_most {
        if expected == Some(len) && body.is_end_stream() {
            return Read::Ended(None);
        }
        let next = poll_fn(|cx| {
            if let Poll::Ready(frame) = body.as_mut().poll_frame(cx) {
                return Poll::Ready(Some(frame));
            }
            match expected {
                None => Poll::Ready(None),
                // All is there but the end, or trailers: as long as a record may hold it back.
                Some(expected) if expected == len => {
                    let patience =
                        patience.get_or_insert_with(|| Box::pin(sleep(config.store_timeout)));
                    ready!(patience.as_mut().poll(cx));
                    Poll::Ready(None)
                }
                Some(_) => Poll::Pending,
            }
        });
        let Some(frame) = next.await else {
            return Read::Pending;
        };
        match frame.map(|frame| frame.map(Frame::into_data)) {
            None => return Read::Ended(None),
            Some(Ok(Ok(mut data))) => {
                len += data.remaining() as u64;
                collected.push(data.copy_to_bytes(data.remaining()));
            }
            Some(Ok(Err(frame))) => {
                if let Ok(trailers) = frame.into_trailers() {
                    // Nothing follows them, and no server asks.
                    collected.set_trailers(trailers);
                    return Read::Ended(None);
                }
            }
            Some(Err(error)) => return Read::Ended(Some(error.into())),
        }
    }
    Read::Unfinished
}
