//! Releasing: in one round, and after it until nothing is left on any node.

use std::{sync::Arc, time::Duration};

use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{
    RedisBackend,
    keys::Keys,
    number,
    quorum::majority,
    request::{self, Request, Server},
};
use crate::{
    Release,
    backend::{Backend, Claim, Progress},
    clock::Instant,
    engine::{driver::Driver, runtime, timer},
};

impl RedisBackend {
    pub(super) async fn release_all(&self, claim: &Claim, driver: &Driver) -> Release {
        claim.progress.give_up();
        let expires = Instant::now().after(self.node_timeout(claim.ttl));
        let keys = Keys::of(&self.prefix, &claim.resources);
        let request = Request::release(&keys, claim, expires);
        let pursuit = || {
            Arc::new(Pursuit {
                claim: claim.clone(),
                request: Arc::clone(&request),
                settles_within: self.settles_within(claim.ttl),
                _underway: self.background.token(),
            })
        };
        let nodes = self.nodes.len();
        let (mut released, mut not_held, mut unknown) = (0, 0, 0);
        let mut answered = Vec::new();
        let decide = |index, answer: request::Answer| {
            let freed = Freed::of(&claim.progress, index, answer);
            match freed {
                Freed::Ours => released += 1,
                Freed::NotOurs => not_held += 1,
                Freed::Repeated | Freed::Unanswered => unknown += 1,
            }
            answered.push((index, freed));
            if released >= majority(nodes) {
                Some(Release::Released)
            } else if not_held >= majority(nodes) {
                Some(Release::NotHeld)
            } else {
                None
            }
        };
        let late = |_: &Release| {
            let (pursuit, nodes) = (pursuit(), self.nodes.clone());
            move |index: usize, answer| {
                let freed = Freed::of(&pursuit.claim.progress, index, answer);
                if is_unsettled(&pursuit.claim.progress, index, freed) {
                    pursuit.begin(index, &nodes[index], freed);
                }
            }
        };
        let decided = self.ask(&request, driver, decide, late, self.grace(claim, false)).await;
        let release = decided.unwrap_or(match (unknown, released) {
            (0, 0) => Release::NotHeld,
            (0, _) => Release::Released,
            _ => Release::Unknown,
        });
        // What is unknown as a whole is asked again as a whole.
        if nodes > 1 && release != Release::Unknown {
            for (index, freed) in answered {
                if is_unsettled(&claim.progress, index, freed) {
                    pursuit().begin(index, &self.nodes[index], freed);
                }
            }
        }
        release
    }

    /// Waits for the nodes that are being asked in the background; see [`Backend::drain`].
    pub(super) async fn drain_background(&self) {
        const FIRST_PAUSE: Duration = Duration::from_millis(1);
        const LONGEST_PAUSE: Duration = Duration::from_millis(50);
        let until = Instant::now().after(self.node_timeout(Duration::MAX));
        self.background.close();
        let mut pause = FIRST_PAUSE;
        while !self.background.is_empty() && Instant::now() < until {
            self.look();
            timer::until(Some(Instant::now().after(pause).min(until)), self.background.wait()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// What a node answered to a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freed {
    Ours,
    NotOurs,
    /// Not ours now, but the same request was sent before: that one may have freed it.
    Repeated,
    Unanswered,
}

impl Freed {
    fn of(progress: &Progress, index: usize, answer: request::Answer) -> Self {
        let freed = match answer.map(|answered| (number(&answered.value), answered.repeated)) {
            Ok((Some(1), _)) => {
                // The attempt was carried out before this, then.
                progress.resolve(index);
                Self::Ours
            }
            Ok((Some(_), true)) => Self::Repeated,
            Ok((Some(_), false)) => Self::NotOurs,
            // It need not say so.
            Ok((None, _)) | Err(_) if progress.is_clear(index) => Self::NotOurs,
            Ok((None, _)) | Err(_) => Self::Unanswered,
        };
        if freed != Self::Ours {
            progress.miss(index);
        }
        freed
    }
}

/// Whether something may be left on a node that answered so.
fn is_unsettled(progress: &Progress, index: usize, freed: Freed) -> bool {
    progress.is_in_doubt(index) || (freed == Freed::Unanswered && progress.holds(index))
}

/// Sees to it that nothing is left on single nodes of what a majority has freed.
struct Pursuit {
    claim: Claim,
    request: Arc<Request>,
    settles_within: Duration,
    /// As long as this is there, closing waits.
    _underway: TaskTrackerToken,
}

impl Pursuit {
    /// Asks the node to release until it has, in the background, unless somebody does so already.
    fn begin(self: &Arc<Self>, index: usize, node: &Arc<dyn Server>, mut freed: Freed) {
        const FIRST_PAUSE: Duration = Duration::from_millis(10);
        const LONGEST_PAUSE: Duration = Duration::from_secs(1);
        if !self.claim.progress.pursue(index) {
            return;
        }
        let (pursuit, node) = (Arc::clone(self), Arc::clone(node));
        runtime::spawn(async move {
            let claim = &pursuit.claim;
            let settles = Instant::now().after(pursuit.settles_within);
            let expired = settles.after(claim.ttl.mul_f64(1.1)).after(LONGEST_PAUSE);
            let mut pause = FIRST_PAUSE;
            loop {
                timer::sleep_until(Instant::now().after(pause)).await;
                let asked = Instant::now();
                // The answer to the attempt may have come meanwhile.
                if node.is_closed() || asked >= expired || !is_unsettled(&claim.progress, index, freed) {
                    return;
                }
                let request = pursuit.request.until(asked.after(pursuit.settles_within));
                let answer = Arc::clone(&node).run(request.to(index), Driver::engine()).await;
                freed = Freed::of(&claim.progress, index, answer);
                if freed != Freed::Unanswered && asked >= settles {
                    return;
                }
                pause = (pause * 3).min(LONGEST_PAUSE);
            }
        });
    }
}

/// A claim that was given up or released, of which a grant came only then: the release may have been there before it. Or one
/// that goes on without what a node granted.
pub(super) struct Overtaken {
    pub(super) claim: Claim,
    pub(super) prefix: String,
    /// How long a node has to answer.
    pub(super) within: Duration,
    /// Closing waits for what is here.
    pub(super) background: TaskTracker,
}

impl Overtaken {
    /// Releases it on that node at once, in the background. Whoever undoes the claim looks again as well, but
    /// only after a pause.
    pub(super) fn give_back(&self, index: usize, node: &Arc<dyn Server>) {
        let (request, progress) = (self.request(), Arc::clone(&self.claim.progress));
        let node = Arc::clone(node);
        runtime::spawn(self.background.track_future(async move {
            Freed::of(&progress, index, node.run(request.to(index), Driver::engine()).await);
        }));
    }

    /// The same where nobody looks again, as the claim goes on without that node: again and again until it is not there.
    pub(super) fn give_back_for_certain(&self, index: usize, node: &Arc<dyn Server>) {
        self.claim.progress.doubt(index);
        self.give_back(index, node);
        let pursuit = Pursuit {
            claim: self.claim.clone(),
            request: self.request(),
            settles_within: self.within,
            _underway: self.background.token(),
        };
        Arc::new(pursuit).begin(index, node, Freed::NotOurs);
    }

    fn request(&self) -> Arc<Request> {
        let keys = Keys::of(&self.prefix, &self.claim.resources);
        Request::release(&keys, &self.claim, Instant::now().after(self.within))
    }
}
