"""Small models of all kinds that PyKEEN has, and the error of their influences against autograd."""

import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kgtrace_indexer import (
    ModelFile,
    TripleTable,
    read_model,
    read_training_folder,
)
from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from kgtrace_store import Vocabulary

CPU = torch.device("cpu")
DOCS = Path(__file__).parents[3] / "docs" / "models.md"

ZOO: dict[str, dict[str, Any]] = {
    "AutoSF": {"embedding_dim": 5},
    "BoxE": {"embedding_dim": 8},
    "CP": {"embedding_dim": 4, "rank": 3},
    "ComplEx": {"embedding_dim": 8},
    "ConvE": {"embedding_dim": 12, "output_channels": 3},
    "ConvKB": {"embedding_dim": 8, "num_filters": 5},
    "CrossE": {"embedding_dim": 8},
    "DistMA": {"embedding_dim": 8},
    "DistMult": {"embedding_dim": 8},
    "ERMLP": {"embedding_dim": 8, "hidden_dim": 7},
    "ERMLPE": {"embedding_dim": 8, "hidden_dim": 7},
    "HolE": {"embedding_dim": 9},
    "KG2E": {"embedding_dim": 8},
    "MuRE": {"embedding_dim": 8},
    "NTN": {"embedding_dim": 5, "num_slices": 3},
    "PairRE": {"embedding_dim": 8},
    "ProjE": {"embedding_dim": 8},
    "QuatE": {"embedding_dim": 3},
    "RESCAL": {"embedding_dim": 6},
    "RotatE": {"embedding_dim": 8},
    "SE": {"embedding_dim": 5},
    "SimplE": {"embedding_dim": 8},
    "TorusE": {"embedding_dim": 8},
    "TransD": {"embedding_dim": 8, "relation_dim": 6},
    "TransE": {"embedding_dim": 8},
    "TransF": {"embedding_dim": 8},
    "TransH": {"embedding_dim": 8},
    "TransR": {"embedding_dim": 6, "relation_dim": 5},
    "TuckER": {"embedding_dim": 6, "relation_dim": 5},
    "UM": {"embedding_dim": 8},
}
"""PyKEEN's models by class name, with a small shape each."""

BOTH = [False, True]


@cache
def factory(inverse: bool) -> Any:
    """Return the training triples of Nations."""
    from pykeen.datasets import Nations

    return Nations(create_inverse_triples=inverse).training


@dataclass
class Saved:
    """A model, as PyKEEN has it and as it is read back."""

    original: Any
    model: ModelFile

    def gradient(self, triple: Iterable[int], directions: Sequence[str], names: Iterable[str] | None = None) -> Tensor:
        """Return the gradient of Σ softplus(−s) over the directions, all parameters (or those named) in one vector."""
        self.original.zero_grad()
        ids = torch.tensor([self._ids(triple, direction) for direction in directions])
        torch.nn.functional.softplus(-self.original.score_hrt(ids)).sum().backward()
        return torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                for name, p in self.original.named_parameters()
                if names is None or name in names
            ]
        )

    def _ids(self, triple: Iterable[int], direction: str) -> list[int]:
        head, relation, tail = (int(i) for i in triple)
        if not self.model.inverse_triples:
            return [head, relation, tail]
        return [head, 2 * relation, tail] if direction == "tail" else [tail, 2 * relation + 1, head]


Save = Callable[..., Saved]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Make a random model, or train one, once for each set of arguments."""
    made: dict[Any, Saved] = {}

    def save(name: str, inverse: bool, *, trained: bool = False, **options: Any) -> Saved:
        key = (name, inverse, trained, str(options))
        if key not in made:
            import pykeen.models

            kind = getattr(pykeen.models, name)
            original = kind(triples_factory=factory(inverse), random_seed=0, **{**ZOO.get(name, {}), **options})
            if trained:
                train(original, factory(inverse))
            else:
                stir(original)
            made[key] = round_trip(original, tmp_path_factory.mktemp("model"))
        return made[key]

    return save


def seeds(model: ModelFile, count: int) -> list[ModelFile]:
    """Return so many models of a model's form; their gradients are of different sizes, too."""
    generator = torch.Generator().manual_seed(1)

    def moved(tensor: torch.Tensor, by: float) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.ndim < 2:
            return tensor
        return tensor + by * tensor.std() * torch.randn(tensor.shape, generator=generator)

    return [
        replace(model, tensors={name: moved(tensor, 0.5 * i) for name, tensor in model.tensors.items()}, source=f"m{i}")
        for i in range(count)
    ]


