"""``kgtrace tracin``: the guide's flags and JSON."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from kgtrace_indexer import TracInAnalyzer, TripleTable
from kgtrace_indexer.index.codec import PROJECTIONS
from kgtrace_indexer.inputs.sampling import sample_rows
from kgtrace_indexer.names import PRESETS, Preset, Projection
from kgtrace_server.cli import parser as cli, tracin
from tests.indexer.oracle import gradient, pykeen_model

TRAIN, TEST = 60, 5


@pytest.fixture(scope="module")
def files(umls_folder: Path, umls: tuple, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The flags that name a model and triples in labels."""
    folder = tmp_path_factory.mktemp("tracin")
    _, vocabulary, table = umls
    for name, ids in (("train", table.ids[:TRAIN]), ("test", table.ids[100 : 100 + TEST])):
        lines = (f"{vocabulary.entities[h]}\t{vocabulary.relations[r]}\t{vocabulary.entities[t]}\n" for h, r, t in ids)
        (folder / f"{name}.txt").write_text("".join(lines))
    triples = umls_folder / "training_triples"
    return {
        "--model-path": str(umls_folder / "trained_model.pkl"),
        "--train": str(folder / "train.txt"),
        "--test": str(folder / "test.txt"),
        "--entity-to-id": str(triples / "entity_to_id.tsv.gz"),
        "--relation-to-id": str(triples / "relation_to_id.tsv.gz"),
    }


