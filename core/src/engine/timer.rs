//! The engine's alarm clock: one thread that does nothing but ring alarms when they are due.
//!
//! It is a thread of its own so that a lease's lost signal fires at the deadline even while the network,
//! the runtime or the host language is stuck. It sleeps on `CLOCK_BOOTTIME`, so alarms that came due during
//! a suspend ring on wake-up. Setting an alarm re-arms the kernel timer and wakes no thread; cancelling one
//! leaves the kernel timer as it is (at worst the thread wakes once for nothing), so that the common
//! set-then-cancel of an uncontended lock costs two map operations.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use super::runtime;
use crate::clock::Instant;

/// Something to be told when its time has come. Runs on the timer's thread: it must be quick.
pub(crate) trait Alarm: Send + Sync {
    fn ring(self: Arc<Self>);

    /// Its time will not come: the engine was shut down before.
    fn forgotten(&self) {}
}

/// Names an alarm that was set, for [`Timer::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AlarmKey {
    at: Instant,
    serial: u64,
}

pub(crate) struct Timer {
    shared: Arc<Shared>,
}

struct Shared {
    agenda: Mutex<Agenda>,
    sleeper: Sleeper,
}

#[derive(Default)]
struct Agenda {
    alarms: BTreeMap<AlarmKey, Arc<dyn Alarm>>,
    /// When the sleeper will wake; never later than the first alarm.
    armed: Option<Instant>,
    stopped: bool,
}

impl AlarmKey {
    /// A key unlike any other of this process.
    pub(crate) fn new(at: Instant) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self { at, serial: SERIAL.fetch_add(1, Ordering::Relaxed) }
    }

    /// When it rings.
    #[cfg(test)]
    pub(crate) fn at(self) -> Instant {
        self.at
    }

    /// The same alarm at another time.
    #[cfg(test)]
    pub(crate) fn moved_to(self, at: Instant) -> Self {
        Self { at, ..self }
    }
}

impl Timer {
    /// Starts the thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared { agenda: Mutex::default(), sleeper: Sleeper::new()? });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new().name("polylock-timer".into()).spawn(move || thread.run())?;
        Ok(Self { shared })
    }

    /// Rings `alarm` at `at`, or as soon as possible if that has passed.
    pub(crate) fn set(&self, at: Instant, alarm: Arc<dyn Alarm>) -> AlarmKey {
        // Unique across engines, so that cancelling at the wrong one does nothing.
        let key = AlarmKey::new(at);
        let mut agenda = self.shared.agenda();
        agenda.alarms.insert(key, alarm);
        if agenda.armed.is_none_or(|armed| at < armed) {
            agenda.armed = Some(at);
            self.shared.sleeper.arm(at);
        }
        key
    }

    /// Forgets an alarm. One that is ringing right now may still finish ringing.
    pub(crate) fn cancel(&self, key: AlarmKey) {
        let alarm = self.shared.agenda().alarms.remove(&key);
        drop(alarm); // outside the lock: its destructor may come back here
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let alarms = {
            let mut agenda = self.shared.agenda();
            agenda.stopped = true;
            std::mem::take(&mut agenda.alarms)
        };
        for alarm in alarms.into_values() {
            alarm.forgotten();
        }
        self.shared.sleeper.arm(Instant::now());
    }
}

impl Shared {
    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let due = {
                let mut agenda = self.agenda();
                if agenda.stopped {
                    return;
                }
                let later = AlarmKey { at: Instant::now(), serial: u64::MAX };
                let rest = agenda.alarms.split_off(&later);
                let due = std::mem::replace(&mut agenda.alarms, rest);
                agenda.armed = agenda.alarms.keys().next().map(|first| first.at);
                if let Some(at) = agenda.armed {
                    self.sleeper.arm(at);
                }
                due
            };
            if due.is_empty() {
                self.sleeper.sleep();
            }
            for alarm in due.into_values() {
                // An alarm that panics must not silence the others.
                let rung = std::panic::AssertUnwindSafe(|| alarm.ring());
                if std::panic::catch_unwind(rung).is_err() {
                    tracing::error!("an alarm panicked");
                }
            }
        }
    }
}

/// Sleeps until the armed time on the engine's clock; arming from another thread takes effect at once.
#[cfg(target_os = "linux")]
struct Sleeper(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl Sleeper {
    fn new() -> std::io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?))
    }

    fn arm(&self, at: Instant) {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let since_boot = at.since_boot();
        let spec = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(since_boot.as_secs()).unwrap_or(i64::MAX),
                // Zero would disarm the timer.
                tv_nsec: i64::from(since_boot.subsec_nanos().max(1)),
            },
        };
        if let Err(error) = timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &spec) {
            tracing::error!(%error, "the timer cannot be armed");
        }
    }

    fn sleep(&self) {
        let mut expirations = [0; 8];
        // Interrupted or not, the caller looks at the clock.
        let _ = rustix::io::read(&self.0, &mut expirations);
    }
}

