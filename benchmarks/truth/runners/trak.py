"""TRAK scores by traker, of the logit of a triple's own tail, with gradients of all parameters of a ConvE.

    python -m benchmarks.truth.runners.trak FOLDER

Reads ``model.pt`` (a state dict), ``train.npy`` and ``test.npy`` (rows of head, relation table and tail) in the folder,
``asked.json`` with the shape of an embedding and the length of the projection, and writes ``scores.npy`` (n, q). Needs torch, numpy and traker.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import BasicProjector, ProjectionType

_BATCH = 32


class ConvE(nn.Module):
    """PyKEEN's ConvE in evaluation mode, from its state."""

    def __init__(self, state: Mapping[str, Tensor], height: int, width: int) -> None:
        """Take weights by PyKEEN's names."""
        super().__init__()
        self.shape = (1, 2 * height, width)
        self.entities = nn.Parameter(state["entity_representations.0._embeddings.weight"])
        self.bias = nn.Parameter(state["entity_representations.1._embeddings.weight"])
        self.relations = nn.Parameter(state["relation_representations.0._embeddings.weight"])
        conv, linear = state["interaction.hr2d.2.weight"], state["interaction.hr1d.0.weight"]
        self.hr2d = nn.Sequential(
            nn.BatchNorm2d(1), nn.Identity(), nn.Conv2d(1, len(conv), tuple(conv.shape[2:])), nn.BatchNorm2d(len(conv)),
            nn.ReLU(),
        )  # fmt: skip
        self.hr1d = nn.Sequential(
            nn.Linear(linear.shape[1], len(linear)), nn.Identity(), nn.BatchNorm1d(len(linear)), nn.ReLU()
        )
        for name in ("hr2d", "hr1d"):
            prefix = f"interaction.{name}."
            getattr(self, name).load_state_dict(
                {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            )

    def forward(self, triples: Tensor) -> Tensor:
        """Return the logits (b,) of rows of head, relation and tail (b, 3)."""
        head, relation, tail = triples.unbind(1)
        image = torch.cat([self.entities[head], self.relations[relation]], 1).view(-1, *self.shape)
        x = self.hr1d(self.hr2d(image).flatten(1))
        return (x * self.entities[tail]).sum(1) + self.bias[tail, 0]


class Logit(AbstractModelOutput):
    """TRAK's output function log p / (1 − p), which for a binary label is the logit itself."""

    def __init__(self) -> None:
        """Need nothing."""

    def get_output(self, model, weights, buffers, triple: Tensor) -> Tensor:
        """Return the logit of one triple."""
        return functional_call(model, (weights, buffers), (triple[None],)).sum()

    def get_out_to_loss_grad(self, model, weights, buffers, batch) -> Tensor:
        """Return 1 − p."""
        return torch.sigmoid(-functional_call(model, (weights, buffers), (batch[0],)))[:, None].detach()


def main(folder: Path) -> None:
    """Score all test triples."""
    state = torch.load(folder / "model.pt", weights_only=True)
    asked = json.loads((folder / "asked.json").read_text())
    model = ConvE(state, asked["height"], asked["width"]).eval()
    train, test = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("train", "test"))
    size, dim = sum(parameter.numel() for parameter in model.parameters()), asked["dim"]
    projector = BasicProjector(size, dim, 0, ProjectionType.rademacher, "cpu", block_size=dim)
    with TemporaryDirectory() as store:
        traker = TRAKer(
            model, Logit(), len(train), save_dir=store, device="cpu", projector=projector,
            use_half_precision=False, logging_level=40,
        )  # fmt: skip
        traker.load_checkpoint(model.state_dict(), model_id=0)
        for batch in train.split(_BATCH):
            traker.featurize((batch,), num_samples=len(batch))
        matrix = projector.proj_matrix
        traker.finalize_features()
        projector.proj_matrix, projector.proj_matrix_available = matrix, True  # dropped, and needed again
        traker.start_scoring_checkpoint("test", model.state_dict(), 0, len(test))
        for batch in test.split(_BATCH):
            traker.score((batch,), num_samples=len(batch))
        np.save(folder / "scores.npy", np.asarray(traker.finalize_scores("test")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
