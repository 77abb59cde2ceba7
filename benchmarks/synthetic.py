"""Knowledge graphs of any size, drawn at random, and a small ConvE trained on them for a moment.

Degrees have a heavy tail. The t-th most frequent tail of a relation has a share of about 1 / (t ln E) of its triples
(exponent 2 of the degree distribution), so that each relation has hubs; heads fall off as 1 / √t (exponent 3). How many
triples a relation has falls off as 1 / rank. Relations with the same domain, or range, have the same frequent heads, or
tails, and there are fewer domains and ranges than relations: that is what a model can learn.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pykeen.models import ConvE
from pykeen.triples import CoreTriplesFactory
from torch.nn.functional import binary_cross_entropy_with_logits, embedding

RELATIONS = 240
TRIPLES_AN_ENTITY = 6
KINDS = 24
"""Domains, and ranges, of relations."""

_BLOCK = 1 << 20
"""Triples drawn, or written, at a time."""

EMBEDDING_DIM, HEIGHT, WIDTH, CHANNELS = 32, 4, 8, 4
_BATCH = 4096
_NEGATIVES = 256
"""Tails that all triples of a batch are compared with; they are drawn as the tails of triples are."""
_LEARNING_RATE = 5e-3
_LEAST_TRAINED = 1_000_000
"""Triples looked at in training, at least: small graphs are passed over several times, large ones once."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Triples without repetition, in no order."""

    triples: np.ndarray
    """(n, 3) int32: head, relation, tail."""
    entities: int
    relations: int


def draw(count: int, entities: int, seed: int) -> Graph:
    """Draw `count` different triples. Memory: some tens of bytes for each."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(entities, size=(2, KINDS))  # of each domain's most frequent heads, and range's tails
    kinds = rng.integers(KINDS, size=(2, RELATIONS))
    shares = 1 / np.arange(1, RELATIONS + 1)
    keys = np.empty(0, np.int64)
    while len(keys) < count:
        missing = count - len(keys)
        drawn = [keys]
        for start in range(0, missing + missing // 8 + 64, _BLOCK):
            size = min(_BLOCK, missing + missing // 8 + 64 - start)
            relation = rng.choice(RELATIONS, size, p=shares / shares.sum())
            head = (entities * rng.random(size) ** 2).astype(np.int64)  # density ∝ 1 / √rank
            tail = np.exp(rng.random(size) * np.log1p(entities)).astype(np.int64) - 1  # density ∝ 1 / rank
            head = (head + starts[0, kinds[0, relation]]) % entities
            tail = (tail + starts[1, kinds[1, relation]]) % entities
            drawn.append((head * RELATIONS + relation) * entities + tail)
        keys = np.unique(np.concatenate(drawn))
    keys = rng.permutation(keys)[:count]
    triples = np.empty((count, 3), np.int32)
    rest, triples[:, 2] = np.divmod(keys, entities)
    triples[:, 0], triples[:, 1] = np.divmod(rest, RELATIONS)
    return Graph(triples, entities, RELATIONS)


def train(graph: Graph, seed: int) -> dict[str, torch.Tensor]:
    """Train a ConvE on tails, with binary cross-entropy against negatives; return its state."""
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps of this size wait for one another longer than they compute
    model = ConvE(
        triples_factory=CoreTriplesFactory(
            torch.zeros(1, 3, dtype=torch.int64), num_entities=graph.entities, num_relations=graph.relations
        ),
        embedding_dim=EMBEDDING_DIM,
        embedding_height=HEIGHT,
        embedding_width=WIDTH,
        output_channels=CHANNELS,
        entity_initializer=partial(torch.nn.init.normal_, std=0.3),
        relation_initializer=partial(torch.nn.init.normal_, std=0.3),
        random_seed=seed,
    ).train()
    vectors, biases = (each._embeddings.weight for each in model.entity_representations)
    relations = model.relation_representations[0]._embeddings.weight
    optimizers = [
        # Steps on whole tables would take most of the time: these are on the rows of a batch.
        torch.optim.SparseAdam([vectors, biases], lr=_LEARNING_RATE),
        torch.optim.Adam([*model.interaction.parameters(), relations], lr=_LEARNING_RATE),
    ]
    tails = torch.from_numpy(graph.triples[:, 2])
    passes = -(-_LEAST_TRAINED // len(graph.triples))
    for _ in range(passes):
        for batch in torch.randperm(len(graph.triples)).split(_BATCH):
            head, relation, tail = torch.from_numpy(graph.triples[batch.numpy()].astype(np.int64)).T
            others = tails[torch.randint(len(tails), (_NEGATIVES,))].long()
            image = torch.cat([embedding(head, vectors, sparse=True), relations[relation]], 1)
            features = model.interaction.hr2d(image.view(-1, 1, 2 * HEIGHT, WIDTH)).flatten(1)
            x = model.interaction.hr1d(features)  # (b, d)
            candidates, bias = (embedding(torch.cat([tail, others]), table, sparse=True) for table in (vectors, biases))
            own = (x * candidates[: len(tail)]).sum(1) + bias[: len(tail), 0]
            other = x @ candidates[len(tail) :].T + bias[len(tail) :, 0]  # (b, negatives)
            loss = binary_cross_entropy_with_logits(own, torch.ones_like(own)) + binary_cross_entropy_with_logits(
                other, torch.zeros_like(other)
            )
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    torch.set_num_threads(threads)
    return model.state_dict()
