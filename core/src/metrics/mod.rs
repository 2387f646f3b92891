//! What a manager has done: counted always, read when somebody asks.
//!
//! Counting is a few relaxed additions for each lease and reads no clock but once at its end, so that there is no
//! need to turn it on; [`Connect::metrics`](crate::Connect::metrics) turns it off. No resource's name is kept: a
//! lease is counted under its template if the caller gave one ([`Acquire::template`](crate::Acquire::template)).

mod histogram;
mod node;
mod snapshot;
mod text;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use self::histogram::Histogram;
pub(crate) use self::node::{NodeStats, Sample};
pub use self::snapshot::{Metric, MetricKind, Metrics, Point, Value};
use crate::{LossReason, clock::Instant};

/// How an acquisition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    Granted,
    /// It was tried once, and somebody else held it.
    Contended,
    Timeout,
    Cancelled,
    Error,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Released,
    Lost,
    /// Its holder forgot it.
    Dropped,
}

/// What a backend said to one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Granted,
    Busy,
    Failed,
}

/// What came of one extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    Extended,
    Lost,
    Failed,
}

const ACQUIRED: [&str; 5] = ["acquired", "contended", "timeout", "cancelled", "error"];
const ENDED: [&str; 3] = ["released", "lost", "dropped"];
const SAID: [&str; 3] = ["granted", "busy", "failed"];
const EXTENDED: [&str; 3] = ["extended", "lost", "failed"];
const LOST: [LossReason; 3] = [LossReason::Expired, LossReason::Taken, LossReason::MaxHold];

type Counter = AtomicU64;

fn count(counter: &Counter) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &Counter) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// What is counted of the leases of one template, or of those without one.
#[derive(Debug, Default)]
pub(crate) struct Series {
    acquire: [Histogram; 5],
    begun: Counter,
    wait: Histogram,
    hold: [Histogram; 3],
    said: [Counter; 3],
    extended: [Counter; 3],
    lost: [Counter; 3],
}

/// The counters of one manager.
#[derive(Debug)]
pub(crate) struct Counters {
    system: &'static str,
    enabled: bool,
    plain: Arc<Series>,
    by_template: ArcSwap<HashMap<Arc<str>, Arc<Series>>>,
    remaining: Mutex<Least>,
}

/// The templates that are told apart; the rest is counted together.
const MOST_TEMPLATES: usize = 200;
const OTHER: &str = "other";

impl Counters {
    pub(crate) fn new(system: &'static str, enabled: bool) -> Self {
        Self { system, enabled, plain: Arc::default(), by_template: ArcSwap::default(), remaining: Mutex::default() }
    }

    /// Where the leases of `template` are counted.
    pub(crate) fn series(&self, template: Option<&Arc<str>>) -> Arc<Series> {
        let Some(template) = template.filter(|_| self.enabled) else { return Arc::clone(&self.plain) };
        if let Some(series) = self.by_template.load().get(template) {
            return Arc::clone(series);
        }
        self.by_template.rcu(|known| {
            let mut known = HashMap::clone(known);
            let full = known.len() >= MOST_TEMPLATES;
            known.entry(if full { OTHER.into() } else { Arc::clone(template) }).or_default();
            known
        });
        let known = self.by_template.load();
        known.get(template).or_else(|| known.get(OTHER)).map_or_else(|| Arc::clone(&self.plain), Arc::clone)
    }

    /// An acquisition begins: it is counted as cancelled if what this gives is dropped before its end.
    pub(crate) fn acquiring(&self, series: Arc<Series>, began: Instant) -> Acquiring {
        if self.enabled {
            count(&series.begun);
        }
        Acquiring { series, began, open: self.enabled }
    }

    pub(crate) fn said(&self, series: &Series, said: Said) {
        if self.enabled {
            count(&series.said[said as usize]);
        }
    }

