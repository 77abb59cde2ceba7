"""Every loss on every model that allows it, against autograd of PyKEEN's scores, and what an index of it answers."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kgtrace_indexer import BuildConfig, TripleTable, append, build, open_index
from kgtrace_indexer.gradients.losses import CONTRAST, NAMES, ONE_TO_ALL, OWN_SCORE, KnownTails, loss_by_name
from kgtrace_indexer.gradients.negatives import corrupted
from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.terms import Rows, Terms, inner
from kgtrace_indexer.models import autograd
from kgtrace_indexer.models.checkpoints import Checkpoints
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from kgtrace_indexer.models.protocol import scoring_model
from kgtrace_store import Vocabulary
from kgtrace_store.errors import BadRequest, MissingInverseRelations, UnsupportedModel
from tests.indexer.models.test_own_models import ByHand
from tests.indexer.models.zoo import CPU, DOCS, ZOO, Save, Saved, factory, nations, relative_error, save

__all__ = ["nations", "save"]  # fixtures

LINEAR = (
    "AutoSF", "CP", "ComplEx", "ConvE", "CrossE", "DistMult", "ERMLPE", "HolE", "QuatE", "RESCAL", "SimplE",
    "TuckER",
)  # fmt: skip
"""Models whose score is linear in the tail's embedding."""
NEGATIVES = 3
SMOOTHING = 0.1


def _options(loss: str) -> dict[str, Any]:
    return {
        "label_smoothing": SMOOTHING if loss in ("bce-kvsall", "ce-1vsall") else 0.0,
        "negatives": NEGATIVES if loss in CONTRAST else None,
    }


def _featurizer(saved: Saved, loss: str, layers: Sequence[str] = ("all",)) -> Featurizer:
    config = {"loss": loss, "layers": layers, "directions": None, "seed": 3, **_options(loss)}
    return featurizer_for(saved.model, config, CPU, factory(False).mapped_triples.numpy())


@cache
def _known(inverse: bool) -> dict[tuple[int, int], list[int]]:
    """Return the tails of each (source, relation row)."""
    found: dict[tuple[int, int], list[int]] = {}
    for head, relation, tail in factory(False).mapped_triples.tolist():
        found.setdefault((head, 2 * relation if inverse else relation), []).append(tail)
        if inverse:
            found.setdefault((tail, 2 * relation + 1), []).append(head)
    return found


def _oracle(saved: Saved, loss: str, instance: list[int]) -> Tensor:
    """Return the loss of (source, relation row) → target with PyKEEN's scores and its loss, dense over all entities."""
    from pykeen import losses

    model, (source, relation, target) = saved.original, instance
    if loss in CONTRAST:
        ids = corrupted(np.array([instance]), NEGATIVES, model.num_entities, seed=3)[0]
        scores = model.score_hrt(torch.as_tensor(ids)).view(1, -1)
        options: dict[str, float] = {}
        if loss == "nssa" and isinstance(model.loss, losses.NSSALoss):
            options["margin"] = model.loss.margin
            options["adversarial_temperature"] = model.loss.inverse_softmax_temperature
        elif loss == "margin" and isinstance(model.loss, losses.MarginRankingLoss):
            options["margin"] = model.loss.margin
        kinds = {"margin": losses.MarginRankingLoss, "nssa": losses.NSSALoss, "softplus": losses.SoftplusLoss}
        own = kinds[loss](**options)
        return own.process_slcwa_scores(scores[:, :1], scores[:, 1:])
    ids = torch.tensor([[source, relation, entity] for entity in range(model.num_entities)])
    labels = torch.zeros(1, len(ids))
    labels[0, [target, *(_known(saved.model.inverse_triples).get((source, relation), []) if "kv" in loss else [])]] = 1
    kind = losses.CrossEntropyLoss if loss == "ce-1vsall" else losses.BCEWithLogitsLoss
    return kind().process_lcwa_scores(
        model.score_hrt(ids).view(1, -1), labels, label_smoothing=_options(loss)["label_smoothing"],
        num_entities=len(ids),
    )  # fmt: skip


def _gradient(saved: Saved, loss: str, triple: Any, directions: Sequence[str]) -> tuple[float, Tensor]:
    """Return a triple's loss, summed over directions, and its gradient in one vector."""
    saved.original.zero_grad()
    value = torch.stack([_oracle(saved, loss, saved._ids(triple, direction)) for direction in directions]).sum()
    value.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in saved.original.parameters()]
    return float(value.detach()), torch.cat([grad.flatten() for grad in grads])


