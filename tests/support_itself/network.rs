//! The proxy, before a server that is shared by these tests.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use redis::RedisError;
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::gates::until;
use super::support::proxy::{Proxy, Strike};
use super::support::redis::{
    RedisServer, manager_at, manager_config, multiplexed_at, shared, unique_prefix,
};
use super::{increment, read};

/// A connection through a proxy, one past it, and a counter.
struct Line {
    proxy: Proxy,
    through: MultiplexedConnection,
    past: MultiplexedConnection,
    key: String,
}

impl Line {
    async fn new() -> Self {
        let server = shared().await;
        let proxy = Proxy::start(server.addr()).await;
        Self {
            through: multiplexed_at(proxy.addr()).await,
            past: server.multiplexed().await,
            key: unique_prefix(),
            proxy,
        }
    }

    async fn increment(&mut self) -> Result<u64, RedisError> {
        increment(&mut self.through, &self.key).await
    }

    /// What the server has, whatever the network does.
    async fn value(&mut self) -> Option<u64> {
        read(&mut self.past, &self.key).await
    }

    async fn until_value(&mut self, value: u64) {
        let reached = async {
            while self.value().await != Some(value) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(20), reached).await.unwrap();
    }

    async fn reconnect(&mut self) {
        self.through = multiplexed_at(self.proxy.addr()).await;
    }
}

fn is_broken(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_timeout()
}

const SILENCE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn everything_passes_until_something_is_asked_for() {
    let mut line = Line::new().await;
    for number in 1..=50 {
        assert_eq!(line.increment().await.unwrap(), number);
    }
    let value = vec![b'v'; 3 << 20];
    let mut set = redis::cmd("SET");
    set.arg(&line.key).arg(&value).arg("EX").arg(60);
    set.query_async::<()>(&mut line.through).await.unwrap();
    let get = redis::cmd("GET").arg(&line.key).take();
    let got: Vec<u8> = get.query_async(&mut line.through).await.unwrap();
    assert!(got == value);
    assert_eq!(line.proxy.cut_connections(), 0);
    assert_eq!(line.proxy.connections(), 1);
}

#[tokio::test]
async fn a_dropped_reply_is_that_of_a_command_which_was_applied() {
    let mut line = Line::new().await;
    line.increment().await.unwrap();
    line.proxy.drop_next_reply();
    assert_eq!(line.proxy.pending_strikes(), 1);
    let error = line.increment().await.unwrap_err();
    assert!(is_broken(&error), "{error:?}");
    assert_eq!(line.value().await, Some(2));
    assert_eq!(line.proxy.dropped_replies(), 1);
    assert_eq!(line.proxy.cut_connections(), 1);
    assert_eq!(line.proxy.pending_strikes(), 0);
    line.reconnect().await;
    assert_eq!(line.increment().await.unwrap(), 3);
}

#[tokio::test]
async fn a_reply_dropped_silently_leaves_the_client_waiting() {
    let mut line = Line::new().await;
    line.proxy.drop_next_reply_silently();
    line.through.set_response_timeout(SILENCE);
    assert!(line.increment().await.unwrap_err().is_timeout());
    assert_eq!(line.value().await, Some(1));
    assert!(line.increment().await.unwrap_err().is_timeout());
    assert_eq!(line.value().await, Some(1), "nothing passes any more");
    assert_eq!(line.proxy.dropped_replies(), 1);
    assert_eq!(line.proxy.cut_connections(), 0);
    line.reconnect().await;
    assert_eq!(line.increment().await.unwrap(), 2);
    until("the silent one has ended", || {
        line.proxy.open_connections() == 1
    })
    .await;
}

#[tokio::test]
async fn a_cut_request_is_never_applied() {
    let mut line = Line::new().await;
    line.proxy.cut_next_request();
    let error = line.increment().await.unwrap_err();
    assert!(is_broken(&error), "{error:?}");
    assert_eq!(line.value().await, None);
    assert_eq!(line.proxy.cut_requests(), 1);
    assert_eq!(line.proxy.cut_connections(), 1);
    line.reconnect().await;
    assert_eq!(line.increment().await.unwrap(), 1);
}

#[tokio::test]
async fn a_reply_that_is_cut_ends_after_so_many_bytes() {
    let line = Line::new().await;
    let mut stream = TcpStream::connect(line.proxy.addr()).await.unwrap();
    line.proxy.cut_in_mid_reply(7);
    stream.write_all(b"ECHO 0123456789\r\n").await.unwrap();
    let mut got = Vec::new();
    let error = stream.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(got, b"$10\r\n01");
    assert_eq!(line.proxy.cut_replies(), 1);
    assert_eq!(line.proxy.cut_connections(), 1);
}

#[tokio::test]
async fn a_long_reply_can_be_cut_far_behind_its_first_packet() {
    let mut line = Line::new().await;
    let mut set = redis::cmd("SET");
    set.arg(&line.key)
        .arg(vec![b'v'; 3 << 20])
        .arg("EX")
        .arg(60);
    set.query_async::<()>(&mut line.through).await.unwrap();
    line.proxy.cut_in_mid_reply(2 << 20);
    let cut: Result<Vec<u8>, _> = super::get(&line.key).query_async(&mut line.through).await;
    assert!(cut.is_err());
    assert_eq!(line.proxy.cut_replies(), 1);
}

