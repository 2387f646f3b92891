//! Servers that were restarted: they may have forgotten who holds what, so they sit out the longest ttl in use.
//!
//! A restart ends the connection, and each log-in learns which run of the server it reached and since when that has been up.
//! So whatever is answered on a connection is answered by a run whose age is known. A run that is younger than
//! the longest ttl is asked as any other, but its grants do not count: whoever held by its vote before the restart may
//! still hold.
//!
//! A server that is new, and not restarted, looks the same to whoever meets it first. If a majority started no earlier than
//! it did, and this manager has seen no earlier run of it, that is taken for a new deployment and it votes at once:
//! had a majority lost its memory at one time, no majority could tell who holds, anyway.
//!
//! How long a server has been up it tells by its wall clock, which may be set. So a run is as old as it was when it was first met,
//! whatever it says later; and one that says that it began before an earlier run was met at the same place, is not that server
//! restarted, or its clock was set: it is taken to begin when it is met. Who has met none cannot tell.
//!
//! A clock that is set forward ends locks as well. Whoever has a connection then learns of it by the answer to the next attempt, which
//! is too late for that clock, and has the server sit out as if it had been restarted.

use std::{sync::Arc, time::Duration};

use redis::Value;

use super::{
    quorum::{Standing, majority},
    request::Server,
};
use crate::clock::Instant;

/// One run of a server, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// What tells it from other runs and other servers.
    pub(super) id: u128,
    /// It began at this time at the latest.
    pub(super) began: Instant,
    /// When it was met last.
    pub(super) met: Instant,
    /// This manager has known an earlier run of this server.
    pub(super) follows: bool,
}

impl Run {
    /// Reads the answer of `INFO server`; `None` if it does not tell. Databases of one server count as servers.
    pub(super) fn read(info: &Value, database: i64) -> Option<Self> {
        let field = |name| field(info, name);
        let id = u128::from_str_radix(field("run_id")?.get(..32)?, 16).ok()? ^ u128::from(database.unsigned_abs());
        // A difference of whole seconds: up to one more than has passed. Below zero where the clock was set back.
        let up = field("uptime_in_seconds")?.parse::<i64>().ok()?.saturating_sub(1).max(0);
        let met = Instant::now();
        Some(Self { id, began: met.before(Duration::from_secs(up.unsigned_abs())), met, follows: false })
    }

    /// This run, met after `earlier`.
    pub(super) fn after(self, earlier: Option<Self>) -> Self {
        match earlier {
            Some(earlier) if earlier.id == self.id => Self { met: self.met, ..earlier },
            Some(earlier) if self.began <= earlier.met => Self { began: self.met, follows: true, ..self },
            Some(_) => Self { follows: true, ..self },
            None => self,
        }
    }

    /// This run, which has forgotten now what it knew.
    pub(super) fn forgot(self) -> Self {
        Self { began: Instant::now(), follows: true, ..self }
    }

    fn standing(self, sits_out: Duration, now: Instant) -> Standing {
        let left = sits_out.saturating_sub(now.since(self.began));
        let began = self.began;
        match (left.is_zero(), self.follows) {
            (true, _) => Standing::Full,
            (false, false) => Standing::New { began, left },
            (false, true) => Standing::Restarted { began, left },
        }
    }
}

/// What the answer of `INFO` says of `name`.
pub(super) fn field<'a>(info: &'a Value, name: &str) -> Option<&'a str> {
    let text = match info {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?,
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
        _ => return None,
    };
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
}

/// What the vote of a server in this run is worth. One that does not tell is trusted.
pub(super) fn standing(run: Option<Run>, sits_out: Duration, now: Instant) -> Standing {
    if sits_out.is_zero() {
        return Standing::Full;
    }
    run.map_or(Standing::Full, |run| run.standing(sits_out, now))
}

/// Whether the server at `index` votes now, by all that is known of all.
pub(super) fn votes(servers: &[impl Lives], index: usize, sits_out: Duration, now: Instant) -> bool {
    let standing = |server: &_| standing(Lives::run(server), sits_out, now);
    match standing(&servers[index]) {
        Standing::Full => true,
        Standing::Restarted { .. } => false,
        Standing::New { began, .. } => {
            let new = servers.iter().filter(|server| standing(server).is_as_new_as(began));
            new.count() >= majority(servers.len())
        }
    }
}

/// Two of these that lead to the same server.
pub(super) fn twins(servers: &[impl Lives]) -> Option<(usize, usize)> {
    (1..servers.len()).find_map(|two| {
        let mut one = None;
        servers[two].any_run(&mut |run| {
            let leads_there = |other: &_| Lives::any_run(other, &mut |other| other.id == run.id);
            one = servers[..two].iter().position(leads_there);
            one.is_some()
        });
        Some((one?, two))
    })
}

