"""Tables of DGL-KE and of RotatE's reference code, written in their layout and compared with their formulas."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kgtrace_indexer import read_model
from kgtrace_indexer.inputs.model_reader import check_place, read_checkpoint
from kgtrace_store.errors import NonFinite, UnreadableModel, UnsupportedModel
from tests.fixtures.frameworks.reference import ENTITIES, RELATIONS, said
from tests.indexer.inputs.frameworks.checks import TRIPLES, assert_answers, assert_computes

GAMMA, DIM = 9.0, 6


def transe(p: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """γ − ‖h + r − t‖ₚ."""
    return lambda h, r, t: GAMMA - (h + r - t).norm(p=p, dim=1)


def distmult(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Σ h r t."""
    return (h * r * t).sum(1)


def complex_(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Re Σ h r t̄, real parts in the first half of a row."""
    h, r, t = (torch.complex(*x.chunk(2, 1)) for x in (h, r, t))
    return (h * r * t.conj()).sum(1).real


def rotate(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """γ − Σ |h ∘ exp(i r / (range / π)) − t|, range being (γ + 2) / d."""
    h, t = (torch.complex(*x.chunk(2, 1)) for x in (h, t))
    phase = r / ((GAMMA + 2) / DIM / math.pi)
    return GAMMA - (h * torch.polar(torch.ones_like(phase), phase) - t).abs().sum(1)


def rescal(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """hᵀ R t, R row by row."""
    return torch.einsum("mi,mij,mj->m", h, r.view(-1, DIM, DIM), t)


MODELS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int, int]] = {
    "TransE": (transe(2), DIM, DIM),
    "TransE_l1": (transe(1), DIM, DIM),
    "TransE_l2": (transe(2), DIM, DIM),
    "DistMult": (distmult, DIM, DIM),
    "ComplEx": (complex_, 2 * DIM, 2 * DIM),
    "RotatE": (rotate, 2 * DIM, DIM),
    "RESCAL": (rescal, DIM, DIM * DIM),
}
"""Of DGL-KE: score, numbers of an entity, and of a relation."""

REFERENCE = {**{name: MODELS[name] for name in ("DistMult", "ComplEx", "RotatE")}, "TransE": (transe(1), DIM, DIM)}


def tables(entity: int, relation: int) -> list[Tensor]:
    """Return random tables."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, width, generator=generator) for rows, width in ((ENTITIES, entity), (RELATIONS, relation))
    ]


def written(folder: Path, name: str, *, reference: bool = False, **config: Any) -> list[Tensor]:
    """Write a model as DGL-KE, or the reference code, does."""
    made = tables(*(REFERENCE if reference else MODELS)[name][1:])
    files = (
        ("entity_embedding", "relation_embedding")
        if reference
        else (f"graph_{name}_{x}" for x in ("entity", "relation"))
    )
    for file, table in zip(files, made, strict=True):
        np.save(folder / f"{file}.npy", table.numpy())
    config = {"model" if reference else "model_name": name, "gamma": GAMMA, "hidden_dim": DIM, **config}
    (folder / "config.json").write_text(json.dumps(config))
    return made


@pytest.mark.parametrize(
    ("name", "reference"), [*((name, False) for name in MODELS), *((name, True) for name in REFERENCE)]
)
def test_computes_as_documented(name: str, reference: bool, tmp_path: Path) -> None:
    """Scores and gradients are those of the documented formula, of both layouts."""
    entity, relation = (table.requires_grad_() for table in written(tmp_path, name, reference=reference))
    formula = (REFERENCE if reference else MODELS)[name][0]
    wanted = said(lambda h, r, t: formula(entity[h], relation[r], entity[t]), [entity, relation], TRIPLES)
    model = read_model(tmp_path, num_relations=RELATIONS, embedding_dim=DIM)
    assert model.interaction == f"{'KnowledgeGraphEmbedding' if reference else 'DGLKE'}.{name}"
    assert_computes(model, wanted)


