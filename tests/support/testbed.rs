//! The built example `testbed`: started, asked, signalled, and waited for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use super::Answer;
use super::stores;
use super::wire::{Http1, http1_post};

const PATIENCE: Duration = Duration::from_secs(20);

/// One process, until it is dropped.
pub struct Testbed {
    pub addr: SocketAddr,
    pub ready_line: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Testbed {
    /// Over the store that the tests run over, unless the flags name one.
    pub async fn start(flags: &[&str]) -> Self {
        let store = match flags.iter().any(|flag| flag.starts_with("--store")) {
            true => Vec::new(),
            false => stores::testbed_flags(),
        };
        let mut child = tokio::process::Command::new(binary())
            .args(store)
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready_line = String::new();
        let read = stdout.read_line(&mut ready_line);
        timeout(PATIENCE, read).await.expect("not ready").unwrap();
        let addr = ready_line
            .trim_end()
            .strip_prefix("listening on http://")
            .unwrap_or_else(|| panic!("not a ready line: {ready_line:?}"))
            .parse()
            .unwrap();
        Self {
            addr,
            ready_line,
            child,
            stdout,
        }
    }

    pub async fn connect(&self) -> Http1 {
        Http1::connect(self.addr).await
    }

    /// A request without key and body, such as `GET /counter`, on a connection of its own.
    pub async fn ask(&self, line: &str) -> Answer {
        let mut connection = self.connect().await;
        let request = format!("{line} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
        connection.write(request).await;
        connection.answer().await
    }

    /// A POST with a key and no body, on a connection of its own.
    pub async fn post(&self, path: &str, key: &str) -> Answer {
        self.post_with(path, key, &[], "").await
    }

    pub async fn post_with(&self, path: &str, key: &str, lines: &[&str], body: &str) -> Answer {
        let mut connection = self.connect().await;
        connection.write(http1_post(path, key, lines, body)).await;
        connection.answer().await
    }

    pub async fn runs(&self) -> u64 {
        let answer = self.ask("GET /counter").await;
        assert_eq!(answer.status, StatusCode::OK);
        let counter: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        counter["count"].as_u64().unwrap()
    }

    /// Asks until that many handlers have run.
    pub async fn until_runs(&self, runs: u64) {
        let reached = async {
            while self.runs().await != runs {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let reached = timeout(PATIENCE, reached).await;
        reached.unwrap_or_else(|_| panic!("never reaches {runs} runs"));
    }

    pub fn terminate(&self) {
        let id = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.unwrap().success());
    }

    /// The exit code, and what it printed after the ready line.
    pub async fn exit(mut self) -> (Option<i32>, String) {
        let status = timeout(PATIENCE, self.child.wait()).await;
        let status = status.expect("does not exit").unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).await.unwrap();
        (status.code(), rest)
    }
}

/// The whole run of a process that does not come to serve.
pub fn run(flags: &[&str]) -> Output {
    Command::new(binary()).args(flags).output().unwrap()
}

fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| example("testbed"))
}

/// An example, built with the features of the test, where cargo puts it: for a single test,
/// cargo builds none.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let features = [
        ("default", cfg!(feature = "default")),
        ("memory", cfg!(feature = "memory")),
        ("tracing", cfg!(feature = "tracing")),
        ("conformance", cfg!(feature = "conformance")),
        ("redis", cfg!(feature = "redis")),
        ("postgres", cfg!(feature = "postgres")),
        ("sqlite", cfg!(feature = "sqlite")),
    ];
    let features = features.iter().filter(|(_, is_on)| *is_on);
    let features: Vec<&str> = features.map(|(feature, _)| *feature).collect();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--no-default-features", "--features"]);
    cargo.args([&features.join(","), "--example", name, "--target-dir"]);
    cargo.arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success(), "{name} does not build");
    let name = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    profile.join("examples").join(name)
}
