"""New training triples of the same model, indexed beside the old ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, build as build_index, open_index
from kgtrace_indexer.building import parts
from kgtrace_indexer.building.append import append
from kgtrace_store import IndexRoot, Vocabulary
from kgtrace_store.arrays import open_arrays
from kgtrace_store.errors import EmptyInput, IndexNotFound, UnknownEntity

Umls = tuple[ModelFile, Vocabulary, TripleTable]
SMALL = BuildConfig(precondition="none", dim=8, landmarks=128)
OLD, NEW = 300, 80


@pytest.fixture
def grown(umls: Umls, tmp_path: Path) -> Path:
    """An index root with a live generation of the first 300 triples."""
    model, vocabulary, table = umls
    build(tmp_path, model, vocabulary, TripleTable(table.ids[:OLD], table.train_index[:OLD], 0), SMALL)
    return tmp_path


def write(path: Path, vocabulary: Vocabulary, ids: np.ndarray) -> Path:
    """Write triples as lines of labels."""
    lines = (f"{vocabulary.entities[h]}\t{vocabulary.relations[r]}\t{vocabulary.entities[t]}\n" for h, r, t in ids)
    path.write_text("".join(lines))
    return path


def test_answers_are_those_of_a_full_rebuild(
    umls: Umls, grown: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only new triples are computed; every array and answer is that of a build of all with the same directions."""
    model, vocabulary, table = umls
    encoded: list[int] = []
    stored = parts.stored
    monkeypatch.setattr(parts, "stored", lambda *args: (encoded.append(len(args[3])), stored(*args))[1])
    monkeypatch.setattr(parts, "_PART", 32)  # several runs to merge
    report = append(grown, write(grown / "new.tsv", vocabulary, table.ids[OLD : OLD + NEW]))
    assert sum(encoded) == NEW
    assert (report.triples, report.skipped, report.published) == (OLD + NEW, 0, True)

    old = open_index(grown, IndexRoot(grown).generations()[0].id, device="cpu")
    monkeypatch.setattr(__import__("sys").modules[build_index.__module__], "_bases", lambda *_: old._codec.bases)
    rebuilt = tmp_path_factory.mktemp("rebuilt")
    everything = TripleTable(table.ids[: OLD + NEW], table.train_index[: OLD + NEW], 0)
    build(rebuilt, model, vocabulary, everything, SMALL)
    with IndexRoot(grown).open() as a, IndexRoot(rebuilt).open() as b:
        assert a.manifest.configuration == b.manifest.configuration
        assert a.manifest.counts == b.manifest.counts
        assert a.manifest.provenance["extends"] == old.manifest.generation
        for name in ("gradients.h5", "search.h5", "rows-0.h5", "rows-1.h5", "moments-0.h5", "moments-1.h5"):
            found, wanted = open_arrays(a.path / name), open_arrays(b.path / name)
            assert set(found) == set(wanted)
            for key, array in wanted.items():
                if array.dtype.kind == "i" or key.startswith("basis."):
                    np.testing.assert_array_equal(found[key], array, err_msg=key)
                elif not key.endswith(("code", "vectors")):
                    np.testing.assert_allclose(found[key], array, rtol=1e-3, atol=1e-4 * np.abs(array).max())
    queries = table.ids[OLD - 10 : OLD + 10].astype(np.int64)
    found, wanted = (open_index(root, device="cpu").query(queries).attributions for root in (grown, rebuilt))
    for x, y in zip(found, wanted, strict=True):
        assert x.certified
        assert x.in_training
        assert set(x.train_index) == set(y.train_index)
        np.testing.assert_allclose(x.influence, y.influence, rtol=1e-4)


def test_a_training_file_that_has_grown_may_be_given_whole(umls: Umls, grown: Path) -> None:
    """Lines that are indexed already, or repeated, are skipped and counted; numbers go on after the old file's."""
    _, vocabulary, table = umls
    ids = np.concatenate(
        [table.ids[:OLD], table.ids[OLD : OLD + 3], table.ids[OLD : OLD + 1], table.ids[OLD + 3 :][:1]]
    )
    report = append(grown, write(grown / "all.tsv", vocabulary, ids))
    assert (report.triples, report.skipped) == (OLD + 4, OLD + 1)
    with IndexRoot(grown).open() as generation:
        arrays = open_arrays(generation.path / "gradients.h5")
        added = arrays["train_index"] >= OLD
        assert sorted(arrays["train_index"][added]) == [2 * OLD, 2 * OLD + 1, 2 * OLD + 2, 2 * OLD + 4]
        by_index = dict(zip(arrays["train_index"].tolist(), arrays["triples"].tolist(), strict=True))
        assert by_index[2 * OLD + 4] == table.ids[OLD + 3].tolist()
        again = append(grown, write(grown / "one.tsv", vocabulary, table.ids[OLD + 4 : OLD + 5]))
        assert again.triples == OLD + 5
        assert (
            max(open_index(grown, device="cpu").training.train_index)
            == generation.manifest.counts["triples"] + generation.manifest.counts["skipped"]
        )


def test_what_cannot_be_appended_is_named(umls: Umls, grown: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing new, unknown labels and a root without a live generation are errors; the live generation stays."""
    _, vocabulary, table = umls
    live = IndexRoot(grown).current()
    known = write(grown / "known.tsv", vocabulary, table.ids[:5])
    with pytest.raises(EmptyInput, match=r"known.tsv: all of its 5 triples are indexed already"):
        append(grown, known)
    (grown / "odd.tsv").write_text("nobody\tisa\tnothing\n")
    with pytest.raises(UnknownEntity, match="nobody"):
        append(grown, grown / "odd.tsv")
    with pytest.raises(IndexNotFound, match="no live generation"):
        append(tmp_path_factory.mktemp("empty"), known)
    assert IndexRoot(grown).current() == live
    assert len(IndexRoot(grown).generations()) == 1


def test_an_interrupted_append_is_resumed(
    umls: Umls, grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished parts are not computed again, and end up as without the stop; other triples do not find them."""
    _, vocabulary, table = umls
    monkeypatch.setattr(parts, "_PART", 32)
    shutil.copytree(grown, tmp_path / "whole")
    file = write(grown / "new.tsv", vocabulary, table.ids[OLD : OLD + NEW])

    def stop(stage: str, done: int, total: int) -> None:
        if done > 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append(grown, file, progress=stop)
    encoded: list[int] = []
    stored = parts.stored
    monkeypatch.setattr(parts, "stored", lambda *args: (encoded.append(len(args[3])), stored(*args))[1])
    append(grown, write(grown / "other.tsv", vocabulary, table.ids[OLD + 1 : OLD + 21]))
    assert sum(encoded) == 20
    IndexRoot(grown).rollback()
    encoded.clear()
    append(grown, file)
    assert NEW - 32 <= sum(encoded) < NEW
    append(tmp_path / "whole", file)
    with IndexRoot(grown).open() as resumed, IndexRoot(tmp_path / "whole").open() as whole:
        for path in whole.path.glob("*.h5"):
            for name, array in open_arrays(path).items():
                np.testing.assert_array_equal(open_arrays(resumed.path / path.name)[name], array, err_msg=name)
