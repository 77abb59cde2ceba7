"""``kgtrace demo``: from nothing to an answer on UMLS, a small medical knowledge graph in PyKEEN's wheel."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kgtrace_store.errors import MissingExtra

if TYPE_CHECKING:
    from pykeen.models import ConvE
    from torch import Tensor

_LABEL_SMOOTHING = 0.1
_LEARNING_RATE = 0.003
_BATCH = 128


def train_umls(
    folder: Path,
    *,
    epochs: int = 60,
    embedding_dim: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train a ConvE on UMLS and save it as PyKEEN's ``save_to_directory`` does: model and training triples.

    Training is 1-N with binary cross-entropy on logits, scoring all tails of a batch of (h, r) with one matrix product
    (PyKEEN's own loop multiplies batch × entities × dimensions element by element).

    Raises
    ------
    MissingExtra
        PyKEEN is not installed.
    """
    try:
        import torch
        from pykeen.datasets import UMLS
        from pykeen.models import ConvE
    except ImportError as error:
        raise MissingExtra("the demo trains a PyKEEN model: pip install pykeen") from error
    torch.manual_seed(seed)
    factory = UMLS(create_inverse_triples=True).training
    model = ConvE(
        triples_factory=factory, embedding_dim=embedding_dim, output_channels=16, loss="bcewithlogits", random_seed=seed
    )
    head, relation, tail = factory.mapped_triples.T
    sources = torch.cat([torch.stack([head, 2 * relation], 1), torch.stack([tail, 2 * relation + 1], 1)])
    targets = torch.cat([tail, head])
    pairs, group = sources.unique(dim=0, return_inverse=True)
    labels = torch.zeros(len(pairs), factory.num_entities)
    labels[group, targets] = 1.0
    labels = labels * (1 - _LABEL_SMOOTHING) + _LABEL_SMOOTHING / factory.num_entities
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    for epoch in range(epochs):
        for batch in torch.randperm(len(pairs)).split(_BATCH):
            optimizer.zero_grad()
            score = _tail_scores(model, pairs[batch])
            torch.nn.functional.binary_cross_entropy_with_logits(score, labels[batch]).backward()
            optimizer.step()
        progress(epoch + 1, epochs)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.eval(), folder / "trained_model.pkl")
    factory.to_path_binary(folder / "training_triples")


def _tail_scores(model: "ConvE", pairs: "Tensor") -> "Tensor":
    """Return the scores of all entities as tail of (head, relation row) pairs (m, 2): (m, E)."""
    import torch

    entities, bias = (r() for r in model.entity_representations)  # (E, d), (E,)
    shape = model.interaction.shape_info
    image = (-1, shape.input_channels, shape.image_height, shape.image_width)
    relations = model.relation_representations[0](pairs[:, 1])
    stacked = torch.cat([entities[pairs[:, 0]].view(image), relations.view(image)], 2)
    x = model.interaction.hr1d(model.interaction.hr2d(stacked).flatten(1))
    return x @ entities.T + bias
