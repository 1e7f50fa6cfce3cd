//! Calls to a store that is not in the process, on paused time.

use std::cell::Cell;
use std::sync::mpsc;

use tokio::runtime::{Handle, RuntimeFlavor};

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

pub fn is_asked() -> bool {
    ASKED.get() > 0
}

/// Makes a call in a task of its own, which comes to its end while nobody polls the caller:
/// on the wire a call cannot be taken back. No paused time passes meanwhile.
pub async fn ask<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> T {
    let asking = Asking::begin();
    let answer = tokio::spawn(async move {
        let _asking = asking;
        call.await
    });
    answer.await.unwrap()
}

/// While it is kept, paused time stands still: tokio takes a runtime that waits for a socket
/// for an idle one, and would jump to the next timer, but never while a blocking task runs.
struct Asking(Option<mpsc::Sender<()>>);

impl Asking {
    fn begin() -> Self {
        let runtime = Handle::current();
        if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
            return Self(None);
        }
        let (asking, answered) = mpsc::channel();
        runtime.spawn_blocking(move || {
            // Returns when the other end is dropped.
            let _ = answered.recv();
        });
        ASKED.set(ASKED.get() + 1);
        Self(Some(asking))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.0.is_some() {
            ASKED.set(ASKED.get() - 1);
        }
    }
}
