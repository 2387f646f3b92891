"""Metrics for `prometheus_client`.

    import polylock, polylock.prometheus
    from prometheus_client import REGISTRY, start_http_server

    locks = polylock.connect("redis://localhost:6379")
    REGISTRY.register(polylock.prometheus.Collector(locks))
    start_http_server(9100)

Needs the package `prometheus-client`; `pip install polylock[prometheus]` brings it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector as _Collector

from ._metrics import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric as Family

    from ._base import ManagerBase
    from ._metrics import Metric

__all__ = ["Collector"]


class Collector(_Collector):
    """Gives the metrics of one manager, or of several by name, to a registry.

    Several managers are told apart by the label ``manager``: ``Collector(orders=locks, mail=others)``. Both blocking
    and asyncio managers will do. A manager that was inherited from the parent of a fork gives nothing.
    """

    def __init__(self, locks: ManagerBase[Any] | None = None, **named: ManagerBase[Any]) -> None:
        if (locks is None) == (not named):
            raise TypeError("give one manager, or several by name")
        self._managers: list[tuple[dict[str, str], ManagerBase[Any]]] = (
            [({}, locks)] if locks is not None else [({"manager": name}, each) for name, each in named.items()]
        )

    def describe(self) -> Iterable[Family]:
        """Nothing, so that a registry does not compare names."""
        return []

    def collect(self) -> Iterable[Family]:
        """One family for each metric, over all managers."""
        from . import Forked  # noqa: PLC0415 - polylock may be importing this

        families: dict[str, Family] = {}
        for labels, locks in self._managers:
            try:
                metrics = locks.metrics()
            except Forked:
                continue
            for metric in metrics:
                family = families.get(metric.name)
                if family is None:
                    family = families[metric.name] = _family(metric)
                _add(family, metric, labels)
        return families.values()


def _family(metric: Metric) -> Family:
    name = metric.name.replace(".", "_")
    if metric.unit == "s":
        name = f"{name[: -len('_min')]}_seconds_min" if name.endswith("_min") else f"{name}_seconds"
    make = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    family: Family = make[metric.kind](name, metric.help)
    return family


def _add(family: Family, metric: Metric, more: dict[str, str]) -> None:
    for point in metric.points:
        labels = point.labels | more
        if not isinstance(point.value, Histogram):
            ending = "_total" if metric.kind == "counter" else ""
            family.add_sample(family.name + ending, labels, point.value)
            continue
        so_far = 0
        for index, count in enumerate(point.value.counts):
            so_far += count
            bounds = point.value.bounds
            bound = f"{bounds[index]:g}" if index < len(bounds) else "+Inf"
            family.add_sample(f"{family.name}_bucket", labels | {"le": bound}, so_far)
        family.add_sample(f"{family.name}_count", labels, point.value.number)
        family.add_sample(f"{family.name}_sum", labels, point.value.sum)
