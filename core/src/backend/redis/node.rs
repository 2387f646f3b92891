//! One server: its connections, one for each driver, and scripts run on it.
//!
//! A request whose connection turns out to be dead is sent again on a new one while its time lasts. That is safe
//! because every script may be run twice (an acquire by the owner token that holds is "granted"), and
//! because the dead connection was reset; still the answer says that it is the second one's ([`Answered::repeated`]),
//! as the first may have been carried out, too. No answer in time is never followed by a second request.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{self, BoxFuture, FutureExt, Shared};
use rustc_hash::FxHashMap;

use super::{
    call::{CallError, Reply},
    config::{Address, NodeConfig},
    connection::Connection,
    open::{self, Progress},
    request::{Answer, Answered, Errand, Server, counted},
    restart::Run,
    round::Ticket,
    script::Name,
};
use crate::{
    clock::Instant,
    engine::{
        driver::{Driver, DriverId},
        runtime, timer,
    },
    metrics::NodeStats,
};

pub(super) struct Node {
    config: NodeConfig,
    lanes: Mutex<FxHashMap<DriverId, Lane>>,
    /// What the last log-in found.
    run: Mutex<Option<Run>>,
    closed: AtomicBool,
    stats: NodeStats,
}

/// The connection that one driver drives.
enum Lane {
    Opening(Opening),
    Open(Arc<Connection>),
}

#[derive(Clone)]
struct Opening {
    opened: Shared<BoxFuture<'static, Result<Arc<Connection>, CallError>>>,
    progress: Arc<Progress>,
}

impl Node {
    pub(super) fn new(config: NodeConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            lanes: Mutex::default(),
            run: Mutex::default(),
            closed: AtomicBool::new(false),
            stats: NodeStats::default(),
        })
    }

    fn lanes(&self) -> MutexGuard<'_, FxHashMap<DriverId, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver's connection, opened if need be.
    pub(super) async fn connection(
        self: &Arc<Self>,
        driver: &Driver,
        expires: Instant,
    ) -> Result<Arc<Connection>, CallError> {
        let opening = {
            let mut lanes = self.lanes();
            if self.is_closed() {
                return Err(CallError::not_sent(&self.config.name, "the manager is closed"));
            }
            match lanes.get(&driver.id()) {
                Some(Lane::Open(connection)) if connection.is_alive() => return Ok(Arc::clone(connection)),
                Some(Lane::Opening(opening)) => opening.clone(),
                _ => {
                    // Drivers come and go, and their connections with them.
                    lanes.retain(|_, lane| !matches!(lane, Lane::Open(connection) if connection.is_broken()));
                    let opening = self.open(driver);
                    lanes.insert(driver.id(), Lane::Opening(opening.clone()));
                    opening
                }
            }
        };
        match timer::until(Some(expires), opening.opened).await {
            Some(opened) => opened,
            None => Err(opening.progress.late(&self.config)),
        }
    }

    /// Opens a connection on the engine, whether anybody goes on waiting for it or not.
    fn open(self: &Arc<Self>, driver: &Driver) -> Opening {
        let (node, driver, progress) = (Arc::clone(self), driver.clone(), Arc::<Progress>::default());
        let task_progress = Arc::clone(&progress);
        let task = async move {
            let opened = open::open(&node.config, &driver, None, &task_progress).await.map(|(connection, run)| {
                // Before anything is asked on it: an answer is never older than the run that is known.
                node.meets(run);
                connection
            });
            let mut lanes = node.lanes();
            match &opened {
                Ok(connection) if node.is_closed() => {
                    connection.close("the manager is closed");
                    lanes.remove(&driver.id())
                }
                Ok(connection) => lanes.insert(driver.id(), Lane::Open(Arc::clone(connection))),
                Err(_) => lanes.remove(&driver.id()),
            };
            drop(lanes);
            opened
        };
        let name = self.config.name.clone();
        let opened = match runtime::engine() {
            Ok(engine) => {
                let task = engine.handle().spawn(task);
                let stopped = move |_| CallError::not_sent(&name, "the engine has stopped");
                async move { task.await.map_err(stopped).flatten() }.boxed()
            }
            Err(error) => future::ready(Err(CallError::NotSent(error))).boxed(),
        };
        Opening { opened: opened.shared(), progress }
    }

    fn meets(&self, run: Option<Run>) {
        let mut known = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        *known = run.map(|run| run.after(*known));
    }

    pub(super) fn address(&self) -> &Address {
        &self.config.address
    }

    /// Runs a script. A server of a cluster that is only about to get the keys is told that this is known: `asks`.
    pub(super) async fn run(self: Arc<Self>, request: Errand, driver: Driver, asks: bool) -> Answer {
        self.carry_out(&request, &driver, asks, None).await
    }

    /// Runs a script while its time lasts, after a first try that came to `so_far`.
    async fn carry_out(
        self: &Arc<Self>,
        request: &Errand,
        driver: &Driver,
        asks: bool,
        so_far: Option<CallError>,
    ) -> Answer {
        const FIRST_PAUSE: Duration = Duration::from_millis(5);
        const LONGEST_PAUSE: Duration = Duration::from_millis(100);
        let expires = request.expires;
        let mut pause = Duration::ZERO;
        let (mut unanswered, mut name) = match so_far {
            Some(CallError::NoScript) => (None, Name::Text),
            Some(CallError::NotTogether) => (None, Name::Sha),
            so_far => (so_far.inspect(|error| request.meets(error)), Name::Sha),
        };
        loop {
            let connection = match self.connection(driver, expires).await {
                Ok(connection) => connection,
                // What was sent before may have been carried out.
                Err(error) => return Err(unanswered.unwrap_or(error)),
            };
            let mut reply = connection.run(request, name, asks).await;
            if matches!(reply, Err(CallError::NoScript)) {
                reply = connection.run(request, Name::Text, asks).await;
            }
            name = Name::Sha;
            match reply {
                Ok(value) if self.config.replicas > 0 && request.is_granted(&value) => {
                    self.replicate(&connection, expires).await?;
                    return Ok(Answered { value, repeated: unanswered.is_some() });
                }
                Ok(value) => return Ok(Answered { value, repeated: unanswered.is_some() }),
                Err(error @ CallError::Unanswered(_)) => {
                    if Instant::now() >= expires {
                        return Err(error);
                    }
                    request.meets(&error);
                    unanswered = Some(error);
                }
                Err(CallError::NotSent(_)) if Instant::now() < expires && connection.is_broken() => {}
                Err(error) => return Err(unanswered.unwrap_or(error)),
            }
            // At once the first time; a server that hangs up on everybody is not flooded.
            if !pause.is_zero() {
                timer::sleep_until(Instant::now().after(pause).min(expires)).await;
            }
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        }
    }
}

