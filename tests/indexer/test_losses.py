"""Losses of a triple's own score."""

import pytest
import torch

from kgtrace_indexer.losses import LOSSES, loss_by_name
from kgtrace_store.errors import UnsupportedModel

SCORES = torch.tensor([-200.0, -30.0, -2.5, 0.0, 1e-3, 4.0, 30.0, 80.0])


@pytest.mark.parametrize("name", LOSSES)
def test_the_slope_is_the_derivative(name: str) -> None:
    """What is multiplied into every gradient is autograd's derivative of the value, and never NaN."""
    score = SCORES.clone().requires_grad_()
    value, slope = loss_by_name(name)(score)
    torch.testing.assert_close(slope, torch.autograd.grad(value.sum(), score)[0])


def test_removal_is_the_difference_of_two_labels() -> None:
    """Taking a label away turns binary cross-entropy against 1 into that against 0."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    with_label = bce(SCORES, torch.ones_like(SCORES), reduction="none")
    without = bce(SCORES, torch.zeros_like(SCORES), reduction="none")
    torch.testing.assert_close(loss_by_name("removal")(SCORES)[0], with_label - without)


def test_unknown_losses_are_refused_with_the_known() -> None:
    """A typo is answered with what there is."""
    with pytest.raises(UnsupportedModel, match="unknown loss 'hinge'; known: bce, removal"):
        loss_by_name("hinge")
