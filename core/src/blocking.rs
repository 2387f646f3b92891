//! Waiting on the caller's own thread.
//!
//! A blocked caller drives its connection itself: it writes the request, sleeps on the socket and reads the
//! reply, and no other thread is woken. Only so many threads at a time do that, because each needs a
//! connection of its own; the rest share the engine's.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Duration,
};

use crate::engine::{
    driver::Driver,
    process::{Made, PerProcess},
    reactor::Reactor,
    runtime,
};

/// Threads that may drive connections of their own at one time.
const DIRECT_THREADS: usize = 4;

/// Runs an operation to its end on this thread. `operation` gets the driver to hand on.
///
/// Blocks. Must not be called on a runtime's or event loop's own thread.
pub fn wait<F: Future>(operation: impl FnOnce(Driver) -> F) -> F::Output {
    loop_until(operation, None, &mut || true).unwrap_or_else(|| unreachable!("nothing interrupts it"))
}

/// As [`wait`], but calls `go_on` at least every `tick`; once it says `false` the operation is dropped (which
/// gives back what it won) and the answer is `None`.
pub fn wait_unless<F: Future>(
    operation: impl FnOnce(Driver) -> F,
    tick: Duration,
    mut go_on: impl FnMut() -> bool,
) -> Option<F::Output> {
    loop_until(operation, Some(tick), &mut go_on)
}

fn loop_until<F: Future>(
    operation: impl FnOnce(Driver) -> F,
    tick: Option<Duration>,
    go_on: &mut dyn FnMut() -> bool,
) -> Option<F::Output> {
    let seat = Seat::take();
    let mut operation = std::pin::pin!(operation(seat.driver()));
    let waker = Waker::from(Arc::clone(&seat.bell));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = operation.as_mut().poll(&mut context) {
            return Some(output);
        }
        seat.sleep(tick);
        if tick.is_some() && !go_on() {
            return None;
        }
    }
}

/// Where a thread waits: at a reactor if one is free, else parked.
struct Seat {
    bell: Arc<Bell>,
    free: Arc<Made<Mutex<Free>>>,
}

/// Wakes the thread in its seat.
struct Bell {
    rung: AtomicBool,
    asleep: AtomicBool,
    place: Place,
}

enum Place {
    Reactor(Arc<Reactor>),
    Parked(Thread),
}

/// Reactors that nobody uses now. A child of a fork starts with none: event queues are shared with the parent.
static FREE: PerProcess<Mutex<Free>> = PerProcess::new(Mutex::default);

#[derive(Default)]
struct Free {
    made: usize,
    reactors: Vec<Arc<Reactor>>,
}

impl Free {
    fn take(&mut self) -> Option<Arc<Reactor>> {
        self.reactors.pop().or_else(|| {
            let reactor = (self.made < DIRECT_THREADS).then(|| Reactor::new().ok()).flatten();
            self.made += usize::from(reactor.is_some());
            reactor
        })
    }
}

impl Seat {
    fn take() -> Self {
        let free = FREE.of(runtime::enter_process());
        let place = match free.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(reactor) => Place::Reactor(reactor),
            None => Place::Parked(std::thread::current()),
        };
        let bell = Bell { rung: AtomicBool::new(false), asleep: AtomicBool::new(false), place };
        Self { bell: Arc::new(bell), free }
    }

    fn driver(&self) -> Driver {
        match &self.bell.place {
            Place::Reactor(reactor) => Driver::reactor(reactor),
            Place::Parked(_) => Driver::engine(),
        }
    }

    /// Sleeps until the bell rings, a connection has something, or `limit` passes.
    fn sleep(&self, limit: Option<Duration>) {
        match &self.bell.place {
            Place::Reactor(reactor) => {
                reactor.flush();
                self.bell.asleep.store(true, Ordering::SeqCst);
                let limit = if self.bell.rung.load(Ordering::SeqCst) { Some(Duration::ZERO) } else { limit };
                let events = reactor.wait(limit);
                self.bell.asleep.store(false, Ordering::SeqCst);
                match events {
                    Ok(events) => reactor.dispatch(events),
                    Err(error) => tracing::error!(%error, "the event queue is broken"),
                }
                reactor.flush();
            }
            Place::Parked(_) => {
                if !self.bell.rung.load(Ordering::SeqCst) {
                    match limit {
                        Some(limit) => std::thread::park_timeout(limit),
                        None => std::thread::park(),
                    }
                }
            }
        }
        self.bell.rung.store(false, Ordering::SeqCst);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Place::Reactor(reactor) = &self.bell.place {
            self.free.lock().unwrap_or_else(PoisonError::into_inner).reactors.push(Arc::clone(reactor));
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        match &self.place {
            Place::Reactor(reactor) => {
                if self.asleep.load(Ordering::SeqCst) {
                    reactor.notify();
                }
            }
            Place::Parked(thread) => thread.unpark(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Instant, engine::timer::sleep_until};

    #[test]
    fn more_threads_than_seats_all_finish() {
        let later = Instant::now().after(Duration::from_millis(30));
        std::thread::scope(|scope| {
            for _ in 0..3 * DIRECT_THREADS {
                scope.spawn(|| wait(|_| sleep_until(later)));
            }
        });
        assert!(Instant::now() >= later);
    }

    #[test]
    fn can_be_interrupted() {
        let mut ticks = 0;
        let go_on = || {
            ticks += 1;
            ticks < 3
        };
        let never = std::future::pending::<()>();
        assert_eq!(wait_unless(|_| never, Duration::from_millis(5), go_on), None);
        assert_eq!(ticks, 3);
    }
}
