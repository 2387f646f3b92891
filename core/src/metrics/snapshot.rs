//! The counters as they are shown.

use super::{
    ACQUIRED, Acquired, Counters, ENDED, EXTENDED, LOST, NodeStats, SAID, Series,
    histogram::{BOUNDS, Counts},
    read,
};
use crate::{LockManager, Result, clock::Instant};

/// What a manager has done so far. See [`LockManager::metrics`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// In the order of the documentation; those without a point yet are there as well.
    pub metrics: Vec<Metric>,
}

/// One thing that is measured.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// As in `polylock.acquire.duration`.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub help: &'static str,
    /// `s` for seconds; else empty.
    pub unit: &'static str,
    /// How its values behave.
    pub kind: MetricKind,
    /// Its values, by labels.
    pub points: Vec<Point>,
}

/// How the values of a metric behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl MetricKind {
    /// The stable name: `counter`, `gauge` or `histogram`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One value of a metric.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Point {
    /// Names and values; `system` is always the first.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: Value,
}

/// A number, or counts by size.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Histogram {
        /// The upper bounds of all buckets but the last, which has none.
        bounds: &'static [f64],
        /// How many fell into each bucket, and into no smaller one: one more than there are bounds.
        counts: Vec<u64>,
        /// Of all that was measured.
        sum: f64,
        /// How many were measured.
        count: u64,
    },
}

impl LockManager {
    /// What was done through this manager since it was made. Asks no server; also works when it is closed.
    ///
    /// | metric | kind, unit | labels |
    /// |---|---|---|
    /// | `polylock.acquire.duration` | histogram, s | `outcome`: acquired, contended (tried once), timeout, cancelled, error |
    /// | `polylock.wait.duration` | histogram, s: until the request that was granted was sent | |
    /// | `polylock.hold.duration` | histogram, s | `end`: released, lost, dropped |
    /// | `polylock.attempts` | counter | `answer`: granted, busy, failed |
    /// | `polylock.extensions` | counter | `outcome`: extended, lost, failed |
    /// | `polylock.lost` | counter | `reason`: expired, taken, max_hold |
    /// | `polylock.held`, `polylock.acquiring` | gauge: leases and acquisitions now | |
    /// | `polylock.renewal.remaining.min` | gauge, s: the least that was left when a renewal was answered, over the last one to two minutes | |
    /// | `polylock.node.up`, `.requests`, `.unanswered`, `.round_trip.duration` | gauge, counters, histogram in s (one request in 16) | `node` |
    ///
    /// All have `system` (`redis`, `postgresql`, ...), and `template` where
    /// [`Acquire::template`](crate::Acquire::template) was given.
    ///
    /// # Errors
    /// `Forked`.
    pub fn metrics(&self) -> Result<Metrics> {
        let manager = self.own()?;
        Ok(Metrics { metrics: manager.counters.show(&manager.backend.nodes()) })
    }
}

