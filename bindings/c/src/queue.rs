//! Futures on C's own event loop.

use std::{
    ffi::c_int,
    future::Future,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

use engine::{
    Instant, Result,
    host::{CompletionQueue, Driver, OperationId, Started},
};
use futures_util::FutureExt;

use crate::{
    abi::{polylock_error, polylock_future, polylock_queue, polylock_status},
    boundary,
    future::Shared,
    object::{Found, check_process, discard, find, keep},
    pointer::Out,
};

/// What a queue's handle stands for. A task's value says whose it is; the result itself is in there already.
pub(crate) struct Queue(CompletionQueue<Arc<Shared>>);

impl Queue {
    pub(crate) fn driver(&self) -> Driver {
        self.0.driver()
    }

    /// Starts a task that ends `shared`. Every one is reported by a turn, also one that is done at once: so the
    /// loop has one place where it deals with results.
    pub(crate) fn start(
        &self,
        shared: &Arc<Shared>,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<OperationId> {
        let value = Arc::clone(shared);
        let started = self.0.start(task.map(|()| value).boxed())?;
        match started {
            Started::Pending(id) => Ok(id),
            Started::Done(value) => {
                let id = self.0.reserve()?;
                let _ = self.0.push(id, value);
                Ok(id)
            }
        }
    }

    pub(crate) fn cancel(&self, id: OperationId) {
        self.0.cancel(id);
    }

    /// Turns until `done`; says whether it got there before `deadline`. What finishes is kept for the next turn.
    pub(crate) fn turn_until(&self, deadline: Option<Instant>, done: impl Fn() -> bool) -> bool {
        const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
        let mut finished = Vec::new();
        let mut is_done = done();
        while !is_done {
            let left = deadline.map_or(LOOK_AGAIN, |deadline| deadline.since(Instant::now()).min(LOOK_AGAIN));
            finished.extend(self.0.turn_within(left));
            is_done = done();
            if left.is_zero() {
                break;
            }
        }
        self.put_back(finished);
        is_done
    }

    fn put_back(&self, finished: Vec<(OperationId, Arc<Shared>)>) {
        for (id, shared) in finished {
            let _ = self.0.push(id, shared);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A queue of this process.
fn own(queue: polylock_queue) -> Result<Found<Arc<Queue>>> {
    let found = find::<Arc<Queue>>(queue)?;
    check_process(queue)?;
    Ok(found)
}

/// Makes a queue: the place of the futures that one event loop drives. Starts no thread.
///
/// Have the loop watch polylock_queue_fd for reading, level-triggered, and call polylock_queue_turn when it is
/// readable; a future that is started on the queue then runs on the loop, and no other thread is woken for it.
/// One thread at a time may turn a queue, or wait for its futures.
///
/// Turn it for as long as something is to be acquired on it. Those of the same manager that wait for the same
/// resource wait in one line: who is first there and is not turned keeps the others waiting for about three seconds,
/// and is then passed.
///
/// @param queue out: the queue, to be freed with polylock_queue_free.
/// @return POLYLOCK_ERR_INTERNAL if the system gives no descriptor.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_queue_new(queue: *mut polylock_queue, err: *mut polylock_error) -> polylock_status {
    boundary::status(err, || {
        let place = queue.required("queue")?;
        place.put(keep(Arc::new(Queue(CompletionQueue::new()?)))?);
        Ok(())
    })
}

/// The descriptor to watch, which stays the queue's: do not read, write or close it. -1 if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_queue_fd(queue: polylock_queue) -> c_int {
    boundary::value(-1, || Some(own(queue).ok()?.0.as_fd().as_raw_fd()))
}

/// Moves the queue's operations on without waiting, and says which futures have become ready, oldest first. Each
/// future is reported once, unless it is cancelled or freed before. The descriptor stays readable while there are
/// more than there was room for.
///
/// @param ready out: room for `capacity` futures.
/// @param count out: how many there are.
/// @return POLYLOCK_ERR_INVALID_ARGUMENT, _FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_queue_turn(
    queue: polylock_queue,
    ready: *mut polylock_future,
    capacity: usize,
    count: *mut usize,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let (room, number) = (ready.required("ready")?, count.required("count")?);
        let queue = own(queue)?;
        let mut finished = queue.0.turn();
        let more = finished.split_off(finished.len().min(capacity));
        queue.put_back(more);
        number.put(finished.len());
        room.put_all(finished.into_iter().map(|(_, shared)| shared.handle()).collect());
        Ok(())
    })
}

/// Ends the handle of a queue, cancels its futures and closes its descriptor: stop watching it first. (What is under way on
/// the engine may keep the file open for some milliseconds more.) The futures'
/// handles stay, ready with POLYLOCK_ERR_CLOSED. 0 is allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_queue_free(queue: polylock_queue) -> polylock_status {
    boundary::bare_status(|| discard::<Arc<Queue>>(queue))
}
