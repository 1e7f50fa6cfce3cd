//! The audit at the start of a service: can this server keep what the layer promises?

use std::collections::HashMap;
use std::fmt;

use redis::aio::ConnectionLike;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value, cmd, from_redis_value};

use super::RedisStore;
use super::fault::store_error;
use crate::model::scope::RecordId;
use crate::store::KeyStore;

/// What is needed of `SET` in scripts, and of how their writes are replicated.
const OLDEST: (u32, u32) = (6, 2);

/// How many slots a cluster has.
const ALL_SLOTS: &str = "16384";

/// Something that puts a promise of the layer at risk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The address of the node, where the connection is one to a cluster.
    pub node: Option<String>,
    /// What it is.
    pub risk: Risk,
}

/// What puts a promise at risk. Shown, it tells what may be lost and what to set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Risk {
    /// Under pressure of memory the server deletes records that have not expired.
    Evicts {
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// A script may not do there what it has to.
    TooOld {
        /// Its version.
        version: String,
    },
    /// It is a replica: it refuses every claim.
    Replica,
    /// The cluster does not serve all of its slots.
    ClusterNotReady {
        /// Its `cluster_state`, and how many slots it serves.
        state: String,
    },
    /// It is a node of a cluster, and the connection follows no redirections.
    NoRedirections,
    /// More replicas are to acknowledge a write than there are.
    TooFewReplicas {
        /// What [`min_replica_acks`](RedisStore::min_replica_acks) asks for.
        wanted: u32,
        /// How many are connected.
        connected: u32,
    },
    /// There is neither an append-only file nor a replica.
    NotDurable,
    /// The server does not tell how it is set up.
    Unaudited {
        /// What it said.
        reason: String,
    },
}

impl Risk {
    /// Whether it breaks a promise sooner or later in ordinary operation. The other ones
    /// take a failure, and may be accepted with open eyes.
    pub const fn is_unfit(&self) -> bool {
        !matches!(self, Self::NotDurable | Self::Unaudited { .. })
    }
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evicts { policy } => write!(
                f,
                "`maxmemory-policy` is `{policy}`: once memory is short, records vanish before \
                 their retention ends and finished requests run again; set it to `noeviction`"
            ),
            Self::TooOld { version } => write!(
                f,
                "version {version} is older than {}.{}: the scripts are not known to be atomic \
                 and replicated there; upgrade the server",
                OLDEST.0, OLDEST.1
            ),
            Self::Replica => f.write_str(
                "it is a replica: it refuses to write, so every claim fails, and what it reads \
                 may be stale; connect to the primary, through Sentinel if it changes",
            ),
            Self::ClusterNotReady { state } => write!(
                f,
                "`cluster_state` is `{state}`: claims of the slots that are not served fail; wait \
                 for the cluster, or repair it"
            ),
            Self::NoRedirections => f.write_str(
                "it is a node of a cluster and the connection follows no redirections: the claims \
                 of all other nodes' slots fail; connect with `redis::cluster_async`",
            ),
            Self::TooFewReplicas { wanted, connected } => write!(
                f,
                "{wanted} replicas are to acknowledge every claim and {connected} are connected: \
                 every claim is refused; connect replicas, or lower `min_replica_acks`"
            ),
            Self::NotDurable => f.write_str(
                "there is neither an append-only file nor a replica: a restart loses what came \
                 after the last snapshot, and finished requests run again; set `appendonly yes`",
            ),
            Self::Unaudited { reason } => write!(
                f,
                "`INFO` was refused ({reason}): whether records are evicted or lost in a restart \
                 is not known; allow `+info`"
            ),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{node}: {}", self.risk),
            None => self.risk.fmt(f),
        }
    }
}

/// How [`check`](super::RedisStore::check) fails.
pub type CheckError = crate::store::CheckError<Finding>;

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    pub(super) async fn audit(&self) -> Result<Vec<Finding>, CheckError> {
        let findings = match self.ask("INFO", "").await {
            Ok(info) => self.judge(info).await?,
            Err(error) if is_forbidden(&error) => vec![Finding {
                node: None,
                risk: Risk::Unaudited {
                    reason: error.to_string(),
                },
            }],
            Err(error) => return Err(CheckError::Store(store_error::<C>(error))),
        };
        if findings.iter().any(|finding| finding.risk.is_unfit()) {
            return Err(CheckError::Unfit(findings));
        }
        // A script has to run there at all.
        let nobody = RecordId::from_bytes([0; 32]);
        self.lookup(&nobody).await?;
        Ok(findings)
    }

    async fn judge(&self, info: Value) -> Result<Vec<Finding>, CheckError> {
        // A connection to a cluster gathers what all primaries say.
        let (nodes, is_cluster) = match info {
            Value::Map(nodes) => (nodes, true),
            one => (vec![(Value::Nil, one)], false),
        };
        let mut findings = Vec::new();
        let mut has_cluster = false;
        for (node, info) in nodes {
            let node = is_cluster.then(|| from_redis_value(node)).transpose();
            let node = node.map_err(|error| CheckError::Store(store_error::<C>(error.into())))?;
            let text: String = from_redis_value(info)
                .map_err(|error| CheckError::Store(store_error::<C>(error.into())))?;
            let info = Info::new(&text);
            has_cluster |= info.get("cluster_enabled") == "1";
            let risks = info.risks(self.acks().map(|acks| acks.replicas));
            findings.extend(risks.into_iter().map(|risk| Finding {
                node: node.clone(),
                risk,
            }));
        }
        if has_cluster {
            let mut find = |risk| findings.push(Finding { node: None, risk });
            if !is_cluster {
                find(Risk::NoRedirections);
            }
            let text = self.ask("CLUSTER", "INFO").await;
            let text = text.and_then(|text| Ok(from_redis_value::<String>(text)?));
            let text = text.map_err(|error| CheckError::Store(store_error::<C>(error)))?;
            let info = Info::new(&text);
            let (state, slots) = (info.get("cluster_state"), info.get("cluster_slots_ok"));
            if (state, slots) != ("ok", ALL_SLOTS) {
                find(Risk::ClusterNotReady {
                    state: format!("{state}, {slots} of {ALL_SLOTS} slots"),
                });
            }
        }
        Ok(findings)
    }

    async fn ask(&self, name: &str, argument: &str) -> Result<Value, RedisError> {
        let mut cmd = cmd(name);
        if !argument.is_empty() {
            cmd.arg(argument);
        }
        cmd.query_async(&mut self.connection()).await
    }
}

