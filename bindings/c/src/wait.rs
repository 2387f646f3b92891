//! Waiting for no longer than C wants to.

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Duration,
};

use engine::{Instant, Result, host};

/// A time to wait as C gives it: `None` is for ever.
///
/// # Errors
/// `InvalidArgument` naming `timeout_ms` if it is not a number or over 2^53.
pub(crate) fn timeout(timeout_ms: f64) -> Result<Option<Duration>> {
    if timeout_ms < 0.0 {
        return Ok(None);
    }
    host::duration("timeout_ms", timeout_ms, Duration::from_millis(1)).map(Some)
}

/// Runs a future that others drive to its end, on this thread; `None` if that takes longer than `limit`.
pub(crate) fn within<F: Future>(future: F, limit: Option<Duration>) -> Option<F::Output> {
    let deadline = limit.map(|limit| Instant::now().after(limit));
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        match deadline {
            None => std::thread::park(),
            Some(deadline) => {
                let left = deadline.since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                std::thread::park_timeout(left);
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
