//! Redlock in a simulated world: the engine and the quorum as they are, on servers and a network that misbehave.
//!
//! Random schedules of 5 servers and 4 clients: delays long enough for requests to come late, lost requests and lost
//! answers, servers that are away for a while and then restarted (with their data, or without: a minority), clients that
//! are paused past their ttl, cancelled acquisitions, dropped leases. At every event: no two leases may be acted on, or
//! of a semaphore no more than it has permits; over time: tokens strictly grow. `POLYLOCK_SEED=n` plays one seed again,
//! `POLYLOCK_SEEDS=n` so many in each world (`make simulation`, which is a part of `make test`, plays 21,000 schedules in
//! all).

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    future::Future,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::future::{BoxFuture, FutureExt};
use redis::Value;
use tokio::sync::oneshot;

use super::{
    RedisBackend,
    call::{CallError, Reply},
    request::{Answer, Answered, Errand, Request, Server},
    restart::Run,
    script,
    subscriber::Subscriptions,
};
use crate::{
    Acquire, Lease, LockManager, Target,
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, timer},
    metrics::NodeStats,
    simulation::{self, in_a_world},
};

const SERVERS: usize = 5;
const CLIENTS: usize = 4;
const TTL: Duration = Duration::from_millis(1000);
/// By how many ms the clients' wall clocks differ at most.
const CLOCKS_DIFFER: u64 = 100;

/// What a server knows, and the scripts as they work on it.
#[derive(Default)]
struct Memory {
    lock: HashMap<String, (String, Instant)>,
    fence: HashMap<String, u64>,
    /// Of a semaphore: owners, with the number of each and when it expires.
    permits: HashMap<String, HashMap<String, (u32, Instant)>>,
}

/// One server.
struct Machine {
    memory: Memory,
    /// It is away: what comes is lost.
    away: bool,
    /// Which start of it this is, and when that was.
    run: u128,
    began: Instant,
    /// How fast its clock runs.
    rate: f64,
}

impl Memory {
    fn owner(&self, key: &str, now: Instant) -> Option<&(String, Instant)> {
        self.lock.get(key).filter(|(_, expires)| *expires > now)
    }

