//! What starts the process, kills it, and asks its successor until there is a final answer.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use super::child::{ENTRY, LEASE, MODE, ON_FAILURE, STOP, URL};
use super::support::Answer;
use super::support::wire::{Http1, http1_post};
use super::{Point, Settings};

const PATIENCE: Duration = Duration::from_secs(30);

/// A process, until it is killed or dropped.
pub(crate) struct Process {
    pub(crate) addr: SocketAddr,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// It ends with this pipe.
    _stdin: ChildStdin,
}

impl Process {
    pub(crate) async fn start(url: &str, settings: Settings) -> Self {
        let Settings {
            mode,
            on_failure,
            lease,
            stop,
        } = settings;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", ENTRY, "--ignored", "--nocapture"])
            .env(URL, url)
            .env(MODE, format!("{mode:?}"))
            .env(ON_FAILURE, format!("{on_failure:?}"))
            .env(LEASE, lease.as_millis().to_string())
            .env(
                STOP,
                stop.map_or(String::new(), |point| format!("{point:?}")),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut process = Self {
            addr: SocketAddr::from(([0; 4], 0)),
            child,
            lines: BufReader::new(stdout).lines(),
            _stdin: stdin,
        };
        process.addr = process.says("listening on ").await.parse().unwrap();
        process
    }

    /// Waits until it has come to this point.
    pub(crate) async fn reaches(&mut self, point: Point) {
        self.says(&format!("at {point:?}")).await;
    }

    /// The rest of the line that begins like this.
    async fn says(&mut self, begin: &str) -> String {
        let said = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(begin) {
                    return rest.to_owned();
                }
            }
            panic!("it has ended, and never said `{begin}`");
        };
        let said = timeout(PATIENCE, said).await;
        said.unwrap_or_else(|_| panic!("it never says `{begin}`"))
    }

    /// SIGKILL. When this returns, it is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Sends a charge, and reads nothing yet.
pub(crate) async fn send(addr: SocketAddr, key: &str) -> Http1 {
    let mut connection = Http1::connect(addr).await;
    connection.write(http1_post("/charge", key, &[], "")).await;
    connection
}

/// Asks again, until the answer is one that no retry changes.
pub(crate) async fn final_answer(addr: SocketAddr, key: &str) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = send(addr, key).await.answer().await;
        if is_final(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn is_final(answer: &Answer) -> bool {
    !matches!(
        answer.status,
        StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE
    )
}

/// Waits for something that is seen from outside of the process.
#[cfg(feature = "postgres")]
pub(crate) async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "it never came to pass: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

#[cfg(feature = "sqlite")]
pub(crate) use directory::Directory;

#[cfg(feature = "sqlite")]
mod directory {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A new directory, until it is dropped.
    pub(crate) struct Directory(PathBuf);

    impl Directory {
        pub(crate) fn new() -> Self {
            static MADE: AtomicUsize = AtomicUsize::new(0);
            let count = MADE.fetch_add(1, Ordering::Relaxed);
            let name = format!("killed-process-{}-{count}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            std::fs::create_dir(&directory).unwrap();
            Self(directory)
        }

        /// Of a SQLite database in it.
        pub(crate) fn url(&self) -> String {
            format!("sqlite:{}", self.0.join("database").display())
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
