"""The metrics of the service, for Prometheus. Each application has a registry of its own.

Several processes behind one socket count in files of a folder, which `SHARED` names before prometheus_client is
imported; the process that is scraped adds them up.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from kgtrace_server.http.logs import Line
    from kgtrace_server.http.worker import Batch
    from kgtrace_server.schema.answers import Influences
    from kgtrace_server.schema.operation import IndexInfo, Reload

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client's: the folder in which processes count together."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CANDIDATES = (10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)

_REASONS = {
    401: "key",
    403: "role",
    413: "body",
    429: "queue",
    499: "client_gone",
    503: "not_ready",
    504: "deadline",
}
"""Why a request of such a status got no answer."""


class Metrics:
    """The numbers, and who may add to them. Safe to call from any thread."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry  # of what is shown
        if folder := os.environ.get(SHARED):
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry, folder)
            self._registry.register(_Processes(Path(folder)))
        else:
            ProcessCollector(registry=registry)
        self._latency = Histogram(
            "kgtrace_request_seconds",
            "From a request's head to the end of its answer.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rejections = Counter(
            "kgtrace_rejections", "Requests turned away, by reason.", ["reason"], registry=registry
        )
        for reason in _REASONS.values():
            self._rejections.labels(reason)
        self._wait = Histogram("kgtrace_queue_seconds", "Waiting to be computed.", buckets=_SECONDS, registry=registry)
        self._depth = Gauge(
            "kgtrace_queue_depth", "Requests waiting to be computed.", registry=registry, multiprocess_mode="livesum"
        )
        self._batch_requests = Histogram(
            "kgtrace_batch_requests", "Requests computed together.", buckets=_COUNTS, registry=registry
        )
        self._batch_triples = Histogram(
            "kgtrace_batch_triples", "Test triples computed together.", buckets=_COUNTS, registry=registry
        )
        self._stages = Histogram(
            "kgtrace_stage_seconds", "Computing a batch, by stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._candidates = Histogram(
            "kgtrace_candidates",
            "Training triples looked at beyond the index, for each test triple.",
            buckets=_CANDIDATES,
            registry=registry,
        )
        self._explained = Counter(
            "kgtrace_explanations",
            "Test triples explained; those certified are the share proved exact.",
            ["certified"],
            registry=registry,
        )
        for certified in ("true", "false"):
            self._explained.labels(certified)
        self._restarts = Counter(
            "kgtrace_worker_restarts",
            "Times that the computing thread began anew after an internal error.",
            registry=registry,
        )
        self._reloads = Counter("kgtrace_reloads", "Attempts to load a generation.", ["result"], registry=registry)
        for result in ("ok", "failed"):
            self._reloads.labels(result)

    def watch(self, index: Callable[[], "IndexInfo | None"]) -> None:
        """Read the index from this function at each scrape."""
        self._registry.register(_Index(index))

    def request(self, line: "Line") -> None:
        """Count a request."""
        method = line.method if line.method in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        self._latency.labels(method, line.route, line.status).observe(line.seconds)
        if line.status in _REASONS:
            self._rejections.labels(_REASONS[line.status]).inc()

    def batch(self, batch: "Batch") -> None:
        """Count the tasks that were taken from the queue at once."""
        self._batch_requests.observe(len(batch.waited))
        self._batch_triples.observe(batch.size)
        for seconds in batch.waited:
            self._wait.observe(seconds)

    def queued(self, length: int) -> None:
        """Note the length of the queue."""
        self._depth.set(length)

    def restarted(self) -> None:
        """Count a fault of the computing thread."""
        self._restarts.inc()

    def reload(self, reload: "Reload") -> None:
        """Count an attempt to load a generation."""
        self._reloads.labels("ok" if reload.ok else "failed").inc()

    def answers(self, answers: "list[Influences]") -> None:
        """Count answers that were computed together."""
        if not answers:
            return
        for stage, seconds in asdict(answers[0].seconds).items():
            self._stages.labels(stage).observe(seconds)
        for answer in answers:
            for result in answer.results:
                self._candidates.observe(result.candidates)
                self._explained.labels("true" if result.certified else "false").inc()

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)


class _Index(Collector):
    """The index that answers; of several processes that of the one scraped, for all follow the same root."""

    def __init__(self, index: Callable[[], "IndexInfo | None"]) -> None:
        self._index = index

    def collect(self) -> Iterable[Metric]:
        """Return the samples of this moment."""
        index = self._index()
        info = InfoMetricFamily("kgtrace_index", "The index that answers.")
        age = GaugeMetricFamily("kgtrace_index_age_seconds", "Since it was built.")
        triples = GaugeMetricFamily("kgtrace_index_triples", "Training triples in it.")
        if index is not None:
            info.add_metric([], _facts(index))
            age.add_metric([], index.age_seconds)
            triples.add_metric([], index.counts.get("triples", 0))
        yield from (info, age, triples)


class _Processes(Collector):
    """What `ProcessCollector` says of one process, of all that count in a folder: sums, and the earliest start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Return the samples of this moment."""
        found: dict[str, Metric] = {}
        for file in sorted(self._folder.glob("gauge_livesum_*.db")):
            pid = int(file.stem.rpartition("_")[2])
            for family in _of_process(pid):
                known = found.setdefault(family.name, family)
                if known is not family:
                    together = min if family.name == "process_start_time_seconds" else sum
                    value = together((known.samples[0].value, family.samples[0].value))
                    known.samples = [known.samples[0]._replace(value=value)]
        return found.values()


def _of_process(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()


def _facts(index: "IndexInfo") -> dict[str, str]:
    facts = {"generation": index.generation, "model": index.model, "loss": index.loss, "built_at": index.built_at}
    return {name: value for name, value in facts.items() if value is not None}