def _triples() -> tuple[np.ndarray, np.ndarray]:
    """Return training triples, among them two of one (h, r), and test triples, one of them known and one not."""
    ids = factory(False).mapped_triples.numpy()
    by_pair = ids[np.lexsort((ids[:, 0], ids[:, 1]))]
    twins = int(np.flatnonzero((by_pair[1:, :2] == by_pair[:-1, :2]).all(1))[0])
    first = np.concatenate([by_pair[twins : twins + 2], ids[[5, 300, 900]]])
    second = np.array([by_pair[twins], [first[2, 0], first[2, 1], first[3, 0]], first[4]])
    return first, second


def _check(saved: Saved, loss: str) -> None:
    """Compare influences, squared norms and losses in every direction with autograd's."""
    featurizer = _featurizer(saved, loss)
    first, second = _triples()
    directions = ["tail", "head"] if saved.model.inverse_triples else ["tail"]
    values, g = zip(*(_gradient(saved, loss, triple, directions) for triple in first), strict=True)
    g = torch.stack(g)
    with torch.inference_mode():
        terms = featurizer.training_terms(first)
    torch.testing.assert_close(terms.losses(), torch.tensor(values), rtol=1e-4, atol=1e-5)
    assert relative_error(squared_norms(terms), g.square().sum(1), g.square().sum(1)) < 1e-4
    if not saved.model.inverse_triples and loss in ONE_TO_ALL:
        with pytest.raises(MissingInverseRelations, match="build the index with another loss"):
            featurizer.test_terms(second, "head")
        sides = ("tail",)
    else:
        sides = ("tail", "head")  # without inverse relations both are (h, r, t) and its negatives
    gradients = {
        each: torch.stack([_gradient(saved, loss, triple, [each])[1] for triple in second]) for each in directions
    }
    for side in sides:
        h = gradients.get(side, gradients["tail"])
        with torch.inference_mode():
            test = featurizer.test_terms(second, side)
        wanted, scale = g @ h.T, g.norm(dim=1)[:, None] * h.norm(dim=1)
        assert relative_error(inner(terms, test), wanted, scale) < 1e-4
        alone = torch.cat([inner(terms.triple(i), test) for i in range(len(first))])
        assert relative_error(alone, wanted, scale) < 1e-4


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("name", ZOO)
def test_influence_equals_autograd(save: Save, name: str, trained: bool) -> None:
    """Influences under every loss equal those of dense autograd; models that are not linear in the tail refuse some."""
    saved = save(name, bool(sorted(ZOO).index(name) % 2), trained=trained)
    for loss in CONTRAST:
        _check(saved, loss)
    for loss in ONE_TO_ALL:
        if name in LINEAR:
            _check(saved, loss)
        else:
            with pytest.raises(
                UnsupportedModel, match=r"linear in the tail's embedding, .* work: bce, removal, margin"
            ):
                _featurizer(saved, loss)


@pytest.mark.parametrize("name", ["ConvE", "TuckER"])
def test_both_directions(save: Save, name: str) -> None:
    """The same holds without inverse triples for what was tested with them, and the other way round."""
    for loss in ("bce-kvsall", "ce-1vsall"):
        _check(save(name, not bool(sorted(ZOO).index(name) % 2)), loss)


def test_closed_form_and_autograd_agree(save: Save) -> None:
    """ConvE's closed form and the general mechanism give the same influences under losses over all tails."""
    from kgtrace_indexer.models.pykeen import pykeen_model

    model = save("ConvE", True).model
    first, second = _triples()
    for layers in (["all"], ["last:1"]):
        found = []
        for scoring in (ConvE(model), pykeen_model(model)):
            loss = loss_by_name("ce-1vsall", entities=14, trained_with={}, known=_no_tails)
            featurizer = Featurizer(scoring, loss, scoring.select(layers), "both", True)
            with torch.inference_mode():
                found.append(inner(featurizer.training_terms(first), featurizer.test_terms(second, "head")))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6 * float(found[0].abs().max()))


def _no_tails() -> KnownTails:
    raise AssertionError("this loss labels no known tails")


