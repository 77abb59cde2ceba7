"""What a runner reads and writes. Needs torch and numpy alone: it runs in the environment of every peer.

A runner is started as ``python -m benchmarks.peers.runners.NAME REQUEST``, where REQUEST is a JSON file (see `Request`).
It leaves its figures in ``found.json`` and its arrays as ``.npy`` files in the folder of the request, and computes no
figure that compares it with others: the recall of everybody is computed in one place.
"""

import json
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOUND = "found.json"
IDS = "ids.npy"
"""(q, k) int64: the training triples that a runner names for each query, best first."""
INFLUENCES = "influences.npy"
"""(q, n) float32: all influences, from a runner whose method is exact."""
TASKS = ("linear", "output")


@dataclass(frozen=True)
class Request:
    """What one runner is asked to do."""

    problem: Path
    """Folder that `benchmarks.peers.problem` wrote."""
    folder: Path
    """Where the runner writes."""
    model: Path
    """Folder of the trained model, for those that do not start from activations."""
    task: str
    options: dict[str, Any]
    """The method's own."""
    tune: bool
    """Only try batch sizes, and report the rate of each."""
    batch_sizes: list[int]
    """To be tried; the first one is used where `tune` is false."""
    tuned_on: int
    """Training triples of a trial."""
    triples: int
    """Training triples that are really embedded, or scanned."""
    stored: int
    """How many stored vectors queries are timed against."""
    singles: int
    """Queries asked one by one."""
    batches: list[int]
    """Sizes of the batches of queries asked together."""
    compared: int
    """Queries whose answers are compared with the exact ones."""
    top_k: int

    @classmethod
    def read(cls, path: Path) -> "Request":
        """Read a request."""
        content = json.loads(path.read_text())
        return cls(**{**content, **{name: Path(content[name]) for name in ("problem", "folder", "model")}})


@dataclass
class Samples:
    """Inputs of the layer and tails, a row for each triple."""

    inputs: Tensor
    """(g, i) float32: input of the layer and a column of ones, for each distinct (h, r)."""
    group: Tensor
    """(m,) int64: whose input each triple has."""
    tail: Tensor
    """(m,) int64."""

    def __len__(self) -> int:
        """Return the number of triples."""
        return len(self.tail)

    def __getitem__(self, rows: slice | list[int]) -> tuple[Tensor, Tensor]:
        """Return inputs (b, i) and tails (b,)."""
        return self.inputs[self.group[rows]], self.tail[rows]

    def first(self, count: int) -> "Samples":
        """Return the first triples."""
        return Samples(self.inputs, self.group[:count], self.tail[:count])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Split into batches."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


class Batches(torch.utils.data.Dataset):
    """Whole batches as items, so that no time goes into collating samples."""

    def __init__(self, samples: Samples, size: int) -> None:
        self.samples, self.size = samples, size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.samples) // self.size)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Return one batch."""
        if i >= len(self):
            raise IndexError(i)
        return self.samples[i * self.size : (i + 1) * self.size]


