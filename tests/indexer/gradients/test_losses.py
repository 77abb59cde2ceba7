"""Losses as functions of scores, against PyKEEN's own and autograd's derivatives."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from kgtrace_indexer.gradients.losses import (
    CONTRAST,
    NAMES,
    ONE_TO_ALL,
    OWN_SCORE,
    Contrast,
    KnownTails,
    OneToAll,
    loss_by_name,
)
from kgtrace_indexer.gradients.negatives import corrupted
from kgtrace_server.cli import arguments
from kgtrace_store.errors import BadRequest, UnsupportedModel

CPU = torch.device("cpu")
SCORES = torch.tensor([-200.0, -30.0, -2.5, 0.0, 1e-3, 4.0, 30.0, 80.0])
NOTHING = KnownTails.of(np.empty((0, 3), np.int64), False, CPU)

by_name = partial(loss_by_name, entities=7, trained_with={}, known=lambda: NOTHING)


@pytest.mark.parametrize("name", OWN_SCORE)
def test_the_slope_is_the_derivative(name: str) -> None:
    """What is multiplied into every gradient is autograd's derivative of the value, and never NaN."""
    score = SCORES.clone().requires_grad_()
    value, slope = OWN_SCORE[name](score)
    torch.testing.assert_close(slope, torch.autograd.grad(value.sum(), score)[0])


def test_removal_is_the_difference_of_two_labels() -> None:
    """Taking a label away turns binary cross-entropy against 1 into that against 0."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    with_label = bce(SCORES, torch.ones_like(SCORES), reduction="none")
    without = bce(SCORES, torch.zeros_like(SCORES), reduction="none")
    torch.testing.assert_close(OWN_SCORE["removal"](SCORES)[0], with_label - without)


def _pykeen_contrast(name: str) -> torch.nn.Module:
    from pykeen import losses

    made: torch.nn.Module = {
        "margin": losses.MarginRankingLoss, "nssa": losses.NSSALoss, "softplus": losses.SoftplusLoss
    }[name]()  # fmt: skip
    return made


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("name", CONTRAST)
def test_losses_with_negatives_are_pykeens(name: str, negatives: int) -> None:
    """Values and slopes of the losses with negatives are those of PyKEEN's sLCWA training, one triple a batch."""
    scores = 6 * torch.randn(9, negatives + 1, generator=torch.Generator().manual_seed(0))
    scores[0] = 40.0 * torch.arange(negatives + 1) - 60
    scores.requires_grad_()
    wanted = torch.stack([_pykeen_contrast(name).process_slcwa_scores(s[None, :1], s[None, 1:]) for s in scores])
    loss = by_name(name, negatives=negatives)
    assert isinstance(loss, Contrast)
    value, slope = loss(scores.detach().flatten())
    torch.testing.assert_close(value.view(9, -1)[:, 0], wanted.detach())
    assert not value.view(9, -1)[:, 1:].any()
    torch.testing.assert_close(slope.view_as(scores), torch.autograd.grad(wanted.sum(), scores)[0])


def test_margin_and_temperature_are_the_models_own() -> None:
    """They are read from a loss of the same class, and are PyKEEN's defaults with another one."""
    scores = torch.tensor([0.5, 1.0, -1.0])
    trained = {"class": "NSSALoss", "margin": 3.0, "inverse_softmax_temperature": 2.0}
    from pykeen.losses import NSSALoss

    own = NSSALoss(margin=3.0, adversarial_temperature=2.0).process_slcwa_scores(scores[None, :1], scores[None, 1:])
    assert float(by_name("nssa", negatives=2, trained_with=trained)(scores)[0][0]) == pytest.approx(float(own))
    by_default = by_name("margin", negatives=2)(scores)[0][0]
    assert by_name("margin", negatives=2, trained_with=trained)(scores)[0][0] == by_default
    with pytest.raises(UnsupportedModel, match="NSSALoss has margin 'wide', which is no number"):
        by_name("nssa", trained_with={**trained, "margin": "wide"})


def _labels(known: dict[int, list[int]], group: Tensor, tail: Tensor, entities: int) -> Tensor:
    labels = torch.zeros(len(tail), entities)
    for i, (g, t) in enumerate(zip(group.tolist(), tail.tolist(), strict=True)):
        labels[i, [t, *known.get(g, [])]] = 1
    return labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", ONE_TO_ALL)