def call(files: dict[str, str], *options: str) -> list[str]:
    return ["tracin", *(word for pair in files.items() for word in pair), "--device", "cpu", *options]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return what ``--json`` prints."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_knows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Choices that are literals are the keys of the indexer's tables, and the help describes every preset as it is."""
    assert get_args(Projection) == tuple(PROJECTIONS)
    with pytest.raises(SystemExit):
        cli.main(["tracin", "--help"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.split("presets:")[1].splitlines() if line}
    for name, preset in PRESETS.items():
        layers = {None: "all parameters", 1: "the last module,", 2: "the last two modules"}[preset.last_layers]
        words = [layers]
        words += ["exact"] if preset.projection is None else [f"{preset.projection} projection to {preset.dim}"]
        words += [] if preset.sample_rate == 1 else [f"{preset.sample_rate:.0%}".replace("%", " %"), "by relation"]
        assert [word for word in words if word not in lines[name]] == []


def test_single_equals_autograd(files: dict[str, str], umls_folder: Path, umls: tuple, capsys: Any) -> None:
    """The baseline, forward, is the learning rate times the inner product of full gradients."""
    options = ["--mode", "single", "--test-indices", "3", "1", "--preset", "baseline", "--directions", "forward"]
    document = run(capsys, *call(files, *options, "--learning-rate", "0.01", "--top-k", "1000"))
    assert [result["test_index"] for result in document] == [3, 1]
    _, vocabulary, table = umls
    oracle = pykeen_model(umls_folder)
    training = torch.stack([gradient(oracle, triple, ["tail"]) for triple in table.ids[:TRAIN]])
    for result in document:
        triple = table.ids[100 + result["test_index"]]
        assert result["test_triple"] == triple.tolist()
        assert result["test_triple_label"][1] == vocabulary.relations[triple[1]]
        wanted = 0.01 * training @ gradient(oracle, triple, ["tail"])
        rows = [found["train_index"] for found in result["influences"]]
        assert sorted(rows) == list(range(TRAIN))
        values = torch.tensor([found["influence"] for found in result["influences"]])
        torch.testing.assert_close(values, wanted[rows], rtol=1e-4, atol=1e-7)
        assert values.abs().tolist() == sorted(values.abs().tolist(), reverse=True)
        found = result["influences"][0]
        assert set(found) == {
            *("train_head", "train_relation", "train_tail", "train_index", "influence"),
            *("train_head_label", "train_relation_label", "train_tail_label"),
        }
        assert found["train_tail_label"] == vocabulary.entities[found["train_tail"]]
        assert [found["train_head"], found["train_relation"], found["train_tail"]] == table.ids[rows[0]].tolist()


def test_test_sums_up(files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Mode test writes the numbers beside the results, and the file is what ``--json`` prints."""
    out = tmp_path / "results.json"
    options = ["--mode", "test", "--max-test-triples", "2", "--top-k", "3", "--sample-rate", "0.5"]
    document = run(capsys, *call(files, *options, "--stratify-by", "relation", "--seed", "4", "--output", str(out)))
    assert json.loads(out.read_text()) == document
    results = document.pop("results")
    assert document == {
        "num_test_triples": 2,
        "num_skipped_test_triples": 0,
        "num_training_triples": TRAIN,
        "num_sampled_triples": TRAIN // 2,
        "sample_rate": 0.5,
        "top_k": 3,
        "learning_rate": 1.0,
    }
    assert [result["test_index"] for result in results] == [0, 1]
    assert [len(result["influences"]) for result in results] == [3, 3]


def test_unknown_test_triples_are_skipped_and_counted(
    files: dict[str, str], umls: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As test sets have entities that no model was trained on; rows keep their numbers, and one asked for is missed."""
    test = tmp_path / "test.txt"
    test.write_text("nobody\tknows\tthis\n" + Path(files["--test"]).read_text())
    files = {**files, "--test": str(test)}
    assert cli.main(call(files, "--max-test-triples", "2", "--json")) == 0
    captured = capsys.readouterr()
    assert (
        f"kgtrace: warning: 1 of 6 lines of {test} name unknown entities or relations: they were skipped\n"
        in captured.err
    )
    document = json.loads(captured.out)
    assert document["num_skipped_test_triples"] == 1
    assert [result["test_index"] for result in document["results"]] == [1, 2]
    assert [one["test_index"] for one in run(capsys, *call(files, "--mode", "single"))] == [1]
    assert cli.main(call(files, "--test-indices", "0")) == 1
    assert "--test-indices 0" in capsys.readouterr().err


def test_self_ranks_training_triples(files: dict[str, str], umls: tuple, capsys: Any, tmp_path: Path) -> None:
    """Mode self needs no test triples and writes the largest self-influences, with labels."""
    del (files := dict(files))["--test"]
    document = run(capsys, *call(files, "--mode", "self", "--top-k", "4", "--learning-rate", "0.1"))
    analyzer = TracInAnalyzer(umls[0], device="cpu")
    wanted = analyzer.compute_self_influence(umls[2].ids[:TRAIN], learning_rate=0.1, top_k=4)
    assert [{name: row[name] for name in wanted[0]} for row in document] == wanted
    assert set(document[0]) == {*wanted[0], "head_label", "relation_label", "tail_label"}


GUIDE = {
    "baseline": "--mode single --test-indices 0",
    "last layers": "--mode single --test-indices 0 --use-last-layers-only --num-last-layers 2 --top-k 20",
    "named layers": "--mode test --use-last-layers-only --last-layer-names interaction.hr1d entity_representations.1",
    "projection": "--mode test --max-test-triples 2 --use-projection --projection-dim 256 --projection-type gaussian",
    "sparse": "--mode test --use-last-layers-only --use-projection --projection-dim 64 --projection-type sparse",
    "sampling": "--mode test --sample-rate 0.1 --stratify-by relation --seed 42",
    "everything": "--mode test --max-test-triples 3 --use-last-layers-only --num-last-layers 2 --use-projection "
    "--projection-dim 128 --sample-rate 0.5 --stratify-by head --batch-size 16 --learning-rate 0.001 --top-k 5",
    "model facts": "--mode single --test-indices 1 --embedding-dim 32 --output-channels 16",
    "self": "--mode self --use-last-layers-only",
    **{preset: f"--mode test --preset {preset}" for preset in PRESETS},
}


@pytest.mark.parametrize("options", GUIDE.values(), ids=GUIDE)
def test_the_guides_commands_run(options: str, files: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    """Each writes its file, whole, and says so in a line."""
    out = tmp_path / "out.json"
    assert cli.main(call(files, *options.split(), "--output", str(out))) == 0
    document = json.loads(out.read_text())
    assert capsys.readouterr().out.startswith(f"{out}: ")
    results = document["results"] if isinstance(document, dict) else document
    assert len(results) > 0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["conve-codex-s", "conve-fb15k-237"])
def test_real_models_are_explained(name: str, shared: Path, tmp_path: Path, capsys: Any) -> None:
    """From a PyKEEN folder that carries its triples, with test triples of the data set."""
    data = {"conve-codex-s": "CoDEx-S", "conve-fb15k-237": "FB15k-237"}[name]
    model, test = shared / "models" / name, shared / "data" / data / "test.txt"
    options = ["--mode", "test", "--max-test-triples", "2", "--preset", "extreme", "--sample-rate", "0.002"]
    document = run(capsys, "tracin", "--model-path", str(model), "--test", str(test), *options, "--top-k", "3")
    assert [len(result["influences"]) for result in document["results"]] == [3, 3]
    assert document["num_sampled_triples"] < document["num_training_triples"]


def test_pages_are_for_people(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without ``--output`` and ``--json`` there are tables of labels."""
    assert cli.main(call(files, "--max-test-triples", "2", "--top-k", "2")) == 0
    pages = capsys.readouterr().out.split("\n\n")
    assert len(pages) == 2
    assert pages[0].splitlines()[1].split() == ["influence", "row", "head", "relation", "tail"]
    assert cli.main(call(files, "--mode", "self", "--top-k", "2")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_training_triples_may_come_with_the_model(umls_folder: Path, files: dict[str, str], umls: tuple) -> None:
    """A folder, or a file in it, brings triples and id maps; progress counts all of them."""
    seen: list[tuple[int, int]] = []
    for path in (umls_folder, umls_folder / "trained_model.pkl"):
        args = cli.parser().parse_args(["tracin", "--model-path", str(path), "--test", files["--test"]])
        from kgtrace_server.cli.inputs import training_data

        vocabulary, training = training_data(args)
        np.testing.assert_array_equal(training.ids, umls[2].ids)
    few = TripleTable(training.ids[:30], training.train_index[:30], 0)
    args.batch_size = 20
    asked = tracin.Run(umls[0], vocabulary, few, Preset(), args, lambda stage, done, total: seen.append((done, total)))
    asked.explained(umls[2].ids[:300], np.arange(300))
    assert seen == [(20, 60), (30, 60), (50, 60), (60, 60)]


def parsed(*options: str) -> argparse.Namespace:
    return cli.parser().parse_args(["tracin", "--model-path", "m", *options])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], Preset()),
        (["--preset", "extreme"], PRESETS["extreme"]),
        (["--num-last-layers", "3"], Preset(3)),
        (["--last-layer-names", "a", "b"], Preset(2)),
        (["--use-last-layers-only"], Preset(2)),
        (["--preset", "extreme", "--use-last-layers-only"], PRESETS["extreme"]),
        (["--preset", "standard", "--no-use-last-layers-only"], Preset()),
        (["--projection-dim", "64"], Preset(None, "gaussian", 64)),
        (["--use-projection", "--projection-type", "sparse"], Preset(None, "sparse", 256)),
        (["--preset", "fast", "--no-use-projection"], Preset(2)),
        (["--preset", "fast", "--projection-dim", "512"], Preset(2, "gaussian", 512)),
        (["--preset", "extreme", "--use-projection"], PRESETS["extreme"]),
        (["--sample-rate", "0.2"], Preset(sample_rate=0.2)),
        (["--preset", "very-fast", "--sample-rate", "1", "--stratify-by", "none"], Preset(2, "gaussian")),
        (["--sample-rate", "0.2", "--stratify-by", "tail"], Preset(sample_rate=0.2, stratify_by="tail")),
    ],
)
def test_explicit_flags_go_before_the_preset(options: Sequence[str], wanted: Preset) -> None:
    """Each flag replaces its part of the preset; what says how something is done asks for it."""
    found = tracin.chosen(parsed(*options))
    ignored = {"dim"} if wanted.projection is None else set()
    for field in fields(Preset):
        if field.name not in ignored:
            assert getattr(found, field.name) == getattr(wanted, field.name), field.name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mode", "single"], "--mode single explains the triples of --test FILE"),
        (["--mode", "all"], "invalid choice: 'all'"),
        (["--sample-rate", "0"], "'0' is not a number above 0 and up to 1"),
        (["--sample-rate", "x"], "'x' is not a number above 0"),
        (["--learning-rate", "-1"], "'-1' is not a positive number"),
        (["--num-last-layers", "0"], "'0' is not an integer of at least 1"),
        (["--projection-type", "haar"], "invalid choice: 'haar'"),
        (["--test", "t", "--test-indices", "1", "--max-test-triples", "2"], "not allowed with"),
        (
            ["--test", "t", "--no-use-last-layers-only", "--num-last-layers", "1"],
            "--no-use-last-layers-only leaves --num-last-layers nothing to say",
        ),
        (
            ["--test", "t", "--no-use-last-layers-only", "--last-layer-names", "a"],
            "--no-use-last-layers-only leaves --last-layer-names nothing to say",
        ),
        (
            ["--test", "t", "--no-use-projection", "--projection-dim", "5"],
            "--no-use-projection leaves --projection-dim nothing to say",
        ),
        (
            ["--test", "t", "--preset", "extreme", "--no-use-projection", "--projection-type", "sparse"],
            "--no-use-projection leaves --projection-type nothing to say",
        ),
        (["--test", "t", "--stratify-by", "head"], "--stratify-by says how a sample is drawn: give --sample-rate"),
        (["--test", "t", "--preset", "extreme", "--sample-rate", "1", "--stratify-by", "head"], "give --sample-rate"),
    ],
)
def test_wrong_calls_exit_2(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And say what was wrong."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["tracin", "--model-path", "m", *options])
    assert raised.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output-channels", "32"], "is a ConvE with 16 output channels, not 32 (--output-channels)"),
        (["--embedding-dim", "31"], "embeddings of 32 values, not 31"),
        (["--interaction", "TransE"], "is a ConvE, not a TransE"),
        (["--num-last-layers", "9"], "this model has last:1 to last:4"),
        (["--last-layer-names", "linear"], "'linear' matches no parameter"),
        (["--test-indices", "5"], "--test-indices 5"),
        (["--output", "/nowhere/out.json"], "there is no folder /nowhere"),
        (["--output", "out.csv"], "output out.csv ends in '.csv', must end in .json"),
    ],
)
def test_failures_leave_the_output_alone(
    options: list[str], words: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1, one line, and what was in the file before is still there."""
    out = tmp_path / "out.json"
    out.write_text("before")
    given = [] if "--output" in options else ["--output", str(out)]
    assert cli.main(call(files, *options, *given)) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


def test_sampled_runs_look_at_the_sample(files: dict[str, str], umls: tuple, capsys: Any) -> None:
    """The sample is that of the seed, and nothing else is named."""
    options = ["--test-indices", "0", "--mode", "single", "--top-k", "100", "--seed", "3"]
    document = run(capsys, *call(files, *options, "--sample-rate", "0.3", "--stratify-by", "tail"))
    rows = sorted(found["train_index"] for found in document[0]["influences"])
    assert rows == sample_rows(umls[2].ids[:TRAIN], 0.3, "tail", 3).tolist()