    /// Runs a script; `rate` is the server's clock against real time.
    fn run(&mut self, request: &Request, keys: &[String], args: &[String], now: Instant, rate: f64) -> Value {
        let number = |index: usize| args[index].parse::<u64>().unwrap();
        let lasts = |ttl: u64| now.after(Duration::from_millis(ttl).mul_f64(rate));
        let ints = |values: [i64; 2]| Value::Array(values.map(Value::Int).to_vec());
        let (key, owner) = (&keys[0], args[0].trim_start_matches("permit:"));
        if let Some(permits) = self.permits.get_mut(key) {
            permits.retain(|_, (_, expires)| *expires > now);
        }
        let permit = self.permits.get(key).and_then(|permits| permits.get(owner)).map(|(number, _)| *number);
        let held = self.owner(key, now).cloned();
        let ours = held.as_ref().is_some_and(|(holder, _)| holder == owner);
        let left = held.as_ref().map_or(0, |(_, expires)| expires.since(now).as_millis() as u64);
        let is = |other: &'static script::Script| std::ptr::eq(request.script, other);
        if is(&script::ACQUIRE) {
            let fence = self.fence.entry(keys[1].clone()).or_default();
            let clock = now.since_boot().as_millis() as u64;
            if clock >= number(3) {
                return ints([-2, clock as i64]);
            }
            if ours {
                return Value::Int(*fence as i64);
            }
            if held.is_some() {
                return ints([0, left as i64]);
            }
            *fence = (*fence + 1).max(number(2));
            let fence = *fence;
            self.lock.insert(key.clone(), (owner.to_owned(), lasts(number(1))));
            Value::Int(fence as i64)
        } else if is(&script::RAISE) {
            let fence = self.fence.entry(keys[1].clone()).or_default();
            if !ours && permit.is_none() {
                return ints([0, 0]);
            }
            let above = *fence >= number(1);
            if !above {
                *fence = number(1);
            }
            Value::Array(vec![Value::Int(if above { -1 } else { 1 }), Value::Int(*fence as i64)])
        } else if is(&script::EXTEND) {
            if ours {
                self.lock.insert(key.clone(), (owner.to_owned(), lasts(number(1))));
            }
            Value::Int(if ours { 1 } else { -i64::from(held.is_none()) })
        } else if is(&script::REPAIR) {
            if now.since_boot().as_millis() as u64 >= number(3) || (held.is_some() && !ours) {
                return Value::Int(0);
            }
            if !ours {
                let fence = self.fence.entry(keys[1].clone()).or_default();
                *fence = (*fence).max(number(2));
                self.lock.insert(key.clone(), (owner.to_owned(), lasts(number(1))));
            }
            Value::Int(1)
        } else if is(&script::RELEASE) {
            if ours {
                self.lock.remove(key);
            }
            Value::Int(if ours { 1 } else { -i64::from(held.is_none()) })
        } else if is(&script::SHARE) {
            let fence = self.fence.entry(keys[1].clone()).or_default();
            let permits = self.permits.entry(key.clone()).or_default();
            let (clock, limit, wanted) = (now.since_boot().as_millis() as u64, number(7) as u32, number(8) as u32);
            if clock >= number(3) {
                return ints([-2, clock as i64]);
            }
            let is_free = |permit: &u32| permits.values().all(|(number, _)| number != permit);
            let free = || (0..limit).map(|more| (wanted + more) % limit).find(is_free);
            let Some(permit) = permit.or_else(free) else {
                let first = permits.values().map(|(_, expires)| expires.since(now).as_millis()).min();
                return ints([0, first.unwrap_or(0) as i64]);
            };
            *fence = (*fence + 1).max(number(2));
            let fence = *fence;
            permits.insert(owner.to_owned(), (permit, lasts(number(1))));
            Value::Array([1, fence as i64, permit.into()].map(Value::Int).to_vec())
        } else if is(&script::SHARE_EXTEND) {
            let permits = self.permits.entry(key.clone()).or_default();
            let stays = permit.is_some_and(|permit| u64::from(permit) == number(3));
            if let (true, Some(permit)) = (stays, permit) {
                permits.insert(owner.to_owned(), (permit, lasts(number(1))));
            } else {
                permits.remove(owner);
            }
            Value::Int(if stays { 1 } else { -1 })
        } else if is(&script::SHARE_RELEASE) {
            let removed = self.permits.entry(key.clone()).or_default().remove(owner);
            Value::Int(if removed.is_some() { 1 } else { -1 })
        } else {
            panic!("a script that is not simulated");
        }
    }
}

/// A server as one client sees it, through the network.
struct Remote {
    name: String,
    machine: Arc<Mutex<Machine>>,
    rng: Mutex<Rng>,
    loss: f64,
    stats: NodeStats,
    /// Nothing is lost or late any more.
    calm: Arc<AtomicBool>,
    /// The run of the server that the connection leads to.
    connected: Mutex<Option<u128>>,
    known_run: Mutex<Option<Run>>,
}

impl Remote {
    /// Logs in, if need be; answers which run it reached.
    async fn connect(&self, expires: Instant) -> Option<u128> {
        if let Some(run) = *self.connected.lock().unwrap() {
            return Some(run);
        }
        let (reply, answer) = oneshot::channel();
        if !self.is_lost() {
            let (there, back, machine) = (self.delay(), self.delay(), Arc::clone(&self.machine));
            simulation::after(there, move || {
                let machine = machine.lock().unwrap();
                if !machine.away {
                    let (id, up) = (machine.run, Instant::now().since(machine.began));
                    simulation::after(back, move || _ = reply.send((id, up)));
                }
            });
        }
        let Some(Ok((id, up))) = timer::until(Some(expires), answer).await else {
            timer::sleep_until(expires).await;
            return None;
        };
        let (mut known, met) = (self.known_run.lock().unwrap(), Instant::now());
        *known = Some(Run { id, began: met.before(up), met, follows: false }.after(*known));
        *self.connected.lock().unwrap() = Some(id);
        Some(id)
    }

