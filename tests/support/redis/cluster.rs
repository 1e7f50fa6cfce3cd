//! A cluster of three masters, whose slots can be moved under load.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ::redis::aio::MultiplexedConnection;
use ::redis::cluster::{ClusterClient, ClusterClientBuilder};
use ::redis::cluster_async::ClusterConnection;
use ::redis::{Cmd, FromRedisValue, Value};
use tokio::sync::{Mutex, OnceCell};

use super::clients::{RESPONSE_TIMEOUT, command_stats, error_stats, reset_stats};
use super::{Patience, RedisServer};

const SLOTS: u16 = 16_384;
const MASTERS: u16 = 3;

/// Three masters, each with a third of the slots. It takes about two seconds to form: Redis
/// has a new master wait so long before it answers.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    ids: Vec<String>,
    /// Held by one move at a time: of two, the one that takes an epoch last may win back what
    /// the other has just moved away.
    moves: Mutex<()>,
}

impl RedisCluster {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments for every node.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let arguments = [&["--cluster-enabled", "yes"], arguments].concat();
        let (first, second, third) = tokio::join!(
            RedisServer::start_with(&arguments),
            RedisServer::start_with(&arguments),
            RedisServer::start_with(&arguments),
        );
        let mut cluster = Self {
            nodes: vec![first, second, third],
            ids: Vec::new(),
            moves: Mutex::new(()),
        };
        for (number, node) in (0..).zip(&cluster.nodes) {
            cluster.ids.push(node.query(&subcommand("MYID")).await);
            let epoch = subcommand("SET-CONFIG-EPOCH").arg(number + 1).take();
            node.query::<()>(&epoch).await;
            let share = |number| u32::from(SLOTS) * number / u32::from(MASTERS);
            let mut slots = subcommand("ADDSLOTSRANGE");
            slots.arg(share(number)).arg(share(number + 1) - 1);
            node.query::<()>(&slots).await;
        }
        for node in &cluster.nodes[1..] {
            let mut meet = subcommand("MEET");
            meet.arg("127.0.0.1").arg(node.port());
            cluster.nodes[0].query::<()>(&meet).await;
        }
        cluster.until_ready().await;
        cluster
    }

    /// Returns when all nodes serve, and agree on who has which slot: after a restart, too.
    pub async fn until_ready(&self) {
        let patience = Patience::new();
        let ready = ["cluster_state:ok", &format!("cluster_slots_ok:{SLOTS}")];
        for node in &self.nodes {
            loop {
                let info: String = node.query(&subcommand("INFO")).await;
                if ready.iter().all(|line| info.lines().any(|it| it == *line)) {
                    break;
                }
                patience.wait("the cluster is ready").await;
            }
        }
        let mut links = self.links().await;
        until_agreed(&mut links, |node| (node.epoch, node.slots)).await;
    }

    /// The node of that number, from 0.
    pub fn node(&self, number: usize) -> &RedisServer {
        &self.nodes[number]
    }

    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    pub async fn connect(&self) -> ClusterConnection {
        let client = self.client().build().unwrap();
        client.get_async_connection().await.unwrap()
    }

    /// What `connect` uses: retries come quickly.
    pub fn client(&self) -> ClusterClientBuilder {
        ClusterClient::builder(self.nodes.iter().map(RedisServer::url))
            .connection_timeout(RESPONSE_TIMEOUT)
            .response_timeout(RESPONSE_TIMEOUT)
            .min_retry_wait(5)
            .max_retry_wait(100)
    }

    pub async fn slot_of(&self, key: &str) -> u16 {
        self.nodes[0].query(subcommand("KEYSLOT").arg(key)).await
    }

    /// The number of the node which serves the slot.
    pub async fn owner_of(&self, slot: u16) -> usize {
        type Node = (String, u16, String, Value);
        let served: Vec<(u16, u16, Node)> = self.nodes[0].query(&subcommand("SLOTS")).await;
        let (_, _, (_, _, id, _)) = served
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&slot))
            .unwrap();
        self.ids.iter().position(|it| it == id).unwrap()
    }

    /// Moves slots with their keys, one slot after the other, as `redis-cli --cluster reshard`
    /// does. All of them must be served by `from`. Moves take turns.
    pub async fn move_slots(&self, from: usize, to: usize, slots: RangeInclusive<u16>) {
        let _turn = self.moves.lock().await;
        let mut links = self.links().await;
        for slot in slots {
            self.begin(&mut links, from, to, slot).await;
            self.carry(&mut links, from, to, slot).await;
            self.end(&mut links, from, to, slot).await;
        }
        until_agreed(&mut links, |node| (node.epoch, node.slots)).await;
    }

    /// From here to `end_move`, `from` answers `ASK` for every key of the slot that it does
    /// not have. For a cluster that is the test's own: there must be no other move meanwhile.
    pub async fn begin_move(&self, from: usize, to: usize, slot: u16) {
        self.begin(&mut self.links().await, from, to, slot).await;
    }

    /// Carries over the keys that `from` has now.
    pub async fn move_keys(&self, from: usize, to: usize, slot: u16) {
        self.carry(&mut self.links().await, from, to, slot).await;
    }

    /// From here on, all nodes but `to` answer `MOVED`.
    pub async fn end_move(&self, from: usize, to: usize, slot: u16) {
        let mut links = self.links().await;
        self.end(&mut links, from, to, slot).await;
        until_agreed(&mut links, |node| (node.epoch, node.slots)).await;
    }

    async fn begin(&self, links: &mut Links, from: usize, to: usize, slot: u16) {
        self.set_slot(&mut links[to], slot, "IMPORTING", from).await;
        self.set_slot(&mut links[from], slot, "MIGRATING", to).await;
    }

    async fn carry(&self, links: &mut Links, from: usize, to: usize, slot: u16) {
        loop {
            let mut keys = subcommand("GETKEYSINSLOT");
            let keys: Vec<Vec<u8>> = ask(&mut links[from], keys.arg(slot).arg(100)).await;
            if keys.is_empty() {
                break;
            }
            let mut migrate = ::redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(self.nodes[to].port());
            migrate.arg("").arg(0).arg(10_000).arg("KEYS").arg(keys);
            // NOKEY: the last of them were deleted meanwhile.
            let _: String = ask(&mut links[from], &migrate).await;
        }
    }

    async fn end(&self, links: &mut Links, from: usize, to: usize, slot: u16) {
        // The new owner first: nobody may be sent to a node that would send them back.
        self.set_slot(&mut links[to], slot, "NODE", to).await;
        // With the slot it takes a new epoch. Until all know that, late news of an earlier owner
        // wins over it, and after two quick moves even takes the slot and its keys away again.
        until_agreed(links, |node| node.epoch).await;
        let others = (0..links.len()).filter(|node| ![from, to].contains(node));
        for node in [from].into_iter().chain(others) {
            self.set_slot(&mut links[node], slot, "NODE", to).await;
        }
    }

    async fn set_slot(&self, link: &mut Link, slot: u16, state: &str, node: usize) {
        let mut command = subcommand("SETSLOT");
        command.arg(slot).arg(state).arg(&self.ids[node]);
        ask::<()>(link, &command).await;
    }

    async fn links(&self) -> Links {
        let mut links = Vec::new();
        for node in &self.nodes {
            links.push(node.multiplexed().await);
        }
        links
    }

    /// The calls of each command, over all nodes.
    pub async fn command_stats(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for node in &self.nodes {
            add(&mut sum, command_stats(node).await);
        }
        sum
    }

    /// The errors answered, over all nodes: `MOVED` and `ASK` tell that clients met a move.
    pub async fn error_stats(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for node in &self.nodes {
            add(&mut sum, error_stats(node).await);
        }
        sum
    }

    pub async fn reset_stats(&self) {
        for node in &self.nodes {
            reset_stats(node).await;
        }
    }
}

