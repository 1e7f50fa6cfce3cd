//! Real Redis servers: each a private process with a port and a directory of its own, which
//! never outlives the test.
//!
//! Everything that waits for a server is async, so that the tasks of a test go on meanwhile.

mod clients;
mod cluster;
pub mod sentinel;

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::{ConnectionManager, MultiplexedConnection};
use ::redis::{Cmd, FromRedisValue, RedisResult};
use tokio::sync::OnceCell;

use clients::{connect, field, number, ping, url};

// Not every test program uses all of them.
#[allow(unused_imports)]
pub use clients::{
    client_at, command_stats, error_stats, manager_at, manager_config, multiplexed_at, reset_stats,
};
#[allow(unused_imports)]
pub use cluster::{RedisCluster, shared_cluster};

/// Below the ports that systems give to outgoing connections, so that nobody takes a port
/// between a kill and a restart. The bus of a cluster node listens 10000 above.
const PORTS: std::ops::Range<u16> = 12_000..22_000;

const DEFAULTS: [&str; 12] = [
    "--bind",
    "127.0.0.1",
    "--save",
    "",
    "--appendonly",
    "no",
    "--daemonize",
    "no",
    "--enable-debug-command",
    "yes",
    "--repl-diskless-sync-delay",
    "0",
];

/// Becomes the server, and leaves a watcher behind which holds the other end of a pipe. When
/// the pipe closes without a line, the test is gone, killed or ended without destructors, and
/// the watcher ends the server and removes its directory. `$$` stays the server's process id.
const WATCHED: &str = r#"
exec 3<&0
directory=$1
shift
( read -r line <&3 || { kill -9 $$; rm -rf -- "$directory"; } ) &
exec redis-server "$@" </dev/null 3<&-
"#;

/// A server process. Dropped, it is gone at once, and its directory with it.
pub struct RedisServer {
    port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
    process: Mutex<Option<Process>>,
}

struct Process {
    child: Child,
    watcher: ChildStdin,
}

