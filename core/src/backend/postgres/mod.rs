//! Locks in a PostgreSQL database, where an application's data already is.
//!
//! One row per name in a table ([`lease`]): exact names, a ttl, the fencing counter in the row, one statement for
//! each step, so that it works through a pooler that gives each transaction another session.

mod config;
mod connection;
mod failure;
mod lease;
mod listener;
mod pool;
mod tls;

use std::sync::Arc;

use self::{config::Config, lease::LeaseBackend};
use super::Backend;
use crate::{Result, connect::Options};

/// For `postgres://…`. Touches nothing yet.
///
/// # Errors
/// `InvalidArgument` naming `url`.
pub(crate) fn backend(url: &str, options: &Options) -> Result<Box<dyn Backend>> {
    let config = Arc::new(Config::parse(url)?);
    Ok(Box::new(LeaseBackend::new(config, options)))
}