#[tokio::test]
async fn a_strike_hits_only_the_command_it_is_meant_for() {
    let mut line = Line::new().await;
    line.proxy.strike_only("GET", Strike::DropReply);
    line.proxy.strike_only("INCRBY", Strike::CutRequest);
    assert_eq!(line.increment().await.unwrap(), 1);
    let add = redis::cmd("INCRBY").arg(&line.key).arg(10).take();
    assert!(add.query_async::<u64>(&mut line.through).await.is_err());
    line.reconnect().await;
    let get = super::get(&line.key);
    assert!(get.query_async::<u64>(&mut line.through).await.is_err());
    assert_eq!(line.value().await, Some(1));
    assert_eq!(line.proxy.cut_requests(), 1);
    assert_eq!(line.proxy.dropped_replies(), 1);
}

#[tokio::test]
async fn held_bytes_arrive_later_in_both_directions() {
    let mut line = Line::new().await;
    line.proxy.hold();
    let (mut through, key) = (line.through.clone(), line.key.clone());
    let asked = tokio::spawn(async move { increment(&mut through, &key).await });
    until("the request is held", || line.proxy.held_requests() == 1).await;
    assert_eq!(line.value().await, None);
    line.proxy.pass();
    assert_eq!(asked.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_request_that_its_client_gave_up_on_may_still_arrive() {
    let mut line = Line::new().await;
    line.proxy.hold();
    let mut new = TcpStream::connect(line.proxy.addr()).await.unwrap();
    new.write_all(format!("INCR {}\r\n", line.key).as_bytes())
        .await
        .unwrap();
    until("the request is held", || line.proxy.held_requests() == 1).await;
    drop(new);
    assert_eq!(line.value().await, None);
    line.proxy.pass();
    line.until_value(1).await;
    assert_eq!(line.proxy.cut_connections(), 0);
}

#[tokio::test]
async fn what_falls_into_the_black_hole_is_lost_and_its_connection_with_it() {
    let mut line = Line::new().await;
    let mut untouched = multiplexed_at(line.proxy.addr()).await;
    line.proxy.cut_off();
    line.through.set_response_timeout(SILENCE);
    assert!(line.increment().await.unwrap_err().is_timeout());
    assert!(line.proxy.swallowed_bytes() > 0);
    let mut new = TcpStream::connect(line.proxy.addr()).await.unwrap();
    new.write_all(b"PING\r\n").await.unwrap();
    let silent = timeout(SILENCE, new.read_u8()).await;
    assert!(silent.is_err());

    line.proxy.pass();
    let reset = new.read_u8().await.unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    assert!(is_broken(&line.increment().await.unwrap_err()));
    assert_eq!(line.proxy.cut_connections(), 2);
    assert_eq!(line.value().await, None);
    assert_eq!(increment(&mut untouched, &line.key).await.unwrap(), 1);
}

#[tokio::test]
async fn delayed_replies_come_late_and_in_order() {
    let mut line = Line::new().await;
    line.proxy.delay_replies(SILENCE);
    let started = Instant::now();
    let asked: Vec<_> = (0..10)
        .map(|_| {
            let (mut through, key) = (line.through.clone(), line.key.clone());
            tokio::spawn(async move { increment(&mut through, &key).await.unwrap() })
        })
        .collect();
    line.until_value(10).await;
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.unwrap());
    }
    assert!(started.elapsed() >= SILENCE);
    assert_eq!(answers, Vec::from_iter(1..=10));
    assert!(line.proxy.delayed_replies() >= 1);
}

#[tokio::test]
async fn a_server_that_is_down_resets_all_and_a_manager_finds_it_again() {
    let mut line = Line::new().await;
    let mut manager = manager_at(line.proxy.addr(), manager_config()).await;
    increment(&mut manager, &line.key).await.unwrap();
    line.proxy.down();
    assert!(is_broken(&line.increment().await.unwrap_err()));
    assert!(increment(&mut manager, &line.key).await.is_err());
    assert_eq!(line.proxy.cut_connections(), 2);
    assert!(increment(&mut manager, &line.key).await.is_err());
    assert!(line.proxy.refused_connections() > 0);
    assert_eq!(line.value().await, Some(1));
    line.proxy.pass();
    let again = async { while increment(&mut manager, &line.key).await.is_err() {} };
    timeout(Duration::from_secs(20), again).await.unwrap();
    assert_eq!(line.value().await, Some(2));
}

#[tokio::test]
async fn a_new_target_takes_the_connections_that_come_after() {
    let mut line = Line::new().await;
    let other = RedisServer::start().await;
    line.proxy.retarget(other.addr());
    assert_eq!(line.increment().await.unwrap(), 1);
    line.proxy.cut();
    assert!(is_broken(&line.increment().await.unwrap_err()));
    line.reconnect().await;
    line.increment().await.unwrap();
    assert_eq!(line.increment().await.unwrap(), 2);
    assert_eq!(line.value().await, Some(1));
}

#[tokio::test]
async fn a_killed_server_is_seen_through_the_proxy_and_so_is_the_end_of_the_proxy() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.addr()).await;
    let mut connection = multiplexed_at(proxy.addr()).await;
    server.kill();
    assert!(is_broken(
        &increment(&mut connection, "n").await.unwrap_err()
    ));
    server.restart().await;
    let mut connection = multiplexed_at(proxy.addr()).await;
    assert_eq!(increment(&mut connection, "n").await.unwrap(), 1);
    assert_eq!(proxy.cut_connections(), 0);
    let addr = proxy.addr();
    drop(proxy);
    assert!(is_broken(
        &increment(&mut connection, "n").await.unwrap_err()
    ));
    until("nobody listens", || {
        std::net::TcpStream::connect(addr).is_err()
    })
    .await;
}
