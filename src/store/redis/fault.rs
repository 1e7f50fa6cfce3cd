//! What is known of a call that failed.

use std::any::TypeId;

use redis::aio::{ConnectionManager, MultiplexedConnection};
use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::model::error::{StoreError, StoreErrorKind};

/// The error of a connection as the store's, with the driver's as its source.
pub(super) fn store_error<C: 'static>(error: RedisError) -> StoreError {
    let is_redirection = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved));
    let kind = match kind(&error) {
        kind if sends_once::<C>() => kind,
        StoreErrorKind::NotApplied => StoreErrorKind::Ambiguous,
        // While slots move, two nodes may send it to and fro for a moment.
        _ if is_redirection => StoreErrorKind::Ambiguous,
        kind => kind,
    };
    StoreError::new(kind, error)
}

/// Whether an error tells of the only time that a call was sent. A connection to a cluster
/// sends it again by itself and tells of the last time alone, and of one that is not known
/// nothing can be said.
fn sends_once<C: 'static>() -> bool {
    let connection = TypeId::of::<C>();
    connection == TypeId::of::<MultiplexedConnection>()
        || connection == TypeId::of::<ConnectionManager>()
}

/// What one sending that ended like this has done.
fn kind(error: &RedisError) -> StoreErrorKind {
    match error.kind() {
        // Refused before anything was sent. Any other break of a connection, and every
        // time-out, leaves it open whether the server had read the call.
        ErrorKind::Io if error.is_connection_refusal() => StoreErrorKind::NotApplied,
        ErrorKind::Client => StoreErrorKind::NotApplied,
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::EmptySentinelList
        | ErrorKind::RESP3NotSupported => StoreErrorKind::Misconfigured,
        ErrorKind::Server(kind) => server_kind(kind, error.detail().unwrap_or_default()),
        ErrorKind::Extension => kind_of_code(error.code().unwrap_or_default()),
        _ => StoreErrorKind::Ambiguous,
    }
}

fn server_kind(kind: ServerErrorKind, detail: &str) -> StoreErrorKind {
    match kind {
        // Before 7.0 what a command of a script was refused for stands in the detail.
        ServerErrorKind::ResponseError => detail
            .split(' ')
            .map(|word| kind_of_code(word.trim_start_matches('-')))
            .find(|&kind| kind != StoreErrorKind::Ambiguous)
            .unwrap_or(match is_set_up_otherwise(detail) {
                true => StoreErrorKind::Misconfigured,
                false => StoreErrorKind::Ambiguous,
            }),
        ServerErrorKind::BusyLoading
        | ServerErrorKind::Ask
        | ServerErrorKind::TryAgain
        | ServerErrorKind::ClusterDown
        | ServerErrorKind::MasterDown
        | ServerErrorKind::ReadOnly
        | ServerErrorKind::NoScript => StoreErrorKind::NotApplied,
        // A connection that follows no redirection is none to a cluster.
        ServerErrorKind::Moved | ServerErrorKind::CrossSlot | ServerErrorKind::NoPerm => {
            StoreErrorKind::Misconfigured
        }
        _ => StoreErrorKind::Ambiguous,
    }
}

/// Whether a script is not known there, or one of its commands not allowed.
fn is_set_up_otherwise(detail: &str) -> bool {
    detail.starts_with("unknown command")
        || detail.starts_with("The user executing the script can't run this command")
}