def train(original: Any, triples: Any) -> None:
    """Train for an epoch by PyKEEN's own loop."""
    from pykeen.training import SLCWATrainingLoop

    optimizer = torch.optim.Adam(original.parameters(), lr=0.01)
    loop = SLCWATrainingLoop(model=original, triples_factory=triples, optimizer=optimizer)
    gc.freeze()  # the loop collects garbage after each epoch, among all that PyKEEN's import has brought
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyKEEN's own options
        loop.train(triples, num_epochs=1, batch_size=128, use_tqdm=False)


def stir(original: Any) -> None:
    """Move a fresh model away from what it was initialised with, so that no part of it is the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in original.named_buffers():
        if "running" in name:
            buffer.data.uniform_(0.5, 1.5, generator=generator)
    for parameter in original.interaction.parameters():
        parameter.data.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    original.post_parameter_update()


def round_trip(original: Any, folder: Path) -> Saved:
    """Save a model as PyKEEN does, and read it back."""
    torch.save(original, folder / "trained_model.pkl")
    (folder / "metadata.json").write_text('{"pykeen_version": "1.11.1"}')  # which TransH needs
    return Saved(original.eval(), read_model(folder))


def featurizer_of(model: ModelFile, layers: Sequence[str] = ("all",)) -> Featurizer:
    return featurizer_for(model, {"loss": "bce", "layers": layers, "directions": None}, CPU)


def sample_pairs(count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return training and test triples of Nations that share heads, relations and tails, loops and themselves."""
    ids = factory(False).mapped_triples.numpy()
    rng = np.random.default_rng(0)
    first, second = ids[rng.choice(len(ids), count)], ids[rng.choice(len(ids), count)]
    second[:5, 0] = first[:5, 0]
    second[3:8, 1:] = first[3:8, 1:]
    second[8:11, 2] = first[8:11, 0]
    first[2, 2] = first[2, 0]
    second[-1] = first[-1]
    return first, second


def relative_error(found: Tensor, wanted: Tensor, scale: Tensor) -> float:
    """Return the largest error relative to the value, or to a hundredth of ‖g‖‖g'‖ if that is larger.

    Where a gradient cancels to nothing, as a loop's may, the unit is a thousandth of the largest.
    """
    unit = torch.maximum(wanted.abs(), 1e-2 * scale)
    return float(((found - wanted).abs() / unit.clamp_min(1e-3 * float(unit.max()))).max())


def influence_error(saved: Saved, featurizer: Featurizer) -> float:
    """Return the largest relative error of influences and self-influences."""
    first, second = sample_pairs()
    directions = ["tail", "head"] if saved.model.inverse_triples else ["tail"]
    names = featurizer.selection.parameters
    g = torch.stack([saved.gradient(t, directions, names) for t in first])
    with torch.inference_mode():
        terms = featurizer.training_terms(first)
        own = squared_norms(terms)
        worst = relative_error(own, g.square().sum(1), g.square().sum(1))
        with torch.inference_mode(False):
            gradients = {each: torch.stack([saved.gradient(t, [each], names) for t in second]) for each in directions}
        for direction in ("tail", "head"):  # without inverse relations both are (h, r, t)
            h = gradients.get(direction, gradients["tail"])
            found = inner(terms, featurizer.test_terms(second, direction))
            worst = max(worst, relative_error(found, g @ h.T, g.norm(dim=1)[:, None] * h.norm(dim=1)))
    assert float(g.abs().max()) > 0
    return worst


@pytest.fixture(scope="module")
def nations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocabulary, TripleTable]:
    """Read vocabulary and training triples as PyKEEN saves them; of the triples, a few."""
    folder = tmp_path_factory.mktemp("nations") / "training_triples"
    factory(True).to_path_binary(folder)
    vocabulary, table = read_training_folder(folder)
    rows = np.random.default_rng(0).choice(len(table.ids), 60, replace=False)
    return vocabulary, TripleTable(table.ids[rows], table.train_index[rows], 0)
