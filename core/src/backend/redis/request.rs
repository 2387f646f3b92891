//! What is asked of a server: a script, its keys and its arguments.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use redis::Value;

use super::{
    call::{CallError, Reply},
    holder,
    keys::Keys,
    restart::Run,
    script::{self, Script},
};
use crate::{
    Mode, Resource,
    backend::{Claim, Progress, Turn},
    clock::{self, Instant},
    engine::driver::Driver,
    metrics::{NodeStats, Sample},
    mutant::mutant,
};

/// The fence outlives its last use by this at least: long against any ttl, and against clocks that are set back.
const FENCE_OUTLIVES: Duration = Duration::from_secs(30 * 24 * 3600);

/// One server, as the algorithm sees it.
pub(super) trait Server: Send + Sync {
    /// What errors call it.
    fn name(&self) -> &str;

    /// The run that it is in, as far as is known.
    fn known_run(&self) -> Option<Run>;

    /// What has become of the requests to it.
    fn stats(&self) -> &NodeStats;

    /// Runs a script there, on the connection that `driver` drives.
    fn run(self: Arc<Self>, request: Arc<Request>, driver: Driver) -> BoxFuture<'static, Answer>;

    /// The server's clock shows `now_ms`, whatever it showed when it was last looked at.
    fn set_clock(&self, driver: &Driver, now_ms: i64);

    /// Sends one plain command, once.
    fn command(self: Arc<Self>, command: redis::Cmd, driver: Driver, expires: Instant) -> BoxFuture<'static, Reply>;

    /// The servers that it consists of.
    fn parts(self: Arc<Self>, expires: Instant) -> BoxFuture<'static, Result<Vec<Arc<dyn Server>>, CallError>>;

    /// Reads what has come on connections whose driver may be away.
    fn look(&self) {}

    /// Lets go of connections; there will be no others.
    fn close(&self);

    /// Whether it was closed.
    fn is_closed(&self) -> bool;
}

/// What became of a request.
pub(super) type Answer = Result<Answered, CallError>;

/// What a script answered.
pub(super) struct Answered {
    pub(super) value: Value,
    /// It was sent more than once: an earlier request may have been carried out before this one, or may yet be.
    pub(super) repeated: bool,
}

/// The answer, once it is there, counted.
pub(super) async fn counted(stats: &NodeStats, answer: impl Future<Output = Answer>) -> Answer {
    let sample = stats.ask();
    let answer = answer.await;
    match &answer {
        Ok(Answered { repeated: false, .. }) | Err(CallError::Refused(_) | CallError::BrokenOff(_)) => {
            stats.answered(sample);
        }
        Ok(_) => stats.answered(Sample::default()),
        Err(_) => stats.unanswered(),
    }
    answer
}

/// A script to run; the same for all servers.
pub(super) struct Request {
    pub(super) script: &'static Script,
    pub(super) keys: Vec<String>,
    args: Vec<Arg>,
    /// No answer is waited for after this.
    pub(super) expires: Instant,
    progress: Arc<Progress>,
}

enum Arg {
    Text(String),
    /// The server's time, in ms, at which the request expires.
    NotAfter,
}

/// How a lock with several holders is kept: what stands before the owner token, and how many may hold (0: any
/// number).
fn sharing(mode: Mode) -> Option<(&'static str, u32)> {
    match mode {
        Mode::Exclusive => None,
        Mode::Shared => Some(("shared:", 0)),
        Mode::Permit { of } => Some(("permit:", of)),
    }
}

impl Request {
    fn new(script: &'static Script, keys: Vec<String>, args: Vec<Arg>, claim: &Claim, expires: Instant) -> Arc<Self> {
        Arc::new(Self { script, keys, args, expires, progress: Arc::clone(&claim.progress) })
    }

    /// Takes the locks.
    pub(super) fn acquire(keys: &Keys, claim: &Claim, expires: Instant) -> Arc<Self> {
        let mut args = vec![
            Arg::text(claim.owner),
            Arg::text(millis(claim.ttl)),
            Arg::text(clock::unix_micros()),
            Arg::NotAfter,
            Arg::text(holder::record(claim.label.as_deref())),
            Arg::text(millis(outlives(claim.ttl))),
        ];
        let (script, keys) = match (sharing(claim.mode), claim.resources.len(), &claim.turn) {
            (None, 1, None) => (&script::ACQUIRE, keys.locks_fences_and_writers()),
            (None, 1, Some(turn)) => {
                let remember = if claim.waits { Turn::STAYS } else { Duration::ZERO };
                args.extend([
                    Arg::text(turn.number),
                    Arg::text(turn.waited.as_micros()),
                    Arg::text(millis(remember)),
                ]);
                args.push(Arg::text(u8::from(turn.insists)));
                (&script::ACQUIRE_IN_TURN, [keys.locks_fences_and_writers(), keys.queues()].concat())
            }
            (None, ..) => (&script::ACQUIRE_ALL, keys.locks_and_fences()),
            (Some((kind, limit)), ..) => {
                args.extend([Arg::text(kind), Arg::text(limit)]);
                (&script::SHARE, keys.locks_fences_and_writers())
            }
        };
        Self::new(script, keys, args, claim, expires)
    }

