//! A TCP proxy between a client and a server, which makes the network fail when it is told to.
//! It knows no protocol: a request is what the client sends in one go, a reply what the
//! server sends back in one go.

mod connection;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use connection::Connection;

/// What the network does to every connection, those it already carries and new ones.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Pass,
    Delay(Duration),
    Hold,
    CutOff,
    Refuse,
}

impl Mode {
    fn delivers(self) -> bool {
        !matches!(self, Self::Hold | Self::CutOff)
    }
}

/// What happens to one request or to its reply. In every case the server is left to finish
/// what it has got: only the client sees a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// The request is not forwarded, and the client's connection reset: never applied.
    CutRequest,
    /// The request is forwarded, its reply swallowed, and the client's connection reset:
    /// applied, and the client cannot know.
    DropReply,
    /// The same, but the connection stays open, and nothing passes on it any more in either
    /// direction, until the client gives up. A later request on it is never applied.
    DropReplySilently,
    /// The request is forwarded, and so are that many bytes of its reply; then the client's
    /// connection is reset.
    CutInMidReply(usize),
}

struct Aim {
    strike: Strike,
    /// Only a request with these bytes in it is hit.
    only: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Network {
    target: SocketAddr,
    mode: Mode,
    /// How often all connections were cut.
    cuts: usize,
}

#[derive(Default)]
struct Shared {
    aims: Mutex<VecDeque<Aim>>,
    accepted: AtomicUsize,
    ended: AtomicUsize,
    refused: AtomicUsize,
    cut: AtomicUsize,
    cut_requests: AtomicUsize,
    dropped_replies: AtomicUsize,
    cut_replies: AtomicUsize,
    held_requests: AtomicUsize,
    delayed_replies: AtomicUsize,
    swallowed_bytes: AtomicUsize,
}

/// Dropped, it resets all its connections and listens no more.
pub struct Proxy {
    addr: SocketAddr,
    network: watch::Sender<Network>,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Passes everything on to `target`, which need not be there yet.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let network = watch::Sender::new(Network {
            target,
            mode: Mode::Pass,
            cuts: 0,
        });
        let shared = Arc::new(Shared::default());
        tokio::spawn(accept(listener, network.subscribe(), shared.clone()));
        Self {
            addr,
            network,
            shared,
        }
    }

    /// Where the client connects.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// New connections go there, as after a fail-over; `cut` ends the old ones.
    pub fn retarget(&self, target: SocketAddr) {
        self.network.send_modify(|network| network.target = target);
    }

    /// Ends every other mode. What `hold` has kept is delivered; a connection that has lost
    /// bytes to `cut_off` is reset, since its stream has a hole.
    pub fn pass(&self) {
        self.switch(Mode::Pass);
    }

    /// Every reply comes so much later, in order.
    pub fn delay_replies(&self, by: Duration) {
        self.switch(Mode::Delay(by));
    }

    /// A stalled network: new connections seem to be made, and all bytes are kept, in both
    /// directions, and delivered on `pass`, even if the client has given up by then.
    pub fn hold(&self) {
        self.switch(Mode::Hold);
    }

    /// A black hole: new connections seem to be made, and all bytes are lost, in both
    /// directions.
    pub fn cut_off(&self) {
        self.switch(Mode::CutOff);
    }

    /// New connections are reset at once. Those that are there go on: see `cut`.
    pub fn refuse(&self) {
        self.switch(Mode::Refuse);
    }

    /// A server that is down: resets every connection, and each new one.
    pub fn down(&self) {
        self.refuse();
        self.cut();
    }

    /// Resets every connection, whatever it has in flight. New ones are made as before.
    pub fn cut(&self) {
        self.network.send_modify(|network| network.cuts += 1);
    }

    fn switch(&self, mode: Mode) {
        self.network.send_modify(|network| network.mode = mode);
    }

