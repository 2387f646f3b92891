//! Operations on a host's event loop (asyncio, libuv, `poll(2)`), finished through one queue.
//!
//! The host watches one descriptor ([`CompletionQueue::as_fd`], level-triggered, for reading) and calls
//! [`CompletionQueue::turn`] when it is readable. A turn reads the replies that came, moves the operations
//! on, and returns what has finished. So an operation that is started on the loop runs on the loop: no other
//! thread is woken for it. What another thread finishes (a timer, a signal of loss) makes the descriptor
//! readable, once per batch. Behind the descriptor is another epoll instance; a host that watches the connections'
//! sockets as well ([`CompletionQueue::with_sockets`]) is spared its system call for each answer.
//!
//! # What happens to a result that nobody takes
//!
//! An operation is in one of two places under one lock: among the tasks, or among the finished.
//! [`CompletionQueue::cancel`] drops it from either, and a dropped operation or lease gives back what it won.
//! So exactly one of the two happens: the host receives the result from `turn`, or it is undone.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::future::BoxFuture;
use rustc_hash::FxHashMap;

use crate::{
    Error, ErrorKind, Result,
    engine::{
        driver::Driver,
        process,
        reactor::{HostSocket, Reactor},
        runtime,
    },
};

/// Names an operation in its queue. Never 0.
pub type OperationId = u64;

/// An operation, and what moves it on.
struct Task<T> {
    operation: BoxFuture<'static, T>,
    waker: Waker,
}

/// The operations of one event loop. Clones are the same queue.
///
/// Belongs to the thread that runs the loop; [`push`](Self::push) and dropping are allowed anywhere.
pub struct CompletionQueue<T: Send + 'static>(Arc<Queue<T>>);

struct Queue<T> {
    reactor: Arc<Reactor>,
    generation: u32,
    work: Mutex<Work<T>>,
}

struct Work<T> {
    /// `None` while it is polled: it may be cancelled then, but not polled again.
    tasks: FxHashMap<OperationId, Option<Task<T>>>,
    woken: Vec<OperationId>,
    finished: Vec<(OperationId, T)>,
    last_id: OperationId,
    /// A turn will look at `woken` once more: waking need not make the descriptor readable.
    turning: bool,
    closed: bool,
}

/// What [`CompletionQueue::start`] gives.
pub enum Started<T> {
    /// It is done already; nothing will come through the queue.
    Done(T),
    /// The result will come from a [`CompletionQueue::turn`] under this id.
    Pending(OperationId),
}

