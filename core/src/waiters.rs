//! Who may ask the backend next: one waiter per resource and manager, the others behind it in order.
//!
//! The first in line talks to the backend; when it leaves, with the lock or without, the next one comes up.
//! Leaving is a destructor, so a waiter that is cancelled anywhere never blocks the line.
//!
//! # Who stands still is passed
//!
//! The first in line may not be driven: its event loop is blocked, nobody turns its queue, its future is not polled. So while
//! anybody stands behind somebody, an alarm makes *rounds* through the lines of the manager. Whoever has been first for
//! [`STANDS_STILL`] rounds without having shown up (it does before each attempt, at least once a second) stands still.
//! Then all behind are told, once. The first of them to look is awake, or it would not look: it takes the first place. All
//! whom it passes go to the end and count as standing still until they look, too; so many in a row that stand still cost the others
//! no more than one does, and whoever leaves makes the next one first that does not stand still. None who is awake is
//! forgotten by that: who counts as standing still has been told and has not looked since.
//!
//! Only one waiter at a time comes up by that, and in a line whose first one asks nobody does: what the backend
//! is asked does not depend on how many wait. A waiter behind has no timer and does not run; a round is one alarm for
//! all lines, and there is none where nobody stands behind somebody.
//!
//! # Why passing is harmless
//!
//! The line only keeps down how many ask; who holds is up to the backend, as between managers. So nothing is wrong when
//! several believe to be first:
//!
//! * *Who was passed comes to life*: it learns that before its next attempt, and waits to come up again. An attempt that was
//!   on its way comes to its end: should it be granted, it holds the lock, as if it had stopped a moment later.
//! * *It was not asleep, its attempt took long* (the server does not answer): the next one's attempt goes along with
//!   it. That is one more in each [`STANDS_STILL`] rounds, for as long as an attempt may take.
//! * *It waits for several resources*, and is first in some lines while it waits in a later one, where it does not ask: in those it
//!   may be passed. It asks when it is first in the last one, whoever is first in the others by then; it does not go back
//!   to them, so that nobody waits in a circle.
//! * *All stand still*: the next one to come, or to come to life, is first at once.
//! * *The process stood still*: so did its alarms; nothing counts but rounds.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    Error, Resource,
    clock::Instant,
    engine::timer::{self, Alarm},
};

/// The pause between two rounds. No shorter than the longest one between two attempts.
const ROUND: Duration = Duration::from_secs(1);

/// Who is first and does not show up for so many rounds is passed: after two to three seconds.
const STANDS_STILL: u32 = 3;

/// The lines of waiters of one manager.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<Lines>);

#[derive(Default)]
struct Lines {
    of: HashMap<Resource, VecDeque<Arc<Waiter>>>,
    /// The next round is set.
    has_rounds: bool,
}

#[derive(Default)]
struct Waiter {
    bell: Notify,
    /// Rounds as the first since it last showed up.
    missed: AtomicU32,
    handed_on: OnceLock<Outage>,
}

/// What the first in line leaves to the next: since when the backend has been out of reach, and how many tries have
/// found it so, the last one by this error.
pub(crate) struct Outage {
    pub(crate) since: Instant,
    pub(crate) failures: u32,
    pub(crate) error: Error,
}

impl Waiter {
    fn shows_up(&self) {
        self.missed.store(0, Ordering::Relaxed);
    }

    fn stands_still(&self) -> bool {
        self.missed.load(Ordering::Relaxed) >= STANDS_STILL
    }
}

impl Waiters {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the line.
    pub(crate) fn join(self: &Arc<Self>, resource: &Resource) -> Place {
        let waiter = Arc::new(Waiter::default());
        let begins = {
            let mut lines = self.lines();
            let line = lines.of.entry(resource.clone()).or_default();
            line.push_back(Arc::clone(&waiter));
            line.len() > 1 && !std::mem::replace(&mut lines.has_rounds, true)
        };
        if begins {
            self.set_round();
        }
        Place { waiters: Arc::clone(self), resource: resource.clone(), waiter }
    }

    /// Not to be called under the lock: a timer that ends takes it.
    fn set_round(self: &Arc<Self>) {
        let alarm = Arc::clone(self) as Arc<dyn Alarm>;
        if timer::set(Instant::now().after(ROUND), alarm).is_none() {
            self.forgotten();
        }
    }

    /// Has the first in line, if any, try again: the resource may be free.
    pub(crate) fn nudge(&self, resource: &Resource) {
        if let Some(first) = self.lines().of.get(resource).and_then(VecDeque::front) {
            first.bell.notify_one();
        }
    }

    /// How many wait for `resource` here.
    pub(crate) fn count(&self, resource: &Resource) -> usize {
        self.lines().of.get(resource).map_or(0, VecDeque::len)
    }
}

