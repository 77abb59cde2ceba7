"""Bad input to ``kgtrace build`` and its kin: exit 1, one line that says what is wrong, the live index untouched."""

import errno
import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kgtrace_indexer import ModelFile, TripleTable, read_model, write_model
from kgtrace_server.cli import main
from kgtrace_store import IndexRoot, Vocabulary, durable, layout

Umls = tuple[ModelFile, Vocabulary, TripleTable]


@pytest.fixture
def folder(umls: Umls, umls_folder: Path, tmp_path: Path) -> Path:
    """A folder with a converted model and the text files of a build of 40 triples."""
    model, vocabulary, table = umls
    folder = tmp_path / "input"
    write_model(model, folder / "model")
    for name, labels in (("entity_to_id.tsv", vocabulary.entities), ("relation_to_id.tsv", vocabulary.relations)):
        (folder / name).write_text("".join(f"{label}\t{i}\n" for i, label in enumerate(labels)))
    entities, relations = vocabulary.entities, vocabulary.relations
    lines = [f"{entities[h]}\t{relations[r]}\t{entities[t]}\n" for h, r, t in table.ids[:40].tolist()]
    (folder / "train.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def root(umls_index: Path, tmp_path: Path) -> Path:
    """An index root with a live generation."""
    return Path(shutil.copytree(umls_index, tmp_path / "index"))


def build(folder: Path, root: Path, *more: str, model: Path | None = None) -> int:
    files = {"--train": "train.txt", "--entity-to-id": "entity_to_id.tsv", "--relation-to-id": "relation_to_id.tsv"}
    flags = [text for flag, name in files.items() for text in (flag, str(folder / name))]
    model = model or folder / "model"
    return main(
        ["build", "--model", str(model), *flags, "--index", str(root), "--dim", "4", "--landmarks", "16", *more]
    )


def append(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return change


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def first_line_again(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text() + path.read_text().splitlines()[0].split("\t")[0] + "\t135\n")

    return change


def drop_last_line(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))

    return change


def with_tensor(**changes: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        model = read_model(folder / "model")
        tensors = {k: v.clone() for k, v in model.tensors.items()}
        for name, value in changes.items():
            tensors[name.replace("__", ".")].view(-1)[3] = value
        shutil.rmtree(folder / "model")
        write_model(replace(model, tensors=tensors), folder / "model")

    return change


def truncated_gzip(folder: Path) -> None:
    path = folder / "train.txt"
    path.write_bytes(gzip.compress(path.read_bytes())[:-20])


def truncate_model(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


CASES = {
    "unknown entity": (
        append("train.txt", "algae\tinteracts_with\thuman\n"),
        ["train.txt", "line 41", "'algae'", "alga"],
    ),
    "unknown relation": (append("train.txt", "alga\tinteracts\thuman\n"), ["train.txt", "line 41", "'interacts'"]),
    "malformed line": (append("train.txt", "alga\tinteracts_with\n"), ["train.txt", "line 41", "2"]),
    "empty file": (write("train.txt", b"\n\n"), ["train.txt", "no triple"]),
    "not text": (write("train.txt", b"\xff\xfe\x00\x01\n"), ["train.txt", "UTF-8"]),
    "truncated gzip": (truncated_gzip, ["train.txt", "gzip"]),
    "duplicate label": (
        first_line_again("entity_to_id.tsv"),
        ["entity_to_id.tsv lines 1 and 136: 'acquired_abnormality' has two ids"],
    ),
    "gap in ids": (append("entity_to_id.tsv", "new\t140\n"), ["entity_to_id.tsv", "140"]),
    "vocabulary too small": (drop_last_line("relation_to_id.tsv"), ["relations", "45", "46"]),
    "NaN in a parameter": (with_tensor(interaction__hr1d__0__bias=float("nan")), ["interaction.hr1d.0.bias", "NaN"]),
    "infinity": (with_tensor(interaction__hr1d__0__bias=float("inf")), ["interaction.hr1d.0.bias", "infin"]),
    "truncated model": (truncate_model, ["model.safetensors"]),
    "foreign model": (write("model/model.safetensors", b"not a model at all"), ["model.safetensors"]),
    "foreign facts": (write("model/model.json", b"[1, 2]"), ["model.json"]),
}


@pytest.mark.parametrize("case", CASES)
def test_build_says_what_is_wrong(case: str, folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of bad input has a message of one line that names it; nothing is published or left half-done."""
    change, words = CASES[case]
    change(folder)
    live = IndexRoot(root).current()
    assert build(folder, root) == 1
    message = capsys.readouterr().err
    assert message.startswith("kgtrace: ")
    assert message.count("\n") == 1
    assert [word for word in words if word.lower() not in message.lower()] == [], message
    assert IndexRoot(root).current() == live
    assert len(IndexRoot(root).generations()) == 1


def test_unknown_lines_can_be_skipped(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--skip-unknown`` counts them, and rows keep the numbers they have in the file."""
    lines = (folder / "train.txt").read_text().splitlines(keepends=True)
    (folder / "train.txt").write_text("".join(["algae\tinteracts_with\thuman\n", *lines]))
    assert build(folder, root, "--skip-unknown", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["triples"], report["skipped"]) == (40, 1)
    assert main(["query", "--index", str(root), "--test", str(folder / "train.txt"), "--skip-unknown", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert {i["train_index"] for result in results for i in result["influences"]} <= set(range(1, 41))


def test_triples_can_be_left_out(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--skip`` names them: they are counted in the report, the text and the manifest, and are in no answer."""
    lines = (folder / "train.txt").read_text().splitlines(keepends=True)
    wrong = folder / "wrong.tsv"
    wrong.write_text("".join(lines[:2]))
    assert build(folder, root, "--skip", str(wrong)) == 0
    assert "38 triples (2 skipped, 2 of them as --skip says)" in capsys.readouterr().out
    with IndexRoot(root).open() as generation:
        counts = generation.manifest.counts
    assert (counts["triples"], counts["training_triples"], counts["skipped"], counts["left_out"]) == (38, 38, 2, 2)
    assert main(["self-influence", "--index", str(root), "--top-k", "40", "--json"]) == 0
    ranked = json.loads(capsys.readouterr().out)["self_influences"]
    assert {found["train_index"] for found in ranked} == set(range(2, 40))

    append = ["append", "--index", str(root), "--train", str(folder / "train.txt"), "--skip", str(wrong), "--json"]
    assert main(append) == 1
    assert "are indexed already" in capsys.readouterr().err
    (folder / "train.txt").write_text("".join([*lines, "human\tisa\thuman\n"]))
    assert main(append) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["triples"], report["left_out"]) == (39, 4)

    wrong.write_text("human\tisa\talga\n")
    assert build(folder, root, "--skip", str(wrong)) == 1
    assert "names 'human' 'isa' 'alga', which is no training triple" in capsys.readouterr().err
    assert build(folder, root, "--skip", str(wrong), "--skip-unknown", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["left_out"] == 0
    assert f"1 of 1 lines of {wrong} name no training triple" in printed.err


def test_missing_inverse_relations(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both directions cannot be asked of a model trained forward only."""
    model = read_model(folder / "model")
    relation = "relation_representations.0._embeddings.weight"
    tensors = {**model.tensors, relation: model.tensors[relation][::2].contiguous()}
    shutil.rmtree(folder / "model")
    write_model(replace(model, tensors=tensors, inverse_triples=False), folder / "model")
    assert build(folder, root, "--directions", "both") == 1
    assert "needs a model trained with inverse triples; this one has none" in capsys.readouterr().err
    assert build(folder, root) == 0


def test_a_pickle_that_is_no_model(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A zip file of something else is refused by name."""
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("holiday.txt", "sun")
    assert build(folder, root, model=folder / "model.pt") == 1
    assert "model.pt" in capsys.readouterr().err


def test_an_index_of_a_later_schema(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a later kgtrace wrote is refused with both versions."""
    path = next((root / "generations").iterdir()) / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "schema_version": 99}))
    assert main(["query", "--index", str(root), "--triple", "alga", "interacts_with", "human"]) == 1
    said = f"has schema version 99, this kgtrace reads up to {layout.SCHEMA_VERSION}"
    assert said in capsys.readouterr().err


def test_a_second_builder(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only one builder at a time works on a root."""
    with IndexRoot(root).stage("f" * 64):
        assert build(folder, root) == 1
    assert "build" in capsys.readouterr().err
    assert build(folder, root) == 0


def test_a_full_disk(
    folder: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that the system refuses is named, the live index stays, and the build goes on when there is room."""
    live = IndexRoot(root).current()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", lambda descriptor: full(Path("disk")))
        assert build(folder, root) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert IndexRoot(root).current() == live
    assert build(folder, root) == 0


@pytest.mark.parametrize(
    ("triple", "words"),
    [
        (["algae", "interacts_with", "human"], ["unknown entity 'algae'", "alga"]),
        (["alga", "interacts", "human"], ["unknown relation 'interacts'", "interacts_with"]),
        (["alga", "interacts_with", "999"], ["entity id 999 is out of range", "135"]),
    ],
)
def test_query_names_the_nearest(
    umls_index: Path, capsys: pytest.CaptureFixture[str], triple: list[str], words: list[str]
) -> None:
    """A typo in a label is answered with what may have been meant."""
    assert main(["query", "--index", str(umls_index), "--triple", *triple]) == 1
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message


def test_no_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A root where nothing was built says so."""
    assert main(["query", "--index", str(tmp_path / "nope"), "--triple", "a", "b", "c"]) == 1
    assert "nope" in capsys.readouterr().err


def test_triples_beyond_the_model(
    umls_folder: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numeric training triples with ids that the tables lack are refused with the row."""
    folder = Path(shutil.copytree(umls_folder, tmp_path / "model"))
    path = folder / "training_triples" / "numeric_triples.tsv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress((text + "0\t46\t1\n").encode()))
    assert main(["build", "--model", str(folder), "--index", str(root)]) == 1
    message = capsys.readouterr().err
    assert "46" in message
    assert "numeric_triples" in message
    assert message.count("\n") == 1
