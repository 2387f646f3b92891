//! Acquiring: attempts, and what happens between them.
//!
//! # What can happen between any two steps
//!
//! * *The caller goes away* (drop, cancellation, time-out): the place in line is left by a destructor; an attempt
//!   on its way is a [`Pending`], whose destructor has it undone.
//! * *The answer is lost or the server does not answer*: the attempt is undone in the background, and the next one has
//!   a new owner token, so that the delayed undoing of the first cannot free the second.
//! * *The grant comes too late* (a pause, a blocked event loop): its deadline counts from the sending and has
//!   passed; it is given back and never returned.
//! * *It is released between a refused attempt and the watch for that*: the watch reports a change as
//!   soon as it stands, and every sleep is bounded by the holder's remaining time and by [`LONGEST_SLEEP`].
//! * *Nobody drives the future*: it is passed by those behind it in line ([`waiters`](crate::waiters)), and waits to come up again
//!   when it is driven.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt;

use crate::{
    Acquire, Error, ErrorKind, Lease, Mode, OwnerToken, Resource, Result, Target,
    backend::{Attempt, Claim, FAIR_CHANCE, Progress, Watch},
    clock::Instant,
    engine::{
        driver::Driver,
        timer::{sleep_until, until},
    },
    error::Trouble,
    events::{Event, EventKind},
    lease::{Grant, state::LeaseState},
    line::InLine,
    manager::Manager,
    metrics::{Acquired, Acquiring, Said},
    mutant::mutant,
    options::Wait,
    target::Names,
    undo::Pending,
    waiters::{Outage, Place},
};

/// Other libraries publish nothing when they release, so nobody sleeps longer than this.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);

/// Who waited longer than this to be first in line was kept waiting by others of its process.
const IN_LINE: Duration = Duration::from_millis(1);

/// After so many attempts in a row that stood in others' way it is taken for held, by somebody whose other nodes do
/// not answer: then waiting is better than trying.
const MOST_CLASHES: u32 = 6;

/// How long a backend may be out of reach for somebody who would otherwise wait for ever.
const LONGEST_OUTAGE: Duration = Duration::from_secs(30);

/// Why an attempt came to nothing, though another may succeed.
enum Refusal {
    Busy { free_in: Option<Duration>, foreign: bool, contended: bool },
    Unreachable(Error),
}

/// Acquires as `options` say. Dropping the future at any point leaves nothing behind.
pub(crate) async fn acquire(
    manager: &Arc<Manager>,
    target: &Target,
    options: &Acquire,
    driver: &Driver,
) -> Result<Lease> {
    options.check()?;
    let (resources, mode) = (target.resources()?, target.mode());
    manager.check_can(&resources, mode, options.fair)?;
    let began = Instant::now();
    let series = manager.counters.series(options.template.as_ref());
    let mut waiting = Waiting {
        #[cfg(test)]
        first_owner: None,
        manager,
        measured: manager.counters.acquiring(series, began),
        resources: &resources,
        mode,
        began,
        refusal: None,
        progress: None,
        outage: None,
        places: Vec::new(),
        tries: 0,
        first_in_line: None,
        clashes: 0,
        met: false,
        line: if options.fair {
            Some(Box::new(InLine::come(manager, &resources[0], began, options.wait != Wait::No)?))
        } else {
            None
        },
    };
    // Pinned here: an async function has room for what it is given twice over, and this is copied and allocated each time.
    let result = match options.wait {
        Wait::For(wait) => {
            let acquired = pin!(waiting.until_acquired(options, driver));
            match until(Some(began.after(wait)), pin!(manager.unless_closed(acquired))).await {
                Some(acquired) => acquired?,
                None => Ok(None),
            }
        }
        Wait::No | Wait::Forever => manager.unless_closed(pin!(waiting.until_acquired(options, driver))).await?,
    };
    let error = match result {
        Ok(Some(lease)) => return Ok(lease),
        Ok(None) => waiting.why_not(),
        Err(error) => error,
    };
    let outcome = match error.kind() {
        ErrorKind::Timeout if options.wait == Wait::No => Acquired::Contended,
        ErrorKind::Timeout => Acquired::Timeout,
        _ => Acquired::Error,
    };
    waiting.measured.end(outcome, Instant::now());
    Err(target.blamed(error).on(&Names(&resources).to_string()))
}

