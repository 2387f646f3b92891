//! What the addon answers: small arrays, whose first element says what the rest is.

use std::time::{SystemTime, UNIX_EPOCH};

use napi::{bindgen_prelude::ToNapiValue, sys};
use napi_derive::napi;
use polylock::{Error, Guarantee, Holder, Lease, LossReason, Release, Result};

use crate::environment::Environment;

/// How an operation ended, or what happened to a lease.
pub(crate) enum Outcome {
    Acquired(Result<Lease>),
    Tried(Result<Option<Lease>>),
    Extended(Result<()>),
    Released(Result<Option<Release>>),
    Inspected(Result<Option<Holder>>),
    Closed,
    Lost(LossReason),
}

/// As JavaScript gets it. The numbers are in `ts/native.ts` as well.
pub(crate) enum Reply {
    /// A number: the operation that the outcome will come for.
    Pending(u64),
    /// `[0, error]`
    Failed(Error),
    /// `[1]`
    Done,
    /// `[2, lease, owner token, fencing token]`
    Leased { id: u64, owner: String, fencing_token: u64 },
    /// `[3]`
    Busy,
    /// `[4, name]`; the name is `ended` for a lease that had been released or lost before.
    Released(Option<Release>),
    /// `[5, holder or null]`
    Inspected(Option<Holder>),
    /// `[6, reason]`
    Lost(LossReason),
    /// `[7, number]`: a manager, or a count.
    Number(u64),
}

impl Reply {
    pub(crate) fn of(outcome: Outcome, environment: &Environment) -> Self {
        let leased = |lease: Lease| {
            let (owner, fencing_token) = (lease.owner_token().as_str().to_owned(), lease.fencing_token());
            environment.adopt_lease(lease).map(|id| Self::Leased { id, owner, fencing_token })
        };
        let reply = match outcome {
            Outcome::Acquired(lease) => lease.and_then(leased),
            Outcome::Tried(Ok(None)) => Ok(Self::Busy),
            Outcome::Tried(Ok(Some(lease))) => leased(lease),
            Outcome::Tried(Err(error)) => Err(error),
            Outcome::Extended(extended) => extended.map(|()| Self::Done),
            Outcome::Released(released) => released.map(Self::Released),
            Outcome::Inspected(holder) => holder.map(Self::Inspected),
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

impl ToNapiValue for Reply {
    // SAFETY: called by generated code with a live environment; the calls below pass that on.
    unsafe fn to_napi_value(env: sys::napi_env, reply: Self) -> napi::Result<sys::napi_value> {
        // SAFETY: as above.
        unsafe {
            match reply {
                Self::Pending(id) => f64::to_napi_value(env, number(id)),
                Self::Failed(error) => ToNapiValue::to_napi_value(env, (0, ErrorRecord::from(error))),
                Self::Done => ToNapiValue::to_napi_value(env, vec![1]),
                Self::Leased { id, owner, fencing_token } => {
                    ToNapiValue::to_napi_value(env, (2, number(id), owner, fencing_token))
                }
                Self::Busy => ToNapiValue::to_napi_value(env, vec![3]),
                Self::Released(release) => {
                    ToNapiValue::to_napi_value(env, (4, release.map_or("ended", Release::name)))
                }
                Self::Inspected(holder) => ToNapiValue::to_napi_value(env, (5, holder.map(HolderRecord::from))),
                Self::Lost(reason) => ToNapiValue::to_napi_value(env, (6, reason.name())),
                Self::Number(id) => ToNapiValue::to_napi_value(env, (7, number(id))),
            }
        }
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
        }
    }
}

/// A point in time as `Date.now()` counts: whole milliseconds since 1970.
pub(crate) fn epoch_ms(at: SystemTime) -> f64 {
    let ms = at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3);
    ms.floor()
}
