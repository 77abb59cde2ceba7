"""The gradient of a log-probability among all tails, against autograd of PyKEEN's own scores."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from kgtrace_indexer.gradients.losses import score_itself
from kgtrace_indexer.models import autograd
from kgtrace_indexer.models.checkpoints import Checkpoints, checkpoint_of, parameter_of
from kgtrace_indexer.models.log_probability import log_probability_terms
from kgtrace_indexer.models.protocol import scoring_model
from kgtrace_store.errors import BadRequest
from tests.indexer.models.zoo import CPU, ZOO, Save, Saved, save

__all__ = ["save"]  # a fixture

TRIPLES = np.array([[0, 1, 3], [5, 0, 5], [3, 1, 0], [5, 0, 2]])
"""Ids as tables have them; one is a loop, two share head and relation."""


def dense_rows(rows: dict[str, list], tables: dict[str, Tensor], which: int) -> dict[str, Tensor]:
    """Return the gradient of one loss term as matrices of the shapes of the tables."""
    found = {name: torch.zeros_like(table) for name, table in tables.items()}
    for name, uses in rows.items():
        for use in uses:
            width = found[parameter_of(name)].shape[1]
            found[parameter_of(name)][use.index[which]] += use.grad[which, :width]
    return found


def by_autograd(saved: Saved, triple: Sequence[int]) -> dict[str, Tensor]:
    """Return the gradient of −log p by all tables."""
    saved.original.zero_grad()
    head, relation, tail = triple
    every = torch.arange(saved.model.num_entities)
    ids = torch.stack([torch.full_like(every, head), torch.full_like(every, relation), every], 1)
    scores = saved.original.score_hrt(ids)[:, 0]
    (-scores.log_softmax(0)[tail]).backward()
    return {name: p.grad.clone() for name, p in saved.original.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_it_is_autograds_but_for_the_rows_of_other_tails(save: Save, name: str, inverse: bool) -> None:
    """With these rows added it is the whole gradient, of every model, however few tails are scored together."""
    saved = save(name, inverse)
    model = scoring_model(saved.model, CPU)
    selection = model.select(["all"])
    head, relation, tail = torch.from_numpy(TRIPLES).unbind(1)
    with torch.inference_mode():
        terms = log_probability_terms(model, head, relation, tail, selection)
        p = model.tail_scores(head, relation).softmax(1)
    assert not terms.dense
    assert not terms.spread
    tables = {n: t for n, t in saved.model.tensors.items() if any(parameter_of(table) == n for table in terms.rows)}
    every = torch.arange(saved.model.num_entities)
    for i, (h, r, t) in enumerate(TRIPLES.tolist()):
        found = dense_rows(terms.rows, tables, i)
        with torch.inference_mode():
            one = torch.full_like(every, h), torch.full_like(every, r), every
            of_tails = model.terms(*one, per_triple=1, loss=score_itself, selection=selection).rows
        for table, uses in of_tails.items():
            for use in uses:
                if table in tables and torch.equal(use.index, every):
                    weights = torch.where(every == t, 0, p[i])[:, None]
                    found[table][every] += weights * use.grad[:, : found[table].shape[1]]
        wanted = by_autograd(saved, (h, r, t))
        for table, grad in found.items():
            scale = wanted[table].abs().max()
            torch.testing.assert_close(grad, wanted[table], rtol=1e-3, atol=float(2e-4 * scale + 1e-6))


@pytest.mark.parametrize("name", ["ConvE", "TransE"])
def test_batches_and_chunks_change_nothing(save: Save, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of triples, and of tails."""
    model = scoring_model(save(name, True).model, CPU)
    selection, ids = model.select(["all"]), torch.from_numpy(TRIPLES).unbind(1)
    together = log_probability_terms(model, *ids, selection)
    monkeypatch.setattr(autograd, "chunk_floats", lambda device: 3 * model._floats if name == "TransE" else 1)
    for i in range(len(TRIPLES)):
        alone = log_probability_terms(model, *(column[i : i + 1] for column in ids), selection)
        torch.testing.assert_close(alone.loss[0], together.loss[i])
        for table, uses in alone.rows.items():
            for one, use in zip(uses, together.rows[table], strict=True):
                torch.testing.assert_close(one.grad[0], use.grad[i], rtol=1e-4, atol=1e-6)


def test_each_checkpoint_has_its_own_probabilities(save: Save) -> None:
    """And the trained model's loss counts."""
    first, second = (scoring_model(save("ComplEx", True, **more).model, CPU) for more in ({}, {"trained": True}))
    together = Checkpoints(second, [(0.25, first), (4.0, second)])
    selection, ids = first.select(["all"]), torch.from_numpy(TRIPLES).unbind(1)
    found = log_probability_terms(together, *ids, selection)
    for state, (scale, model) in enumerate([(0.5, first), (2.0, second)]):
        alone = log_probability_terms(model, *ids, selection)
        for table, uses in found.rows.items():
            if checkpoint_of(table) == state:
                for use, one in zip(uses, alone.rows[parameter_of(table)], strict=True):
                    torch.testing.assert_close(use.grad, scale * one.grad)
    torch.testing.assert_close(found.loss, log_probability_terms(second, *ids, selection).loss)


def test_a_model_without_expected_scores_is_named() -> None:
    """With what to ask for instead."""

    class Own:
        def terms(self) -> None: ...

    with pytest.raises(BadRequest, match=r"Own has no expected_rows, .*ask for outcome logit"):
        log_probability_terms(Own(), *torch.from_numpy(TRIPLES).unbind(1), frozenset())
