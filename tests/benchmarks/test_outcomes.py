"""Published outcomes of retraining, and the ceiling that methods are compared with."""

import json

import numpy as np
import pytest
from benchmarks.truth import outcomes, share
from benchmarks.truth.outcomes import Outcomes, ceiling
from benchmarks.truth.share import alike

MASKS, TRIPLES, TESTS, SEEDS = 400, 13, 30, 3


@pytest.fixture
def published(tmp_path, monkeypatch: pytest.MonkeyPatch) -> tuple[Outcomes, np.ndarray]:
    """Outcomes that are a method's own sums, and noise of each seed as large as these."""
    monkeypatch.setattr(outcomes, "FOLDER", tmp_path / "retraining")
    rng = np.random.default_rng(0)
    kept, score = rng.random((MASKS, TRIPLES)) < 0.5, rng.standard_normal((TRIPLES, TESTS))
    sums = kept @ score
    noise = sums.std(0) * rng.standard_normal((SEEDS, 3, MASKS, TESTS))
    happened = (sums + noise).swapaxes(1, 2).astype(np.float32)
    made = Outcomes("digest", np.arange(TESTS), kept, happened, '{"model": "X"}')
    made.write("X")
    return made, score


def test_what_was_published_is_read(published: tuple[Outcomes, np.ndarray]) -> None:
    """Bit by bit, though n is no multiple of eight."""
    made, _ = published
    found = Outcomes.read("X")
    np.testing.assert_array_equal(found.kept, made.kept)
    np.testing.assert_array_equal(found.happened, made.happened)
    np.testing.assert_array_equal(found.test, made.test)
    assert (found.triples, found.recipe) == (made.triples, made.recipe)


def test_nothing_is_trained_that_was_published(published: tuple[Outcomes, np.ndarray]) -> None:
    """Outcomes stand for those of the same triples, parts, recipe and number of seeds, and of no others."""
    made, _ = published
    same = {
        "name": "X", "triples": made.triples, "test": made.test, "kept": made.kept, "recipe": made.recipe,
        "seeds": SEEDS,
    }  # fmt: skip
    found = Outcomes.of_these(**same)
    assert found is not None
    np.testing.assert_array_equal(found.happened, made.happened)
    others = {
        "name": "Y", "triples": "other", "test": made.test[::-1], "kept": ~made.kept, "recipe": "{}", "seeds": 2,
    }  # fmt: skip
    for key, other in others.items():
        assert Outcomes.of_these(**{**same, key: other}) is None, key


def test_the_truth_itself_is_at_the_ceiling(published: tuple[Outcomes, np.ndarray]) -> None:
    """Which for noise as large as the signal and k seeds is √(k / (k + 1)); nothing says no more than nothing."""
    made, score = published
    for found, most in zip(made.correlations(score), made.ceilings(), strict=True):
        assert most == pytest.approx(np.sqrt(SEEDS / (SEEDS + 1)), abs=0.03)
        assert found.mean() == pytest.approx(most, abs=0.02)
    for found in made.correlations(np.random.default_rng(1).standard_normal(score.shape)):
        assert abs(found.mean()) < 0.2


def test_one_seed_has_no_ceiling() -> None:
    assert np.isnan(ceiling(np.random.default_rng(0).random((1, 20, 5))))


def test_a_file_of_scores_is_scored(
    published: tuple[Outcomes, np.ndarray],
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And one of another shape refused."""
    _, score = published
    np.save(tmp_path / "scores.npy", score)
    monkeypatch.setattr("sys.argv", ["outcomes", "X", str(tmp_path / "scores.npy")])
    outcomes.main()
    found = json.loads(capsys.readouterr().out)
    assert found["logit"]["share"] == pytest.approx(1, abs=0.03)
    np.save(tmp_path / "scores.npy", score.T)
    with pytest.raises(SystemExit):
        outcomes.main()
    assert "has shape (30, 13), must be (13, 30)" in capsys.readouterr().err


def test_scores_are_made_alike_for_each_test_triple() -> None:
    """Even where they are all the same."""
    found = alike(np.stack([np.arange(5.0), np.full(5, 7.0)], 1))
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(0), [1, 0])


def test_tables_have_a_share_for_each_problem() -> None:
    value = {"mean": 0.3, "low": 0.2, "high": 0.4, "share": 0.5}
    rows = {"method": {"logit": value, "log-probability": value}}
    shown = share.shown({"X": {"seeds": 2, "ceilings": {"logit": 0.6, "log-probability": 0.6}, "rows": rows}})
    assert "| logit | X: 2 seeds, ceiling 0.60 |" in shown
    assert shown.count("| method | **50%**, 0.30 (0.20…0.40) |") == 2
