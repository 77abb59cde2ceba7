"""How many operations a GPU would run, and how often the host would wait, counted without one.

    python -m benchmarks.launches            # a minute on one core

A ConvE of UMLS is trained, indexed, and asked on a simulated GPU (`tests.simulated_gpu`). Writes the table in
``docs/speed.md``.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tests.simulated_gpu import SimulatedGpu, simulated_gpu

from benchmarks.pages import DOCS, replace
from kgtrace_indexer import BuildConfig, build, open_index, read_model, read_training_folder
from kgtrace_indexer.building.parts import stored
from kgtrace_indexer.index.codec import read_codec
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.names import Score
from kgtrace_indexer.threads import one_thread
from kgtrace_server.cli.demo import train_umls

SCORES: tuple[Score, Score] = ("preconditioned", "tracin")
BUILD, BATCHES, SCANNED = 8192, (1, 16, 64), 64


def main() -> None:
    """Count."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = ["| | operations | waits |", "|---|---|---|"]
        lines += [f"| {title} | {operations} | {waits} |" for title, operations, waits in counted(Path(folder))]
    print("\n".join(lines))
    replace(DOCS / "speed.md", "launches", "\n".join(lines) + "\n")


def counted(folder: Path) -> list[tuple[str, str, str]]:
    """Return what is counted, with operations and waits, by either score."""
    train_umls(folder / "model", epochs=4, embedding_dim=32)
    model = read_model(folder / "model")
    vocabulary, table = read_training_folder(folder / "model" / "training_triples")
    build(folder / "index", model, vocabulary, table, BuildConfig(device="cpu"))
    with simulated_gpu() as gpu, one_thread():
        there = open_index(folder / "index", device="cuda")
        configuration, arrays = there.manifest.configuration, there.files.arrays
        featurizer = featurizer_for(model, configuration, there.device, table.ids)
        codec = read_codec(configuration, arrays, there.device)
        batch = np.resize(np.arange(len(table.ids)), BUILD)
        operations, waits = of(gpu, lambda: stored(featurizer, codec, table, batch))
        found = [(f"a batch of a build, {BUILD:,} training triples, both scores", str(operations), str(waits))]
        triples = there.training.triples[:: len(there) // SCANNED].astype(np.int64)
        for title, count, exact in (
            *(
                (f"{count} test triple{'s' if count > 1 else ''}, default score; TracIn", count, False)
                for count in BATCHES
            ),
            (f"a full scan for {SCANNED}", SCANNED, True),
        ):
            both = [
                of(
                    gpu,
                    lambda score=score, count=count, exact=exact: there.query(
                        triples[:count], score=score, exact=exact
                    ),
                )
                for score in SCORES
            ]
            operations, waits = ("; ".join(map(str, column)) for column in zip(*both, strict=True))
            found.append((title, operations, waits))
    return found


def of(gpu: SimulatedGpu, function: Callable[[], object]) -> tuple[int, int]:
    """Return operations and waits of a call; one before it has made what is made once."""
    with torch.inference_mode():
        function()
        gpu.reset()
        function()
    return gpu.kernels.total(), gpu.waits.total()


if __name__ == "__main__":
    main()