@pytest.mark.parametrize(("name", "loss"), [("SimplE", "ce-1vsall"), ("TuckER", "bce-kvsall"), ("RotatE", "nssa")])
def test_chunks_do_not_change_terms(save: Save, name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients computed a few at a time are those computed together: no chunk parts a triple from its negatives."""
    featurizer = _featurizer(save(name, True), loss)
    first, second = _triples()
    with torch.inference_mode():
        test = featurizer.test_terms(second, "tail")
        wanted = inner(featurizer.training_terms(first), test)
        monkeypatch.setattr(autograd, "chunk_floats", lambda device: 100)
        found = featurizer.training_terms(first)
        torch.testing.assert_close(inner(found, test), wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


def test_training_triples_of_one_pair_share_their_gradient(save: Save) -> None:
    """Under ``bce-kvsall`` known tails are labels of all triples of their (h, r); an unknown test tail is one more."""
    saved = save("DistMult", False)
    featurizer = _featurizer(saved, "bce-kvsall")
    (first, second, *_), _ = _triples()
    unknown = next(e for e in range(14) if e not in _known(False)[first[0], first[1]])
    with torch.inference_mode():
        terms = featurizer.training_terms(np.stack([first, second, [first[0], first[1], unknown]]))
        products = inner(terms, terms)
    torch.testing.assert_close(products[0], products[1])
    assert terms.losses()[0] == terms.losses()[1]
    assert not torch.isclose(products[0, 2], products[0, 0])


def test_checkpoints_sum_losses_over_all_tails(save: Save) -> None:
    """With checkpoints the influence is the weighted sum of theirs, and the loss reported the trained model's."""
    saved, other = save("ComplEx", True), save("ComplEx", True, embedding_dim=7)
    trained, parts = scoring_model(saved.model, CPU), [(s, scoring_model(s.model, CPU)) for s in (saved, other)]
    loss = loss_by_name("ce-1vsall", entities=14, trained_with={}, known=_no_tails)
    together = Checkpoints(trained, [(0.5, parts[0][1]), (2.0, parts[1][1])])
    first, second = _triples()
    featurizer = Featurizer(together, loss, together.select(["all"]), "both", True)
    with torch.inference_mode():
        terms = featurizer.training_terms(first)
        found = inner(terms, featurizer.test_terms(second, "tail"))
        single = [replace(featurizer, model=model) for _, model in parts]
        wanted = sum(
            rate * inner(f.training_terms(first), f.test_terms(second, "tail"))
            for rate, f in zip((0.5, 2.0), single, strict=True)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(terms.losses(), single[0].training_terms(first).losses())


ANSWERED = [
    ("ConvE", "bce-kvsall"), ("ConvE", "ce-1vsall"), ("ConvE", "nssa"), ("SimplE", "ce-1vsall"),
    ("TuckER", "bce-1vsall"), ("ComplEx", "bce-kvsall"), ("TransE", "margin"), ("RotatE", "softplus"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "loss"), ANSWERED)
def test_certified_answers_equal_the_full_scan(
    save: Save, nations: tuple[Vocabulary, TripleTable], name: str, loss: str, tmp_path: Path
) -> None:
    """An index under each loss passes the gate, records its options, and every answer of it is certified and exact."""
    _, table = nations
    config = BuildConfig(precondition="none", loss=loss, dim=8, landmarks=40, **_options(loss))
    build(tmp_path, save(name, True).model, *nations, config)
    attributor = open_index(tmp_path, device="cpu")
    recorded = attributor.manifest.configuration
    assert {key: recorded[key] for key in _options(loss)} == _options(loss)
    queries = np.concatenate([table.ids[:1], _triples()[1][1:2]]).astype(np.int64)
    for order, direction in (("proponents", "tail"), ("opponents", "head"), ("absolute", "tail")):
        found = attributor.query(queries, top_k=7, order=order, direction=direction).attributions
        wanted = attributor.query(queries, top_k=7, order=order, direction=direction, exact=True).attributions
        for a, b in zip(found, wanted, strict=True):
            assert a.certified
            np.testing.assert_allclose(a.influence, b.influence, rtol=1e-4, atol=1e-5 * abs(b.influence).max())


def test_known_tails_of_a_sample_are_those_of_all(
    save: Save, nations: tuple[Vocabulary, TripleTable], tmp_path: Path
) -> None:
    """A sampled index labels the tails of all training triples, and names its own as the whole index does."""
    vocabulary, table = nations
    model, queries = save("DistMult", True).model, table.ids[:2].astype(np.int64)
    whole = BuildConfig(loss="bce-kvsall", dim=8, landmarks=40)
    build(tmp_path / "whole", model, vocabulary, table, whole)
    build(tmp_path / "half", model, vocabulary, table, replace(whole, sample_rate=0.5))
    everything = _first(tmp_path / "whole", queries, 60)
    influence = dict(zip(everything.train_index.tolist(), everything.influence, strict=True))
    found = _first(tmp_path / "half", queries, 30)
    assert found.certified
    wanted = [influence[index] for index in found.train_index.tolist()]
    np.testing.assert_allclose(found.influence, wanted, rtol=1e-4, atol=1e-7)


def _first(root: Path, queries: np.ndarray, top_k: int) -> Any:
    return open_index(root, device="cpu").query(queries, top_k=top_k).attributions[0]


def test_negatives_count_in_what_is_computed_at_a_time(save: Save) -> None:
    """Blocks of triples shrink with their negatives, so that memory does not grow with these."""
    saved = save("DistMult", False)
    assert _featurizer(saved, "bce").block(2048) == 2048
    assert _featurizer(saved, "softplus").block(2048) == 2048 // (NEGATIVES + 1)
    assert _featurizer(saved, "softplus").block(1) == 1


def test_negatives_default_to_one(save: Save, nations: tuple[Vocabulary, TripleTable], tmp_path: Path) -> None:
    """Without ``negatives`` a triple has as many as PyKEEN's sampler gives it, and the manifest says so."""
    build(
        tmp_path,
        save("TransE", False).model,
        *nations,
        BuildConfig(precondition="none", loss="margin", dim=8, landmarks=40),
    )
    assert open_index(tmp_path, device="cpu").manifest.configuration["negatives"] == 1


def test_labels_that_change_cannot_be_appended_to(
    save: Save, nations: tuple[Vocabulary, TripleTable], tmp_path: Path
) -> None:
    """An index under ``bce-kvsall`` is not extended: the triples in it would have other gradients."""
    vocabulary, table = nations
    build(tmp_path, save("DistMult", False).model, *nations, BuildConfig(loss="bce-kvsall", dim=8, landmarks=40))
    ids = next(triple for triple in factory(False).mapped_triples.tolist() if triple not in table.ids.tolist())
    labels = vocabulary.entities[ids[0]], vocabulary.relations[ids[1]], vocabulary.entities[ids[2]]
    (tmp_path / "more.tsv").write_text("\t".join(labels) + "\n")
    with pytest.raises(BadRequest, match=r"labels are all known tails: .* build it anew"):
        append(tmp_path, tmp_path / "more.tsv", device="cpu")


def test_models_of_ones_own_refuse_what_they_lack(save: Save) -> None:
    """A model without the method for losses over all tails is refused with the losses that work."""
    tables = {"entity.weight": torch.ones(14, 2), "relation.weight": torch.ones(55, 2)}
    by_hand = ByHand(replace(save("DistMult", False).model, tensors=tables), CPU)
    loss = loss_by_name("ce-1vsall", entities=14, trained_with={}, known=_no_tails)
    featurizer = Featurizer(by_hand, loss, by_hand.select(["all"]), "forward", False)
    with pytest.raises(UnsupportedModel, match=r"ByHand has no one_to_all_terms, .* losses that work: bce, removal"):
        featurizer.training_terms(_triples()[0])


def test_random_projections_take_in_all_tails(save: Save) -> None:
    """A projection of u ⊗ x, with u over all entities, is the sum of those of its rows."""
    featurizer = _featurizer(save("DistMult", True), "ce-1vsall")
    first, _ = _triples()
    with torch.inference_mode():
        terms = featurizer.training_terms(first)
        rows = {table: list(uses) for table, uses in terms.rows.items()}
        for table, spread in terms.spread.items():
            x, u = spread.x[spread.u.group], spread.u.entries(torch.arange(14))
            rows[table] += [Rows(torch.full((len(x),), e), u[:, e, None] * x) for e in range(14)]
        dense = Terms(terms.per_triple, terms.loss, terms.kron, terms.flat, rows)
        projection = RandomProjection("gaussian", 16, seed=0)
        torch.testing.assert_close(projection.project(terms), projection.project(dense), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inner(terms, terms), inner(dense, dense), rtol=1e-4, atol=1e-6)


# The table in the documentation.


def test_the_documented_losses_are_true() -> None:
    """The table of losses in the documentation says which models are linear in the tail, and names every loss."""
    rows = re.findall(r"^\| `([^|]*)` \| ([^|]*) \|", DOCS.read_text(encoding="utf-8"), re.M)
    names = {name: models for cell, models in rows for name in cell.replace("`", "").split(", ")}
    assert {name for name in names if name in NAMES} == set(NAMES)
    for name in (*OWN_SCORE, *CONTRAST):
        assert names[name] == "all"
    for name in ONE_TO_ALL:
        assert names[name].split(", ") == sorted(LINEAR, key=str.lower)
