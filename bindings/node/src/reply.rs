//! What the addon answers: four values, of which the second says what the others are.

use std::time::{SystemTime, UNIX_EPOCH};

use napi::{Env, bindgen_prelude::ToNapiValue, sys};
use napi_derive::napi;
use polylock::{Error, Event, Guarantee, Holder, Lease, LossReason, OwnerToken, Release, Result, host::OperationId};

use crate::{environment::Environment, observe::EventRecord};

/// How an operation ended, or what happened to a lease.
pub(crate) enum Outcome {
    /// `stays`: the end of the environment leaves it to its ttl.
    Acquired {
        lease: Result<Lease>,
        stays: bool,
    },
    Tried(Result<Option<Lease>>),
    Extended(Result<()>),
    /// Of this lease, with why it had been lost before.
    Released(u64, Result<Option<Release>>, Option<LossReason>),
    Inspected(Result<Option<Holder>>),
    Listed(Result<Vec<Holder>>),
    Was(Result<bool>),
    Closed,
    Lost(LossReason),
    /// What subscribers are told; nobody waits for it.
    Told(Vec<Event>),
}

/// What starting an operation gives.
pub(crate) enum Begun {
    /// The number of the operation that the outcome will come for.
    Pending(u64),
    /// It is done at once, and had this number.
    Done(u64, Reply),
}

/// As JavaScript gets it: a number that says what it is, and up to two values. These are in `ts/native.ts` as well.
pub(crate) enum Reply {
    /// `0, error`
    Failed(Error),
    /// `1`
    Done,
    /// `2, owner token, fencing token`; the lease has the number of the operation.
    Leased(OwnerToken, u64),
    /// `3`
    Busy,
    /// `4, name, why it had been lost`; the name is `ended` for a lease that had been released or lost before.
    Released(Option<Release>, Option<LossReason>),
    /// `5, holder or null`
    Inspected(Option<Holder>),
    /// `6, reason`
    Lost(LossReason),
    /// `7, number`: a manager, or a count.
    Number(u64),
    /// `8, holders`
    Listed(Vec<Holder>),
    /// `9, whether it was`
    Was(bool),
    /// `10, events`
    Told(Vec<Event>),
}

impl Reply {
    /// The outcome of operation `id`.
    pub(crate) fn of(id: OperationId, outcome: Outcome, environment: &Environment) -> Self {
        let leased = |lease: Lease, stays| {
            let reply = Self::Leased(*lease.owner_token(), lease.fencing_token());
            environment.adopt_lease(id, lease, stays);
            reply
        };
        let reply = match outcome {
            Outcome::Acquired { lease, stays } => lease.map(|lease| leased(lease, stays)),
            Outcome::Tried(Ok(None)) => Ok(Self::Busy),
            Outcome::Tried(Ok(Some(lease))) => Ok(leased(lease, false)),
            Outcome::Tried(Err(error)) => Err(error),
            Outcome::Extended(extended) => extended.map(|()| Self::Done),
            Outcome::Released(lease, released, loss) => released.map(|release| {
                drop(environment.take_lease(lease));
                Self::Released(release, loss)
            }),
            Outcome::Inspected(holder) => holder.map(Self::Inspected),
            Outcome::Listed(holders) => holders.map(Self::Listed),
            Outcome::Was(was) => was.map(Self::Was),
            Outcome::Told(events) => Ok(Self::Told(events)),
            Outcome::Closed => Ok(Self::Done),
            Outcome::Lost(reason) => Ok(Self::Lost(reason)),
        };
        reply.unwrap_or_else(Self::Failed)
    }

    /// The number that `result` gave, or its error.
    pub(crate) fn number(result: Result<u64>) -> Self {
        result.map_or_else(Self::Failed, Self::Number)
    }
}

/// Outcomes of operations as JavaScript gets them: one after the other, four values each.
pub(crate) fn values(
    env: Env,
    replies: impl Iterator<Item = (OperationId, Reply)>,
) -> napi::Result<Vec<sys::napi_value>> {
    let mut values = Vec::with_capacity(replies.size_hint().0 * 4);
    for (id, reply) in replies {
        // SAFETY: `env` is live: it is the environment that this runs in.
        values.extend_from_slice(&unsafe { four_values(env.raw(), id, reply) }?);
    }
    Ok(values)
}

