//! A cluster, as one server: each request goes to the primary that its keys belong to.
//!
//! Which slots are whose is asked at the first use, and again whenever a server turns out to be wrong or away. A server that
//! does not have the slot any more says who has (`MOVED`), or who may have this key while the slot is on its way
//! (`ASK`). While a slot moves, a script with several keys may find a part of them here and a part there (`TRYAGAIN`):
//! taking a lock waits for the end of that; releasing and extending need one key and go on.
//!
//! All keys of one resource are in one slot. The replica that takes over for a failed primary may lack what that had granted last,
//! unless the URL asks for `replicas`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    future::{BoxFuture, FutureExt},
    stream::{FuturesUnordered, StreamExt},
};
use redis::Value;

use super::{
    call::{CallError, Elsewhere, Reply},
    config::{Address, NodeConfig},
    node::Node,
    open::OPEN_TIMEOUT,
    request::{Answer, Answered, Errand, Server, counted},
    restart::Run,
    slot,
    subscriber::Locate,
};
use crate::{
    clock::Instant,
    engine::{driver::Driver, runtime, timer},
    metrics::NodeStats,
};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How many servers are asked for the map at one time.
const ASKED_FOR_MAP: usize = 5;

pub(super) struct Cluster {
    name: String,
    seeds: Vec<NodeConfig>,
    map: Mutex<Map>,
    /// Whether somebody asks for the map in the background.
    asking: AtomicBool,
    closed: AtomicBool,
    stats: NodeStats,
}

/// Which slots are whose.
#[derive(Default)]
struct Map {
    /// First and last slot, and the primary; sorted.
    ranges: Vec<(u16, u16, Address)>,
    /// Slots that were said to be elsewhere since.
    moved: HashMap<u16, Address>,
    nodes: HashMap<Address, Arc<Node>>,
}

impl Map {
    fn address_of(&self, slot: u16) -> Option<&Address> {
        if let Some(address) = self.moved.get(&slot) {
            return Some(address);
        }
        let index = self.ranges.partition_point(|(_, last, _)| *last < slot);
        self.ranges.get(index).filter(|(first, _, _)| *first <= slot).map(|(_, _, address)| address)
    }
}

impl Cluster {
    pub(super) fn new(seeds: Vec<NodeConfig>) -> Arc<Self> {
        let names: Vec<&str> = seeds.iter().map(|seed| &*seed.name).collect();
        let name = names.join(",");
        let (asking, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { name, seeds, map: Mutex::default(), asking, closed, stats: NodeStats::default() })
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, map: &mut Map, address: &Address) -> Arc<Node> {
        let node = map.nodes.entry(address.clone()).or_insert_with(|| Node::new(self.seeds[0].at(address.clone())));
        Arc::clone(node)
    }

    /// The node at an address, unless the manager is closed.
    fn node_at(&self, address: &Address) -> Result<Arc<Node>, CallError> {
        let mut map = self.map();
        if self.is_closed() {
            return Err(CallError::not_sent(&self.name, "the manager is closed"));
        }
        Ok(self.at(&mut map, address))
    }

    /// The primary of a slot.
    async fn node_of(&self, slot: u16, expires: Instant) -> Result<Arc<Node>, CallError> {
        let known = self.map().address_of(slot).cloned();
        let address = match known {
            Some(address) => address,
            None => {
                self.learn(expires).await?;
                let served = self.map().address_of(slot).cloned();
                served.ok_or_else(|| CallError::not_sent(&self.name, format!("nobody has the slot {slot}")))?
            }
        };
        self.node_at(&address)
    }

    /// Asks for the map: some that are known, and some that the URL names; the first answer counts.
    async fn learn(&self, expires: Instant) -> Result<(), CallError> {
        let mut addresses: Vec<Address> = self.map().nodes.keys().cloned().collect();
        fastrand::shuffle(&mut addresses);
        addresses.truncate(ASKED_FOR_MAP);
        let seeds = self.seeds.iter().map(|seed| &seed.address);
        let seeds: Vec<_> = seeds.filter(|seed| !addresses.contains(seed)).take(ASKED_FOR_MAP).cloned().collect();
        addresses.extend(seeds);
        let mut asks: FuturesUnordered<_> = addresses.into_iter().map(|address| self.ask(address, expires)).collect();
        let mut errors = Vec::new();
        while let Some(answer) = asks.next().await {
            match answer {
                Ok(ranges) => {
                    let mut map = self.map();
                    if self.is_closed() {
                        return Err(CallError::not_sent(&self.name, "the manager is closed"));
                    }
                    let serves = |address: &Address| ranges.iter().any(|(_, _, serving)| serving == address);
                    // Whoever waits for an answer of one of the others keeps it until then.
                    map.nodes.retain(|address, _| serves(address));
                    map.moved.clear();
                    map.ranges = ranges;
                    return Ok(());
                }
                Err(error) => errors.push(error),
            }
        }
        let fatal = errors.iter().position(|error| !error.is_retryable());
        Err(CallError::NotSent(match fatal {
            Some(index) => errors.swap_remove(index),
            None => super::out_of_reach(errors),
        }))
    }

