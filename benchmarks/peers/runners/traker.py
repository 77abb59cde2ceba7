"""traker: per-sample gradients through a Rademacher projection, in memory-mapped arrays.

Tuned: the projection matrix is kept (one block as wide as the projection) instead of made anew for every batch, and made
once more, untimed, after `finalize_features` has dropped it.

TRAK scores are another quantity than TracIn's. By default, the features are therefore the projected gradients
themselves, put in by the score computer that the library lets one pass; with ``"scores": "trak"`` they are its own.
"""

from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import BasicProjector, ProjectionType
from trak.score_computers import BasicScoreComputer

from benchmarks.peers.protocol import Request, Stored, folder_bytes, run, top


class LossOutput(AbstractModelOutput):
    """The loss itself as model output, so that its gradient is TracIn's."""

    def __init__(self) -> None:
        """Need nothing."""

    def get_output(self, model, weights, buffers, inputs: Tensor, tail: Tensor) -> Tensor:
        """Return ℓ of one sample."""
        output = functional_call(model, (weights, buffers), (inputs[None],))
        return model.losses(output, tail[None]).sum()

    def get_out_to_loss_grad(self, model, weights, buffers, batch) -> Tensor:
        """Return ones: what is put out is the loss."""
        return torch.ones(len(batch[1]), 1)


class ProjectedGradients(BasicScoreComputer):
    """Scores without the inverse of the features' Gram matrix: inner products of projected gradients."""

    def get_x_xtx_inv(self, grads: Tensor, xtx: Tensor) -> Tensor:
        """Return the gradients."""
        return grads


class Traker(Stored):
    """``TRAKer`` on one parameter."""

    package = "traker"

    def prepare(self) -> None:
        """Make the projection matrix."""
        dim, weight = self.request.options["dim"], self.problem.layer.fc.weight
        self.projector = BasicProjector(
            weight.numel(), dim, 0, ProjectionType.rademacher, "cpu", block_size=dim
        )  # fmt: skip
        self.stores = 0

    def open(self, count: int) -> TRAKer:
        """Return an empty store of so many vectors."""
        self.stores += 1
        self.experiments = 0
        self.path = self.request.folder / f"store-{self.stores}"
        computer = {"projected gradients": ProjectedGradients, "trak": BasicScoreComputer}
        traker = TRAKer(
            self.problem.layer, LossOutput(), count, save_dir=str(self.path), device="cpu", projector=self.projector,
            score_computer=computer[self.request.options["scores"]], use_half_precision=False, logging_level=40,
            grad_wrt=["fc.weight"],
        )  # fmt: skip
        traker.load_checkpoint(self.problem.layer.state_dict(), model_id=0)
        return traker

    def build(self, count: int, batch_size: int) -> None:
        """Featurize and finalize."""
        self.traker = self.open(count)
        for inputs, tail in self.problem.train.first(count).batches(batch_size):
            self.traker.featurize((inputs, tail), num_samples=len(tail))
        self.finalize()

    def finalize(self) -> None:
        """Make the features, and the projection matrix again."""
        matrix = self.projector.proj_matrix
        self.traker.finalize_features()
        self.projector.proj_matrix, self.projector.proj_matrix_available = matrix, True

    def bytes(self) -> int:
        """Return the store's size: gradients and features."""
        return folder_bytes(self.path)

    def grow(self, count: int) -> None:
        """Fill a larger store with copies of the projected gradients."""
        vectors = np.array(self.traker.saver.current_store["grads"])
        self.traker = self.open(count)
        store = self.traker.saver.current_store
        for start in range(0, count, len(vectors)):
            store["grads"][start : start + len(vectors)] = vectors[: count - start]
        store["out_to_loss"][:] = 1
        store["is_featurized"][:] = 1
        self.traker.saver.serialize_current_model_id_metadata()
        self.finalize()

    def search(self, start: int, count: int, top_k: int) -> tuple[np.ndarray, float]:
        """Score an experiment of its own, and take the best."""
        self.experiments += 1
        name = f"e{self.experiments}"
        self.traker.start_scoring_checkpoint(name, self.problem.layer.state_dict(), 0, count)
        self.traker.score(self.problem.test[start : start + count], num_samples=count)
        begun = perf_counter()
        scores = torch.as_tensor(np.asarray(self.traker.finalize_scores(name)))  # (n, count)
        ids = top(scores.T, top_k)
        seconds = perf_counter() - begun
        for path in self.path.rglob(f"{name}*.mmap"):
            path.unlink()  # (n, count) floats that nobody reads again
        return ids, seconds


def choose(request: Request) -> Traker:
    """There is one method."""
    return Traker(request)


if __name__ == "__main__":
    run(choose)
