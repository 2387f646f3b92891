//! What TypeScript calls.

use std::{future::Future, time::Duration};

use napi::{
    Env,
    bindgen_prelude::{BigInt, Either, Function},
};
use napi_derive::napi;
use polylock::{
    Acquire, Error, ErrorKind, LockManager, Result, Seen, Target,
    host::{Driver, duration},
};

use crate::{
    environment::Environment,
    observe::{self, MetricRecord},
    reply::{Begun, CapabilitiesRecord, Outcome, Reply, epoch_ms},
};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Opens the environment. `deliver` is called from the loop with what has finished: four values each, see
/// [`values`](crate::reply::values). `has_libuv`: the loop is one of libuv, which can watch descriptors.
#[napi(catch_unwind)]
pub fn open(env: Env, deliver: Function<'_, (), ()>, has_libuv: bool) -> Reply {
    Environment::open(env, deliver, has_libuv).map_or_else(Reply::Failed, |()| Reply::Done)
}

/// Ends an operation; `false` if its outcome has been handed out.
#[napi(catch_unwind)]
pub fn cancel(env: Env, operation: f64) -> bool {
    Environment::of(env).is_some_and(|environment| environment.cancel(id(operation)))
}

/// Makes a manager. No I/O, no thread.
#[napi(catch_unwind)]
pub fn connect(
    env: Env,
    urls: Vec<String>,
    prefix: Option<String>,
    drift_factor: Option<f64>,
    node_timeout: Option<f64>,
) -> Reply {
    let connected = || {
        let mut connect = polylock::connect(urls);
        if let Some(prefix) = prefix {
            connect = connect.prefix(prefix);
        }
        if let Some(factor) = drift_factor {
            connect = connect.drift_factor(factor);
        }
        if let Some(timeout) = node_timeout {
            connect = connect.node_timeout(duration("node_timeout", timeout, MILLISECOND)?);
        }
        polylock_fork_mark::give();
        opened(env)?.adopt_manager(connect.lazy()?)
    };
    Reply::number(connected())
}

/// How to acquire, in the order in which [`acquire`] gets it.
struct Asked {
    ttl: f64,
    /// Infinity: for ever. 0: one try.
    wait: f64,
    auto_extend: bool,
    fair: bool,
    thorough: bool,
    gives_back: bool,
    max_hold: Option<f64>,
    label: Option<String>,
    retried: Option<f64>,
}

impl Asked {
    fn options(self) -> Result<Acquire> {
        let mut options = Acquire::ttl(duration("ttl", self.ttl, MILLISECOND)?)
            .auto_extend(self.auto_extend)
            .fair(self.fair)
            .thorough(self.thorough)
            .gives_back(self.gives_back);
        options = if self.wait == 0.0 {
            options.no_wait()
        } else if self.wait == f64::INFINITY {
            options.wait_forever()
        } else {
            options.wait(duration("wait", self.wait, MILLISECOND)?)
        };
        if let Some(max_hold) = self.max_hold {
            options = options.max_hold(duration("max_hold", max_hold, MILLISECOND)?);
        }
        if let Some(label) = self.label {
            options = options.label(&label);
        }
        if let Some(every) = self.retried {
            options = options.retried(duration("retried", every, MILLISECOND)?);
        }
        Ok(options)
    }
}

/// Bits of what [`acquire`] is told in a number. They are in `ts/native.ts` as well.
const AUTO_EXTEND: u32 = 1;
/// Try once, and reply `Busy` instead of a time-out.
const ONCE: u32 = 2;
/// The end of the environment leaves the lease to its ttl.
const STAYS: u32 = 4;
/// In the order in which waiters came.
const FAIR: u32 = 8;
/// What most servers decided waits a moment for the others.
const THOROUGH: u32 = 16;
/// What a minority granted is given back before a failure is told.
const GIVES_BACK: u32 = 32;

/// What to acquire. `mode` is 0 for exclusive, -1 for shared, else the number of permits that there are.
fn target(resource: Either<String, Vec<String>>, mode: f64) -> Target {
    match resource {
        Either::B(resources) => Target::all(resources),
        Either::A(resource) if mode == 0.0 => resource.into(),
        Either::A(resource) if mode == -1.0 => Target::shared(&resource),
        // What is no number of permits becomes 0, which the engine refuses.
        Either::A(resource) => {
            let of = if mode.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&mode) { mode as u32 } else { 0 };
            Target::permit(&resource, of)
        }
    }
}

/// Acquires, as the bits of `how` say. `retried`: how often the caller tries again.
#[napi(catch_unwind)]
#[allow(clippy::too_many_arguments, reason = "an object would cost more than the call")]
pub fn acquire(
    env: Env,
    manager: f64,
    resource: Either<String, Vec<String>>,
    mode: f64,
    ttl: f64,
    wait: f64,
    how: u32,
    max_hold: Option<f64>,
    label: Option<String>,
    retried: Option<f64>,
) -> Begun {
    let has = move |bit| how & bit != 0;
    let (auto_extend, fair, thorough, gives_back) = (has(AUTO_EXTEND), has(FAIR), has(THOROUGH), has(GIVES_BACK));
    let asked = Asked { ttl, wait, auto_extend, fair, thorough, gives_back, max_hold, label, retried };
    let options = match asked.options() {
        Ok(options) => options,
        Err(error) => return failed(error),
    };
    let target = target(resource, mode);
    with_manager(env, manager, |locks, driver| async move {
        if has(ONCE) {
            Outcome::Tried(locks.try_acquire_by(target, options, &driver).await)
        } else {
            let lease = locks.acquire_by(target, options, &driver).await;
            Outcome::Acquired { lease, stays: has(STAYS) }
        }
    })
}

