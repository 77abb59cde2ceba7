"""OpenKE's checkpoints, made by its own classes (tests/fixtures/frameworks/make_openke.py), and its data files."""

from pathlib import Path

import pytest
import torch

from kgtrace_indexer import read_model
from kgtrace_indexer.inputs.id_maps import read_vocabulary
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store import Vocabulary
from kgtrace_store.errors import IdOutOfRange, MalformedTriple, MalformedVocabulary, UnreadableInput, UnsupportedModel
from tests.indexer.inputs.frameworks.checks import TRIPLES, assert_answers, assert_computes, said

CALLS = {
    "TransE": "TransE(p_norm=1, norm_flag=True)",
    "TransE-margin": "TransE(p_norm=2, norm_flag=False)",
    "DistMult": "DistMult",
    "ComplEx": None,
    "RotatE": None,
    "RESCAL": None,
}


@pytest.mark.parametrize("name", CALLS)
def test_computes_as_the_framework(models: Path, name: str) -> None:
    """Scores, by which true triples are the larger ones, and gradients are those of the framework's class."""
    model = read_model(models / f"openke-{name}.ckpt", interaction=CALLS[name], num_relations=5)
    assert model.interaction == f"OpenKE.{name.partition('-')[0]}"
    assert_computes(model, said("openke")[name])


def written(folder: Path) -> list[Path]:
    """Write the graph's files as OpenKE has them: a count, then CRLF or LF, tabs or blanks."""
    lines = [f"{h} {t} {r}\n" for h, r, t in TRIPLES.tolist()]
    texts = {
        "train2id.txt": "".join([f"{len(lines)}\n", *lines]),
        "entity2id.txt": "".join(["30\n", *(f"e{i}\t{i}\n" for i in range(30))]),
        "relation2id.txt": "".join(["5\r\n", *(f"r{i} {i}\r\n" for i in range(5))]),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, newline="")
    return [folder / name for name in texts]


@pytest.mark.parametrize("name", ["TransE", "RotatE"])
def test_answers(models: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built from OpenKE's files, whose order is head, tail, relation, and asked from the command line."""
    train, entities, relations = written(tmp_path)
    flags = ["--train", str(train), "--entity-to-id", str(entities), "--relation-to-id", str(relations)]
    call = CALLS[name]
    flags += [] if call is None else ["--interaction", call]
    assert_answers(models / f"openke-{name}.ckpt", tmp_path, capsys, flags=flags, data=False)


@pytest.mark.parametrize("ids", [False, True])
def test_files(ids: bool, tmp_path: Path) -> None:
    """Triples and labels are those of the graph, whether the user says that they are ids or not."""
    train, entities, relations = written(tmp_path)
    vocabulary = read_vocabulary(entities, relations)
    assert vocabulary.relations == ("r0", "r1", "r2", "r3", "r4")
    assert vocabulary.entities == tuple(f"e{i}" for i in range(30))
    table = read_triples(train, vocabulary, ids=ids)
    assert (table.ids == TRIPLES.numpy()).all()
    assert table.train_index.tolist() == list(range(len(TRIPLES)))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("2\n0 1 0\n", UnreadableInput, "line 1: says that 2 lines follow, but 1 do"),
        ("1\n0 1 0\n0 1 0\n", UnreadableInput, "says that 1 lines follow, but 2 do"),
        ("1\n0 1\n", MalformedTriple, "line 2: expected"),
        ("1\na b c\n", MalformedTriple, "line 2"),
        ("1\n0 1 7\n", IdOutOfRange, "line 2: ids 0, 7, 1 are out of range"),
    ],
)
def test_triples_that_are_refused(text: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    """A file that is not whole, or has other lines than its first says, is named."""
    (tmp_path / "train2id.txt").write_text(text)
    with pytest.raises(error, match=message):
        read_triples(tmp_path / "train2id.txt", Vocabulary(("a", "b"), ("r",)))


def test_maps_that_are_refused(tmp_path: Path) -> None:
    """The same of an id map."""
    for text, error in (("2\na\t0\n", UnreadableInput), ("1\na\n", MalformedVocabulary)):
        (tmp_path / "entity2id.txt").write_text(text)
        with pytest.raises(error, match=r"entity2id.txt line \d"):
            read_vocabulary(tmp_path / "entity2id.txt", tmp_path / "entity2id.txt")


@pytest.mark.parametrize(
    ("change", "interaction", "message"),
    [
        ({}, None, r"TransE or DistMult: pass --interaction 'TransE\(p_norm=1.0, norm_flag=True\)' or"),
        ({}, "TransE(p_norm=1)", "does not record norm_flag"),
        ({}, "TransE(p_norm=1, norm_flag=1)", "has '1.0' as norm_flag"),
        ({}, "TransH", "'TransH' of OpenKE is not read; read are TransE, DistMult"),
        ({"norm_vector.weight": 1}, None, "of none of its models that are read"),
        ({"ent_embedding_range": 1, "rel_embedding_range": 1}, "RotatE", "must hold margin, one number"),
        ({"ent_embedding_range": 1, "rel_embedding_range": 0, "margin": 6}, "RotatE", "phase is 0 in the score of its"),
    ],
)
def test_refusals(change: dict[str, float], interaction: str | None, message: str, tmp_path: Path) -> None:
    """What a checkpoint lacks is asked for by name; what is not read is named."""
    tables = {"ent_embeddings.weight": torch.ones(9, 16), "rel_embeddings.weight": torch.ones(5, 8)}
    more = {name: torch.tensor([value]).float() for name, value in change.items()}
    torch.save({"zero_const": torch.zeros(1), "pi_const": torch.ones(1), **tables, **more}, tmp_path / "m.ckpt")
    with pytest.raises(UnsupportedModel, match=message):
        read_model(tmp_path / "m.ckpt", interaction=interaction)