    fn delay(&self) -> Duration {
        let mut rng = self.rng.lock().unwrap();
        // Mostly a millisecond, now and then far longer than a node has to answer.
        let late = rng.f64() < 0.03 && !self.calm.load(Ordering::Relaxed);
        let longest = if late { 1500.0 } else { 4.0 };
        Duration::from_secs_f64(0.0002 + rng.f64() * longest / 1000.0)
    }

    fn is_lost(&self) -> bool {
        !self.calm.load(Ordering::Relaxed) && self.rng.lock().unwrap().f64() < self.loss
    }
}

impl Server for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn known_run(&self) -> Option<Run> {
        *self.known_run.lock().unwrap()
    }

    fn run(self: Arc<Self>, request: Errand, _: Driver) -> BoxFuture<'static, Answer> {
        async move {
            let expires = request.expires;
            let Some(run) = self.connect(expires).await else {
                return Err(CallError::not_sent("server", "no connection in time"));
            };
            let (keys, args) = request.keys_and_args(expires.since_boot().as_millis() as i64);
            let (reply, answer) = oneshot::channel();
            if !self.is_lost() {
                let (there, back, answer_is_lost) = (self.delay(), self.delay(), self.is_lost());
                let machine = Arc::clone(&self.machine);
                simulation::after(there, move || {
                    let mut machine = machine.lock().unwrap();
                    if machine.away {
                        return;
                    }
                    let (now, rate) = (Instant::now(), machine.rate);
                    // A restart ends every connection.
                    let value = (machine.run == run).then(|| machine.memory.run(&request, &keys, &args, now, rate));
                    if !answer_is_lost {
                        simulation::after(back, move || drop(reply.send(value)));
                    }
                });
            }
            let answer = timer::until(Some(expires), answer).await;
            match answer {
                Some(Ok(Some(value))) => return Ok(Answered { value, repeated: false }),
                Some(Ok(None)) | None => {}
                // Lost: nobody answers, and nobody says so before the time is up.
                Some(Err(_)) => timer::sleep_until(expires).await,
            }
            *self.connected.lock().unwrap() = None;
            Err(CallError::unanswered("server", "no answer"))
        }
        .boxed()
    }

    fn stats(&self) -> &NodeStats {
        &self.stats
    }

    fn set_clock(&self, _: &Driver, _: i64) -> i64 {
        0
    }

    fn command(self: Arc<Self>, _: redis::Cmd, _: Driver, _: Instant) -> BoxFuture<'static, Reply> {
        async { panic!("a command that is not simulated") }.boxed()
    }

    fn parts(self: Arc<Self>, _: Instant) -> BoxFuture<'static, Result<Vec<Arc<dyn Server>>, CallError>> {
        async { Ok(vec![self as Arc<dyn Server>]) }.boxed()
    }

    fn close(&self) {}

    fn is_closed(&self) -> bool {
        false
    }
}

/// What the clients hold, and what has been promised.
#[derive(Default)]
struct History {
    leases: RefCell<Vec<Rc<Lease>>>,
    /// So many may hold at one time.
    permits: usize,
    tokens: RefCell<BTreeSet<u64>>,
    grants: Cell<u32>,
}

impl History {
    fn last_token(&self) -> u64 {
        self.tokens.borrow().last().copied().unwrap_or(0)
    }

    /// It was asked for when `last_token` was the largest that had been granted.
    fn granted(&self, lease: Lease, last_token: u64) -> Rc<Lease> {
        assert!(lease.is_held(), "granted when it was over");
        // Those who hold together may be told in another order than they got in.
        let last_token = if self.permits > 1 { last_token } else { self.last_token() };
        assert!(lease.fencing_token() > last_token, "a token that does not grow");
        assert!(self.tokens.borrow_mut().insert(lease.fencing_token()), "a token twice");
        self.grants.set(self.grants.get() + 1);
        let lease = Rc::new(lease);
        self.leases.borrow_mut().push(Rc::clone(&lease));
        lease
    }

    fn forget(&self, lease: &Rc<Lease>) {
        self.leases.borrow_mut().retain(|other| !Rc::ptr_eq(other, lease));
    }

    fn check(&self) {
        let held = self.leases.borrow().iter().filter(|lease| lease.is_held()).count();
        assert!(held <= self.permits, "{held} leases at one time");
    }
}

