"""The layers as problems that any library can read: inputs, rest of the network, training and test triples.

Peers that know only linear layers get the layer's *inputs*, computed once for each distinct (h, r) by PyKEEN's own
modules. That forward pass is timed and reported apart: peers do not pay for it, kgtrace does.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kgtrace_indexer import TripleTable, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples

FACTS = "facts.json"
BLOCK = 1024


@dataclass(frozen=True)
class Size:
    """Which triples, and how many."""

    model: str
    """Folder of a PyKEEN ConvE."""
    dataset: str
    train: int
    """Training triples drawn, without replacement; more than there are means all."""
    test: int
    """Test triples drawn."""
    seed: int = 0


def make_problem(folder: Path, size: Size, shared: Path) -> dict[str, Any]:
    """Write the problem unless it is there, and return its facts."""
    facts = folder / FACTS
    if facts.exists() and json.loads(facts.read_text())["size"] == asdict(size):
        found: dict[str, Any] = json.loads(facts.read_text())
        return found
    folder.mkdir(parents=True, exist_ok=True)
    model_folder = shared / "models" / size.model
    vocabulary, table = read_training_folder(model_folder / "training_triples")
    test = read_triples(shared / "data" / size.dataset / "test.txt", vocabulary, skip_unknown=True).ids
    chosen = {"train": draw(table.ids, size.train, size.seed), "test": draw(test, size.test, size.seed + 1)}
    model = torch.load(model_folder / "trained_model.pkl", weights_only=False, map_location="cpu").eval()
    found = {"size": asdict(size), **write_problem(folder, model, chosen["train"], chosen["test"])}
    facts.write_text(json.dumps(found, indent=2) + "\n")
    return found


def draw(triples: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return so many rows in random order, int64."""
    return np.random.default_rng(seed).permutation(triples.astype(np.int64))[:count]


def write_problem(folder: Path, model: Any, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Write both layers of a PyKEEN ConvE with inverse triples, as seen by triples (n, 3) and (q, 3)."""
    pairs, group = np.unique(np.concatenate([train, test])[:, :2], axis=0, return_inverse=True)
    for name, triples, part in zip(("train", "test"), (train, test), np.split(group, [len(train)]), strict=True):
        np.save(folder / f"{name}.npy", triples)
        np.save(folder / f"{name}_group.npy", part.astype(np.int64))
        np.save(folder / f"{name}_tail.npy", triples[:, 2])
    entities, bias = (representation._embeddings.weight.detach() for representation in model.entity_representations)
    linear, norm = model.interaction.hr1d[0], model.interaction.hr1d[2]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.save(
        {
            "weight": torch.cat([linear.weight, linear.bias[:, None]], 1).detach(),
            "scale": scale.detach(), "shift": (norm.bias - norm.running_mean * scale).detach(),
            "entities": entities.clone(), "bias": bias[:, 0].clone(),
        },
        folder / "linear.pt",
    )  # fmt: skip
    torch.save({"weight": torch.cat([entities, bias], 1)}, folder / "output.pt")
    widths = {"linear": linear.in_features + 1, "output": entities.shape[1] + 1}
    files = {
        task: np.lib.format.open_memmap(folder / f"{task}_inputs.npy", "w+", np.float32, (len(pairs), width))
        for task, width in widths.items()
    }
    seconds = {"linear": 0.0, "output": 0.0}
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        batch = torch.from_numpy(np.stack([block[:, 0], 2 * block[:, 1], np.zeros(len(block), np.int64)], 1))
        for task, module in (("linear", model.interaction.hr2d), ("output", model.interaction.hr1d)):
            begun = time.perf_counter()
            inputs = output_of(model, module, batch)
            seconds[task] += time.perf_counter() - begun
            files[task][start : start + BLOCK] = torch.cat([inputs, torch.ones(len(block), 1)], 1).numpy()
    return {"train": len(train), "test": len(test), "pairs": len(pairs), "forward_seconds": seconds}


def output_of(model: Any, module: nn.Module, batch: Tensor) -> Tensor:
    """Return what a module puts out while the model scores triples (b, 3), flattened to (b, o)."""
    with capturing(module) as seen, torch.inference_mode():
        model.score_hrt(batch)
    return seen[0].flatten(1)


@contextmanager
def capturing(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect a module's outputs."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def table_of(problem: Path) -> TripleTable:
    """Return a problem's training triples, numbered from 0."""
    ids = np.load(problem / "train.npy")
    return TripleTable(ids.astype(np.int32), np.arange(len(ids)), 0)
