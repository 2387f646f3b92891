//! Who waits for one resource to be served in order. A waiter that does not ask for [`Turn::STAYS`] is forgotten, and gets
//! its place back if it asks again; so nobody has to be relied on to leave.

use crate::{OwnerToken, backend::Turn, clock::Instant};

/// In the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Queue(Vec<Waiter>);

#[derive(Debug)]
struct Waiter {
    number: OwnerToken,
    came: Instant,
    until: Instant,
}

impl Queue {
    /// When the first is forgotten, if that is somebody else who came before.
    pub(super) fn is_before(&mut self, turn: &Turn, now: Instant) -> Option<Instant> {
        self.0.retain(|waiter| waiter.until > now);
        let came = now.before(turn.waited);
        let first = self.0.first().filter(|first| first.number != turn.number && first.came <= came)?;
        Some(first.until)
    }

    /// It asked and was refused.
    pub(super) fn stay(&mut self, turn: &Turn, now: Instant) {
        let until = now.after(Turn::STAYS);
        match self.0.iter_mut().find(|waiter| waiter.number == turn.number) {
            Some(waiter) => waiter.until = until,
            None => {
                let came = now.before(turn.waited);
                let place = self.0.partition_point(|waiter| waiter.came <= came);
                self.0.insert(place, Waiter { number: turn.number, came, until });
            }
        }
    }

    /// It was served, or waits no longer. Says whether it was there.
    pub(super) fn leave(&mut self, turn: &Turn) -> bool {
        let before = self.0.len();
        self.0.retain(|waiter| waiter.number != turn.number);
        self.0.len() < before
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn waiting(ms: u64) -> Turn {
        Turn { number: OwnerToken::draw().unwrap(), waited: Duration::from_millis(ms), insists: false }
    }

    #[test]
    fn who_came_first_is_first_however_late_it_asks() {
        let now = Instant::from_boot(Duration::from_secs(100));
        let (mut queue, one, two) = (Queue::default(), waiting(50), waiting(20));
        queue.stay(&two, now);
        assert!(queue.is_before(&one, now).is_none());
        queue.stay(&one, now);
        assert!(queue.is_before(&two, now).is_some());
        assert!(queue.is_before(&waiting(0), now).is_some());
        assert!(queue.leave(&one) && !queue.leave(&one));
        assert!(queue.is_before(&two, now).is_none());
    }

    #[test]
    fn the_dead_are_passed_over() {
        let now = Instant::from_boot(Duration::from_secs(100));
        let (mut queue, dead, next) = (Queue::default(), waiting(50), waiting(20));
        queue.stay(&dead, now);
        let until = queue.is_before(&next, now).expect("it is before");
        assert_eq!(until, now.after(Turn::STAYS));
        assert!(queue.is_before(&next, until).is_none());
        assert!(queue.is_empty());
    }
}
