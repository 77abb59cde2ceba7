"""What a generation must pass before it is committed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.building import checks
from kgtrace_indexer.building.agreement import agreement, fixed_sample
from kgtrace_indexer.building.checks import Check
from kgtrace_indexer.names import PRECONDITIONS
from kgtrace_store import FaissSearch, IndexRoot, Vocabulary, durable
from kgtrace_store.errors import GateFailed, StorageFailed

Umls = tuple[ModelFile, Vocabulary, TripleTable]
SMALL = BuildConfig(dim=8, landmarks=128)


def few(umls: Umls, count: int = 200) -> Umls:
    model, vocabulary, table = umls
    return model, vocabulary, TripleTable(table.ids[:count], table.train_index[:count], 0)


@pytest.mark.parametrize("precondition", PRECONDITIONS)
def test_the_verdict_is_kept(umls: Umls, precondition: str, tmp_path: Path) -> None:
    """Each generation holds checks of all its searches, and the agreement with the one before; so does the report."""
    small = replace(SMALL, precondition=precondition)
    first = build(tmp_path, *few(umls), small, gate_report=tmp_path / "report.json")
    verdict = json.loads((tmp_path / "report.json").read_bytes())
    assert verdict["ok"]
    assert verdict["agreement"] is None
    assert {check["name"] for check in verdict["checks"]} == {
        *("trial load", "counts", "finite", "stored rows", "bounds", "answers", "self-retrieval"),
        *("preconditioned bounds", "preconditioned answers", "preconditioned self-retrieval"),
        *("preconditioned self-influences", "ranks of training triples", "gradient step"),
    }
    assert first.agreement is None
    second = build(tmp_path, *few(umls), replace(small, dim=9), gate_report=tmp_path / "report.json")
    with IndexRoot(tmp_path).open() as live:
        assert live.id == second.generation
        assert (live.path / "gate.json").read_bytes() == (tmp_path / "report.json").read_bytes()
        found = json.loads((live.path / "gate.json").read_bytes())["agreement"]
    assert found == {"generation": first.generation, "top_k": 10, "triples": 32, "overlap": 1.0, "reason": None}
    assert second.agreement == 1.0


def test_a_failed_gate_leaves_everything_in_staging(
    umls: Umls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can see the generation, the reason lies beside its files, and the build can be repeated."""
    build(tmp_path, *few(umls), SMALL)
    live = IndexRoot(tmp_path).current()
    monkeypatch.setattr(checks, "_finite", lambda _: Check("finite", False, "NaN or infinity in ['projected']"))
    other = replace(SMALL, seed=1)
    with pytest.raises(GateFailed, match=r"not published, see .*gate.json: finite: NaN or infinity in \['projected'\]"):
        build(tmp_path, *few(umls), other, gate_report=tmp_path / "report.json")
    root = IndexRoot(tmp_path)
    assert [status.id for status in root.generations()] == [live] == [root.current()]
    (staged,) = (tmp_path / "staging").glob("*/generation")
    verdict = json.loads((staged / "gate.json").read_bytes())
    assert verdict == json.loads((tmp_path / "report.json").read_bytes())
    assert not verdict["ok"]
    assert (staged / "gradients.h5").exists()
    monkeypatch.undo()
    assert build(tmp_path, *few(umls), other).published


def test_what_cannot_be_loaded_fails(umls: Umls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a service would refuse are found out before they are committed."""
    monkeypatch.setattr(FaissSearch, "write", lambda self, path: durable.write_file(path, b"IxFI"))
    with pytest.raises(GateFailed, match=r"trial load: .*search.faiss is not a whole FAISS index"):
        build(tmp_path, *few(umls), SMALL)
    assert IndexRoot(tmp_path).generations() == []


def test_a_live_generation_that_cannot_be_compared_does_not_block(umls: Umls, tmp_path: Path) -> None:
    """A damaged live generation is replaced by a sound one, and the verdict says why there is no agreement."""
    build(tmp_path, *few(umls), SMALL)
    with IndexRoot(tmp_path).open() as live:
        (live.path / "search.faiss").write_bytes(b"")
    report = build(tmp_path, *few(umls), replace(SMALL, seed=1), gate_report=tmp_path / "report.json")
    assert report.published
    assert report.agreement is None
    found = json.loads((tmp_path / "report.json").read_bytes())["agreement"]
    assert found["overlap"] is None
    assert "search.faiss has 0 bytes" in found["reason"]


def test_agreement_compares_labels(umls: Umls, umls_index: Path, tmp_path: Path) -> None:
    """Generations whose ids differ agree when they say the same; what one does not know is left out."""
    model, vocabulary, table = umls
    turn = np.roll(np.arange(model.num_entities), 1)  # new id of each entity
    back = np.argsort(turn)
    tensors = dict(model.tensors)
    for name in ("entity_representations.0._embeddings.weight", "entity_representations.1._embeddings.weight"):
        tensors[name] = tensors[name][back]
    ids = np.stack([turn[table.ids[:, 0]], table.ids[:, 1], turn[table.ids[:, 2]]], 1).astype(np.int32)
    labels = [vocabulary.entities[i] for i in back]
    turned = TripleTable(ids, table.train_index, 0)
    config = BuildConfig(dim=16, landmarks=512, precondition="none")
    build(tmp_path, replace(model, tensors=tensors), Vocabulary(labels, vocabulary.relations), turned, config)
    new, old = open_index(tmp_path, device="cpu"), open_index(umls_index, device="cpu")
    drawn = [
        {tuple(labels[i] for i in triple[::2]) for triple in a.training.triples[fixed_sample(a, 32)].tolist()}
        for a, labels in ((new, labels), (old, vocabulary.entities))
    ]
    assert drawn[0] == drawn[1]
    found = agreement(new, old)
    assert found.triples == 32
    assert found.overlap == pytest.approx(1.0, abs=0.01)
    relation = int(old.training.triples[fixed_sample(old, 1)[0], 1])
    relations = [label if i != relation else "other" for i, label in enumerate(vocabulary.relations)]
    build(tmp_path, replace(model, tensors=tensors), Vocabulary(labels, relations), turned, config)
    assert agreement(open_index(tmp_path, device="cpu"), old).triples < 32


def test_space_is_asked_for_before_the_work(umls: Umls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that the generation would fill is noticed before gradients are computed, with an honest estimate."""
    usage = shutil.disk_usage(tmp_path)
    free = [200_000]
    asked: list[int] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    require = durable.require_space
    monkeypatch.setattr(durable, "require_space", lambda path, needed: (asked.append(needed), require(path, needed))[1])
    with pytest.raises(StorageFailed, match=r"No space left on device \(needed \d+ bytes, 200000 free\)"):
        build(tmp_path, *few(umls), SMALL, progress=lambda *_: pytest.fail("began"))
    free[0] = usage.free
    asked.clear()
    report = build(tmp_path, *few(umls), SMALL)
    assert 0.7 * report.bytes < asked[0] < 2 * report.bytes
