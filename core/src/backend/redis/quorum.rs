//! What a number of answers from independent servers amounts to: Redlock without its I/O.
//!
//! A majority is `floor(N/2) + 1` of the N nodes. An attempt is won with a majority of grants, and lost as soon as
//! the nodes that have not answered cannot make it one (which for an even N is at N/2 refusals already). One node
//! is the case N = 1.
//!
//! Of the permits of a semaphore each server gives away all, so a majority is not enough: of five servers with two permits
//! each, three holders may have three. It takes so many that one holder too many would need more than there are
//! ([`needed`]): `floor(N*k/(k+1)) + 1` for k permits, which for one permit is the majority.
//!
//! # Fencing
//!
//! Each grant comes with the node's counter, already raised by the grant. If a majority shows one number, that is the
//! token. Otherwise the token is the largest, and it is written back ([`Ballot::to_raise`]) where the lock is still
//! ours and the counter not above; the nodes that confirm that must be a majority. Two successes share a node
//! at which both confirmed their token while holding, and the later one's grant raised that node's counter: so
//! tokens are unique and grow, whatever the clocks do.

use std::time::Duration;

use crate::{Error, Mode, clock::Instant, mutant::mutant};

/// One node's answer to an attempt.
#[derive(Debug)]
pub(super) enum Vote {
    Granted {
        counter: u64,
    },
    Busy {
        free_in: Option<Duration>,
        foreign: bool,
    },
    /// It was certainly not granted.
    Failed(Error),
    /// It may have been granted, or may yet be.
    Unknown(Error),
}

/// What a node's grant is worth; see [`restart`](super::restart).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Full,
    /// Started lately: it counts if a majority started no earlier.
    New {
        began: Instant,
        left: Duration,
    },
    /// Restarted lately: it does not count.
    Restarted {
        began: Instant,
        left: Duration,
    },
}

impl Standing {
    /// Whether a node started lately, and no earlier than `began` as far as can be told.
    pub(super) fn is_as_new_as(self, began: Instant) -> bool {
        // Servers tell how long they have been up in whole seconds.
        const SAME: Duration = Duration::from_secs(2);
        match self {
            Self::Full => false,
            Self::New { began: other, .. } | Self::Restarted { began: other, .. } => other >= began.before(SAME),
        }
    }
}

/// The answers to one attempt, as they come in.
#[derive(Debug)]
pub(super) struct Ballot {
    nodes: usize,
    /// How many grants win it.
    needed: usize,
    votes: Vec<(usize, Vote, Standing)>,
}

/// What the answers so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Open,
    Won,
    Lost,
}

/// The smallest number of nodes any two sets of which have one in common.
pub(super) fn majority(nodes: usize) -> usize {
    if mutant!("D23") {
        return nodes.div_ceil(2);
    }
    nodes / 2 + 1
}

/// How many nodes have to let somebody hold in this mode, so that there are never too many who do.
pub(super) fn needed(nodes: usize, mode: Mode) -> usize {
    match mode {
        Mode::Permit { of: 2.. } if mutant!("permits") => majority(nodes),
        // With this many permits or more it takes every node.
        Mode::Permit { of } if of as usize >= nodes => nodes,
        Mode::Permit { of: of @ 2.. } => nodes * of as usize / (of as usize + 1) + 1,
        _ => majority(nodes),
    }
}

/// What `yes` and `no` answers out of `nodes` amount to, if it takes `needed`.
pub(super) fn verdict(nodes: usize, needed: usize, yes: usize, no: usize) -> Verdict {
    if yes >= needed {
        Verdict::Won
    } else if nodes - no < needed {
        Verdict::Lost
    } else {
        Verdict::Open
    }
}

impl Ballot {
    pub(super) fn new(nodes: usize, needed: usize) -> Self {
        Self { nodes, needed, votes: Vec::with_capacity(nodes) }
    }

