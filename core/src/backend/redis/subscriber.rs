//! Waking waiters: one subscribed connection per server, made on the first wait.
//!
//! A release publishes on the lock's channel. Messages are hints and may be lost; so every confirmed
//! subscription, also one after a reconnect, counts as a message: the waiter tries once more when it can be sure that
//! the next release will be heard.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::Value;
use tokio::sync::{Notify, watch};

use super::{
    call::CallError,
    config::NodeConfig,
    connection::Connection,
    open::{self, Progress},
    quorum,
};
use crate::{
    backend::Watch,
    engine::{driver::Driver, runtime},
};

/// The channels that somebody waits on, and the connections that are subscribed to them.
pub(super) struct Subscriptions {
    nodes: Vec<Arc<dyn Locate>>,
    state: Mutex<State>,
}

/// Knows where to subscribe.
pub(super) trait Locate: Send + Sync {
    /// The server to connect to now.
    fn locate(&self) -> BoxFuture<'_, Result<NodeConfig, CallError>>;
}

#[derive(Default)]
struct State {
    channels: HashMap<String, Channel>,
    connections: Vec<Option<Arc<Connection>>>,
    started: bool,
    closed: bool,
}

struct Channel {
    changes: watch::Sender<u64>,
    watches: usize,
    /// Nodes that published since the last change.
    published: u32,
}

impl Subscriptions {
    pub(super) fn new(nodes: Vec<Arc<dyn Locate>>) -> Arc<Self> {
        Arc::new(Self { nodes, state: Mutex::default() })
    }

    /// For servers that publish nothing.
    #[cfg(test)]
    pub(super) fn silent() -> Arc<Self> {
        let subscriptions = Self::new(Vec::new());
        subscriptions.close();
        subscriptions
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports messages on `channel` from now on.
    pub(super) fn watch(self: &Arc<Self>, channel: String) -> Watch {
        let mut state = self.state();
        if state.closed {
            return Watch::nothing();
        }
        if !std::mem::replace(&mut state.started, true) {
            state.connections = vec![None; self.nodes.len()];
            for (index, node) in self.nodes.iter().enumerate() {
                runtime::spawn(keep_subscribed(Arc::downgrade(self), index, Arc::clone(node)));
            }
        }
        let changes = match state.channels.entry(channel.clone()) {
            Entry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                entry.watches += 1;
                let mut changes = entry.changes.subscribe();
                // Subscribed already, but perhaps published to before this watch began.
                changes.mark_changed();
                changes
            }
            Entry::Vacant(entry) => {
                let (changes, receiver) = watch::channel(0);
                entry.insert(Channel { changes, watches: 1, published: 0 });
                let subscribe = redis::cmd("SUBSCRIBE").arg(&channel).get_packed_command();
                for connection in state.connections.iter().flatten() {
                    connection.command(&subscribe);
                }
                receiver
            }
        };
        drop(state);
        Watch::new(changes, Watching { subscriptions: Arc::downgrade(self), channel })
    }

    /// A message, or the confirmation of a subscription, came from a node.
    fn received(&self, node: usize, message: &Value) {
        let (Value::Array(parts) | Value::Push { data: parts, .. }) = message else { return };
        let [Value::BulkString(kind), Value::BulkString(channel), ..] = &parts[..] else { return };
        let Ok(channel) = std::str::from_utf8(channel) else { return };
        let mut state = self.state();
        let Some(channel) = state.channels.get_mut(channel) else { return };
        if matches!(&kind[..], b"message" | b"subscribe") {
            channel.published |= 1 << node;
            // Freed on one node of several is not free yet.
            if channel.published.count_ones() as usize >= quorum::majority(self.nodes.len()) {
                channel.published = 0;
                channel.changes.send_modify(|changes| *changes += 1);
            }
        }
    }

    fn unwatch(&self, channel: String) {
        let mut state = self.state();
        let Entry::Occupied(mut entry) = state.channels.entry(channel) else { return };
        entry.get_mut().watches -= 1;
        if entry.get().watches == 0 {
            let unsubscribe = redis::cmd("UNSUBSCRIBE").arg(entry.key()).get_packed_command();
            entry.remove();
            for connection in state.connections.iter().flatten() {
                connection.command(&unsubscribe);
            }
        }
    }

    /// Ends the connections.
    pub(super) fn close(&self) {
        let connections = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.connections)
        };
        for connection in connections.into_iter().flatten() {
            connection.close("the manager is closed");
        }
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        self.close();
    }
}

/// Ends a watch.
struct Watching {
    subscriptions: Weak<Subscriptions>,
    channel: String,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(subscriptions) = self.subscriptions.upgrade() {
            subscriptions.unwatch(std::mem::take(&mut self.channel));
        }
    }
}

/// Keeps one node's connection open and subscribed, for as long as the subscriptions are there.
async fn keep_subscribed(subscriptions: Weak<Subscriptions>, index: usize, node: Arc<dyn Locate>) {
    const LONGEST_PAUSE: Duration = Duration::from_secs(1);
    let mut pause = Duration::from_millis(20);
    loop {
        let broken = Arc::new(Notify::new());
        let on_push = {
            let subscriptions = subscriptions.clone();
            Box::new(move |message: Value| {
                if let Some(subscriptions) = subscriptions.upgrade() {
                    subscriptions.received(index, &message);
                }
            })
        };
        let opened = match node.locate().await {
            Ok(config) => open::open(&config, &Driver::engine(), Some(on_push), &Progress::default()).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok((connection, _)) => {
                connection.on_broken(Arc::clone(&broken));
                {
                    let Some(subscriptions) = subscriptions.upgrade() else { return connection.close("unused") };
                    let mut state = subscriptions.state();
                    if state.closed {
                        return connection.close("the manager is closed");
                    }
                    let channels: Vec<&String> = state.channels.keys().collect();
                    if !channels.is_empty() {
                        connection.command(&redis::cmd("SUBSCRIBE").arg(channels).get_packed_command());
                    }
                    state.connections[index] = Some(connection);
                }
                pause = Duration::from_millis(20);
                broken.notified().await;
            }
            Err(error) => tracing::debug!(error = %error.into_error(), "not subscribed"),
        }
        match subscriptions.upgrade() {
            Some(subscriptions) => {
                let mut state = subscriptions.state();
                if state.closed {
                    return;
                }
                state.connections[index] = None;
            }
            None => return,
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
