"""kgtrace itself, from triples to an index on disk, through its public interface."""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.peers.problem import table_of
from benchmarks.peers.protocol import Request, Stored, folder_bytes, run
from kgtrace_indexer import BuildConfig, build, open_attributor, read_model, read_training_folder

EXACT = "exact.npy"
"""(q, n) float32: the exact influences of all n training triples, which everybody's answers are compared with."""


class Index(Stored):
    """``kgtrace build`` and ``kgtrace query``: reads the model and the triples, not the activations."""

    package = "kgtrace"

    def load(self) -> None:
        """Read what the command line reads."""
        folder = self.request.model
        self.model, self.table = read_model(folder), table_of(self.request.problem)
        self.vocabulary, _ = read_training_folder(folder / "training_triples")
        self.test = np.load(self.request.problem / "test.npy")
        self.root = self.request.folder / "index"

    def build(self, count: int, batch_size: int) -> None:
        """Build an index of all triples of the problem; its batch size is its own affair."""
        config = BuildConfig(
            layers=tuple(self.request.options["layers"]), loss=self.request.options["loss"], directions="forward"
        )
        build(self.root, self.model, self.vocabulary, self.table, config)
        self.attributor = open_attributor(self.root)

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
        """Say how many of the last answers were certified, and write the exact influences, if they could all be."""
        certified = float(np.mean(self.certified))
        if "max_candidates" in self.request.options:
            return {"certified": certified}
        queries, count = self.test[: self.request.compared], len(self.attributor)
        exact = np.zeros((len(queries), count), np.float32)
        begun = perf_counter()
        answers = self.attributor.query(queries, top_k=count, exact=True).attributions
        seconds = perf_counter() - begun
        for row, attribution in zip(exact, answers, strict=True):
            row[attribution.train_index] = attribution.influence
        np.save(Path(self.request.problem) / f"{self.request.task}_{EXACT}", exact)
        return {"certified": certified, "exact_seconds": seconds / len(queries)}


def choose(request: Request) -> Index:
    """There is one method."""
    return Index(request)


if __name__ == "__main__":
    run(choose)
