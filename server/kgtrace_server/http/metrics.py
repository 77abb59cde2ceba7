"""The metrics of the service, for Prometheus. Each application has a registry of its own."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kgtrace_server.http.logs import Line
    from kgtrace_server.http.worker import Batch, Worker
    from kgtrace_server.schema.answers import Influences
    from kgtrace_server.schema.operation import IndexInfo

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
        self._registry = registry = CollectorRegistry()
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
        self._depth = Gauge("kgtrace_queue_depth", "Requests waiting to be computed.", registry=registry)
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
        ProcessCollector(registry=registry)

    def watch(
        self,
        worker: "Worker",
        index: Callable[[], "IndexInfo | None"],
        reloads: Callable[[], tuple[int, int] | None],
    ) -> None:
        """Read the queue, the index and the reloads (good and bad) from these functions at each scrape."""
        self._depth.set_function(lambda: worker.waiting)
        self._registry.register(_LiveCollector(worker, index, reloads))

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


class _LiveCollector(Collector):
    """What changes by itself: computed when somebody looks."""

    def __init__(
        self,
        worker: "Worker",
        index: Callable[[], "IndexInfo | None"],
        reloads: Callable[[], tuple[int, int] | None],
    ) -> None:
        self._worker = worker
        self._index = index
        self._reloads = reloads

    def collect(self) -> "Iterable[Metric]":
        """Return the samples of this moment."""
        index = self._index()
        info = InfoMetricFamily("kgtrace_index", "The index that answers.")
        age = GaugeMetricFamily("kgtrace_index_age_seconds", "Since it was built.")
        triples = GaugeMetricFamily("kgtrace_index_triples", "Training triples in it.")
        if index is not None:
            info.add_metric([], _facts(index))
            age.add_metric([], index.age_seconds)
            triples.add_metric([], index.counts.get("triples", 0))
        restarts = CounterMetricFamily(
            "kgtrace_worker_restarts", "Times that the computing thread began anew after an internal error."
        )
        restarts.add_metric([], self._worker.restarts)
        yield from (info, age, triples, restarts)
        reloads = self._reloads()
        if reloads is not None:
            family = CounterMetricFamily("kgtrace_reloads", "Attempts to load a generation.", labels=["result"])
            for result, count in zip(("ok", "failed"), reloads, strict=True):
                family.add_metric([result], count)
            yield family


def _facts(index: "IndexInfo") -> dict[str, str]:
    facts = {"generation": index.generation, "model": index.model, "loss": index.loss, "built_at": index.built_at}
    return {name: value for name, value in facts.items() if value is not None}
