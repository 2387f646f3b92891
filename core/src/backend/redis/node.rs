//! One server: its connections, one for each driver, and scripts run on it.
//!
//! A request whose connection turns out to be dead is sent again on a new one while its time lasts. That is safe
//! because every script may be run twice (an acquire by the owner token that holds is "granted"), and
//! because the dead connection was reset. No answer in time is never followed by a second request.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{FutureExt, Shared};
use redis::Value;

use super::{
    call::{CallError, Reply},
    config::NodeConfig,
    connection::Connection,
    open,
    script::Script,
};
use crate::{
    clock::Instant,
    engine::{
        driver::{Driver, DriverId},
        runtime, timer,
    },
};

pub(super) struct Node {
    config: NodeConfig,
    lanes: Mutex<HashMap<DriverId, Lane>>,
}

/// The connection that one driver drives.
enum Lane {
    Opening(Opening),
    Open(Arc<Connection>),
}

type Opening = Shared<Pin<Box<dyn Future<Output = Result<Arc<Connection>, CallError>> + Send>>>;

impl Node {
    pub(super) fn new(config: NodeConfig) -> Arc<Self> {
        Arc::new(Self { config, lanes: Mutex::default() })
    }

    pub(super) fn config(&self) -> &NodeConfig {
        &self.config
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<DriverId, Lane>> {
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
            match lanes.get(&driver.id()) {
                Some(Lane::Open(connection)) if connection.is_alive() => return Ok(Arc::clone(connection)),
                Some(Lane::Opening(opening)) => opening.clone(),
                _ => {
                    // Drivers come and go; their connections break when they do.
                    lanes.retain(|_, lane| !matches!(lane, Lane::Open(connection) if connection.is_broken()));
                    let opening = self.open(driver);
                    lanes.insert(driver.id(), Lane::Opening(opening.clone()));
                    opening
                }
            }
        };
        match timer::until(Some(expires), opening).await {
            Some(opened) => opened,
            None => Err(CallError::not_sent(&self.config.name, "no connection in time")),
        }
    }

    /// Opens a connection on the engine, whether anybody goes on waiting for it or not.
    fn open(self: &Arc<Self>, driver: &Driver) -> Opening {
        let (node, driver) = (Arc::clone(self), driver.clone());
        let task = async move {
            let opened = open::open(&node.config, &driver, None).await;
            let mut lanes = node.lanes();
            match &opened {
                Ok(connection) => lanes.insert(driver.id(), Lane::Open(Arc::clone(connection))),
                Err(_) => lanes.remove(&driver.id()),
            };
            drop(lanes);
            opened
        };
        let name = self.config.name.clone();
        let task = match runtime::engine() {
            Ok(engine) => engine.handle().spawn(task),
            Err(error) => return async { Err(CallError::NotSent(error)) }.boxed().shared(),
        };
        let opened = async move {
            match task.await {
                Ok(opened) => opened,
                Err(_) => Err(CallError::not_sent(&name, "the engine has stopped")),
            }
        };
        opened.boxed().shared()
    }

    /// Runs a script; `args` are made for the connection that it goes out on. Says also when it was sent.
    pub(super) async fn run(
        self: &Arc<Self>,
        script: &'static Script,
        keys: &[&str],
        args: impl Fn(&Connection) -> Vec<Vec<u8>>,
        driver: &Driver,
        expires: Instant,
    ) -> Result<(Value, Instant), CallError> {
        let mut unanswered = None;
        loop {
            let connection = match self.connection(driver, expires).await {
                Ok(connection) => connection,
                // What was sent before may have been carried out.
                Err(error) => return Err(unanswered.unwrap_or(error)),
            };
            let args = args(&connection);
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            let sent = Instant::now();
            let mut reply = connection.call(&script.by_name(keys, &args), expires).await;
            if matches!(reply, Err(CallError::NoScript)) {
                reply = connection.call(&script.by_text(keys, &args), expires).await;
            }
            match reply {
                Ok(value) => return Ok((value, sent)),
                Err(error @ CallError::Unanswered(_)) => {
                    if Instant::now() >= expires {
                        return Err(error);
                    }
                    unanswered = Some(error);
                }
                Err(CallError::NotSent(_)) if Instant::now() < expires && connection.is_broken() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The server's clock shows `now_ms`, whatever it showed when the driver's connection was opened.
    pub(super) fn set_clock(&self, driver: &Driver, now_ms: i64) {
        if let Some(Lane::Open(connection)) = self.lanes().get(&driver.id()) {
            connection.set_server_clock(now_ms, Instant::now());
        }
    }

    /// Finds out whether the server can be used.
    pub(super) async fn ping(self: &Arc<Self>, driver: &Driver, expires: Instant) -> Reply {
        self.connection(driver, expires).await?.call(&redis::cmd("PING").get_packed_command(), expires).await
    }

    pub(super) fn close(&self) {
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
