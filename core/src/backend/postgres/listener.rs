//! Waking waiters: one connection that listens, made on the first wait.
//!
//! A release notifies the channel `polylock` if somebody asked for that, with the name as the payload. Notices are
//! hints: every listening that begins, also after a reconnect, counts as one for all, so that waiters try
//! once more when they can be sure that the next release will be heard. Behind a pooler there is no listening (the session
//! may be somebody else's the next moment), and waiters live by their timers.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_postgres::AsyncMessage;

use super::{config::Config, connection::Connection};
use crate::{backend::Watch, clock::Instant, engine::runtime};

/// The names that somebody waits for, and the connection that listens.
pub(super) struct Listener {
    config: Arc<Config>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watched: HashMap<String, Watched>,
    started: bool,
    listening: bool,
    closed: bool,
    /// Ends the connection's task.
    stop: Arc<Notify>,
}

struct Watched {
    changes: watch::Sender<u64>,
    watches: usize,
}

impl Listener {
    pub(super) fn new(config: Arc<Config>) -> Arc<Self> {
        Arc::new(Self { config, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports notices about `key` from now on.
    pub(super) fn watch(self: &Arc<Self>, key: String) -> Watch {
        let mut state = self.state();
        if state.closed || !self.config.listen {
            return Watch::nothing();
        }
        if !std::mem::replace(&mut state.started, true) {
            runtime::spawn(keep_listening(Arc::downgrade(self), Arc::clone(&self.config), Arc::clone(&state.stop)));
        }
        let listening = state.listening;
        let watched = state
            .watched
            .entry(key.clone())
            .or_insert_with(|| Watched { changes: watch::Sender::new(0), watches: 0 });
        watched.watches += 1;
        let mut changes = watched.changes.subscribe();
        if listening {
            // Only now will the holder be asked to tell of its release: so look once more.
            changes.mark_changed();
        }
        drop(state);
        Watch::new(changes, Watching { listener: Arc::downgrade(self), key })
    }

    /// Whether a notice about `key` would wake somebody.
    pub(super) fn hears(&self, key: &str) -> bool {
        let state = self.state();
        state.listening && state.watched.contains_key(key)
    }

    fn set_listening(&self, listening: bool) {
        let mut state = self.state();
        state.listening = listening;
        if listening {
            for watched in state.watched.values() {
                watched.changes.send_modify(|changes| *changes += 1);
            }
        }
    }

    fn received(&self, message: &AsyncMessage) {
        let AsyncMessage::Notification(notice) = message else { return };
        if let Some(watched) = self.state().watched.get(notice.payload()) {
            watched.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.stop.notify_one();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// Ends a watch.
struct Watching {
    listener: Weak<Listener>,
    key: String,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let Some(listener) = self.listener.upgrade() else { return };
        let mut state = listener.state();
        if let Entry::Occupied(mut entry) = state.watched.entry(std::mem::take(&mut self.key)) {
            entry.get_mut().watches -= 1;
            if entry.get().watches == 0 {
                entry.remove();
            }
        }
    }
}

/// Keeps a connection open and listening, for as long as the listener is there.
async fn keep_listening(listener: Weak<Listener>, config: Arc<Config>, stop: Arc<Notify>) {
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    const ANSWER: Duration = Duration::from_secs(5);
    let mut pause = Duration::from_millis(50);
    loop {
        let ended = Arc::new(Notify::new());
        let on_message = {
            let listener = listener.clone();
            Box::new(move |message: AsyncMessage| {
                if let Some(listener) = listener.upgrade() {
                    listener.received(&message);
                }
            })
        };
        let on_end = {
            let ended = Arc::clone(&ended);
            move || ended.notify_one()
        };
        let listening = async {
            let connection = Connection::open(&config, on_message, on_end).await?;
            if connection.direct {
                connection.execute("LISTEN polylock", Instant::now().after(ANSWER)).await?;
            }
            Ok::<_, super::failure::Failure>(connection)
        };
        let wait = match listening.await {
            Ok(connection) if !connection.direct => {
                tracing::debug!("behind a pooler: waiters are not told of releases, they look");
                return;
            }
            Ok(_connection) => {
                let Some(listening) = listener.upgrade() else { return };
                listening.set_listening(true);
                drop(listening);
                pause = Duration::from_millis(50);
                tokio::select! {
                    () = ended.notified() => {}
                    () = stop.notified() => return,
                }
                let Some(listening) = listener.upgrade() else { return };
                listening.set_listening(false);
                pause
            }
            Err(failure) => {
                tracing::debug!(error = %failure.into_error(), "not listening");
                pause = (pause * 2).min(LONGEST_PAUSE);
                pause.mul_f64(0.5 + fastrand::f64() / 2.0)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.notified() => return,
        }
    }
}
