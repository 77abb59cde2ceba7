"""PyKEEN's models, trained 1-N as its LCWA loop does; ConvE without a float for each triple of pair, entity and dimension.

Every distinct (h, r), inverse relations included, is one sample with all its known tails. The loss is either the mean
binary cross-entropy over all entities, with label smoothing y (1 − ε) + ε/E (Dettmers et al., 2018,
https://arxiv.org/abs/1707.01476; PyKEEN's spreads ε over the other E − 1), or the cross-entropy of their softmax with the
known tails in equal parts. Where entities are many, a few of them stand for all: see `Sampled`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pykeen.models import ComplEx, ConvE, ERModel, TransE
from pykeen.triples import CoreTriplesFactory
from pykeen.version import get_version
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from benchmarks.truth.graphs import Graph
from kgtrace_indexer import ModelFile, read_model


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train."""

    model: str = "ConvE"
    """Or ``ComplEx``, ``TransE``."""
    softmax: bool = False
    """Whether tails compete in a softmax, instead of each with a threshold."""
    height: int = 8
    width: int = 8
    """Of ConvE's embeddings as images; of others the product, the length of an embedding, is all that matters."""
    channels: int = 32
    epochs: int = 100
    batch: int = 128
    """Distinct (h, r) a step."""
    rate: float = 3e-3
    """Adam's."""
    smoothing: float = 0.1
    checkpoints: tuple[int, ...] = ()
    """Epochs after which states are kept."""

    def train(self, graph: Graph, triples: np.ndarray, seed: int) -> "Trained":
        """Train on some triples (n, 3) of a graph."""
        return train(graph, triples, self, seed)

    def scores(self, model: ERModel, head: Tensor, relation: Tensor) -> Tensor:
        """Return a trained model's scores of heads (m,) and relations (m,) with all entities as tail, (m, E)."""
        return tail_scores(model, head, 2 * relation)

    def candidates(self, known: Tensor, entities: int) -> Tensor | None:
        """Return the entities, ascending, among which the tails known in a batch compete, or nothing for all."""
        return None


@dataclass(frozen=True, slots=True)
class Sampled(Recipe):
    """How to train on a graph of many entities: rows that a batch does not name are neither scored nor moved."""

    random: int = 512
    """Entities drawn at random for each batch, which compete with all tails known in it."""
    spread: float = 0.01
    """Standard deviation of embeddings before training."""
    norm: int = 2
    """TransE's; distances under 2 are a matrix product."""

    def candidates(self, known: Tensor, entities: int) -> Tensor:
        """Return the tails known in a batch, and random entities."""
        return torch.cat([known, torch.randint(entities, (self.random,))]).unique()


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in evaluation mode, and earlier states of it."""

    model: ERModel
    checkpoints: list[dict[str, Tensor]]


def train(graph: Graph, triples: np.ndarray, recipe: Recipe, seed: int) -> Trained:
    """Train on some triples (n, 3) of a graph. One thread, one seed: one result."""
    model = untrained(graph, triples, recipe, seed)
    optimizer = _optimizer(model, recipe)
    known, entities = KnownTails.of(triples), len(graph.vocabulary.entities)
    found = Trained(model, [])
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for batch in batches(len(known.pairs), recipe.batch):
            head, relation = known.pairs[batch].T
            row, tail = known.of_pairs(batch)
            candidates = recipe.candidates(tail, entities)
            scores = tail_scores(model, head, relation, candidates)
            target = torch.zeros_like(scores)
            target[row, tail if candidates is None else torch.searchsorted(candidates, tail)] = 1
            loss = loss_of(recipe, scores, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch in recipe.checkpoints:
            found.checkpoints.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    model.eval()
    _sparse(model, False)
    return found


def saved(model: ERModel, folder: Path) -> ModelFile:
    """Save a model in a folder as PyKEEN does, and read it as kgtrace does."""
    (folder / "metadata.json").write_text(json.dumps({"pykeen_version": get_version()}))
    torch.save(model, folder / "model.pkl")
    return read_model(folder / "model.pkl")


def loss_of(recipe: Recipe, scores: Tensor, target: Tensor) -> Tensor:
    """Return the loss of scores (m, c), given the label of each."""
    if recipe.softmax:
        return cross_entropy(scores, target / target.sum(1, keepdim=True))
    smooth = target * (1 - recipe.smoothing) + recipe.smoothing / scores.shape[1]
    return binary_cross_entropy_with_logits(scores, smooth)


def _optimizer(model: ERModel, recipe: Recipe) -> torch.optim.Optimizer:
    if not isinstance(recipe, Sampled):
        return torch.optim.Adam(model.parameters(), lr=recipe.rate)
    for representation in (*model.entity_representations, *model.relation_representations):
        torch.nn.init.normal_(representation._embeddings.weight, std=recipe.spread)
    _sparse(model, True)
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns as long as nobody says whether to check
    return torch.optim.Adagrad(model.parameters(), lr=recipe.rate)


def _sparse(model: ERModel, sparse: bool) -> None:
    """Say whether gradients of tables hold no rows but those that were looked up."""
    for representation in (*model.entity_representations, *model.relation_representations):
        representation._embeddings.sparse = sparse


def untrained(graph: Graph, triples: np.ndarray, recipe: Recipe, seed: int) -> ERModel:
    """Return a model before its first step, and leave torch's random numbers where training goes on with them."""
    torch.manual_seed(seed)
    entities, relations = len(graph.vocabulary.entities), len(graph.vocabulary.relations)
    factory = CoreTriplesFactory(
        torch.from_numpy(triples), num_entities=entities, num_relations=relations, create_inverse_triples=True
    )
    common: dict[str, Any] = {
        "triples_factory": factory, "embedding_dim": recipe.height * recipe.width, "random_seed": seed,
    }  # fmt: skip
    match recipe.model:
        case "ConvE":
            shape = {"embedding_height": recipe.height, "embedding_width": recipe.width}
            return ConvE(**shape, output_channels=recipe.channels, **common)
        case "ComplEx":
            return ComplEx(regularizer=None, **common)
        case "TransE":
            norm = recipe.norm if isinstance(recipe, Sampled) else 1
            return TransE(entity_constrainer=None, scoring_fct_norm=norm, **common)
    raise ValueError(f"there is no recipe for {recipe.model}")


