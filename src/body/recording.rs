use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::oneshot;

use crate::exchange::{Collected, Panic, Recorder, Report};
use crate::model::error::BoxError;

/// A handler's body on its way to the client, with a bounded copy for the record. Dropped
/// before its end, it is read on by a task of its own.
///
/// The lock is never waited for: it makes the whole `Sync`, as some users' boxes ask.
pub(super) struct Recording(Option<Mutex<Box<Tee>>>);

impl Recording {
    pub(super) fn new(
        begun: Collected,
        body: UnsyncBoxBody<Bytes, BoxError>,
        recorder: Recorder,
    ) -> Self {
        let copy = Some(Vec::new());
        Self(Some(Mutex::new(Box::new(Tee {
            begun,
            body,
            ahead: None,
            recorder,
            copy,
            seen: 0,
            stage: Stage::Reading,
        }))))
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        match &mut self.0 {
            Some(tee) => tee
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let is_end_stream = |tee: &Mutex<Box<Tee>>| {
            tee.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_end_stream()
        };
        self.0.as_ref().is_none_or(is_end_stream)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let Some(tee) = self.0.take() else {
            return;
        };
        let tee = tee.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !tee.recorder.has_reported() {
            tee.recorder.span().spawn(tee.drain());
        }
    }
}

pub(super) type Item = Option<Result<Frame<Bytes>, BoxError>>;

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
            Err(panic) => (Report::Lost, Then::Panic(panic)),
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
        if self.recorder.poll_closed(cx).is_ready() {
            self.copy = None;
            return Noted::Nothing;
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