/// Without a timer on the right clock: a condition variable, looked at four times a second while armed.
#[cfg(not(target_os = "linux"))]
struct Sleeper {
    armed: Mutex<Option<Instant>>,
    changed: std::sync::Condvar,
}

#[cfg(not(target_os = "linux"))]
impl Sleeper {
    fn new() -> std::io::Result<Self> {
        Ok(Self { armed: Mutex::new(None), changed: std::sync::Condvar::new() })
    }

    fn arm(&self, at: Instant) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        self.changed.notify_one();
    }

    fn sleep(&self) {
        const LOOK: std::time::Duration = std::time::Duration::from_millis(250);
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            let left = armed.map_or(LOOK, |at| at.since(now).min(LOOK));
            if left.is_zero() {
                *armed = None;
                return;
            }
            armed = self.changed.wait_timeout(armed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Has `alarm` rung by the engine at `at`; `None` if there is no engine to be had.
pub(crate) fn set(at: Instant, alarm: Arc<dyn Alarm>) -> Option<AlarmKey> {
    #[cfg(test)]
    if crate::simulation::is_on() {
        return Some(crate::simulation::set_alarm(at, alarm));
    }
    runtime::engine().ok().map(|engine| engine.timer.set(at, alarm))
}

/// Forgets an alarm of [`set`].
pub(crate) fn cancel(key: AlarmKey) {
    #[cfg(test)]
    if crate::simulation::is_on() {
        return crate::simulation::cancel_alarm(key);
    }
    if let Some(engine) = runtime::running() {
        engine.timer.cancel(key);
    }
}

/// Waits until `at`. Works on any executor; drop it to forget it.
pub(crate) fn sleep_until(at: Instant) -> Sleep {
    Sleep { at, alarm: None }
}

/// See [`sleep_until`].
pub(crate) struct Sleep {
    at: Instant,
    alarm: Option<(AlarmKey, Arc<WakeUp>)>,
}

#[derive(Default)]
struct WakeUp {
    waker: AtomicWaker,
    /// Nobody will ring.
    forgotten: AtomicBool,
}

impl WakeUp {
    /// Whether there is nothing more to wait for.
    fn is_over(&self, at: Instant) -> bool {
        // Without an engine there is no time: better too early than never.
        Instant::now() >= at || self.forgotten.load(Ordering::Acquire)
    }
}

impl Alarm for WakeUp {
    fn ring(self: Arc<Self>) {
        self.waker.wake();
    }

    fn forgotten(&self) {
        self.forgotten.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        if let Some((_, wake_up)) = &self.alarm {
            wake_up.waker.register(cx.waker());
            // The alarm may have rung between the look at the clock and the registration.
            return if wake_up.is_over(self.at) { Poll::Ready(()) } else { Poll::Pending };
        }
        let wake_up = Arc::new(WakeUp::default());
        wake_up.waker.register(cx.waker());
        let Some(key) = set(self.at, Arc::clone(&wake_up) as Arc<dyn Alarm>) else { return Poll::Ready(()) };
        self.alarm = Some((key, wake_up));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((key, _)) = self.alarm.take() {
            cancel(key);
        }
    }
}

/// The future's result, or `None` if `at` comes first. The future is looked at first.
pub(crate) async fn until<F: Future>(at: Option<Instant>, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let Some(at) = at else { return Some(future.await) };
    let mut sleep = std::pin::pin!(sleep_until(at));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        sleep.as_mut().poll(cx).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    struct Note(mpsc::Sender<&'static str>, &'static str);

    impl Alarm for Note {
        fn ring(self: Arc<Self>) {
            self.0.send(self.1).unwrap();
        }
    }

    #[test]
    fn rings_in_order_and_not_what_was_cancelled() {
        let timer = Timer::start().unwrap();
        let (notes, rung) = mpsc::channel();
        let note = |text| Arc::new(Note(notes.clone(), text));
        let now = Instant::now();
        timer.set(now.after(Duration::from_millis(60)), note("second"));
        let never = timer.set(now.after(Duration::from_millis(40)), note("never"));
        timer.set(now.after(Duration::from_millis(20)), note("first"));
        timer.cancel(never);
        assert_eq!(rung.recv().unwrap(), "first");
        assert_eq!(rung.recv().unwrap(), "second");
        assert!(Instant::now() >= now.after(Duration::from_millis(60)));
        assert!(rung.try_recv().is_err());
    }

    #[test]
    fn an_alarm_that_panics_does_not_silence_the_next() {
        struct Bang;
        impl Alarm for Bang {
            fn ring(self: Arc<Self>) {
                panic!("on purpose");
            }
        }
        let timer = Timer::start().unwrap();
        let (notes, rung) = mpsc::channel();
        timer.set(Instant::now(), Arc::new(Bang));
        timer.set(Instant::now().after(Duration::from_millis(5)), Arc::new(Note(notes, "still here")));
        assert_eq!(rung.recv().unwrap(), "still here");
    }
}
