//! Checks a deployment, and says what to change.

mod postgres;
mod redis;

use std::time::{Duration, Instant};

use polylock::{Acquire, Guarantee, LockManager, Release, Result};

use crate::{arguments::Doctor, say};

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grade {
    Good,
    /// Exclusion or availability is weaker than it could be.
    Warning,
    /// Locks do not work as promised.
    Wrong,
}

/// What was found, collected as it is printed.
pub(crate) struct Findings {
    worst: Grade,
}

impl Findings {
    pub(crate) fn good(&mut self, what: impl AsRef<str>) {
        self.note(Grade::Good, what.as_ref(), "");
    }

    pub(crate) fn warn(&mut self, what: impl AsRef<str>, change: &str) {
        self.note(Grade::Warning, what.as_ref(), change);
    }

    pub(crate) fn wrong(&mut self, what: impl AsRef<str>, change: &str) {
        self.note(Grade::Wrong, what.as_ref(), change);
    }

    fn note(&mut self, grade: Grade, what: &str, change: &str) {
        let word = match grade {
            Grade::Good => "ok   ",
            Grade::Warning => "warn ",
            Grade::Wrong => "WRONG",
        };
        say(format_args!("{word} {what}"));
        if !change.is_empty() {
            say(format_args!("      → {change}"));
        }
        self.worst = self.worst.max(grade);
    }
}

pub(crate) async fn doctor(locks: &LockManager, urls: &[String], doctor: &Doctor) -> Result<u8> {
    let mut findings = Findings { worst: Grade::Good };
    promises(locks, &mut findings);
    match urls[0].split(':').next().unwrap_or_default() {
        "redis" | "rediss" | "valkey" | "valkeys" | "redis+unix" | "unix" | "redis+sentinel" | "redis+cluster" => {
            redis::check(locks, &mut findings).await?;
        }
        "postgres" | "postgresql" => postgres::check(urls, &mut findings).await?,
        _ => {}
    }
    probe(locks, doctor.ttl, &mut findings).await;
    Ok(u8::from(findings.worst == Grade::Wrong))
}

fn promises(locks: &LockManager, findings: &mut Findings) {
    let can = locks.capabilities();
    match can.guarantee {
        Guarantee::Fenced => findings.good("exclusion holds always, where the fencing token is checked"),
        Guarantee::Lease => {
            findings.good("exclusion holds while clocks run at one speed and servers keep their memory")
        }
        Guarantee::BestEffort => findings.warn(
            "a failure of the server may give a lock to two",
            "have what the locks protect check the fencing token",
        ),
    }
    if !can.across_processes {
        findings.warn("only this process is excluded", "memory: is for tests; file:///directory for one host");
    } else if !can.across_hosts {
        findings.good("the processes of this host are excluded, other hosts are not");
    }
}

/// Takes and releases a lock of its own.
async fn probe(locks: &LockManager, ttl: Duration, findings: &mut Findings) {
    const ROUNDS: usize = 20;
    let name = format!("polylock-doctor-{}", std::process::id());
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let lease = match locks.acquire(&name, Acquire::ttl(ttl).wait(Duration::from_secs(2))).await {
            Ok(lease) => lease,
            Err(error) => return findings.wrong(format!("a lock cannot be taken: {error}"), "see the error"),
        };
        if let Err(error) = lease.extend(None).await {
            findings.wrong(format!("a lease cannot be extended: {error}"), "see the error");
        }
        match lease.release().await {
            Ok(Release::Released) => {}
            Ok(other) => findings.wrong(format!("a release came to: {}", other.name()), "see the server's log"),
            Err(error) => findings.wrong(format!("a lock cannot be released: {error}"), "see the error"),
        }
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let (median, slowest) = (took[ROUNDS / 2], took[ROUNDS - 1]);
    let what = format!(
        "acquire, extend and release take {:.1} ms, {:.1} ms at worst of {ROUNDS}",
        median.as_secs_f64() * 1e3,
        slowest.as_secs_f64() * 1e3
    );
    // A renewal begins after a third of the ttl, and has to be there before the rest is over.
    if slowest > ttl / 10 {
        findings.warn(what, "use a longer ttl, or a server that is nearer: slow answers lose leases");
    } else {
        findings.good(what);
    }
}
