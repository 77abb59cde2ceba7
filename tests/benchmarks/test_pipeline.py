"""The author's table for a model that PyKEEN's pipeline trains."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.truth import paper, retraining, whole
from benchmarks.truth.graphs import Graph
from benchmarks.truth.pipeline import Pipeline
from benchmarks.truth.retraining import Job, outcome
from benchmarks.truth.training import Recipe, Sampled
from pykeen.datasets.nations import NATIONS_TEST_PATH, NATIONS_TRAIN_PATH, NATIONS_VALIDATE_PATH
from pykeen.models import ERModel
from pykeen.pipeline import pipeline_from_path

from kgtrace_store import Vocabulary
from kgtrace_store.errors import UnreadableInput, UnsupportedModel

pytestmark = pytest.mark.filterwarnings(  # where PyKEEN is run without us
    "ignore:'pin_memory' argument:UserWarning", "ignore:Training instances are always:DeprecationWarning"
)

DATA = {
    "training": str(NATIONS_TRAIN_PATH),
    "testing": str(NATIONS_TEST_PATH),
    "validation": str(NATIONS_VALIDATE_PATH),
}
DISTMULT = {
    **DATA, "model": "DistMult", "model_kwargs": {"embedding_dim": 8}, "optimizer": "adam", "training_loop": "slcwa",
    "epochs": 2, "training_kwargs": {"batch_size": 256}, "evaluation_kwargs": {"batch_size": 256},
}  # fmt: skip
ROTATE = {**DISTMULT, "dataset_kwargs": {"create_inverse_triples": True}, "model": "RotatE"}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration."""

    def written(arguments: dict[str, Any], name: str = "mine.json") -> Path:
        file = tmp_path / name
        file.write_text(json.dumps({"metadata": {}, "pipeline": arguments}))
        return file

    return written


def state(model: ERModel) -> dict[str, list[Any]]:
    """Return all numbers of a model."""
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def test_what_was_trained_before_has_the_names_that_it_had() -> None:
    """And validation triples, where there are any, give it another."""
    triples = np.arange(12).reshape(4, 3)
    graph, kept = Graph(triples, triples[:2], Vocabulary([], [])), np.array([True, True, False, True])
    job = Job(graph, Recipe(), kept, 1, triples[:1], Path())
    assert job.file.name == "6246c5da3f3cb488d83bf879.npy"
    assert replace(job, recipe=Sampled(), added=triples[1:2]).file.name == "6de49ddad0289170af108d91.npy"
    assert replace(job, graph=replace(graph, validation=triples[:1])).file != job.file


def test_a_configuration_is_json_or_yaml(write: Write, tmp_path: Path) -> None:
    """The same settings are the same training, in whatever order."""
    (tmp_path / "mine.yaml").write_text("pipeline: {model: DistMult, dataset: nations}")
    found = Pipeline.read(tmp_path / "mine.yaml")
    assert found == Pipeline.read(write({"dataset": "nations", "model": "DistMult"}))
    assert found != Pipeline.read(write({"dataset": "nations", "model": "TransE"}))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '{"model": "DistMult"}', 'has no key "pipeline"'),
        ("x.json", "[1]", 'has no key "pipeline"'),
        ("x.json", "{", "no configuration of PyKEEN's pipeline: Expecting"),
        ("x.yaml", "a: [", "no configuration of PyKEEN's pipeline: while parsing"),
        ("x.txt", "", "Unknown configuration file format"),
        ("x.json", None, "cannot read .*No such file"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UnreadableInput, match=said):
        Pipeline.read(tmp_path / name)


def test_the_documented_configuration_trains(tmp_path: Path) -> None:
    """For one epoch, on other data."""
    (text,) = re.findall(r"```json\n(.*?)```", (paper.ROOT / "docs" / "truth" / "deletion.md").read_text(), re.DOTALL)
    (tmp_path / "mine.json").write_text(text)
    shown = json.loads(Pipeline.read(tmp_path / "mine.json").arguments)
    assert shown.pop("dataset") == "umls"
    recipe = Pipeline(json.dumps({**shown, **DATA, "epochs": 1}))
    graph = recipe.graph()
    model = recipe.train(graph, graph.train, 0).model
    assert (type(model).__name__, model.num_relations) == ("RotatE", 2 * len(graph.vocabulary.relations))


@pytest.mark.parametrize("data", [{}, {"dataset": "natoins"}, {"training": "no.tsv", "testing": "no.tsv"}])
def test_data_that_are_not_there_are_named(write: Write, data: dict[str, str]) -> None:
    with pytest.raises(UnreadableInput, match=r"data of the pipeline.*(Must specify|natoins|no\.tsv)"):
        Pipeline.read(write({"model": "DistMult", **data})).graph()


