"""Influence averaged over models of other seeds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kgtrace_indexer import Attributor, BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.building.append import append
from kgtrace_indexer.inputs.model_reader import with_models
from kgtrace_indexer.names import Score
from kgtrace_store import Vocabulary
from kgtrace_store.errors import BadRequest, CorruptGeneration, UnsupportedModel
from tests.indexer.models.zoo import Save, factory, save, seeds

__all__ = ["save"]  # a fixture

SCORES: tuple[Score, ...] = ("tracin", "preconditioned")
LABELS = Vocabulary([f"e{i}" for i in range(14)], [f"r{i}" for i in range(55)])


def opened(root: Path, model: ModelFile, appended: int = 0, **options: Any) -> Attributor:
    """Index some triples, perhaps the last of them afterwards."""
    ids = factory(False).mapped_triples.numpy()[::9].astype(np.int32)
    first = ids[: len(ids) - appended]
    config = BuildConfig(**{"dim": 6, "landmarks": 30, "dtype": "float32", "device": "cpu", **options})
    build(root, model, LABELS, TripleTable(first, np.arange(len(first)), 0), config)
    if appended:
        (root / "all.tsv").write_text("".join(f"e{h}\tr{r}\te{t}\n" for h, r, t in ids.tolist()))
        append(root, root / "all.tsv", device="cpu")
    return open_index(root, device="cpu")


CASES = [
    ("ConvE", True, {}),
    ("ConvE", True, {"directions": "forward", "shard_size": 31}),
    ("ComplEx", True, {"damping": 0.1, "appended": 20}),
    ("TransE", False, {}),
    ("RotatE", True, {"shard_size": 31, "appended": 20}),
]


@pytest.mark.parametrize(("name", "inverse", "options"), CASES, ids=str)
def test_influence_is_the_mean_of_the_models(
    save: Save,
    tmp_path: Path,
    name: str,
    inverse: bool,
    options: dict[str, Any],
) -> None:
    """By both scores, each model with its own P; searched, certified, and of triples with themselves."""
    models = seeds(save(name, inverse).model, 3)
    together = opened(tmp_path / "all", with_models(models[0], models[1:]), **options)
    apart = [opened(tmp_path / str(i), model, **options) for i, model in enumerate(models)]
    count = len(together.training.triples)
    tests = factory(False).mapped_triples.numpy()[[0, 9, 500]].astype(np.int64)
    for score in SCORES:
        columns = [each.exact_influences(tests, np.arange(count), score=score) for each in apart]
        wanted = np.mean(columns, 0)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(
            together.exact_influences(tests, np.arange(count), score=score), wanted, rtol=1e-3, atol=1e-4 * scale
        )
        answers = together.query(tests, top_k=7, score=score).attributions
        for answer, first, column in zip(
            answers, apart[0].query(tests, score=score).attributions, wanted.T, strict=True
        ):
            assert answer.certified
            np.testing.assert_allclose(answer.influence, np.sort(column)[::-1][:7], rtol=1e-3, atol=1e-4 * scale)
            assert (answer.score, answer.rank) == pytest.approx((first.score, first.rank))
        own = np.mean([each.training.self_influence[score] for each in apart], 0)
        np.testing.assert_allclose(together.training.self_influence[score], own, rtol=2e-3, atol=1e-4 * own.max())


def test_one_unit_of_damping_for_several_models_is_refused(save: Save, tmp_path: Path) -> None:
    """As earlier indexes of checkpoints had it."""
    models = seeds(save("ComplEx", True).model, 2)
    files = opened(tmp_path, with_models(models[0], models[1:])).files
    earlier = replace(files, scales={**files.scales, "mean_square": files.scales["mean_square"][:1]})
    with pytest.raises(CorruptGeneration, match=r"has 1 units of damping for 2 checkpoints, .*build the index again"):
        earlier.preconditioner()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            lambda model, _: replace(model, interaction="CP"),
            UnsupportedModel,
            "its interaction is CP, the first model's",
        ),
        (
            lambda _, save: save("ComplEx", True, embedding_dim=5).model,
            UnsupportedModel,
            "it has entity_repr.*, the mod",
        ),
        (
            lambda model, _: replace(model, source="again"),
            BadRequest,
            "again is the same model as .*: give models of other seeds",
        ),
    ],
)
def test_models_that_do_not_go_together(
    save: Save,
    change: Callable[[ModelFile, Save], ModelFile],
    error: type[Exception],
    said: str,
) -> None:
    """Are refused, saying why."""
    model = save("ComplEx", True).model
    with pytest.raises(error, match=said):
        with_models(model, [change(model, save)])