/// One client: acquires, holds, and ends it in some way, again and again.
async fn client(locks: LockManager, history: Rc<History>, world: World, mut rng: Rng) {
    let engine = Driver::engine();
    let ends = Instant::now().after(world.length);
    let within = |rng: &mut Rng, longest: u64| Instant::now().after(Duration::from_millis(rng.u64(0..longest)));
    while Instant::now() < ends {
        let options = Acquire::ttl(world.ttl).wait(Duration::from_millis(2500)).auto_extend(rng.f64() < 0.7);
        let target = if world.permits > 1 { Target::permit("r", world.permits as u32) } else { "r".into() };
        let asked = history.last_token();
        let acquiring = locks.acquire_by(target, options, &engine);
        let patience = if rng.f64() < 0.2 { within(&mut rng, 20).min(ends) } else { ends };
        if let Some(Ok(lease)) = timer::until(Some(patience), acquiring).await {
            let lease = history.granted(lease, asked);
            let hold = if rng.f64() < 0.2 { 1500 } else { 100 };
            timer::sleep_until(within(&mut rng, hold).min(ends)).await;
            if rng.f64() < 0.2 {
                let _ = lease.extend_by(None, &engine).await;
            }
            match rng.u32(0..10) {
                0 => {}                                                                                    // dropped
                1 => timer::sleep_until(lease.deadline().after(Duration::from_millis(1)).min(ends)).await, // outlived?
                _ => drop(lease.release_by(&engine).await),
            }
            history.forget(&lease);
        }
        timer::sleep_until(within(&mut rng, 60)).await;
    }
}

/// What may happen to the servers and to the clients.
#[derive(Clone, Copy)]
struct World {
    /// How long it lasts.
    length: Duration,
    /// And then how long in peace, with nobody asking for anything.
    afterwards: Duration,
    ttl: Duration,
    /// Clients are paused.
    pauses: bool,
    /// Servers that lose their memory when they come back.
    forgetful: usize,
    /// For how long they do not vote afterwards.
    longest_ttl: Duration,
    /// How many may hold at one time: with more than one it is a semaphore.
    permits: usize,
}

const WORLD: World = World {
    length: Duration::from_secs(6),
    afterwards: Duration::ZERO,
    ttl: TTL,
    pauses: true,
    forgetful: 0,
    longest_ttl: TTL,
    permits: 1,
};

async fn troubles(machines: Machines, world: World, mut rng: Rng) {
    let ends = Instant::now().after(world.length);
    while Instant::now() < ends {
        timer::sleep_until(Instant::now().after(Duration::from_millis(rng.u64(50..800)))).await;
        if world.pauses && rng.f64() < 0.5 {
            simulation::pause(rng.usize(1..=CLIENTS), Duration::from_millis(rng.u64(1..2500)));
            continue;
        }
        let index = rng.usize(0..SERVERS);
        let machine = Arc::clone(&machines[index]);
        if std::mem::replace(&mut machine.lock().unwrap().away, true) {
            continue;
        }
        let forgets = index < world.forgetful;
        // A server that forgot gives tokens by the clients' clocks alone: it is away for longer than these differ.
        let shortest = if forgets { CLOCKS_DIFFER } else { 1 };
        simulation::after(Duration::from_millis(rng.u64(shortest..1500)), move || {
            let mut machine = machine.lock().unwrap();
            machine.away = false;
            if forgets {
                machine.memory = Memory::default();
            }
            (machine.run, machine.began) = (machine.run + 100, Instant::now());
        });
    }
}

type Machines = Vec<Arc<Mutex<Machine>>>;

/// The servers, whose clocks run as fast as `rate` says.
fn machines(mut rate: impl FnMut() -> f64) -> Machines {
    let began = Instant::at(Duration::ZERO);
    let machine = |run| Machine { memory: Memory::default(), away: false, rate: rate(), run, began };
    (0..SERVERS as u128).map(machine).map(|machine| Arc::new(Mutex::new(machine))).collect()
}

