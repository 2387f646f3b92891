//! Making a lease last longer: what counts, and putting a lock back on a node that lost it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    RedisBackend,
    keys::Keys,
    number, out_of_reach,
    quorum::{Verdict, majority, verdict},
    request::{self, Request, Server},
    restart,
};
use crate::{
    Error, Mode, Resource, Result,
    backend::{Claim, Extension},
    clock::Instant,
    engine::{driver::Driver, runtime},
    mutant::mutant,
};

impl RedisBackend {
    pub(super) async fn extend_all(&self, claim: &Claim, ttl: Duration, driver: &Driver) -> Extension {
        let since = Instant::now();
        let expires = since.after(self.node_timeout(ttl));
        let keys = Keys::of(&self.prefix, &claim.resources);
        let request = Request::extend(&keys, claim, ttl, expires);
        let (nodes, sits_out) = (self.nodes.len(), self.sits_out(ttl));
        let (mut yes, mut no, mut lost, mut errors) = (0, 0, 0, Vec::new());
        let mut missing = Vec::new();
        let decide = |index, answer: request::Answer| {
            match answer.as_ref().map(|answered| number(&answered.value)) {
                Ok(Some(1)) if claim.progress.holds(index) => yes += 1,
                Ok(Some(0)) if mutant!("D24") => yes += 1,
                Ok(Some(-1)) if mutant!("D7") => {
                    missing.push(index);
                    yes += 1;
                }
                Ok(Some(1)) => {
                    // Ours all along, but its grant was never heard of: it counts from the next round on.
                    if restart::votes(&self.nodes, index, sits_out, Instant::now()) {
                        claim.progress.add_holder(index);
                    }
                    no += 1;
                }
                Ok(Some(gone)) => {
                    if gone == -1 {
                        missing.push(index);
                    }
                    no += 1;
                    lost += 1;
                }
                Ok(None) | Err(_) => no += 1,
            }
            if let Err(error) = answer {
                errors.push(error.into_error());
            }
            match verdict(nodes, yes, no) {
                Verdict::Open => None,
                decided => Some(decided),
            }
        };
        let token = claim.progress.fencing_token.load(Ordering::Relaxed);
        let repairs = move |claim: &Claim, prefix: &str| {
            Request::repair(&Keys::of(prefix, &claim.resources), claim, token, ttl, expires)
        };
        let late = |verdict: &Verdict| {
            let won = *verdict == Verdict::Won;
            let (claim, prefix, nodes) = (claim.clone(), self.prefix.clone(), self.nodes.clone());
            move |index: usize, answer: request::Answer| match answer.map(|answered| number(&answered.value)) {
                Ok(Some(1)) if restart::votes(&nodes, index, sits_out, Instant::now()) => {
                    claim.progress.add_holder(index);
                }
                Ok(Some(-1)) if won => repair(&claim, &repairs(&claim, &prefix), index, &nodes, sits_out),
                _ => {}
            }
        };
        match self.ask(&request, driver, decide, late, self.grace(claim, false)).await {
            Some(Verdict::Won) => {
                for index in missing {
                    repair(claim, &repairs(claim, &self.prefix), index, &self.nodes, sits_out);
                }
                Extension::Extended { since }
            }
            // Lost for certain when the nodes that said so leave too few for a majority.
            _ if nodes - lost < majority(nodes) => Extension::Lost,
            _ => Extension::Unknown(out_of_reach(errors)),
        }
    }

    /// See [`Backend::extend_for`](crate::backend::Backend::extend_for). While a majority keeps what `owner` wrote, nobody else has
    /// one. No node that is without gets it.
    pub(super) async fn extend_everywhere(
        &self,
        resources: &[Resource],
        owner: &str,
        ttl: Duration,
        driver: &Driver,
    ) -> Result<bool> {
        if let Some(error) = self.named_twice().or_else(|| self.in_several_slots(resources)) {
            return Err(error);
        }
        // A node that forgets it sits out for as long.
        self.sits_out(ttl);
        let expires = Instant::now().after(self.node_timeout(ttl));
        let request = Request::extend_for(&Keys::of(&self.prefix, resources), owner, ttl, expires);
        let nodes = self.nodes.len();
        let (mut yes, mut no, mut errors) = (0, 0, Vec::new());
        let decide = |_, answer: request::Answer| {
            match answer.map(|answer| number(&answer.value)) {
                Ok(Some(1)) => yes += 1,
                Ok(Some(_)) => no += 1,
                Ok(None) => errors.push(Error::unavailable("an answer of another kind")),
                Err(error) => errors.push(error.into_error()),
            }
            match verdict(nodes, yes, no) {
                Verdict::Open => None,
                decided => Some(decided == Verdict::Won),
            }
        };
        let decided = self.ask(&request, driver, decide, |_| |_, _| {}, Duration::ZERO).await;
        decided.ok_or_else(|| out_of_reach(errors))
    }
}

/// Puts the lock back, in the background, on a node where it is missing though a majority holds.
fn repair(claim: &Claim, request: &Arc<Request>, index: usize, nodes: &[Arc<dyn Server>], sits_out: Duration) {
    // A server that sits out is not put to rights before it votes again.
    let run = nodes[index].known_run();
    if claim.mode != Mode::Exclusive || !restart::votes(nodes, index, sits_out, Instant::now()) {
        return;
    }
    claim.progress.doubt(index);
    let node = Arc::clone(&nodes[index]);
    let answer = Arc::clone(&node).run(request.to(index), Driver::engine());
    let progress = Arc::clone(&claim.progress);
    runtime::spawn(async move {
        match answer.await {
            Ok(answered) => {
                let granted = number(&answered.value) == Some(1);
                if granted && node.known_run().map(|run| run.id) == run.map(|run| run.id) {
                    progress.add_holder(index);
                }
                let left_over = granted && progress.is_over();
                if !answered.repeated && !left_over {
                    progress.resolve(index);
                }
            }
            Err(error) if !error.is_ambiguous() => progress.resolve(index),
            Err(_) => {}
        }
    });
}
