//! What a server is asked, as it tells by itself.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::redis::RedisServer;

/// Follows everything that a server executes, from its start on.
pub(crate) struct Monitor {
    lines: BufReader<TcpStream>,
    connection: MultiplexedConnection,
}

/// One command: its name in lower case, and what follows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Executed {
    /// Called by a script, and not sent by a client.
    pub(crate) by_script: bool,
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
}

impl Monitor {
    pub(crate) async fn start(server: &RedisServer) -> Self {
        let connection = server.multiplexed().await;
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(b"MONITOR\r\n").await.unwrap();
        let mut monitor = Self {
            lines: BufReader::new(stream),
            connection,
        };
        assert_eq!(monitor.line().await, "+OK");
        monitor
    }

    /// All that was executed since the start, or since this was last asked.
    pub(crate) async fn executed(&mut self) -> Vec<Executed> {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("mark-{}", MARKS.fetch_add(1, Ordering::Relaxed));
        let mut echo = redis::cmd("ECHO");
        let echoed: String = echo
            .arg(&mark)
            .query_async(&mut self.connection)
            .await
            .unwrap();
        assert_eq!(echoed, mark);
        let mut executed = Vec::new();
        loop {
            let next = Executed::read(&self.line().await);
            if next.name == "echo" && next.arguments == [mark.as_str()] {
                return executed;
            }
            executed.push(next);
        }
    }

    /// The names of what clients have sent.
    pub(crate) async fn sent(&mut self) -> Vec<String> {
        sent(&self.executed().await)
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        timeout(Duration::from_secs(10), read)
            .await
            .expect("the server is silent")
            .unwrap();
        line.trim_end().to_owned()
    }
}

pub(crate) fn sent(executed: &[Executed]) -> Vec<String> {
    let by_clients = executed.iter().filter(|command| !command.by_script);
    by_clients.map(|command| command.name.clone()).collect()
}

pub(crate) fn called(executed: &[Executed]) -> Vec<String> {
    let by_scripts = executed.iter().filter(|command| command.by_script);
    by_scripts.map(|command| command.name.clone()).collect()
}

impl Executed {
    /// Such as `+1700000000.123456 [0 lua] "GETRANGE" "key" "0" "80"`.
    fn read(line: &str) -> Self {
        let (origin, command) = line.split_once("] ").unwrap();
        let mut words = command[1..command.len() - 1].split("\" \"");
        Self {
            by_script: origin.ends_with(" lua"),
            name: words.next().unwrap().to_lowercase(),
            arguments: words.map(str::to_owned).collect(),
        }
    }
}