    pub(super) fn cast(&mut self, node: usize, vote: Vote, standing: Standing) -> Verdict {
        let ends = mutant!("D25") && matches!(vote, Vote::Failed(_) | Vote::Unknown(_));
        self.votes.push((node, vote, standing));
        if ends {
            return Verdict::Lost;
        }
        let granted = self.granted().count();
        verdict(self.nodes, self.needed, granted, self.votes.len() - granted - self.may_count_yet())
    }

    /// How many are known to have started no earlier.
    fn as_new_as(&self, began: Instant) -> usize {
        self.votes.iter().filter(|(_, _, other)| other.is_as_new_as(began)).count()
    }

    fn counts(&self, standing: Standing) -> bool {
        match standing {
            Standing::Full => true,
            Standing::New { began, .. } => self.as_new_as(began) >= majority(self.nodes),
            Standing::Restarted { .. } => false,
        }
    }

    /// Grants of new nodes that count if the others turn out to be new as well.
    fn may_count_yet(&self) -> usize {
        let unheard = self.nodes - self.votes.len();
        let waits = |vote: &&(usize, Vote, Standing)| match vote {
            (_, Vote::Granted { .. }, Standing::New { began, .. }) => {
                let new = self.as_new_as(*began);
                new < majority(self.nodes) && new + unheard >= majority(self.nodes)
            }
            _ => false,
        };
        self.votes.iter().filter(waits).count()
    }

    /// The grants that count.
    fn granted(&self) -> impl Iterator<Item = (usize, u64)> {
        self.votes.iter().filter_map(|(node, vote, standing)| match vote {
            Vote::Granted { counter } if self.counts(*standing) => Some((*node, *counter)),
            _ => None,
        })
    }

    /// The nodes that granted.
    pub(super) fn holders(&self) -> Vec<usize> {
        self.granted().map(|(node, _)| node).collect()
    }

    /// The token that a majority shows already, if there is one.
    pub(super) fn agreed_token(&self) -> Option<u64> {
        let counters: Vec<u64> = self.granted().map(|(_, counter)| counter).collect();
        let agreed = |token: &u64| counters.iter().filter(|other| *other == token).count() >= majority(self.nodes);
        counters.iter().copied().find(agreed)
    }

    /// The token to write back, if the nodes do not agree.
    pub(super) fn to_raise(&self) -> u64 {
        self.granted().map(|(_, counter)| counter).max().unwrap_or(0)
    }

    /// Whether any node holds, or may come to hold, the lock for an attempt that was lost.
    pub(super) fn leaves_residue(&self) -> bool {
        // A node that has not answered may have granted.
        self.votes.len() < self.nodes
            || self.votes.iter().any(|(_, vote, _)| matches!(vote, Vote::Granted { .. } | Vote::Unknown(_)))
    }

    /// Whether nobody else is known to have a majority.
    pub(super) fn is_split(&self) -> bool {
        let busy = self.votes.iter().filter(|(_, vote, _)| matches!(vote, Vote::Busy { .. }));
        busy.count() < majority(self.nodes)
    }

    /// Why a lost attempt was lost. `name` is what errors call a node.
    pub(super) fn refusal<'a>(self, name: impl Fn(usize) -> &'a str) -> Refusal {
        let (nodes, needed, majority) = (self.nodes, self.needed, majority(self.nodes));
        let (mut busy, mut foreign, mut frees) = (0, 0, Vec::new());
        let (mut errors, holders) = (Vec::new(), self.holders());
        let granted = holders.len();
        for (node, vote, standing) in self.votes {
            match (vote, standing) {
                (Vote::Granted { .. }, Standing::Full) => {}
                (Vote::Granted { .. }, _) if holders.contains(&node) => {}
                (Vote::Granted { .. }, Standing::New { left, .. } | Standing::Restarted { left, .. }) => {
                    let (name, left) = (name(node), left.as_secs_f64());
                    let why = format!("{name}: restarted lately, and does not vote for {left:.3} s more");
                    errors.push(Error::unavailable(why));
                }
                (Vote::Busy { free_in, foreign: is_foreign }, _) => {
                    busy += 1;
                    foreign += usize::from(is_foreign);
                    frees.push(free_in.unwrap_or(Duration::MAX));
                }
                (Vote::Failed(error) | Vote::Unknown(error), _) => errors.push(error),
            }
        }
        // Without the nodes that are out of reach: could the rest have made it?
        if nodes - errors.len() < needed {
            return Refusal::OutOfReach(errors);
        }
        frees.sort();
        Refusal::Busy {
            // Free when enough of those that refused are.
            free_in: frees.get(needed.saturating_sub(nodes - busy + 1)).copied().filter(|free| *free < Duration::MAX),
            foreign: foreign > nodes - needed,
            // We had a part of it, and nobody is known to have the whole. With no part of ours in the way, those who
            // refused are somebody's, and the rest of his nodes did not answer.
            contended: granted > 0 && busy < majority,
        }
    }
}