    async fn ask(&self, address: Address, expires: Instant) -> Result<Vec<(u16, u16, Address)>, crate::Error> {
        let known = self.map().nodes.get(&address).cloned();
        // Not every place that the URL names is one that the cluster names so.
        let node = known.unwrap_or_else(|| Node::new(self.seeds[0].at(address.clone())));
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let reply = node.clone().command(command, Driver::engine(), expires).await.map_err(CallError::into_error)?;
        let ranges = read_slots(&reply, &address);
        ranges.ok_or_else(|| crate::Error::unavailable(format!("{}: no map of the cluster", node.name())))
    }

    /// Asks for the map in the background, unless that is being done.
    fn learn_later(self: &Arc<Self>) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let cluster = Arc::clone(self);
        runtime::spawn(async move {
            if let Err(error) = cluster.learn(Instant::now().after(OPEN_TIMEOUT)).await {
                tracing::debug!(error = %error.into_error(), "no map of the cluster");
            }
            cluster.asking.store(false, Ordering::Release);
        });
    }

    async fn run(self: Arc<Self>, request: Errand, driver: Driver) -> Answer {
        let expires = request.expires;
        let slot = slot::of(request.first_key());
        let (mut unanswered, mut earlier, mut pause, mut asking) = (None, None, Duration::ZERO, None);
        loop {
            let (node, asks) = match asking.take() {
                Some(address) => (self.node_at(&address), true),
                None => (self.node_of(slot, expires).await, false),
            };
            let error = match node {
                Ok(node) => match Arc::clone(&node).run(request.clone(), driver.clone(), asks).await {
                    Ok(Answered { value, repeated }) => {
                        super::clock_was_set(&value).map(|now| node.set_clock(&driver, now));
                        return Ok(Answered { value, repeated: repeated || unanswered.is_some() });
                    }
                    Err(error) => {
                        asking = self.redirect(&node, &error);
                        error
                    }
                },
                Err(error) => error,
            };
            let passes = match &error {
                CallError::NotSent(error) => error.is_retryable(),
                CallError::Unanswered(_) | CallError::Elsewhere(..) => true,
                _ => false,
            };
            if matches!(error, CallError::Unanswered(_)) {
                unanswered = Some(error.clone());
            }
            let again = Instant::now().after(pause);
            if !passes || again >= expires || self.is_closed() {
                // What was sent before may have been carried out.
                return Err(unanswered.unwrap_or_else(|| error.or_before(earlier, expires)));
            }
            request.meets(&error);
            earlier = Some(error);
            // At once the first time: most often the answer says where to go.
            if !pause.is_zero() {
                timer::sleep_until(again).await;
            }
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        }
    }

    /// Learns from what went wrong; where this one request is to go next, if not where the map says.
    fn redirect(self: &Arc<Self>, node: &Arc<Node>, error: &CallError) -> Option<Address> {
        match error {
            CallError::Elsewhere(Elsewhere::Ask { to }, _) => node.address().read_beside(to),
            CallError::Elsewhere(Elsewhere::Moved { slot, to }, _) => {
                if let Some(address) = node.address().read_beside(to) {
                    self.map().moved.insert(*slot, address);
                }
                self.learn_later();
                None
            }
            CallError::NotSent(_) | CallError::Unanswered(_) | CallError::Elsewhere(..) => {
                self.learn_later();
                None
            }
            _ => None,
        }
    }

    /// The primaries, each once.
    async fn primaries(&self, expires: Instant) -> Result<Vec<Arc<Node>>, CallError> {
        self.learn(expires).await?;
        let mut map = self.map();
        let mut addresses: Vec<Address> = map.ranges.iter().map(|(_, _, address)| address.clone()).collect();
        addresses.sort_by_key(ToString::to_string);
        addresses.dedup();
        Ok(addresses.iter().map(|address| self.at(&mut map, address)).collect())
    }
}

