//! One connection through the proxy: a single task, so that all that happens on it has an
//! order.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Counter, Mode, Network, Shared, Strike};

pub(super) struct Connection {
    from_client: OwnedReadHalf,
    to_client: OwnedWriteHalf,
    replies: VecDeque<Step>,
    client_sends: bool,
    /// Made once the network delivers.
    from_server: Option<OwnedReadHalf>,
    to_server: Option<OwnedWriteHalf>,
    requests: VecDeque<Step>,
    server_sends: bool,
    /// It has met its strike; one is all that a connection lives to see.
    struck: bool,
    /// What becomes of the next reply.
    strike: Option<Strike>,
    /// Whatever comes is swallowed.
    dead: bool,
    client_is_gone: bool,
    server_is_gone: bool,
    /// Its stream has a hole, so that it cannot go on when the network is whole again.
    torn: bool,
    cuts: usize,
    network: watch::Receiver<Network>,
    shared: Arc<Shared>,
}

/// What waits to be passed on.
struct Step {
    due: Option<Instant>,
    kind: Kind,
}

enum Kind {
    Bytes(Bytes),
    Strike(Strike),
    Close,
    Reset(End),
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Both sides have closed.
    Closed,
    /// The server has gone in the middle of it.
    Broken,
    /// By the proxy.
    Cut,
}

enum Passed {
    Something,
    Strike(Strike),
    End(End),
}

impl Connection {
    pub(super) fn new(
        client: TcpStream,
        network: watch::Receiver<Network>,
        shared: Arc<Shared>,
    ) -> Self {
        client.set_nodelay(true).unwrap();
        let (from_client, to_client) = client.into_split();
        let cuts = network.borrow().cuts;
        Self {
            from_client,
            to_client,
            replies: VecDeque::new(),
            client_sends: true,
            from_server: None,
            to_server: None,
            requests: VecDeque::new(),
            server_sends: true,
            struck: false,
            strike: None,
            dead: false,
            client_is_gone: false,
            server_is_gone: false,
            torn: false,
            cuts,
            network,
            shared,
        }
    }

    pub(super) async fn run(mut self) {
        let end = self.carry().await;
        if end == End::Cut {
            self.shared.cut.add(1);
        }
        if end != End::Closed {
            let _ = self.to_client.as_ref().set_zero_linger();
            // Else it would first say that it has nothing more to send.
            self.to_client.forget();
        }
        self.shared.ended.add(1);
    }

    async fn carry(&mut self) -> End {
        let mut request = BytesMut::new();
        let mut reply = BytesMut::new();
        loop {
            let network = *self.network.borrow_and_update();
            let delivers = network.mode.delivers();
            if network.cuts != self.cuts || (delivers && self.torn) {
                return End::Cut;
            }
            if delivers && self.to_server.is_none() && self.server_sends {
                let Ok(server) = TcpStream::connect(network.target).await else {
                    return End::Broken;
                };
                server.set_nodelay(true).unwrap();
                let (from_server, to_server) = server.into_split();
                self.from_server = Some(from_server);
                self.to_server = Some(to_server);
            }
            let client_is_done = !self.client_sends && self.requests.is_empty();
            let server_is_done = !self.server_sends && self.replies.is_empty();
            if client_is_done && (server_is_done || self.client_is_gone || self.dead) {
                return End::Closed;
            }
            // A request or a reply is to come in one piece, if the network lets it.
            request.reserve(1 << 16);
            reply.reserve(1 << 16);
            // In this order, so that a mode holds for all that comes after it was set.
            tokio::select! {
                biased;
                changed = self.network.changed() => if changed.is_err() {
                    return End::Cut;
                },
                passed = pass(&mut self.replies, Some(&mut self.to_client)), if delivers => {
                    match passed {
                        Ok(Passed::End(end)) => return end,
                        Ok(_) => {}
                        // What it has sent is still delivered.
                        Err(_) => {
                            self.client_is_gone = true;
                            self.replies.clear();
                        }
                    }
                }
                passed = pass(&mut self.requests, self.to_server.as_mut()), if delivers => {
                    match passed {
                        Ok(Passed::Strike(strike)) => self.strike = Some(strike),
                        Ok(_) => {}
                        // What it has sent is still delivered.
                        Err(_) => {
                            self.server_is_gone = true;
                            self.requests.clear();
                            if !self.server_sends {
                                self.reply(Kind::Reset(End::Broken));
                            }
                        }
                    }
                }
                read = self.from_client.read_buf(&mut request), if self.client_sends => {
                    match read {
                        Ok(1..) => if self.take_request(network.mode, request.split().freeze()) {
                            return End::Cut;
                        },
                        _ => self.client_ends(network.mode),
                    }
                }
                read = read(self.from_server.as_mut(), &mut reply), if self.server_sends => {
                    match read {
                        Ok(1..) => self.take_reply(network.mode, reply.split().freeze()),
                        Ok(0) => self.server_ends(network.mode, Kind::Close),
                        Err(_) => self.server_ends(network.mode, Kind::Reset(End::Broken)),
                    }
                }
            }
        }
    }

