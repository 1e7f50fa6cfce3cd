//! Real PostgreSQL servers: each with a port and a directory of its own, which never outlives
//! the test.
//!
//! Everything that waits for a server is async, so that the tasks of a test go on meanwhile.

mod clients;
mod data;
mod pgbouncer;
mod processes;

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::sync::OnceCell;

use processes::Patience;

// Not every test program uses all of them.
#[allow(unused_imports)]
pub use clients::{execute, pool_at, scalar, url_of};
#[allow(unused_imports)]
pub use pgbouncer::PgBouncer;

/// The settings win over those of the data directory, and the test's over these.
const DEFAULTS: [(&str, &str); 4] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("max_connections", "200"),
    ("lc_messages", "C"),
];

/// Becomes the server, and leaves a watcher behind which holds the other end of a pipe. When
/// the pipe closes without a line, the test is gone, killed or ended without destructors, and
/// the watcher has the server end at once and removes its directory. `$$` stays the server's
/// process id; the server removes its lock file when all of its processes are gone.
const WATCHED: &str = r#"
exec 3<&0
directory=$1
shift
(
  read -r line <&3 && exit
  kill -QUIT $$
  kill -CONT $$
  for moment in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    test -e "$directory/data/postmaster.pid" || break
    sleep 0.4
  done
  kill -9 $$
  rm -rf -- "$directory"
) 2>/dev/null &
exec "$@" </dev/null 3<&-
"#;

/// A server. Dropped, it is gone at once with all of its processes, and its directory too.
pub struct PostgresServer {
    port: u16,
    directory: PathBuf,
    settings: Vec<String>,
    process: Mutex<Option<Process>>,
}

struct Process {
    child: Child,
    watcher: ChildStdin,
}

struct PortTaken;

impl PostgresServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further settings, such as `[("fsync", "off")]`; they win over the defaults.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        let directory = data::directory().await;
        let given = settings.iter().copied();
        let mut server = Self {
            port: 0,
            directory,
            settings: DEFAULTS
                .into_iter()
                .chain(given)
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            process: Mutex::new(None),
        };
        for _ in 0..20 {
            server.port = processes::free_port();
            let _ = fs::remove_file(server.directory.join("log"));
            server.spawn();
            if server.until_ready().await.is_ok() {
                return server;
            }
            server.dismiss();
        }
        panic!("every port is taken by somebody else");
    }

    fn spawn(&self) {
        let log = self.directory.join("log");
        let log = File::options().append(true).create(true).open(log).unwrap();
        let mut command = data::command("sh", &self.directory);
        command
            .args(["-c", WATCHED, "sh"])
            .arg(&self.directory)
            .arg(data::program("postgres"))
            .arg("-D")
            .arg(self.directory.join("data"))
            .args(["-p", &self.port.to_string()]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let watcher = child.stdin.take().unwrap();
        let before = self.process().replace(Process { child, watcher });
        assert!(before.is_none(), "it is running already");
    }

    async fn until_ready(&self) -> Result<(), PortTaken> {
        let patience = Patience::new();
        while !self.is_ready() {
            let ended = self.with_child(|child| child.try_wait().unwrap());
            if let Some(status) = ended {
                if self.log().contains("Address already in use") {
                    return Err(PortTaken);
                }
                panic!("postgres does not start, {status}:\n{}", self.log());
            }
            patience
                .wait(|| format!("it is ready:\n{}", self.log()))
                .await;
        }
        Ok(())
    }

    /// As this very process says in its lock file. It got the port, or it would have ended.
    fn is_ready(&self) -> bool {
        let file = fs::read_to_string(self.directory.join("data/postmaster.pid"));
        let file = file.unwrap_or_default();
        let lines: Vec<_> = file.lines().map(str::trim).collect();
        lines.first() == Some(&&*self.process_id().to_string()) && lines.get(7) == Some(&"ready")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Of the database `postgres`.
    pub fn url(&self) -> String {
        url_of(&self.options())
    }

    /// Of the process that started all the others.
    pub fn process_id(&self) -> u32 {
        self.with_child(|child| child.id())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All that the server has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// A superuser, without password, in the database `postgres`.
    pub fn options(&self) -> PgConnectOptions {
        clients::options_at(self.addr())
    }

    /// Some connections to the database `postgres`.
    pub async fn pool(&self) -> PgPool {
        pool_at(self.options()).await
    }

    /// A new database that has nothing in it, which nobody else uses.
    pub async fn database(&self) -> PgConnectOptions {
        clients::database(self.options()).await
    }

    /// SIGKILL to all of its processes. When this returns, they are gone.
    pub fn kill(&self) {
        let mut process = self.process().take().expect("it is not running");
        // Stopped, it begets no more.
        processes::stop(process.child.id());
        let others = processes::children(process.child.id());
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        processes::kill(&others);
        // Told only now, so that there is no moment in which nobody would end the server.
        let _ = process.watcher.write_all(b"done\n");
    }

    /// The fast shutdown: what is under way is rolled back, and everything is written.
    pub async fn stop(&self) {
        processes::signal(&[self.process_id()], "INT");
        let patience = Patience::new();
        while self.with_child(|child| child.try_wait().unwrap()).is_none() {
            patience.wait(|| format!("it stops:\n{}", self.log())).await;
        }
        self.dismiss();
    }

    /// The watcher of a server that has ended.
    fn dismiss(&self) {
        let mut process = self.process().take().unwrap();
        let _ = process.watcher.write_all(b"done\n");
    }

    /// Starts it again, after a kill if it still runs, with the same port, directory and
    /// settings; returns when it has recovered and takes connections.
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

    /// SIGSTOP to all of its processes: it keeps its connections, and answers nothing until
    /// [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        processes::stop(self.process_id());
        for child in processes::children(self.process_id()) {
            processes::stop(child);
        }
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        let mut all = processes::children(self.process_id());
        all.push(self.process_id());
        processes::signal(&all, "CONT");
    }

    fn with_child<T>(&self, action: impl FnOnce(&mut Child) -> T) -> T {
        action(&mut self.process().as_mut().expect("it is not running").child)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        // A test that fails in here must still end the server.
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A server for all tests of one program that only need a database of their own: a fast one,
/// which does not outlive the loss of power.
pub async fn shared() -> &'static PostgresServer {
    static SHARED: OnceCell<PostgresServer> = OnceCell::const_new();
    let start = || PostgresServer::start_with(&[("fsync", "off"), ("full_page_writes", "off")]);
    SHARED.get_or_init(start).await
}
