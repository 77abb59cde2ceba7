"""The whole path on a real, full-size model, in process."""

from pathlib import Path

import numpy as np

from kgtrace_indexer import BuildConfig, build, open_index, read_model, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples


def test_codex_answers_are_certified_and_exact(shared: Path, tmp_path: Path) -> None:
    """Every answer on CoDEx-S is certified and equals the full scan; both bounds hold for every pair."""
    folder = shared / "models" / "conve-codex-s"
    vocabulary, table = read_training_folder(folder / "training_triples")
    build(tmp_path, read_model(folder), vocabulary, table, BuildConfig(device="cpu"))
    attributor = open_index(tmp_path, device="cpu")
    test = read_triples(shared / "data" / "CoDEx-S" / "test.txt", vocabulary, skip_unknown=True).ids
    queries = test[np.random.default_rng(0).choice(len(test), 12, replace=False)].astype(np.int64)
    rows = np.arange(len(attributor))
    truth = np.concatenate([attributor.exact_influences(queries, part) for part in np.array_split(rows, 20)])
    for query, influences, found in zip(queries, truth.T, attributor.query(queries).attributions, strict=True):
        assert found.certified
        best = np.sort(influences)[::-1][:10]
        np.testing.assert_allclose(found.influence, best, rtol=1e-4)
        upper, low, high = attributor.bounds(query, rows)
        assert (influences <= upper).all()
        assert (influences >= low).all()
        assert (influences <= high).all()