def test_losses_of_all_tails_are_pykeens(name: str, smoothing: float) -> None:
    """Values and slopes of the losses over all tails are those of PyKEEN's LCWA training, one (h, r) a batch."""
    from pykeen.losses import BCEWithLogitsLoss, CrossEntropyLoss

    triples = np.array([[0, 0, 1], [0, 0, 4], [2, 1, 3], [2, 1, 0], [2, 1, 6]])
    loss = by_name(name, label_smoothing=smoothing, known=lambda: KnownTails.of(triples, False, CPU))
    assert isinstance(loss, OneToAll)
    source, relation = torch.tensor([0, 2, 5]), torch.tensor([0, 1, 7])
    group, tail = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 4, 5, 3, 6, 2])
    scores = 3 * torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    known = {0: [1, 4], 1: [3, 0, 6]} if name == "bce-kvsall" else {}
    spread = scores[group].requires_grad_()
    oracle = CrossEntropyLoss() if name == "ce-1vsall" else BCEWithLogitsLoss()
    wanted = torch.stack(
        [
            oracle.process_lcwa_scores(s[None], y[None], label_smoothing=smoothing, num_entities=7)
            for s, y in zip(spread, _labels(known, group, tail, 7), strict=True)
        ]
    )
    value, slopes = loss(scores, source, relation, group, tail)
    torch.testing.assert_close(value, wanted.detach())
    derivative = torch.autograd.grad(wanted.sum(), spread)[0]
    torch.testing.assert_close(slopes.entries(torch.arange(7)), derivative, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(slopes.along(torch.eye(7)), derivative, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(slopes.inner(slopes), derivative @ derivative.T, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["bce-1vsall", "ce-1vsall"])
def test_what_a_saturated_score_leaves_is_not_rounded_off(name: str) -> None:
    """Where the own tail has nearly all probability, products of slopes keep their digits."""
    scores = torch.tensor([[12.0, -6.0, -7.0, -9.0, -6.0], [11.0, -5.0, -8.0, -7.0, -6.0]])
    group, tail = torch.tensor([0, 1]), torch.tensor([0, 0])
    found = by_name(name)(scores, group, group, group, tail)[1]
    exact = scores.double().requires_grad_()
    labels = torch.zeros_like(exact)
    labels[:, 0] = 1
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    loss = torch.nn.functional.cross_entropy(exact, labels, reduction="sum") if name == "ce-1vsall" else (
        bce(exact, labels, reduction="sum") / 5
    )  # fmt: skip
    slope = torch.autograd.grad(loss, exact)[0]
    torch.testing.assert_close(found.inner(found).double(), slope @ slope.T, rtol=1e-4, atol=0)
    assert float(slope.abs().max()) < 1e-2


def test_known_tails_include_inverse_directions() -> None:
    """A relation's inverse has the heads of its triples as tails, and pairs never seen have none."""
    known = KnownTails.of(np.array([[0, 0, 1], [2, 0, 1], [0, 1, 3]]), True, CPU)
    rows = known.labels(torch.tensor([0, 1, 0, 3, 9, 0]), torch.tensor([0, 1, 2, 3, 0, 50]), 10)
    assert [row.nonzero().flatten().tolist() for row in rows] == [[1], [0, 2], [3], [0], [], []]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hinge", {}, "unknown loss 'hinge'; known: bce, removal, bce-1vsall"),
        ("bce", {"label_smoothing": 0.1}, "label smoothing is for losses over all tails, .*; loss bce has none"),
        ("nssa", {"label_smoothing": 0.1}, "loss nssa has none"),
        ("ce-1vsall", {"label_smoothing": 1.0}, "label smoothing is 1.0, must be at least 0 and below 1"),
        ("ce-1vsall", {"label_smoothing": float("nan")}, "label smoothing is nan"),
        ("bce", {"negatives": 2}, "negatives are for losses that draw them, margin, .*; loss bce has none"),
        ("margin", {"negatives": 0}, "negatives is 0, must be at least 1"),
    ],
)
def test_wrong_losses_are_refused(name: str, options: dict, message: str) -> None:
    """A typo is answered with what there is, an option of another loss with whose it is."""
    with pytest.raises(BadRequest, match=message):
        by_name(name, **options)


def test_the_command_line_knows_every_loss() -> None:
    """The names that the command line writes out are those that there are."""
    assert arguments.LOSSES == NAMES


INSTANCES = np.stack([np.arange(3000) % 40, np.arange(3000) % 7, np.arange(3000) % 31], 1)


def test_negatives_follow_from_the_instance_alone() -> None:
    """An instance has the same negatives in any batch, the first of them whatever their number; seeds differ."""
    together = corrupted(INSTANCES, 3, 40, 0)
    assert (together == corrupted(INSTANCES[::-1], 3, 40, 0)[::-1]).all()
    assert (together[:, :2] == corrupted(INSTANCES, 1, 40, 0)).all()
    assert (together[:, 0] == INSTANCES).all()
    assert (together[:, 1:] != corrupted(INSTANCES, 3, 40, 1)[:, 1:]).any(2).mean() > 0.9


def test_any_seed_draws_negatives() -> None:
    """Seeds beyond 64 bits are taken modulo 2^64."""
    instances = np.array([[0, 1, 2]])
    found = corrupted(instances, 5, 100, seed=2**64 + 3)
    np.testing.assert_array_equal(found, corrupted(instances, 5, 100, seed=3))


def test_negatives_are_drawn_evenly() -> None:
    """One side of every negative differs from the instance, either with equal chance, and all others occur alike."""
    found = corrupted(INSTANCES, 4, 40, 5)
    differs = found[:, 1:] != INSTANCES[:, None]
    assert (differs.sum(2) == 1).all()
    assert not differs[:, :, 1].any()
    assert differs[:, :, 0].mean() == pytest.approx(0.5, abs=0.03)
    drawn = np.bincount(found[:, 1:, 2][differs[:, :, 2]], minlength=40)
    assert drawn.min() > 0.6 * drawn.mean()
    assert drawn.max() < 1.6 * drawn.mean()


def test_a_single_entity_has_no_negatives() -> None:
    """With nothing to draw from, the instance stays as it is."""
    assert (corrupted(np.zeros((2, 3), np.int64), 2, 1, 0) == 0).all()
