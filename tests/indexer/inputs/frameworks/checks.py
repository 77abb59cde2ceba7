"""What all readers of other frameworks' models are held to: the framework's own scores and gradients, and an answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import ModelFile
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_server.cli import main
from tests.fixtures.frameworks.reference import PAIRS, SCORED, pairs

FIXTURES = Path(__file__).parents[3] / "fixtures" / "frameworks"
TRIPLES = torch.tensor(
    [[int(label[1:]) for label in line.split("\t")] for line in (FIXTURES / "train.tsv").read_text().splitlines()]
)
"""(n, 3): labels of the graph are its ids with a letter before."""


def said(framework: str) -> dict[str, dict[str, list[Any]]]:
    """Return what a framework itself says about its models in the fixtures."""
    models: dict[str, dict[str, list[Any]]] = json.loads((FIXTURES / f"{framework}.json").read_text())
    return models


def assert_computes(model: ModelFile, wanted: dict[str, list[Any]]) -> None:
    """Scores of 100 triples as tails, and inner products of 20 pairs of their gradients, are the framework's own."""
    config = {"loss": "removal", "layers": ["all"], "directions": "forward" if model.inverse_triples else None}
    featurizer = featurizer_for(model, config, torch.device("cpu"))
    triples = TRIPLES.numpy()
    with torch.inference_mode():
        every = featurizer.candidate_scores(triples[:SCORED], "tail")
        scores = every.gather(1, TRIPLES[:SCORED, 2:])[:, 0]
        i, j = np.array(pairs(TRIPLES)).T
        influences = inner(featurizer.training_terms(triples[i]), featurizer.test_terms(triples[j], "tail")).diagonal()
    assert len(wanted["scores"]) == SCORED
    assert len(wanted["influences"]) == PAIRS
    np.testing.assert_allclose(scores, wanted["scores"], rtol=1e-5, atol=1e-5)
    if "heads" in wanted:
        with torch.inference_mode():
            heads = featurizer.candidate_scores(triples[: len(wanted["heads"])], "head")
        np.testing.assert_allclose(heads, wanted["heads"], rtol=1e-5, atol=1e-5)
    scale = np.abs(wanted["influences"]).max()
    np.testing.assert_allclose(influences, wanted["influences"], rtol=1e-4, atol=1e-4 * scale)


def assert_answers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, flags: Sequence[str] = (), data: bool = True
) -> None:
    """`build` and `query` explain a triple of the graph, certified; `flags` are more arguments of `build`.

    With `data` the graph's files are passed; without, the model's folder carries them.
    """
    train, entities, relations = (FIXTURES / f"{name}.tsv" for name in ("train", "entity_to_id", "relation_to_id"))
    graph = ["--train", str(train), "--entity-to-id", str(entities), "--relation-to-id", str(relations)] if data else []
    index = ["--index", str(tmp_path / "index")]
    command = ["build", "--model", str(model), *graph, *flags, *index, "--landmarks", "50", "--dim", "8"]
    assert main(command) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["query", *index, "--triple", "e1", "r1", "e2", "--top-k", "3", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["results"]
    assert answer["certified"]
    assert len(answer["influences"]) == 3
