"""dattri: TracIn with full gradients or a normal projection, neither of which stores anything, and LoGra, which does.

LoGra's vectors are in memory: its store on disk wants memory pinned for CUDA.
"""

from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from dattri.algorithm.logra import LoGraAttributor
from dattri.algorithm.tracin import TracInAttributor
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.protocol import Layer, Request, Samples, Scan, Stored, run, top


class Whole(Dataset):
    """Samples that the data loader fetches a batch at a time."""

    def __init__(self, samples: Samples, named: bool = False) -> None:
        self.samples, self.named = samples, named

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitems__(self, rows: list[int]) -> Any:
        """Return a batch."""
        inputs, tail = self.samples[rows]
        return {"inputs": inputs, "tail": tail} if self.named else (inputs, tail)


def loader(samples: Samples, batch_size: int, named: bool = False) -> DataLoader:
    """Return a loader with the batch size and the sampler that dattri looks at."""
    return DataLoader(Whole(samples, named), batch_size=batch_size, collate_fn=lambda batch: batch)


class TracIn(Scan):
    """``TracInAttributor``: gradients of all training *and* test samples are computed anew at every call."""

    package = "dattri"

    def scan(self, test: int, count: int, batch_size: int) -> Tensor:
        """Ask for all influences."""
        layer = self.problem.layer

        def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
            inputs, tail = data
            return layer.losses(functional_call(layer, parameters, (inputs[None],)), tail[None]).sum()

        task = AttributionTask(loss_func=loss, model=layer, checkpoints=layer.state_dict())
        method = TracInAttributor(
            task=task, weight_list=torch.ones(1), normalized_grad=False, layer_name=["fc.weight"],
            projector_kwargs={"proj_type": self.request.options["projection"], "proj_dim": self.request.options["dim"]},
        )  # fmt: skip
        train = loader(self.problem.train.first(count), min(batch_size, count))
        asked = loader(self.problem.test.first(test), min(batch_size, test))
        return method.attribute(train, asked).T


class WithLoss(nn.Module):
    """The layer as a network that returns its loss, which is how dattri's hooks ask for test gradients."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor, tail: Tensor) -> SimpleNamespace:
        """Return Σℓ as ``loss``."""
        return SimpleNamespace(loss=self.layer.losses(self.layer(inputs), tail).sum())


class LoGra(Stored):
    """``LoGraAttributor`` without a Hessian: TracIn between Kronecker-projected gradients."""

    package = "dattri"

    def prepare(self) -> None:
        """Wrap the layer."""
        self.network = WithLoss(self.problem.layer)

    def build(self, count: int, batch_size: int) -> None:
        """Cache the projected gradients."""
        task = AttributionTask(
            loss_func=lambda network, batch, device: network(**batch).loss, model=self.network,
            checkpoints=self.network.state_dict(),
        )  # fmt: skip
        self.method = LoGraAttributor(
            task, layer_names=["layer.fc"], hessian="Identity", proj_dim=self.request.options["dim"],
            cache_dir=str(self.request.folder),
        )  # fmt: skip
        self.train = loader(self.problem.train.first(count), batch_size, named=True)
        self.method.cache(self.train)
        self.method.compute_ifvp()

    def bytes(self) -> int:
        """Return the size of what it holds in memory: gradients, and the copies of them that it searches."""
        kept = self.method.offload_manager
        return sum(t.nbytes for cache in (kept.cached_gradients, kept.cached_ifvp) for t in cache.values())

    def search(self, start: int, count: int, top_k: int) -> tuple[np.ndarray, float]:
        """Ask for all scores and take the best; dattri does not tell gradients from search."""
        test = self.problem.test
        asked = loader(
            Samples(test.inputs, test.group[start : start + count], test.tail[start : start + count]), count, named=True
        )
        begun = perf_counter()
        scores = self.method.attribute(self.train, asked)
        return top(scores.T, top_k), perf_counter() - begun


def choose(request: Request) -> TracIn | LoGra:
    """Return the method asked for."""
    return {"tracin": TracIn, "logra": LoGra}[request.options["method"]](request)


if __name__ == "__main__":
    run(choose)