/// The ranges of slots in the answer of `CLUSTER SLOTS` by the server at `here`.
fn read_slots(reply: &Value, here: &Address) -> Option<Vec<(u16, u16, Address)>> {
    let Value::Array(rows) = reply else { return None };
    let number = |value: &Value| match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    };
    let mut ranges = Vec::new();
    for row in rows {
        let Value::Array(row) = row else { return None };
        let [first, last, Value::Array(primary), ..] = &row[..] else { return None };
        let [host, port, ..] = &primary[..] else { return None };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).ok()?,
            _ => "",
        };
        ranges.push((number(first)?, number(last)?, here.beside(host, number(port)?)?));
    }
    ranges.sort_by_key(|(first, _, _)| *first);
    (!ranges.is_empty()).then_some(ranges)
}

impl Server for Cluster {
    fn name(&self) -> &str {
        &self.name
    }

    fn known_run(&self) -> Option<Run> {
        None
    }

    fn any_run(&self, like: &mut dyn FnMut(Run) -> bool) -> bool {
        self.map().nodes.values().any(|node| node.any_run(like))
    }

    fn stats(&self) -> &NodeStats {
        &self.stats
    }

    fn run(self: Arc<Self>, request: Errand, driver: Driver) -> BoxFuture<'static, Answer> {
        async move { counted(&self.stats, Self::run(Arc::clone(&self), request, driver)).await }.boxed()
    }

    /// Done as soon as it is known, in [`run`](Self::run).
    fn set_clock(&self, _: &Driver, _: i64) -> i64 {
        0
    }

    /// Any server will do.
    fn command(self: Arc<Self>, command: redis::Cmd, driver: Driver, expires: Instant) -> BoxFuture<'static, Reply> {
        async move { self.node_of(0, expires).await?.command(command, driver, expires).await }.boxed()
    }

    fn parts(self: Arc<Self>, expires: Instant) -> BoxFuture<'static, Result<Vec<Arc<dyn Server>>, CallError>> {
        async move {
            let primaries = self.primaries(expires).await?;
            Ok(primaries.into_iter().map(|node| node as Arc<dyn Server>).collect())
        }
        .boxed()
    }

    fn look(&self) {
        let nodes: Vec<_> = self.map().nodes.values().cloned().collect();
        nodes.iter().for_each(|node| node.look());
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for (_, node) in self.map().nodes.drain() {
            node.close();
        }
    }
}

/// Where to subscribe: what is published anywhere in a cluster is heard everywhere. Weak, as the subscriptions do not
/// keep it.
pub(super) struct Anywhere(pub(super) Weak<Cluster>);

impl Locate for Anywhere {
    fn locate(&self) -> BoxFuture<'_, Result<NodeConfig, CallError>> {
        async {
            let cluster = self.0.upgrade().ok_or_else(|| CallError::not_sent("cluster", "the manager is closed"))?;
            let primaries = cluster.primaries(Instant::now().after(OPEN_TIMEOUT)).await?;
            // One that is away is not chosen twice in a row for long.
            let chosen = &primaries[fastrand::usize(..primaries.len())];
            Ok(cluster.seeds[0].at(chosen.address().clone()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(first: i64, last: i64, host: &str, port: i64) -> Value {
        let primary = Value::Array(vec![Value::BulkString(host.into()), Value::Int(port)]);
        Value::Array(vec![Value::Int(first), Value::Int(last), primary])
    }

    #[test]
    fn finds_the_primary_of_a_slot() {
        let here = Address::Tcp("here".into(), 1);
        let reply = Value::Array(vec![row(6000, 16383, "", 3), row(0, 4999, "a", 2)]);
        let mut map = Map { ranges: read_slots(&reply, &here).unwrap(), ..Map::default() };
        let a = Address::Tcp("a".into(), 2);
        for (slot, address) in [(0, Some(&a)), (4999, Some(&a)), (5000, None), (5999, None)] {
            assert_eq!(map.address_of(slot), address, "{slot}");
        }
        // A server that does not know its host is where it was asked.
        assert_eq!(map.address_of(16383), Some(&Address::Tcp("here".into(), 3)));
        map.moved.insert(16383, a.clone());
        assert_eq!(map.address_of(16383), Some(&a));
        for garbage in [Value::Nil, Value::Array(vec![]), Value::Array(vec![Value::Int(1)])] {
            assert!(read_slots(&garbage, &here).is_none());
        }
    }

    #[test]
    fn reads_where_else_to_ask() {
        let here = Address::Tcp("here".into(), 1);
        assert_eq!(here.read_beside("10.0.0.1:7"), Some(Address::Tcp("10.0.0.1".into(), 7)));
        assert_eq!(here.read_beside(":7"), Some(Address::Tcp("here".into(), 7)));
        assert_eq!(here.read_beside("::1:7"), Some(Address::Tcp("::1".into(), 7)));
        assert_eq!(here.read_beside("nowhere"), None);
    }
}