/// What has been learnt so far.
struct Waiting<'a> {
    #[cfg(test)]
    first_owner: Option<OwnerToken>,
    manager: &'a Arc<Manager>,
    measured: Acquiring,
    resources: &'a Arc<[Resource]>,
    mode: Mode,
    began: Instant,
    refusal: Option<Refusal>,
    /// The latest attempt.
    progress: Option<Arc<Progress>>,
    /// Since when the backend has been out of reach, and how many tries have found it so.
    outage: Option<(Instant, u32)>,
    /// In the lines of this process.
    places: Vec<Place>,
    tries: u32,
    /// When the line of this process had come to it.
    first_in_line: Option<Instant>,
    /// Attempts in a row that stood in each other's way.
    clashes: u32,
    /// Somebody else held it, and subscribers have been told.
    met: bool,
    /// It is to be served in order.
    line: Option<Box<InLine>>,
}

/// Who is next in line has waited through the outage as well, and need not wait for as long once more.
impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let (Some((since, failures)), Some(Refusal::Unreachable(error)), Some(last)) =
            (self.outage, &self.refusal, self.places.last())
        {
            last.hand_on(Outage { since, failures, error: error.clone() });
        }
    }
}

impl Waiting<'_> {
    /// Tries until it succeeds, fails for good, is not to wait, or the backend has been out of reach for too long.
    async fn until_acquired(&mut self, options: &Acquire, driver: &Driver) -> Result<Option<Lease>> {
        // In the order of the resources, which is one for everybody: nobody waits in a circle.
        if options.wait != Wait::No {
            self.places.reserve_exact(self.resources.len());
            for resource in self.resources.iter() {
                let place = self.manager.waiters.join(resource);
                place.first().await;
                self.places.push(place);
            }
            self.first_in_line = Some(Instant::now());
        }
        if let Some(before_us) = self.places.last().and_then(Place::handed_on) {
            self.outage = Some((before_us.since.max(self.began), before_us.failures));
            self.refusal = Some(Refusal::Unreachable(before_us.error.clone()));
            if self.is_out_for_too_long(options) {
                return Ok(None);
            }
        }
        let mut watches: Vec<Watch> = Vec::new();
        loop {
            if let Some(lease) = self.attempt(options, driver).await? {
                self.outage = None;
                return Ok(Some(lease));
            }
            match &self.refusal {
                Some(Refusal::Busy { .. }) if options.wait == Wait::No => return Ok(None),
                Some(Refusal::Busy { contended: true, .. }) if self.clashes < MOST_CLASHES => {
                    self.outage = None;
                    sleep_until(Instant::now().after(self.step_aside())).await;
                }
                Some(Refusal::Busy { free_in, contended, .. }) => {
                    let free_in = *free_in;
                    if !contended {
                        self.clashes = 0;
                    }
                    self.outage = None;
                    if watches.is_empty() {
                        watches.extend(self.resources.iter().map(|resource| self.manager.backend.watch(resource)));
                    }
                    let longest = options.retried_every.map_or(LONGEST_SLEEP, |every| every.min(LONGEST_SLEEP));
                    // In a box, for those who need not sleep.
                    Box::pin(sleep_while_busy(longest, free_in, &mut watches, &self.places)).await;
                }
                Some(Refusal::Unreachable(_)) | None => {
                    let now = Instant::now();
                    let (since, failures) = self.outage.unwrap_or((now, 0));
                    self.outage = Some((since, failures.saturating_add(1)));
                    if self.is_out_for_too_long(options) {
                        return Ok(None);
                    }
                    sleep_until(now.after(self.back_off())).await;
                }
            }
            // It may have been passed. The order of the lines is kept: it waits in the last one alone.
            self.places.iter().for_each(Place::shows_up);
            if let Some(last) = self.places.last() {
                last.first().await;
            }
        }
    }

    /// Whether the backend has been out of reach for so long that nobody who waits so should wait longer.
    fn is_out_for_too_long(&self, options: &Acquire) -> bool {
        let Some((since, failures)) = self.outage else { return false };
        let lasts = Instant::now().since(since);
        match (self.manager.patience, options.wait) {
            _ if options.retried_every.is_some() => true,
            (Some(patience), _) => {
                let trouble = match &self.refusal {
                    Some(Refusal::Unreachable(error)) => error.trouble(),
                    _ => None,
                };
                let retries = match trouble {
                    Some(Trouble::Said { passes: false, .. }) => return true,
                    None if options.wait != Wait::No => patience.silences,
                    _ => patience.retries,
                };
                failures > retries && lasts >= patience.pause
            }
            (None, Wait::No) => true,
            (None, Wait::For(_)) => false,
            (None, Wait::Forever) => lasts >= LONGEST_OUTAGE,
        }
    }

    /// One attempt; `None` if another may succeed.
    async fn attempt(&mut self, options: &Acquire, driver: &Driver) -> Result<Option<Lease>> {
        self.tries = self.tries.saturating_add(1);
        let manager = self.manager;
        let pending = Pending::new(manager, self.claim(options)?)?;
        let series = &self.measured.series;
        match manager.backend.try_acquire(pending.claim(), driver).await {
            Attempt::Granted { fencing_token, since } => {
                let hold_until = options.max_hold.map(|max_hold| since.after(max_hold));
                let state = LeaseState::granted(since, options.ttl, manager.drift, options.auto_extend, hold_until)
                    .within(pending.claim().progress.session.get().map(Arc::clone));
                manager.counters.said(series, Said::Granted);
                let now = Instant::now();
                let late = || {
                    let ttl = options.ttl;
                    Refusal::Unreachable(Error::unavailable(format!(
                        "the grant came after its ttl of {ttl:?} was over"
                    )))
                };
                if state.is_held(now) || mutant!("D1") {
                    // Closing must find it among the leases before it is missing among the attempts.
                    let grant = Grant { fencing_token, since, series: Arc::clone(series) };
                    let lease = Lease::new(Arc::clone(manager), pending.claim().clone(), grant, state);
                    if !pending.settled() {
                        self.refusal = Some(late());
                        return Ok(None);
                    }
                    if let Some(line) = &mut self.line {
                        line.served();
                    }
                    self.measured.granted(since, now);
                    manager.subscribers.tell(|| Event {
                        fencing_token: Some(fencing_token),
                        duration: Some(now.since(self.began)),
                        ..Event::new(EventKind::Acquired, self.resources, self.mode)
                    });
                    return Ok(Some(lease));
                }
                drop(pending); // gives it back
                self.refusal = Some(late());
            }
            Attempt::Busy { free_in, foreign, contended, residue } => {
                if residue && !mutant!("D13") {
                    pending.refused();
                } else {
                    pending.settled();
                }
                manager.counters.said(series, Said::Busy);
                if !std::mem::replace(&mut self.met, true) {
                    manager.subscribers.tell(|| Event::new(EventKind::Contended, self.resources, self.mode));
                }
                self.refusal = Some(Refusal::Busy { free_in, foreign, contended });
            }
            Attempt::Refused(error) => {
                pending.settled();
                manager.counters.said(series, Said::Failed);
                if error.kind() != ErrorKind::Unavailable {
                    return Err(error);
                }
                self.refusal = Some(Refusal::Unreachable(error));
            }
            Attempt::Unknown(error) => {
                if mutant!("D12") {
                    pending.settled();
                } else {
                    drop(pending);
                }
                manager.counters.said(series, Said::Failed);
                if error.kind() != ErrorKind::Unavailable {
                    return Err(error);
                }
                self.refusal = Some(Refusal::Unreachable(error));
            }
        }
        Ok(None)
    }

    /// What the next attempt claims.
    fn claim(&mut self, options: &Acquire) -> Result<Claim> {
        let owner = OwnerToken::draw()?;
        #[cfg(test)]
        let owner = if mutant!("D2") { *self.first_owner.get_or_insert(owner) } else { owner };
        let claim = Claim {
            resources: Arc::clone(self.resources),
            mode: self.mode,
            owner,
            ttl: options.ttl,
            label: options.label.clone(),
            // Whoever has just been given a part of it is as good as first.
            turn: self.line.as_ref().map(|line| Box::new(line.turn(self.clashes > 0))),
            waits: options.wait != Wait::No,
            thorough: options.thorough,
            gives_back: options.gives_back,
            progress: Arc::default(),
        };
        self.progress = Some(Arc::clone(&claim.progress));
        Ok(claim)
    }

    /// Pause after several attempts stood in each other's way: random, doubling up to a quarter of a second, and
    /// long enough for the part that was granted to be given back.
    fn step_aside(&mut self) -> Duration {
        self.clashes += 1;
        aside(self.clashes)
    }

    /// Pause before the next try at a backend that is out of reach: random, doubling up to a second.
    fn back_off(&self) -> Duration {
        let longest = Duration::from_millis(25).saturating_mul(1 << self.tries.min(6)).min(Duration::from_secs(1));
        longest.mul_f64(fastrand::f64()).max(Duration::from_millis(5))
    }

    /// The error of an acquisition that came to nothing.
    fn why_not(&self) -> Error {
        let waited = Instant::now().since(self.began).as_secs_f64();
        match &self.refusal {
            Some(Refusal::Busy { foreign: true, .. }) => Error::new(
                ErrorKind::Conflict,
                format!("in use as something that is not a lock of this kind; waited {waited:.3} s"),
            ),
            Some(Refusal::Busy { free_in, .. }) => {
                let until = match free_in {
                    Some(free_in) => format!(" for {:.3} s more unless it is extended", free_in.as_secs_f64()),
                    None => String::new(),
                };
                Error::new(ErrorKind::Timeout, format!("held by somebody else{until}; waited {waited:.3} s"))
            }
            Some(Refusal::Unreachable(error)) => {
                Error::unavailable(format!("not acquired within {waited:.3} s")).with_causes_of(error)
            }
            // It came up only just before its time was over: that says nothing of the backend.
            None if self.first_in_line.is_some_and(|first| {
                first.since(self.began) > IN_LINE && Instant::now().since(first) < FAIR_CHANCE
            }) =>
            {
                Error::new(ErrorKind::Timeout, format!("others of this process were before us; waited {waited:.3} s"))
            }
            None if self.tries > 0 => {
                let error = Error::unavailable(format!("no answer within {waited:.3} s"));
                match self.progress.as_ref().and_then(|progress| progress.trouble()) {
                    Some(trouble) => error.with_causes_of(&trouble),
                    None => self.manager.backend.servers().into_iter().fold(error, Error::caused_by),
                }
            }
            None => {
                Error::new(ErrorKind::Timeout, format!("others of this process are before us; waited {waited:.3} s"))
            }
        }
    }
}