/// What has runs.
pub(super) trait Lives {
    /// The run that it is in, as far as is known.
    fn run(&self) -> Option<Run>;

    /// Whether any of the servers that it leads to, as far as they are known, is in a run like this.
    fn any_run(&self, like: &mut dyn FnMut(Run) -> bool) -> bool {
        self.run().is_some_and(like)
    }
}

impl Lives for Arc<dyn Server> {
    fn run(&self) -> Option<Run> {
        self.known_run()
    }

    fn any_run(&self, like: &mut dyn FnMut(Run) -> bool) -> bool {
        (**self).any_run(like)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Lives for Option<Run> {
        fn run(&self) -> Option<Run> {
            *self
        }
    }

    const SITS_OUT: Duration = Duration::from_secs(60);

    fn run(id: u128, age: u64, follows: bool) -> Option<Run> {
        Some(Run { id, began: now().before(Duration::from_secs(age)), met: now(), follows })
    }

    fn now() -> Instant {
        Instant::from_boot(Duration::from_secs(1_000_000))
    }

    fn voting(runs: &[Option<Run>]) -> Vec<bool> {
        (0..runs.len()).map(|index| votes(runs, index, SITS_OUT, now())).collect()
    }

    #[test]
    fn reads_what_the_server_says_of_itself() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:0123456789abcdef0123456789abcdef01234567\r\n\
                    uptime_in_seconds:100\r\n";
        let run = Run::read(&Value::BulkString(info.into()), 0).unwrap();
        assert_eq!(run.id, 0x0123456789abcdef0123456789abcdef);
        // A second less than it says: it may have been up for no more than that.
        assert_eq!(Instant::now().since(run.began).as_secs(), 99);
        let set_back = info.replace(":100", ":-100");
        let began = Run::read(&Value::BulkString(set_back.into()), 0).unwrap().began;
        assert!(Instant::now().since(began) < Duration::from_secs(60));
        for other in ["", "run_id:1\r\n", "run_id:é\r\nuptime_in_seconds:1"] {
            assert_eq!(Run::read(&Value::BulkString(other.into()), 0), None);
        }
    }

    #[test]
    fn a_young_minority_sits_out() {
        assert_eq!(voting(&[run(1, 100, false), run(2, 59, false), run(3, 61, false)]), [true, false, true]);
        assert_eq!(voting(&[run(1, 5, false), None, None]), [false, true, true]);
    }

    #[test]
    fn a_new_deployment_votes_at_once() {
        assert_eq!(voting(&[run(1, 5, false), run(2, 5, false), None]), [true, true, true]);
        assert_eq!(voting(&[run(1, 5, false)]), [true]);
        // But who comes, or comes back, when the others are up, waits.
        assert_eq!(voting(&[run(1, 30, false), run(2, 29, false), run(3, 5, false)]), [true, true, false]);
        assert_eq!(
            voting(&[run(1, 9, false), run(2, 9, false), run(3, 5, false), run(4, 5, false)])[2..],
            [false; 2]
        );
    }

    #[test]
    fn who_has_seen_an_earlier_run_is_not_mistaken() {
        assert_eq!(voting(&[run(1, 5, true), run(2, 5, true), run(3, 5, true)]), [false; 3]);
        assert_eq!(voting(&[run(1, 61, true), run(2, 5, true), run(3, 100, false)]), [true, false, true]);
        let (first, second) = (run(1, 100, false), run(2, 5, false).unwrap());
        assert!(second.after(first).follows && !second.after(None).follows);
        // Met again on another connection.
        assert!(second.after(Some(second.after(first))).follows);
    }

    #[test]
    fn a_clock_that_is_set_ends_nothing() {
        let young = run(1, 5, false).unwrap();
        for age in [0, 100] {
            assert_eq!(run(1, age, false).unwrap().after(Some(young)), young);
        }
        // It, or its clock, was not there when the other was met.
        let other = Run { met: now().before(Duration::from_secs(50)), ..run(1, 100, false).unwrap() };
        let of_late = |age| run(2, age, false).unwrap().after(Some(other)).began;
        assert_eq!((of_late(49), of_late(51)), (now().before(Duration::from_secs(49)), now()));
    }

    #[test]
    fn one_server_by_two_names_is_found_out() {
        assert_eq!(twins(&[run(1, 1, false), None, run(2, 1, false), run(1, 2, false)]), Some((0, 3)));
        assert_eq!(twins(&[run(1, 1, false), None, None]), None);
    }
}