    /// A lease whose grant was asked for at `since` has ended.
    pub(crate) fn ended(&self, series: &Series, since: Instant, ended: Ended) {
        if self.enabled {
            series.hold[ended as usize].record(Instant::now().since(since));
        }
    }

    pub(crate) fn lost(&self, series: &Series, reason: LossReason) {
        if self.enabled {
            let index = LOST.iter().position(|lost| *lost == reason);
            count(&series.lost[index.unwrap_or(0)]);
        }
    }

    /// `remaining` is what the lease had left at `now`, when the answer was there.
    pub(crate) fn extended(&self, series: &Series, extended: Renewed, remaining: Duration, now: Instant) {
        if self.enabled {
            count(&series.extended[extended as usize]);
            self.remaining.lock().unwrap_or_else(PoisonError::into_inner).note(remaining, now);
        }
    }
}

/// An acquisition on its way.
pub(crate) struct Acquiring {
    pub(crate) series: Arc<Series>,
    began: Instant,
    open: bool,
}

impl Acquiring {
    /// It was granted; the request that was granted was sent at `since`.
    pub(crate) fn granted(&mut self, since: Instant, now: Instant) {
        if self.open {
            self.series.wait.record(since.since(self.began));
            self.end(Acquired::Granted, now);
        }
    }

    pub(crate) fn end(&mut self, acquired: Acquired, now: Instant) {
        if std::mem::take(&mut self.open) {
            self.series.acquire[acquired as usize].record(now.since(self.began));
        }
    }
}

impl Drop for Acquiring {
    fn drop(&mut self) {
        if self.open {
            self.end(Acquired::Cancelled, Instant::now());
        }
    }
}

/// The least that any lease had left when a renewal was answered: of this minute and of the one before.
#[derive(Debug, Default)]
struct Least {
    minute: u64,
    now: Option<Duration>,
    before: Option<Duration>,
}

impl Least {
    fn turn(&mut self, at: Instant) {
        let minute = at.since_boot().as_secs() / 60;
        if minute != self.minute {
            self.before = if minute == self.minute + 1 { self.now } else { None };
            (self.minute, self.now) = (minute, None);
        }
    }

    fn note(&mut self, remaining: Duration, at: Instant) {
        self.turn(at);
        self.now = Some(self.now.map_or(remaining, |least| least.min(remaining)));
    }

    fn least(&mut self, at: Instant) -> Option<Duration> {
        self.turn(at);
        self.now.into_iter().chain(self.before).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_two_minutes() {
        let (mut least, ms) = (Least::default(), Duration::from_millis);
        let at = |seconds| Instant::from_boot(Duration::from_secs(seconds));
        assert_eq!(least.least(at(600)), None);
        least.note(ms(30), at(601));
        least.note(ms(50), at(602));
        assert_eq!(least.least(at(659)), Some(ms(30)));
        least.note(ms(40), at(661));
        assert_eq!(least.least(at(719)), Some(ms(30)));
        assert_eq!(least.least(at(720)), Some(ms(40)));
        assert_eq!(least.least(at(1000)), None);
    }

    #[test]
    fn templates_are_bounded() {
        let counters = Counters::new("memory", true);
        for number in 0..2 * MOST_TEMPLATES {
            let template: Arc<str> = format!("t{number}").into();
            counters.said(&counters.series(Some(&template)), Said::Granted);
        }
        assert_eq!(counters.by_template.load().len(), MOST_TEMPLATES + 1);
        assert!(counters.by_template.load().contains_key(OTHER));
    }

    #[test]
    fn what_is_dropped_was_cancelled() {
        let counters = Counters::new("memory", true);
        let now = Instant::now();
        drop(counters.acquiring(counters.series(None), now));
        counters.acquiring(counters.series(None), now).granted(now, now);
        assert_eq!(counters.plain.acquire[Acquired::Cancelled as usize].read().count, 1);
        assert_eq!(counters.plain.acquire[Acquired::Granted as usize].read().count, 1);
    }
}