@pytest.mark.parametrize("reference", [False, True])
def test_answers(reference: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built and asked from the command line."""
    (tmp_path / "model").mkdir()
    written(tmp_path / "model", "RotatE", reference=reference)
    assert_answers(tmp_path / "model", tmp_path, capsys)


def test_without_configuration(tmp_path: Path) -> None:
    """The user may say what ``config.json`` would; tables of doubles are read as floats; folders are checkpoints."""
    made = written(tmp_path, "RotatE")
    model = read_model(tmp_path)
    np.save(tmp_path / "graph_RotatE_entity.npy", made[0].double().numpy())
    (tmp_path / "config.json").unlink()
    said_by_user = read_model(tmp_path, interaction="RotatE(gamma=9)")
    assert said_by_user.fingerprint() == model.fingerprint()
    assert read_checkpoint(tmp_path, model).fingerprint() == model.fingerprint()
    with pytest.raises(UnsupportedModel, match=r"TransE or .*: pass --interaction 'TransE\(gamma=12.0\)' or"):
        read_model(tmp_path)


def test_refusals(tmp_path: Path) -> None:
    """What is missing, damaged or unknown is named."""
    with pytest.raises(UnreadableModel, match="holds no model"):
        check_place(tmp_path)
    written(tmp_path, "RotatE")
    check_place(tmp_path)
    entity, relation = (tmp_path / f"graph_RotatE_{name}.npy" for name in ("entity", "relation"))

    def refused(error: type[Exception], message: str, **arguments: Any) -> None:
        with pytest.raises(error, match=message):
            read_model(tmp_path, **arguments)
        written(tmp_path, "RotatE")

    refused(UnsupportedModel, "is a RotatE.* of DGL-KE, not a TransE", interaction="TransE_l1")
    refused(UnsupportedModel, "embeddings of 12 values, not 100", embedding_dim=100)
    (tmp_path / "config.json").write_text('{"model": "pRotatE", "gamma": 9}')
    refused(UnsupportedModel, "is a 'pRotatE' of DGL-KE, which is not read; read are TransE, TransE_l1")
    (tmp_path / "config.json").write_text('{"model": "RotatE"}')
    refused(UnsupportedModel, "does not record gamma of its RotatE: pass --interaction 'RotatE\\(gamma=12.0\\)'")
    (tmp_path / "config.json").write_text('{"gamma": 9}')
    refused(UnreadableModel, "names no model")
    (tmp_path / "config.json").write_text("[]")
    refused(UnreadableModel, "no JSON object")
    (tmp_path / "config.json").write_text("{")
    refused(UnreadableModel, "config.json is not JSON")
    relation.unlink()
    refused(UnreadableModel, "graph_RotatE_relation.npy is missing")
    np.save(relation, np.ones((RELATIONS, DIM + 1), np.float32))
    refused(UnsupportedModel, "an entity has 12 numbers and a relation 7")
    np.save(relation, np.full((RELATIONS, DIM), np.nan, np.float32))
    refused(NonFinite, "relation_embedding holds 30 NaN")
    np.save(relation, np.ones((RELATIONS, DIM), np.int32))
    refused(UnreadableModel, "relation.npy holds int32 of shape \\(5, 6\\), not a table")
    np.save(relation, np.array([{}], dtype=object), allow_pickle=True)
    refused(UnreadableModel, "relation.npy is truncated, or no array of numpy.save")
    entity.write_bytes(entity.read_bytes()[:-8])
    refused(UnreadableModel, "entity.npy is truncated")
    with entity.open("wb") as f:
        np.savez(f, a=np.ones(3))
    refused(UnreadableModel, "entity.npy is truncated, or no array")
    np.save(tmp_path / "other_TransE_entity.npy", np.ones((3, 3)))
    refused(UnsupportedModel, "several models, graph_RotatE_entity.npy and other_TransE_entity.npy")
