use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use pin_project_lite::pin_project;
use tokio::sync::oneshot;

use crate::exchange::{AnswerBody, Collected, Recorder, Report};
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
        Pending { body: Pin<Box<B>> },
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
            AnswerBody::Pending(body) => ResponseKind::Pending { body },
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
            ResponseKindProj::Pending { body } => poll_original(body.as_mut(), cx),
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
            ResponseKind::Pending { body } => body.is_end_stream(),
            ResponseKind::Collected { body } => body.is_end_stream(),
            ResponseKind::Broken { body, error, .. } => body.is_end_stream() && error.is_none(),
            ResponseKind::Recording { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ResponseKind::Original { body } => body.size_hint(),
            ResponseKind::Pending { body } => body.size_hint(),
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

fn poll_original<B>(body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Item>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let frame = body.poll_frame(cx);
    frame.map(|frame| frame.map(|frame| frame.map(into_bytes).map_err(Into::into)))
}

/// A handler's body on its way to the client, with a bounded copy for the record. Dropped
/// before its end, it is read on by a task of its own.
struct Recording(Option<Box<Tee>>);

impl Recording {
    fn new(begun: Collected, body: UnsyncBoxBody<Bytes, BoxError>, recorder: Recorder) -> Self {
        let copy = Some(Vec::new());
        Self(Some(Box::new(Tee {
            begun,
            body,
            ahead: None,
            recorder,
            copy,
            seen: 0,
            stage: Stage::Reading,
        })))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        self.0
            .as_mut()
            .map_or(Poll::Ready(None), |tee| tee.poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|tee| tee.is_end_stream())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(tee) = self.0.take().filter(|tee| !tee.recorder.has_reported()) {
            tee.recorder.span().spawn(tee.drain());
        }
    }
}

type Item = Option<Result<Frame<Bytes>, BoxError>>;

type Panic = Box<dyn Any + Send>;

struct Tee {
    /// What was read before the head was sent.
    begun: Collected,
    body: UnsyncBoxBody<Bytes, BoxError>,
    /// What follows the frame that is being passed on, where it is there already.
    ahead: Option<Result<Item, Panic>>,
    recorder: Recorder,
    /// `None` once nothing is to be recorded from it any more.
    copy: Option<Vec<u8>>,
    seen: u64,
    stage: Stage,
}

enum Stage {
    Reading,
    /// One item is withheld until the record is written.
    Withholding {
        until: oneshot::Receiver<()>,
        then: Then,
    },
    Ended,
}

enum Then {
    GoOn(Frame<Bytes>),
    End(Item),
    Panic(Panic),
}

/// What a frame means for the record.
enum Noted {
    Nothing,
    /// To be reported before it is passed on.
    Before(Report),
    /// The same, and nothing follows.
    Last(Report),
}

impl Tee {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Ended) {
                Stage::Ended => return Poll::Ready(None),
                Stage::Withholding { mut until, then } => {
                    if Pin::new(&mut until).poll(cx).is_pending() {
                        self.stage = Stage::Withholding { until, then };
                        return Poll::Pending;
                    }
                    return Poll::Ready(self.proceed(then));
                }
                Stage::Reading => {
                    self.stage = Stage::Reading;
                    let read = ready!(self.read(cx));
                    if let Some(item) = self.note(read, cx) {
                        return Poll::Ready(item);
                    }
                }
            }
        }
    }

    /// The handler's next frame, or what it panicked with.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Item, Panic>> {
        if let Some(read) = self.ahead.take() {
            return Poll::Ready(read);
        }
        if let Some(frame) = self.begun.next_frame() {
            return Poll::Ready(Ok(Some(Ok(frame))));
        }
        let body = Pin::new(&mut self.body);
        match catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(item)) => Poll::Ready(Ok(item)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }

    /// Copies what was read and passes it on, or reports, and withholds it meanwhile.
    fn note(&mut self, read: Result<Item, Panic>, cx: &mut Context<'_>) -> Option<Item> {
        let (report, then) = match read {
            Ok(Some(Ok(frame))) => match self.note_frame(&frame, cx) {
                Noted::Nothing => return Some(Some(Ok(frame))),
                Noted::Before(report) => (report, Then::GoOn(frame)),
                Noted::Last(report) => (report, Then::End(Some(Ok(frame)))),
            },
            Ok(Some(Err(error))) => (Report::Broken, Then::End(Some(Err(error)))),
            Ok(None) => (self.ended(None), Then::End(None)),
            Err(panic) => (Report::Broken, Then::Panic(panic)),
        };
        match self.recorder.report(report) {
            Some(until) => {
                self.stage = Stage::Withholding { until, then };
                None
            }
            None => Some(self.proceed(then)),
        }
    }

    fn note_frame(&mut self, frame: &Frame<Bytes>, cx: &mut Context<'_>) -> Noted {
        if let Some(trailers) = frame.trailers_ref() {
            return Noted::Last(self.ended(Some(trailers.clone())));
        }
        let (Some(data), Some(copy)) = (frame.data_ref(), &mut self.copy) else {
            return Noted::Nothing;
        };
        if data.len() > self.recorder.limit() - copy.len() {
            self.copy = None;
            return Noted::Before(Report::Omitted);
        }
        copy.extend_from_slice(data);
        self.seen += data.len() as u64;
        if self.ahead.is_none()
            && let Poll::Ready(read) = self.read(cx)
        {
            self.ahead = Some(read);
        }
        match &self.ahead {
            // The end is sent with the last frame, where it is there already.
            Some(Ok(None)) => Noted::Last(self.ended(None)),
            // A server that knows the length may ask for no more.
            Some(Ok(Some(Ok(next)))) if self.is_complete() => {
                let trailers = next.trailers_ref().cloned();
                Noted::Before(self.ended(trailers))
            }
            _ if self.is_complete() => Noted::Before(self.ended(None)),
            _ => Noted::Nothing,
        }
    }

    fn is_complete(&self) -> bool {
        self.recorder
            .declared_len()
            .is_some_and(|len| self.seen >= len)
    }

    fn ended(&mut self, trailers: Option<HeaderMap>) -> Report {
        let is_short = self
            .recorder
            .declared_len()
            .is_some_and(|len| self.seen < len);
        match self.copy.take() {
            Some(_) if is_short => Report::Broken,
            Some(body) => Report::Whole { body, trailers },
            None => Report::Omitted,
        }
    }

    fn proceed(&mut self, then: Then) -> Item {
        match then {
            Then::GoOn(frame) => {
                self.stage = Stage::Reading;
                Some(Ok(frame))
            }
            Then::End(item) => {
                self.stage = Stage::Ended;
                item
            }
            Then::Panic(panic) => {
                self.stage = Stage::Ended;
                resume_unwind(panic)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.stage {
            Stage::Ended => true,
            Stage::Withholding { .. } => false,
            // Once nothing is to be recorded any more, the handler's body speaks for itself.
            Stage::Reading => {
                self.recorder.has_reported()
                    && self.ahead.is_none()
                    && self.begun.is_end_stream()
                    && self.body.is_end_stream()
            }
        }
    }

    /// Reads on without a client, until there is something to report.
    async fn drain(mut self: Box<Self>) {
        poll_fn(|cx| {
            while !self.recorder.has_reported() {
                if self.recorder.poll_closed(cx).is_ready() {
                    return Poll::Ready(());
                }
                let read = ready!(self.read(cx));
                // A panic that nobody waits for any more ends here: it was told already.
                let _ = catch_unwind(AssertUnwindSafe(|| self.note(read, cx)));
            }
            Poll::Ready(())
        })
        .await;
    }
}