    /// Whether the connection is to be cut.
    fn take_request(&mut self, mode: Mode, bytes: Bytes) -> bool {
        if self.swallows(mode, bytes.len()) {
            return false;
        }
        if !self.struck
            && let Some(strike) = self.shared.take_strike(&bytes)
        {
            self.struck = true;
            if strike == Strike::CutRequest {
                self.shared.cut_requests.add(1);
                return true;
            }
            self.requests.push_back(Kind::Strike(strike).now());
        }
        if mode == Mode::Hold {
            self.shared.held_requests.add(1);
        }
        if !self.server_is_gone {
            self.requests.push_back(Kind::Bytes(bytes).now());
        }
        false
    }

    fn take_reply(&mut self, mode: Mode, mut bytes: Bytes) {
        if self.swallows(mode, bytes.len()) || self.client_is_gone {
            return;
        }
        let mut due = None;
        if let Mode::Delay(by) = mode {
            self.shared.delayed_replies.add(1);
            due = Some(Instant::now() + by);
        }
        let mut then = None;
        match &mut self.strike {
            None | Some(Strike::CutRequest) => {}
            Some(Strike::CutInMidReply(left)) if bytes.len() < *left => *left -= bytes.len(),
            Some(Strike::CutInMidReply(left)) => {
                self.shared.cut_replies.add(1);
                self.dead = true;
                bytes.truncate(*left);
                then = Some(Kind::Reset(End::Cut));
            }
            Some(strike) => {
                self.shared.dropped_replies.add(1);
                self.dead = true;
                bytes.clear();
                then = (*strike == Strike::DropReply).then_some(Kind::Reset(End::Cut));
            }
        }
        let bytes = (!bytes.is_empty()).then_some(Kind::Bytes(bytes));
        let steps = bytes.into_iter().chain(then);
        self.replies.extend(steps.map(|kind| Step { due, kind }));
    }

    fn client_ends(&mut self, mode: Mode) {
        self.client_sends = false;
        if !self.swallows(mode, 0) {
            self.requests.push_back(Kind::Close.now());
        }
    }

    fn server_ends(&mut self, mode: Mode, how: Kind) {
        self.server_sends = false;
        if !self.swallows(mode, 0) {
            self.reply(how);
        }
    }

    /// After all replies that are on their way.
    fn reply(&mut self, kind: Kind) {
        let due = self.replies.back().and_then(|last| last.due);
        self.replies.push_back(Step { due, kind });
    }

    fn swallows(&mut self, mode: Mode, bytes: usize) -> bool {
        self.torn |= mode == Mode::CutOff;
        let swallows = self.torn || self.dead;
        if swallows {
            self.shared.swallowed_bytes.add(bytes);
        }
        swallows
    }
}

impl Kind {
    fn now(self) -> Step {
        let (due, kind) = (None, self);
        Step { due, kind }
    }
}

/// Passes on a part of the first step. May be dropped at any time without a loss.
async fn pass(steps: &mut VecDeque<Step>, to: Option<&mut OwnedWriteHalf>) -> io::Result<Passed> {
    let (Some(Step { due, kind }), Some(to)) = (steps.front_mut(), to) else {
        return pending().await;
    };
    if let Some(due) = due {
        sleep_until(*due).await;
    }
    let passed = match kind {
        Kind::Bytes(bytes) => {
            to.write_buf(bytes).await?;
            if !bytes.is_empty() {
                return Ok(Passed::Something);
            }
            Passed::Something
        }
        Kind::Strike(strike) => Passed::Strike(*strike),
        Kind::Close => {
            to.shutdown().await?;
            Passed::Something
        }
        Kind::Reset(end) => Passed::End(*end),
    };
    steps.pop_front();
    Ok(passed)
}

async fn read(from: Option<&mut OwnedReadHalf>, bytes: &mut BytesMut) -> io::Result<usize> {
    match from {
        Some(from) => from.read_buf(bytes).await,
        None => pending().await,
    }
}
