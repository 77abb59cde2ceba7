"""Every interaction computes on a GPU what it computes on the CPU: gradients, scores, log-probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from tests.indexer.models.zoo import CPU, ZOO, Save, sample_pairs, save

__all__ = ["save"]  # a fixture

LINEAR = ("ComplEx", "ConvE", "DistMult", "RESCAL", "TuckER")
LOSSES: dict[str, dict[str, object]] = {
    "bce-1vsall": {"label_smoothing": 0.1}, "bce-kvsall": {}, "ce-1vsall": {}, "nssa": {"negatives": 2},
}  # fmt: skip


def numbers(featurizer: Featurizer, *, outcomes: bool) -> dict[str, torch.Tensor]:
    """Return influences, norms and scores of some triples, on the CPU."""
    first, second = sample_pairs()
    with torch.inference_mode():
        training = featurizer.training_terms(first)
        tests = {"tail": featurizer.test_terms(second, "tail")}
        if outcomes:
            tests["log-probability"] = replace(featurizer, outcome="probability").test_terms(second, "tail")
        found = {name: inner(training, test) for name, test in tests.items()}
        found |= {"norms": squared_norms(training), "values": training.loss}
        found |= {side: featurizer.candidate_scores(second, side) for side in ("tail", "head")}  # type: ignore[arg-type]
        return {name: tensor.cpu() for name, tensor in found.items()}


def check(save: Save, name: str, inverse: bool, device: torch.device, **config: object) -> None:
    """Compare a model's numbers on a device with those on the CPU."""
    model = save(name, inverse).model
    options = {"loss": "removal", "layers": ["all"], "directions": None, **config}
    known = sample_pairs(64)[0]
    outcomes = options["loss"] == "removal"
    here, there = (numbers(featurizer_for(model, options, on, known), outcomes=outcomes) for on in (CPU, device))
    for what, wanted in here.items():
        largest = float(wanted.abs().max())
        np.testing.assert_allclose(there[what], wanted, rtol=1e-4, atol=1e-4 * largest, err_msg=what)


@pytest.mark.parametrize("name", ZOO)
def test_an_interaction(save: Save, name: str, device: torch.device) -> None:
    """With inverse triples and without in turn."""
    check(save, name, bool(sorted(ZOO).index(name) % 2), device)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LINEAR)
def test_a_loss(save: Save, name: str, loss: str, device: torch.device) -> None:
    """Of all tails, and with negatives."""
    check(save, name, True, device, loss=loss, **LOSSES[loss])