impl Alarm for Waiters {
    /// A round.
    fn ring(self: Arc<Self>) {
        let goes_on = {
            let mut lines = self.lines();
            for line in lines.of.values() {
                let Some(first) = line.front() else { continue };
                if first.missed.fetch_add(1, Ordering::Relaxed) + 1 == STANDS_STILL {
                    line.iter().skip(1).for_each(|waiter| waiter.bell.notify_one());
                }
            }
            lines.has_rounds = lines.of.values().any(|line| line.len() > 1);
            lines.has_rounds
        };
        if goes_on {
            self.set_round();
        }
    }

    fn forgotten(&self) {
        self.lines().has_rounds = false;
    }
}

/// A place in the line; dropping it leaves.
pub(crate) struct Place {
    waiters: Arc<Waiters>,
    resource: Resource,
    waiter: Arc<Waiter>,
}

impl Place {
    fn is_of(&self, waiter: &Arc<Waiter>) -> bool {
        Arc::ptr_eq(waiter, &self.waiter)
    }

    /// Whether it is the first in line; it is from now on if the one that was stands still.
    fn comes_up(&self) -> bool {
        let mut lines = self.waiters.lines();
        // Under the lock: whoever counts as standing still has to look yet.
        self.waiter.shows_up();
        let Some(line) = lines.of.get_mut(&self.resource) else { return false };
        match line.front() {
            Some(first) if self.is_of(first) => return true,
            Some(first) if first.stands_still() => {}
            _ => return false,
        }
        let Some(passes) = line.iter().position(|waiter| self.is_of(waiter)) else { return false };
        line.iter().take(passes).for_each(|passed| passed.missed.store(STANDS_STILL, Ordering::Relaxed));
        line.rotate_left(passes);
        true
    }

    /// Waits to be the first in line.
    pub(crate) async fn first(&self) {
        while !self.comes_up() {
            self.waiter.bell.notified().await;
        }
    }

    /// Says, where it need not be the first, that it does not stand still.
    pub(crate) fn shows_up(&self) {
        self.waiter.shows_up();
    }

    /// Leaves to the next in line what the first has found out.
    pub(crate) fn hand_on(&self, outage: Outage) {
        if let Some(line) = self.waiters.lines().of.get(&self.resource)
            && line.front().is_some_and(|first| self.is_of(first))
            && let Some(next) = line.get(1)
        {
            let _ = next.handed_on.set(outage);
        }
    }

    /// What the one before it in line found out at the end.
    pub(crate) fn handed_on(&self) -> Option<&Outage> {
        self.waiter.handed_on.get()
    }

