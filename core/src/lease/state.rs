//! The life of one lease as a state machine: it is told the time and what happened, and says what to do.
//!
//! It knows no clock, no socket and no thread, so tests drive it through any order of events.
//!
//! ```text
//!            extended (before the deadline)
//!              ┌────┐
//!              ▼    │
//!   granted ─► Held ┴─► Releasing ─► Released
//!                │          (renewal stops, nothing is lost any more)
//!                └─► Lost   (the deadline passed, or the backend said that it is not ours)
//! ```
//!
//! What can happen between two steps: a renewal that hangs does not keep the deadline from passing; a renewal
//! whose answer comes after the deadline changes nothing (a late first grant of our own might have answered
//! it); a renewal whose answer comes during the release changes nothing either; the process may be paused
//! anywhere, so that every question about being held is answered from the clock and never from a flag alone.

use std::{sync::Arc, time::Duration};

use crate::{backend::SessionEnd, clock::Instant, mutant::mutant};

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The deadline passed before it could be extended, or it was not to be extended; or the session that held it, where one does,
    /// did not answer in time.
    Expired,
    /// The backend said that it is not ours any more: deleted, evicted, or taken after a failure.
    Taken,
    /// It was held for as long as `max_hold` allowed.
    MaxHold,
}

impl LossReason {
    /// The stable name: `expired`, `taken` or `max_hold`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Taken => "taken",
            Self::MaxHold => "max_hold",
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct LeaseState {
    phase: Phase,
    ttl: Duration,
    deadline: Instant,
    drift: Drift,
    renewal: Option<Renewal>,
    /// An extension is on its way.
    extending: bool,
    /// When the session that holds it ends, if one does.
    session: Option<Arc<SessionEnd>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Held,
    Releasing,
    Released,
    Lost(LossReason),
}

#[derive(Debug)]
struct Renewal {
    next: Instant,
    /// No renewal is begun at or after this.
    hold_until: Option<Instant>,
}

/// What the clocks of holder and server may differ by within one ttl.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Drift {
    pub(crate) factor: f64,
}

impl Drift {
    /// The part of Redis' 1 ms resolution and of the smallest clock difference.
    const FLOOR: Duration = Duration::from_millis(2);

    pub(crate) fn of(self, ttl: Duration) -> Duration {
        if mutant!("D6") {
            return Duration::ZERO;
        }
        ttl.mul_f64(self.factor).saturating_add(Self::FLOOR)
    }

    /// Until when the holder may act on a request sent at `since`.
    pub(crate) fn deadline(self, since: Instant, ttl: Duration) -> Instant {
        since.after(ttl.saturating_sub(self.of(ttl)))
    }
}

/// What the engine has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look again at this time.
    WaitUntil(Instant),
    /// Begin a renewal; look again when it is over, and at the deadline in any case.
    Renew,
    /// Tell the holder.
    Lose(LossReason),
    /// Nothing, ever again.
    Rest,
}

impl LeaseState {
    /// A lease granted to a request sent at `since`. `hold_until` bounds its renewals, if it is renewed.
    pub(crate) fn granted(
        since: Instant,
        ttl: Duration,
        drift: Drift,
        auto_extend: bool,
        hold_until: Option<Instant>,
    ) -> Self {
        let renewal = auto_extend.then(|| Renewal { next: since.after(ttl / 3), hold_until });
        let deadline = drift.deadline(since, ttl);
        Self { phase: Phase::Held, ttl, deadline, drift, renewal, extending: false, session: None }
    }