fn kind_of_code(code: &str) -> StoreErrorKind {
    match code {
        "OOM" => StoreErrorKind::Full,
        "READONLY" | "NOREPLICAS" | "BUSY" | "LOADING" | "MASTERDOWN" => StoreErrorKind::NotApplied,
        // No snapshot can be written, and the server was told to stop then.
        "MISCONF" | "NOAUTH" | "WRONGPASS" | "NOPERM" => StoreErrorKind::Misconfigured,
        "WRONGTYPE" => StoreErrorKind::Corrupt,
        _ => StoreErrorKind::Ambiguous,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;

    use redis::aio::{ConnectionManager, MultiplexedConnection};
    use redis::{ErrorKind, RedisError, Value, make_extension_error};

    use super::{kind, store_error};
    use crate::model::error::StoreErrorKind;

    /// An error reply, as the driver reads it off the wire.
    fn reply(line: &str) -> StoreErrorKind {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        kind(&value.and_then(Value::extract_error).unwrap_err())
    }

    #[test]
    fn what_the_server_refused_was_not_applied() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MASTERDOWN Link with MASTER is down",
            "NOREPLICAS Not enough good replicas to write.",
            "BUSY Redis is busy running a script.",
            "ERR Error running script (call to f_1): @user_script:9: \
             @user_script: 9: -READONLY You can't write against a read only replica.",
        ] {
            assert_eq!(reply(line), StoreErrorKind::NotApplied, "{line}");
        }
    }

    #[test]
    fn a_full_server_is_full_however_it_says_so() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "ERR Error running script (call to f_1): @user_script:9: \
             @user_script: 9: -OOM command not allowed when used memory > 'maxmemory'.",
        ] {
            assert_eq!(reply(line), StoreErrorKind::Full, "{line}");
        }
    }

    #[test]
    fn what_only_a_setting_can_change_is_misconfigured() {
        for line in [
            "NOAUTH Authentication required.",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "WRONGPASS invalid username-password pair",
            "MISCONF Redis is configured to save RDB snapshots, but cannot",
            "MOVED 3999 127.0.0.1:6381",
            "ERR unknown command 'EVALSHA', with args beginning with: ",
            "ERR The user executing the script can't run this command or subcommand script: 9b",
        ] {
            assert_eq!(reply(line), StoreErrorKind::Misconfigured, "{line}");
        }
    }

    #[test]
    fn a_key_of_another_type_is_corrupt() {
        for line in [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "ERR Error running script (call to f_1): @user_script:17: WRONGTYPE Operation \
             against a key holding the wrong kind of value",
        ] {
            assert_eq!(reply(line), StoreErrorKind::Corrupt, "{line}");
        }
    }

    #[test]
    fn what_nothing_is_known_of_is_ambiguous() {
        assert_eq!(reply("ERR something new"), StoreErrorKind::Ambiguous);
        assert_eq!(reply("NEWCODE something"), StoreErrorKind::Ambiguous);
        let unknown = make_extension_error("X".to_owned(), None);
        assert_eq!(kind(&unknown), StoreErrorKind::Ambiguous);
        let parse = RedisError::from((ErrorKind::UnexpectedReturnType, "odd"));
        assert_eq!(kind(&parse), StoreErrorKind::Ambiguous);
    }

    #[test]
    fn a_connection_that_was_refused_applied_nothing_and_a_broken_one_may_have() {
        let io = |kind| super::kind(&RedisError::from(io::Error::from(kind)));
        assert_eq!(
            io(io::ErrorKind::ConnectionRefused),
            StoreErrorKind::NotApplied
        );
        for broken in [
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::TimedOut,
        ] {
            assert_eq!(io(broken), StoreErrorKind::Ambiguous, "{broken}");
        }
    }

    /// What sends again by itself tells of the last time alone.
    #[derive(Clone)]
    struct SendsAgain;

    #[test]
    fn nothing_is_known_of_a_connection_that_may_have_sent_it_before() {
        let moved = redis::parse_redis_value(b"-MOVED 3999 127.0.0.1:6381\r\n");
        let moved = moved.and_then(Value::extract_error).unwrap_err();
        assert_eq!(
            store_error::<SendsAgain>(moved).kind(),
            StoreErrorKind::Ambiguous
        );
        let refused = || RedisError::from(io::Error::from(io::ErrorKind::ConnectionRefused));
        let kinds = [
            store_error::<MultiplexedConnection>(refused()).kind(),
            store_error::<ConnectionManager>(refused()).kind(),
            store_error::<SendsAgain>(refused()).kind(),
        ];
        let expected = [
            StoreErrorKind::NotApplied,
            StoreErrorKind::NotApplied,
            StoreErrorKind::Ambiguous,
        ];
        assert_eq!(kinds, expected);
    }
}
