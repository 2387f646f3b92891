//! Operations that go on while C does something else.
//!
//! A future is driven by the engine, or by a queue that C turns. Either way its end is told to one [`Shared`],
//! where waiting threads, the callback and the queue find it.

use std::{
    ffi::{c_char, c_void},
    future::Future as Operation,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use engine::{Error, ErrorKind, Holder, Instant, Lease, Release, Result, host, host::Driver};
use futures_util::{
    FutureExt, TryFutureExt,
    future::{AbortHandle, abortable},
};
use tokio::sync::Notify;

use crate::{
    abi::{
        polylock_error, polylock_finalizer, polylock_future, polylock_holder, polylock_lease, polylock_manager,
        polylock_options, polylock_outcome, polylock_queue, polylock_ready_callback, polylock_status,
    },
    boundary,
    callback::{self, Userdata},
    dispatcher,
    holder::HolderText,
    lease::{lease, ttl},
    manager::{manager, one},
    object::{Found, check_process, discard, find, find_or_none, keep},
    options::{Names, request},
    pointer::{Out, Text, Texts},
    queue::Queue,
    wait,
};

/// What a future's handle stands for.
pub(crate) struct Future {
    shared: Arc<Shared>,
    /// Set once it has been started.
    place: OnceLock<Place>,
}

/// Who drives it.
enum Place {
    Engine(AbortHandle),
    Queue(Weak<Queue>, host::OperationId),
}

/// What came of an operation.
pub(crate) enum Value {
    Nothing,
    Lease(Lease),
    Release(Release),
    Holder(Option<Box<Holder>>),
}

/// Where the end of an operation is told.
pub(crate) struct Shared {
    handle: AtomicU64,
    state: Mutex<State>,
    ready: Notify,
    /// The future was freed: a callback that has not begun does not begin any more.
    freed: AtomicBool,
}

struct State {
    outcome: Outcome,
    callback: Option<(polylock_ready_callback, Userdata)>,
}

enum Outcome {
    Pending,
    Ready(Result<Value>),
    Taken,
}

impl Shared {
    fn new() -> Arc<Self> {
        let state = Mutex::new(State { outcome: Outcome::Pending, callback: None });
        Arc::new(Self { handle: AtomicU64::new(0), state, ready: Notify::new(), freed: AtomicBool::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle of its future.
    pub(crate) fn handle(&self) -> u64 {
        self.handle.load(Ordering::Relaxed)
    }

    pub(crate) fn is_ready(&self) -> bool {
        !matches!(self.state().outcome, Outcome::Pending)
    }

    pub(crate) fn is_freed(&self) -> bool {
        self.freed.load(Ordering::Acquire)
    }

    /// Tells the end. The first one counts: a result that comes after a cancellation is dropped, which gives back
    /// what it won.
    fn end(self: &Arc<Self>, result: Result<Value>) {
        let callback = {
            let mut state = self.state();
            if !matches!(state.outcome, Outcome::Pending) {
                drop(state);
                drop(result);
                return;
            }
            state.outcome = Outcome::Ready(result);
            state.callback.take()
        };
        self.ready.notify_waiters();
        if let Some((function, userdata)) = callback {
            callback::ready(function, self, userdata);
        }
    }

    /// Ends it as cancelled, also if it was ready and not taken.
    fn cancel(self: &Arc<Self>) {
        self.end(Err(cancelled()));
        let mut state = self.state();
        let untaken = match &mut state.outcome {
            Outcome::Ready(result) => Some(std::mem::replace(result, Err(cancelled()))),
            _ => None,
        };
        drop(state);
        drop(untaken);
    }

    /// Waits for the end, which others bring about.
    async fn ended(&self) {
        loop {
            let mut ready = std::pin::pin!(self.ready.notified());
            ready.as_mut().enable();
            if self.is_ready() {
                return;
            }
            ready.await;
        }
    }

    /// Takes the value out, if `pick` wants it.
    fn take<T>(&self, pick: impl FnOnce(Value) -> std::result::Result<T, Value>) -> Result<T> {
        let mut state = self.state();
        match std::mem::replace(&mut state.outcome, Outcome::Taken) {
            Outcome::Ready(Ok(value)) => pick(value).map_err(|value| {
                state.outcome = Outcome::Ready(Ok(value));
                Error::invalid("future", "is of another operation than this")
            }),
            Outcome::Ready(Err(error)) => Err(error),
            Outcome::Taken => Err(Error::invalid("future", "has had its result taken")),
            Outcome::Pending => {
                state.outcome = Outcome::Pending;
                Err(Error::new(ErrorKind::Internal, "taken before it was ready"))
            }
        }
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Closed, "the operation was cancelled")
}

impl Drop for Future {
    fn drop(&mut self) {
        self.shared.freed.store(true, Ordering::Release);
        self.cancel();
    }
}

impl Future {
    fn cancel(&self) {
        self.shared.cancel();
        match self.place.get() {
            Some(Place::Engine(abort)) => abort.abort(),
            Some(Place::Queue(queue, id)) => {
                if let Some(queue) = queue.upgrade() {
                    queue.cancel(*id);
                }
            }
            None => {}
        }
    }

    /// Waits until it is ready; turns its queue meanwhile. Says whether it is.
    fn wait(&self, limit: Option<Duration>) -> bool {
        match self.place.get() {
            Some(Place::Queue(queue, _)) if !self.shared.is_ready() => {
                let deadline = limit.map(|limit| Instant::now().after(limit));
                queue.upgrade().is_some_and(|queue| queue.turn_until(deadline, || self.shared.is_ready()))
            }
            _ => wait::within(self.shared.ended(), limit).is_some(),
        }
    }
}

/// Ends the future of an operation that is dropped on the way, as by shutdown or by closing its queue.
struct EndAtLast(Arc<Shared>);

impl Drop for EndAtLast {
    fn drop(&mut self) {
        self.0.end(Err(cancelled()));
    }
}

/// Starts an operation on a queue, or on the engine where there is none.
fn start<O>(queue: polylock_queue, future: *mut polylock_future, operation: impl FnOnce(Driver) -> O) -> Result<()>
where
    O: Operation<Output = Result<Value>> + Send + 'static,
{
    let place = future.required("future")?;
    let queue = find_or_none::<Arc<Queue>>(queue)?.map(|found| Arc::clone(&found));
    let driver = queue.as_ref().map_or_else(Driver::engine, |queue| queue.driver());
    // An acquisition is a kilobyte: made on the stack once, and moved in a box from here on.
    let operation = Box::pin(operation(driver));
    let shared = Shared::new();
    let handle = keep(Future { shared: Arc::clone(&shared), place: OnceLock::new() })?;
    shared.handle.store(handle, Ordering::Relaxed);
    let at_last = EndAtLast(Arc::clone(&shared));
    let task = async move {
        let result = operation.await;
        at_last.0.end(result);
    };
    let driven = match queue {
        None => {
            let (task, abort) = abortable(task);
            // Whether it was aborted is known to who did that.
            host::try_spawn(task.map(drop)).map(|()| Place::Engine(abort))
        }
        Some(queue) => queue.start(&shared, task).map(|id| Place::Queue(Arc::downgrade(&queue), id)),
    };
    match driven {
        Ok(driven) => {
            let _ = find::<Future>(handle)?.place.set(driven);
            place.put(handle);
            Ok(())
        }
        Err(error) => {
            discard::<Future>(handle)?;
            Err(error)
        }
    }
}

/// A future of this process.
fn own(future: polylock_future) -> Result<Found<Future>> {
    let found = find::<Future>(future)?;
    check_process(future)?;
    Ok(found)
}

fn acquire(
    handle: polylock_manager,
    names: Result<Names>,
    options: polylock_options,
    queue: polylock_queue,
    future: *mut polylock_future,
) -> Result<()> {
    let manager = manager(handle)?;
    let (target, how) = request(options, names?)?;
    start(queue, future, |driver| manager.acquire_by(target, how, &driver).map_ok(Value::Lease))
}

/// Starts to acquire a resource, as polylock_acquire does, and returns at once. What the engine has against the arguments,
/// and a manager of the parent process, show in the future; what is no handle or no UTF-8 shows at once.
///
/// @param queue 0: the engine drives it, on a thread of its own. Else the queue does, when it is turned.
/// @param future out: take the lease out of it with polylock_future_take_lease, and free it with
///        polylock_future_free.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_acquire_start(
    manager: polylock_manager,
    resource: *const c_char,
    options: polylock_options,
    queue: polylock_queue,
    future: *mut polylock_future,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || acquire(manager, one(resource.text("resource")), options, queue, future))
}

/// As polylock_acquire_start, with the length of the name in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_acquire_start_n(
    manager: polylock_manager,
    resource: *const c_char,
    resource_length: usize,
    options: polylock_options,
    queue: polylock_queue,
    future: *mut polylock_future,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        acquire(manager, one(resource.text_n(resource_length, "resource")), options, queue, future)
    })
}