class Layer(nn.Module):
    """The layer that is attributed, as the one linear module of a network, and the loss of what it puts out.

    The bias is the weight of an input that is always 1, so that all peers see the same single parameter.
    """

    def __init__(self, weight: Tensor, rest: dict[str, Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.fc.weight = nn.Parameter(weight.clone())
        for name, tensor in rest.items():
            self.register_buffer(name, tensor)
        self.linear = bool(rest)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output."""
        return self.fc(inputs)

    def losses(self, output: Tensor, tail: Tensor) -> Tensor:
        """Return ℓ for outputs (..., o) and tails (...).

        Of the inner linear layer it is softplus(−s) with s = relu(scale · output + shift) · e_t + b_t, batch norm being
        affine in evaluation mode; of the output layer it is the cross-entropy of the tail among all entities.
        """
        if self.linear:
            x = (output * self.scale + self.shift).relu()
            return F.softplus(-((x * self.entities[tail]).sum(-1) + self.bias[tail]))
        return output.logsumexp(-1) - output.gather(-1, tail[..., None])[..., 0]


@dataclass
class Problem:
    """A layer, the training triples that count, and the test triples that are explained."""

    layer: Layer
    train: Samples
    test: Samples

    @classmethod
    def read(cls, folder: Path, task: str, triples: int) -> "Problem":
        """Read the first training triples and all test triples, with those inputs alone that they need, into memory."""
        group = {name: np.load(folder / f"{name}_group.npy") for name in ("train", "test")}
        group["train"] = group["train"][:triples]
        needed, places = np.unique(np.concatenate([group["train"], group["test"]]), return_inverse=True)
        inputs = torch.from_numpy(np.load(folder / f"{task}_inputs.npy", mmap_mode="r")[needed])
        place = dict(zip(group, np.split(places, [len(group["train"])]), strict=True))
        train, test = (
            Samples(inputs, torch.from_numpy(place[name]), torch.from_numpy(np.load(folder / f"{name}_tail.npy")))
            for name in ("train", "test")
        )
        train.tail = train.tail[:triples]
        tensors = torch.load(folder / f"{task}.pt")
        return cls(Layer(tensors.pop("weight"), tensors).eval(), train, test)


class Method(ABC):
    """How a library attributes: `prepare` once, and then either `build` and `search`, or `scan`."""

    package: str
    """What it is called where it is installed from."""
    threads_of_torch = True

    def __init__(self, request: Request) -> None:
        """Store the request; read nothing."""
        self.request = request

    def load(self) -> None:
        """Read the problem: not timed, and not counted as memory."""
        self.problem = Problem.read(self.request.problem, self.request.task, self.request.triples)

    def prepare(self) -> None:  # noqa: B027 - many need nothing
        """Do what takes the same time for any number of triples; timed apart."""


class Stored(Method):
    """A method that keeps vectors."""

    @abstractmethod
    def build(self, count: int, batch_size: int) -> None:
        """Embed and store the first training triples, so that `search` can be called."""

    @abstractmethod
    def bytes(self) -> int:
        """Return the size of what was stored."""

    def grow(self, count: int) -> None:
        """Store copies of the vectors until there are `count`: for a method too slow to embed so many."""
        raise NotImplementedError(f"{type(self).__name__} embeds {self.request.triples}, asked to store {count}")

    @abstractmethod
    def search(self, start: int, count: int, top_k: int) -> tuple[np.ndarray, float]:
        """Return the best training triples (count, top_k) of test triples, and the seconds spent behind the gradient."""

    def facts(self) -> dict[str, Any]:
        """Return what else the method has to say about its answers."""
        return {}


class Scan(Method):
    """A method that keeps nothing and passes over the training triples for every query."""

    @abstractmethod
    def scan(self, test: int, count: int, batch_size: int) -> Tensor:
        """Return the influences (test, count) of the first training triples on the first test triples."""


@dataclass
class Clock:
    """Seconds of a block: ``with Clock() as clock: ...; clock.seconds``."""

    seconds: float = field(default=0.0)

    def __enter__(self) -> "Clock":
        """Start."""
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.start


def run(choose: Callable[[Request], Method]) -> None:
    """Read the request that the command line names, and measure what `choose` makes of it."""
    request = Request.read(Path(sys.argv[1]))
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    method = choose(request)
    method.load()
    found: dict[str, Any] = {
        "versions": {name: version(name) for name in ("torch", method.package)},
        "threads": torch.get_num_threads(),
    }
    if request.tune:
        found["tried"] = tune(method)
    elif isinstance(method, Stored):
        found |= measure_stored(method)
    elif isinstance(method, Scan):
        found |= measure_scan(method)
    (request.folder / FOUND).write_text(json.dumps(found))


def tune(method: Method) -> dict[int, float]:
    """Return triples a second at each batch size; one that fails, as for lack of memory, is left out."""
    request, rates = method.request, {}
    method.prepare()
    for size in request.batch_sizes:
        count = min(request.triples, max(size, request.tuned_on))
        with Clock() as clock:
            if isinstance(method, Stored):
                method.build(count, size)
            elif isinstance(method, Scan):
                method.scan(1, count, size)
        rates[size] = count / clock.seconds
    return rates


def measure_stored(method: Stored) -> dict[str, Any]:
    """Embed, store, ask."""
    request = method.request
    before = start_peak()
    with Clock() as setup:
        method.prepare()
    with Clock() as building:
        method.build(request.triples, request.batch_sizes[0])
    build = {
        "triples": request.triples, "seconds": building.seconds, "setup_seconds": setup.seconds,
        "batch_size": request.batch_sizes[0], "peak_bytes": status_bytes("VmHWM") - before,
        "bytes_a_triple": method.bytes() / request.triples,
    }  # fmt: skip
    ids, _ = method.search(0, request.compared, request.top_k)
    np.save(request.folder / IDS, ids)
    facts = method.facts()
    if request.stored > request.triples:
        method.grow(request.stored)
    method.search(0, 1, request.top_k)  # warm
    single, behind = [], []
    for i in range(request.singles):
        with Clock() as clock:
            _, seconds = method.search(i, 1, request.top_k)
        single.append(clock.seconds)
        behind.append(seconds)
    query: dict[str, Any] = {
        "stored": request.stored, "copies": request.stored > request.triples, "extrapolated": False,
        "single_seconds": float(np.median(single)), "search_seconds": float(np.median(behind)), "batch_seconds": {},
    }  # fmt: skip
    for size in request.batches:
        with Clock() as clock:
            method.search(0, size, request.top_k)
        query["batch_seconds"][str(size)] = clock.seconds / size
    return {"build": build, "query": query, **facts}


def measure_scan(method: Scan) -> dict[str, Any]:
    """Pass over the training triples for one query and for several."""
    request, size = method.request, method.request.batch_sizes[0]
    before = start_peak()
    with Clock() as setup:
        method.prepare()
    with Clock() as single:
        method.scan(1, request.triples, size)
    peak = status_bytes("VmHWM") - before
    scale = request.stored / request.triples
    query: dict[str, Any] = {
        "stored": request.stored, "copies": False, "extrapolated": scale > 1, "batch_seconds": {},
        "single_seconds": single.seconds * scale, "search_seconds": single.seconds * scale,
    }  # fmt: skip
    influences = torch.empty(0, request.triples)
    for count in request.batches:
        with Clock() as clock:
            influences = method.scan(count, request.triples, size)
        query["batch_seconds"][str(count)] = clock.seconds * scale / count
    if len(influences) < request.compared:
        influences = method.scan(request.compared, request.triples, size)
    compared = influences[: request.compared].float().numpy()
    np.save(request.folder / INFLUENCES, compared)
    np.save(request.folder / IDS, np.argsort(-compared, 1, kind="stable")[:, : request.top_k])
    build = {
        "triples": request.triples, "seconds": single.seconds, "setup_seconds": setup.seconds, "batch_size": size,
        "peak_bytes": peak, "bytes_a_triple": None,
    }  # fmt: skip
    return {"build": build, "query": query}


def start_peak() -> int:
    """Forget the largest resident size so far, and return the current one."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """Return a size that the kernel tells about this program: ``VmRSS`` is the resident one, ``VmHWM`` its peak."""
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def top(scores: Tensor, top_k: int) -> np.ndarray:
    """Return the columns with the largest scores of each row, best first: (q, k) int64 of (q, n)."""
    return scores.topk(min(top_k, scores.shape[1]), 1).indices.numpy()
