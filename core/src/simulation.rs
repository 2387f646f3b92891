//! A simulated world for tests: virtual time, tasks and alarms of several processes on one thread.
//!
//! The engine's own code runs in it, not a copy: the clock, the timer and `spawn` look whether a simulation is on in
//! their thread. A process can be paused: nothing of it runs, while time goes on. Everything that happens follows
//! from the seed.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use crate::{
    clock::Instant,
    engine::timer::{Alarm, AlarmKey},
};

/// A simulated process; the network and the servers are process 0.
pub(crate) type ProcessId = usize;

struct World {
    now: Instant,
    running: ProcessId,
    events: BTreeMap<AlarmKey, (ProcessId, Event)>,
    tasks: Vec<Option<Task>>,
    woken: Arc<Mutex<Vec<usize>>>,
    paused_until: Vec<Instant>,
    /// How far each process' wall clock is ahead.
    ahead: Vec<Duration>,
}

enum Event {
    Alarm(Arc<dyn Alarm>),
    Call(Box<dyn FnOnce()>),
    /// A task of a process that was paused.
    Poll(usize),
}

struct Task {
    process: ProcessId,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fn with<T>(work: impl FnOnce(&mut World) -> T) -> Option<T> {
    WORLD.with_borrow_mut(|world| world.as_mut().map(work))
}

/// Whether this thread simulates.
pub(crate) fn is_on() -> bool {
    WORLD.with_borrow(|world| world.is_some())
}

/// The virtual time.
pub(crate) fn now() -> Option<Instant> {
    with(|world| world.now)
}

/// The wall clock of the process that runs now.
pub(crate) fn wall() -> Option<Duration> {
    with(|world| world.now.since_boot() + world.ahead[world.running])
}

/// Sets a process' wall clock.
pub(crate) fn set_ahead(process: ProcessId, ahead: Duration) {
    with(|world| world.ahead[process] = ahead);
}

/// For the timer.
pub(crate) fn set_alarm(at: Instant, alarm: Arc<dyn Alarm>) -> AlarmKey {
    let key = AlarmKey::new(at);
    with(|world| world.events.insert(key, (world.running, Event::Alarm(alarm))));
    key
}

/// For the timer.
pub(crate) fn cancel_alarm(key: AlarmKey) {
    let removed = with(|world| world.events.remove(&key));
    drop(removed);
}

/// For the runtime: a task of the process that runs now.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    with(|world| {
        let task = Task { process: world.running, future: Box::pin(future) };
        world.tasks.push(Some(task));
        world.woken.lock().unwrap().push(world.tasks.len() - 1);
    });
}

/// A task of `process`.
pub(crate) fn spawn_in(process: ProcessId, future: impl Future<Output = ()> + 'static) {
    let running = with(|world| std::mem::replace(&mut world.running, process));
    spawn(future);
    with(|world| world.running = running.unwrap_or(0));
}

/// Has `call` happen after `delay`, outside of every process.
pub(crate) fn after(delay: Duration, call: impl FnOnce() + 'static) {
    with(|world| {
        let key = AlarmKey::new(world.now.after(delay));
        world.events.insert(key, (0, Event::Call(Box::new(call))));
    });
}

/// Stops `process` for a while.
pub(crate) fn pause(process: ProcessId, pause: Duration) {
    with(|world| world.paused_until[process] = world.now.after(pause));
}

/// Does `act` in a world of so many processes, which ends with it.
pub(crate) fn in_a_world<T>(processes: usize, act: impl FnOnce() -> T) -> T {
    start(processes);
    let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    end();
    acted.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Starts a world of so many processes on this thread, at a time when servers have been up for long.
fn start(processes: usize) {
    let now = Instant::at(Duration::from_secs(1_000_000));
    let world = World {
        now,
        running: 0,
        events: BTreeMap::new(),
        tasks: Vec::new(),
        woken: Arc::default(),
        paused_until: vec![now; processes + 1],
        ahead: vec![Duration::ZERO; processes + 1],
    };
    WORLD.with_borrow_mut(|current| *current = Some(world));
}

/// Ends the world.
fn end() {
    // What is left is dropped with the world gone: it must not find its way back.
    let world = WORLD.with_borrow_mut(Option::take);
    if let Some(world) = world {
        std::mem::forget(world);
    }
}

struct TaskWaker {
    task: usize,
    woken: Arc<Mutex<Vec<usize>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap().push(self.task);
    }
}

/// Lets `duration` pass; `look` is called whenever something has happened.
pub(crate) fn run(duration: Duration, mut look: impl FnMut()) {
    let Some(end) = with(|world| world.now.after(duration)) else { return };
    loop {
        poll_woken();
        look();
        let next = with(|world| {
            let (key, _) = world.events.first_key_value()?;
            (key.at() <= end).then(|| world.events.pop_first()).flatten()
        });
        let Some(Some((key, (process, event)))) = next else { break };
        let resumes = with(|world| {
            world.now = world.now.max(key.at());
            let resumes = world.paused_until[process];
            (resumes > world.now).then_some(resumes)
        });
        if let Some(Some(resumes)) = resumes {
            with(|world| world.events.insert(key.moved_to(resumes), (process, event)));
            continue;
        }
        with(|world| world.running = process);
        match event {
            Event::Alarm(alarm) => alarm.ring(),
            Event::Call(call) => call(),
            Event::Poll(task) => poll(task),
        }
        with(|world| world.running = 0);
    }
    with(|world| world.now = end);
}

fn poll_woken() {
    while let Some(task) = with(|world| world.woken.lock().unwrap().pop()).flatten() {
        let delayed = with(|world| {
            let process = world.tasks[task].as_ref().map(|task| task.process)?;
            let resumes = world.paused_until[process];
            if resumes > world.now {
                world.events.insert(AlarmKey::new(resumes), (process, Event::Poll(task)));
                return Some(true);
            }
            world.running = process;
            Some(false)
        });
        if let Some(Some(false)) = delayed {
            poll(task);
            with(|world| world.running = 0);
        }
    }
}

fn poll(task: usize) {
    let Some(Some((mut running, woken))) = with(|world| Some((world.tasks[task].take()?, Arc::clone(&world.woken))))
    else {
        return;
    };
    let waker = Waker::from(Arc::new(TaskWaker { task, woken }));
    if running.future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
        with(|world| world.tasks[task] = Some(running));
    }
}
