"""Trainings with PyKEEN that leave an index."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pykeen.checkpoints import save_model
from pykeen.datasets import Nations
from pykeen.pipeline import PipelineResult, pipeline
from pykeen.training import TrainingCallback

from kgtrace_indexer import BuildConfig, BuildReport, build, read_model, read_training_folder
from kgtrace_indexer.building.pykeen_callback import IndexCallback
from kgtrace_indexer.inputs.model_reader import with_checkpoints
from kgtrace_store import IndexRoot
from kgtrace_store.errors import BadRequest, BuilderRunning, MissingExtra, UnsupportedModel

CONFIG = BuildConfig(dim=4, landmarks=32, device="cpu")
Train = Callable[..., PipelineResult]

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning"),  # PyKEEN gives it
]


class Recorder(TrainingCallback):  # type: ignore[misc]
    """Keeps what PyKEEN's own function saves after each epoch, and the learning rate."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.rates: list[float] = []

    def post_epoch(self, epoch: int, epoch_loss: float, **_: Any) -> None:
        save_model(self.model, self.folder / f"{epoch}.pt")
        self.rates.append(self.optimizer.param_groups[0]["lr"])


@pytest.fixture(scope="module")
def nations() -> Nations:
    return Nations(create_inverse_triples=True)


@pytest.fixture
def train(nations: Nations) -> Train:
    """Trains a small model; the same one for the same arguments."""

    def run(*callbacks: TrainingCallback, epochs: int = 4, **options: Any) -> PipelineResult:
        return pipeline(
            dataset=nations,
            training_loop="lcwa",
            **{"model": "DistMult", "model_kwargs": {"embedding_dim": 8}, **options},
            training_kwargs={"num_epochs": epochs, "batch_size": 256, "callbacks": list(callbacks), "use_tqdm": False},
            evaluation_kwargs={"batch_size": 256, "use_tqdm": False},
            random_seed=0,
            device="cpu",
        )

    return run


def fingerprint(root: Path) -> str:
    """Equal for indexes of equal content."""
    with IndexRoot(root).open() as generation:
        return generation.manifest.fingerprint


def built(root: Path, folder: Path, paths: list[Path] = [], rates: list[float] = []) -> str:  # noqa: B006
    """The fingerprint of an index of a saved folder."""
    model = with_checkpoints(read_model(folder), paths, rates)
    build(root, model, *read_training_folder(folder / "training_triples"), CONFIG)
    return fingerprint(root)


@pytest.mark.parametrize(
    "options", [{}, {"model": "ConvE", "model_kwargs": {"embedding_dim": 16, "output_channels": 4}}]
)
def test_a_training_leaves_the_index_of_its_saved_folder(
    train: Train, nations: Nations, tmp_path: Path, options: dict[str, Any]
) -> None:
    """And the model is the one that a training without the callback gives."""
    callback = IndexCallback(tmp_path / "index", nations.training, config=CONFIG)
    result = train(callback, epochs=2, **options)
    result.save_to_directory(tmp_path / "model")
    assert fingerprint(tmp_path / "index") == built(tmp_path / "expected", tmp_path / "model")
    report = callback.finish()
    assert isinstance(report, BuildReport)
    assert (report.published, report.triples) == (True, nations.training.num_triples)
    alone = train(epochs=2, **options).model.state_dict()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in result.model.state_dict().items())


def test_checkpoints_are_those_of_every_nth_epoch(train: Train, nations: Nations, tmp_path: Path) -> None:
    """With the learning rate of that time, which a schedule changes."""
    recorder = Recorder(tmp_path)
    callback = IndexCallback(tmp_path / "index", nations.training, every=2, config=CONFIG)
    schedule = {"lr_scheduler": "ExponentialLR", "lr_scheduler_kwargs": {"gamma": 0.5}}
    train(callback, recorder, epochs=5, **schedule).save_to_directory(tmp_path / "model")
    assert recorder.rates[1] > recorder.rates[3]
    paths, rates = [tmp_path / "2.pt", tmp_path / "4.pt"], [recorder.rates[1], recorder.rates[3]]
    assert fingerprint(tmp_path / "index") == built(tmp_path / "expected", tmp_path / "model", paths, rates)