impl Node {
    /// Waits until so many replicas as asked for have what was written on this connection.
    async fn replicate(&self, connection: &Arc<Connection>, expires: Instant) -> Result<(), CallError> {
        let wanted = self.config.replicas;
        // The server gives up before we do, so that its answer is heard; it looks at its clock every 100 ms.
        let left = expires.since(Instant::now());
        let patience = left.saturating_sub(Duration::from_millis(150)).max(left / 2).as_millis().max(1);
        let wait =
            redis::cmd("WAIT").arg(wanted).arg(u64::try_from(patience).unwrap_or(u64::MAX)).get_packed_command();
        match connection.call(&wait, expires).await {
            Ok(redis::Value::Int(have)) if have >= i64::from(wanted) => Ok(()),
            Ok(redis::Value::Int(have)) => {
                let why = format!("{have} of {wanted} replicas have it");
                Err(CallError::unanswered(&self.config.name, why))
            }
            Ok(_) => Err(CallError::unanswered(&self.config.name, "an answer of another kind")),
            // Granted it is all the same.
            Err(error) => Err(CallError::Unanswered(error.into_error())),
        }
    }

    /// Goes on with what a ticket is for, after a first try that came to `so_far`.
    pub(super) async fn finish(self: Arc<Self>, ticket: Ticket, so_far: Option<CallError>) {
        let answer = self.carry_out(&ticket.errand(), ticket.driver(), false, so_far).await;
        ticket.answer(answer);
    }
}

impl Server for Node {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn known_run(&self) -> Option<Run> {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> &NodeStats {
        &self.stats
    }

    fn run(self: Arc<Self>, request: Errand, driver: Driver) -> BoxFuture<'static, Answer> {
        async move { counted(&self.stats, Self::run(Arc::clone(&self), request, driver, false)).await }.boxed()
    }

    fn parts(self: Arc<Self>, _: Instant) -> BoxFuture<'static, Result<Vec<Arc<dyn Server>>, CallError>> {
        async { Ok(vec![self as Arc<dyn Server>]) }.boxed()
    }

    fn send(self: Arc<Self>, mut ticket: Ticket) -> Option<BoxFuture<'static, ()>> {
        let open = match self.lanes().get(&ticket.driver().id()) {
            // Replicas are asked after the server.
            Some(Lane::Open(connection)) if self.config.replicas == 0 => Some(Arc::clone(connection)),
            _ => None,
        };
        let sample = self.stats.ask();
        ticket.is_through(&self, sample);
        let left = match open {
            Some(connection) => connection.take(ticket),
            None => Err(ticket),
        };
        left.err().map(|ticket| self.finish(ticket, None).boxed())
    }

    fn set_clock(&self, driver: &Driver, now_ms: i64) -> i64 {
        match self.lanes().get(&driver.id()) {
            Some(Lane::Open(connection)) => connection.set_server_clock(now_ms),
            _ => 0,
        }
    }

    fn forgot(&self) {
        let mut known = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        *known = known.map(Run::forgot);
    }

    fn command(self: Arc<Self>, command: redis::Cmd, driver: Driver, expires: Instant) -> BoxFuture<'static, Reply> {
        async move {
            let connection = self.connection(&driver, expires).await?;
            connection.call(&command.get_packed_command(), expires).await
        }
        .boxed()
    }

    fn look(&self) {
        let open = |lane: &Lane| match lane {
            Lane::Open(connection) => Some(Arc::clone(connection)),
            Lane::Opening(_) => None,
        };
        let connections: Vec<_> = self.lanes().values().filter_map(open).collect();
        for connection in connections {
            connection.read();
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for (_, lane) in self.lanes().drain() {
            if let Lane::Open(connection) = lane {
                connection.close("the manager is closed");
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.close();
    }
}