impl<T: Send + 'static> CompletionQueue<T> {
    /// Makes a queue. Starts no thread.
    ///
    /// # Errors
    /// `Internal` if the system gives no descriptor.
    pub fn new() -> Result<Self> {
        Self::on(Reactor::new)
    }

    /// Makes a queue whose host also watches the connections' sockets: it takes [`new_sockets`](Self::new_sockets)
    /// after each [`turn`](Self::turn).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_sockets() -> Result<Self> {
        Self::on(Reactor::hosted)
    }

    fn on(reactor: fn() -> io::Result<Arc<Reactor>>) -> Result<Self> {
        runtime::enter_process();
        let reactor =
            reactor().map_err(|error| Error::new(ErrorKind::Internal, format!("no completion queue: {error}")))?;
        Ok(Self(Arc::new(Queue {
            reactor,
            generation: process::generation(),
            work: Mutex::new(Work {
                tasks: FxHashMap::default(),
                woken: Vec::new(),
                finished: Vec::new(),
                last_id: 0,
                turning: false,
                closed: false,
            }),
        })))
    }

    /// What to hand to the operations that this queue is to drive.
    pub fn driver(&self) -> Driver {
        Driver::reactor(&self.0.reactor)
    }

    /// Starts an operation; its first part runs at once.
    ///
    /// # Errors
    /// `Closed` after [`close`](Self::close), `Forked` in the child of a fork.
    pub fn start(&self, operation: BoxFuture<'static, T>) -> Result<Started<T>> {
        let started = self.begin(operation);
        self.flush();
        started
    }

    /// As [`start`](Self::start), but what it asks of a server may be written as late as by the next [`flush`](Self::flush)
    /// or [`turn`](Self::turn), one of which is to follow before the host sleeps: all that it starts until then share a
    /// system call.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn begin(&self, operation: BoxFuture<'static, T>) -> Result<Started<T>> {
        self.check_process()?;
        let id = self.reserve()?;
        self.0.reactor.begin_turn();
        let waker = Waker::from(Arc::new(TaskWaker { queue: Arc::downgrade(&self.0), id }));
        let task = Task { operation, waker };
        {
            let mut work = self.0.work();
            work.turning = true;
            work.tasks.insert(id, None);
        }
        let mut outcome = self.0.poll(id, task);
        self.0.run_woken();
        let mut work = self.0.work();
        // It may have woken itself, and be done by now.
        if let Some(index) = work.finished.iter().position(|(finished, _)| *finished == id) {
            outcome = Some(work.finished.remove(index).1);
        }
        let others_are_done = !work.finished.is_empty();
        drop(work);
        if others_are_done {
            self.0.reactor.notify();
        }
        Ok(outcome.map_or(Started::Pending(id), Started::Done))
    }

    /// Writes what was left by [`begin`](Self::begin).
    pub fn flush(&self) {
        if self.check_process().is_ok() {
            self.0.reactor.flush();
        }
    }

    /// A new id, for results that come by [`push`](Self::push) alone.
    ///
    /// # Errors
    /// `Closed` after [`close`](Self::close).
    pub fn reserve(&self) -> Result<OperationId> {
        let mut work = self.0.work();
        if work.closed {
            return Err(Error::new(ErrorKind::Closed, "the event loop is closed"));
        }
        work.last_id += 1;
        Ok(work.last_id)
    }

    /// Hands `value` to the next turn. From any thread; gives it back if the queue is closed.
    ///
    /// # Errors
    /// The value itself.
    pub fn push(&self, id: OperationId, value: T) -> std::result::Result<(), T> {
        {
            let mut work = self.0.work();
            if work.closed {
                return Err(value);
            }
            work.finished.push((id, value));
        }
        self.0.reactor.notify();
        Ok(())
    }

    /// Moves everything on without waiting, and returns what has finished, oldest first.
    pub fn turn(&self) -> Vec<(OperationId, T)> {
        self.turn_within(Duration::ZERO)
    }

    /// As [`turn`](Self::turn), but waits up to `timeout` for something to happen.
    pub fn turn_within(&self, timeout: Duration) -> Vec<(OperationId, T)> {
        if self.check_process().is_err() {
            return Vec::new();
        }
        let events = match self.0.reactor.wait(Some(timeout)) {
            Ok(events) => events,
            Err(error) => {
                tracing::error!(%error, "the event queue is broken");
                return Vec::new();
            }
        };
        self.0.turn(|reactor| reactor.dispatch(events))
    }

    /// Sockets that the host is to watch from now on, level-triggered, for reading: it calls
    /// [`turn_for`](Self::turn_for) when one is readable.
    pub fn new_sockets(&self) -> Vec<HostSocket> {
        self.0.reactor.take_offered()
    }

    /// As [`turn`](Self::turn), for a socket that is readable alone. `None` if the connection has ended: then the host
    /// watches the socket no longer, and drops it.
    pub fn turn_for(&self, socket: &HostSocket) -> Option<Vec<(OperationId, T)>> {
        self.check_process().ok()?;
        let mut goes_on = false;
        let finished = self.0.turn(|reactor| goes_on = reactor.dispatch_socket(socket));
        // Where it has ended, what others have finished is told first: the socket stays readable.
        (goes_on || !finished.is_empty()).then_some(finished)
    }

    /// The host cannot watch the socket: the connection ends.
    pub fn refuse(&self, socket: HostSocket) {
        if self.check_process().is_ok() {
            self.0.reactor.refuse(&socket);
        }
    }

    /// Ends an operation, finished or not: what it won is given back in the background.
    ///
    /// Says whether there was one: `false` means that its result has been handed out.
    pub fn cancel(&self, id: OperationId) -> bool {
        if self.check_process().is_err() {
            return false;
        }
        let mut work = self.0.work();
        let task = work.tasks.remove(&id);
        let finished = work.finished.iter().position(|(other, _)| *other == id);
        let value = finished.map(|index| work.finished.remove(index));
        drop(work);
        // Both are dropped here, outside the lock.
        task.is_some() || value.is_some()
    }

    /// Operations whose result has not been handed out.
    pub fn pending(&self) -> usize {
        let work = self.0.work();
        work.tasks.len() + work.finished.len()
    }

    /// Ends all operations as by [`cancel`](Self::cancel) and takes no more.
    pub fn close(&self) {
        if self.check_process().is_err() {
            return;
        }
        let (tasks, finished) = {
            let mut work = self.0.work();
            work.closed = true;
            (std::mem::take(&mut work.tasks), std::mem::take(&mut work.finished))
        };
        drop((tasks, finished));
    }

    fn check_process(&self) -> Result<()> {
        if self.0.generation == process::generation() { Ok(()) } else { Err(Error::forked()) }
    }
}

