//! The engine's own runtime: one worker thread and the timer, started by the first use, never by an import.
//!
//! The engine belongs to one process. In the child of a fork the parent's engine is forgotten without being
//! taken apart (its threads do not exist there, and its event queue is the parent's), and the next use
//! starts a new one.

use std::{
    future::Future,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, Ordering, fence},
    },
    time::Duration,
};

use arc_swap::Guard;
use tokio::runtime::{Builder, Handle, Runtime};

use super::{
    process::{self, PerProcess},
    timer::Timer,
};
use crate::{Error, ErrorKind, Result, manager::Manager};

/// One process's engine.
pub(crate) struct Engine {
    pub(crate) timer: Timer,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
    /// Whose leases [`shutdown`] releases; `None` once it has begun.
    managers: Mutex<Option<Vec<Weak<Manager>>>>,
    /// Whether that is over, and who waits for it.
    shut_down: (Mutex<bool>, Condvar),
}

/// The place of the engine of one process; a new one for each process and after each shutdown.
type Slot = OnceLock<std::result::Result<Arc<Engine>, String>>;

static SLOT: PerProcess<Slot> = PerProcess::new(OnceLock::new);

/// To be called wherever something is made that uses the engine: gives the child of a fork an engine of its own.
///
/// What was made before the fork is refused before it comes near the engine, so the engine itself need not ask
/// (a system call) each time it is used. Answers the generation of this process.
pub(crate) fn enter_process() -> u32 {
    let generation = process::generation();
    if SLOT.last().as_ref().is_none_or(|slot| slot.generation() != generation) {
        SLOT.of(generation);
    }
    generation
}

/// The engine, started if it does not run yet.
///
/// # Errors
/// `Internal` if the system gives no thread.
pub(crate) fn engine() -> Result<Arc<Engine>> {
    let slot = Guard::into_inner(SLOT.last()).unwrap_or_else(|| SLOT.get());
    match slot.get_or_init(|| Engine::start().map(Arc::new).map_err(|error| error.to_string())) {
        Ok(engine) => Ok(Arc::clone(engine)),
        Err(why) => {
            // What the system lacks now it may have again when the next one asks.
            SLOT.renew(&slot);
            Err(Error::new(ErrorKind::Internal, format!("the engine cannot start: {why}")))
        }
    }
}

/// The engine, if it runs.
pub(crate) fn running() -> Option<Arc<Engine>> {
    SLOT.last().as_ref()?.get().and_then(|engine| engine.as_ref().ok().map(Arc::clone))
}

/// Runs `future` on the engine in the background.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    if let Err(error) = try_spawn(future) {
        tracing::error!(%error, "background work is lost");
    }
}

/// As `spawn`, for who wants to know.
///
/// # Errors
/// `Internal` if the engine cannot start.
pub fn try_spawn(future: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    #[cfg(test)]
    if crate::simulation::is_on() {
        crate::simulation::spawn(future);
        return Ok(());
    }
    drop(engine()?.handle.spawn(future));
    Ok(())
}

impl Engine {
    fn start() -> std::io::Result<Self> {
        let timer = Timer::start()?;
        // One worker: on two cores it moved more lock pairs through one connection than two did.
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).max_blocking_threads(4).thread_name("polylock-engine").enable_all();
        // It panics where the system has no thread for it.
        let runtime = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.build()))
            .unwrap_or_else(|_| Err(std::io::Error::other("no thread")))?;
        Ok(Self {
            timer,
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            managers: Mutex::new(Some(Vec::new())),
            shut_down: Default::default(),
        })
    }

    /// For spawning on the engine.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    fn lock_managers(&self) -> MutexGuard<'_, Option<Vec<Weak<Manager>>>> {
        self.managers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has [`shutdown`] release the leases of `manager`, once, though several threads may come with it.
    ///
    /// # Errors
    /// `Closed` if it has begun.
    pub(crate) fn enroll(&self, manager: &Arc<Manager>) -> Result<()> {
        let mut managers = self.lock_managers();
        let Some(managers) = &mut *managers else {
            return Err(Error::new(ErrorKind::Closed, "polylock is being shut down"));
        };
        managers.retain(|other| other.strong_count() > 0);
        let manager = Arc::downgrade(manager);
        if !managers.iter().any(|other| other.ptr_eq(&manager)) {
            managers.push(manager);
        }
        // Asked after it was entered: the end of the process either finds it there, or is seen here.
        fence(Ordering::SeqCst);
        if ENDS.load(Ordering::SeqCst) == process::generation() {
            return Err(Error::new(ErrorKind::Closed, "the process ends"));
        }
        Ok(())
    }

    /// The managers that are in use.
    pub(crate) fn managers(&self) -> Vec<Arc<Manager>> {
        self.lock_managers().iter().flatten().filter_map(Weak::upgrade).collect()
    }
}

/// The process that ends.
static ENDS: AtomicU32 = AtomicU32::new(u32::MAX);

/// As [`shutdown`], at the very end of a process: who would start a new engine from now on is refused with `Closed`. Else a thread
/// that goes on until the last moment might take a lock that nobody releases.
#[doc(hidden)]
pub fn end(timeout: Duration) {
    ENDS.store(process::generation(), Ordering::SeqCst);
    fence(Ordering::SeqCst);
    shutdown(timeout);
}

/// Releases every lease of this process and stops the engine's threads; returns within about `timeout`.
///
/// What could not be released in time expires on its server, and is not held here any more: nobody renews it. Managers
/// made before are closed; new ones start a new engine. For the end of a process: a binding calls it in its exit hook.
/// Blocks.
///
/// # What can happen meanwhile in other threads
///
/// * *A manager is used*: it was closed before anything else, so that who waits by it is told at once.
/// * *One is used for the first time*: as long as this engine is the process's that is refused with `Closed`.
/// * *Something waits for a time*: its time is over when this engine is.
/// * *Another shuts down, too*: it waits for this one. A second engine that was started since is not touched.
pub fn shutdown(timeout: Duration) {
    enter_process();
    let Some(slot) = Guard::into_inner(SLOT.last()) else { return };
    let Some(Ok(engine)) = slot.get() else { return };
    let started = std::time::Instant::now();
    let left = || timeout.saturating_sub(started.elapsed());
    let Some(managers) = engine.lock_managers().take() else {
        let (over, told) = &engine.shut_down;
        let over = over.lock().unwrap_or_else(PoisonError::into_inner);
        drop(told.wait_timeout_while(over, left(), |over| !*over));
        return;
    };
    let managers: Vec<_> = managers.iter().filter_map(Weak::upgrade).collect();
    for manager in &managers {
        manager.begin_close();
    }
    // From a thread of the engine's own: the caller may itself run inside some runtime.
    let (done, released) = std::sync::mpsc::channel();
    let all = managers.clone();
    engine.handle.spawn(async move {
        let closing = all.iter().map(|manager| manager.close());
        futures_util::future::join_all(closing).await;
        let _ = done.send(());
    });
    let _ = released.recv_timeout(timeout);
    for manager in &managers {
        manager.abandon();
    }
    SLOT.renew(&slot);
    let runtime = engine.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(runtime) = runtime {
        runtime.shutdown_timeout(left().max(Duration::from_millis(10)));
    }
    let (over, told) = &engine.shut_down;
    *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
    told.notify_all();
}