    /// Writes the token back where the locks are held.
    pub(super) fn raise(keys: &Keys, claim: &Claim, token: u64, expires: Instant) -> Arc<Self> {
        let kind = sharing(claim.mode).map_or("", |(kind, _)| kind);
        let args = vec![Arg::text(format_args!("{kind}{}", claim.owner)), Arg::text(token)];
        Self::new(&script::RAISE, keys.locks_and_fences(), args, claim, expires)
    }

    /// Lets the locks live on.
    pub(super) fn extend(keys: &Keys, claim: &Claim, ttl: Duration, expires: Instant) -> Arc<Self> {
        let mut args = vec![Arg::text(claim.owner), Arg::text(millis(ttl))];
        let script = match sharing(claim.mode) {
            None => &script::EXTEND,
            Some((kind, _)) => {
                args.push(Arg::text(kind));
                &script::SHARE_EXTEND
            }
        };
        Self::new(script, keys.locks(), args, claim, expires)
    }

    /// Puts the locks back on a server that lost them.
    pub(super) fn repair(keys: &Keys, claim: &Claim, token: u64, ttl: Duration, expires: Instant) -> Arc<Self> {
        let args = vec![
            Arg::text(claim.owner),
            Arg::text(millis(ttl)),
            Arg::text(token),
            Arg::NotAfter,
            Arg::text(millis(outlives(ttl))),
        ];
        Self::new(&script::REPAIR, keys.locks_and_fences(), args, claim, expires)
    }

    /// Frees the locks.
    pub(super) fn release(keys: &Keys, claim: &Claim, expires: Instant) -> Arc<Self> {
        let mut args = vec![Arg::text(claim.owner)];
        let script = match sharing(claim.mode) {
            None => &script::RELEASE,
            Some((kind, _)) => {
                args.push(Arg::text(kind));
                &script::SHARE_RELEASE
            }
        };
        args.extend(keys.channels().into_iter().map(Arg::Text));
        Self::new(script, keys.locks(), args, claim, expires)
    }

    /// Gives up a place in the line.
    pub(super) fn leave(prefix: &str, resource: &Resource, turn: &Turn, expires: Instant) -> Arc<Self> {
        let keys = Keys::of(prefix, std::slice::from_ref(resource));
        let args = [turn.number.to_string()].into_iter().chain(keys.channels()).map(Arg::Text).collect();
        let keys = [keys.locks(), keys.queues()].concat();
        Arc::new(Self { script: &script::LEAVE, keys, args, expires, progress: Arc::default() })
    }

    /// Looks at a lock.
    pub(super) fn inspect(prefix: &str, resource: &Resource, expires: Instant) -> Arc<Self> {
        let keys = Keys::of(prefix, std::slice::from_ref(resource));
        let args = keys.channels().into_iter().map(Arg::Text).collect();
        let keys = keys.locks_and_fences();
        Arc::new(Self { script: &script::INSPECT, keys, args, expires, progress: Arc::default() })
    }

    /// Takes a lock away from `owner`.
    pub(super) fn break_lock(prefix: &str, resource: &Resource, owner: &str, expires: Instant) -> Arc<Self> {
        let keys = Keys::of(prefix, std::slice::from_ref(resource));
        let args = [owner.to_owned()].into_iter().chain(keys.channels()).map(Arg::Text).collect();
        Arc::new(Self { script: &script::BREAK, keys: keys.locks(), args, expires, progress: Arc::default() })
    }

    /// Whether `answer` says that something was granted, or goes on.
    pub(super) fn is_granted(&self, answer: &Value) -> bool {
        let grants = [
            &script::ACQUIRE,
            &script::ACQUIRE_IN_TURN,
            &script::ACQUIRE_ALL,
            &script::SHARE,
            &script::EXTEND,
            &script::SHARE_EXTEND,
        ];
        let granted = match answer {
            Value::Array(parts) => matches!(parts[..], [Value::Int(1), ..]),
            answer => *answer == Value::Int(1),
        };
        granted && grants.iter().any(|script| std::ptr::eq(*script, self.script))
    }

    /// The arguments for a server whose clock shows `server_time` when the request expires. A claim that is over
    /// must not be granted anywhere any more: its time is up.
    pub(super) fn args(&self, server_time: i64) -> Vec<String> {
        let not_after = match self.progress.is_over() {
            _ if mutant!("D15") => i64::MAX,
            true => 0,
            false => server_time,
        };
        let arg = |arg: &Arg| match arg {
            Arg::Text(text) => text.clone(),
            Arg::NotAfter => not_after.to_string(),
        };
        self.args.iter().map(arg).collect()
    }
}

impl Arg {
    fn text(value: impl ToString) -> Self {
        Self::Text(value.to_string())
    }
}

/// How long the fence of a lock with this ttl outlives it.
fn outlives(ttl: Duration) -> Duration {
    FENCE_OUTLIVES.max(ttl.saturating_mul(2))
}

/// Redis counts whole milliseconds; rounding up keeps the lock at least as long as its holder thinks.
fn millis(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000)
}