impl Counters {
    fn show(&self, nodes: &[(String, &NodeStats)]) -> Vec<Metric> {
        let templates = self.by_template.load();
        let mut all: Vec<(Vec<_>, &Series)> = vec![(vec![("system", self.system.to_owned())], &self.plain)];
        let mut named: Vec<_> = templates.iter().collect();
        named.sort_by(|one, two| one.0.cmp(two.0));
        for (template, series) in named {
            all.push((vec![("system", self.system.to_owned()), ("template", template.to_string())], series));
        }
        if !self.enabled {
            all.clear();
        }
        // One value for each series.
        let each = |value: &dyn Fn(&Series) -> Value| -> Vec<Point> {
            all.iter().map(|(labels, series)| Point { labels: labels.clone(), value: value(series) }).collect()
        };
        // One for each series and each of `names`.
        let by = |label, names: &[&str], value: &dyn Fn(&Series, usize) -> Value| -> Vec<Point> {
            let named = |(labels, series): &(Vec<(&'static str, String)>, &Series), index: usize, name: &&str| {
                let labels = [&labels[..], &[(label, (*name).to_owned())]].concat();
                Point { labels, value: value(series, index) }
            };
            all.iter()
                .flat_map(|one| names.iter().enumerate().map(move |(index, name)| named(one, index, name)))
                .collect()
        };
        let number = |counters: &[super::Counter], index: usize| Value::Number(read(&counters[index]) as f64);
        let least = self.remaining.lock().map(|mut least| least.least(Instant::now())).ok().flatten();
        let mut metrics = vec![
            histogram(
                "polylock.acquire.duration",
                "How long acquisitions took, by how they ended.",
                by("outcome", &ACQUIRED, &|series, index| series.acquire[index].read().into()),
            ),
            histogram(
                "polylock.wait.duration",
                "How long those that acquired had waited when they sent the request that was granted.",
                each(&|series| series.wait.read().into()),
            ),
            histogram(
                "polylock.hold.duration",
                "How long leases were held, by how they ended.",
                by("end", &ENDED, &|series, index| series.hold[index].read().into()),
            ),
            counter(
                "polylock.attempts",
                "Requests for a lock, by what the backend said.",
                by("answer", &SAID, &|series, index| number(&series.said, index)),
            ),
            counter(
                "polylock.extensions",
                "Extensions, in the background or asked for, by what came of them.",
                by("outcome", &EXTENDED, &|series, index| number(&series.extended, index)),
            ),
            counter(
                "polylock.lost",
                "Leases that were lost, by the reason.",
                by("reason", &LOST.map(crate::LossReason::name), &|series, index| number(&series.lost, index)),
            ),
            gauge(
                "polylock.held",
                "",
                "Leases that are held now.",
                each(&|series| Value::Number(series.held() as f64)),
            ),
            gauge(
                "polylock.acquiring",
                "",
                "Acquisitions that are on their way now.",
                each(&|series| Value::Number(series.acquiring() as f64)),
            ),
            gauge(
                "polylock.renewal.remaining.min",
                "s",
                "The least that a lease had left when a renewal was answered, over the last one to two minutes.",
                least.map(|least| self.point(&[], Value::Number(least.as_secs_f64()))).into_iter().collect(),
            ),
        ];
        metrics.extend(self.show_nodes(nodes));
        metrics
    }

    fn show_nodes(&self, nodes: &[(String, &NodeStats)]) -> [Metric; 4] {
        let each = |value: &dyn Fn(&NodeStats) -> Option<Value>| -> Vec<Point> {
            let point =
                |(name, stats): &(String, &NodeStats)| Some(self.point(&[("node", name.clone())], value(stats)?));
            nodes.iter().filter_map(point).collect()
        };
        let number = |number: u64| Some(Value::Number(number as f64));
        [
            gauge(
                "polylock.node.up",
                "",
                "Whether the server answered the last request: 1 or 0.",
                each(&|node| node.up().and_then(|up| number(u64::from(up)))),
            ),
            counter("polylock.node.requests", "Requests to the server.", each(&|node| number(node.asked()))),
            counter(
                "polylock.node.unanswered",
                "Requests that were not answered in time, or could not be sent.",
                each(&|node| number(node.not_answered())),
            ),
            histogram(
                "polylock.node.round_trip.duration",
                "How long the server took to answer; one request in 16 is timed.",
                each(&|node| Some(node.round_trip().into())),
            ),
        ]
    }

    fn point(&self, labels: &[(&'static str, String)], value: Value) -> Point {
        Point { labels: [&[("system", self.system.to_owned())], labels].concat(), value }
    }
}

impl Series {
    /// Read one after the other, while others count on: never below zero for that.
    fn held(&self) -> u64 {
        let ended: u64 = self.hold.iter().map(|hold| hold.read().count).sum();
        self.acquire[Acquired::Granted as usize].read().count.saturating_sub(ended)
    }

    fn acquiring(&self) -> u64 {
        let ended: u64 = self.acquire.iter().map(|acquire| acquire.read().count).sum();
        read(&self.begun).saturating_sub(ended)
    }
}

impl From<Counts> for Value {
    fn from(counts: Counts) -> Self {
        Self::Histogram { bounds: &BOUNDS, counts: counts.buckets, sum: counts.sum, count: counts.count }
    }
}

fn histogram(name: &'static str, help: &'static str, points: Vec<Point>) -> Metric {
    Metric { name, help, unit: "s", kind: MetricKind::Histogram, points }
}

fn counter(name: &'static str, help: &'static str, points: Vec<Point>) -> Metric {
    Metric { name, help, unit: "", kind: MetricKind::Counter, points }
}

fn gauge(name: &'static str, unit: &'static str, help: &'static str, points: Vec<Point>) -> Metric {
    Metric { name, help, unit, kind: MetricKind::Gauge, points }
}

impl Metrics {
    /// The metric with this name, as in `polylock.lost`.
    pub fn get(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// The sum of a counter or gauge, or the count of a histogram, over the points that have all these labels.
    pub fn total(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let Some(metric) = self.get(name) else { return 0.0 };
        let has = |point: &&Point| {
            labels.iter().all(|(name, value)| point.labels.iter().any(|(key, label)| key == name && label == value))
        };
        let value = |point: &Point| match &point.value {
            Value::Number(number) => *number,
            Value::Histogram { count, .. } => *count as f64,
        };
        metric.points.iter().filter(has).map(value).sum()
    }
}
