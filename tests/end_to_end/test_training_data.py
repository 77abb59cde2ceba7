"""Training data that the command line is given beside a model: of the model, of another, in ids."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from kgtrace_indexer import open_index, read_training_folder
from kgtrace_server.cli import parser as cli
from kgtrace_server.cli.demo import train_umls
from kgtrace_server.service import Service
from kgtrace_store import IndexRoot

SMALL = ("--dim", "4", "--landmarks", "64", "--sample-rate", "0.06", "--precondition", "none", "--json")


@pytest.fixture
def unlabelled(umls_folder: Path, tmp_path: Path) -> Path:
    """The same model as one that was trained on a ``CoreTriplesFactory``, whose triples have no labels."""
    folder = tmp_path / "core"
    shutil.copytree(umls_folder, folder)
    for name in ("entity_to_id", "relation_to_id"):
        (folder / "training_triples" / f"{name}.tsv.gz").unlink()
    return folder


def build(model: Path, index: Path, *options: object) -> int:
    return cli.main(["build", "--model", str(model), "--index", str(index), *SMALL, *map(str, options)])


def test_maps_of_another_order_are_refused(
    umls_folder: Path, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids made anew in the order of first appearance: one line, exit 1, nothing built, with and without labels."""
    vocabulary, table = read_training_folder(umls_folder / "training_triples")
    triples = [(vocabulary.entities[h], vocabulary.relations[r], vocabulary.entities[t]) for h, r, t in table.ids]
    train, entities, relations = tmp_path / "train.tsv", tmp_path / "e.tsv", tmp_path / "r.tsv"
    train.write_text("".join("\t".join(triple) + "\n" for triple in triples))
    seen = dict.fromkeys(label for head, _, tail in triples for label in (head, tail))
    seen |= dict.fromkeys(vocabulary.entities)
    entities.write_text("".join(f"{label}\t{i}\n" for i, label in enumerate(seen)))
    relations.write_text("".join(f"{label}\t{i}\n" for i, label in enumerate(vocabulary.relations)))
    given = ("--train", train, "--entity-to-id", entities, "--relation-to-id", relations)
    for model, words in ((umls_folder, "in the id map given and"), (unlabelled, "by the id maps given")):
        assert build(model, tmp_path / "index", *given) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert words in err
        assert "use the id maps" in err
    assert not (tmp_path / "index").exists()


def test_ids_serve_as_labels_and_files_of_ids_are_read(
    umls_folder: Path, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without labels is indexed and asked by ids, and maps and ids from files give the index of the labels."""
    carried = umls_folder / "training_triples"
    lines = gzip.decompress((carried / "numeric_triples.tsv.gz").read_bytes()).decode().splitlines()[1:]
    train = tmp_path / "train.del"
    train.write_text("\n".join(lines))
    maps = ("--entity-to-id", carried / "entity_to_id.tsv.gz", "--relation-to-id", carried / "relation_to_id.tsv.gz")
    assert build(umls_folder, tmp_path / "labels") == 0
    assert build(unlabelled, tmp_path / "ids") == 0
    assert build(unlabelled, tmp_path / "maps", *maps) == 0
    assert build(unlabelled, tmp_path / "train", "--train", train, "--ids", *maps) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.replace("\n}\n", "\n}\0").split("\0") if line]
    assert [report["warnings"] for report in reports] == [[]] * 4
    fingerprints = {
        name: IndexRoot(tmp_path / name).open().manifest.fingerprint for name in ("labels", "ids", "maps", "train")
    }
    assert fingerprints["labels"] == fingerprints["maps"] == fingerprints["train"] != fingerprints["ids"]
    head, relation, tail = lines[0].split("\t")
    call = ["query", "--top-k", "1", "--json", "--index"]
    assert cli.main([*call, str(tmp_path / "ids"), "--triple", head, relation, tail]) == 0
    triple = json.loads(capsys.readouterr().out)["results"][0]["triple"]
    assert triple["head"] == {"id": int(head), "label": head, "name": None}
    assert cli.main([*call, str(tmp_path / "labels"), "--test", str(train), "--ids", "--max-test-triples", "1"]) == 0
    triple = json.loads(capsys.readouterr().out)["results"][0]["triple"]
    assert [triple[field]["id"] for field in ("head", "relation", "tail")] == [int(head), int(relation), int(tail)]


@pytest.mark.parametrize("options", [("--ids",), ("--entity-to-id", "e.tsv")])
def test_options_about_a_file_that_is_not_given_are_wrong_calls(
    umls_folder: Path, tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2: the folder's own triples have labels."""
    with pytest.raises(SystemExit) as raised:
        build(umls_folder, tmp_path / "index", *options)
    assert raised.value.code == 2
    assert "--train FILE" in capsys.readouterr().err


def test_models_of_other_seeds(umls_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Are averaged, and named by the index; one of other ids, a checkpoint of one of them, and none are refused."""
    other, reordered, index = tmp_path / "seed-1", tmp_path / "reordered", tmp_path / "index"
    train_umls(other, epochs=1, embedding_dim=32, seed=1)
    shutil.copytree(other, reordered)
    ids = reordered / "training_triples" / "entity_to_id.tsv.gz"
    lines = gzip.decompress(ids.read_bytes()).decode().splitlines()
    (one, first), (two, second) = (line.split("\t") for line in lines[1:3])
    lines[1:3] = [f"{one}\t{second}", f"{two}\t{first}"]
    ids.write_bytes(gzip.compress("\n".join(lines).encode()))
    for options, said in (
        (["--model", reordered], f"kgtrace: entity '{first}' has id 0 in the id map given and 1 in {reordered}"),
        (["--model", umls_folder], f"kgtrace: {umls_folder.name} is the same model as {umls_folder.name}"),
        (["--model", tmp_path / "none"], f"kgtrace: cannot read model {tmp_path / 'none'}: No such file or directory"),
    ):
        assert build(umls_folder, index, *options) == 1
        assert capsys.readouterr().err.startswith(said)
    with pytest.raises(SystemExit, match="2"):
        build(umls_folder, index, "--model", other, "--checkpoints", other)
    assert "--checkpoints are states of one model" in capsys.readouterr().err
    assert not index.exists()
    assert build(umls_folder, index, "--model", other) == 0
    service = Service(open_index(index, device="cpu"))
    assert service.index_info().summed == [{"model": folder.name, "weight": 0.5} for folder in (umls_folder, other)]
