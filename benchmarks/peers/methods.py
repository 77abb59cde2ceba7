"""Which rows there are, and how many triples each can afford."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    train: int
    """Training triples of the problem; queries are timed against as many stored vectors."""
    test: int
    singles: int
    """Queries asked one by one."""
    batches: tuple[int, ...]
    """Sizes of the batches asked together."""
    compared: int
    """Queries whose answers are compared with the exact ones."""


FULL = Scale(train=100_000, test=256, singles=12, batches=(64, 256), compared=32)
QUICK = Scale(train=3_000, test=32, singles=3, batches=(32,), compared=8)
TOP_K = 10


@dataclass(frozen=True)
class Row:
    """One way to attribute, by one library."""

    name: str
    title: str
    runner: str
    """Module in `benchmarks.peers.runners`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of one task alone."""
    environment: str | None = None
    """Name of the peer's environment; None: the project's own."""
    tasks: tuple[str, ...] = ("linear", "output")
    triples: int | None = None
    """Training triples embedded or scanned at full scale; None: all."""
    quick_triples: int | None = None
    """The same of a quick run; 0: the row is left out."""
    batch_sizes: tuple[int, ...] = (1,)
    """Tried on a few triples first; the fastest is reported."""
    tuned_on: int = 0
    batches: tuple[int, ...] | None = None
    """Batches of queries, where those of the scale take too long."""
    compared: int | None = None
    """Queries compared, where those of the scale take too long."""
    comparable: bool = True
    """Whether it attributes by the same parameters as the others."""
    exact: bool = False
    """Whether its influences must equal ours."""


OURS = {
    "linear": {"layers": ["interaction.hr1d.0"], "loss": "bce"},
    "output": {"layers": ["last:1"], "loss": "ce-1vsall"},
}
"""The same layers and losses by our own names."""
REFERENCE = "kgtrace-exact"
"""The row whose influences all others are compared with; the exact ones of other libraries confirm it."""
ROWS = (
    Row("kgtrace-exact", "**kgtrace**, `exact`: no index", "ours", {"method": "exact"}, by_task=OURS),
    Row("kgtrace", "**kgtrace**", "ours", {"method": "index"}, by_task=OURS),
    Row(
        "kgtrace-budget", "**kgtrace**, `max_candidates` 1,000", "ours", {"method": "index", "max_candidates": 1_000},
        by_task=OURS, quick_triples=0,
    ),
    Row(
        "loop", "plain loop, this layer", "loop", {"method": "layer"},
        triples=400, quick_triples=100, compared=4, batches=(), exact=True,
    ),
    Row(
        "loop-gaussian", "plain loop, Gaussian 256", "loop", {"method": "gaussian", "dim": 256},
        tasks=("linear",), triples=200, quick_triples=0, batches=(64,), compared=16,
    ),
    Row(
        "loop-all", "plain loop, all parameters (the guide)", "loop", {"method": "model", "parameters": "all"},
        triples=100, quick_triples=40, compared=1, batches=(), comparable=False,
    ),
    Row(
        "loop-last-2", "plain loop, \"last 2\" as the guide's code selects", "loop",
        {"method": "model", "parameters": "last 2"},
        triples=100, quick_triples=0, compared=1, batches=(), comparable=False,
    ),
    Row(
        "captum-fast", "Captum TracInCPFast", "captum", {"method": "fast"}, environment="captum",
        triples=20_000, quick_triples=1_000, batch_sizes=(64, 256, 1024), tuned_on=2_048, exact=True,
    ),
    Row(
        "captum-projected", "Captum TracInCPFastRandProj 256", "captum",
        {"method": "random projection", "dim": 256, "trees": 10}, environment="captum",
        batch_sizes=(64, 256, 1024), tuned_on=2_048,
    ),
    Row(
        "traker", "traker, Rademacher 256, inner products", "traker", {"dim": 256, "scores": "projected gradients"},
        environment="traker", triples=2_000, quick_triples=128, batch_sizes=(16, 32, 64), tuned_on=64,
    ),
    Row(
        "traker-trak", "traker, Rademacher 256, TRAK scores", "traker", {"dim": 256, "scores": "trak"},
        environment="traker", triples=2_000, quick_triples=0, batch_sizes=(32,),
    ),
    Row(
        "dattri-identity", "dattri TracIn, full gradients", "dattri",
        {"method": "tracin", "projection": "identity", "dim": 512}, environment="dattri",
        triples=1_000, quick_triples=128, batch_sizes=(16, 32, 64), tuned_on=64, batches=(64,), compared=16, exact=True,
    ),
    Row(
        "dattri-normal", "dattri TracIn, normal 256", "dattri",
        {"method": "tracin", "projection": "normal", "dim": 256}, environment="dattri",
        triples=512, quick_triples=0, batch_sizes=(64, 128, 256), tuned_on=64, batches=(), compared=16,
    ),
    Row(
        "dattri-logra", "dattri LoGra 256", "dattri", {"method": "logra", "dim": 256},
        environment="dattri", batch_sizes=(64, 256, 1024), tuned_on=2_048,
    ),
    Row(
        "bergson", "bergson, default", "bergson", {"dim": 256, "tuned": False}, environment="bergson",
        triples=10_000, quick_triples=1_000, batch_sizes=(32,),
    ),
    Row(
        "bergson-tuned", "bergson, tuned", "bergson", {"dim": 256, "tuned": True}, environment="bergson",
        batch_sizes=(64, 256, 1024), tuned_on=2_048,
    ),
)  # fmt: skip