struct PortTaken;

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments, such as `["--appendonly", "yes"]`; they win over the defaults.
    pub async fn start_with(arguments: &[&str]) -> Self {
        for _ in 0..20 {
            let server = Self::new(free_port(), arguments);
            server.spawn();
            if server.until_ready().await.is_ok() {
                return server;
            }
        }
        panic!("every port is taken by somebody else");
    }

    /// A replica that has all the primary had when this was called.
    pub async fn start_replica_of(primary: &Self) -> Self {
        let port = primary.port.to_string();
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &port]).await;
        replica.until_in_sync_with(primary).await;
        replica
    }

    fn new(port: u16, arguments: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(format!("redis-test-{}", unique()));
        fs::create_dir(&directory).unwrap();
        let given = arguments.iter().copied();
        Self {
            port,
            directory,
            arguments: DEFAULTS.into_iter().chain(given).map(Into::into).collect(),
            process: Mutex::new(None),
        }
    }

    fn spawn(&self) {
        let log = self.directory.join("log");
        let log = File::options().append(true).create(true).open(log).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", WATCHED, "sh"])
            .arg(&self.directory)
            .args(["--port", &self.port.to_string()])
            .args(&self.arguments)
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // An interrupt from the keyboard reaches the test alone; the watcher does the rest.
            .process_group(0)
            .spawn()
            .unwrap();
        let watcher = child.stdin.take().unwrap();
        let before = self.process().replace(Process { child, watcher });
        assert!(before.is_none(), "it is running already");
    }

    async fn until_ready(&self) -> Result<(), PortTaken> {
        let patience = Patience::new();
        while !self.answers().await.unwrap_or(false) {
            let ended = self.with_child(|child| child.try_wait().unwrap());
            let log = || fs::read_to_string(self.directory.join("log")).unwrap();
            if let Some(status) = ended {
                assert_ne!(
                    status.code(),
                    Some(127),
                    "redis-server is not installed: apt-get install -y redis-server"
                );
                if log().contains("Address already in use") {
                    return Err(PortTaken);
                }
                panic!("redis-server does not start, {status}:\n{}", log());
            }
            patience.wait(&format!("it is ready:\n{}", log())).await;
        }
        Ok(())
    }

    /// Whether this very process answers, and not another one that has got the port.
    async fn answers(&self) -> RedisResult<bool> {
        let mut connection = connect(self.addr()).await?;
        let pong = ping(&mut connection).await?;
        let info = ::redis::cmd("INFO").arg("server").take();
        let info: String = info.query_async(&mut connection).await?;
        Ok(pong == "PONG" && field(&info, "process_id") == Some(&self.process_id().to_string()))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn url(&self) -> String {
        url(self.addr())
    }

    pub fn process_id(&self) -> u32 {
        self.with_child(|child| child.id())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// SIGKILL. When this returns, the process is gone.
    pub fn kill(&self) {
        let mut process = self.process().take().expect("it is not running");
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        // Told only now, so that there is no moment in which nobody would end the server.
        let _ = process.watcher.write_all(b"done\n");
    }

    /// Starts it again, after a kill if it still runs, with the same port, directory and
    /// arguments; returns when it has loaded its data and answers.
    pub async fn restart(&self) {
        if self.is_running() {
            self.kill();
        }
        self.spawn();
        let ready = self.until_ready().await;
        assert!(ready.is_ok(), "somebody else has taken port {}", self.port);
    }

    pub fn is_running(&self) -> bool {
        self.process().is_some()
    }

    /// SIGSTOP: the server keeps its connections and answers nothing until `cont`.
    pub async fn stop(&self) {
        self.signal("STOP");
        // Where the system tells, wait until every thread has stopped.
        let stat = format!("/proc/{}/stat", self.process_id());
        let patience = Patience::new();
        while let Ok(stat) = fs::read_to_string(&stat) {
            let (_, state) = stat.rsplit_once(") ").unwrap();
            if state.starts_with('T') {
                break;
            }
            patience.wait("it stops").await;
        }
    }

    /// SIGCONT.
    pub fn cont(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let process = self.process_id().to_string();
        let sent = Command::new("kill").args(["-s", name, &process]).status();
        assert!(sent.unwrap().success());
    }

    /// Makes a replica a primary; the old one is not told. A restart makes it a replica again.
    pub async fn promote(&self) {
        let command = ::redis::cmd("REPLICAOF").arg("NO").arg("ONE").take();
        self.query::<()>(&command).await;
    }

    /// Returns when this replica has everything that the primary has written so far.
    pub async fn until_in_sync_with(&self, primary: &Self) {
        let online = format!("port={},state=online", self.port);
        let patience = Patience::new();
        let written = loop {
            let info = primary.info("replication").await;
            if info.contains(&online) {
                break field(&info, "master_repl_offset").map(number);
            }
            patience.wait("the primary serves the replica").await;
        };
        loop {
            let info = self.info("replication").await;
            let up = field(&info, "master_link_status") == Some("up");
            if up && field(&info, "slave_repl_offset").map(number) >= written {
                break;
            }
            patience.wait("the replica is in sync").await;
        }
    }

    /// One command on a connection of its own.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> T {
        let mut connection = self.multiplexed().await;
        command.query_async(&mut connection).await.unwrap()
    }

    pub async fn info(&self, section: &str) -> String {
        self.query(::redis::cmd("INFO").arg(section)).await
    }

    pub async fn multiplexed(&self) -> MultiplexedConnection {
        multiplexed_at(self.addr()).await
    }

    pub async fn manager(&self) -> ConnectionManager {
        manager_at(self.addr(), manager_config()).await
    }

    fn with_child<T>(&self, action: impl FnOnce(&mut Child) -> T) -> T {
        action(&mut self.process().as_mut().expect("it is not running").child)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        // A test that fails in here must still end the server.
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A server for all tests of one program that only need keys of their own.
pub async fn shared() -> &'static RedisServer {
    static SHARED: OnceCell<RedisServer> = OnceCell::const_new();
    SHARED.get_or_init(RedisServer::start).await
}

/// Begins the keys of one test, on a server that it shares.
pub fn unique_prefix() -> String {
    format!("test-{}:", unique())
}

fn free_port() -> u16 {
    let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let span = u64::from(PORTS.end - PORTS.start);
    std::iter::repeat_with(|| PORTS.start + u16::try_from(random() % span).unwrap())
        .find(|&port| free(port) && free(port + 10_000))
        .unwrap()
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn unique() -> String {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{count}-{:x}", std::process::id(), random())
}

/// Ends a wait for something that never comes.
struct Patience(Instant);

impl Patience {
    fn new() -> Self {
        Self(Instant::now() + Duration::from_secs(30))
    }

    /// A moment between two looks.
    async fn wait(&self, what: &str) {
        assert!(Instant::now() < self.0, "it never came to pass: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
