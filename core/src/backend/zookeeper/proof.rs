//! Until when the ensemble certainly keeps a session, as far as its answers prove that. No I/O, no clock.
//!
//! The leader ends a session that it has not heard of for the session's timeout. What counts is therefore when the *leader* heard
//! of it, and that it still led. An answer of the server that we are connected to proves neither: cut off from the
//! leader, it goes on to answer reads and pings until it notices, which may take longer than the session lives.
//!
//! * *It still led*: an answered write was agreed on by a majority. A leader that comes later gives every session its whole
//!   timeout, counted from later than the sending of that write.
//! * *It has heard of us*: opening the session and going on with it over a new connection are asked of the leader itself. Afterwards
//!   our server reports to it, every half tick, from whom it had requests. Reports and writes go to the leader in one
//!   order. So an answered write proves the report of every request that was sent half a tick or more before it.
//!
//! A client knows no tick. It is half of the shortest session timeout or less (a server's `minSessionTimeout` can be set lower, but
//! should not), so that a quarter of our timeout is half a tick or more.

use std::{collections::VecDeque, time::Duration};

use crate::clock::Instant;

/// How far apart the requests are kept, in parts of the delay of the reports: others are forgotten.
const RESOLUTION: u32 = 8;

/// How long they are kept, in such delays: the connection counts as cut before an answer takes that long.
const KEPT: u32 = 4;

/// What was sent over one connection.
#[derive(Debug)]
pub(super) struct Proof {
    /// When the session was opened, or taken up, over this connection.
    greeted: Instant,
    /// When requests were sent, oldest first.
    sent: VecDeque<Instant>,
    /// After this the leader has the report of a request, if it answers at all.
    delay: Duration,
}

/// How long after a request it is proven by a write, in a session with this timeout.
pub(super) fn delay(timeout: Duration) -> Duration {
    timeout / 4
}

impl Proof {
    pub(super) fn new(greeted: Instant, timeout: Duration) -> Self {
        Self { greeted, sent: VecDeque::new(), delay: delay(timeout) }
    }

    /// Any request is sent, a ping too.
    pub(super) fn sent(&mut self, now: Instant) {
        if self.sent.back().is_none_or(|last| last.after(self.delay / RESOLUTION) <= now) {
            self.sent.push_back(now);
            self.forget_before(now, self.delay * KEPT);
        }
    }

    /// Forgets what is older than `age`, but for the last of it.
    fn forget_before(&mut self, now: Instant, age: Duration) {
        while self.sent.get(1).is_some_and(|next| next.after(age) <= now) {
            self.sent.pop_front();
        }
    }

    /// A write that was sent at `sent` was carried out. Answers when the leader has heard of the session at the earliest.
    pub(super) fn written(&mut self, sent: Instant) -> Instant {
        self.forget_before(sent, self.delay);
        match self.sent.front() {
            Some(first) if first.after(self.delay) <= sent => self.greeted.max(*first),
            _ => self.greeted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(4000);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_write_proves_what_was_sent_before_it_by_the_delay_of_the_reports() {
        let t = Instant::now();
        let mut proof = Proof::new(t, TIMEOUT);
        assert_eq!(proof.written(t.after(ms(10))), t);
        proof.sent(t.after(ms(500)));
        proof.sent(t.after(ms(1400)));
        assert_eq!(proof.written(t.after(ms(1400))), t);
        proof.sent(t.after(ms(1600)));
        assert_eq!(proof.written(t.after(ms(1600))), t.after(ms(500)));
        proof.sent(t.after(ms(5000)));
        assert_eq!(proof.written(t.after(ms(5000))), t.after(ms(1600)));
    }

    #[test]
    fn it_keeps_up_and_does_not_grow() {
        let t = Instant::now();
        let mut proof = Proof::new(t, TIMEOUT);
        for step in 1..100_000 {
            let now = t.after(Duration::from_micros(500) * step);
            proof.sent(now);
            let proven = proof.written(now);
            assert!(proven <= now && (step < 3000 || now.since(proven) <= ms(1000 + 126)), "{step}");
            assert!(proof.sent.len() <= 10);
        }
        let mut idle = Proof::new(t, TIMEOUT);
        for step in 1..1000 {
            idle.sent(t.after(ms(1000) * step));
            assert!(idle.sent.len() <= 6);
        }
        // A write whose answer took a while, and others behind it.
        let sent = t.after(ms(1_000_000));
        idle.sent(sent);
        (1..20).for_each(|later| idle.sent(sent.after(ms(100) * later)));
        assert_eq!(idle.written(sent), t.after(ms(999_000)));
    }
}
