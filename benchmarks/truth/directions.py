"""What if P knew the explained direction alone, and gradients of the other direction counted half?

A default index has the gradients of both directions of a training triple, h, r → t and t, r⁻¹ → h, as models are trained.
P is made of both, and both count alike, whichever direction a query explains. Here F is of the gradients of the
explained direction, tails, and a training triple's influence is that of its own direction and a share of the other's.
"""

from dataclasses import replace

import numpy as np
import torch

from benchmarks.truth.graphs import Graph
from benchmarks.truth.scores import indexed
from kgtrace_indexer import BuildConfig, ModelFile
from kgtrace_indexer.index.preconditioner import AUTO_DAMPING, Moments, Preconditioner, moments
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.index.rows import RowLists
from kgtrace_indexer.names import Outcome

OTHER = 0.5
"""What the other direction counts."""


def directed(
    model: ModelFile, graph: Graph, test: np.ndarray, outcome: Outcome, *, other: float = OTHER, moment: float = 0.0
) -> np.ndarray:
    """Return influences on the tails of test triples (q, 3), (n, q); `moment` is the other direction's weight in F.

    With 1 for both they are those of a default index.
    """
    with indexed(model, graph, BuildConfig(loss="removal", directions="both", device="cpu")) as attributor:
        lists, count = attributor.files.row_lists(), len(graph.train)
        in_moments = lists.weighted(np.tile([1.0, moment], (count, 1)))
        found = {table: _joined(in_moments, table) for table in lists.tables}
        preconditioner = Preconditioner(in_moments, found, np.array([_mean_square(in_moments, count)]))
        with torch.inference_mode():
            terms = replace(attributor.featurizer, outcome=outcome).test_terms(test, "tail")
        queries = preconditioner.changed(RowQueries.of(terms), AUTO_DAMPING)
        weighted, every = lists.weighted(np.tile([1.0, other], (count, 1))), np.arange(count)
        columns = [weighted.influences(queries, np.full(count, number), every) for number in range(len(test))]
        influences = np.empty((count, len(test)))
        influences[attributor.training.train_index] = np.stack(columns, 1)
    return influences


def _joined(lists: RowLists, table: str) -> Moments:
    batches = list(moments(lists, table))
    return Moments(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in Moments.NAMES))


def _mean_square(lists: RowLists, count: int) -> float:
    """Return the unit of damping, as `RowLists.mean_squares` does, of weighted lists."""
    pieces = [piece for table in lists.tables.values() for piece in table]
    return sum(float(np.square(piece.norms(np.arange(len(piece.norm)))).sum()) for piece in pieces) / count
