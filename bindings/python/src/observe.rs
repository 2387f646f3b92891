//! Metrics and events as Python has them.

use std::sync::Arc;

use polylock::{Event, Metric, Value};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    boundary,
    outcome::{Outcome, unix_seconds},
    queue::Queue,
};

/// Name, help, unit, kind, points.
pub(crate) type MetricFields = (&'static str, &'static str, &'static str, &'static str, Vec<PointFields>);

/// Labels; the number, or bounds, counts, sum and count.
pub(crate) type PointFields = (Py<PyDict>, Option<f64>, Option<(Vec<f64>, Vec<u64>, f64, u64)>);

pub(crate) fn metric_fields(py: Python<'_>, metric: Metric) -> PyResult<MetricFields> {
    let points = metric.points.into_iter().map(|point| {
        let labels = PyDict::new(py);
        for (name, value) in point.labels {
            labels.set_item(name, value)?;
        }
        Ok(match point.value {
            Value::Number(number) => (labels.unbind(), Some(number), None),
            Value::Histogram { bounds, counts, sum, count } => {
                (labels.unbind(), None, Some((bounds.to_vec(), counts, sum, count)))
            }
        })
    });
    Ok((metric.name, metric.help, metric.unit, metric.kind.name(), points.collect::<PyResult<_>>()?))
}

/// Kind, time (Unix seconds), resources, mode, fencing token, seconds, reason, error.
pub(crate) type EventFields =
    (&'static str, f64, Vec<String>, &'static str, Option<u64>, Option<f64>, Option<&'static str>, Option<String>);

pub(crate) fn event_fields(event: Event) -> EventFields {
    (
        event.kind.name(),
        unix_seconds(event.at),
        event.resources.iter().map(ToString::to_string).collect(),
        event.mode.name(),
        event.fencing_token,
        event.duration.map(|duration| duration.as_secs_f64()),
        event.reason.map(polylock::LossReason::name),
        event.error,
    )
}

/// A subscription.
#[pyclass(frozen, module = "polylock._native")]
pub(crate) struct Events(Arc<polylock::Events>);

impl Events {
    pub(crate) fn new(events: polylock::Events) -> Self {
        Self(Arc::new(events))
    }
}

#[pymethods]
impl Events {
    /// Takes the next batch; `None` comes when there will be no other.
    fn take_start(&self, py: Python<'_>, queue: &Queue) -> PyResult<Py<PyAny>> {
        let events = Arc::clone(&self.0);
        queue.start(py, |_| async move { Ok(Outcome::Events(events.next().await)) })
    }

    /// How many were lost since this was last asked.
    fn missed(&self) -> u64 {
        self.0.missed()
    }

    /// There will be no other batch but that of what has come so far.
    fn close(&self) -> PyResult<()> {
        boundary::guard(|| self.0.close())
    }
}
