"""PyKEEN's models, trained 1-N as its LCWA loop does; ConvE without a float for each triple of pair, entity and dimension.

Every distinct (h, r), inverse relations included, is one sample with all its known tails. The loss is either the mean
binary cross-entropy over all entities, with label smoothing y (1 − ε) + ε/E (Dettmers et al., 2018,
https://arxiv.org/abs/1707.01476; PyKEEN's spreads ε over the other E − 1), or the cross-entropy of their softmax with the
known tails in equal parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pykeen.models import ComplEx, ConvE, ERModel, TransE
from pykeen.triples import CoreTriplesFactory
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from benchmarks.truth.graphs import Graph


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


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in evaluation mode, and earlier states of it."""

    model: ERModel
    checkpoints: list[dict[str, Tensor]]


def train(graph: Graph, triples: np.ndarray, recipe: Recipe, seed: int) -> Trained:
    """Train on some triples (n, 3) of a graph. One thread, one seed: one result."""
    torch.manual_seed(seed)
    entities, relations = len(graph.vocabulary.entities), len(graph.vocabulary.relations)
    factory = CoreTriplesFactory(
        torch.from_numpy(triples), num_entities=entities, num_relations=relations, create_inverse_triples=True
    )
    model = _untrained(recipe, triples_factory=factory, embedding_dim=recipe.height * recipe.width, random_seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    pairs, labels = known_tails(triples, entities)
    found = Trained(model, [])
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for batch in _batches(len(pairs), recipe.batch):
            head, relation = pairs[batch].T
            scores, target = tail_scores(model, head, relation), labels[batch].float()
            if recipe.softmax:
                loss = cross_entropy(scores, target / target.sum(1, keepdim=True))
            else:
                smooth = target * (1 - recipe.smoothing) + recipe.smoothing / entities
                loss = binary_cross_entropy_with_logits(scores, smooth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch in recipe.checkpoints:
            found.checkpoints.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    model.eval()
    return found


def _untrained(recipe: Recipe, **common: Any) -> ERModel:
    match recipe.model:
        case "ConvE":
            shape = {"embedding_height": recipe.height, "embedding_width": recipe.width}
            return ConvE(**shape, output_channels=recipe.channels, **common)
        case "ComplEx":
            return ComplEx(**common)
        case "TransE":
            return TransE(entity_constrainer=None, **common)
    raise ValueError(f"there is no recipe for {recipe.model}")


def tail_scores(model: ERModel, head: Tensor, relation: Tensor) -> Tensor:
    """Return the scores of all entities as tail of heads (m,) and rows of the relation table (m,), (m, E)."""
    if not isinstance(model, ConvE):
        (entities,), (relations,) = model.entity_representations, model.relation_representations
        h, r, every = entities(head), relations(relation), torch.arange(entities.max_id)
        found: Tensor = model.interaction(h[:, None], r[:, None], entities(every)[None])
        return found
    entities, bias = (representation._embeddings.weight for representation in model.entity_representations)
    relations = model.relation_representations[0]._embeddings.weight
    shape = model.interaction.shape_info
    image = torch.cat([entities[head], relations[relation]], 1)
    image = image.view(len(head), shape.input_channels, 2 * shape.image_height, shape.image_width)
    x = model.interaction.hr1d(model.interaction.hr2d(image).flatten(1))
    return x @ entities.T + bias[:, 0]


def known_tails(triples: np.ndarray, entities: int) -> tuple[Tensor, Tensor]:
    """Return the distinct (h, row of the relation table) of triples and inverses, (p, 2), and their tails, (p, E)."""
    head, relation, tail = triples.T
    sides = [np.stack([head, 2 * relation, tail], 1), np.stack([tail, 2 * relation + 1, head], 1)]
    both = np.concatenate(sides)
    pairs, group = np.unique(both[:, :2], axis=0, return_inverse=True)
    labels = torch.zeros(len(pairs), entities, dtype=torch.bool)
    labels[torch.from_numpy(group), torch.from_numpy(both[:, 2])] = True
    return torch.from_numpy(pairs), labels


def _batches(count: int, size: int) -> Iterator[Tensor]:
    """Yield random rows; a last batch of one, of which batch norm knows no variance, is left out."""
    yield from (batch for batch in torch.randperm(count).split(size) if len(batch) > 1)
