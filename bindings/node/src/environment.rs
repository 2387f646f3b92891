//! What belongs to one Node environment: the main thread's, or a worker thread's.
//!
//! It has one completion queue, which the environment's own loop watches, and its sockets: an operation that is
//! started here runs here, no other thread is woken for it, and what it sends goes out
//! once a turn of the loop. Where the loop cannot watch descriptors a thread does, and the loop is woken. Managers and leases have numbers, so that
//! all of them can be let go of when the environment ends.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    future::Future,
    os::fd::AsFd,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use napi::{
    Env, JsValue,
    bindgen_prelude::{Function, FunctionRef},
};
use polylock::{
    Error, ErrorKind, Events, Lease, LockManager, Result,
    host::{CompletionQueue, HostSocket, OperationId, Started},
};

use crate::{
    observe,
    reply::{self, Begun, Outcome, Reply},
    thread,
    uv::{self, Watched},
};

/// How long the end of the last environment may take to release what is held.
const LONGEST_END: Duration = Duration::from_secs(2);

/// Outcomes that JavaScript is told of in one call.
const MOST_AT_ONCE: usize = 256;

/// Environments that have not ended.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// See the module's text.
pub(crate) struct Environment {
    queue: CompletionQueue<Outcome>,
    watcher: OnceCell<Watcher>,
    deliver: FunctionRef<(), ()>,
    managers: RefCell<HashMap<u64, LockManager>>,
    leases: RefCell<HashMap<u64, Kept>>,
    subscriptions: RefCell<HashMap<u64, Arc<Events>>>,
    /// Operations under way: while there is one, the loop stays alive.
    under_way: Cell<usize>,
}

/// Who watches the descriptor of the queue.
enum Watcher {
    Loop(uv::Watcher),
    Thread(thread::Watcher),
}

/// A lease of this environment.
struct Kept {
    lease: Arc<Lease>,
    /// The end of the environment leaves it to its ttl, instead of releasing it.
    stays: bool,
}

impl Environment {
    /// Opens the environment that `env` is, unless it is open. `deliver` is called with what has finished.
    ///
    /// # Errors
    /// `Unsupported` if the host's event loop cannot watch a descriptor; `Internal`.
    pub(crate) fn open(env: Env, deliver: Function<'_, (), ()>, has_libuv: bool) -> Result<()> {
        if Self::of(env).is_some() {
            return Ok(());
        }
        let environment = Rc::new(Self {
            queue: if has_libuv { CompletionQueue::with_sockets()? } else { CompletionQueue::new()? },
            watcher: OnceCell::new(),
            deliver: deliver.create_ref().map_err(internal)?,
            managers: RefCell::default(),
            leases: RefCell::default(),
            subscriptions: RefCell::default(),
            under_way: Cell::new(0),
        });
        let watched = Rc::clone(&environment) as Rc<dyn Watched>;
        let fd = environment.queue.as_fd();
        let watcher = if has_libuv {
            uv::Watcher::start(env, fd, watched).map(Watcher::Loop)
        } else {
            thread::Watcher::start(env, fd, watched).map(Watcher::Thread)
        };
        let watcher = watcher.map_err(|why| Error::new(ErrorKind::Unsupported, why))?;
        let _ = environment.watcher.set(watcher);
        ALIVE.fetch_add(1, Ordering::AcqRel);
        env.set_instance_data(environment, (), |_| {}).map_err(internal)
    }

    /// The environment that `env` is, if it was opened.
    pub(crate) fn of(env: Env) -> Option<Rc<Self>> {
        env.get_instance_data::<Rc<Self>>().ok().flatten().map(|environment| Rc::clone(environment))
    }

    /// Keeps a manager; gives its number.
    pub(crate) fn adopt_manager(&self, manager: LockManager) -> Result<u64> {
        let id = self.queue.reserve()?;
        self.managers.borrow_mut().insert(id, manager);
        Ok(id)
    }

    pub(crate) fn manager(&self, id: u64) -> Result<LockManager> {
        self.managers.borrow().get(&id).cloned().ok_or_else(|| Error::new(ErrorKind::Closed, "the manager is closed"))
    }

    pub(crate) fn forget_manager(&self, id: u64) {
        let manager = self.managers.borrow_mut().remove(&id);
        drop(manager); // not while the table is borrowed
    }

    /// Keeps a lease under the number of the operation that acquired it, and has its loss reported under that, too.
    pub(crate) fn adopt_lease(&self, id: OperationId, lease: Lease, stays: bool) {
        let queue = self.queue.clone();
        lease.on_lost(move |reason| {
            // Nobody is there any more to hear of it if the queue is closed.
            let _ = queue.push(id, Outcome::Lost(reason));
        });
        self.leases.borrow_mut().insert(id, Kept { lease: Arc::new(lease), stays });
    }

    pub(crate) fn lease(&self, id: u64) -> Option<Arc<Lease>> {
        self.leases.borrow().get(&id).map(|kept| Arc::clone(&kept.lease))
    }

    /// Leaves to their ttl the leases that stay.
    pub(crate) fn leave_staying(&self) {
        for kept in self.leases.borrow().values().filter(|kept| kept.stays) {
            // It fails only in the child of a fork, where there is nothing to leave.
            let _ = kept.lease.leave();
        }
    }

