"""TracIn without an index: influences computed at once, for whoever has one question or a model that changes hourly.

::

    analyzer = TracInAnalyzer("model", use_last_layers_only=True, num_last_layers=2)
    analyzer.compute_influences_for_test_triple((3, 1, 7), training_triples, top_k=10)
    analyzer.compute_influences_sampled((3, 1, 7), training_triples, sample_rate=0.1, stratify_by="relation")
    analyzer.compute_self_influence(training_triples)

The training triples stream through the model in batches; each batch gives its influences on all test triples as inner
products of rank-1 terms (`kgtrace_indexer.gradients.terms`), or of their random projections, and is let go.
"""

import contextlib
import json
import math
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.random_projection import RandomProjection
from kgtrace_indexer.gradients.terms import Terms, inner
from kgtrace_indexer.index.training_set import in_order
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.model_reader import read_model
from kgtrace_indexer.inputs.pykeen_versions import METADATA, VERSION
from kgtrace_indexer.inputs.sampling import sample_table
from kgtrace_indexer.inputs.triples import TripleTable, out_of_range
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_indexer.names import Kind, Stratum
from kgtrace_indexer.query.certify import best
from kgtrace_store.errors import BadRequest, IdOutOfRange, NonFinite, UnsupportedModel

Triples = TripleTable | np.ndarray | Tensor | Sequence[Sequence[int]]
"""Triples of original ids (n, 3), or anything with such ``mapped_triples``, as PyKEEN's triples factories are."""

_CACHED = 64
"""Test triples whose gradient is kept: of a ConvE with 200 dimensions, each takes 42 KB."""


class Influence(TypedDict):
    """What one training triple did to a test triple."""

    train_head: int
    train_relation: int
    train_tail: int
    train_index: int
    """Row of the training triples."""
    influence: float
    """η ⟨∇ℓ, ∇ℓ'⟩, or its estimate from random projections."""


class SelfInfluence(TypedDict):
    """A training triple's influence on itself."""

    head: int
    relation: int
    tail: int
    train_index: int
    """Row of the training triples."""
    self_influence: float
    """η ‖∇ℓ‖², never projected."""


