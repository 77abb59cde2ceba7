"""Bounds are never violated, and a certified answer is the exact top-k: on random models, against float64.

The truth is summed in float64 from gradients that the model computed in float32, as the index has them: where a ReLU's
input or a saturated score lies within rounding, the gradient itself may differ between precisions.
"""

import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from kgtrace_indexer import ModelFile, TripleTable
from kgtrace_indexer.building.parts import stored
from kgtrace_indexer.gradients.losses import CONTRAST, ONE_TO_ALL, OWN_SCORE, KnownTails, bce, loss_by_name
from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import Kron, Rows, Slopes, Spread, Terms, inner, paired
from kgtrace_indexer.index.bases import Bases, fit_bases
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.codec import PrincipalCodec
from kgtrace_indexer.index.files import shards_of
from kgtrace_indexer.index.inverted import InvertedFile
from kgtrace_indexer.index.preconditioner import Moments, Preconditioner, check_rows, moments
from kgtrace_indexer.index.query_code import encode_queries
from kgtrace_indexer.index.rows import STORED, RowList, RowLists, is_read, list_reads, listed_tables
from kgtrace_indexer.index.short_code import ShortCode
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.models.conve_network import BIAS, ENTITY, RELATION
from kgtrace_indexer.models.featurizer import SLOPE, SQUARED_NORM, Featurizer
from kgtrace_indexer.names import Directions
from kgtrace_indexer.query.cascade import Cascade
from kgtrace_indexer.query.certify import SearchOptions, TopK, value
from kgtrace_indexer.query.retrieval import Retrieval
from kgtrace_indexer.query.row_search import RowSearch
from kgtrace_store import ExactSearch
from kgtrace_store.errors import BadRequest, CorruptGeneration
from kgtrace_store.sharded_search import ShardedSearch

ORDERS = ("proponents", "opponents", "absolute")


def random_model(rng: np.random.Generator, entities: int, relations: int, scale: float) -> ModelFile:
    """A ConvE of random shape and parameters; a larger scale makes scores, and so norms, more uneven."""
    channels, height, width = rng.integers(1, 3), rng.integers(2, 4), rng.integers(2, 5)
    outputs, dim = int(rng.integers(1, 5)), int(channels * height * width)
    kernel = (int(rng.integers(1, min(3, 2 * height) + 1)), int(rng.integers(1, min(3, width) + 1)))
    flat = outputs * (2 * height - kernel[0] + 1) * (width - kernel[1] + 1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.as_tensor(scale * rng.standard_normal(shape), dtype=torch.float32)

    def norm(prefix: str, size: int) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}.weight": 1 + normal(size), f"{prefix}.bias": normal(size),
            f"{prefix}.running_mean": normal(size), f"{prefix}.running_var": 0.1 + normal(size).square(),
        }  # fmt: skip

    tensors = {
        ENTITY: normal(entities, dim), BIAS: normal(entities, 1), RELATION: normal(2 * relations, dim),
        "interaction.hr2d.2.weight": normal(outputs, channels, *kernel), "interaction.hr2d.2.bias": normal(outputs),
        "interaction.hr1d.0.weight": normal(dim, flat), "interaction.hr1d.0.bias": normal(dim),
        **norm("interaction.hr2d.0", channels), **norm("interaction.hr2d.3", outputs),
        **norm("interaction.hr1d.2", dim),
    }  # fmt: skip
    shape = {"input_channels": int(channels), "image_height": int(height), "image_width": int(width)}
    return ModelFile("ConvE", tensors, entities, relations, True, {"interaction": {"shape_info": shape}}, {}, "test")


def double(terms: Terms) -> Terms:
    """Return the same gradients in float64."""
    return Terms(
        terms.per_triple,
        terms.loss.double(),
        {name: Kron(block.u.double(), block.v.double(), block.group) for name, block in terms.kron.items()},
        {name: grad.double() for name, grad in terms.flat.items()},
        {table: [Rows(use.index, use.grad.double()) for use in uses] for table, uses in terms.rows.items()},
        {
            table: Spread(
                Slopes(block.u.base.double(), block.u.group, block.u.index, block.u.own.double()), block.x.double()
            )
            for table, block in terms.spread.items()
        },
    )


