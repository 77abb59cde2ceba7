"""kgtrace itself, from triples to an index on disk, and without an index, through its public interface."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.problem import table_of
from benchmarks.peers.protocol import Method, Request, Scan, Stored, folder_bytes, run
from kgtrace_indexer import BuildConfig, build, open_index, read_model, read_training_folder


class Ours(Method):
    """Reads the model and the triples, not the activations."""

    package = "kgtrace"

    def load(self) -> None:
        """Read what the command line reads."""
        folder = self.request.model
        self.model, self.table = read_model(folder), table_of(self.request.problem)
        self.vocabulary, _ = read_training_folder(folder / "training_triples")
        self.test = np.load(self.request.problem / "test.npy")
        self.root = self.request.folder / "index"

    def open(self, **config: Any) -> None:
        """Build an index of all triples of the problem, and open it."""
        options = self.request.options
        whole = BuildConfig(
            layers=tuple(options["layers"]), loss=options["loss"], precondition="none", directions="forward", **config
        )
        build(self.root, self.model, self.vocabulary, self.table, whole)
        self.attributor = open_index(self.root)


class Index(Ours, Stored):
    """``kgtrace build`` and ``kgtrace query``."""

    def build(self, count: int, batch_size: int) -> None:
        """Build; the batch size is its own affair."""
        self.open()

    def bytes(self) -> int:
        """Return all that lies on disk, model and vocabulary included."""
        return folder_bytes(self.root)

    def search(self, start: int, count: int, top_k: int) -> tuple[np.ndarray, float]:
        """Ask the engine, as the service does."""
        answer = self.attributor.query(
            self.test[start : start + count], top_k=top_k, max_candidates=self.request.options.get("max_candidates")
        )
        self.certified = [attribution.certified for attribution in answer.attributions]
        ids = np.stack([attribution.train_index for attribution in answer.attributions])
        return ids, answer.seconds.search + answer.seconds.rerank

    def facts(self) -> dict[str, Any]:
        """Say how many of the last answers were certified."""
        return {"certified": float(np.mean(self.certified))}


class Exact(Ours, Scan):
    """``kgtrace query --exact``: every influence is computed, and nothing stored."""

    def prepare(self) -> None:
        """Take in the triples."""
        self.open(projection="none")

    def scan(self, test: int, count: int, batch_size: int) -> Tensor:
        """Compute all influences, as ``--exact`` does before it picks the largest."""
        order = self.attributor.training.train_index
        influences = torch.zeros(test, count)
        influences[:, torch.from_numpy(np.asarray(order))] = torch.from_numpy(
            self.attributor.exact_influences(self.test[:test], np.arange(count)).T
        )
        return influences


def choose(request: Request) -> Ours:
    """Return the method asked for."""
    return {"index": Index, "exact": Exact}[request.options["method"]](request)


if __name__ == "__main__":
    run(choose)
