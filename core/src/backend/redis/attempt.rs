//! One attempt to take the lock: the grants of a majority, and the token that it agrees on.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use redis::Value;

use super::{
    RedisBackend,
    keys::Keys,
    numbers, out_of_reach,
    quorum::{Ballot, Grant, Refusal, Standing, Verdict, Vote, majority},
    release::Overtaken,
    request::{self, Request},
    restart,
    round::Answers,
};
use crate::{
    Error, Mode,
    backend::{Attempt, Backend, Claim, Progress},
    clock::Instant,
    engine::{driver::Driver, timer},
    mutant::mutant,
};

/// A server whose clock is set forward by so many ms has ended locks before their time. By less clocks may differ
/// that run at one speed, on a connection that is as old as they come.
const ENDS_LOCKS: i64 = 1000;

impl RedisBackend {
    pub(super) async fn acquire(&self, claim: &Claim, driver: &Driver) -> Attempt {
        let since = Instant::now();
        let expires = since.after(self.node_timeout(claim.ttl));
        let keys = Keys::of(&self.prefix, &claim.resources);
        let request = Request::acquire(&keys, claim, self.draw_number(claim.mode), expires);
        claim.progress.track();
        let nodes = self.nodes.len();
        let (mut ballot, mut verdict) = (Ballot::new(nodes), None);
        // Once more if a server's clock was set since we looked at it: it takes us to be too late.
        if let Some(error) = self.named_twice().or_else(|| self.in_several_slots(&claim.resources)) {
            return Attempt::Refused(error);
        }
        for _ in 0..2 {
            let mut clock_was_set = Vec::new();
            ballot = Ballot::new(nodes);
            verdict = self.vote(&request, claim, driver, &mut ballot, &mut clock_was_set).await;
            if verdict == Some(Verdict::Won) || clock_was_set.is_empty() || Instant::now() >= expires {
                break;
            }
            // Should most be ahead, it is our own clock that stood still.
            let is_theirs = clock_was_set.len() < majority(nodes);
            for (index, now) in clock_was_set {
                if self.nodes[index].set_clock(driver, now) >= ENDS_LOCKS && is_theirs {
                    self.nodes[index].forgot();
                }
            }
        }
        if verdict != Some(Verdict::Won) {
            claim.progress.give_up();
            let matters = ballot.is_split() || claim.thorough;
            let attempt = self.refused(ballot, nodes - majority(nodes), &claim.progress);
            let is_in_the_way = match attempt {
                Attempt::Busy { residue, .. } => residue && (matters || claim.gives_back),
                Attempt::Unknown(_) => claim.gives_back,
                _ => false,
            };
            if is_in_the_way && !claim.waits {
                self.step_back(claim, driver).await;
            }
            return attempt;
        }
        if let Some(error) = self.named_twice() {
            return Attempt::Unknown(error);
        }
        for index in ballot.holders() {
            claim.progress.add_holder(index);
        }
        for index in ballot.misfits() {
            self.overtaken(claim).give_back_for_certain(index, &self.nodes[index]);
        }
        let token = match ballot.agreed_token() {
            Some(token) => Some(token),
            None if mutant!("D28") => Some(ballot.to_raise()),
            None => self.raise(&keys, claim, &ballot, driver, expires).await,
        };
        match token {
            Some(fencing_token) => {
                self.leave_elsewhere(claim);
                claim.progress.fencing_token.store(fencing_token, Ordering::Relaxed);
                Attempt::Granted { fencing_token, since: if mutant!("D5") { Instant::now() } else { since } }
            }
            None => Attempt::Unknown(Error::unavailable("the nodes did not agree on a fencing token in time")),
        }
    }

    /// Asks for grants until the ballot is decided. Nodes whose clock was set are noted with the time they show.
    async fn vote(
        &self,
        request: &Arc<Request>,
        claim: &Claim,
        driver: &Driver,
        ballot: &mut Ballot,
        clock_was_set: &mut Vec<(usize, i64)>,
    ) -> Option<Verdict> {
        for index in 0..self.nodes.len() {
            claim.progress.doubt(index);
        }
        let sits_out = self.sits_out(claim.ttl);
        let decide = |index: usize, answer: request::Answer| {
            let standing = restart::standing(self.nodes[index].known_run(), sits_out, Instant::now());
            note(&claim.progress, index, &answer, standing == Standing::Full);
            if let Ok(answered) = &answer
                && let Some(now) = super::clock_was_set(&answered.value)
            {
                clock_was_set.push((index, now));
            }
            let verdict = ballot.cast(index, vote(self.nodes[index].name(), answer), standing);
            if verdict == Verdict::Won
                && let Some(number) = ballot.number()
            {
                let _ = claim.progress.permit.set(number);
            }
            Some(verdict).filter(|verdict| *verdict != Verdict::Open)
        };
        let late = |_: &Verdict| {
            let (overtaken, nodes) = (self.overtaken(claim), self.nodes.clone());
            move |index: usize, answer: request::Answer| {
                let progress = &overtaken.claim.progress;
                let grant = answer.as_ref().ok().and_then(|answered| granted(&answered.value));
                let fits = grant.is_none_or(|grant| grant.number.as_ref() == progress.permit.get());
                let counts = fits && restart::votes(&nodes, index, sits_out, Instant::now());
                note(progress, index, &answer, counts);
                if progress.is_over() {
                    // A release that is on its way finds it, or is followed by others. One that has been there does not.
                    if grant.is_some() && progress.is_missed(index) {
                        overtaken.give_back(index, &nodes[index]);
                    }
                } else if !fits {
                    overtaken.give_back_for_certain(index, &nodes[index]);
                }
            }
        };
        let first = self.untried.load(Ordering::Relaxed) && self.untried.swap(false, Ordering::Relaxed);
        self.ask(request, driver, decide, late, self.grace(claim, first)).await
    }

