//! Processes and ports.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Below the ports that systems give to outgoing connections, so that nobody takes a port
/// between a kill and a restart.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// SIGSTOP. When this returns, the process does nothing more.
pub(super) fn stop(process: u32) {
    signal(&[process], "STOP");
    until("it has stopped", || {
        !table().iter().any(|it| it.id == process && it.state != 'T')
    });
}

/// SIGKILL. When this returns, they are gone.
pub(super) fn kill(processes: &[u32]) {
    signal(processes, "KILL");
    // Nobody may be there to bury them.
    until("they are gone", || {
        !table()
            .iter()
            .any(|it| processes.contains(&it.id) && it.state != 'Z')
    });
}

/// Those that are gone already do not matter.
pub(super) fn signal(processes: &[u32], name: &str) {
    for process in processes {
        let mut kill = Command::new("kill");
        kill.args(["-s", name, &process.to_string()]);
        kill.stderr(Stdio::null()).status().unwrap();
    }
}

/// Without the watcher.
pub(super) fn children(process: u32) -> Vec<u32> {
    let of_it = |it: &Entry| it.parent == process && it.command.ends_with("postgres");
    let table = table().into_iter().filter(of_it);
    table.map(|it| it.id).collect()
}

struct Entry {
    id: u32,
    parent: u32,
    state: char,
    command: String,
}

fn table() -> Vec<Entry> {
    let listed = Command::new("ps")
        .args(["-A", "-o", "pid=,ppid=,stat=,comm="])
        .output();
    let listed = listed.expect("ps is not installed: apt-get install -y procps");
    String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some(Entry {
                id: fields.next()?.parse().ok()?,
                parent: fields.next()?.parse().ok()?,
                state: fields.next()?.chars().next()?,
                command: fields.next()?.to_owned(),
            })
        })
        .collect()
}

fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reached() {
        assert!(Instant::now() < deadline, "it never came to pass: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn free_port() -> u16 {
    let span = u64::from(PORTS.end - PORTS.start);
    std::iter::repeat_with(|| PORTS.start + u16::try_from(random() % span).unwrap())
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .unwrap()
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

pub(super) fn unique() -> String {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{count}-{:x}", std::process::id(), random())
}

/// Ends a wait for something that never comes.
pub(super) struct Patience(Instant);

impl Patience {
    pub(super) fn new() -> Self {
        Self(Instant::now() + Duration::from_secs(30))
    }

    /// A moment between two looks.
    pub(super) async fn wait(&self, what: impl FnOnce() -> String) {
        assert!(Instant::now() < self.0, "it never came to pass: {}", what());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
