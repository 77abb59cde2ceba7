"""Ranks of tails and heads, against PyKEEN's evaluator: where scores tie, with and without inverse relations."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, TripleTable, build, open_index, read_model
from kgtrace_store import Vocabulary
from tests.indexer.models.zoo import Save, factory, nations, save

__all__ = ["nations", "save"]  # fixtures


def _rough(entities: torch.Tensor) -> torch.Tensor:
    """Make entities of the same three rows, so that many scores are equal."""
    return entities[torch.arange(len(entities)) % 3]


def _collapsed(entities: torch.Tensor) -> torch.Tensor:
    return entities[:1].expand_as(entities)


def _realistic(original: Any, triples: np.ndarray) -> dict[str, list[float]]:
    """Return the rank by PyKEEN's evaluator of each triple's tail and head, filtered by the training triples."""
    from pykeen.evaluation import RankBasedEvaluator

    found: dict[str, list[float]] = {"tail": [], "head": []}
    for triple in torch.as_tensor(triples).split(1):
        evaluator = RankBasedEvaluator(clear_on_finalize=False)
        evaluator.evaluate(
            original,
            mapped_triples=triple,
            additional_filter_triples=factory(False).mapped_triples,
            batch_size=1,
            use_tqdm=False,
        )
        for direction, ranks in found.items():
            (of,) = evaluator.ranks[direction, "realistic"]
            ranks.append(float(of[0]))
    return found


@pytest.mark.parametrize(
    ("name", "inverse", "change"),
    [
        ("ConvE", False, _rough),
        ("ConvE", True, _rough),
        ("DistMult", False, _collapsed),
        ("ERMLP", False, _rough),
        ("RotatE", True, _collapsed),
        ("TransE", False, _rough),
    ],
)
def test_ranks_are_realistic(
    save: Save,
    nations: tuple[Vocabulary, TripleTable],
    name: str,
    inverse: bool,
    change: Callable[[torch.Tensor], torch.Tensor],
    tmp_path: Path,
) -> None:
    """Explanations and predictions have the mean of the most and the least favourable filtered rank, as PyKEEN does."""
    original = copy.deepcopy(save(name, inverse).original)
    with torch.no_grad():
        for representation in original.entity_representations:
            weight = representation._embeddings.weight
            weight.copy_(change(weight.clone()))
    torch.save(original, tmp_path / "trained_model.pkl")
    vocabulary, _ = nations
    every = factory(False).mapped_triples.numpy()
    table = TripleTable(every, np.arange(len(every)), 0)
    build(tmp_path / "index", read_model(tmp_path), vocabulary, table, BuildConfig(projection="none"))
    attributor = open_index(tmp_path / "index", device="cpu")
    test = np.concatenate([every[:2], np.random.default_rng(0).integers(0, [14, 55, 14], (4, 3))])
    wanted = _realistic(original, test)
    for direction in ("tail", "head"):
        found = attributor.query(test, top_k=1, direction=direction).attributions
        assert [one.rank for one in found] == wanted[direction]
        column = 2 if direction == "tail" else 0
        for triple, rank, listed in zip(
            test, wanted[direction], attributor.complete(test, top_k=14, direction=direction), strict=True
        ):
            assert listed.ranks[listed.entities == triple[column]] == rank
