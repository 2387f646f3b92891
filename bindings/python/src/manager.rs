//! A manager.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use futures_util::TryFutureExt;
use polylock::{Connect, Guarantee, LockManager, Seen, host::generation};
use pyo3::{exceptions::PyTypeError, prelude::*};

use crate::{
    arguments,
    boundary::{self, to_python},
    lease::Lease,
    observe::{Events, MetricFields, metric_fields},
    outcome::{HolderFields, Outcome, holder_fields},
    queue::Queue,
    waiting,
};

type Capabilities = (&'static str, bool, bool, bool, bool, bool, bool, bool, bool, bool, bool);

/// Makes locks on one backend.
#[pyclass(frozen, module = "polylock._native")]
pub(crate) struct Manager {
    connect: Connect,
    made: ArcSwap<Made>,
    /// For `repr`: nothing of the URL that could be secret.
    schemes: String,
}

/// The engine's manager, and the process that made it.
struct Made {
    locks: LockManager,
    generation: u32,
    used: AtomicBool,
}

impl Made {
    fn new(connect: &Connect) -> PyResult<Arc<Self>> {
        let locks = boundary::guard(|| connect.clone().lazy())?.map_err(to_python)?;
        Ok(Arc::new(Self { locks, generation: generation(), used: AtomicBool::new(false) }))
    }
}

impl Manager {
    /// The engine's manager, to be used. The child of a fork makes one of its own, unless its parent has used this one: a
    /// server that forks its workers after it has imported a program makes the program's managers before that. One that was
    /// used stays the parent's, and says so.
    fn locks(&self) -> PyResult<LockManager> {
        let mut made = self.made.load_full();
        if made.generation != generation() && !made.used.load(Ordering::Acquire) {
            let new = Made::new(&self.connect)?;
            // Another thread may have been as quick: one of the two is kept.
            let found = self.made.compare_and_swap(&made, Arc::clone(&new));
            made = if Arc::ptr_eq(&found, &made) { new } else { Guard::into_inner(found) };
        }
        // Before it is: a fork in between leaves the child what nobody has touched.
        made.used.store(true, Ordering::Release);
        Ok(made.locks.clone())
    }
}

#[pymethods]
impl Manager {
    /// Touches no server and starts no thread.
    #[new]
    fn new(
        urls: Vec<Bound<'_, PyAny>>,
        prefix: &Bound<'_, PyAny>,
        drift_factor: &Bound<'_, PyAny>,
        node_timeout: &Bound<'_, PyAny>,
        patience: Option<(u32, u32, f64)>,
    ) -> PyResult<Self> {
        let urls = urls.iter().map(|url| arguments::text("url", url)).collect::<PyResult<Vec<_>>>()?;
        let schemes: Vec<_> = urls.iter().filter_map(|url| url.split_once(':')).map(|(scheme, _)| scheme).collect();
        let schemes = schemes.join(", ");
        let mut connect = polylock::connect(urls)
            .prefix(arguments::text("prefix", prefix)?)
            .drift_factor(arguments::number("drift_factor", drift_factor)?);
        if let Some(timeout) = arguments::optional_seconds("node_timeout", node_timeout)? {
            connect = connect.node_timeout(timeout);
        }
        if let Some((retries, silences, pause)) = patience {
            let pause = polylock::host::duration("patience", pause, Duration::from_secs(1)).map_err(to_python)?;
            connect = connect.patience(retries, silences, pause);
        }
        polylock_fork_mark::give();
        let made = ArcSwap::new(Made::new(&connect)?);
        Ok(Self { connect, made, schemes })
    }

    fn __repr__(&self) -> String {
        format!("LockManager {}", self.schemes)
    }

    #[pyo3(signature = (resource, mode, ttl, wait, auto_extend, max_hold, label, fair))]
    #[allow(clippy::too_many_arguments)] // positional, for the sake of the call's cost; Python's classes name them
    fn acquire(
        &self,
        py: Python<'_>,
        resource: &Bound<'_, PyAny>,
        mode: &Bound<'_, PyAny>,
        ttl: &Bound<'_, PyAny>,
        wait: &Bound<'_, PyAny>,
        auto_extend: &Bound<'_, PyAny>,
        max_hold: &Bound<'_, PyAny>,
        label: &Bound<'_, PyAny>,
        fair: &Bound<'_, PyAny>,
    ) -> PyResult<Lease> {
        let target = arguments::target(resource, mode)?;
        let options = arguments::options(ttl, wait, auto_extend, max_hold, label, fair)?;
        let locks = self.locks()?;
        let lease = waiting::wait(py, |driver| async move { locks.acquire_by(target, options, &driver).await })?;
        Ok(Lease::blocking(lease))
    }

    #[allow(clippy::too_many_arguments)] // as above
    fn acquire_start(
        &self,
        py: Python<'_>,
        queue: &Queue,
        resource: &Bound<'_, PyAny>,
        mode: &Bound<'_, PyAny>,
        ttl: &Bound<'_, PyAny>,
        wait: &Bound<'_, PyAny>,
        auto_extend: &Bound<'_, PyAny>,
        max_hold: &Bound<'_, PyAny>,
        label: &Bound<'_, PyAny>,
        fair: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let target = arguments::target(resource, mode)?;
        let options = arguments::options(ttl, wait, auto_extend, max_hold, label, fair)?;
        let locks = self.locks()?;
        queue.start(py, |driver| locks.acquire_by(target, options, &driver).map_ok(Outcome::Lease))
    }

    #[allow(clippy::too_many_arguments)] // as above
    fn try_acquire(
        &self,
        py: Python<'_>,
        resource: &Bound<'_, PyAny>,
        mode: &Bound<'_, PyAny>,
        ttl: &Bound<'_, PyAny>,
        auto_extend: &Bound<'_, PyAny>,
        max_hold: &Bound<'_, PyAny>,
        label: &Bound<'_, PyAny>,
        fair: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Lease>> {
        let target = arguments::target(resource, mode)?;
        let options = arguments::options(ttl, &py.None().into_bound(py), auto_extend, max_hold, label, fair)?;
        let locks = self.locks()?;
        let lease = waiting::wait(py, |driver| async move { locks.try_acquire_by(target, options, &driver).await })?;
        Ok(lease.map(Lease::blocking))
    }

    #[allow(clippy::too_many_arguments)] // as above
    fn try_acquire_start(
        &self,
        py: Python<'_>,
        queue: &Queue,
        resource: &Bound<'_, PyAny>,
        mode: &Bound<'_, PyAny>,
        ttl: &Bound<'_, PyAny>,
        auto_extend: &Bound<'_, PyAny>,
        max_hold: &Bound<'_, PyAny>,
        label: &Bound<'_, PyAny>,
        fair: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let target = arguments::target(resource, mode)?;
        let options = arguments::options(ttl, &py.None().into_bound(py), auto_extend, max_hold, label, fair)?;
        let locks = self.locks()?;
        queue.start(py, |driver| async move {
            let lease = locks.try_acquire_by(target, options, &driver).await?;
            Ok(lease.map_or(Outcome::Busy, Outcome::Lease))
        })
    }

    fn inspect(&self, py: Python<'_>, resource: &Bound<'_, PyAny>) -> PyResult<Option<HolderFields>> {
        let resource = arguments::text("name", resource)?;
        let locks = self.locks()?;
        let holder = waiting::wait(py, |driver| async move { locks.inspect_by(&resource, &driver).await })?;
        Ok(holder.map(holder_fields))
    }

    fn inspect_start(&self, py: Python<'_>, queue: &Queue, resource: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let resource = arguments::text("name", resource)?;
        let locks = self.locks()?;
        queue.start(py, |driver| async move { Ok(Outcome::Holder(locks.inspect_by(&resource, &driver).await?)) })
    }

    fn list(
        &self,
        py: Python<'_>,
        pattern: &Bound<'_, PyAny>,
        limit: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<HolderFields>> {
        let (pattern, limit) = (arguments::text("pattern", pattern)?, arguments::count("limit", limit)?);
        let locks = self.locks()?;
        let holders = waiting::wait(py, |driver| async move { locks.list_by(&pattern, limit, &driver).await })?;
        Ok(holders.into_iter().map(holder_fields).collect())
    }

    fn list_start(
        &self,
        py: Python<'_>,
        queue: &Queue,
        pattern: &Bound<'_, PyAny>,
        limit: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let (pattern, limit) = (arguments::text("pattern", pattern)?, arguments::count("limit", limit)?);
        let locks = self.locks()?;
        queue.start(py, |driver| async move { Ok(Outcome::Holders(locks.list_by(&pattern, limit, &driver).await?)) })
    }

    fn break_lock(
        &self,
        py: Python<'_>,
        resource: &Bound<'_, PyAny>,
        fencing_token: &Bound<'_, PyAny>,
        owner: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let (resource, seen) = (arguments::text("name", resource)?, seen(fencing_token, owner)?);
        let locks = self.locks()?;
        waiting::wait(py, |driver| async move { locks.break_lock_by(&resource, seen, &driver).await })
    }

    fn break_lock_start(
        &self,
        py: Python<'_>,
        queue: &Queue,
        resource: &Bound<'_, PyAny>,
        fencing_token: &Bound<'_, PyAny>,
        owner: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let (resource, seen) = (arguments::text("name", resource)?, seen(fencing_token, owner)?);
        let locks = self.locks()?;
        queue.start(
            py,
            |driver| async move { Ok(Outcome::Broken(locks.break_lock_by(&resource, seen, &driver).await?)) },
        )
    }

    fn metrics(&self, py: Python<'_>) -> PyResult<Vec<MetricFields>> {
        let locks = self.locks()?;
        let metrics = boundary::guard(|| locks.metrics())?.map_err(to_python)?;
        metrics.metrics.into_iter().map(|metric| metric_fields(py, metric)).collect()
    }

    fn metrics_text(&self) -> PyResult<String> {
        let locks = self.locks()?;
        boundary::guard(|| locks.metrics().map(|metrics| metrics.to_prometheus()))?.map_err(to_python)
    }

    fn events(&self) -> PyResult<Events> {
        let locks = self.locks()?;
        boundary::guard(|| locks.events())?.map(Events::new).map_err(to_python)
    }

    fn waiting(&self, resource: &Bound<'_, PyAny>) -> PyResult<usize> {
        let resource = arguments::text("name", resource)?;
        let locks = self.locks()?;
        boundary::guard(|| locks.waiting(&resource))?.map_err(to_python)
    }

    /// Guarantee, fencing, across processes, across hosts, shared, semaphore, several, inspection, listing, breaking, fair.
    fn capabilities(&self) -> Capabilities {
        let can = self.made.load().locks.capabilities();
        let guarantee = match can.guarantee {
            Guarantee::BestEffort => "best_effort",
            Guarantee::Lease => "lease",
            Guarantee::Fenced => "fenced",
        };
        (
            guarantee,
            can.fencing,
            can.across_processes,
            can.across_hosts,
            can.shared,
            can.semaphore,
            can.several,
            can.inspection,
            can.listing,
            can.breaking,
            can.fair,
        )
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let locks = self.locks()?;
        waiting::wait(py, |_| async move {
            locks.close().await;
            Ok(())
        })
    }

    fn close_start(&self, py: Python<'_>, queue: &Queue) -> PyResult<Py<PyAny>> {
        let locks = self.locks()?;
        queue.start(py, |_| async move {
            locks.close().await;
            Ok(Outcome::Nothing)
        })
    }
}

/// Whose lock is meant: exactly one of the two is given.
fn seen(fencing_token: &Bound<'_, PyAny>, owner: &Bound<'_, PyAny>) -> PyResult<Seen> {
    match (fencing_token.is_none(), owner.is_none()) {
        (false, true) => {
            let token = arguments::count("fencing_token", fencing_token)?;
            Ok(Seen::FencingToken(u64::try_from(token).unwrap_or(0)))
        }
        (true, false) => Ok(Seen::Owner(arguments::text("owner", owner)?)),
        _ => Err(PyTypeError::new_err("give either fencing_token or owner")),
    }
}