/// Who holds a resource.
#[napi(catch_unwind)]
pub fn inspect(env: Env, manager: f64, resource: String) -> Begun {
    with_manager(env, manager, |locks, driver| async move {
        Outcome::Inspected(locks.inspect_by(&resource, &driver).await)
    })
}

/// Who holds what matches.
#[napi(catch_unwind)]
pub fn list(env: Env, manager: f64, pattern: String, limit: f64) -> Begun {
    // What is no such number becomes 0, which the engine refuses.
    let limit = if limit.fract() == 0.0 && (0.0..=1e9).contains(&limit) { limit as usize } else { 0 };
    with_manager(env, manager, |locks, driver| async move {
        Outcome::Listed(locks.list_by(&pattern, limit, &driver).await)
    })
}

/// Takes a resource away from the holder that was seen: by its fencing token, or by its owner.
#[napi(catch_unwind)]
pub fn break_lock(
    env: Env,
    manager: f64,
    resource: String,
    fencing_token: Option<BigInt>,
    owner: Option<String>,
) -> Begun {
    let seen = match (fencing_token.map(|token| token.get_u64()), owner) {
        (_, Some(owner)) => Seen::Owner(owner),
        (Some((false, token @ 1.., true)), None) => Seen::FencingToken(token),
        _ => return failed(Error::invalid("seen", "must be positive, and below 2^64").on(&resource)),
    };
    with_manager(env, manager, |locks, driver| async move {
        Outcome::Was(locks.break_lock_by(&resource, seen, &driver).await)
    })
}

/// Makes what an owner holds, whoever that is, last for another ttl; says whether it is that one's.
#[napi(catch_unwind)]
pub fn extend_for(env: Env, manager: f64, resources: Vec<String>, owner: String, ttl: f64) -> Begun {
    let ttl = match duration("ttl", ttl, MILLISECOND) {
        Ok(ttl) => ttl,
        Err(error) => return failed(error),
    };
    with_manager(env, manager, |locks, driver| async move {
        Outcome::Was(locks.extend_for_by(Target::all(resources), &owner, ttl, &driver).await)
    })
}

/// What was done through a manager; a failed reply if it is gone.
#[napi(catch_unwind)]
pub fn metrics(env: Env, manager: f64) -> Either<Vec<MetricRecord>, Reply> {
    let metrics = || observe::metrics(&opened(env)?.manager(id(manager))?);
    metrics().map_or_else(|error| Either::B(Reply::Failed(error)), Either::A)
}

/// The same as text for Prometheus.
#[napi(catch_unwind)]
pub fn metrics_text(env: Env, manager: f64) -> Either<String, Reply> {
    let text = || Ok(opened(env)?.manager(id(manager))?.metrics()?.to_prometheus());
    text().map_or_else(|error| Either::B(Reply::Failed(error)), Either::A)
}

/// Has a manager's events come, under the number that this gives.
#[napi(catch_unwind)]
pub fn subscribe(env: Env, manager: f64) -> Reply {
    let subscribed = || {
        let environment = opened(env)?;
        environment.subscribe(&environment.manager(id(manager))?)
    };
    Reply::number(subscribed())
}

/// Ends what [`subscribe`] began.
#[napi(catch_unwind)]
pub fn unsubscribe(env: Env, subscription: f64) {
    if let Some(environment) = Environment::of(env) {
        environment.unsubscribe(id(subscription));
    }
}

/// How many wait for a resource here.
#[napi(catch_unwind)]
pub fn waiting(env: Env, manager: f64, resource: String) -> Reply {
    let waiting = || opened(env)?.manager(id(manager))?.waiting(&resource);
    Reply::number(waiting().map(|waiting| waiting as u64))
}

/// What the backend can do; a failed reply if the manager is gone.
#[napi(catch_unwind)]
pub fn capabilities(env: Env, manager: f64) -> Either<CapabilitiesRecord, Reply> {
    let capabilities = || Ok(opened(env)?.manager(id(manager))?.capabilities());
    match capabilities() {
        Ok(capabilities) => Either::A(capabilities.into()),
        Err(error) => Either::B(Reply::Failed(error)),
    }
}

/// Closes a manager.
#[napi(catch_unwind)]
pub fn close(env: Env, manager: f64) -> Begun {
    with_manager(env, manager, |locks, _| async move {
        locks.close().await;
        Outcome::Closed
    })
}

/// Nobody has the manager any more.
#[napi(catch_unwind)]
pub fn forget_manager(env: Env, manager: f64) {
    if let Some(environment) = Environment::of(env) {
        environment.forget_manager(id(manager));
    }
}

