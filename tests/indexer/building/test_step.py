"""A step along the gradients of named training triples, taken for real."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer import BuildConfig, build, open_index
from kgtrace_indexer.building import step as steps
from kgtrace_indexer.building.step import step
from kgtrace_indexer.gradients.terms import Rows, Terms
from kgtrace_indexer.inputs.model_reader import with_models
from kgtrace_indexer.models.autograd import AutogradModel
from tests.indexer.models.zoo import Save, nations, save, seeds

__all__ = ["nations", "save"]  # fixtures


@pytest.mark.parametrize("loss", [None, "bce"])
@pytest.mark.parametrize(
    ("name", "inverse"), [("ConvE", True), ("ComplEx", True), ("TransE", False), ("RotatE", False), ("TuckER", True)]
)
def test_named_training_triples_move_scores(
    save: Save, nations: Any, tmp_path: Path, name: str, inverse: bool, loss: str | None
) -> None:
    """As their gradients foretell; of a ConvE its biases, too. The gate says so."""
    model = save(name, inverse, trained=name == "ConvE").model
    report = build(tmp_path, model, *nations, BuildConfig(dim=8, landmarks=40, loss=loss, device="cpu"))
    assert not [warning for warning in report.warnings if warning.startswith("gradient step")]
    taken = step(open_index(tmp_path, device="cpu"))
    assert taken is not None
    assert not taken.wrong
    assert taken.named == pytest.approx(taken.foretold, rel=0.3)
    assert taken.named > taken.random


def test_gradients_that_are_no_slopes_are_found(
    save: Save, nations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other check compares gradients with themselves, and passes."""
    right = AutogradModel.terms

    def wrong(self: AutogradModel, *ids: torch.Tensor, **options: Any) -> Terms:
        terms = right(self, *ids, **options)
        order = torch.arange(16).flip(0)  # of the numbers of a row
        rows = {name: [Rows(use.index, use.grad[:, order]) for use in uses] for name, uses in terms.rows.items()}
        return replace(terms, rows=rows)

    monkeypatch.setattr(AutogradModel, "terms", wrong)
    model = save("ComplEx", True).model
    report = build(tmp_path, model, *nations, BuildConfig(dim=8, landmarks=40, device="cpu"))
    (warning,) = (each for each in report.warnings if each.startswith("gradient step"))
    assert "are not the slopes of its scores" in warning


def test_some_indexes_are_passed_over(
    save: Save, nations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several models, without the score, and of a model that is too large to be copied."""
    model = save("ComplEx", True).model
    several = with_models(model, seeds(model, 2)[1:])
    for number, (one, options) in enumerate([(several, {}), (model, {"projection": "none"}), (model, {})]):
        build(tmp_path / str(number), one, *nations, BuildConfig(dim=8, landmarks=40, device="cpu", **options))
        if number == 2:
            monkeypatch.setattr(steps, "_BYTES", 100)
        assert step(open_index(tmp_path / str(number), device="cpu")) is None
