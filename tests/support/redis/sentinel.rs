//! Sentinels: each a private process, as the servers are that they watch.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use ::redis::sentinel::{SentinelClient, SentinelServerType};
use ::redis::{Cmd, FromRedisValue};

use super::{Patience, Process, RedisServer, WATCHED, free_port};

/// What sentinels call the primary.
const NAME: &str = "records";

/// After how many milliseconds of silence the first of the sentinels calls a fail-over, for
/// which it needs the votes of the others. Those find it out later: where all of them stand
/// for election at once, there may be no majority, and none tries again for seconds.
const DOWN_AFTER: [u32; 3] = [1000, 6000, 9000];

/// So that the first one needs nobody else to find the primary down.
const QUORUM: u32 = 1;

/// How long one step of a fail-over may take, in milliseconds; one that fails is tried again
/// after twice as long.
const FAILOVER_TIMEOUT: u32 = 3000;

/// What sentinels do every second or ten, they do more often here. But what is known of a
/// replica counts for five periods of pings, and a server that takes itself for a primary is
/// put right after four of publishing: in a fail-over, servers are looked at every second,
/// and both have to be longer. A sentinel that did not get the processor for two seconds
/// would do nothing for thirty.
const IN_A_HURRY: [(&str, u32); 6] = [
    ("INFO-PERIOD", 100),
    ("ASK-PERIOD", 100),
    ("PING-PERIOD", 500),
    ("PUBLISH-PERIOD", 500),
    ("TILT-TRIGGER", 60_000),
    ("TILT-PERIOD", 1000),
];

/// One sentinel, which watches one primary or none.
pub struct Sentinel(RedisServer);

impl Sentinel {
    /// It watches nobody yet.
    pub async fn start() -> Self {
        for _ in 0..20 {
            let sentinel = Self(RedisServer::new(free_port(), &[]));
            sentinel.spawn();
            if sentinel.0.until_ready().await.is_ok() {
                let mut hurry = ::redis::cmd("SENTINEL");
                hurry.arg("DEBUG").arg(&IN_A_HURRY[..]);
                sentinel.0.query::<()>(&hurry).await;
                return sentinel;
            }
        }
        panic!("every port is taken by somebody else");
    }

    fn spawn(&self) {
        let directory = self.0.directory();
        // It keeps what it learns in this file, and does not start without one.
        let settings = format!("bind 127.0.0.1\nport {}\n", self.0.port());
        fs::write(directory.join("settings"), settings).unwrap();
        let log = directory.join("log");
        let log = File::options().append(true).create(true).open(log).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", WATCHED, "sh"])
            .arg(directory)
            .args(["settings", "--sentinel"])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let watcher = child.stdin.take().unwrap();
        let before = self.0.process().replace(Process { child, watcher });
        assert!(before.is_none(), "it is running already");
    }

    pub fn server(&self) -> &RedisServer {
        &self.0
    }

    /// From here on it names this primary, whatever becomes of it.
    pub async fn name(&self, primary: &RedisServer) {
        self.watch(primary, 600_000).await;
    }

    /// From here on it names none.
    pub async fn forget(&self) {
        self.query::<()>(&subcommand("REMOVE")).await;
    }

    async fn watch(&self, primary: &RedisServer, down_after: u32) {
        let mut watch = subcommand("MONITOR");
        watch.arg("127.0.0.1").arg(primary.port()).arg(QUORUM);
        self.query::<()>(&watch).await;
        let mut patience = subcommand("SET");
        patience.arg("down-after-milliseconds").arg(down_after);
        patience.arg("failover-timeout").arg(FAILOVER_TIMEOUT);
        self.query::<()>(&patience).await;
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> T {
        self.0.query(command).await
    }

    /// Whether it can tell the servers and all other sentinels, and finds nothing wrong.
    async fn is_content(&self, primary: &RedisServer, replicas: usize, others: usize) -> bool {
        type Known = HashMap<String, String>;
        let master: Known = self.query(&subcommand("MASTER")).await;
        let followers: Vec<Known> = self.query(&subcommand("REPLICAS")).await;
        let sentinels: Vec<Known> = self.query(&subcommand("SENTINELS")).await;
        let port = primary.port().to_string();
        let follows = |it: &Known| {
            it["flags"] == "slave" && it["master-link-status"] == "ok" && it["master-port"] == port
        };
        master["flags"] == "master"
            && master["port"] == port
            && followers.len() == replicas
            && followers.iter().all(follows)
            && sentinels.len() == others
            && sentinels.iter().all(|it| it["flags"] == "sentinel")
    }
}

/// Three sentinels that watch a primary and its replicas.
pub struct Sentinels([Sentinel; 3]);

impl Sentinels {
    /// Returns when they know each other and all servers.
    pub async fn watching(primary: &RedisServer, replicas: usize) -> Self {
        let (first, second, third) =
            tokio::join!(Sentinel::start(), Sentinel::start(), Sentinel::start());
        let sentinels = Self([first, second, third]);
        for (sentinel, down_after) in sentinels.0.iter().zip(DOWN_AFTER) {
            sentinel.watch(primary, down_after).await;
        }
        sentinels.until_content_with(primary, replicas).await;
        sentinels
    }

    /// Returns when all of them agree that this is the primary, and that so many replicas
    /// follow it and are well.
    pub async fn until_content_with(&self, primary: &RedisServer, replicas: usize) {
        let patience = Patience::new();
        let others = self.0.len() - 1;
        for sentinel in &self.0 {
            while !sentinel.is_content(primary, replicas, others).await {
                patience.wait("the sentinels agree").await;
            }
        }
    }

    /// Has the replica take over from a primary that is well.
    pub async fn fail_over(&self) {
        self.0[0].query::<()>(&subcommand("FAILOVER")).await;
    }

    pub fn client(&self) -> SentinelClient {
        client_of(&self.0)
    }
}

/// Asks these for the primary.
pub fn client_of<'a>(sentinels: impl IntoIterator<Item = &'a Sentinel>) -> SentinelClient {
    let urls = sentinels.into_iter().map(|it| it.0.url()).collect();
    SentinelClient::build(urls, NAME.to_owned(), None, SentinelServerType::Master).unwrap()
}

fn subcommand(name: &str) -> Cmd {
    ::redis::cmd("SENTINEL").arg(name).arg(NAME).take()
}