def tail_scores(model: ERModel, head: Tensor, relation: Tensor, tails: Tensor | None = None) -> Tensor:
    """Return scores of heads (m,) and rows of the relation table (m,) with all entities as tail, or some (c,), (m, c)."""
    entities, *biases = model.entity_representations
    (relations,) = model.relation_representations
    h, r = entities(head), relations(relation)
    t = entities(tails)
    if isinstance(model, TransE) and model.interaction.p == 2:
        return -torch.cdist(h + r, t)
    if isinstance(model, ComplEx) and tails is not None:  # the same in real numbers, and twice as fast
        return torch.view_as_real(h * r).flatten(1) @ torch.view_as_real(t).flatten(1).T
    if not isinstance(model, ConvE):
        found: Tensor = model.interaction(h[:, None], r[:, None], t[None])
        return found
    shape = model.interaction.shape_info
    image = torch.cat([h, r], 1)
    image = image.view(len(head), shape.input_channels, 2 * shape.image_height, shape.image_width)
    x = model.interaction.hr1d(model.interaction.hr2d(image).flatten(1))
    return x @ t.T + biases[0](tails)


@dataclass(frozen=True, slots=True)
class KnownTails:
    """The distinct (h, row of the relation table) of triples and their inverses, with the tails known of each."""

    pairs: Tensor
    """(p, 2)."""
    tails: Tensor
    """(2n,): those of the first pair, of the second, ..."""
    ends: Tensor
    """(p,): where those of each pair end."""
    triples: Tensor
    """(2n,): the row of the triple that each comes from."""

    @classmethod
    def of(cls, triples: np.ndarray) -> "KnownTails":
        """Gather those of triples (n, 3)."""
        head, relation, tail = triples.T
        both = np.concatenate([np.stack([head, 2 * relation, tail], 1), np.stack([tail, 2 * relation + 1, head], 1)])
        pairs, group = np.unique(both[:, :2], axis=0, return_inverse=True)
        order = np.argsort(group, kind="stable")
        return cls(
            torch.from_numpy(pairs),
            torch.from_numpy(both[order, 2]),
            torch.from_numpy(np.bincount(group).cumsum()),
            torch.from_numpy(order % len(triples)),
        )

    def of_pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tails of pairs (m,), after the place of each one's pair among these, 0 to m − 1."""
        place, index = self.places(rows)
        return place, self.tails[index]

    def places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the tails of pairs (m,) stand in `tails`, after the place of each one's pair, 0 to m − 1."""
        counts = self.ends.diff(prepend=self.ends.new_zeros(1))[rows]
        place = torch.repeat_interleave(torch.arange(len(rows)), counts)
        shift = self.ends[rows] - counts.cumsum(0)
        return place, torch.arange(len(place)) + shift[place]


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Yield random rows; a last batch of one, of which batch norm knows no variance, is left out."""
    yield from (batch for batch in torch.randperm(count).split(size) if len(batch) > 1)