class TracInAnalyzer:
    """Computes influences of training triples straight from a model."""

    def __init__(
        self,
        model: ModelFile | Path | str | nn.Module,
        *,
        use_last_layers_only: bool = False,
        num_last_layers: int = 2,
        last_layer_names: Sequence[str] | None = None,
        use_projection: bool = False,
        projection_dim: int = 256,
        projection_type: Kind = "gaussian",
        device: str = "auto",
        directions: str | None = None,
        batch_size: int = 2048,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Put a model on a device. The loss is ``bce``, binary cross-entropy of a triple's own logit against 1.

        Parameters
        ----------
        model
            What `read_model` returns or reads, or a PyKEEN model in memory; that one is not changed.
        use_last_layers_only
            Let only the parameters of the last modules count: the `num_last_layers` last ones, counted from the score
            backwards as in ``--layers last:N``, or those whose parameters `last_layer_names` names.
        use_projection
            Estimate influences from random projections to `projection_dim` numbers, ``gaussian`` or ``sparse``.
        device
            ``auto``, ``cpu`` or ``cuda``.
        directions
            ``forward`` or ``both``, of the training side; None means as the model was trained.
        batch_size
            Training triples whose gradients are in memory together.
        seed
            Of the projection.
        progress
            Called with the number of training triples that are done, and of all.

        Raises
        ------
        BadRequest, UnsupportedModel, MissingInverseRelations
            Arguments that the model cannot honour. `read_model` raises others.
        """
        if batch_size < 1:
            raise BadRequest(f"batch_size is {batch_size}, must be at least 1")
        layers = ["all"]
        if use_last_layers_only:
            layers = [f"last:{num_last_layers}"] if last_layer_names is None else list(last_layer_names)
        self._model = _model_file(model)
        config = {"loss": "bce", "layers": layers, "directions": directions}
        self._featurizer = featurizer_for(self._model, config, pick_device(device))
        self._projection = RandomProjection(projection_type, projection_dim, seed) if use_projection else None
        self._batch_size = batch_size
        self._progress = progress
        self._cache: dict[tuple[int, int, int], Callable[[Terms], Tensor]] = {}

    def compute_influences_for_test_triple(
        self,
        test_triple: Sequence[int] | np.ndarray | Tensor,
        training_triples: Triples,
        *,
        learning_rate: float = 1.0,
        top_k: int | None = None,
    ) -> list[Influence]:
        """Return the influence of every training triple on a test triple's tail, by descending magnitude.

        `top_k` keeps the first ones. The test triple's gradient is computed once and kept until `clear_cache`.

        Raises `IdOutOfRange`, `BadRequest`, and `NonFinite` for an influence that is NaN or infinite.
        """
        ids = self._table(np.asarray(test_triple)[None]).ids
        triple = (int(ids[0, 0]), int(ids[0, 1]), int(ids[0, 2]))
        if triple not in self._cache:
            while len(self._cache) >= _CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[triple] = self._measure(ids)
        table = self._table(training_triples)
        (influences,) = self._ranked(self._cache[triple], 1, table, learning_rate, top_k)
        return influences

    def compute_influences_for_test_triples(
        self,
        test_triples: Triples,
        training_triples: Triples,
        *,
        learning_rate: float = 1.0,
        top_k: int | None = None,
    ) -> list[list[Influence]]:
        """Return the same for several test triples, in one pass over the training triples."""
        test = self._table(test_triples).ids
        table = self._table(training_triples)
        return self._ranked(self._measure(test), len(test), table, learning_rate, top_k)

    def compute_influences_sampled(
        self,
        test_triple: Sequence[int] | np.ndarray | Tensor,
        training_triples: Triples,
        *,
        sample_rate: float = 0.1,
        stratify_by: Stratum | None = None,
        learning_rate: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[Influence]:
        """Return the influences of a sample of the training triples, as `sample_rows` draws it.

        Of the true top k about `sample_rate` · k are in the sample, and no others can be named.
        """
        table = sample_table(self._table(training_triples), sample_rate, stratify_by, seed)
        return self.compute_influences_for_test_triple(test_triple, table, learning_rate=learning_rate, top_k=top_k)

    def compute_self_influence(
        self, training_triples: Triples, *, learning_rate: float = 1.0, top_k: int | None = None
    ) -> list[SelfInfluence]:
        """Return each training triple's influence on itself, largest first; `top_k` keeps the first ones."""
        _check_options(learning_rate, top_k)
        table = self._table(training_triples)
        norms = torch.zeros(len(table.ids))
        for rows, terms in self._batches(table):
            norms[rows] = squared_norms(terms).cpu()
        self._require_finite(norms, torch.arange(len(norms)), table)
        rows, values = best(torch.arange(len(norms)), norms, "proponents", len(norms) if top_k is None else top_k)
        return [
            {"head": head, "relation": relation, "tail": tail, "train_index": index, "self_influence": value}
            for (head, relation, tail), index, value in _listed(table, rows, values, learning_rate)
        ]

    def clear_cache(self) -> None:
        """Forget the gradients of test triples."""
        self._cache.clear()

    def _measure(self, test: np.ndarray) -> Callable[[Terms], Tensor]:
        """Return a function that computes influences on test triples (b, 3) from training triples' terms, (m, b)."""
        with torch.inference_mode():
            terms = self._featurizer.test_terms(test, "tail")
            if self._projection is None:
                return partial(_exact, terms)
            return partial(_projected, self._projection, self._projection.project(terms).T)

    def _ranked(
        self,
        measure: Callable[[Terms], Tensor],
        count: int,
        table: TripleTable,
        learning_rate: float,
        top_k: int | None,
    ) -> list[list[Influence]]:
        _check_options(learning_rate, top_k)
        kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(count)]
        for rows, terms in self._batches(table):
            influences = measure(terms).cpu()  # (m, count)
            self._require_finite(influences.sum(1), rows, table)
            for pieces, influence in zip(kept, influences.T, strict=True):
                pieces.append((rows, influence))
                if top_k is not None:
                    pieces[:] = [_best(pieces, top_k)]
        return [_influences(table, *_best(pieces, top_k or len(table.ids)), learning_rate) for pieces in kept]

    def _batches(self, table: TripleTable) -> Iterator[tuple[Tensor, Terms]]:
        """Return rows (m,) of a table and their gradients, in an order that shares forward passes."""
        order, size = in_order(table.ids), self._featurizer.block(self._batch_size)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            with torch.inference_mode():
                terms = self._featurizer.training_terms(table.ids[rows])
            yield torch.from_numpy(rows), terms
            self._progress(start + len(rows), len(order))

    def _table(self, triples: Triples) -> TripleTable:
        if isinstance(triples, TripleTable):
            self._checked(triples.ids)
            return triples
        ids = np.asarray(getattr(triples, "mapped_triples", triples))
        if ids.ndim != 2 or ids.shape[1] != 3 or not np.issubdtype(ids.dtype, np.integer):
            raise BadRequest(f"triples have shape {ids.shape} and type {ids.dtype}, need (n, 3) integers")
        return TripleTable(self._checked(ids), np.arange(len(ids)), 0)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        if wrong := out_of_range(ids, self._model.num_entities, self._model.num_relations):
            raise IdOutOfRange(f"triple {wrong[0]}: {wrong[1]}")
        return ids

    def _require_finite(self, values: Tensor, rows: Tensor, table: TripleTable) -> None:
        wrong = rows[~values.isfinite()]
        if len(wrong):
            row, ids = table.train_index[wrong[0]], table.ids[wrong[0]].tolist()
            raise NonFinite(
                f"the influence of training triple {row} (ids {ids}) is not finite: check the model's parameters"
            )