/// Why an attempt was lost.
#[derive(Debug)]
pub(super) enum Refusal {
    Busy {
        free_in: Option<Duration>,
        foreign: bool,
        /// Nobody has a majority: several attempts stood in each other's way.
        contended: bool,
    },
    OutOfReach(Vec<Error>),
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Standing = Standing::Full;
    const NEW: Standing = started(100);
    const RESTARTED: Standing =
        Standing::Restarted { began: Instant::from_boot(Duration::from_secs(100)), left: Duration::from_secs(1) };

    /// A node that started at this time, not long ago.
    const fn started(at: u64) -> Standing {
        Standing::New { began: Instant::from_boot(Duration::from_secs(at)), left: Duration::from_secs(1) }
    }

    fn ballot_of(nodes: usize) -> Ballot {
        Ballot::new(nodes, majority(nodes))
    }

    fn vote(kind: u32) -> Vote {
        match kind {
            0 => Vote::Granted { counter: 7 },
            1 => Vote::Busy { free_in: Some(Duration::from_millis(10)), foreign: false },
            2 => Vote::Failed(Error::unavailable("refused")),
            _ => Vote::Unknown(Error::unavailable("no answer")),
        }
    }

    /// Every mask of four kinds of answers for N = 1..=7: won exactly with a majority of grants, lost exactly when
    /// that cannot be reached any more, and never both.
    #[test]
    fn every_mask_of_answers() {
        for nodes in 1..=7_usize {
            for mask in 0..4_u32.pow(nodes as u32) {
                let mut ballot = ballot_of(nodes);
                let (mut granted, mut refused) = (0, 0);
                for node in 0..nodes {
                    let kind = mask / 4_u32.pow(node as u32) % 4;
                    let verdict = ballot.cast(node, vote(kind), FULL);
                    if kind == 0 {
                        granted += 1
                    } else {
                        refused += 1
                    }
                    let can_win = granted + (nodes - granted - refused) > nodes / 2;
                    let expected = match (granted > nodes / 2, can_win) {
                        (true, _) => Verdict::Won,
                        (false, false) => Verdict::Lost,
                        (false, true) => Verdict::Open,
                    };
                    assert_eq!(verdict, expected, "{nodes} nodes, mask {mask:o}, after {node}");
                }
                if granted > nodes / 2 {
                    assert_eq!(ballot.agreed_token(), Some(7));
                }
            }
        }
    }

    /// Whichever nodes they hold, no more than the permits; and no more nodes are asked for than that takes.
    #[test]
    fn there_are_never_more_holders_than_permits() {
        for nodes in 1..=31 {
            assert_eq!(needed(nodes, Mode::Exclusive), majority(nodes));
            for of in (1..40).chain([u32::MAX]) {
                let (needed, permits) = (needed(nodes, Mode::Permit { of }) as u64, u64::from(of));
                let places = nodes as u64 * permits;
                assert!((permits + 1) * needed > places, "{nodes} nodes, {of} permits");
                assert!((permits + 1) * (needed - 1) <= places, "{nodes} nodes, {of} permits");
                assert!(needed <= nodes as u64);
            }
        }
    }