@pytest.mark.parametrize("arguments", [DISTMULT, ROTATE], ids=["forward", "inverse"])
def test_training_is_pykeens_with_the_same_seed_and_without_facts(
    write: Write, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """PyKEEN's own command learns the same numbers, from a file that lacks these lines; another seed learns others."""
    recipe = Pipeline.read(write(arguments))
    graph = recipe.graph()
    kept = np.ones(len(graph.train), bool)
    kept[[3, 700, 1500]] = False
    names = [graph.vocabulary.entities, graph.vocabulary.relations, graph.vocabulary.entities]
    lines = ["\t".join(names[i][each] for i, each in enumerate(triple)) for triple in graph.train[kept]]
    (tmp_path / "fewer.txt").write_text("\n".join(lines))
    fewer = write({**arguments, "training": str(tmp_path / "fewer.txt")}, "fewer.json")
    wanted = state(pipeline_from_path(fewer, random_seed=5, device="cpu", use_tqdm=False).model)
    assert state(recipe.train(graph, graph.train[kept], 5).model) == wanted
    assert state(recipe.train(graph, graph.train, 5).model) != wanted
    assert state(recipe.train(graph, graph.train[kept], 6).model) != wanted


def test_what_would_make_all_trainings_one_is_left_out(write: Write, tmp_path: Path) -> None:
    """Checkpoints that a second training would go on from, and a seed of the model's own; nor is anything written."""
    checkpoint = {"checkpoint_name": "x.pt", "checkpoint_directory": str(tmp_path / "checkpoints"), "num_workers": 1}
    one = {
        **DISTMULT, "random_seed": 1, "model_kwargs": {"embedding_dim": 8, "random_seed": 1}, "epochs": 1,
        "training_kwargs": {"batch_size": 256, "checkpoint_frequency": 0, **checkpoint}, "result_tracker": "csv",
        "result_tracker_kwargs": {"path": str(tmp_path / "tracked")},
    }  # fmt: skip
    recipe = Pipeline.read(write(one))
    graph = recipe.graph()
    first, second = (recipe.train(graph, graph.train, seed).model for seed in (0, 1))
    assert state(first) != state(second)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize("arguments", [DISTMULT, ROTATE], ids=["forward", "inverse"])
def test_ranks_are_those_of_pykeens_predictions(write: Write, arguments: dict[str, Any]) -> None:
    """One by one, among tails that are known neither from training nor from test or validation; without a sigmoid."""
    recipe = Pipeline.read(write({**arguments, "model_kwargs": {"embedding_dim": 8, "predict_with_sigmoid": True}}))
    graph = recipe.graph()
    model = recipe.train(graph, graph.train, 0).model
    known = {tuple(triple) for part in (graph.train, graph.test, graph.validation) for triple in part.tolist()}
    assert len(known) == 1992
    found = outcome(model, recipe, graph, graph.test)
    with torch.inference_mode():
        for (head, relation, tail), logit, probability, rank in zip(graph.test.tolist(), *found, strict=True):
            own = model.predict_t(torch.tensor([[head, relation]]))[0]
            others = [i for i in range(len(own)) if (head, relation, i) not in known]
            assert rank == 1 + sum(own[i] > own[tail] for i in others)
            assert logit == pytest.approx(own[tail].logit().item(), abs=1e-4)
            assert probability == pytest.approx(own.logit().log_softmax(0)[tail].item(), abs=1e-4)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, training in this process, and returns what it prints."""
    monkeypatch.setattr(whole, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(
        retraining.multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=lambda _: ThreadPool(1))
    )

    def run(*options: Any) -> str:
        numbers = ("--predictions", 3, "--seeds", 1, "--entities", 2, "--output", tmp_path / "out")
        monkeypatch.setattr("sys.argv", ["paper", *map(str, (*options, *numbers))])
        paper.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def untouched() -> Iterator[None]:
    """Nothing is written among the project's own results."""
    folders = (paper.ROOT / "benchmarks" / "results", paper.ROOT / "docs")

    def times() -> dict[Path, float]:
        return {file: file.stat().st_mtime for folder in folders for file in folder.rglob("*")}

    before = times()
    yield
    assert times() == before


@pytest.mark.usefixtures("untouched")
def test_a_pipeline_is_explained_and_trained_again(
    command: Callable[..., str], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the author's folder alone; a model that was trained before is explained as it is, beside controls."""
    file = write(DISTMULT)
    shown = command("--pipeline", file)
    folder = tmp_path / "out" / "mine"
    assert shown.startswith("**mine**: 3 predictions, 1 seeds, MRR 0.")
    names = {path.name for path in folder.iterdir()}
    files = {f"{m}-{who}-{k}.csv" for m in ("necessary", "sufficient") for who in ("kgtrace", "random") for k in (1, 4)}
    assert names == {"table.csv", "table.md", "table.tex", "results.json"} | files
    found = json.loads((folder / "results.json").read_text())
    assert found["pipeline"] == DISTMULT
    assert [(row["mode"], row["k"]) for row in found["rows"][::2]] == [
        (mode, k) for mode in ("necessary", "sufficient") for k in (1, 4)
    ]
    assert all(0 < row["looked at"] <= 6 for row in found["rows"])
    runs = len(list((tmp_path / "kept").rglob("*.npy")))

    given = pipeline_from_path(file, random_seed=7, device="cpu", use_tqdm=False)
    given.save_to_directory(tmp_path / "given")
    monkeypatch.setattr(paper, "SIZES", (4,))
    command("--pipeline", file, "--model", tmp_path / "given")
    explained = torch.load(tmp_path / "kept" / "mine" / "model.pkl", weights_only=False)
    assert state(explained) == state(given.model)
    again = json.loads((folder / "results.json").read_text())
    assert again["model"] == str(tmp_path / "given")
    assert again["mrr"] != found["mrr"]
    assert len(list((tmp_path / "kept").rglob("*.npy"))) > runs
    for row in again["rows"]:
        for measure in ("mrr", "logit"):
            change = row["measures"][measure] - row["control"][measure]
            assert row["effect"][measure]["mean"] == pytest.approx(change, abs=1e-5)
    assert again["rows"][0]["effect"]["logit"]["mean"] != 0
    recipe = Pipeline.read(file)
    graph = recipe.graph()
    lines = [line.split(";") for line in (folder / "necessary-kgtrace-4.csv").read_text().splitlines()]
    ids = [{name: i for i, name in enumerate(each)} for each in (graph.vocabulary.entities, graph.vocabulary.relations)]
    triples = np.array([[ids[0][h], ids[1][r], ids[0][t]] for h, r, t, *_ in lines])
    control = outcome(recipe.train(graph, graph.train, 0).model, recipe, graph, triples)
    np.testing.assert_allclose([float(line[-4]) for line in lines], control[0], rtol=1e-3)
    np.testing.assert_array_equal([float(line[-2]) for line in lines], control[2])


def test_a_model_file_with_inverse_triples_is_taken(write: Write, tmp_path: Path) -> None:
    """Scores are those of the model that was saved, with all that its own pipeline does to embeddings."""
    file = write(ROTATE)
    given = pipeline_from_path(file, random_seed=7, device="cpu", use_tqdm=False)
    given.save_model(tmp_path / "alone.pkl")
    recipe = Pipeline.read(file)
    graph = recipe.graph()
    model = recipe.trained_before(tmp_path / "alone.pkl", graph).model
    assert state(model) == state(given.model)
    pairs = torch.from_numpy(graph.test[:, :2])
    with torch.inference_mode():
        torch.testing.assert_close(recipe.scores(model, *pairs.T), given.model.predict_t(pairs))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_kwargs": {"embedding_dim": 4}}, r"shape of entity_\S+ is \(14, 8\), and \(14, 4\) of models"),
        ({"model": "TransE"}, "interaction is DistMult, and TransE of models"),
        ({"dataset_kwargs": {"create_inverse_triples": True}}, "use of inverse triples is False, and True of models"),
    ],
)
def test_a_model_of_another_pipeline_is_refused(
    write: Write, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """Its controls would be other models."""
    recipe = Pipeline.read(write(DISTMULT))
    graph = recipe.graph()
    torch.save(recipe.train(graph, graph.train, 0).model, tmp_path / "model.pkl")
    with pytest.raises(UnsupportedModel, match=rf"model\.pkl is of another pipeline: its {said}"):
        Pipeline.read(write({**DISTMULT, **change})).trained_before(tmp_path / "model.pkl", graph)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\tembassy\t", "\taccusation\t", "the vocabulary has 55 relations, the model 54"),
        ("brazil", "zaire", "entity 'burma' has id 1 in the id map given and 0 in"),
    ],
)
def test_a_model_of_other_data_is_refused(
    command: Callable[..., str], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str,
    said: str,
) -> None:  # fmt: skip
    """By the numbers of entities and relations, and by the labels that were saved with it."""
    (tmp_path / "other.txt").write_text(NATIONS_TRAIN_PATH.read_text().replace(old, new))
    other = write({**DISTMULT, "training": str(tmp_path / "other.txt"), "epochs": 1}, "other.json")
    pipeline_from_path(other, random_seed=0, device="cpu", use_tqdm=False).save_to_directory(tmp_path / "given")
    with pytest.raises(SystemExit):
        command("--pipeline", write(DISTMULT), "--model", tmp_path / "given")
    assert f"{tmp_path / 'given'} is not of the data of the pipeline: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "x"), "--model needs --pipeline FILE"),
        (("--pipeline", "x.json", "--problems", "UMLS"), "--pipeline is a problem of its own"),
        (("--pipeline", "x.json"), "cannot read x.json"),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    command: Callable[..., str], capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit):
        command(*options)
    assert said in capsys.readouterr().err
