//! What a number of answers from independent servers amounts to: Redlock without its I/O.
//!
//! A majority is `floor(N/2) + 1` of the N nodes. An attempt is won with a majority of grants, and lost as soon as
//! the nodes that have not answered cannot make it one (which for an even N is at N/2 refusals already). One node
//! is the case N = 1.
//!
//! Of the permits of a semaphore each server gives away all, so a majority of any would not be enough: of five servers with
//! two permits each, three holders may have three. So permits are numbered, and each number is like a lock of its own: it
//! takes a majority that gave the *same* number. A server gives the first that is free there, from one on that the attempt has
//! drawn: servers that know of the same holders give the same, and attempts that come together are seldom in each other's
//! way. What was given of other numbers is given back.
//!
//! # Fencing
//!
//! Each grant comes with the node's counter, already raised by the grant. If a majority shows one number, that is the
//! token. Otherwise the token is the largest, and it is written back ([`Ballot::to_raise`]) where the lock is still
//! ours and the counter below; the nodes that confirm that, or granted with it, must be a majority.
//!
//! So a node confirms a token by raising its counter to it from below, for somebody who holds there. Counters do not fall: no
//! node confirms a token twice, and what it confirms later is larger. Two successes share a node that confirmed both. So tokens
//! are unique, and who asks when another's was granted has a larger one, whatever the clocks do. That two exclude each other is
//! not needed for it: it holds as well for those who share, and for permits of different numbers. Of those whose attempts
//! overlapped either may have the larger token.

use std::time::Duration;

use crate::{Error, clock::Instant, mutant::mutant};

/// One node's answer to an attempt.
#[derive(Debug)]
pub(super) enum Vote {
    Granted(Grant),
    Busy {
        free_in: Option<Duration>,
        foreign: bool,
    },
    /// It was certainly not granted.
    Failed(Error),
    /// It may have been granted, or may yet be.
    Unknown(Error),
}

/// What a node granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) counter: u64,
    /// Which of the permits, where these are numbered.
    pub(super) number: Option<u32>,
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

/// What `yes` and `no` answers out of `nodes` amount to.
pub(super) fn verdict(nodes: usize, yes: usize, no: usize) -> Verdict {
    if yes >= majority(nodes) {
        Verdict::Won
    } else if nodes - no < majority(nodes) {
        Verdict::Lost
    } else {
        Verdict::Open
    }
}

impl Ballot {
    pub(super) fn new(nodes: usize) -> Self {
        Self { nodes, votes: Vec::with_capacity(nodes) }
    }

