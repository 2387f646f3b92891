//! Metrics and events as JavaScript has them.

use std::{collections::BTreeMap, sync::Arc};

use napi_derive::napi;
use polylock::{Event, Events, LockManager, Result, Value, host::CompletionQueue};

use crate::reply::{Outcome, epoch_ms};

/// A [`polylock::Metric`].
#[napi(object, object_from_js = false)]
pub struct MetricRecord {
    /// As in `polylock.acquire.duration`.
    pub name: String,
    /// What it is.
    pub help: String,
    /// `s`, or empty.
    pub unit: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Its values.
    pub points: Vec<PointRecord>,
}

/// A [`polylock::Point`]: either `value` or `histogram`.
#[napi(object, object_from_js = false)]
pub struct PointRecord {
    /// What it is split by.
    pub labels: BTreeMap<String, String>,
    /// Of a counter or a gauge.
    pub value: Option<f64>,
    /// Of a histogram.
    pub histogram: Option<HistogramRecord>,
}

/// Counts by size.
#[napi(object, object_from_js = false)]
pub struct HistogramRecord {
    /// Upper bounds of all buckets but the last.
    pub bounds: Vec<f64>,
    /// How many fell into each bucket, and into no smaller one.
    pub counts: Vec<f64>,
    /// Of all that was measured.
    pub sum: f64,
    /// How many were measured.
    pub count: f64,
}

/// A [`polylock::Event`].
#[napi(object, object_from_js = false)]
pub struct EventRecord {
    /// What happened.
    pub kind: String,
    /// When, as `Date.now()` counts.
    pub at: f64,
    /// What it is about.
    pub resources: Vec<String>,
    /// `exclusive`, `shared` or `permit`.
    pub mode: String,
    /// Of the lease.
    #[napi(ts_type = "bigint | undefined")]
    pub fencing_token: Option<u64>,
    /// Milliseconds.
    pub duration: Option<f64>,
    /// Why it was lost.
    pub reason: Option<String>,
    /// Why it was not extended.
    pub error: Option<String>,
}

/// All that the manager counts.
pub(crate) fn metrics(locks: &LockManager) -> Result<Vec<MetricRecord>> {
    let metrics = locks.metrics()?.metrics.into_iter().map(|metric| MetricRecord {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        unit: metric.unit.to_owned(),
        kind: metric.kind.name().to_owned(),
        points: metric.points.into_iter().map(point).collect(),
    });
    Ok(metrics.collect())
}

fn point(point: polylock::Point) -> PointRecord {
    let labels = point.labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    // Counts are far below 2^53, which a double counts exactly.
    let double = |count: u64| count as f64;
    match point.value {
        Value::Number(number) => PointRecord { labels, value: Some(number), histogram: None },
        Value::Histogram { bounds, counts, sum, count } => {
            let counts = counts.into_iter().map(double).collect();
            let histogram = HistogramRecord { bounds: bounds.to_vec(), counts, sum, count: double(count) };
            PointRecord { labels, value: None, histogram: Some(histogram) }
        }
    }
}

impl From<Event> for EventRecord {
    fn from(event: Event) -> Self {
        Self {
            kind: event.kind.name().to_owned(),
            at: epoch_ms(event.at),
            resources: event.resources.iter().map(ToString::to_string).collect(),
            mode: event.mode.name().to_owned(),
            fencing_token: event.fencing_token,
            duration: event.duration.map(|duration| duration.as_secs_f64() * 1e3),
            reason: event.reason.map(|reason| reason.name().to_owned()),
            error: event.error,
        }
    }
}

/// Hands each batch to the environment's loop, until the subscription or the loop ends.
pub(crate) fn forward(events: &Arc<Events>, queue: CompletionQueue<Outcome>, id: u64) -> Result<()> {
    let events = Arc::clone(events);
    polylock::host::try_spawn(async move {
        while let Some(batch) = events.next().await {
            if queue.push(id, Outcome::Told(batch)).is_err() {
                break;
            }
        }
    })
}