/// Starts to acquire several resources, as polylock_acquire_all does: see polylock_acquire_start.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_acquire_all_start(
    manager: polylock_manager,
    resources: *const *const c_char,
    count: usize,
    options: polylock_options,
    queue: polylock_queue,
    future: *mut polylock_future,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        acquire(manager, resources.texts(count, "resources").map(Names::All), options, queue, future)
    })
}

fn extend(
    handle: polylock_lease,
    ttl: Option<Duration>,
    queue: polylock_queue,
    future: *mut polylock_future,
) -> Result<()> {
    let lease = lease(handle)?;
    start(queue, future, |driver| async move { lease.extend_by(ttl, &driver).await.map(|()| Value::Nothing) })
}

/// Starts to extend a lease, as polylock_extend does. Its future is taken by polylock_future_take.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_extend_start(
    lease: polylock_lease,
    queue: polylock_queue,
    future: *mut polylock_future,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || extend(lease, None, queue, future))
}

/// Starts to extend a lease, as polylock_extend_ttl does. Its future is taken by polylock_future_take.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_extend_ttl_start(
    lease: polylock_lease,
    ttl_ms: f64,
    queue: polylock_queue,
    future: *mut polylock_future,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || extend(lease, ttl(ttl_ms)?, queue, future))
}