impl<T: Send + 'static> Queue<T> {
    fn work(&self) -> MutexGuard<'_, Work<T>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves on what `dispatch` wakes, and returns what has finished.
    fn turn(&self, dispatch: impl FnOnce(&Reactor)) -> Vec<(OperationId, T)> {
        self.reactor.begin_turn();
        self.work().turning = true;
        dispatch(&self.reactor);
        self.run_woken();
        self.reactor.flush();
        std::mem::take(&mut self.work().finished)
    }

    /// Moves on what was woken, until nothing is.
    fn run_woken(&self) {
        loop {
            let woken = {
                let mut work = self.work();
                work.turning = !work.woken.is_empty();
                std::mem::take(&mut work.woken)
            };
            if woken.is_empty() {
                return;
            }
            self.work().finished.reserve(woken.len());
            for id in woken {
                let task = self.work().tasks.get_mut(&id).and_then(Option::take);
                let Some(task) = task else { continue };
                if let Some(value) = self.poll(id, task) {
                    self.work().finished.push((id, value));
                }
            }
        }
    }

    /// Moves one operation on, whose place is empty; keeps it if it is not done.
    fn poll(&self, id: OperationId, mut task: Task<T>) -> Option<T> {
        let polled = task.operation.as_mut().poll(&mut Context::from_waker(&task.waker));
        let mut work = self.work();
        match polled {
            Poll::Ready(value) => {
                let wanted = work.tasks.remove(&id).is_some();
                drop(work);
                wanted.then_some(value)
            }
            Poll::Pending => {
                if let Some(place) = work.tasks.get_mut(&id) {
                    *place = Some(task);
                } else {
                    drop(work); // cancelled meanwhile
                    drop(task);
                }
                None
            }
        }
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        if self.generation != process::generation() {
            // The parent's operations: they must not be taken apart in the child of a fork.
            let work = self.work.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget((std::mem::take(&mut work.tasks), std::mem::take(&mut work.finished)));
        }
    }
}

struct TaskWaker<T> {
    queue: Weak<Queue<T>>,
    id: OperationId,
}

impl<T: Send + 'static> Wake for TaskWaker<T> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(queue) = self.queue.upgrade() else { return };
        let turning = {
            let mut work = queue.work();
            work.woken.push(self.id);
            work.turning
        };
        if !turning {
            queue.reactor.notify();
        }
    }
}

impl<T: Send + 'static> Clone for CompletionQueue<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + 'static> AsFd for CompletionQueue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.reactor.as_fd()
    }
}

impl<T: Send + 'static> std::fmt::Debug for CompletionQueue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompletionQueue").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Whether a host that watches the queue's descriptor would turn it now.
    fn is_readable(queue: &CompletionQueue<u32>) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut watched = [PollFd::new(queue, PollFlags::IN)];
        poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn what_an_operation_finishes_as_it_starts_is_told() {
        let queue = CompletionQueue::new().unwrap();
        let (tell, told) = oneshot::channel();
        let Started::Pending(waiting) = queue.start(Box::pin(async { told.await.unwrap() })).unwrap() else {
            panic!("done")
        };
        assert!(!is_readable(&queue));
        let telling = async {
            tell.send(7).unwrap();
            1
        };
        assert!(matches!(queue.begin(Box::pin(telling)).unwrap(), Started::Done(1)));
        assert!(is_readable(&queue));
        assert_eq!(queue.turn(), [(waiting, 7)]);
        assert!(!is_readable(&queue));
    }

    #[test]
    fn an_operation_that_wakes_itself_takes_no_turn_more() {
        let queue = CompletionQueue::new().unwrap();
        let started = queue.start(Box::pin(async {
            tokio::task::yield_now().await;
            3
        }));
        // Outside of a runtime this yields by waking itself.
        assert!(matches!(started.unwrap(), Started::Done(3)));
        assert!(!is_readable(&queue));
    }
}