    /// Hits the next request, on whichever connection it comes. Connect before: the greeting
    /// of a new connection is a request too. Several calls hit several requests.
    ///
    /// On a connection with requests in flight, the next reply may be that of an earlier one:
    /// aim at a connection that is idle.
    pub fn strike(&self, strike: Strike) {
        self.strike_only("", strike);
    }

    /// Hits the next request that has these bytes in it, such as the name of a command.
    pub fn strike_only(&self, bytes: impl AsRef<[u8]>, strike: Strike) {
        let only = bytes.as_ref().to_vec();
        let aim = Aim { strike, only };
        self.shared.aims.lock().unwrap().push_back(aim);
    }

    /// [`Strike::DropReply`] on the next request.
    pub fn drop_next_reply(&self) {
        self.strike(Strike::DropReply);
    }

    /// [`Strike::DropReplySilently`] on the next request.
    pub fn drop_next_reply_silently(&self) {
        self.strike(Strike::DropReplySilently);
    }

    /// [`Strike::CutRequest`] on the next request.
    pub fn cut_next_request(&self) {
        self.strike(Strike::CutRequest);
    }

    /// [`Strike::CutInMidReply`] on the next request.
    pub fn cut_in_mid_reply(&self, after: usize) {
        self.strike(Strike::CutInMidReply(after));
    }

    /// Strikes that no request has met yet.
    pub fn pending_strikes(&self) -> usize {
        self.shared.aims.lock().unwrap().len()
    }

    /// Connections made so far, without those refused.
    pub fn connections(&self) -> usize {
        self.shared.accepted.get()
    }

    pub fn open_connections(&self) -> usize {
        self.shared.accepted.get() - self.shared.ended.get()
    }

    pub fn refused_connections(&self) -> usize {
        self.shared.refused.get()
    }

    /// Connections that the proxy has reset, by whatever fault.
    pub fn cut_connections(&self) -> usize {
        self.shared.cut.get()
    }

    /// Requests that were never forwarded.
    pub fn cut_requests(&self) -> usize {
        self.shared.cut_requests.get()
    }

    /// Replies swallowed, each after its request was forwarded.
    pub fn dropped_replies(&self) -> usize {
        self.shared.dropped_replies.get()
    }

    /// Replies of which the client got a part.
    pub fn cut_replies(&self) -> usize {
        self.shared.cut_replies.get()
    }

    /// Requests that came while `hold` was on.
    pub fn held_requests(&self) -> usize {
        self.shared.held_requests.get()
    }

    pub fn delayed_replies(&self) -> usize {
        self.shared.delayed_replies.get()
    }

    /// Bytes lost to `cut_off`, or after a silent drop, in both directions.
    pub fn swallowed_bytes(&self) -> usize {
        self.shared.swallowed_bytes.get()
    }
}

impl Shared {
    /// The strike that this request meets.
    fn take_strike(&self, request: &[u8]) -> Option<Strike> {
        let mut aims = self.aims.lock().unwrap();
        let at = aims.iter().position(|aim| {
            let len = aim.only.len();
            len == 0 || request.windows(len).any(|bytes| bytes == aim.only)
        })?;
        aims.remove(at).map(|aim| aim.strike)
    }
}

trait Counter {
    fn add(&self, count: usize);
    fn get(&self) -> usize;
}

impl Counter for AtomicUsize {
    fn add(&self, count: usize) {
        self.fetch_add(count, Ordering::SeqCst);
    }

    fn get(&self) -> usize {
        self.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, mut network: watch::Receiver<Network>, shared: Arc<Shared>) {
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            dropped = network.wait_for(|_| false) => {
                assert!(dropped.is_err());
                return;
            }
        };
        if network.borrow().mode == Mode::Refuse {
            client.set_zero_linger().unwrap();
            shared.refused.add(1);
            continue;
        }
        shared.accepted.add(1);
        let connection = Connection::new(client, network.clone(), shared.clone());
        tokio::spawn(connection.run());
    }
}