    #[test]
    fn an_even_split_is_lost_and_not_waited_for() {
        let mut ballot = ballot_of(2);
        assert_eq!(ballot.cast(0, vote(0), FULL), Verdict::Open);
        assert_eq!(ballot.cast(1, vote(1), FULL), Verdict::Lost);
        assert!(ballot.leaves_residue());
        assert!(matches!(ballot.refusal(|_| "node"), Refusal::Busy { contended: true, .. }));
    }

    #[test]
    fn a_held_lock_is_not_taken_for_a_clash_because_a_node_is_down() {
        let mut ballot = ballot_of(3);
        assert_eq!(ballot.cast(0, vote(1), FULL), Verdict::Open);
        assert_eq!(ballot.cast(1, vote(2), FULL), Verdict::Lost);
        assert!(matches!(ballot.refusal(|_| "node"), Refusal::Busy { contended: false, .. }));
    }

    #[test]
    fn disagreeing_counters_are_raised_to_the_largest() {
        let mut ballot = ballot_of(3);
        ballot.cast(0, Vote::Granted { counter: 4 }, FULL);
        ballot.cast(1, Vote::Granted { counter: 9 }, FULL);
        assert_eq!((ballot.agreed_token(), ballot.to_raise()), (None, 9));
        ballot.cast(2, Vote::Granted { counter: 4 }, FULL);
        assert_eq!(ballot.agreed_token(), Some(4));
    }

    #[test]
    fn nodes_out_of_reach_are_named() {
        let mut ballot = ballot_of(3);
        ballot.cast(0, vote(2), FULL);
        assert_eq!(ballot.cast(1, vote(3), FULL), Verdict::Lost);
        let Refusal::OutOfReach(errors) = ballot.refusal(|_| "node") else { panic!("busy") };
        assert_eq!(errors.len(), 2);
    }

    #[test]
    fn a_restarted_node_makes_no_majority() {
        let mut ballot = ballot_of(3);
        assert_eq!(ballot.cast(0, vote(0), RESTARTED), Verdict::Open);
        assert_eq!(ballot.cast(1, vote(0), FULL), Verdict::Open);
        assert_eq!(ballot.cast(2, vote(1), FULL), Verdict::Lost);
        assert!(ballot.leaves_residue() && ballot.holders() == [1]);
        assert!(matches!(ballot.refusal(|_| "node"), Refusal::Busy { contended: true, .. }));

        let mut ballot = ballot_of(3);
        ballot.cast(0, vote(0), RESTARTED);
        assert_eq!(ballot.cast(1, vote(0), NEW), Verdict::Open);
        assert_eq!(ballot.cast(2, vote(2), FULL), Verdict::Lost);
        let Refusal::OutOfReach(errors) = ballot.refusal(|_| "node") else { panic!("busy") };
        assert_eq!(errors[0].to_string(), "node: restarted lately, and does not vote for 1.000 s more");
    }

    #[test]
    fn new_nodes_vote_when_a_majority_is_new() {
        for nodes in 1..=7 {
            let mut ballot = ballot_of(nodes);
            for node in 0..nodes {
                let decided = if node + 1 >= majority(nodes) { Verdict::Won } else { Verdict::Open };
                assert_eq!(ballot.cast(node, vote(0), NEW), decided, "{nodes} nodes");
            }
            assert_eq!(ballot.agreed_token(), Some(7));
        }
        // One new node among four others sits out: without it there is no majority of five here.
        let mut ballot = ballot_of(5);
        for (node, kind) in [1, 1, 0, 0].into_iter().enumerate() {
            assert_eq!(ballot.cast(node, vote(kind), FULL), Verdict::Open);
        }
        assert_eq!(ballot.cast(4, vote(0), NEW), Verdict::Lost);
        // Nor does one that started when the others of a new deployment were up already.
        let mut ballot = ballot_of(3);
        assert_eq!(ballot.cast(0, vote(0), started(130)), Verdict::Open);
        assert_eq!(ballot.cast(1, vote(1), started(101)), Verdict::Open);
        assert_eq!(ballot.cast(2, vote(0), started(100)), Verdict::Lost);
        assert_eq!(ballot.holders(), [2]);
    }
}