/// A client's manager.
fn manager(machines: &Machines, world: World, loss: f64, calm: &Arc<AtomicBool>, rng: &mut Rng) -> LockManager {
    let nodes = machines.iter().enumerate().map(|(index, machine)| {
        Arc::new(Remote {
            name: format!("server{index}"),
            machine: Arc::clone(machine),
            rng: Mutex::new(rng.fork()),
            loss,
            stats: NodeStats::default(),
            calm: Arc::clone(calm),
            connected: Mutex::default(),
            known_run: Mutex::default(),
        }) as Arc<dyn Server>
    });
    let backend = RedisBackend {
        nodes: nodes.collect(),
        subscriptions: Subscriptions::silent(),
        prefix: String::new(),
        node_timeout: None,
        longest_ttl: world.longest_ttl,
        longest_asked: AtomicU64::new(0),
        managed: false,
        slots: false,
        background: tokio_util::task::TaskTracker::new(),
        untried: AtomicBool::new(true),
        behind: Arc::default(),
    };
    LockManager::new(Box::new(backend), &Options::default())
}

/// Plays one seed; answers how many leases were granted.
fn play(seed: u64, world: World, look: impl Fn(&History)) -> u32 {
    fastrand::seed(seed);
    in_a_world(CLIENTS, || play_on(Rng::with_seed(seed), world, look))
}

fn play_on(mut rng: Rng, world: World, look: impl Fn(&History)) -> u32 {
    let loss = if rng.bool() { 0.0 } else { rng.f64() * 0.1 };
    // Within what the drift allows between two clocks.
    let machines = machines(|| 1.0 + (rng.f64() - 0.5) * 0.008);
    let history = Rc::new(History { permits: world.permits, ..History::default() });
    let calm = Arc::new(AtomicBool::new(false));
    for process in 1..=CLIENTS {
        // Their wall clocks, which fencing tokens are proposed by, need not agree.
        simulation::set_ahead(process, Duration::from_millis(rng.u64(0..CLOCKS_DIFFER)));
        let locks = manager(&machines, world, loss, &calm, &mut rng);
        simulation::spawn_in(process, client(locks, Rc::clone(&history), world, rng.fork()));
    }
    simulation::spawn(troubles(machines.clone(), world, rng.fork()));
    simulation::run(world.length, || look(&history));
    if !world.afterwards.is_zero() {
        calm.store(true, Ordering::Relaxed);
        for machine in &machines {
            machine.lock().unwrap().away = false;
        }
        simulation::run(world.afterwards, || look(&history));
        for machine in &machines {
            let machine = machine.lock().unwrap();
            let left = machine.memory.owner("r", Instant::now());
            assert!(left.is_none(), "something is left on a server: {left:?}");
            let left: Vec<_> = machine.memory.permits.values().filter(|permits| !permits.is_empty()).collect();
            assert!(left.is_empty(), "something is left on a server: {left:?}");
        }
    }
    // What is still held goes with the world.
    history.leases.take().into_iter().for_each(std::mem::forget);
    history.grants.get()
}

/// Plays many seeds on all cores; a failure names its seed.
fn play_many(default: u64, world: World, look: fn(&History)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("POLYLOCK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("POLYLOCK_SEEDS").unwrap_or(default),
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let total = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (seeds, total) = (seeds.clone(), &total);
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % threads == thread) {
                    let played = std::panic::catch_unwind(|| play(seed, world, look));
                    match played {
                        Ok(grants) => total.fetch_add(grants.into(), std::sync::atomic::Ordering::Relaxed),
                        Err(_) => panic!("POLYLOCK_SEED={seed} fails"),
                    };
                }
            });
        }
    });
    let total = total.into_inner();
    println!("{total} leases granted");
    // A world in which nobody gets anything proves nothing.
    assert!(total >= 2 * (seeds.end - seeds.start), "only {total} leases were granted");
}

#[test]
fn never_two_leases_and_tokens_grow_whatever_fails() {
    play_many(50, WORLD, History::check);
}

#[test]
fn never_two_leases_while_a_minority_forgets() {
    play_many(50, World { forgetful: 2, ..WORLD }, History::check);
}

#[test]
fn never_more_than_permits_whatever_fails() {
    play_many(50, World { permits: 2, ..WORLD }, History::check);
    play_many(25, World { permits: 3, forgetful: 2, ..WORLD }, History::check);
}

