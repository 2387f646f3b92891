//! A few connections for statements, opened as they are needed.
//!
//! Statements are pipelined, but a server works through those of one connection in order, and each grant waits for
//! the server's disk. So a second connection is opened once the first is busy; the caller does not wait for it. A server
//! that has no room for it is left alone for a while.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{config::Config, connection::Connection, failure::Failure};
use crate::{Error, clock::Instant, engine::runtime};

/// The pause after a connection that did not come about, for as long as there is another.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Pool {
    config: Arc<Config>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Vec<Arc<Connection>>,
    opening: usize,
    /// When to try for more than one again.
    pause_until: Option<Instant>,
    /// Who waits for a connection to open; told if it cannot be.
    waiting: Vec<oneshot::Sender<Result<Arc<Connection>, Error>>>,
    closed: bool,
}

impl Pool {
    pub(super) fn new(config: Arc<Config>) -> Arc<Self> {
        Arc::new(Self { config, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection with the least to do.
    pub(super) async fn get(self: &Arc<Self>) -> Result<Arc<Connection>, Failure> {
        let opened = {
            let mut state = self.state();
            if state.closed {
                return Err(Failure::NotSent(Error::closed()));
            }
            state.open.retain(|connection| connection.is_usable());
            let idlest = state.open.iter().min_by_key(|connection| connection.users()).map(Arc::clone);
            let paused = || state.pause_until.is_some_and(|until| Instant::now() < until);
            let wants = idlest.as_ref().is_none_or(|connection| connection.users() > 0 && !paused());
            if wants && state.open.len() + state.opening < self.config.connections {
                state.opening += 1;
                runtime::spawn(open(Arc::downgrade(self), Arc::clone(&self.config)));
            }
            if let Some(connection) = idlest {
                return Ok(connection);
            }
            let (tell, told) = oneshot::channel();
            state.waiting.push(tell);
            told
        };
        match opened.await {
            Ok(opened) => opened.map_err(Failure::NotSent),
            Err(_) => Err(Failure::NotSent(Error::closed())),
        }
    }

    /// Lets go of the connections; they close when their last answer is in.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.open.clear();
        state.waiting.clear();
    }
}

async fn open(pool: Weak<Pool>, config: Arc<Config>) {
    let opened = Connection::open(&config, Box::new(|_| {}), || {}).await.map(Arc::new);
    let Some(pool) = pool.upgrade() else { return };
    let mut state = pool.state();
    state.opening -= 1;
    if state.closed {
        return;
    }
    let outcome = match opened {
        Ok(connection) => {
            state.open.push(Arc::clone(&connection));
            Ok(connection)
        }
        Err(failure) => {
            state.pause_until = Some(Instant::now().after(PAUSE));
            if state.opening > 0 {
                return; // another may still come about
            }
            Err(failure.into_error())
        }
    };
    for waiting in state.waiting.drain(..) {
        let _ = waiting.send(outcome.clone());
    }
}