fn is_forbidden(error: &RedisError) -> bool {
    let kind = error.kind();
    kind == ErrorKind::Server(ServerErrorKind::NoPerm)
        || kind == ErrorKind::Server(ServerErrorKind::ResponseError)
}

/// The lines of an answer to `INFO`.
struct Info<'a>(HashMap<&'a str, &'a str>);

impl<'a> Info<'a> {
    fn new(text: &'a str) -> Self {
        let lines = text
            .lines()
            .filter_map(|line| line.trim_end().split_once(':'));
        Self(lines.collect())
    }

    fn get(&self, name: &str) -> &'a str {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn risks(&self, acks: Option<u32>) -> Vec<Risk> {
        let mut risks = Vec::new();
        let version = self.get("redis_version");
        if major_and_minor(version).is_none_or(|version| version < OLDEST) {
            risks.push(Risk::TooOld {
                version: version.to_owned(),
            });
        }
        if self.get("role") != "master" {
            risks.push(Risk::Replica);
            return risks;
        }
        let policy = self.get("maxmemory_policy");
        if policy != "noeviction" {
            risks.push(Risk::Evicts {
                policy: policy.to_owned(),
            });
        }
        let connected = self.get("connected_slaves").parse().unwrap_or(0);
        if let Some(wanted) = acks.filter(|&wanted| wanted > connected) {
            risks.push(Risk::TooFewReplicas { wanted, connected });
        }
        if self.get("aof_enabled") != "1" && connected == 0 {
            risks.push(Risk::NotDurable);
        }
        risks
    }
}

fn major_and_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Info, Risk};

    const SOUND: &str = "# Server\r\nredis_version:7.2.4\r\nrole:master\r\n\
                         maxmemory_policy:noeviction\r\nconnected_slaves:1\r\naof_enabled:1\r\n";

    fn risks(from: &str, to: &str) -> Vec<Risk> {
        assert!(SOUND.contains(from));
        Info::new(&SOUND.replace(from, to)).risks(None)
    }

    #[test]
    fn a_sound_server_is_no_risk() {
        assert_eq!(risks("", ""), []);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, is_old) in [
            ("6.2.0", false),
            ("10.0.1", false),
            ("8.0-rc1", true),
            ("6.0.16", true),
            ("5.9.9", true),
            ("", true),
        ] {
            let found = risks("7.2.4", version);
            assert_eq!(!found.is_empty(), is_old, "{version} gives {found:?}");
        }
    }

    #[test]
    fn a_replica_alone_is_told_of_and_not_what_its_primary_is_to_answer_for() {
        let text = SOUND
            .replace("master", "slave")
            .replace("noeviction", "allkeys-lru");
        assert_eq!(Info::new(&text).risks(None), [Risk::Replica]);
    }

    #[test]
    fn a_server_that_keeps_silent_of_its_policy_is_not_trusted() {
        let found = risks("maxmemory_policy:noeviction\r\n", "");
        let policy = String::new();
        assert_eq!(found, [Risk::Evicts { policy }]);
    }

    #[test]
    fn replicas_are_counted_against_what_is_asked_for() {
        let info = Info::new(SOUND);
        assert_eq!(info.risks(Some(1)), []);
        let (wanted, connected) = (2, 1);
        assert_eq!(
            info.risks(Some(2)),
            [Risk::TooFewReplicas { wanted, connected }]
        );
    }

    #[test]
    fn a_replica_or_a_file_is_enough_to_survive_a_restart() {
        assert_eq!(risks("aof_enabled:1", "aof_enabled:0"), []);
        assert_eq!(risks("connected_slaves:1", "connected_slaves:0"), []);
        let text = SOUND.replace("aof_enabled:1", "aof_enabled:0");
        let text = text.replace("connected_slaves:1", "connected_slaves:0");
        assert_eq!(Info::new(&text).risks(None), [Risk::NotDurable]);
    }
}
