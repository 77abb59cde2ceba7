"""Does a step along the gradients of the named training triples move the score by what the gradients foretell?

Everything else that is checked rests on the gradients that the model's own `terms` gives. Here rows of the embedding
tables are moved for real and the score is computed anew: gradients that are not its slopes, of a model of one's own or
of rows that were read in another order, foretell another change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.inputs.model_file import TENSORS, ModelFile, read_converted
from kgtrace_indexer.models.checkpoints import Checkpoints
from kgtrace_indexer.models.conve_network import BIAS
from kgtrace_indexer.models.protocol import scoring_model
from kgtrace_indexer.query.attributor import Attributor
from kgtrace_store import layout

_QUERIES = 4
"""Training triples whose scores are looked at."""
_NAMED = 10
"""Training triples that are named for each."""
_LENGTH = 0.02
"""Length of a step, in units of the mean norm of a row."""
_BYTES = 1 << 28
"""Size of a model's file up to which there is memory for copies of it."""
_MISSED = 0.5
"""Share of the foretold changes that the real ones may miss: scores bend."""

Moves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Rows (r,), and how they move (r, d), by table."""


@dataclass(frozen=True, slots=True)
class Step:
    """Changes of the scores of training triples after a step."""

    named: float
    """Along the gradients of the training triples that are named for each, but for itself: the mean."""
    foretold: float
    """The mean of what the gradients of the scores foretell of these."""
    missed: float
    """Mean difference of the two."""
    random: float
    """Along the gradients of as many random training triples: the mean of the absolute changes."""

    @property
    def wrong(self) -> bool:
        """Whether scores do something else than what the gradients foretell."""
        return self.missed > _MISSED * abs(self.foretold)


def step(attributor: Attributor, *, seed: int = 0) -> Step | None:
    """Take steps.

    None for an index without the preconditioned score, of several checkpoints, or of a single triple, and for a large
    model.
    """
    size = (attributor.files.folder / layout.MODEL / TENSORS).stat().st_size
    several = isinstance(attributor.featurizer.model, Checkpoints)
    if "preconditioned" not in attributor.searched_scores or several or len(attributor) == 1 or size > _BYTES:
        return None
    rng = np.random.default_rng(seed)
    model = read_converted(attributor.files.folder / layout.MODEL)
    changes, foretold = np.empty((2, _QUERIES)), np.empty(_QUERIES)
    for number, position in enumerate(rng.choice(len(attributor), _QUERIES)):
        triple = np.asarray(attributor.training.triples[[position]], np.int64)
        (answer,) = attributor.query(triple, top_k=_NAMED + 1, score="preconditioned").attributions
        named = np.flatnonzero(np.isin(attributor.training.train_index, answer.train_index))
        before = attributor.candidate_scores(triple)[0, triple[0, 2]]
        for way, positions in enumerate((named[named != position], rng.choice(len(attributor), _NAMED))):
            moves = _moves(attributor, model, positions)
            again = replace(attributor.featurizer, model=scoring_model(_moved(model, moves), attributor.device))
            with torch.inference_mode():
                changes[way, number] = float(again.candidate_scores(triple, "tail")[0, triple[0, 2]]) - before
                if way == 0:
                    slopes = RowQueries.of(attributor.featurizer.score_terms(triple, "tail"))
                    foretold[number] = _product(slopes, moves)
    named_changes, random_changes = changes
    return Step(
        named=float(named_changes.mean()),
        foretold=float(foretold.mean()),
        missed=float(np.abs(named_changes - foretold).mean()),
        random=float(np.abs(random_changes).mean()),
    )


def _moves(attributor: Attributor, model: ModelFile, positions: np.ndarray) -> Moves:
    """Return how training on triples at positions moves rows, down their losses, all together by `_LENGTH`."""
    moves = {}
    for table, queries in attributor.files.row_lists().queries(positions).items():
        rows, row = np.unique(queries.row, return_inverse=True)
        total = np.zeros((len(rows), queries.grad.shape[1]))
        np.add.at(total, row, -queries.grad)
        moves[table] = rows, total
    size = np.sqrt(sum(float(np.square(move).sum()) for _, move in moves.values()))
    norm = np.mean([float(model.tensors[table].flatten(1).norm(dim=1).mean()) for table in moves])
    scale = _LENGTH * norm / max(size, np.finfo(np.float32).tiny)
    return {table: (rows, scale * move) for table, (rows, move) in moves.items()}


def _moved(model: ModelFile, moves: Moves) -> ModelFile:
    """Return a model whose rows have moved."""
    tensors = dict(model.tensors)
    for table, (rows, move) in moves.items():
        width = tensors[table].flatten(1).shape[1]
        for name, part in ((table, move[:, :width]), (BIAS, move[:, width:])):  # ConvE's biases go with its rows
            if part.shape[1]:
                tensors[name] = tensors[name].clone()
                tensors[name].flatten(1)[torch.from_numpy(rows)] += torch.from_numpy(part).float()
    return replace(model, tensors=tensors)


def _product(slopes: Mapping[str, RowQueries], moves: Moves) -> float:
    """Return the change of a score, given its gradient, to first order."""
    total = 0.0
    for table, queries in slopes.items():
        rows, move = moves[table]
        at = np.minimum(np.searchsorted(rows, queries.row), len(rows) - 1)
        total += float((queries.grad * move[at])[rows[at] == queries.row].sum())
    return total
