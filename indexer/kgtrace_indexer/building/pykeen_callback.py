"""An index at the end of a training with PyKEEN, over checkpoints of that training if wanted."""

import logging
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kgtrace_indexer.building.build import BuildConfig, BuildReport, build
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.model_reader import PYKEEN_MODEL, read_model, with_checkpoints
from kgtrace_indexer.inputs.training_folder import read_training_folder
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_store.errors import BadRequest, KgtraceError, MissingExtra, NonFinite

try:
    from pykeen.checkpoints import save_model
    from pykeen.training import TrainingCallback
except ImportError as e:
    raise MissingExtra("a callback of PyKEEN needs PyKEEN: pip install 'kgtrace[pykeen]'") from e

if TYPE_CHECKING:
    from pykeen.training import TrainingLoop
    from pykeen.triples import CoreTriplesFactory

_log = logging.getLogger(__name__)


class IndexCallback(TrainingCallback):
    """Leaves the index that ``kgtrace build`` makes of the saved model when a training ends.

    ::

        dataset = Nations(create_inverse_triples=True)
        callback = IndexCallback("INDEX", dataset.training)
        pipeline(dataset=dataset, model="ConvE", training_kwargs={"callbacks": callback})

    A build that fails is logged, and the training's result is not lost; `finish` then tries again.
    """

    def __init__(
        self,
        root: Path | str,
        triples_factory: "CoreTriplesFactory",
        *,
        every: int | None = None,
        config: BuildConfig = BuildConfig(),  # noqa: B008 (frozen)
    ) -> None:
        """Store; nothing is written.

        Parameters
        ----------
        root
            The index root, made if it is not there.
        triples_factory
            The training triples, as the training loop gets them.
        every
            Keep a checkpoint after each so many epochs, with the optimizer's learning rate at that time: influence is
            summed over them, as TracInCP does. None for the trained model alone.
        config
            What to index, and how.

        Raises
        ------
        BadRequest
            ``every`` is below 1.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        if every is not None and every < 1:
            raise BadRequest(f"every is {every}, must be at least 1 epoch")
        self._root = Path(root)
        self._triples_factory = triples_factory
        self._every = every
        self._config = config
        self._folder = Path(tempfile.mkdtemp(prefix="kgtrace-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._checkpoints: dict[int, tuple[Path, float]] = {}
        """File and learning rate by epoch, from 1."""
        self._report: BuildReport | None = None

    def register_training_loop(self, training_loop: "TrainingLoop[Any]") -> None:
        """Begin. Raises `UnsupportedModel` or `BadRequest` for what could not be indexed after the training."""
        if self._report is not None:
            raise BadRequest("this callback has left its index: make another one for another training")
        super().register_training_loop(training_loop)
        triples, device = self._triples_factory.mapped_triples.numpy(), pick_device(self._config.device)
        with suppress(NonFinite):  # parameters are only initialized when the training begins
            featurizer_for(self._saved_model(), self._config.settings, device, triples)

    def post_epoch(self, epoch: int, epoch_loss: float, **kwargs: Any) -> None:
        """Keep a checkpoint if it is time for one."""
        if self._every is not None and epoch % self._every == 0:
            path = self._folder / f"checkpoint_{epoch:07d}.pt"
            save_model(self.model, path)
            self._checkpoints[epoch] = path, self.optimizer.param_groups[0]["lr"]

    def post_train(self, losses: list[float], **kwargs: Any) -> None:
        """Index the trained model."""
        try:
            self.finish()
        except KgtraceError:
            _log.exception("the trained model was not indexed; call finish() to try again")

    def finish(self, last_epoch: int | None = None) -> BuildReport:
        """Index the model as it is now, unless that was done before.

        To be called where an early stopper ends the training, of which PyKEEN tells no callback; ``last_epoch``, its
        ``best_epoch``, leaves out later checkpoints, since the model is set back. Raises what `build` raises.
        """
        if self._report is None:
            kept = [saved for epoch, saved in self._checkpoints.items() if last_epoch is None or epoch <= last_epoch]
            model = with_checkpoints(self._saved_model(), [path for path, _ in kept], [rate for _, rate in kept])
            self._triples_factory.to_path_binary(self._folder / "training_triples")
            data = read_training_folder(self._folder / "training_triples")
            self._report = build(self._root, model, *data, self._config)
            self._remove()
        return self._report

    def _saved_model(self) -> ModelFile:
        """Read the model as PyKEEN saves it."""
        folder = self._folder / type(self.model).__name__
        folder.mkdir(exist_ok=True)
        torch.save(self.model, folder / PYKEEN_MODEL)
        return read_model(folder)
