//! Giving back in the background what may have been granted.
//!
//! An attempt whose caller went away, whose answer was lost or came too late may hold the lock on the backend,
//! or get it yet: the request may still be on its way. So one release is not enough: "not held" is final
//! only after the last moment at which the request could take effect, or when the backend knows what became of all that
//! it sent. Until then, and while the backend does not answer, the release is sent again, up to the time at which the
//! lease must have expired; where none does by itself, until it is certain, or the manager is closed and the session ends with it.
//! Where the backend knows that it had sent nothing, there is nothing to release.
//! The owner token is of this attempt alone, so that a late release cannot free anybody else.
//!
//! Nor need its caller go away: who is not polled any more (its event loop stands still) does not learn of a grant, and there is
//! no lease yet that would end. Most backends end it with its ttl; for those that do not, it is undone then. Should its caller
//! be polled at that very moment, one of the two has the claim: what is undone comes to no lease.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use rustc_hash::FxHashMap;

use crate::{
    Error, OwnerToken, Release, Result,
    backend::Claim,
    clock::Instant,
    engine::{
        driver::Driver,
        runtime,
        timer::{self, Alarm, AlarmKey},
    },
    manager::Manager,
    mutant::mutant,
};

/// A claim on its way: undone when dropped, unless it was [`settled`](Self::settled).
pub(crate) struct Pending {
    manager: Arc<Manager>,
    claim: Option<Claim>,
    /// Rings when its ttl is over, where that matters.
    overdue: Option<AlarmKey>,
}

/// A claim whose ttl is over.
struct Overdue {
    manager: Weak<Manager>,
    owner: OwnerToken,
}

impl Alarm for Overdue {
    fn ring(self: Arc<Self>) {
        let Some(manager) = self.manager.upgrade() else { return };
        let unsent = {
            let claims = manager.attempts.claims();
            claims.get(&self.owner).filter(|claim| claim.progress.is_unsent()).map(|claim| claim.ttl)
        };
        if let Some(ttl) = unsent {
            // Its server is being connected to yet.
            timer::set(Instant::now().after(ttl), self);
            return;
        }
        let claim = manager.attempts.claims().remove(&self.owner);
        if let Some(claim) = claim {
            // What it is told, should it be polled yet, comes too late.
            let settles = Instant::now().after(manager.backend.settles_within(claim.ttl));
            in_background(&manager, claim, settles);
        }
    }
}

/// The claims of a manager that are on their way: closing it undoes them, because whoever waits for them may be
/// on a thread that does not run again before the process ends.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<FxHashMap<OwnerToken, Claim>>);

impl Attempts {
    fn claims(&self) -> MutexGuard<'_, FxHashMap<OwnerToken, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Undoes them all in the background.
    pub(crate) fn undo_all(&self, manager: &Arc<Manager>) {
        for claim in std::mem::take(&mut *self.claims()).into_values() {
            let settles = Instant::now().after(manager.backend.settles_within(claim.ttl));
            in_background(manager, claim, settles);
        }
    }
}

impl Pending {
    /// To be made before the claim is sent.
    ///
    /// # Errors
    /// `Closed`: then nothing may be sent.
    pub(crate) fn new(manager: &Arc<Manager>, claim: Claim) -> Result<Self> {
        manager.attempts.claims().insert(claim.owner, claim.clone());
        let overdue = manager.backend.outlasts_ttl().then(|| {
            let overdue = Overdue { manager: Arc::downgrade(manager), owner: claim.owner };
            timer::set(Instant::now().after(claim.ttl), Arc::new(overdue))
        });
        let pending = Self { manager: Arc::clone(manager), claim: Some(claim), overdue: overdue.flatten() };
        // Asked after it was entered: closing either finds it there, or is seen here.
        if manager.is_closed() {
            pending.settled();
            return Err(Error::closed());
        }
        Ok(pending)
    }

    pub(crate) fn claim(&self) -> &Claim {
        match &self.claim {
            Some(claim) => claim,
            None => unreachable!("taken out by settled and drop alone"),
        }
    }

    /// The outcome is certain, and the caller has it. Says no if it is being undone: its ttl was over, or its manager was closed.
    pub(crate) fn settled(mut self) -> bool {
        self.in_time();
        self.claim.take().is_some_and(|claim| self.manager.attempts.claims().remove(&claim.owner).is_some())
    }
}

impl Pending {
    /// Somebody else holds it: what was granted all the same, a part of it, is undone without waking anybody. (It would
    /// be the caller itself, to get and give back the same part again and again.)
    pub(crate) fn refused(mut self) {
        self.undo(false);
    }

    fn in_time(&mut self) {
        if let Some(alarm) = self.overdue.take() {
            timer::cancel(alarm);
        }
    }

    fn undo(&mut self, wakes: bool) {
        self.in_time();
        if let Some(claim) = self.claim.take() {
            self.manager.attempts.claims().remove(&claim.owner);
            let settles = Instant::now().after(self.manager.backend.settles_within(claim.ttl));
            spawn(&self.manager, claim, settles, wakes);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if mutant!("D14") {
            return;
        }
        self.undo(true);
    }
}

/// Releases `claim` again and again until that is certain. Nothing can be granted to it after `settles`.
pub(crate) fn in_background(manager: &Arc<Manager>, claim: Claim, settles: Instant) {
    spawn(manager, claim, settles, true);
}

fn spawn(manager: &Arc<Manager>, claim: Claim, settles: Instant, wakes: bool) {
    if manager.check_process().is_err() || manager.is_over() {
        return;
    }
    // From now on nothing of it is sent that could be granted, whether its caller goes on or not.
    claim.progress.give_up();
    let task = undo(Arc::clone(manager), claim, settles, wakes);
    runtime::spawn(manager.undoing.track_future(task));
}

async fn undo(manager: Arc<Manager>, claim: Claim, settles: Instant, wakes: bool) {
    const FIRST_PAUSE: Duration = Duration::from_millis(10);
    const LONGEST_PAUSE: Duration = Duration::from_secs(1);
    let expired = settles.max(Instant::now()).after(claim.ttl).after(manager.drift.of(claim.ttl));
    let mut pause = FIRST_PAUSE;
    while !claim.progress.is_unsent() && !manager.is_over() {
        let asked = Instant::now();
        if manager.is_closed() {
            // Closing waits for this: what has been answered already spares the wait until nothing can be granted.
            manager.backend.look();
        }
        match manager.backend.release(&claim, &Driver::engine()).await {
            // A part of it may be on its way yet, to one of several servers.
            Release::Released if !claim.progress.has_doubts() || asked >= settles => break,
            Release::NotHeld if claim.progress.is_certain() || asked >= settles => break,
            _ if asked >= expired && (manager.is_closed() || !manager.backend.outlasts_ttl()) => break,
            // No need to look twice before it is settled, once the pauses reach that far.
            _ => timer::sleep_until(asked.after(pause)).await,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    if wakes {
        for resource in claim.resources.iter() {
            manager.waiters.nudge(resource);
        }
    }
}
