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
from kgtrace_indexer.query.certify import TopK
from kgtrace_indexer.query.checks import require_positive
from kgtrace_indexer.query.ranking import Best
from kgtrace_indexer.transfers import to_device
from kgtrace_store.errors import Abandoned


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
    device = featurizer.model.device
    found = Best(len(terms), order, top_k, device)
    for block in blocks(rows, featurizer.scanned, wanted):
        triples, nearby = training.triples[block.numpy()], None
        if masks:
            all_of_them = np.ones(len(block), bool)
            each = [all_of_them if entities is None else touching(triples, entities) for entities in near]
            nearby = to_device(np.stack(each), device)
        found.add(to_device(block.numpy(), device), featurizer.influences(triples, terms).T, nearby)
    return found.tops()