    /// Takes a lease out of the table.
    pub(crate) fn take_lease(&self, id: u64) -> Option<Arc<Lease>> {
        self.leases.borrow_mut().remove(&id).map(|kept| kept.lease)
    }

    /// Has the events of a manager come under the number that this gives. They keep no loop alive.
    pub(crate) fn subscribe(&self, locks: &LockManager) -> Result<u64> {
        let events = Arc::new(locks.events()?);
        let id = self.queue.reserve()?;
        observe::forward(&events, self.queue.clone(), id)?;
        self.subscriptions.borrow_mut().insert(id, events);
        Ok(id)
    }

    pub(crate) fn unsubscribe(&self, id: u64) {
        if let Some(events) = self.subscriptions.borrow_mut().remove(&id) {
            events.close();
        }
    }

    /// Starts an operation: replies with its outcome if that is there at once, else with its number.
    ///
    /// What it asks of a server is written when the loop is about to wait, with all that is started until then.
    pub(crate) fn start(&self, operation: impl Future<Output = Outcome> + Send + 'static) -> Begun {
        match self.queue.begin(Box::pin(operation)) {
            Ok(Started::Done(outcome)) => match self.queue.reserve() {
                Ok(id) => Begun::Done(id, Reply::of(id, outcome, self)),
                Err(error) => Begun::Done(0, Reply::Failed(error)),
            },
            Ok(Started::Pending(id)) => {
                self.count(1);
                match self.watcher.get() {
                    Some(Watcher::Loop(watcher)) => watcher.before_wait(),
                    _ => self.queue.flush(),
                }
                Begun::Pending(id)
            }
            Err(error) => Begun::Done(0, Reply::Failed(error)),
        }
    }

    /// For the `*_by` methods of operations that are started here.
    pub(crate) fn driver(&self) -> polylock::host::Driver {
        self.queue.driver()
    }

    /// Ends an operation. `false` if its outcome has been handed out.
    pub(crate) fn cancel(&self, id: OperationId) -> bool {
        let cancelled = self.queue.cancel(id);
        if cancelled {
            self.count(-1);
        }
        cancelled
    }

    /// Ends all operations, and takes no more.
    pub(crate) fn cancel_all(&self) {
        self.queue.close();
    }

    /// Has the loop watch the sockets of new connections.
    fn watch_sockets(&self) {
        for socket in self.queue.new_sockets() {
            if let Some(Watcher::Loop(watcher)) = self.watcher.get()
                && watcher.watch(&socket).is_ok()
            {
                continue;
            }
            self.queue.refuse(socket);
        }
    }

    /// Tells JavaScript what has finished.
    fn hand_over(&self, env: Env, finished: Vec<(OperationId, Outcome)>) {
        let mut finished = finished.into_iter().peekable();
        if finished.peek().is_none() {
            return;
        }
        let Ok(deliver) = self.deliver.borrow_back(&env) else { return };
        while finished.peek().is_some() {
            let batch = finished.by_ref().take(MOST_AT_ONCE).map(|(id, outcome)| {
                if !matches!(outcome, Outcome::Lost(_) | Outcome::Told(_)) {
                    self.count(-1);
                }
                (id, Reply::of(id, outcome, self))
            });
            match reply::values(env, batch) {
                Ok(values) => uv::call_from_loop(env, deliver.raw(), &values),
                // Only at the end of the environment.
                Err(_) => return,
            }
        }
        // What was started in answer to that.
        self.queue.flush();
    }

    /// Counts operations under way, and keeps the loop alive while there are any.
    fn count(&self, change: isize) {
        let before = self.under_way.get();
        let after = before.saturating_add_signed(change);
        self.under_way.set(after);
        if (before == 0) != (after == 0) {
            match self.watcher.get() {
                Some(Watcher::Loop(watcher)) => watcher.keep_alive(after != 0),
                Some(Watcher::Thread(watcher)) => watcher.keep_alive(after != 0),
                None => {}
            }
        }
    }
}

impl Watched for Environment {
    fn readable(&self, env: Env) {
        let finished = self.queue.turn();
        self.watch_sockets();
        self.hand_over(env, finished);
    }

    fn socket_readable(&self, env: Env, socket: &HostSocket) -> bool {
        let finished = self.queue.turn_for(socket);
        let goes_on = finished.is_some();
        self.hand_over(env, finished.unwrap_or_default());
        goes_on
    }

    fn flush(&self) {
        self.queue.flush();
    }

    fn ending(&self) {
        self.cancel_all();
        self.leave_staying();
        for (_, events) in self.subscriptions.borrow_mut().drain() {
            events.close();
        }
        let managers = std::mem::take(&mut *self.managers.borrow_mut());
        let leases = std::mem::take(&mut *self.leases.borrow_mut());
        drop((leases, managers)); // released in the background
        if ALIVE.fetch_sub(1, Ordering::AcqRel) == 1 {
            polylock::shutdown(LONGEST_END);
        }
    }
}

fn internal(error: napi::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("the addon cannot start: {error}"))
}
