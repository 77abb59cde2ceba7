"""Influences of many training triples, computed block by block with the model: full scans, and which rows they read."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Restriction
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.training_set import TrainingSet, touching
from kgtrace_indexer.models.featurizer import Featurizer
from kgtrace_indexer.names import Order
from kgtrace_indexer.query.certify import TopK, best
from kgtrace_indexer.query.checks import require_positive
from kgtrace_store.errors import Abandoned

SCAN_BLOCK = 2048
"""Training triples featurized at a time in a full scan."""


def near(
    training: TrainingSet, triples: np.ndarray, restriction: Restriction, entities: int
) -> list[np.ndarray | None]:
    """Return for each test triple a mask (entities,) of entities one of which training triples must touch; or None."""
    if restriction.within_hops is None:
        return [None] * len(triples)
    require_positive("within_hops", restriction.within_hops)
    return [training.reached(triple, restriction.within_hops - 1, entities) for triple in triples]


def among(training: TrainingSet, mask: np.ndarray | None, near: np.ndarray | None) -> np.ndarray | None:
    """Return a mask (n,) of the training triples that are in one and touch the other, or None for all."""
    if near is None:
        return mask
    touched = touching(training.triples, near)
    return touched if mask is None else touched & mask


def rows_of(training: TrainingSet, mask: np.ndarray | None) -> Tensor:
    """Return the training triples in a mask (n,), or all, (m,) int64."""
    return torch.arange(len(training.triples)) if mask is None else torch.as_tensor(np.flatnonzero(mask))


def blocks(rows: Tensor, size: int, wanted: Callable[[], bool]) -> Iterator[Tensor]:
    """Split rows (m,), for as long as a caller waits for the scan, by `wanted`. Raises `Abandoned`."""
    for block in rows.split(size) if len(rows) else ():
        if not wanted():
            raise Abandoned(f"a scan of {len(rows)} training triples was given up")
        yield block


def scan(
    featurizer: Featurizer,
    training: TrainingSet,
    terms: Terms,
    top_k: int,
    order: Order,
    mask: np.ndarray | None,
    near: list[np.ndarray | None],
    wanted: Callable[[], bool],
) -> list[TopK]:
    """Compute the influence of every allowed training triple on all test triples at once."""
    masks = [entities for entities in near if entities is not None]
    rows = rows_of(training, among(training, mask, np.logical_or.reduce(masks) if masks else None))
    kept = [TopK(rows[:0], torch.empty(0), 0.0, 0, 0)] * len(terms)
    for block in blocks(rows, featurizer.block(SCAN_BLOCK), wanted):
        triples = training.triples[block.numpy()]
        influences = featurizer.influences(triples, terms)  # (m, b)
        for i, entities in enumerate(near):
            nearby = slice(None) if entities is None else torch.from_numpy(touching(triples, entities))
            kept[i] = _extended(kept[i], block[nearby], influences[nearby, i], order, top_k)
    return kept


def _extended(top: TopK, rows: Tensor, influence: Tensor, order: Order, top_k: int) -> TopK:
    """Take in the influences of further rows (m,) in a full scan."""
    seen, values = best(torch.cat([top.rows, rows]), torch.cat([top.influence, influence]), order, top_k)
    return TopK(seen, values, 0.0, top.candidates + len(rows), top.exact_terms + len(rows))