/// Starts to release a lease, as polylock_release does. Its future is taken by polylock_future_take_outcome;
/// cancelling it leaves the release to the background.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_release_start(
    lease: polylock_lease,
    queue: polylock_queue,
    future: *mut polylock_future,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let lease = self::lease(lease)?;
        start(queue, future, |driver| async move { lease.release_by(&driver).await.map(Value::Release) })
    })
}

/// Starts to ask who holds a resource, as polylock_inspect does. Its future is taken by polylock_future_take_holder.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_inspect_start(
    manager: polylock_manager,
    resource: *const c_char,
    queue: polylock_queue,
    future: *mut polylock_future,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let (manager, resource) = (self::manager(manager)?, resource.text("resource")?.to_owned());
        start(queue, future, |driver| async move {
            manager.inspect_by(&resource, &driver).await.map(|holder| Value::Holder(holder.map(Box::new)))
        })
    })
}

/// Starts to close a manager, as polylock_close does. Its future is taken by polylock_future_take.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_close_start(
    manager: polylock_manager,
    queue: polylock_queue,
    future: *mut polylock_future,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let manager = self::manager(manager)?;
        start(queue, future, |_| async move {
            manager.close().await;
            Ok(Value::Nothing)
        })
    })
}

/// Whether the operation is over: well, badly or cancelled. False if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_is_ready(future: polylock_future) -> bool {
    boundary::value(false, || Some(own(future).ok()?.shared.is_ready()))
}

/// Waits until the operation is over. Blocks. A future of a queue turns its queue meanwhile, on this thread, which
/// then has to be the one that turns it always; other futures that get ready are reported by the next turn.
///
/// @param timeout_ms milliseconds; 0 only looks, negative (POLYLOCK_FOREVER) waits for as long as it takes.
/// @return POLYLOCK_ERR_TIMEOUT if it is still on its way (the future stays usable), _INVALID_ARGUMENT, _FORKED,
///         _INVALID_HANDLE. How the operation ended is said by the taking functions.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_wait(
    future: polylock_future,
    timeout_ms: f64,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        if own(future)?.wait(wait::timeout(timeout_ms)?) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, "the operation is still on its way"))
    })
}