/// How long to pause after so many clashes.
fn aside(clashes: u32) -> Duration {
    let longest = Duration::from_millis(4 << clashes);
    let spread = if mutant!("D22") { 0.5 } else { fastrand::f64() };
    Duration::from_millis(2) + longest.mul_f64(spread)
}

/// Sleeps until the resource may be free, for about `longest` at most.
async fn sleep_while_busy(longest: Duration, free_in: Option<Duration>, watches: &mut [Watch], places: &[Place]) {
    // Spread out, so that many processes do not come at once; a little after the expiry itself.
    let spread = longest.mul_f64(fastrand::f64() / 5.0);
    let sleep = match free_in {
        Some(free_in) if free_in < longest => free_in + Duration::from_micros(500 + fastrand::u64(..2000)),
        _ => longest - spread,
    };
    let woken = async {
        let changed = watches.iter_mut().map(|watch| watch.changed().boxed());
        let nudged = places.iter().map(|place| place.nudged().boxed());
        futures_util::future::select_all(changed.chain(nudged)).await;
    };
    until(Some(Instant::now().after(sleep)), woken).await;
}

impl Manager {
    /// Whether the backend can do this at all; asked before anything is sent.
    fn check_can(&self, resources: &[Resource], mode: Mode, fair: bool) -> Result<()> {
        let can = self.backend.capabilities();
        if fair && (mode != Mode::Exclusive || resources.len() > 1) {
            let why = "fair is for exclusive locks on one resource";
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        if fair && !can.fair {
            return Err(Error::new(ErrorKind::Unsupported, "this backend cannot serve in order (fair)"));
        }
        let (possible, what) = match mode {
            Mode::Exclusive => (can.several || resources.len() == 1, "take several resources at once"),
            Mode::Shared => (can.shared, "share a resource"),
            Mode::Permit { .. } => (can.semaphore, "do semaphores"),
        };
        if possible { Ok(()) } else { Err(Error::new(ErrorKind::Unsupported, format!("this backend cannot {what}"))) }
    }

    /// The future's output, or `Closed` as soon as the manager is closed.
    async fn unless_closed<F: Future>(&self, future: F) -> Result<F::Output> {
        let closing = pin!(self.closing());
        // Looks at `closing` first: the leases that closing releases must not go to the manager's own waiters.
        match futures_util::future::select(closing, pin!(future)).await {
            futures_util::future::Either::Left(_) => Err(Error::closed()),
            // Closed between the two looks, maybe after its leases were released: dropping this one gives it back.
            futures_util::future::Either::Right(_) if self.is_closed() => Err(Error::closed()),
            futures_util::future::Either::Right((output, _)) => Ok(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host's event loop allocates one for each call.
    #[test]
    fn its_future_is_small() {
        let locks = crate::connect("memory:").lazy().unwrap();
        let driver = Driver::engine();
        let size = size_of_val(&locks.acquire_by("r", Acquire::default(), &driver));
        assert!(size < 1100, "{size} bytes");
    }

    /// Else each of many waiters would begin to wait for the backend when the one before it has given up.
    #[test]
    fn all_in_line_give_up_together() {
        let locks = crate::connect("redis://127.0.0.1:1").patience(5, 5, Duration::ZERO).lazy().unwrap();
        let driver = Driver::engine();
        let all = (0..20).map(|_| locks.acquire_by("r", Acquire::default(), &driver));
        for acquired in crate::blocking::wait(|_| futures_util::future::join_all(all)) {
            let error = acquired.unwrap_err();
            assert_eq!((error.kind(), error.causes().len()), (ErrorKind::Unavailable, 1), "{error}");
        }
        assert_eq!(crate::waiters::tests::attempts(&locks), 6.0);
    }

    /// Whoever tries again by himself wants to know of each failure.
    #[test]
    fn an_outage_ends_the_wait_of_who_tries_again() {
        let locks = crate::connect("redis://127.0.0.1:1").lazy().unwrap();
        let driver = Driver::engine();
        let options = Acquire::default().retried(Duration::from_secs(3600));
        let error = crate::blocking::wait(|_| locks.acquire_by("r", options, &driver)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(crate::waiters::tests::attempts(&locks), 1.0);
    }

    /// Holders of other libraries wake nobody.
    #[test]
    fn who_tries_again_looks_as_often_and_no_more_seldom_than_others() {
        for (every, least, most) in [(20, 500, 630), (3_600_000, 40, 52)] {
            crate::simulation::in_a_world(1, || {
                let locks = crate::connect(format!("memory:retried-{every}")).lazy().unwrap();
                let holder = locks.acquire_by("r", Acquire::default(), &Driver::engine()).now_or_never().unwrap();
                let waiter = locks.clone();
                crate::simulation::spawn_in(1, async move {
                    let options = Acquire::default().wait(Duration::from_secs(10));
                    let options = options.retried(Duration::from_millis(every));
                    let error = waiter.acquire_by("r", options, &Driver::engine()).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
                });
                crate::simulation::run(Duration::from_secs(11), || ());
                let asked = crate::waiters::tests::attempts(&locks);
                assert!((f64::from(least)..f64::from(most)).contains(&asked), "{asked} attempts in 10 s");
                drop(holder);
            });
        }
    }

    /// Two that clash must not come back together, again and again.
    #[test]
    fn pauses_after_clashes_are_spread() {
        for clashes in 1..=MOST_CLASHES {
            let mut pauses: Vec<Duration> = (0..100).map(|_| aside(clashes)).collect();
            pauses.sort();
            let (least, most) = (Duration::from_millis(2), Duration::from_millis(2 + (4 << clashes)));
            assert!(pauses[0] >= least && pauses[99] <= most, "{pauses:?}");
            // A half of the range without any of a hundred has a chance of 2^-100.
            let middle = least + (most - least) / 2;
            assert!(pauses[0] < middle && pauses[99] > middle, "{pauses:?}");
        }
    }
}
