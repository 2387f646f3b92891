//! What happened to one resource, and whether it may have.

use std::sync::{Mutex, PoisonError};

use polylock::{Instant, Lease};

/// One holder's time: from when it knew that it had the lock until it gave it up or had to.
#[derive(Clone, Copy, Debug)]
struct Held {
    from: Instant,
    until: Instant,
    token: u64,
}

#[derive(Default)]
pub struct History(Mutex<Vec<Held>>);

impl History {
    /// To be called before `lease`, acquired at `from`, is released.
    pub fn ends(&self, lease: &Lease, from: Instant) {
        // Whoever was lost had to stop at its deadline.
        let until = Instant::now().min(lease.deadline());
        let held = Held { from, until, token: lease.fencing_token() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(held);
    }

    /// Nobody held while another did, and each token is greater than those before. How many held.
    pub fn check(&self) -> usize {
        let mut history = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        history.sort_by_key(|held| held.from);
        for pair in history.windows(2) {
            assert!(pair[0].until <= pair[1].from, "two at a time: {pair:?}");
            assert!(pair[0].token < pair[1].token, "tokens must grow: {pair:?}");
        }
        history.len()
    }
}