/// Makes a lease last longer.
#[napi(catch_unwind)]
pub fn extend(env: Env, lease: f64, ttl: Option<f64>) -> Begun {
    let extension = || {
        let environment = opened(env)?;
        let lease = environment.lease(id(lease)).ok_or_else(not_held)?;
        let ttl = ttl
            .map(|ttl| duration("ttl", ttl, MILLISECOND))
            .transpose()
            .map_err(|error| error.on(lease.resource().as_str()))?;
        let driver = environment.driver();
        Ok(environment.start(async move { Outcome::Extended(lease.extend_by(ttl, &driver).await) }))
    };
    extension().unwrap_or_else(failed)
}

/// Releases a lease. With the outcome its number is forgotten.
#[napi(catch_unwind)]
pub fn release(env: Env, lease: f64) -> Begun {
    let number = id(lease);
    let release = || {
        let environment = opened(env)?;
        let lease = environment.lease(number).ok_or_else(not_held)?;
        let driver = environment.driver();
        Ok(environment.start(async move {
            let released = lease.end_by(&driver).await;
            Outcome::Released(number, released, lease.loss())
        }))
    };
    release().unwrap_or_else(failed)
}

/// Nobody has the lease any more: released in the background if it is held. Then its resource is told.
#[napi(catch_unwind)]
pub fn forget_lease(env: Env, lease: f64) -> Option<String> {
    let lease = Environment::of(env)?.take_lease(id(lease))?;
    lease.is_held().then(|| lease.resource().as_str().to_owned())
}

/// Leaves a lease to its ttl: it is not renewed any more, and nobody is told when it ends.
#[napi(catch_unwind)]
pub fn leave(env: Env, lease: f64) -> Reply {
    let lease = Environment::of(env).and_then(|environment| environment.lease(id(lease)));
    lease.map_or(Ok(()), |lease| lease.leave()).map_or_else(Reply::Failed, |()| Reply::Done)
}

/// Until when the holder may act, as `Date.now()` counts; `null` for a lease that was forgotten.
#[napi(catch_unwind)]
pub fn deadline(env: Env, lease: f64) -> Option<f64> {
    let lease = Environment::of(env)?.lease(id(lease))?;
    Some(epoch_ms(lease.deadline().to_system_time()))
}

/// For how many milliseconds the holder may still act.
#[napi(catch_unwind)]
pub fn remaining(env: Env, lease: f64) -> f64 {
    let lease = Environment::of(env).and_then(|environment| environment.lease(id(lease)));
    lease.map_or(0.0, |lease| lease.remaining().as_secs_f64() * 1e3)
}

/// Whether the holder may act now.
#[napi(catch_unwind)]
pub fn is_held(env: Env, lease: f64) -> bool {
    let lease = Environment::of(env).and_then(|environment| environment.lease(id(lease)));
    lease.is_some_and(|lease| lease.is_held())
}

/// Why a lease was lost, if it was.
#[napi(catch_unwind)]
pub fn loss(env: Env, lease: f64) -> Option<&'static str> {
    let lease = Environment::of(env)?.lease(id(lease))?;
    lease.loss().map(|reason| reason.name())
}

/// What kept a lease from being extended, if its deadline passed for that.
#[napi(catch_unwind)]
pub fn last_failure(env: Env, lease: f64) -> Option<String> {
    let lease = Environment::of(env)?.lease(id(lease))?;
    lease.last_failure().map(|failure| failure.to_string())
}

/// Ends every operation of this environment and releases every lease of the process, within `ms`. For its end.
#[napi(catch_unwind)]
pub fn shutdown(env: Env, ms: u32) {
    if let Some(environment) = Environment::of(env) {
        environment.cancel_all();
        environment.leave_staying();
    }
    polylock::shutdown(Duration::from_millis(u64::from(ms)));
}

/// Does what the command line `polylock` is told; the first argument is the program's name. Returns the status.
#[napi(catch_unwind)]
pub fn command_line(arguments: Vec<String>) -> u32 {
    polylock_cli::command_line(arguments.into_iter().map(Into::into)).into()
}

/// Starts an operation of a manager.
fn with_manager<F: Future<Output = Outcome> + Send + 'static>(
    env: Env,
    manager: f64,
    operation: impl FnOnce(LockManager, Driver) -> F,
) -> Begun {
    let started = || {
        let environment = opened(env)?;
        let manager = environment.manager(id(manager))?;
        Ok(environment.start(operation(manager, environment.driver())))
    };
    started().unwrap_or_else(failed)
}

fn opened(env: Env) -> Result<std::rc::Rc<Environment>> {
    Environment::of(env).ok_or_else(|| Error::new(ErrorKind::Internal, "the addon was not opened"))
}

fn failed(error: Error) -> Begun {
    Begun::Done(0, Reply::Failed(error))
}

fn not_held() -> Error {
    Error::new(ErrorKind::Lost, "the lease is not held any more")
}

/// A number that this addon gave out. Anything else becomes one that names nothing.
fn id(number: f64) -> u64 {
    number as u64
}
