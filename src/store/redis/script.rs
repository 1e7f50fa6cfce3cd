//! The scripts, and how one is sent.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::BufMut;
use redis::aio::ConnectionLike;
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisResult, RedisWrite, ServerErrorKind, Value};

use crate::model::scope::RecordId;

/// A script and the digest that the server knows it by: two versions of this crate do not
/// disturb each other on one server.
pub(super) struct Script {
    source: &'static str,
    digest: String,
}

impl Script {
    fn new(source: &'static str) -> Self {
        let digest = redis::Script::new(source).get_hash().to_owned();
        Self { source, digest }
    }
}

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(include_str!("head.lua"), include_str!($file)))
        });)*
    };
}

scripts! {
    CLAIM = "claim.lua";
    EXTEND = "extend.lua";
    COMPLETE = "complete.lua";
    FAIL = "fail.lua";
    RELEASE = "release.lua";
    LOOKUP = "lookup.lua";
    RESOLVE = "resolve.lua";
}

pub(super) static FORGET: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("forget.lua")));

/// Begins every key: the user's prefix, and the version of the layout.
#[derive(Debug, Clone)]
pub(super) struct Keys(Arc<str>);

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{prefix}1:").into())
    }

    pub(super) fn write(&self, id: &RecordId, cmd: &mut Cmd) {
        let mut key = String::with_capacity(self.0.len() + 64);
        key.push_str(&self.0);
        for byte in id.as_bytes() {
            let _ = write!(key, "{byte:02x}");
        }
        cmd.write_arg(key.as_bytes());
    }
}

/// One script with what it is given.
pub(super) struct Call {
    script: &'static Script,
    cmd: Cmd,
}

impl Call {
    /// `room` is for the arguments that follow.
    pub(super) fn new(script: &'static Script, keys: &Keys, id: &RecordId, room: usize) -> Self {
        let mut cmd = Cmd::with_capacity(12, script.digest.len() + keys.0.len() + 128 + room);
        cmd.write_arg(b"EVALSHA");
        cmd.write_arg(script.digest.as_bytes());
        cmd.write_arg(b"1");
        keys.write(id, &mut cmd);
        Self { script, cmd }
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.cmd.write_arg(bytes);
        self
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.cmd.write_arg_fmt(number);
        self
    }

    pub(super) fn millis(self, duration: Duration) -> Self {
        self.number(millis(duration))
    }

    /// An argument that is put together in place.
    pub(super) fn built(mut self, len: usize, put: impl FnOnce(&mut dyn BufMut)) -> Self {
        put(&mut self.cmd.bufmut_for_next_arg(len));
        self
    }

    pub(super) async fn send<C>(&self, connection: &C) -> RedisResult<Value>
    where
        C: ConnectionLike + Clone,
    {
        let mut connection = connection.clone();
        match self.cmd.query_async(&mut connection).await {
            Err(error) if error.kind() == NO_SCRIPT => {
                self.whole().query_async(&mut connection).await
            }
            answered => answered,
        }
    }

    /// Sends it, and asks in the same round trip, thus of the same connection, how many
    /// replicas have it.
    pub(super) async fn send_and_count<C>(
        &self,
        acks: &Acks,
        connection: &C,
    ) -> RedisResult<(Value, RedisResult<u64>)>
    where
        C: ConnectionLike + Clone,
    {
        let mut connection = connection.clone();
        match counted(self.cmd.clone(), acks, &mut connection).await {
            Err(error) if error.kind() == NO_SCRIPT => {
                counted(self.whole(), acks, &mut connection).await
            }
            answered => answered,
        }
    }

    /// The same with the whole source, which the server then knows. One round trip, where
    /// loading it first would take two and lose against the next `SCRIPT FLUSH`.
    fn whole(&self) -> Cmd {
        let mut whole = Cmd::new();
        whole.write_arg(b"EVAL");
        whole.write_arg(self.script.source.as_bytes());
        for arg in self.cmd.args_iter().skip(2) {
            if let Arg::Simple(bytes) = arg {
                whole.write_arg(bytes);
            }
        }
        whole
    }
}

const NO_SCRIPT: ErrorKind = ErrorKind::Server(ServerErrorKind::NoScript);

/// How many replicas have to have a write, and how long they are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Acks {
    pub(super) replicas: u32,
    pub(super) timeout: Duration,
}

async fn counted<C>(
    cmd: Cmd,
    acks: &Acks,
    connection: &mut C,
) -> RedisResult<(Value, RedisResult<u64>)>
where
    C: ConnectionLike,
{
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.add_command(cmd);
    pipeline
        .cmd("WAIT")
        .arg(acks.replicas)
        .arg(millis(acks.timeout));
    let (value, replicas): (RedisResult<Value>, _) =
        pipeline.ignore_errors().query_async(connection).await?;
    Ok((value?, replicas))
}

/// Whole milliseconds, never less than was asked for, and no more than a century: the
/// server counts its time in them.
pub(super) fn millis(duration: Duration) -> u64 {
    const CENTURY: u64 = 100 * 366 * 24 * 60 * 60 * 1000;
    let whole = duration.as_nanos().div_ceil(1_000_000);
    u64::try_from(whole).unwrap_or(CENTURY).clamp(1, CENTURY)
}
