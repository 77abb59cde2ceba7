"""Models that cannot be explained, and the errors that say so."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kgtrace_indexer import (
    read_model,
)
from kgtrace_indexer.models import autograd
from kgtrace_indexer.models.protocol import scoring_model
from kgtrace_store.errors import MissingExtra, UnsupportedModel
from tests.indexer.models.zoo import CPU, Save, factory, featurizer_of, sample_pairs, save

__all__ = ["save"]  # fixtures


def _refused() -> dict[str, tuple[Callable[[], Any], str]]:
    import pykeen.models
    from pykeen.nn import Embedding
    from pykeen.nn.representation import LowRankRepresentation

    inverse, plain = factory(True), factory(False)

    def er(**options: Any) -> Any:
        settings: dict[str, Any] = {
            "triples_factory": plain, "interaction": "DistMult",
            "entity_representations_kwargs": {"shape": 4}, "relation_representations_kwargs": {"shape": 4}, **options,
        }  # fmt: skip
        return pykeen.models.ERModel(**settings)

    class Own(Embedding):
        pass

    return {
        "RGCN": (
            lambda: pykeen.models.RGCN(triples_factory=plain, embedding_dim=8),
            "entity_representations.0 is a RGCNRepresentation; only tables of embeddings are supported: where "
            "representations are computed, from neighbours",
        ),
        "CompGCN": (
            lambda: pykeen.models.CompGCN(triples_factory=inverse, embedding_dim=8),
            "is a SingleCompGCNRepresentation; only tables",
        ),
        "NodePiece": (
            lambda: pykeen.models.NodePiece(triples_factory=inverse, embedding_dim=8),
            "is a NodePieceRepresentation; only tables",
        ),
        "low rank": (
            lambda: er(
                relation_representations=LowRankRepresentation,
                relation_representations_kwargs={"shape": 4, "num_bases": 2},
            ),
            "relation_representations.0 is a LowRankRepresentation; only tables",
        ),
        "normalizer across entities": (
            lambda: er(entity_representations_kwargs={"shape": 4, "normalizer": nn.functional.normalize}),
            "must have a negative dim",
        ),
        "unknown normalizer": (
            lambda: er(entity_representations_kwargs={"shape": 4, "normalizer": torch.tanh}),
            "entity_representations.0 has normalizer torch",
        ),
        "Transformer": (
            lambda: er(
                interaction="Transformer", interaction_kwargs={"input_dim": 4, "num_heads": 2, "dim_feedforward": 4}
            ),
            "interaction Transformer is not supported; supported: AutoSF, BoxE, CP",
        ),
        "batch-dependent similarity": (
            lambda: pykeen.models.KG2E(triples_factory=plain, dist_similarity="ExpectedLikelihood"),
            "whose scores in PyKEEN depend on the batch size",
        ),
        "activation with parameters": (
            lambda: pykeen.models.CrossE(triples_factory=plain, embedding_dim=4, combination_activation=nn.PReLU),
            "interaction.activation is a PReLU; supported activations: ELU",
        ),
    }


REFUSED = (
    "RGCN", "CompGCN", "NodePiece", "low rank", "normalizer across entities", "unknown normalizer", "Transformer",
    "batch-dependent similarity", "activation with parameters",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")  # PyKEEN's Transformer is made so
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_explained_is_refused(case: str, tmp_path: Path) -> None:
    """Models whose gradients do not stay in the triple's own rows, or that are not known, are refused by name."""
    make, message = _refused()[case]
    torch.save(make(), tmp_path / "trained_model.pkl")
    with pytest.raises(UnsupportedModel, match=message):
        scoring_model(read_model(tmp_path), CPU)


def test_literals_are_refused(tmp_path: Path) -> None:
    """Models that read literals are refused by name."""
    from pykeen.models import DistMultLiteral
    from pykeen.triples import TriplesNumericLiteralsFactory

    plain = factory(False)
    literals = TriplesNumericLiteralsFactory(
        entity_to_id=plain.entity_to_id,
        relation_to_id=plain.relation_to_id,
        mapped_triples=plain.mapped_triples,
        numeric_literals=np.zeros((plain.num_entities, 2), np.float32),
        literals_to_id={"a": 0, "b": 1},
    )
    torch.save(DistMultLiteral(triples_factory=literals, embedding_dim=4), tmp_path / "trained_model.pkl")
    with pytest.raises(UnsupportedModel, match=r"entity_representations.0 is a CombinedRepresentation; .* literals"):
        scoring_model(read_model(tmp_path), CPU)


def test_models_that_contradict_themselves_are_refused(save: Save) -> None:
    """A file whose modules or tensors are not those of its interaction is refused, and says what differs."""
    model = save("TransE", True).model
    with pytest.raises(UnsupportedModel, match=r"said to be a TransF, but interaction is a TransEInteraction"):
        scoring_model(replace(model, interaction="TransF"), CPU)
    tensors = {**model.tensors, "interaction.extra": torch.zeros(2)}
    with pytest.raises(UnsupportedModel, match=r"interaction.extra is \(2,\), expected no such tensor"):
        scoring_model(replace(model, tensors=tensors), CPU)
    conv = save("ConvKB", True).model
    modules = {**conv.modules, "interaction.activation": {"class": "Tanh"}}
    with pytest.raises(UnsupportedModel, match=r"interaction.activation is a Tanh, expected ReLU"):
        scoring_model(replace(conv, modules=modules), CPU)
    table = "entity_representations.0"
    modules = {**model.modules, table: {**model.modules[table], "shape": [3]}}
    with pytest.raises(UnsupportedModel, match=r"recorded with shape \(3,\), but .* has rows of 8"):
        scoring_model(replace(model, modules=modules), CPU)


def test_state_dicts_do_not_say_enough(save: Save, tmp_path: Path) -> None:
    """A state dict records neither norms nor representations, so it is refused with what to pass instead."""
    torch.save(save("TransE", True).original.state_dict(), tmp_path / "model.pt")
    model = read_model(tmp_path / "model.pt", interaction="TransE", num_relations=55)
    with pytest.raises(UnsupportedModel, match=r"does not record the representations of TransE; pass the whole saved"):
        scoring_model(model, CPU)


def test_gradients_that_are_too_large_are_refused(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and parameters whose gradients cannot be kept for every triple are refused, naming them."""
    featurizer = featurizer_of(save("ConvKB", True).model)
    monkeypatch.setattr(autograd, "MAX_FLOATS", 7)
    with pytest.raises(
        UnsupportedModel, match=r"gradients of interaction.conv.weight \(5, 1, 1, 3\) are no short sums"
    ):
        featurizer.training_terms(sample_pairs()[0])
    with pytest.raises(UnsupportedModel, match="has rows of 8 values, more than the 7"):
        scoring_model(save("TransE", True).model, CPU)


def test_pykeen_is_needed_and_missed(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyKEEN its interactions cannot be computed, and the message says what to install."""
    model = save("TransE", True).model
    monkeypatch.setitem(sys.modules, "pykeen.nn.modules", None)
    with pytest.raises(MissingExtra, match="TransE is computed with PyKEEN, which is not installed: pip install"):
        scoring_model(model, CPU)
