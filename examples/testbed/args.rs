//! The command line, read by hand.

use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderName;
use tower_idempotency::{ConflictPolicy, FailurePolicy};

pub(crate) const HELP: &str = "\
The idempotency layer behind a fixed set of routes.

Usage: testbed [FLAG]...        --flag VALUE and --flag=VALUE are the same

  --listen ADDRESS              127.0.0.1:0; port 0 takes a free one
  --store NAME                  memory; or sqlite, redis, postgres, where compiled in
  --store-url URL               where the store is: redis://HOST:PORT/DATABASE, or several
                                separated by commas for a cluster;
                                postgres://USER@HOST:PORT/DATABASE; a file or sqlite:FILE,
                                made if it is not there; memory has no use for it
  --retention-ms N              86400000; how long an answer is kept
  --lease-ms N                  30000; how long a claim stands unless it is renewed
  --max-hold-ms N               900000; how long one run may hold its key
  --require-key                 POST and PATCH without a key are refused
  --scope-header NAME           the header that names the caller; without it, all share
                                one set of keys
  --on-conflict reject|wait:MS  reject; what happens while the same request runs
  --on-failure run-again|replay|refuse
                                run-again; what a failed run means for its key
  --request-limit BYTES         2097152; the largest body of a request with a key
  --response-limit BYTES        1048576; the largest body that is recorded
  --no-layer                    the bare routes, for comparison
  --help                        this text
";

pub(crate) enum Command {
    Help,
    Serve(Box<Args>),
}

pub(crate) struct Args {
    pub(crate) listen: SocketAddr,
    pub(crate) store: String,
    pub(crate) store_url: Option<String>,
    pub(crate) retention: Duration,
    pub(crate) lease: Duration,
    pub(crate) max_hold: Duration,
    pub(crate) require_key: bool,
    pub(crate) scope_header: Option<HeaderName>,
    pub(crate) on_conflict: ConflictPolicy,
    pub(crate) on_failure: FailurePolicy,
    pub(crate) request_limit: usize,
    pub(crate) response_limit: usize,
    pub(crate) no_layer: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            store: "memory".to_owned(),
            store_url: None,
            retention: Duration::from_secs(24 * 60 * 60),
            lease: Duration::from_secs(30),
            max_hold: Duration::from_secs(15 * 60),
            require_key: false,
            scope_header: None,
            on_conflict: ConflictPolicy::Reject,
            on_failure: FailurePolicy::RunAgain,
            request_limit: 2 * 1024 * 1024,
            response_limit: 1024 * 1024,
            no_layer: false,
        }
    }
}

pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut args = Box::new(Args::default());
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let (name, attached) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&*word, None),
        };
        if SWITCHES.contains(&name) && attached.is_some() {
            return Err(format!("{name} takes no value"));
        }
        let value = || {
            attached
                .or_else(|| words.next_if(|next| !next.starts_with("--")))
                .ok_or_else(|| format!("{name} needs a value"))
        };
        match name {
            "--help" | "-h" => return Ok(Command::Help),
            "--require-key" => args.require_key = true,
            "--no-layer" => args.no_layer = true,
            "--listen" => args.listen = address(name, &value()?)?,
            "--store" => args.store = value()?,
            "--store-url" => args.store_url = Some(value()?),
            "--retention-ms" => args.retention = millis(name, &value()?)?,
            "--lease-ms" => args.lease = lease(name, &value()?)?,
            "--max-hold-ms" => args.max_hold = millis(name, &value()?)?,
            "--scope-header" => args.scope_header = Some(parsed(name, &value()?)?),
            "--on-conflict" => args.on_conflict = on_conflict(name, &value()?)?,
            "--on-failure" => args.on_failure = on_failure(name, &value()?)?,
            "--request-limit" => args.request_limit = parsed(name, &value()?)?,
            "--response-limit" => args.response_limit = parsed(name, &value()?)?,
            _ => return Err(format!("there is no flag `{word}`")),
        }
    }
    Ok(Command::Serve(args))
}

const SWITCHES: [&str; 4] = ["--help", "-h", "--require-key", "--no-layer"];

fn parsed<T>(name: &str, value: &str) -> Result<T, String>
where
    T: FromStr<Err: Display>,
{
    value.parse().map_err(|error| bad(name, value, error))
}

fn address(name: &str, value: &str) -> Result<SocketAddr, String> {
    let mut found = value
        .to_socket_addrs()
        .map_err(|error| bad(name, value, error))?;
    found.next().ok_or_else(|| bad(name, value, "no address"))
}

/// No span of time here may be zero: the layer has no use for one.
fn millis(name: &str, value: &str) -> Result<Duration, String> {
    match parsed(name, value)? {
        0 => Err(bad(name, value, "it must be 1 or more")),
        millis => Ok(Duration::from_millis(millis)),
    }
}

/// Timers count milliseconds, and a lease is renewed at a third of it.
fn lease(name: &str, value: &str) -> Result<Duration, String> {
    match millis(name, value)? {
        short if short < Duration::from_millis(10) => {
            Err(bad(name, value, "it must be 10 or more"))
        }
        lease => Ok(lease),
    }
}

fn on_conflict(name: &str, value: &str) -> Result<ConflictPolicy, String> {
    match value.split_once(':') {
        None if value == "reject" => Ok(ConflictPolicy::Reject),
        Some(("wait", at_most)) => Ok(ConflictPolicy::Wait {
            at_most: millis(name, at_most)?,
        }),
        _ => Err(bad(name, value, "it is reject or wait:MS")),
    }
}

fn on_failure(name: &str, value: &str) -> Result<FailurePolicy, String> {
    match value {
        "run-again" => Ok(FailurePolicy::RunAgain),
        "replay" => Ok(FailurePolicy::Replay),
        "refuse" => Ok(FailurePolicy::Refuse),
        _ => Err(bad(name, value, "it is run-again, replay or refuse")),
    }
}

fn bad(name: &str, value: &str, error: impl Display) -> String {
    format!("{name} cannot be `{value}`: {error}")
}