/// Has `callback` called once when the operation is over; at once if it is. On the callback thread of the library: see
/// the conventions.
///
/// @param userdata handed to `callback`. Has to stay valid until `finalizer` is called.
/// @param finalizer called once with `userdata` when it is not used any more: after the callback, or when the future
///        was freed first, or if this function fails. May be NULL.
/// @return POLYLOCK_ERR_INVALID_ARGUMENT if `callback` is NULL or one waits for the end already, _FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_on_ready(
    future: polylock_future,
    callback: polylock_ready_callback,
    userdata: *mut c_void,
    finalizer: polylock_finalizer,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let userdata = Userdata::new(userdata, finalizer);
        if callback.is_none() {
            return Err(Error::invalid("callback", "must not be NULL"));
        }
        dispatcher::start()?;
        let found = own(future)?;
        let mut state = found.shared.state();
        if !matches!(state.outcome, Outcome::Pending) {
            drop(state);
            callback::ready(callback, &found.shared, userdata);
        } else if state.callback.is_some() {
            return Err(Error::invalid("callback", "was set already"));
        } else {
            state.callback = Some((callback, userdata));
        }
        Ok(())
    })
}

/// Waits for the end of an operation and takes what came of it.
fn take<T>(handle: polylock_future, pick: impl FnOnce(Value) -> std::result::Result<T, Value>) -> Result<T> {
    let future = own(handle)?;
    future.wait(None);
    future.shared.take(pick)
}

/// Waits for the end of polylock_extend_start or polylock_close_start, and tells how it ended. Blocks unless the
/// future is ready.
///
/// @return what polylock_extend or polylock_close would have; POLYLOCK_ERR_CLOSED if it was cancelled;
///         _INVALID_ARGUMENT ("future") if it was taken already or is of another operation; _FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_take(future: polylock_future, err: *mut polylock_error) -> polylock_status {
    boundary::status(err, || {
        take(future, |value| match value {
            Value::Nothing => Ok(()),
            other => Err(other),
        })
    })
}

/// As polylock_future_take, for polylock_acquire_start.
///
/// @param lease out: the lease, which is the caller's from now on.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_take_lease(
    future: polylock_future,
    lease: *mut polylock_lease,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let place = lease.required("lease")?;
        let lease = take(future, |value| match value {
            Value::Lease(lease) => Ok(lease),
            other => Err(other),
        })?;
        place.put(keep(Arc::new(lease))?);
        Ok(())
    })
}

/// As polylock_future_take, for polylock_release_start.
///
/// @param outcome out, may be NULL: what became of the lease.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_take_outcome(
    future: polylock_future,
    outcome: *mut polylock_outcome,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let release = take(future, |value| match value {
            Value::Release(release) => Ok(release),
            other => Err(other),
        })?;
        if let Some(place) = outcome.given() {
            place.put(release.into());
        }
        Ok(())
    })
}

/// As polylock_future_take, for polylock_inspect_start.
///
/// @param holder out: who, to be freed with polylock_holder_free; 0 if the resource is free.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_take_holder(
    future: polylock_future,
    holder: *mut polylock_holder,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let place = holder.required("holder")?;
        let holder = take(future, |value| match value {
            Value::Holder(holder) => Ok(holder),
            other => Err(other),
        })?;
        place.put(match holder {
            Some(holder) => keep(HolderText::new(&holder))?,
            None => 0,
        });
        Ok(())
    })
}

/// Ends the operation, unless its result was taken: an acquisition leaves the line, and a lease that was or will be
/// won is given back in the background. The future is ready then, with POLYLOCK_ERR_CLOSED, and its callback is called;
/// its queue does not report it. Does not block.
///
/// @return POLYLOCK_OK, _FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_cancel(future: polylock_future) -> polylock_status {
    boundary::bare_status(|| {
        own(future)?.cancel();
        Ok(())
    })
}

/// Ends the handle of a future, and cancels the operation: see polylock_future_cancel. A callback that has not begun
/// is not called. Does not block. 0 is allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_future_free(future: polylock_future) -> polylock_status {
    boundary::bare_status(|| discard::<Future>(future))
}
