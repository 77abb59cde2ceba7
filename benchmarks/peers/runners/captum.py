"""Captum: TracInCPFast, and TracInCPFastRandProj with its Annoy index.

Tuned: whole batches from the data loader, and a checkpoint "loader" that leaves the weights, already loaded, alone.
"""

import warnings
from time import perf_counter

import numpy as np
import torch
from captum.influence import TracInCPFast, TracInCPFastRandProj
from captum.influence._utils.nearest_neighbors import AnnoyNearestNeighbors
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.protocol import Batches, Request, Samples, Scan, Stored, run

warnings.filterwarnings("ignore", category=UserWarning, module="captum")


def loader(samples: Samples, batch_size: int) -> DataLoader:
    """Return batches as Captum takes them."""
    return DataLoader(Batches(samples, batch_size), batch_size=None)


def keep_weights(model: torch.nn.Module, checkpoint: str) -> float:
    """Return the learning rate; the weights are those of the one checkpoint already."""
    return 1.0


class Summed:
    """The loss of a batch, summed."""

    reduction = "sum"

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def __call__(self, output: Tensor, tail: Tensor) -> Tensor:
        """Return Σℓ."""
        return self.layer.losses(output, tail).sum()


class Fast(Scan):
    """``TracInCPFast``: exact, and nothing is stored."""

    package = "captum"

    def scan(self, test: int, count: int, batch_size: int) -> Tensor:
        """Ask for all influences."""
        layer, samples = self.problem.layer, self.problem.train.first(count)
        method = TracInCPFast(
            layer, layer.fc, loader(samples, batch_size), ["trained"], keep_weights, Summed(layer)
        )  # fmt: skip
        return method.influence(self.problem.test[:test]).detach()


class Sized(AnnoyNearestNeighbors):
    """Captum's default index, which remembers when its search began."""

    def get_nearest_neighbors(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Search."""
        self.begun = perf_counter()
        return super().get_nearest_neighbors(query, k)


class RandomProjection(Stored):
    """``TracInCPFastRandProj``: vectors in memory, searched by Annoy."""

    package = "captum"

    def build(self, count: int, batch_size: int) -> None:
        """Embed in the constructor, as Captum does."""
        layer = self.problem.layer
        self.neighbours = Sized(num_trees=self.request.options["trees"])
        self.method = TracInCPFastRandProj(
            layer, layer.fc, loader(self.problem.train.first(count), batch_size), ["trained"], keep_weights,
            Summed(layer), projection_dim=self.request.options["dim"], nearest_neighbors=self.neighbours, seed=0,
        )  # fmt: skip

    def bytes(self) -> int:
        """Return the size of the Annoy index, which holds the vectors."""
        path = self.request.folder / "annoy.index"
        self.neighbours.knn_index.save(str(path))
        return path.stat().st_size

    def search(self, start: int, count: int, top_k: int) -> tuple[np.ndarray, float]:
        """Ask for the proponents."""
        found = self.method.influence(self.problem.test[start : start + count], k=top_k)
        return found.indices.numpy(), perf_counter() - self.neighbours.begun


def choose(request: Request) -> Fast | RandomProjection:
    """Return the method asked for."""
    return {"fast": Fast, "random projection": RandomProjection}[request.options["method"]](request)


if __name__ == "__main__":
    run(choose)