    /// The number to begin with among the permits of a semaphore. One server alone counts them, which is less work.
    fn draw_number(&self, mode: Mode) -> Option<u32> {
        match mode {
            Mode::Permit { of } if self.nodes.len() > 1 => Some(fastrand::u32(..of.max(1))),
            _ => None,
        }
    }

    fn overtaken(&self, claim: &Claim) -> Overtaken {
        let (claim, prefix, background) = (claim.clone(), self.prefix.clone(), self.background.clone());
        Overtaken { within: self.settles_within(claim.ttl), claim, prefix, background }
    }

    /// Gives back a part that would be in the way of the caller's next attempt, which comes when he likes. The release goes
    /// by the connections of the attempt, so no node can get it first. The undoing in the background sees to the rest.
    async fn step_back(&self, claim: &Claim, driver: &Driver) {
        const PATIENCE: Duration = Duration::from_millis(100);
        // All matter, and not a majority alone, to who looks at each.
        let claim = Claim { thorough: claim.thorough || claim.gives_back, ..claim.clone() };
        timer::until(Some(Instant::now().after(PATIENCE)), pin!(self.release_all(&claim, driver))).await;
    }

    /// Writes the token back to the nodes that hold, until a majority has it; see [`quorum`](super::quorum).
    async fn raise(
        &self,
        keys: &Keys<'_>,
        claim: &Claim,
        ballot: &Ballot,
        driver: &Driver,
        expires: Instant,
    ) -> Option<u64> {
        let (holders, mut token) = (ballot.holders(), ballot.to_raise());
        let mut has_it = ballot.confirmed(token);
        while Instant::now() < expires {
            let request = Request::raise(keys, claim, token, expires);
            let others = || holders.iter().filter(|index| !has_it.contains(index));
            let mut raises = Answers::ask(others().map(|index| (*index, &self.nodes[*index])), &request, driver);
            let (mut confirmed, mut above) = (has_it.len(), None);
            for _ in others() {
                // Not held up by one that has just fallen silent.
                if confirmed >= majority(self.nodes.len()) {
                    break;
                }
                let (_, answer) = raises.next().await;
                match answer.as_ref().map(|answered| numbers(&answered.value)).ok().flatten().as_deref() {
                    Some([1, _]) => confirmed += 1,
                    Some([-1, counter]) => above = above.max(u64::try_from(*counter).ok()),
                    _ => {}
                }
            }
            if confirmed >= majority(self.nodes.len()) {
                return Some(token);
            }
            // None has this one yet.
            (token, has_it) = (above?.max(token) + 1, Vec::new());
        }
        None
    }

    /// What the engine makes of an attempt that was lost, and that so many nodes could have been without.
    fn refused(&self, ballot: Ballot, spare: usize, progress: &Progress) -> Attempt {
        let residue = ballot.leaves_residue() || progress.has_doubts();
        match ballot.refusal(|index| self.nodes[index].name()) {
            Refusal::Busy { free_in, foreign, contended } => Attempt::Busy { free_in, foreign, contended, residue },
            Refusal::OutOfReach(errors) => {
                // What tells against one node alone may pass with the others' trouble.
                let fatal: Vec<_> = errors.iter().filter(|error| !error.is_retryable()).collect();
                let error = match fatal[..] {
                    [error, ..] if fatal.len() > spare => error.clone(),
                    _ => out_of_reach(errors),
                };
                if residue { Attempt::Unknown(error) } else { Attempt::Refused(error) }
            }
        }
    }
}

/// Notes what an answer to an attempt tells of that node, and that it holds, if it `counts`.
pub(super) fn note(progress: &Progress, index: usize, answer: &request::Answer, counts: bool) {
    match answer {
        Ok(answered) => {
            let granted = granted(&answered.value).is_some();
            if granted && counts {
                progress.add_holder(index);
            }
            // A grant that does not count, or of what was given up meanwhile, is in doubt until the release has found it.
            let understood = granted || numbers(&answered.value).is_some();
            if !answered.repeated && understood && !(granted && (progress.is_over() || !counts)) {
                progress.resolve(index);
            }
        }
        Err(error) if !error.is_ambiguous() => progress.resolve(index),
        Err(_) => {}
    }
}

/// What a node's answer to an attempt means.
fn vote(node: &str, answer: request::Answer) -> Vote {
    let value = match answer {
        Ok(answered) => answered.value,
        Err(error) if error.is_ambiguous() => return Vote::Unknown(error.into_error()),
        Err(error) => return Vote::Failed(error.into_error()),
    };
    if let Some(grant) = granted(&value) {
        return Vote::Granted(grant);
    }
    let ttl = |ms: i64| u64::try_from(ms).ok().map(Duration::from_millis);
    match numbers(&value).as_deref() {
        Some([0, left]) => Vote::Busy { free_in: ttl(*left), foreign: false },
        Some([-3, left]) => Vote::Busy { free_in: ttl(*left), foreign: true },
        Some([-2, ..]) => Vote::Failed(Error::unavailable(format!("{node}: too late"))),
        _ => Vote::Unknown(Error::unavailable(format!("{node}: an answer of another kind"))),
    }
}

/// What the node granted, if it did.
fn granted(value: &Value) -> Option<Grant> {
    let (token, number) = match (value, numbers(value).as_deref()) {
        (Value::Int(token), _) => (*token, None),
        (_, Some([1, token, number])) => (*token, Some(u32::try_from(*number).ok()?)),
        _ => return None,
    };
    let counter = u64::try_from(token).ok().filter(|token| *token > 0)?;
    Some(Grant { counter, number })
}
