//! Metrics as Prometheus reads them: its text format 0.0.4.

use std::fmt::{self, Write};

use super::{Metric, MetricKind, Metrics, Value};

impl Metrics {
    /// In the text format of Prometheus (`text/plain; version=0.0.4`): `polylock.acquire.duration` becomes
    /// `polylock_acquire_duration_seconds`, and counters end in `_total`.
    pub fn to_prometheus(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        for metric in &self.metrics {
            // Writing to a string cannot fail.
            let _ = write_metric(&mut text, metric);
        }
        text
    }
}

impl Metric {
    /// Its name in the text format.
    pub fn prometheus_name(&self) -> String {
        let unit = if self.unit == "s" { "_seconds" } else { "" };
        let ending = if self.kind == MetricKind::Counter { "_total" } else { "" };
        // A unit stands before what was done to the values.
        let name = self.name.replace('.', "_");
        match name.strip_suffix("_min") {
            Some(name) => format!("{name}{unit}_min{ending}"),
            None => format!("{name}{unit}{ending}"),
        }
    }
}

fn write_metric(text: &mut String, metric: &Metric) -> fmt::Result {
    let name = metric.prometheus_name();
    writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", metric.help, metric.kind.name())?;
    for point in &metric.points {
        let labels: Vec<String> =
            point.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let labels = labels.join(",");
        match &point.value {
            Value::Number(number) => writeln!(text, "{name}{{{labels}}} {number}")?,
            Value::Histogram { bounds, counts, sum, count } => {
                let mut so_far = 0;
                for (index, counted) in counts.iter().enumerate() {
                    so_far += counted;
                    match bounds.get(index) {
                        Some(bound) => writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {so_far}")?,
                        None => writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {so_far}")?,
                    }
                }
                writeln!(text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}")?;
            }
        }
    }
    Ok(())
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::{Point, histogram::BOUNDS};
    use super::*;

    #[test]
    fn is_what_prometheus_reads() {
        let labels = vec![("system", "redis".to_owned()), ("template", "a\"\\\n".to_owned())];
        let mut counts = vec![0; BOUNDS.len() + 1];
        (counts[0], counts[BOUNDS.len()]) = (2, 1);
        let histogram = Value::Histogram { bounds: &BOUNDS, counts, sum: 1.5, count: 3 };
        let metric = |name, unit, kind, value| Metric {
            name,
            help: "Help.",
            unit,
            kind,
            points: vec![Point { labels: labels.clone(), value }],
        };
        let text = Metrics {
            metrics: vec![
                metric("polylock.lost", "", MetricKind::Counter, Value::Number(7.0)),
                metric("polylock.hold.duration", "s", MetricKind::Histogram, histogram),
                metric("polylock.renewal.remaining.min", "s", MetricKind::Gauge, Value::Number(0.25)),
            ],
        }
        .to_prometheus();
        let labels = r#"system="redis",template="a\"\\\n""#;
        for line in [
            "# HELP polylock_lost_total Help.".to_owned(),
            "# TYPE polylock_lost_total counter".to_owned(),
            format!("polylock_lost_total{{{labels}}} 7"),
            "# TYPE polylock_hold_duration_seconds histogram".to_owned(),
            format!("polylock_hold_duration_seconds_bucket{{{labels},le=\"0.0001\"}} 2"),
            format!("polylock_hold_duration_seconds_bucket{{{labels},le=\"3600\"}} 2"),
            format!("polylock_hold_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 3"),
            format!("polylock_hold_duration_seconds_sum{{{labels}}} 1.5"),
            format!("polylock_hold_duration_seconds_count{{{labels}}} 3"),
            format!("polylock_renewal_remaining_seconds_min{{{labels}}} 0.25"),
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }
}