/// `id, kind, value, value`
///
/// # Safety
/// `env` is live.
unsafe fn four_values(env: sys::napi_env, id: u64, reply: Reply) -> napi::Result<[sys::napi_value; 4]> {
    // SAFETY: the caller's promise.
    unsafe {
        let nothing = <()>::to_napi_value(env, ())?;
        let (kind, first, second) = match reply {
            Reply::Failed(error) => (0, ToNapiValue::to_napi_value(env, ErrorRecord::from(error))?, nothing),
            Reply::Done => (1, nothing, nothing),
            Reply::Leased(owner, token) => (2, latin1(env, owner.as_str())?, f64::to_napi_value(env, number(token))?),
            Reply::Busy => (3, nothing, nothing),
            Reply::Released(release, loss) => {
                let loss = loss.map_or(Ok(nothing), |reason| latin1(env, reason.name()))?;
                (4, latin1(env, release.map_or("ended", Release::name))?, loss)
            }
            Reply::Inspected(holder) => {
                (5, ToNapiValue::to_napi_value(env, holder.map(HolderRecord::from))?, nothing)
            }
            Reply::Lost(reason) => (6, latin1(env, reason.name())?, nothing),
            Reply::Number(count) => (7, f64::to_napi_value(env, number(count))?, nothing),
            Reply::Listed(holders) => {
                let holders: Vec<_> = holders.into_iter().map(HolderRecord::from).collect();
                (8, ToNapiValue::to_napi_value(env, holders)?, nothing)
            }
            Reply::Was(was) => (9, bool::to_napi_value(env, was)?, nothing),
            Reply::Told(events) => {
                let events: Vec<_> = events.into_iter().map(EventRecord::from).collect();
                (10, ToNapiValue::to_napi_value(env, events)?, nothing)
            }
        };
        Ok([f64::to_napi_value(env, number(id))?, u32::to_napi_value(env, kind)?, first, second])
    }
}

/// ASCII alone: quicker to make than a string of UTF-8.
///
/// # Safety
/// `env` is live.
unsafe fn latin1(env: sys::napi_env, text: &str) -> napi::Result<sys::napi_value> {
    let mut value = std::ptr::null_mut();
    let length = text.len().cast_signed();
    // SAFETY: the caller's promise; the text is as long as said, and `value` is a valid place.
    let status = unsafe { sys::napi_create_string_latin1(env, text.as_ptr().cast(), length, &raw mut value) };
    if status == sys::Status::napi_ok { Ok(value) } else { Err(napi::Error::from_status(status.into())) }
}

impl ToNapiValue for Reply {
    // SAFETY: called by generated code with a live environment; the calls below pass that on.
    unsafe fn to_napi_value(env: sys::napi_env, reply: Self) -> napi::Result<sys::napi_value> {
        // SAFETY: as above.
        unsafe { Begun::to_napi_value(env, Begun::Done(0, reply)) }
    }
}

impl ToNapiValue for Begun {
    // SAFETY: called by generated code with a live environment; the calls below pass that on.
    unsafe fn to_napi_value(env: sys::napi_env, begun: Self) -> napi::Result<sys::napi_value> {
        // SAFETY: as above.
        unsafe {
            match begun {
                Self::Pending(id) => f64::to_napi_value(env, number(id)),
                Self::Done(id, reply) => {
                    let [id, kind, first, second] = four_values(env, id, reply)?.map(Value);
                    ToNapiValue::to_napi_value(env, (id, kind, first, second))
                }
            }
        }
    }
}

/// What is a value of JavaScript already.
struct Value(sys::napi_value);

impl ToNapiValue for Value {
    // SAFETY: it was made in the same environment and scope.
    unsafe fn to_napi_value(_: sys::napi_env, value: Self) -> napi::Result<sys::napi_value> {
        Ok(value.0)
    }
}