#[test]
fn tokens_grow_even_when_servers_that_forgot_vote_at_once() {
    // Exclusion may then end for a moment; the tokens say who is later.
    play_many(25, World { forgetful: 2, longest_ttl: Duration::ZERO, ..WORLD }, |_| {});
}

/// Far from the end of its ttl, every key is gone: released, given back, or never granted.
#[test]
fn nothing_is_left_when_all_is_over() {
    let (ttl, length, afterwards) = (Duration::from_secs(20), Duration::from_secs(4), Duration::from_secs(5));
    let world = World { ttl, length, afterwards, pauses: false, ..WORLD };
    play_many(25, world, History::check);
    play_many(25, World { permits: 2, ..world }, History::check);
}

/// A small world without chance: one client, and what is done to the servers.
fn scene<F: Future<Output = ()> + 'static>(act: impl FnOnce(LockManager, Machines) -> F) {
    in_a_world(1, || {
        let machines = machines(|| 1.0);
        let done = Rc::new(Cell::new(false));
        let locks = manager(&machines, WORLD, 0.0, &Arc::new(AtomicBool::new(true)), &mut Rng::with_seed(1));
        let acting = act(locks, machines);
        let noted = Rc::clone(&done);
        simulation::spawn_in(1, async move {
            acting.await;
            noted.set(true);
        });
        simulation::run(Duration::from_secs(60), || ());
        assert!(done.get(), "it does not end");
    });
}

fn once() -> Acquire {
    Acquire::ttl(TTL).no_wait().auto_extend(false)
}

/// As a majority tells it, whatever the rest says.
#[test]
fn an_extension_of_what_a_majority_lost_is_lost() {
    let others = |machine: &mut Machine| {
        let until = Instant::now().after(TTL);
        machine.memory.lock.insert("r".into(), ("another's".into(), until));
    };
    let nobodys = |machine: &mut Machine| drop(machine.memory.lock.remove("r"));
    for harm in [others as fn(&mut Machine), nobodys as fn(&mut Machine)] {
        scene(move |locks, machines| async move {
            let engine = Driver::engine();
            let lease = locks.acquire_by("r", once(), &engine).await.unwrap();
            timer::sleep_until(Instant::now().after(TTL / 10)).await;
            for machine in &machines[..3] {
                harm(&mut machine.lock().unwrap());
            }
            let error = lease.extend_by(None, &engine).await.unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Lost, "{error:?}");
        });
    }
}

/// Two that do not answer cost nothing while the other three do.
#[test]
fn a_silent_minority_takes_no_time() {
    scene(|locks, machines| async move {
        let engine = Driver::engine();
        for machine in &machines[..2] {
            machine.lock().unwrap().away = true;
        }
        let began = Instant::now();
        let lease = locks.acquire_by("r", once(), &engine).await.unwrap();
        lease.extend_by(None, &engine).await.unwrap();
        lease.release_by(&engine).await.unwrap();
        // Four round trips of at most 9 ms, and twice as much for the tokens to be agreed on.
        let took = Instant::now().since(began);
        assert!(took < Duration::from_millis(80), "{took:?}");
    });
}

/// One server's counter is ahead: the token that it gave rise to is not forgotten with that server.
#[test]
fn a_token_is_known_to_a_majority() {
    const AHEAD: u64 = 1_000_000_000_000_000;
    scene(|locks, machines| async move {
        let engine = Driver::engine();
        let away = |index: usize, away: bool| machines[index].lock().unwrap().away = away;
        machines[0].lock().unwrap().memory.fence.insert("polylock:fence:{r}".into(), AHEAD);
        away(3, true);
        away(4, true);
        let first = locks.acquire_by("r", once(), &engine).await.unwrap();
        assert_eq!(first.fencing_token(), AHEAD + 1);
        first.release_by(&engine).await.unwrap();
        away(0, true);
        away(3, false);
        away(4, false);
        let second = locks.acquire_by("r", once(), &engine).await.unwrap();
        assert!(second.fencing_token() > AHEAD + 1, "{}", second.fencing_token());
        second.release_by(&engine).await.unwrap();
    });
}