/// A cluster for all tests of one program that only need keys of their own.
pub async fn shared_cluster() -> &'static RedisCluster {
    static SHARED: OnceCell<RedisCluster> = OnceCell::const_new();
    SHARED.get_or_init(RedisCluster::start).await
}

type Link = MultiplexedConnection;
type Links = Vec<Link>;

async fn ask<T: FromRedisValue>(link: &mut Link, command: &Cmd) -> T {
    command.query_async(link).await.unwrap()
}

/// What one node knows of another, or of itself.
struct NodeSeen {
    epoch: String,
    slots: Vec<String>,
}

/// Returns when all nodes know all nodes, and see the same of each.
async fn until_agreed<T: PartialEq>(links: &mut Links, part: fn(NodeSeen) -> T) {
    let patience = Patience::new();
    loop {
        let mut views = Vec::new();
        for link in links.iter_mut() {
            let nodes: String = ask(link, &subcommand("NODES")).await;
            let nodes = nodes.lines().map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                let id = words.next().unwrap();
                let epoch = words.nth(5).unwrap();
                // In brackets are the moves that go on.
                let slots = words
                    .skip(1)
                    .filter(|word| !word.starts_with('['))
                    .collect();
                (id, part(NodeSeen { epoch, slots }))
            });
            views.push(nodes.collect::<BTreeMap<_, _>>());
        }
        let all = |view: &BTreeMap<_, _>| view.len() == usize::from(MASTERS);
        if all(&views[0]) && views.iter().all(|view| *view == views[0]) {
            break;
        }
        patience.wait("the nodes agree").await;
    }
}

fn subcommand(name: &str) -> Cmd {
    ::redis::cmd("CLUSTER").arg(name).take()
}

fn add(sum: &mut BTreeMap<String, u64>, stats: BTreeMap<String, u64>) {
    for (name, count) in stats {
        *sum.entry(name).or_default() += count;
    }
}