@dataclass
class Case:
    """A random model, its index in memory, and the truth in float64."""

    seed: int
    triples: int
    scale: float
    dim: int
    layers: str
    both: bool
    dtype: torch.dtype
    loss: str | None
    """None: TracIn of ``bce``, and the preconditioned score of ``removal``."""
    damping: float | None = None
    """Of the preconditioned score, where gradients allow it; None for plain influence."""
    shard_size: int | None = None

    @cached_property
    def model(self) -> ModelFile:
        return random_model(np.random.default_rng([self.seed, 0]), entities=12, relations=3, scale=self.scale)

    @cached_property
    def featurizer(self) -> Featurizer:
        scoring = ConvE(self.model)
        loss = loss_by_name(
            self.loss or "removal",
            label_smoothing=0.1 if self.loss in ONE_TO_ALL and self.seed % 2 else 0.0,
            entities=12,
            trained_with={},
            known=lambda: KnownTails.of(self.table.ids, True, torch.device("cpu")),
        )
        directions: Directions = "both" if self.both else "forward"
        plain = bce if self.loss is None else None
        return Featurizer(scoring, loss, scoring.select([self.layers]), directions, True, plain)

    @property
    def of_score(self) -> Featurizer:
        """The featurizer of the score that is asked for."""
        return self.featurizer.plain if self.damping is None or self.preconditioner is None else self.featurizer

    @cached_property
    def table(self) -> TripleTable:
        ids = np.random.default_rng([self.seed, 1]).integers(0, (12, 3, 12), (self.triples, 3))
        ids = ids[np.lexsort(ids.T[[2, 0, 1]])].astype(np.int32)
        return TripleTable(ids, np.arange(len(ids)), 0)

    @cached_property
    def queries(self) -> np.ndarray:
        return np.random.default_rng([self.seed, 2]).integers(0, (12, 3, 12), (6, 3))

    @cached_property
    def bases(self) -> Bases:
        landmarks = self.table.ids[: max(1, len(self.table.ids) // 2)]
        return fit_bases(self.featurizer.plain.training_terms_apart(landmarks), self.dim)

    @cached_property
    def encoded(self) -> dict[str, np.ndarray]:
        codec = PrincipalCodec(self.bases, self.dtype)
        return stored(self.featurizer, codec, self.table, np.arange(len(self.table.ids)))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in self.encoded.items() if not is_read(name)}

    @cached_property
    def rows(self) -> RowLists:
        """As they would be mapped, but in memory."""
        tables: dict[str, list[RowList]] = {}
        for table in listed_tables(self.encoded):
            size = 12 if table == ENTITY else 6
            for shard in shards_of(len(self.table.ids), self.shard_size):
                some = {name: self.encoded[f"{table}.{name}"][shard.start : shard.stop] for name in STORED}
                listed = some | list_reads(some["row"], size)
                named = {f"{table}.{name}": array for name, array in listed.items()}
                tables.setdefault(table, []).append(RowList.of(shard.start, table, named))
        return RowLists(tables)

    @cached_property
    def codes(self) -> Codes:
        shards = shards_of(len(self.table.ids), self.shard_size)
        stacks = {
            name: Stack([torch.from_numpy(array[shard.start : shard.stop]) for shard in shards])
            for name, array in self.arrays.items()
        }
        return Codes(stacks, self.rows.weighted(self.arrays[SLOPE]) if SLOPE in self.arrays else self.rows)

    @cached_property
    def truth(self) -> torch.Tensor:
        """(n, 6) influences in float64."""
        training = double(self.training_terms)
        return torch.cat([inner(training, double(terms)) for terms in self.all_test_terms], 1)

    @cached_property
    def magnitude(self) -> float:
        """The largest Σ‖g‖ Σ‖g'‖ over loss terms, to which errors of influences are relative: the terms may cancel."""

        def largest(terms: Terms) -> torch.Tensor:
            norms = squared_norms(replace(double(terms), per_triple=1)).clamp_min(0).sqrt()
            return norms.view(-1, terms.per_triple).sum(1).max()

        return float(largest(self.training_terms) * max(map(largest, self.all_test_terms)))

    @cached_property
    def preconditioner(self) -> Preconditioner | None:
        try:
            check_rows(self.encoded)
        except BadRequest:
            return None
        held: dict[str, Moments] = {table: next(moments(self.rows, table)) for table in self.rows.tables}
        return Preconditioner(self.rows, held, self.rows.mean_squares())

    @cached_property
    def training_terms(self) -> Terms:
        return self.of_score.training_terms(self.table.ids)

    @cached_property
    def all_test_terms(self) -> list[Terms]:
        """Of each query apart."""
        terms = [self.of_score.test_terms(query[None], "tail") for query in self.queries]
        if self.damping is None or self.preconditioner is None:
            return terms
        return [self.preconditioner(each, self.damping) for each in terms]

    def test_terms(self, i: int) -> Terms:
        return self.all_test_terms[i]

    def exact(self, i: int, rows: torch.Tensor) -> torch.Tensor:
        return self.of_score.influences(self.table.ids[rows.numpy()], self.test_terms(i))[:, 0]

    def ask(self, terms: Terms, mask: np.ndarray | None = None, **options: object) -> SearchOptions:
        def computed(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return paired(self.training_terms, rows, terms, query)

        return SearchOptions(**{"max_candidates": None, "allowed": [mask], "exact": computed, **options})

    @cached_property
    def retrieval(self) -> Retrieval:
        """As an attributor has it, but for the index, which is the plain oracle here."""
        phi, rho = self.arrays["projected"], self.arrays["residual"]
        short = ShortCode.choose(np.square(phi).sum(0))
        vectors = short.stored(phi, rho)
        indexes = [ExactSearch(vectors[shard.start : shard.stop]) for shard in shards_of(len(phi), self.shard_size)]
        index = indexes[0] if self.shard_size is None else ShardedSearch(indexes)
        if not self.test_terms(0).dense and (self.of_score is self.featurizer or SLOPE not in self.arrays):
            tables = self.rows.tables.items()
            files = {table: [inverted_file(piece) for piece in pieces] for table, pieces in tables}
            return RowSearch(self.rows, files, self.arrays.get(SQUARED_NORM, self.arrays["self_influence"]))
        return Cascade(self.bases, self.codes, index, short)

    def find(self, i: int, **options: object) -> TopK:
        return self.retrieval.find(self.test_terms(i), self.ask(self.test_terms(i), **options))[0]


def inverted_file(rows: RowList) -> InvertedFile:
    """The inverted file of some reads, written and read back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lists.faiss"
        scale = InvertedFile.write(rows, path)
        return InvertedFile.read(path, rows.start, scale, rows.width)


cases = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    triples=st.integers(1, 300),
    scale=st.sampled_from([0.2, 0.7, 2.0]),
    dim=st.sampled_from([1, 3, 8, 64]),
    layers=st.sampled_from(["all", "last:1", "last:2", "last:3", "interaction.hr1d.0.bias"]),
    both=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.float32]),
    loss=st.sampled_from([None, *OWN_SCORE, *ONE_TO_ALL, *CONTRAST]),
    damping=st.sampled_from([None, 0.01, 3.0]),
    shard_size=st.sampled_from([None, 7, 100]),
)
thorough = settings(max_examples=60)


TINY = Case(46326, triples=5, scale=0.7, dim=1, layers="last:1", both=False, dtype=torch.float16, loss=None)
"""With an influence of 9e-51, which float32 cannot tell from 0."""


@given(cases)
@example(TINY)
@thorough
def test_bounds_hold(case: Case) -> None:
    """Every exact influence lies below the index bound and within the factor bound."""
    rows = torch.arange(len(case.codes))
    for i in range(len(case.queries)):
        terms, truth = case.test_terms(i), case.truth[:, i]
        upper, low, high = case.retrieval.bounds(terms, rows)
        assert (low <= truth).all()
        assert (high >= truth).all()
        assert (upper >= truth).all()
        if terms.dense:
            queries = encode_queries(terms, case.bases, torch.device("cpu"))
            assert (case.codes.index_upper(queries, torch.zeros_like(rows), rows, (-1,)) >= -truth).all()
            assert (case.codes.index_upper(queries, torch.zeros_like(rows), rows, (1, -1)) >= truth.abs()).all()


@given(cases)
@thorough
def test_short_codes_bound_whole_ones(case: Case) -> None:
    """A short code's inner product with a query's is never below that of the whole codes."""
    phi, rho = case.arrays["projected"], case.arrays["residual"]
    short = ShortCode.choose(np.square(phi).sum(0))
    stored = short.stored(phi, rho)
    np.testing.assert_array_equal(stored.view(np.uint32) & 0xFFFF, 0)  # bfloat16 holds them without loss
    for i in range(len(case.queries)):
        if not case.test_terms(i).dense:
            continue
        query = encode_queries(case.test_terms(i), case.bases, torch.device("cpu"))
        for sign in (1, -1):
            whole = sign * (phi.astype(np.float64) @ query.phi[0].numpy()) + rho @ query.residual[0].numpy()
            asked = short.query_vectors(sign * query.phi.numpy(), query.residual.numpy())[0]
            assert (stored.astype(np.float64) @ asked >= whole).all()


@given(cases, st.integers(1, 40), st.sampled_from(ORDERS))
@thorough
def test_certified_answers_are_exact(case: Case, top_k: int, order: str) -> None:
    """Without a budget every answer is certified, and no triple outside of it has more influence."""
    for i in range(len(case.queries)):
        found = case.find(i, top_k=top_k, order=order)
        truth = value(case.truth[:, i], order)
        best = truth.topk(min(top_k, len(truth))).values
        assert found.certified
        assert found.bound_gap == 0
        assert len(set(found.rows.tolist())) == len(best)
        torch.testing.assert_close(truth[found.rows], best, rtol=1e-4, atol=1e-6 * case.magnitude)
        torch.testing.assert_close(
            case.truth[found.rows, i].float(), found.influence, rtol=1e-4, atol=1e-6 * case.magnitude
        )


@given(cases, st.integers(1, 10), st.sampled_from(ORDERS), st.integers(0, 60))
@thorough
def test_a_budget_is_kept_and_its_gap_is_true(case: Case, top_k: int, order: str, budget: int) -> None:
    """With a budget, no more triples are looked at, and what was missed is within the reported gap."""
    for i in range(len(case.queries)):
        found = case.find(i, top_k=top_k, order=order, max_candidates=budget)
        truth = value(case.truth[:, i], order)
        assert found.candidates <= budget
        assert not found.certified or len(found.rows) == min(top_k, len(truth))
        missed = truth.clone()
        missed[found.rows] = -torch.inf
        last = float(truth[found.rows].min()) if len(found.rows) == min(top_k, len(truth)) else 0.0
        if len(found.rows) < len(truth):
            assert float(missed.max()) <= last + found.bound_gap + 1e-5 * case.magnitude


@given(cases)
@thorough
def test_forward_mode_gives_the_same_influences(case: Case) -> None:
    """The derivative of each loss along a test triple's gradient is its inner product with the gradient itself."""
    every = torch.arange(len(case.table.ids))
    for i in range(len(case.queries)):
        torch.testing.assert_close(
            case.exact(i, every), case.truth[:, i].float(), rtol=1e-4, atol=1e-6 * case.magnitude
        )


@given(cases, st.integers(1, 10), st.data())
@thorough
def test_search_among_some(case: Case, top_k: int, data: st.DataObject) -> None:
    """A search among given triples finds their best, and names no other."""
    rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(case.codes) - 1)))), dtype=torch.int64)
    mask = np.zeros(len(case.codes), bool)
    mask[rows] = True
    found = case.find(0, top_k=top_k, order="proponents", mask=mask)
    truth = case.truth[rows, 0]
    best = truth.topk(min(top_k, len(rows))).values
    assert set(found.rows.tolist()) <= set(rows.tolist())
    torch.testing.assert_close(case.truth[found.rows, 0], best, rtol=1e-4, atol=1e-6 * case.magnitude)


