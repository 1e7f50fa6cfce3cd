//! Calls that run against each other, and calls that are cut short.

use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::thread;

use tokio::runtime::Handle;

pub(super) type Call<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// In which order calls that run against each other begin.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    /// Each on a thread of its own. Two threads have to meet in a store that is done at the
    /// first poll, as one in memory is.
    AtOnce,
    /// One after the other, each until it waits for something. So a call that waits between
    /// its look and its write finds that others were faster.
    InTurn,
    /// The last one first.
    InReverse,
}

impl Start {
    pub(super) const ALL: [Self; 3] = [Self::AtOnce, Self::InTurn, Self::InReverse];
}

/// Runs calls against each other.
pub(super) async fn race<'a, T: Send + 'a>(
    start: Start,
    calls: impl IntoIterator<Item = Call<'a, T>>,
) -> Vec<T> {
    let calls: Vec<_> = calls.into_iter().collect();
    let mut begun = match start {
        Start::AtOnce => begin_at_once(calls),
        Start::InTurn => calls.into_iter().map(Begun::new).collect(),
        Start::InReverse => {
            let mut begun: Vec<_> = calls.into_iter().rev().map(Begun::new).collect();
            begun.reverse();
            begun
        }
    };
    poll_fn(|context| {
        let mut done = true;
        for call in &mut begun {
            done &= call.poll(context).is_ready();
        }
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    begun.into_iter().filter_map(Begun::output).collect()
}

/// [`race`] of two calls that answer different things.
pub(super) async fn race_two<'a, A, B>(start: Start, one: Call<'a, A>, other: Call<'a, B>) -> (A, B)
where
    A: Send + 'a,
    B: Send + 'a,
{
    let (mut a, mut b) = (None, None);
    let calls: [Call<'_, ()>; 2] = [
        Box::pin(async { a = Some(one.await) }),
        Box::pin(async { b = Some(other.await) }),
    ];
    race(start, calls).await;
    match (a, b) {
        (Some(a), Some(b)) => (a, b),
        _ => unreachable!("a race is over when each of its calls is"),
    }
}

/// A call that has been polled at least once.
enum Begun<'a, T> {
    Pending(Call<'a, T>),
    Done(T),
}

impl<'a, T> Begun<'a, T> {
    /// The waker does nothing, which is enough: whoever is still pending is polled again
    /// with a true one.
    fn new(call: Call<'a, T>) -> Self {
        let mut begun = Self::Pending(call);
        let _ = begun.poll(&mut Context::from_waker(Waker::noop()));
        begun
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Self::Pending(call) = self {
            match call.as_mut().poll(context) {
                Poll::Ready(output) => *self = Self::Done(output),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    fn output(self) -> Option<T> {
        match self {
            Self::Done(output) => Some(output),
            Self::Pending(_) => None,
        }
    }
}

fn begin_at_once<'a, T: Send + 'a>(calls: Vec<Call<'a, T>>) -> Vec<Begun<'a, T>> {
    // Clients of servers look for the runtime when they are polled.
    let runtime = Handle::current();
    let start = Barrier::new(calls.len());
    thread::scope(|threads| {
        let begin = |call| {
            let (runtime, start) = (&runtime, &start);
            threads.spawn(move || {
                let _entered = runtime.enter();
                start.wait();
                Begun::new(call)
            })
        };
        let threads: Vec<_> = calls.into_iter().map(begin).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// Drops a call after that many polls. `None` when it was not done by then.
pub(super) async fn cut_short<T>(call: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match call.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