def test_an_early_stop_is_finished_by_hand(train: Train, nations: Nations, tmp_path: Path) -> None:
    """PyKEEN tells no callback of it, and sets the model back to its best epoch; later checkpoints are left out."""
    recorder = Recorder(tmp_path)
    callback = IndexCallback(tmp_path / "index", nations.training, every=1, config=CONFIG)
    stopper = {"frequency": 1, "patience": 1, "relative_delta": 0.5, "best_model_path": tmp_path / "best.pt"}
    stopper |= {"evaluation_batch_size": 256}
    result = train(callback, recorder, epochs=9, stopper="early", stopper_kwargs=stopper)
    best = result.stopper.best_epoch
    assert best < len(recorder.rates) < 9
    assert not (tmp_path / "index").exists()
    callback.finish(last_epoch=best)
    result.save_to_directory(tmp_path / "model")
    paths = [tmp_path / f"{epoch}.pt" for epoch in range(1, best + 1)]
    assert fingerprint(tmp_path / "index") == built(
        tmp_path / "expected", tmp_path / "model", paths, recorder.rates[:best]
    )


def test_a_build_that_fails_does_not_lose_the_training(
    train: Train, nations: Nations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and can be tried again, checkpoints included."""
    callback = IndexCallback(tmp_path / "index", nations.training, every=1, config=CONFIG)
    with IndexRoot(tmp_path / "index").stage("a" * 64), caplog.at_level(logging.ERROR):  # another builder
        result = train(callback, epochs=1)
        with pytest.raises(BuilderRunning):
            callback.finish()
    assert result.losses
    assert "call finish() to try again" in caplog.text
    assert callback.finish() is callback.finish()
    with pytest.raises(BadRequest, match="make another one"):
        train(callback, epochs=1)
    with IndexRoot(tmp_path / "index").open() as generation:
        assert (generation.path / "model" / "checkpoints" / "0000").is_dir()


def test_what_cannot_be_indexed_is_refused_before_the_training(train: Train, nations: Nations, tmp_path: Path) -> None:
    """Not after hours of it; nothing is left behind."""
    with pytest.raises(UnsupportedModel, match="NodePiece"):
        train(IndexCallback(tmp_path / "index", nations.training), model="NodePiece")
    with pytest.raises(BadRequest, match="unknown loss 'hinge'"):
        train(IndexCallback(tmp_path / "index", nations.training, config=BuildConfig(loss="hinge")))  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="every is 0"):
        IndexCallback(tmp_path / "index", nations.training, every=0)
    assert not (tmp_path / "index").exists()


def test_no_copies_are_left(train: Train, nations: Nations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after a build nor when the callback is forgotten without one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train(IndexCallback(tmp_path / "index", nations.training, every=1, config=CONFIG), epochs=1)
    unused = IndexCallback(tmp_path / "index", nations.training)
    assert [path.name for path in tmp_path.glob("kgtrace-*")] != []
    del unused
    assert list(tmp_path.glob("kgtrace-*")) == []


def test_without_pykeen_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "pykeen.training", None)
    monkeypatch.delitem(sys.modules, "kgtrace_indexer.building.pykeen_callback")
    with pytest.raises(MissingExtra, match=r"pip install 'kgtrace\[pykeen\]'"):
        __import__("kgtrace_indexer.building.pykeen_callback")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pykeen.*")
def test_the_documented_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For fewer epochs; it leaves an index of both checkpoints."""
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    program = text[text.index("from kgtrace import IndexCallback") :].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(program.replace("every=5", "every=1").replace('"num_epochs": 20', '"num_epochs": 2'), {})
    with IndexRoot(tmp_path / "INDEX").open() as generation:
        assert generation.manifest.counts["triples"] == 1592
