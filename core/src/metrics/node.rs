//! What is known of one server.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{
    count,
    histogram::{Counts, Histogram},
    read,
};
use crate::clock::Instant;

/// One in so many requests is timed: two looks at the clock for each would be felt.
const TIMED: u64 = 16;

/// The counters of one server.
#[derive(Debug, Default)]
pub(crate) struct NodeStats {
    asked: AtomicU64,
    unanswered: AtomicU64,
    round_trip: Histogram,
    state: AtomicU8,
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// A request that is timed, or not.
#[derive(Debug, Default)]
pub(crate) struct Sample(Option<Instant>);

impl NodeStats {
    /// A request is about to be sent.
    pub(crate) fn ask(&self) -> Sample {
        let timed = self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIMED);
        Sample(timed.then(Instant::now))
    }

    /// It was answered, whatever the answer was.
    pub(crate) fn answered(&self, sample: Sample) {
        if let Sample(Some(sent)) = sample {
            self.round_trip.record(Instant::now().since(sent));
        }
        self.set(UP);
    }

    /// There was no answer, or it could not be sent.
    pub(crate) fn unanswered(&self) {
        count(&self.unanswered);
        self.set(DOWN);
    }

    fn set(&self, state: u8) {
        // Looked at first: it hardly ever changes, and writing would take the line from the other processors.
        if self.state.load(Ordering::Relaxed) != state {
            self.state.store(state, Ordering::Relaxed);
        }
    }

    /// Whether the last request was answered; `None` before the first.
    pub(super) fn up(&self) -> Option<bool> {
        match self.state.load(Ordering::Relaxed) {
            UNKNOWN => None,
            state => Some(state == UP),
        }
    }

    pub(super) fn asked(&self) -> u64 {
        read(&self.asked)
    }

    pub(super) fn not_answered(&self) -> u64 {
        read(&self.unanswered)
    }

    pub(super) fn round_trip(&self) -> Counts {
        self.round_trip.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_whether_it_answers() {
        let stats = NodeStats::default();
        assert_eq!(stats.up(), None);
        for _ in 0..TIMED + 1 {
            let sample = stats.ask();
            stats.answered(sample);
        }
        assert_eq!((stats.up(), stats.asked(), stats.round_trip().count), (Some(true), TIMED + 1, 2));
        stats.unanswered();
        assert_eq!((stats.up(), stats.not_answered()), (Some(false), 1));
    }
}