    /// It also ends with the session that holds it, however long its ttl is.
    pub(crate) fn within(self, session: Option<Arc<SessionEnd>>) -> Self {
        Self { session, ..self }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The deadline, or the end of the session if that comes first. The latter moves on by itself, until it does not.
    pub(crate) fn end(&self) -> Instant {
        self.session.as_ref().map_or(self.deadline, |session| session.at().min(self.deadline))
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether the holder may act at `now`.
    pub(crate) fn is_held(&self, now: Instant) -> bool {
        self.phase == Phase::Held && now < self.end()
    }

    /// Why it was lost, if it was; the clock may know before anyone was told.
    pub(crate) fn lost(&self, now: Instant) -> Option<LossReason> {
        match self.phase {
            Phase::Lost(reason) => Some(reason),
            Phase::Held if now >= self.end() => Some(self.why_expired()),
            _ => None,
        }
    }

    /// Why it was lost, if the engine has noticed.
    pub(crate) fn told(&self) -> Option<LossReason> {
        match self.phase {
            Phase::Lost(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether the holder gave it up.
    pub(crate) fn is_given_up(&self) -> bool {
        matches!(self.phase, Phase::Releasing | Phase::Released)
    }

    pub(crate) fn is_extending(&self) -> bool {
        self.extending
    }

    fn why_expired(&self) -> LossReason {
        let bounded = self.renewal.as_ref().and_then(|renewal| renewal.hold_until);
        if bounded.is_some_and(|until| self.deadline >= until) { LossReason::MaxHold } else { LossReason::Expired }
    }

    /// Time has passed.
    pub(crate) fn at(&mut self, now: Instant) -> Step {
        if self.phase != Phase::Held {
            return Step::Rest;
        }
        if now >= self.end() && mutant!("D27") {
            return Step::Rest;
        }
        if now >= self.end() {
            return self.lose(self.why_expired());
        }
        let end = self.end();
        let Some(renewal) = &mut self.renewal else { return Step::WaitUntil(end) };
        if renewal.hold_until.is_some_and(|until| now >= until) && !mutant!("D10") {
            return Step::WaitUntil(end);
        }
        if self.extending {
            return Step::WaitUntil(end);
        }
        if now < renewal.next {
            return Step::WaitUntil(renewal.next.min(end));
        }
        self.extending = true;
        // Should its answer be "unknown", the next try comes soon, yet leaves time for a last one.
        let pause = (self.ttl / 10).min(end.since(now) / 3).max(Duration::from_millis(1));
        renewal.next = now.after(pause);
        Step::Renew
    }

    /// Notes that its time is over, if it is and nobody has noticed.
    pub(crate) fn lapse(&mut self, now: Instant) -> Option<LossReason> {
        let reason = self.lost(now).filter(|_| self.phase == Phase::Held)?;
        self.phase = Phase::Lost(reason);
        Some(reason)
    }

    /// The holder asks for an extension itself.
    pub(crate) fn begin_extension(&mut self, now: Instant) -> bool {
        let may = self.is_held(now) && !self.extending;
        self.extending |= may;
        may
    }

    /// An extension that was begun is over, without having come to anything certain.
    pub(crate) fn extension_unknown(&mut self) {
        self.extending = false;
    }

    /// The backend extended to `ttl` from `since`. Says whether that counts.
    pub(crate) fn extended(&mut self, now: Instant, since: Instant, ttl: Duration) -> bool {
        self.extending = false;
        if !self.is_held(now) && !mutant!("D8") {
            return false;
        }
        let since = if mutant!("D9") { now } else { since };
        self.ttl = ttl;
        // Shorter than before if that was asked for: the backend's clock runs to the new end.
        self.deadline = self.drift.deadline(since, ttl);
        if let Some(renewal) = &mut self.renewal {
            renewal.next = since.after(ttl / 3);
        }
        true
    }

    /// The backend said that the lease is not ours: because its time was over, if it was.
    pub(crate) fn taken(&mut self, now: Instant) -> Step {
        self.gone(if now < self.deadline { LossReason::Taken } else { self.why_expired() })
    }

    /// It is not ours any more, for this reason.
    pub(crate) fn gone(&mut self, reason: LossReason) -> Step {
        self.extending = false;
        if self.phase == Phase::Held { self.lose(reason) } else { Step::Rest }
    }

    /// The holder gives it up: from now on it is neither held nor lost.
    pub(crate) fn begin_release(&mut self) {
        if self.phase == Phase::Held {
            self.phase = Phase::Releasing;
        }
    }

    /// The release is over.
    pub(crate) fn released(&mut self) {
        if self.phase == Phase::Releasing {
            self.phase = Phase::Released;
        }
    }

    fn lose(&mut self, reason: LossReason) -> Step {
        self.phase = Phase::Lost(reason);
        Step::Lose(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_millis(900);
    const DRIFT: Drift = Drift { factor: 0.01 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_deadline_counts_from_the_sending_and_leaves_room_for_drift() {
        let t = start();
        let lease = LeaseState::granted(t, TTL, DRIFT, false, None);
        assert_eq!(lease.deadline(), t.after(ms(900 - 9 - 2)));
        assert!(lease.is_held(t.after(ms(888))));
        assert!(!lease.is_held(t.after(ms(889))));
        assert_eq!(lease.lost(t.after(ms(889))), Some(LossReason::Expired));
    }

    #[test]
    fn renews_after_a_third_and_is_lost_at_the_deadline_though_the_renewal_hangs() {
        let t = start();
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, None);
        assert_eq!(lease.at(t), Step::WaitUntil(t.after(ms(300))));
        assert_eq!(lease.at(t.after(ms(300))), Step::Renew);
        assert_eq!(lease.at(t.after(ms(600))), Step::WaitUntil(lease.deadline()));
        assert_eq!(lease.at(t.after(ms(889))), Step::Lose(LossReason::Expired));
        assert_eq!(lease.at(t.after(ms(890))), Step::Rest);
    }

    #[test]
    fn an_unknown_renewal_is_tried_again_until_the_deadline() {
        let t = start();
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, None);
        let (mut now, mut renewals) = (t, 0);
        loop {
            match lease.at(now) {
                Step::WaitUntil(next) => now = next,
                Step::Renew => {
                    renewals += 1;
                    lease.extension_unknown();
                }
                Step::Lose(reason) => break assert_eq!(reason, LossReason::Expired),
                Step::Rest => panic!("forgot to lose it"),
            }
        }
        assert!(renewals > 5, "{renewals}");
        assert_eq!(now, t.after(ms(889)));
    }

    #[test]
    fn an_extension_that_comes_late_does_not_count() {
        let t = start();
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, None);
        assert_eq!(lease.at(t.after(ms(800))), Step::Renew);
        assert!(!lease.extended(t.after(ms(889)), t.after(ms(800)), TTL));
        assert_eq!(lease.lost(t.after(ms(889))), Some(LossReason::Expired));
    }

    #[test]
    fn an_extension_moves_the_deadline_from_its_own_sending() {
        let t = start();
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, None);
        assert_eq!(lease.at(t.after(ms(300))), Step::Renew);
        assert!(lease.extended(t.after(ms(350)), t.after(ms(300)), TTL));
        assert_eq!(lease.deadline(), t.after(ms(300 + 889)));
        assert_eq!(lease.at(t.after(ms(351))), Step::WaitUntil(t.after(ms(600))));
    }

    #[test]
    fn max_hold_ends_the_renewals() {
        let t = start();
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, Some(t.after(ms(400))));
        assert_eq!(lease.at(t.after(ms(300))), Step::Renew);
        assert!(lease.extended(t.after(ms(301)), t.after(ms(300)), TTL));
        assert_eq!(lease.at(t.after(ms(600))), Step::WaitUntil(t.after(ms(1189))));
        assert_eq!(lease.at(t.after(ms(1189))), Step::Lose(LossReason::MaxHold));
    }

    #[test]
    fn nothing_is_lost_once_it_is_being_released() {
        let t = start();
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, None);
        lease.begin_release();
        assert_eq!(lease.at(t.after(ms(2000))), Step::Rest);
        assert_eq!(lease.taken(t), Step::Rest);
        assert_eq!(lease.lost(t.after(ms(2000))), None);
        assert!(!lease.extended(t, t, TTL));
        lease.released();
        assert!(lease.is_given_up());
    }

    #[test]
    fn it_ends_with_its_session() {
        let t = start();
        let session = SessionEnd::until(t.after(ms(100)));
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, None).within(Some(Arc::clone(&session)));
        assert_eq!(lease.at(t), Step::WaitUntil(t.after(ms(100))));
        assert!(session.move_on(t.after(ms(50)), t.after(ms(150))));
        assert_eq!(lease.at(t.after(ms(100))), Step::WaitUntil(t.after(ms(150))));
        assert!(!lease.is_held(t.after(ms(150))));
        // Once it was over, nothing brings it back.
        assert!(!session.move_on(t.after(ms(151)), t.after(ms(500))));
        assert_eq!(lease.lost(t.after(ms(151))), Some(LossReason::Expired));
        assert_eq!(lease.at(t.after(ms(151))), Step::Lose(LossReason::Expired));
    }

    #[test]
    fn a_lease_that_was_taken_is_lost_at_once() {
        let t = start();
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, None);
        assert_eq!(lease.taken(t), Step::Lose(LossReason::Taken));
        assert_eq!(lease.lost(t), Some(LossReason::Taken));
        assert!(!lease.begin_extension(t));
    }

    #[test]
    fn what_the_backend_does_not_have_after_the_deadline_has_expired() {
        let t = start();
        let mut lease = LeaseState::granted(t, TTL, DRIFT, true, None);
        assert_eq!(lease.taken(t.after(TTL)), Step::Lose(LossReason::Expired));
    }
}