    pub(super) fn cast(&mut self, node: usize, vote: Vote, standing: Standing) -> Verdict {
        let ends = mutant!("D25") && matches!(vote, Vote::Failed(_) | Vote::Unknown(_));
        self.votes.push((node, vote, standing));
        if ends {
            return Verdict::Lost;
        }
        let granted = self.granted().count();
        verdict(self.nodes, granted, self.votes.len() - granted - self.may_count_yet())
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
            (_, Vote::Granted(_), Standing::New { began, .. }) => {
                let new = self.as_new_as(*began);
                new < majority(self.nodes) && new + unheard >= majority(self.nodes)
            }
            _ => false,
        };
        self.votes.iter().filter(waits).count()
    }

    /// The grants of nodes that vote, whatever their number.
    fn grants(&self) -> impl Iterator<Item = (usize, Grant)> {
        self.votes.iter().filter_map(|(node, vote, standing)| match vote {
            Vote::Granted(grant) if self.counts(*standing) => Some((*node, *grant)),
            _ => None,
        })
    }

    /// The number that most of them have; `None` for what has none.
    pub(super) fn number(&self) -> Option<u32> {
        if self.grants().all(|(_, grant)| grant.number.is_none()) {
            return None;
        }
        let times = |number| self.grants().filter(|(_, grant)| grant.number == number).count();
        self.grants().map(|(_, grant)| grant.number).max_by_key(|number| times(*number)).flatten()
    }

    /// The grants that count: those of one number.
    fn granted(&self) -> impl Iterator<Item = (usize, Grant)> {
        let number = self.number();
        self.grants().filter(move |(_, grant)| grant.number == number || mutant!("permits"))
    }

    /// The nodes that granted.
    pub(super) fn holders(&self) -> Vec<usize> {
        self.granted().map(|(node, _)| node).collect()
    }

    /// The nodes that granted another number than most, which is to be given back, also if they do not vote.
    pub(super) fn misfits(&self) -> Vec<usize> {
        let number = self.number();
        let misfits = self.votes.iter().filter_map(|(node, vote, _)| match vote {
            Vote::Granted(grant) if grant.number != number => Some(*node),
            _ => None,
        });
        misfits.collect()
    }

    /// The nodes that granted with this token, and so have confirmed it.
    pub(super) fn confirmed(&self, token: u64) -> Vec<usize> {
        self.granted().filter(|(_, grant)| grant.counter == token).map(|(node, _)| node).collect()
    }

    /// The token that a majority shows already, if there is one.
    pub(super) fn agreed_token(&self) -> Option<u64> {
        let agreed = |token: &u64| self.confirmed(*token).len() >= majority(self.nodes);
        self.granted().map(|(_, grant)| grant.counter).find(agreed)
    }

    /// The token to write back, if the nodes do not agree.
    pub(super) fn to_raise(&self) -> u64 {
        self.granted().map(|(_, grant)| grant.counter).max().unwrap_or(0)
    }

    /// Whether any node holds, or may come to hold, the lock for an attempt that was lost.
    pub(super) fn leaves_residue(&self) -> bool {
        // A node that has not answered may have granted.
        self.votes.len() < self.nodes
            || self.votes.iter().any(|(_, vote, _)| matches!(vote, Vote::Granted(_) | Vote::Unknown(_)))
    }

    /// Whether nobody else is known to have a majority.
    pub(super) fn is_split(&self) -> bool {
        let busy = self.votes.iter().filter(|(_, vote, _)| matches!(vote, Vote::Busy { .. }));
        busy.count() < majority(self.nodes)
    }

    /// Why a lost attempt was lost. `name` is what errors call a node.
    pub(super) fn refusal<'a>(self, name: impl Fn(usize) -> &'a str) -> Refusal {
        let (nodes, majority) = (self.nodes, majority(self.nodes));
        let (mut busy, mut foreign, mut frees) = (0, 0, Vec::new());
        let voting: Vec<usize> = self.grants().map(|(node, _)| node).collect();
        let mut errors = Vec::new();
        for (node, vote, standing) in self.votes {
            match (vote, standing) {
                (Vote::Granted(_), Standing::Full) => {}
                (Vote::Granted(_), _) if voting.contains(&node) => {}
                (Vote::Granted(_), Standing::New { left, .. } | Standing::Restarted { left, .. }) => {
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
        if nodes - errors.len() < majority {
            return Refusal::OutOfReach(errors);
        }
        frees.sort();
        Refusal::Busy {
            // Free when enough of those that refused are.
            free_in: frees
                .get(majority.saturating_sub(nodes - busy + 1))
                .copied()
                .filter(|free| *free < Duration::MAX),
            foreign: foreign > nodes - majority,
            // We had a part of it, and nobody is known to have the whole. With no part of ours in the way, those who
            // refused are somebody's, and the rest of his nodes did not answer.
            contended: !voting.is_empty() && busy < majority,
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

    fn granted(counter: u64, number: Option<u32>) -> Vote {
        Vote::Granted(Grant { counter, number })
    }

    fn vote(kind: u32) -> Vote {
        match kind {
            0 => granted(7, None),
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
                let mut ballot = Ballot::new(nodes);
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

    /// Every mask of three numbers and a refusal for N = 1..=7: won exactly with a majority of one number, lost exactly when
    /// none can get there any more.
    #[test]
    fn every_mask_of_numbers() {
        for nodes in 1..=7_usize {
            for mask in 0..4_u32.pow(nodes as u32) {
                let (mut ballot, mut given) = (Ballot::new(nodes), [0; 3]);
                for node in 0..nodes {
                    let number = mask / 4_u32.pow(node as u32) % 4;
                    let cast = if number == 3 { vote(1) } else { granted(7, Some(number)) };
                    let verdict = ballot.cast(node, cast, FULL);
                    given.get_mut(number as usize).into_iter().for_each(|times| *times += 1);
                    let most = *given.iter().max().unwrap();
                    let expected = match most {
                        _ if most > nodes / 2 => Verdict::Won,
                        _ if most + nodes - node - 1 <= nodes / 2 => Verdict::Lost,
                        _ => Verdict::Open,
                    };
                    assert_eq!(verdict, expected, "{nodes} nodes, mask {mask:o}, after {node}");
                    if verdict == Verdict::Won {
                        let number = ballot.number().unwrap();
                        assert_eq!(given[number as usize], most);
                        assert_eq!(ballot.holders().len(), most);
                        assert_eq!(ballot.misfits().len(), given.iter().sum::<usize>() - most);
                    }
                }
            }
        }
    }

    #[test]
    fn an_even_split_is_lost_and_not_waited_for() {
        let mut ballot = Ballot::new(2);
        assert_eq!(ballot.cast(0, vote(0), FULL), Verdict::Open);
        assert_eq!(ballot.cast(1, vote(1), FULL), Verdict::Lost);
        assert!(ballot.leaves_residue());
        assert!(matches!(ballot.refusal(|_| "node"), Refusal::Busy { contended: true, .. }));
    }

    #[test]
    fn a_held_lock_is_not_taken_for_a_clash_because_a_node_is_down() {
        let mut ballot = Ballot::new(3);
        assert_eq!(ballot.cast(0, vote(1), FULL), Verdict::Open);
        assert_eq!(ballot.cast(1, vote(2), FULL), Verdict::Lost);
        assert!(matches!(ballot.refusal(|_| "node"), Refusal::Busy { contended: false, .. }));
    }

    #[test]
    fn disagreeing_counters_are_raised_to_the_largest() {
        let mut ballot = Ballot::new(3);
        ballot.cast(0, granted(4, None), FULL);
        ballot.cast(1, granted(9, None), FULL);
        assert_eq!((ballot.agreed_token(), ballot.to_raise()), (None, 9));
        ballot.cast(2, granted(4, None), FULL);
        assert_eq!(ballot.agreed_token(), Some(4));
    }

    /// A clash, also where all are new and vote, and what a server gave that sits out is given back as well.
    #[test]
    fn different_numbers_are_a_clash() {
        for standing in [FULL, NEW] {
            let mut ballot = Ballot::new(3);
            for (node, verdict) in [Verdict::Open, Verdict::Open, Verdict::Lost].into_iter().enumerate() {
                assert_eq!(ballot.cast(node, granted(7, Some(node as u32)), standing), verdict);
            }
            assert!(ballot.leaves_residue() && ballot.is_split());
            assert!(matches!(ballot.refusal(|_| "node"), Refusal::Busy { contended: true, .. }), "{standing:?}");
        }
        let mut ballot = Ballot::new(3);
        ballot.cast(0, granted(7, Some(1)), RESTARTED);
        ballot.cast(1, granted(9, Some(0)), FULL);
        assert_eq!(ballot.cast(2, granted(8, Some(0)), FULL), Verdict::Won);
        assert_eq!((ballot.number(), ballot.holders(), ballot.misfits()), (Some(0), vec![1, 2], vec![0]));
        assert_eq!((ballot.to_raise(), ballot.confirmed(9)), (9, vec![1]));
    }

    #[test]
    fn nodes_out_of_reach_are_named() {
        let mut ballot = Ballot::new(3);
        ballot.cast(0, vote(2), FULL);
        assert_eq!(ballot.cast(1, vote(3), FULL), Verdict::Lost);
        let Refusal::OutOfReach(errors) = ballot.refusal(|_| "node") else { panic!("busy") };
        assert_eq!(errors.len(), 2);
    }

    #[test]
    fn a_restarted_node_makes_no_majority() {
        let mut ballot = Ballot::new(3);
        assert_eq!(ballot.cast(0, vote(0), RESTARTED), Verdict::Open);
        assert_eq!(ballot.cast(1, vote(0), FULL), Verdict::Open);
        assert_eq!(ballot.cast(2, vote(1), FULL), Verdict::Lost);
        assert!(ballot.leaves_residue() && ballot.holders() == [1]);
        assert!(matches!(ballot.refusal(|_| "node"), Refusal::Busy { contended: true, .. }));

        let mut ballot = Ballot::new(3);
        ballot.cast(0, vote(0), RESTARTED);
        assert_eq!(ballot.cast(1, vote(0), NEW), Verdict::Open);
        assert_eq!(ballot.cast(2, vote(2), FULL), Verdict::Lost);
        let Refusal::OutOfReach(errors) = ballot.refusal(|_| "node") else { panic!("busy") };
        assert_eq!(errors[0].to_string(), "node: restarted lately, and does not vote for 1.000 s more");
    }

    #[test]
    fn new_nodes_vote_when_a_majority_is_new() {
        for nodes in 1..=7 {
            let mut ballot = Ballot::new(nodes);
            for node in 0..nodes {
                let decided = if node + 1 >= majority(nodes) { Verdict::Won } else { Verdict::Open };
                assert_eq!(ballot.cast(node, vote(0), NEW), decided, "{nodes} nodes");
            }
            assert_eq!(ballot.agreed_token(), Some(7));
        }
        // One new node among four others sits out: without it there is no majority of five here.
        let mut ballot = Ballot::new(5);
        for (node, kind) in [1, 1, 0, 0].into_iter().enumerate() {
            assert_eq!(ballot.cast(node, vote(kind), FULL), Verdict::Open);
        }
        assert_eq!(ballot.cast(4, vote(0), NEW), Verdict::Lost);
        // Nor does one that started when the others of a new deployment were up already.
        let mut ballot = Ballot::new(3);
        assert_eq!(ballot.cast(0, vote(0), started(130)), Verdict::Open);
        assert_eq!(ballot.cast(1, vote(1), started(101)), Verdict::Open);
        assert_eq!(ballot.cast(2, vote(0), started(100)), Verdict::Lost);
        assert_eq!(ballot.holders(), [2]);
    }
}
