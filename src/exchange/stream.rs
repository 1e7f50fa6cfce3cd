//! An answer that is streamed while it is recorded: the body reports how it ended, and a
//! task of its own holds the key until then, since a client that stops reading stops the
//! body from being polled.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::decide::{HeadVerdict, answered, broke_off, no_answer};
use super::lease::{Lease, Settlement};
use super::poll::alongside;
use super::trace::Span;
use crate::model::record::RecordHead;
use crate::store::KeyStore;

/// How a streamed body ended, as far as its record is concerned.
pub(crate) enum Report {
    /// It is whole, and within the limit.
    Whole {
        body: Vec<u8>,
        trailers: Option<HeaderMap>,
    },
    /// It is over the limit, or still runs when the key can be held no longer.
    Omitted,
    /// It broke off.
    Broken,
    /// Its handler panicked, or it went where no task could read it on.
    Lost,
}

type Settled = oneshot::Sender<()>;

/// The body's end of the line to the keeper.
pub(crate) struct Recorder {
    keeper: Option<oneshot::Sender<(Report, Settled)>>,
    limit: usize,
    declared_len: Option<u64>,
    span: Span,
}

impl Recorder {
    /// The span of the request.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// How much of the body may be recorded, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// The length after which a server does not ask for more.
    pub(crate) fn declared_len(&self) -> Option<u64> {
        self.declared_len
    }

    /// Reports, once. The receiver is ready when the answer is on record, or when it is
    /// not to be waited for any longer; `None` if nobody is interested any more.
    pub(crate) fn report(&mut self, report: Report) -> Option<oneshot::Receiver<()>> {
        let (settled, on_settled) = oneshot::channel();
        let keeper = self.keeper.take()?;
        keeper.send((report, settled)).is_ok().then_some(on_settled)
    }

    pub(crate) fn has_reported(&self) -> bool {
        self.keeper.is_none()
    }

    /// Ready when a report would interest nobody any more.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.keeper
            .as_mut()
            .map_or(Poll::Ready(()), |keeper| keeper.poll_closed(cx))
    }
}

/// What the keeper needs to know of an answer whose head is out.
pub(super) struct Streamed {
    pub(super) head: RecordHead,
    pub(super) verdict: HeadVerdict,
    pub(super) retention: Duration,
    pub(super) declared_len: Option<u64>,
}

/// Starts the keeper, which owns the lease from here on.
pub(super) fn record<K: KeyStore>(lease: Lease<K>, streamed: Streamed) -> Recorder {
    let (keeper, reports) = oneshot::channel();
    let recorder = Recorder {
        keeper: Some(keeper),
        limit: lease.config.response_body_limit,
        declared_len: streamed.declared_len,
        span: Span::current(),
    };
    lease.progress.set_may_hold(false);
    recorder.span().spawn(keep(lease, streamed, reports));
    recorder
}

async fn keep<K: KeyStore>(
    lease: Lease<K>,
    streamed: Streamed,
    reports: oneshot::Receiver<(Report, Settled)>,
) {
    let concluded = async {
        let (report, settled) = match timeout(lease.hold_left(), reports).await {
            Ok(Ok((report, settled))) => (report, Some(settled)),
            // The body went where no task could drain it.
            Ok(Err(_)) => (Report::Lost, None),
            Err(_) => (Report::Omitted, None),
        };
        lease.settle(settlement(&lease, streamed, report)).await;
        if let Some(settled) = settled {
            // A client that has left does not wait.
            let _ = settled.send(());
        }
    };
    alongside(concluded, || lease.renew()).await;
}

fn settlement<K>(lease: &Lease<K>, streamed: Streamed, report: Report) -> Settlement {
    let Streamed {
        head,
        verdict,
        retention,
        declared_len,
    } = streamed;
    let on_failure = lease.config.on_failure;
    match report {
        Report::Whole { body, trailers } => {
            let at_end = || verdict.at_end(trailers.as_ref(), &*lease.config.record_when);
            let record = || {
                let body = [&body[..]].into_iter();
                (head.source().with_body(body, trailers.as_ref()), retention)
            };
            match catch_unwind(AssertUnwindSafe(at_end)) {
                Ok(verdict) => answered(verdict, on_failure, record),
                Err(_) => no_answer(on_failure),
            }
        }
        Report::Omitted => answered(verdict.verdict, on_failure, || {
            (head.source().omitted(declared_len), retention)
        }),
        Report::Broken => broke_off(verdict.verdict, on_failure),
        Report::Lost => no_answer(on_failure),
    }
}