def _check_options(learning_rate: float, top_k: int | None) -> None:
    if top_k is not None and top_k < 1:
        raise BadRequest(f"top_k is {top_k}, must be at least 1")
    if not math.isfinite(learning_rate):
        raise BadRequest(f"learning rate {learning_rate} is not a finite number")


def _exact(test: Terms, training: Terms) -> Tensor:
    return inner(training, test)


def _projected(projection: RandomProjection, test: Tensor, training: Terms) -> Tensor:
    return projection.project(training) @ test


def _best(pieces: Iterable[tuple[Tensor, Tensor]], top_k: int) -> tuple[Tensor, Tensor]:
    parts = [(torch.empty(0, dtype=torch.int64), torch.empty(0)), *pieces]
    rows, influences = (torch.cat(column) for column in zip(*parts, strict=True))
    return best(rows, influences, "absolute", top_k)


def _influences(table: TripleTable, rows: Tensor, influences: Tensor, learning_rate: float) -> list[Influence]:
    return [
        {
            "train_head": head,
            "train_relation": relation,
            "train_tail": tail,
            "train_index": index,
            "influence": influence,
        }
        for (head, relation, tail), index, influence in _listed(table, rows, influences, learning_rate)
    ]


def _listed(
    table: TripleTable, rows: Tensor, values: Tensor, learning_rate: float
) -> Iterator[tuple[tuple[int, int, int], int, float]]:
    """Return ids, ``train_index`` and weighted value of rows (k,), in the shortest decimals that read back the same."""
    chosen = rows.numpy()
    weighted = np.float32(learning_rate) * values.numpy()
    shortest = (float(str(value)) for value in weighted)
    triples = ((head, relation, tail) for head, relation, tail in table.ids[chosen].tolist())
    return zip(triples, table.train_index[chosen].tolist(), shortest, strict=True)


def _model_file(model: ModelFile | Path | str | nn.Module) -> ModelFile:
    if isinstance(model, ModelFile):
        return model
    if not isinstance(model, nn.Module):
        return read_model(Path(model))
    # Saved and read again as any model is: its tensors and facts count, not its code.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{type(model).__name__}.pt"
        try:
            torch.save(model, path)
        except (pickle.PicklingError, AttributeError, TypeError) as e:
            raise UnsupportedModel(
                f"this {type(model).__name__} cannot be saved ({e}): pass a saved model's path"
            ) from e
        with contextlib.suppress(PackageNotFoundError):  # a model in memory scores as the installed PyKEEN does
            (path.parent / METADATA).write_text(json.dumps({VERSION: version("pykeen")}))
        return read_model(path)