    /// Waits, as the first in line, for a nudge.
    pub(crate) async fn nudged(&self) {
        self.waiter.bell.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.waiters.lines();
        let Some(line) = lines.of.get_mut(&self.resource) else { return };
        // At once for the first, which leaves most often, however long the line is.
        let Some(at) = line.iter().position(|waiter| self.is_of(waiter)) else { return };
        line.remove(at);
        if line.is_empty() {
            lines.of.remove(&self.resource);
        } else if at == 0 {
            // If all stand still, the first of them to look is first.
            line.rotate_left(line.iter().position(|waiter| !waiter.stands_still()).unwrap_or(0));
            line[0].bell.notify_one();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{cell::Cell, future::Future, pin::Pin, rc::Rc, sync::mpsc};

    use futures_util::FutureExt;

    use super::*;
    use crate::{
        Acquire, Lease, LockManager, Result, Value, blocking,
        engine::{driver::Driver, timer::sleep_until},
        simulation::{self, in_a_world},
    };

    const MS: Duration = Duration::from_millis(1);

    /// Lets time pass.
    fn pass(time: Duration) {
        simulation::run(time, || ());
    }

    fn is_first(place: &Place) -> bool {
        place.first().now_or_never().is_some()
    }

    #[test]
    fn first_come_first_served_and_leaving_is_no_obstacle() {
        let waiters = Arc::new(Waiters::default());
        let resource = Resource::new("r").unwrap();
        let (one, two, three) = (waiters.join(&resource), waiters.join(&resource), waiters.join(&resource));
        assert!(one.first().now_or_never().is_some());
        assert!(two.first().now_or_never().is_none());
        drop(two);
        assert!(three.first().now_or_never().is_none());
        drop(one);
        assert!(three.first().now_or_never().is_some());
        assert_eq!(waiters.count(&resource), 1);
        drop(three);
        assert!(waiters.lines().of.is_empty());
    }

    #[test]
    fn a_nudge_is_kept_until_it_is_looked_for() {
        let waiters = Arc::new(Waiters::default());
        let resource = Resource::new("r").unwrap();
        waiters.nudge(&resource);
        let place = waiters.join(&resource);
        assert!(place.nudged().now_or_never().is_none());
        waiters.nudge(&resource);
        assert!(place.nudged().now_or_never().is_some());
    }

    #[test]
    fn who_stands_still_is_passed_and_may_come_back() {
        in_a_world(1, || {
            let waiters = Arc::new(Waiters::default());
            let resource = Resource::new("r").unwrap();
            let (one, two, three) = (waiters.join(&resource), waiters.join(&resource), waiters.join(&resource));
            assert!(is_first(&one));
            pass(2 * ROUND + 999 * MS);
            assert!(!is_first(&two) && !is_first(&three));
            pass(MS);
            // The first to look; there is one alone.
            assert!(is_first(&two) && !is_first(&three) && !is_first(&one));
            drop(two);
            assert!(!is_first(&one) && is_first(&three));
            drop(three);
            assert!(is_first(&one));
            drop(one);
            pass(ROUND);
            // Nothing is left, no alarm either.
            assert!(waiters.lines().of.is_empty() && !waiters.lines().has_rounds);
            assert_eq!(Arc::strong_count(&waiters), 1);
        });
    }

    #[test]
    fn who_shows_up_is_not_passed() {
        in_a_world(1, || {
            let waiters = Arc::new(Waiters::default());
            let resource = Resource::new("r").unwrap();
            let (one, two) = (waiters.join(&resource), waiters.join(&resource));
            for _ in 0..20 {
                assert!(is_first(&one) && !is_first(&two));
                pass(ROUND);
            }
        });
    }

    #[test]
    fn a_hundred_that_stand_still_cost_no_more_than_one() {
        in_a_world(1, || {
            let waiters = Arc::new(Waiters::default());
            let resource = Resource::new("r").unwrap();
            let still: Vec<_> = (0..100).map(|_| waiters.join(&resource)).collect();
            let (awake, next) = (waiters.join(&resource), waiters.join(&resource));
            pass(STANDS_STILL * ROUND);
            assert!(is_first(&awake) && !is_first(&next));
            drop(awake);
            assert!(is_first(&next));
            drop(next);
            // Nobody but them is there.
            assert!(is_first(&waiters.join(&resource)) && is_first(&waiters.join(&resource)));
            assert_eq!(waiters.count(&resource), still.len());
            assert!(is_first(&still[99]) && !is_first(&still[0]));
        });
    }

    /// Threads that look and leave at the same time.
    #[test]
    fn everybody_who_is_awake_comes_up() {
        let resource = Resource::new("r").unwrap();
        for _ in 0..1000 {
            let waiters = Arc::new(Waiters::default());
            let _still = waiters.join(&resource);
            let (left, all_left) = mpsc::channel();
            let places = [(); 4].map(|()| waiters.join(&resource));
            let threads = places.map(|place| {
                let left = left.clone();
                std::thread::spawn(move || {
                    blocking::wait(|_| place.first());
                    drop(place);
                    left.send(()).unwrap();
                })
            });
            (0..STANDS_STILL).for_each(|_| Arc::clone(&waiters).ring());
            for _ in threads {
                all_left.recv_timeout(10 * ROUND).expect("it does not come up");
            }
        }
    }

    #[test]
    fn one_alone_of_many_comes_up() {
        in_a_world(1, || {
            let waiters = Arc::new(Waiters::default());
            let resource = Resource::new("r").unwrap();
            let (_still, up) = (waiters.join(&resource), Rc::new(Cell::new(0)));
            for _ in 0..100 {
                let (place, up) = (waiters.join(&resource), Rc::clone(&up));
                simulation::spawn_in(1, async move {
                    place.first().await;
                    up.set(up.get() + 1);
                    std::future::pending::<()>().await;
                });
            }
            // Each of them stands still when it is up.
            for passed in 0..10 {
                assert_eq!(up.get(), passed);
                pass(STANDS_STILL * ROUND);
            }
        });
    }

    type Acquiring = Pin<Box<dyn Future<Output = Result<Lease>>>>;

    /// Waits for as long as it takes.
    fn acquiring(locks: &LockManager, names: &[&str]) -> Acquiring {
        let (locks, target) = (locks.clone(), crate::Target::all(names.iter().copied()));
        Box::pin(async move { locks.acquire_by(target, Acquire::ttl(100 * ROUND), &Driver::engine()).await })
    }

    /// Acquires, holds for a while, and notes in `served` that it did.
    fn spawn_in(process: usize, acquiring: Acquiring, hold: Duration, served: &Rc<Cell<u32>>) {
        let served = Rc::clone(served);
        simulation::spawn_in(process, async move {
            let lease = acquiring.await.unwrap();
            sleep_until(Instant::now().after(hold)).await;
            lease.release_by(&Driver::engine()).await.unwrap();
            served.set(served.get() + 1);
        });
    }

    pub(crate) fn attempts(locks: &LockManager) -> f64 {
        let metrics = locks.metrics().unwrap().metrics;
        let attempts = metrics.iter().find(|metric| metric.name == "polylock.attempts").unwrap();
        attempts.points.iter().map(|point| if let Value::Number(number) = point.value { number } else { 0.0 }).sum()
    }

    #[test]
    fn many_behind_one_that_stands_still_ask_no_more_than_few() {
        let asked = [2_u32, 200].map(|many| {
            in_a_world(1, || {
                let locks = crate::connect(format!("memory:behind-{many}")).lazy().unwrap();
                let served = Rc::new(Cell::new(0));
                let holder = acquiring(&locks, &["r"]).now_or_never().unwrap().unwrap();
                let mut still = acquiring(&locks, &["r"]);
                assert!(still.as_mut().now_or_never().is_none());
                for _ in 0..many {
                    spawn_in(1, acquiring(&locks, &["r"]), Duration::ZERO, &served);
                }
                pass(60 * ROUND);
                let while_held = attempts(&locks);
                drop(holder);
                pass(ROUND);
                assert_eq!((served.get(), locks.waiting("r").unwrap()), (many, 1));
                let hand_overs = (attempts(&locks) - while_held) / f64::from(many);
                assert!(hand_overs < 2.0, "{hand_overs} attempts for each that was served");
                // It comes to life.
                spawn_in(1, still, Duration::ZERO, &served);
                pass(ROUND);
                assert_eq!((served.get(), locks.waiting("r").unwrap()), (many + 1, 0));
                while_held
            })
        });
        // In pauses of 200 to 250 ms.
        assert!(asked.iter().all(|asked| (220.0..320.0).contains(asked)), "{asked:?}");
    }

    #[test]
    fn who_comes_to_life_waits_in_line_again() {
        in_a_world(2, || {
            let locks = crate::connect("memory:two-loops").lazy().unwrap();
            let served = Rc::new(Cell::new(0));
            let _holder = acquiring(&locks, &["r"]).now_or_never().unwrap().unwrap();
            // The rounds are of no loop that is paused.
            let mut still = [(); 2].map(|()| acquiring(&locks, &["r"]));
            assert!(still.iter_mut().all(|still| still.as_mut().now_or_never().is_none()));
            for number in 0..40 {
                let waiting = acquiring(&locks, &["r"]);
                spawn_in(1 + number % 2, waiting, Duration::ZERO, &served);
            }
            for number in 0..20 {
                simulation::pause(1 + number % 2, 2 * STANDS_STILL * ROUND);
                pass(2 * STANDS_STILL * ROUND);
            }
            let asked = attempts(&locks);
            pass(20 * ROUND);
            let asks = attempts(&locks) - asked;
            assert!((80.0..110.0).contains(&asks), "{asks} attempts in 20 s");
        });
    }

    #[test]
    fn who_waits_in_a_later_line_does_not_hold_up_an_earlier_one() {
        in_a_world(1, || {
            let locks = crate::connect("memory:later-line").lazy().unwrap();
            let (for_both, for_one) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let holder = acquiring(&locks, &["b"]).now_or_never().unwrap().unwrap();
            spawn_in(1, acquiring(&locks, &["b"]), ROUND, &for_one);
            pass(MS);
            for _ in 0..3 {
                spawn_in(1, acquiring(&locks, &["a", "b"]), ROUND, &for_both);
                pass(MS);
            }
            spawn_in(1, acquiring(&locks, &["a"]), ROUND, &for_one);
            pass(5 * ROUND);
            assert_eq!((for_both.get(), for_one.get()), (0, 1));
            drop(holder);
            pass(20 * ROUND);
            assert_eq!((for_both.get(), for_one.get()), (3, 2));
            assert_eq!((locks.waiting("a").unwrap(), locks.waiting("b").unwrap()), (0, 0));
        });
    }

    #[test]
    fn who_asks_for_several_keeps_its_places() {
        in_a_world(1, || {
            let locks = crate::connect("memory:several").lazy().unwrap();
            let served = Rc::new(Cell::new(0));
            let holder = acquiring(&locks, &["b"]).now_or_never().unwrap().unwrap();
            spawn_in(1, acquiring(&locks, &["a", "b"]), 5 * ROUND, &served);
            pass(MS);
            spawn_in(1, acquiring(&locks, &["a"]), 5 * ROUND, &served);
            // It came later, and "a" is free.
            pass(20 * ROUND);
            drop(holder);
            pass(9 * ROUND);
            assert_eq!(served.get(), 1);
            pass(2 * ROUND);
            assert_eq!(served.get(), 2);
        });
    }
}
