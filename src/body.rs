mod recording;

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;

use self::recording::Recording;
use crate::exchange::{AnswerBody, Collected};
use crate::model::error::BoxError;

pin_project! {
    /// The body of a request inside the layer: the client's own, or a copy of it where
    /// the layer had to read it first.
    ///
    /// Trailers are kept. `Error` is the error of the client's body.
    pub struct RequestBody<B> {
        #[pin]
        kind: RequestKind<B>,
    }
}

pin_project! {
    #[project = RequestKindProj]
    enum RequestKind<B> {
        Untouched { #[pin] body: B },
        Collected { body: Collected },
    }
}

impl<B> RequestBody<B> {
    /// A body as a client sends it: what a service inside the layer gets in a test of its
    /// own.
    pub fn new(body: B) -> Self {
        Self {
            kind: RequestKind::Untouched { body },
        }
    }
}

impl<B> From<Collected> for RequestBody<B> {
    fn from(body: Collected) -> Self {
        Self {
            kind: RequestKind::Collected { body },
        }
    }
}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

impl<B: Body> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            RequestKindProj::Untouched { body } => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map(into_bytes))),
            RequestKindProj::Collected { body } => Poll::Ready(body.next_frame().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            RequestKind::Untouched { body } => body.is_end_stream(),
            RequestKind::Collected { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            RequestKind::Untouched { body } => body.size_hint(),
            RequestKind::Collected { body } => body.size_hint(),
        }
    }
}

fn into_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

pin_project! {
    /// The body of a response outside the layer: the handler's own, one that was
    /// recorded, or the handler's while it is being recorded.
    ///
    /// A body that is being recorded withholds its last frame until the record is
    /// written, and goes on being read when it is dropped before its end.
    pub struct ResponseBody<B> {
        #[pin]
        kind: ResponseKind<B>,
    }
}

pin_project! {
    #[project = ResponseKindProj]
    enum ResponseKind<B> {
        Original { #[pin] body: B },
        Pending { begun: Collected, body: Pin<Box<B>> },
        Collected { body: Collected },
        Broken { body: Collected, missing: Option<u64>, error: Option<BoxError> },
        Recording { body: Recording },
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn original(body: B) -> Self {
        Self {
            kind: ResponseKind::Original { body },
        }
    }
}

impl<B> From<AnswerBody<B>> for ResponseBody<B>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn from(body: AnswerBody<B>) -> Self {
        let kind = match body {
            AnswerBody::Original(body) => ResponseKind::Original { body },
            AnswerBody::Pending { begun, body } => ResponseKind::Pending { begun, body },
            AnswerBody::Whole(body) => ResponseKind::Collected { body },
            AnswerBody::Broken {
                body,
                missing,
                error,
            } => ResponseKind::Broken {
                body,
                missing,
                error,
            },
            AnswerBody::Recording {
                begun,
                body,
                recorder,
            } => {
                let body = body
                    .map_frame(into_bytes)
                    .map_err(Into::into)
                    .boxed_unsync();
                ResponseKind::Recording {
                    body: Recording::new(begun, body, recorder),
                }
            }
        };
        Self { kind }
    }
}

impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self {
            kind: ResponseKind::Collected {
                body: Collected::default(),
            },
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            ResponseKindProj::Original { body } => poll_original(body, cx),
            ResponseKindProj::Pending { begun, body } => match begun.next_frame() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => poll_original(body.as_mut(), cx),
            },
            ResponseKindProj::Collected { body } => Poll::Ready(body.next_frame().map(Ok)),
            ResponseKindProj::Broken { body, error, .. } => {
                Poll::Ready(body.next_frame().map(Ok).or_else(|| error.take().map(Err)))
            }
            ResponseKindProj::Recording { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ResponseKind::Original { body } => body.is_end_stream(),
            ResponseKind::Pending { begun, body } => begun.is_end_stream() && body.is_end_stream(),
            ResponseKind::Collected { body } => body.is_end_stream(),
            ResponseKind::Broken {
                body,
                missing,
                error,
            } => body.is_end_stream() && error.is_none() && missing.unwrap_or(0) == 0,
            ResponseKind::Recording { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ResponseKind::Original { body } => body.size_hint(),
            // What was read of it is all that it promised, whatever it says by now.
            ResponseKind::Pending { begun, body } => {
                match (body.size_hint().exact(), begun.len()) {
                    (Some(_), 1..) => SizeHint::with_exact(begun.len() as u64),
                    (Some(rest), 0) => SizeHint::with_exact(rest),
                    (None, _) => SizeHint::new(),
                }
            }
            ResponseKind::Collected { body } => body.size_hint(),
            // It promises what its handler promised, so that the client sees it break off.
            ResponseKind::Broken {
                body,
                missing: Some(missing),
                ..
            } => SizeHint::with_exact((body.len() as u64).saturating_add(*missing)),
            ResponseKind::Broken { .. } | ResponseKind::Recording { .. } => SizeHint::new(),
        }
    }
}

fn poll_original<B>(
    body: Pin<&mut B>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let frame = body.poll_frame(cx);
    frame.map(|frame| frame.map(|frame| frame.map(into_bytes).map_err(Into::into)))
}
