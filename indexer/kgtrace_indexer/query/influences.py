"""Exact influences of training triples, of all on all test triples or one by one, by either score."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.gradients.terms import Terms, paired
from kgtrace_indexer.index.files import Files
from kgtrace_indexer.index.preconditioner import Preconditioner
from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.row_queries import RowQueries
from kgtrace_indexer.index.rows import RowLists
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.models.featurizer import Featurizer
from kgtrace_indexer.names import Score
from kgtrace_indexer.query.certify import TopK
from kgtrace_indexer.transfers import to_device


class Influences:
    """Computes influences with the model, or from stored gradients of embedding rows; on the CPU."""

    def __init__(
        self, featurizer: Featurizer, files: Files, training: TrainingSet, resident: ResidentRows | None
    ) -> None:
        """`featurizer` is of the preconditioned score; `resident` are the lists of `files`, where a GPU has them."""
        self.featurizers: dict[Score, Featurizer] = {"tracin": featurizer.plain, "preconditioned": featurizer}
        self._files = files
        self._training = training
        self._resident = resident

    @cached_property
    def preconditioner(self) -> Preconditioner:
        """P. Raises as `Files.preconditioner` does."""
        return self._files.preconditioner(self._resident)

    @cached_property
    def _tracin_lists(self) -> RowLists:
        return self._files.tracin_lists()

    def every(self, rows: Tensor, tests: Terms, score: Score) -> Tensor:
        """Return influences of training triples (m,) on all test triples, (m, b)."""
        return self.featurizers[score].influences(self._training.triples[rows.numpy()], tests).cpu()

    def paired(self, query: Tensor, rows: Tensor, tests: Terms, score: Score) -> Tensor:
        """Return influences of training triples (m,) on test triples (m,), one by one, (m,)."""
        if len(tests) == 1:
            return self.every(rows, tests, score)[:, 0]
        featurizer = self.featurizers[score]
        influences, size = torch.empty(len(rows)), featurizer.scanned
        distinct, place = rows.unique(return_inverse=True)
        for start in range(0, len(distinct), size):
            block = (place // size == start // size).nonzero().flatten()
            terms = featurizer.training_terms(self._training.triples[distinct[start : start + size].numpy()])
            pairs = np.stack([place[block].numpy() - start, query[block].numpy()])
            training, test = to_device(pairs, terms.loss.device)
            influences[block] = paired(terms, training, tests, test).cpu()
        return influences

    def tracin(self, tops: Sequence[TopK], tests: Terms) -> Tensor:
        """Return TracIn of the top training triples of each test triple, side by side."""
        influence = _by_rows(tops, RowQueries.of(tests), self._tracin_lists)
        rows = torch.cat([top.rows for top in tops])
        if tests.dense and len(rows):
            influence += self.paired(torch.from_numpy(_owner(tops)), rows, replace(tests, rows={}), "tracin")
        return influence

    def preconditioned(self, tops: Sequence[TopK], queries: Mapping[str, RowQueries]) -> Tensor:
        """Return the preconditioned influences of the top training triples, for test triples' gradients Pg'."""
        return _by_rows(tops, queries, self.preconditioner.rows)


def _by_rows(tops: Sequence[TopK], queries: Mapping[str, RowQueries], lists: RowLists) -> Tensor:
    """Return the influence by rows of the top training triples of each test triple, side by side."""
    rows = torch.cat([top.rows for top in tops]).numpy()
    return torch.from_numpy(lists.influences(queries, _owner(tops), rows).astype(np.float32))


def _owner(tops: Sequence[TopK]) -> np.ndarray:
    """Return the number of the test triple that each of the top training triples belongs to."""
    return np.arange(len(tops)).repeat([len(top.rows) for top in tops])