def test_an_answer_cut_short_is_not_certified() -> None:
    """Where room is left and a triple was not looked at, the answer is not certified, whatever its influence may be."""
    case = Case(seed=0, triples=50, scale=0.7, dim=8, layers="all", both=True, dtype=torch.float32, loss="bce")
    among = [
        case.find(i, top_k=3, order=order, max_candidates=0, mask=np.arange(50) == row)
        for i in range(len(case.queries)) for row in range(50) for order in ("proponents", "opponents")
    ]  # fmt: skip
    assert any(found.bound_gap == 0 for found in among)
    assert not any(found.certified for found in among)


def test_equal_influences_are_decided_in_few_steps() -> None:
    """For a test triple without a gradient all training triples tie, and are computed in growing blocks."""
    case = Case(seed=0, triples=300, scale=0.7, dim=8, layers="all", both=True, dtype=torch.float32, loss="bce")
    terms = case.test_terms(0)
    nothing = Terms(
        terms.per_triple,
        0 * terms.loss,
        {name: Kron(0 * block.u, block.v, block.group) for name, block in terms.kron.items()},
        {name: 0 * grad for name, grad in terms.flat.items()},
        {table: [Rows(use.index, 0 * use.grad) for use in uses] for table, uses in terms.rows.items()},
    )
    blocks = []

    def exact(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        blocks.append(len(rows))
        return torch.zeros(len(rows))

    (found,) = case.retrieval.find(nothing, case.ask(nothing, top_k=10, order="proponents", exact=exact))
    assert found.certified
    assert len(found.rows) == 10
    assert len(blocks) < 10  # in blocks of 16 there would be 19
    assert sum(blocks) == 300


@pytest.mark.parametrize("order", ORDERS)
def test_ties_are_decided_by_row(order: str) -> None:
    """Also where those that share a row, and those that share none, have no influence."""
    case = Case(
        seed=0, triples=300, scale=0.7, dim=8, layers="all", both=True, dtype=torch.float32, loss="bce", damping=3.0
    )
    rows = case.test_terms(0).rows
    nothing = {table: [Rows(use.index, 0 * use.grad) for use in uses] for table, uses in rows.items()}
    terms = Terms(1, torch.zeros(1), {}, {}, nothing)
    (found,) = case.retrieval.find(terms, case.ask(terms, top_k=10, order=order))
    assert found.certified
    assert found.rows.tolist() == list(range(10))


def test_missing_directions_are_named() -> None:
    """Bases that lack a part are refused by its name, not with a bare KeyError."""
    arrays = {"basis.w.pairs": np.eye(2, dtype=np.float32), "basis.flat": np.eye(2, dtype=np.float32)}
    with pytest.raises(CorruptGeneration, match=r"directions 'w\.u' are missing; there are \['flat', 'w\.pairs'\]"):
        Bases.from_arrays(arrays, torch.device("cpu"))
