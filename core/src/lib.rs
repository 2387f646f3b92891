//! # polylock: one lock engine, every language
//!
//! Takes, renews and releases distributed locks on servers that you already run, or on files where there is
//! none. Each lease has a fencing token, is renewed in the background, and its holder is told in time when
//! it is lost. The Python, Node and C packages of the same name are this engine.
//!
//! ```
//! use std::time::Duration;
//! use polylock::Acquire;
//!
//! # async fn charge(_: u64) {}
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> polylock::Result<()> {
//! let locks = polylock::connect("memory:").await?; // or "redis://localhost:6379"
//! let ten_seconds = Acquire::ttl(Duration::from_secs(10)).wait(Duration::from_secs(5));
//! let lease = locks.acquire("invoice:42", ten_seconds).await?;
//! charge(lease.fencing_token()).await;
//! lease.release().await?;
//! # Ok(()) }
//! ```
//!
//! Without an async runtime, see [`blocking`]. Any executor will do; on tokio, connections live on the
//! caller's own runtime, and renewal on the engine's in every case.

mod acquire;
mod backend;
pub mod blocking;
mod clock;
mod completion;
mod connect;
mod engine;
mod error;
mod events;
pub mod fencing;
mod inspection;
mod lease;
mod line;
mod manager;
mod metrics;
mod mutant;
mod options;
mod pattern;
mod resource;
#[cfg(test)]
mod simulation;
mod target;
mod token;
mod undo;
mod waiters;

pub use backend::{Capabilities, Guarantee, Release};
pub use clock::Instant;
pub use connect::{Connect, IntoUrls};
pub use engine::runtime::shutdown;
pub use error::{Error, ErrorKind, Result};
pub use events::{Event, EventKind, Events};
pub use inspection::{Holder, Seen};
pub use lease::{Lease, LossReason};
pub use manager::LockManager;
pub use metrics::{Metric, MetricKind, Metrics, Point, Value};
pub use options::Acquire;
pub use resource::Resource;
pub use target::{Mode, Target};
pub use token::OwnerToken;

pub use backend::postgres::transaction as postgres;

/// For the bindings: event loops and numbers of other languages.
pub mod host {
    pub use crate::completion::{CompletionQueue, OperationId, Started};
    pub use crate::engine::driver::Driver;
    pub use crate::engine::process::{Made, PerProcess, generation, has_mark, inherited_fds, keep_mark};
    pub use crate::engine::reactor::HostSocket;
    pub use crate::engine::runtime::{end, try_spawn};
    pub use crate::error::Trouble;
    pub use crate::options::duration;
}

/// Names where locks are kept: a URL, or a list of Redis URLs. See [`Connect`] for the URLs, and await it.
pub fn connect(urls: impl IntoUrls) -> Connect {
    Connect::new(urls.into_urls())
}