/// Ids and counts are far below 2^53, which a double counts exactly.
pub(crate) fn number(id: u64) -> f64 {
    id as f64
}

/// A [`polylock::Error`].
#[napi(object, object_from_js = false)]
pub struct ErrorRecord {
    /// The stable number.
    pub number: u32,
    /// The stable name.
    pub code: String,
    /// A sentence with resource and causes in it.
    pub message: String,
    /// What the operation was about.
    pub resource: Option<String>,
    /// The argument that was wrong.
    pub argument: Option<String>,
    /// What each node said.
    pub causes: Vec<String>,
    /// Whether the same call may succeed later.
    pub retryable: bool,
}

impl From<Error> for ErrorRecord {
    fn from(error: Error) -> Self {
        Self {
            number: error.kind().code(),
            code: error.kind().name().to_owned(),
            message: error.to_string(),
            resource: error.resource().map(str::to_owned),
            argument: error.argument().map(str::to_owned),
            causes: error.causes().to_vec(),
            retryable: error.is_retryable(),
        }
    }
}

/// A [`polylock::Holder`].
#[napi(object, object_from_js = false)]
pub struct HolderRecord {
    /// Its owner token, or any text of another library.
    pub owner: String,
    /// Its fencing token.
    #[napi(ts_type = "bigint | undefined")]
    pub fencing_token: Option<u64>,
    /// Milliseconds until it expires.
    pub expires_in: Option<f64>,
    /// Milliseconds since 1970 by the holder's clock.
    pub since: Option<f64>,
    /// Where its process runs.
    pub host: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// What it called itself.
    pub label: Option<String>,
    /// What is held.
    pub resource: String,
    /// `exclusive`, `shared` or `permit`.
    pub mode: String,
    /// Managers that have somebody waiting.
    pub waiting: Option<u32>,
}

impl From<Holder> for HolderRecord {
    fn from(holder: Holder) -> Self {
        Self {
            owner: holder.owner,
            fencing_token: holder.fencing_token,
            expires_in: holder.expires_in.map(|left| left.as_secs_f64() * 1e3),
            since: holder.since.map(epoch_ms),
            host: holder.host,
            pid: holder.pid,
            label: holder.label,
            resource: holder.resource.to_string(),
            mode: holder.mode.to_owned(),
            waiting: holder.waiting,
        }
    }
}

/// [`polylock::Capabilities`].
#[napi(object, object_from_js = false)]
pub struct CapabilitiesRecord {
    /// `best_effort`, `lease` or `fenced`.
    pub guarantee: String,
    /// Each lease has a fencing token.
    pub fencing: bool,
    /// Other processes are excluded.
    pub across_processes: bool,
    /// Other hosts are excluded.
    pub across_hosts: bool,
    /// `shared` works.
    pub shared: bool,
    /// `semaphore` works.
    pub semaphore: bool,
    /// `acquireAll` works.
    pub several: bool,
    /// `inspect` works.
    pub inspection: bool,
    /// `list` works.
    pub listing: bool,
    /// `break` works.
    pub breaking: bool,
    /// Locks that are asked for with `fair` are given in the order in which it was asked.
    pub fair: bool,
}

impl From<polylock::Capabilities> for CapabilitiesRecord {
    fn from(can: polylock::Capabilities) -> Self {
        let guarantee = match can.guarantee {
            Guarantee::BestEffort => "best_effort",
            Guarantee::Lease => "lease",
            Guarantee::Fenced => "fenced",
        };
        Self {
            guarantee: guarantee.to_owned(),
            fencing: can.fencing,
            across_processes: can.across_processes,
            across_hosts: can.across_hosts,
            shared: can.shared,
            semaphore: can.semaphore,
            several: can.several,
            inspection: can.inspection,
            listing: can.listing,
            breaking: can.breaking,
            fair: can.fair,
        }
    }
}

/// A point in time as `Date.now()` counts: whole milliseconds since 1970.
pub(crate) fn epoch_ms(at: SystemTime) -> f64 {
    let ms = at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3);
    ms.floor()
}
