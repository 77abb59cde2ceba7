"""Which training triples influenced a prediction: featurize, search, certify."""

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Aggregation, Answer, Completions, Restriction, Seconds
from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import Terms, inner
from kgtrace_indexer.index.codec import Codec
from kgtrace_indexer.index.files import Files
from kgtrace_indexer.index.preconditioner import check_damping, row_terms
from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.row_queries import RowQueries, paired_products
from kgtrace_indexer.index.rows import read_gradients
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.models.featurizer import OF_TWO_LOSSES, Featurizer
from kgtrace_indexer.names import PRECONDITIONS, Damping, Direction, Group, Order, Outcome, Score
from kgtrace_indexer.pieces import in_halves
from kgtrace_indexer.query.aggregate import Aggregator
from kgtrace_indexer.query.attribution import attribute, known_ids
from kgtrace_indexer.query.certify import SearchOptions
from kgtrace_indexer.query.checks import checked, require_positive
from kgtrace_indexer.query.clock import Clock
from kgtrace_indexer.query.completions import complete
from kgtrace_indexer.query.influences import Influences
from kgtrace_indexer.query.reasons import Reasons
from kgtrace_indexer.query.retrieval import Retrieval
from kgtrace_indexer.query.scan import among, near, scan
from kgtrace_indexer.threads import one_thread, side_by_side
from kgtrace_indexer.transfers import to_host
from kgtrace_store.errors import BadRequest
from kgtrace_store.generation import Generation
from kgtrace_store.manifest import Manifest
from kgtrace_store.vocabulary import Vocabulary

_LEAST = 8
"""Test triples from which another thread is worth its while."""


class Attributor:
    """Answers which training triples influenced a prediction.

    A query computes on one thread, a batch on several, each for some of its test triples, a scan on all of torch's.
    """

    def __init__(
        self,
        generation: Generation,
        vocabulary: Vocabulary,
        featurizer: Featurizer,
        codec: Codec,
        retrievals: Mapping[Score, Retrieval],
        files: Files,
        training: TrainingSet,
        resident: ResidentRows | None = None,
    ) -> None:
        """`featurizer` is of the preconditioned score; `retrievals` may be empty; `resident` are the lists on a GPU."""
        self._generation = generation
        self.vocabulary = vocabulary
        self.featurizer = featurizer
        self._influences = Influences(featurizer, files, training, resident)
        self._codec = codec
        self._retrievals = retrievals
        self.files, self.training = files, training
        self.reasons = Reasons(training, files.neighbours)

    @property
    def manifest(self) -> Manifest:
        """The facts that the generation records about itself."""
        return self._generation.manifest

    @property
    def device(self) -> torch.device:
        """Where gradients are computed."""
        return self.featurizer.model.device

    def __len__(self) -> int:
        """Return the number of indexed training triples."""
        return len(self.training.triples)

    def query(
        self,
        triples: np.ndarray,
        *,
        top_k: int = 10,
        order: Order = "proponents",
        exact: bool = False,
        max_candidates: int | None = None,
        restriction: Restriction = Restriction(),  # noqa: B008 - frozen and empty
        direction: Direction = "tail",
        score: Score | None = None,
        damping: Damping | None = None,
        outcome: Outcome = "logit",
        wanted: Callable[[], bool] = lambda: True,
    ) -> Answer:
        """Return the most influential training triples of each test triple.

        Parameters
        ----------
        triples
            (b, 3) int64: head, relation, tail ids.
        top_k
            How many to name, at least 1.
        order
            By largest, most negative or largest absolute influence.
        exact
            Compute every training triple's influence instead of searching: slow, and independent of the index.
        max_candidates
            Look at no more than so many training triples beyond the index; answers cut short are not certified.
        restriction
            Which training triples may be named.
        direction
            Explain the tail, or the head.
        score
            Plain influence, or preconditioned (`kgtrace_indexer.index.preconditioner`); None for the score that the
            index was built for.
        damping
            σ² of the latter in units of `kgtrace_indexer.index.rows.RowLists.mean_squares`; ``auto`` for `AUTO_DAMPING`
            of these, None for the index's own.
        outcome
            What the latter explains: the score of a test triple, or its log-probability among all tails (or heads).
        wanted
            Called between the blocks of an exact scan, which may take minutes: true while a caller waits for it.

        Raises
        ------
        Abandoned
            No caller waits any more.
        IdOutOfRange
            An id beyond the model's tables.
        BadRequest
            `top_k`, `max_candidates`, `within_hops` or `damping` out of range, arrays of another shape, a
            preconditioned score of an index that has none, `damping` or `outcome` of plain influence, or outcome
            ``probability`` of a model of one's own that is no `ExpectedScoreModel`.
        MissingInverseRelations
            Direction ``head`` of a log-probability, or under a loss of all tails' scores, on a model without inverse
            relations.
        """
        triples = checked(triples, self.vocabulary)
        require_positive("top_k", top_k)
        if max_candidates is not None and max_candidates < 0:
            raise BadRequest(f"max_candidates is {max_candidates}, must be at least 0")
        self._check(score, damping, outcome)
        score = score or self.score
        retrieval = None if exact else self._retrievals.get(score)
        answer = partial(
            self._answer, retrieval=retrieval, top_k=top_k, order=order, max_candidates=max_candidates,
            restriction=restriction, direction=direction, score=score, damping=damping, outcome=outcome, wanted=wanted,
        )  # fmt: skip
        whole = retrieval is None or self.device.type != "cpu" or not self.featurizer.concurrent
        parts = 1 if whole else max(1, min(torch.get_num_threads(), len(triples) // _LEAST))
        some = partial(in_halves, answer, what="test triple")
        batches = map(some, [triples]) if parts == 1 else side_by_side(some, np.array_split(triples, parts))
        return Answer.joined([part for batch in batches for part in batch])

    def _answer(
        self,
        triples: np.ndarray,
        retrieval: Retrieval | None,
        *,
        top_k: int,
        order: Order,
        max_candidates: int | None,
        restriction: Restriction,
        direction: Direction,
        score: Score,
        damping: Damping | None,
        outcome: Outcome,
        wanted: Callable[[], bool],
    ) -> Answer:
        """Answer as `query` does, by a search or else by a scan; a search computes on the calling thread alone."""
        with torch.inference_mode(), nullcontext() if retrieval is None else one_thread():
            clock = Clock()
            own = self.featurizer.test_terms(triples, direction)
            plain = self.featurizer.plain_terms(own, triples, direction)
            explained = own if outcome == "logit" else self._explaining(outcome).test_terms(triples, direction)
            terms = plain if score == "tracin" else explained
            of_model = {"losses": (plain if score == "tracin" else own).losses()}
            of_model["scores"] = self.featurizer.candidate_scores(triples, direction)
            if score == "tracin":
                of_model["norms"] = squared_norms(plain)
            rows, on_cpu = RowQueries.with_others(explained, of_model)
            queries = {}
            if score == "preconditioned" or "preconditioned" in self._retrievals:
                queries = self._influences.preconditioner.changed(rows, self._damping(damping))
            if score == "tracin":
                norms = self_influence = on_cpu["norms"].tolist()
            else:
                norms, self_influence = (paired_products(gradients, queries).tolist() for gradients in (queries, rows))
            clock.lap("gradient")
            nearby = near(self.training, triples, restriction, len(self.vocabulary.entities))
            mask = self.training.allowed(restriction)
            if retrieval is None:
                featurizer = self._influences.featurizers[score]
                tests = plain if score == "tracin" else row_terms(queries, explained)
                tops = scan(featurizer, self.training, tests, top_k, order, mask, nearby, wanted)
            else:
                options = SearchOptions(
                    top_k, order, max_candidates,
                    allowed=[among(self.training, mask, entities) for entities in nearby],
                    exact=lambda query, rows: self._influences.paired(query, rows, terms, score),
                    lap=clock.lap,
                    queries=queries if score == "preconditioned" else None,
                    restriction=restriction if restriction.within_hops is None else None,
                )  # fmt: skip
                tops = retrieval.find(terms, options)
                clock.lap("search")
            values: dict[Score, Tensor] = {score: torch.cat([top.influence for top in tops])}
            if score == "preconditioned":
                values["tracin"] = self._influences.tracin(tops, plain)
            elif queries:
                values["preconditioned"] = self._influences.preconditioned(tops, queries)
            clock.lap("rerank")
            attributions = attribute(
                self.training, self.vocabulary, triples, on_cpu["scores"], tops, values, direction,
                score=score, loss=(self.loss(score), on_cpu["losses"].tolist()),
                self_influence=self_influence, squared_norm=norms,
            )  # fmt: skip
            clock.lap("gradient")
        return Answer(attributions, Seconds(**clock.seconds))

    def aggregate(
        self,
        triples: np.ndarray,
        by: Group,
        *,
        top_k: int = 10,
        order: Order = "proponents",
        exact: bool = False,
        restriction: Restriction = Restriction(),  # noqa: B008 - frozen and empty
        direction: Direction = "tail",
        score: Score | None = None,
        damping: Damping | None = None,
        outcome: Outcome = "logit",
        wanted: Callable[[], bool] = lambda: True,
    ) -> Aggregation:
        """Return influences on one test triple, or summed over several, by relation, head or tail of training triples.

        By ``triple`` every training triple is a group of its own; those that are named then have their exact
        influences, and are certified. Other parameters, and errors, are those of `query`.

        Parameters
        ----------
        triples
            (3,) or (b, 3) int64: head, relation, tail ids. `restriction.within_hops` counts from each of them alone.
        by
            What the training triples of a group have in common.
        exact
            Compute every training triple's influence with the model. Else influences on embedding rows alone come from
            their stored gradients, and others are estimates with bounds on their errors, unless several test triples
            have gradients in dense layers, for which there are none.
        """
        require_positive("top_k", top_k)
        triples = checked(np.atleast_2d(triples), self.vocabulary)
        self._check(score, damping, outcome)
        score = score or self.score
        with torch.inference_mode():
            aggregator = Aggregator(
                self._explaining(outcome, score), self.training, self._retrievals.get(score),
                entities=len(self.vocabulary.entities), relations=len(self.vocabulary.relations),
                query_gradients=partial(self._changed, score=score, damping=damping),
                restriction=restriction, direction=direction, exact=exact, wanted=wanted,
            )  # fmt: skip
            return aggregator.sums(triples, by, top_k, order)

    def complete(
        self, triples: np.ndarray, *, top_k: int = 10, direction: Direction = "tail", filtered: bool = False
    ) -> list[Completions]:
        """Return the model's best tails (or heads) for test triples (b, 3), whose own tails (or heads) do not matter.

        `filtered` leaves out entities that make a training triple. Raises the errors of `query`.
        """
        require_positive("top_k", top_k)
        triples = checked(triples, self.vocabulary)
        column = 2 if direction == "tail" else 0
        with torch.inference_mode(), one_thread():
            scores = self.featurizer.candidate_scores(triples, direction)
            return [
                complete(
                    triple, column, row, known_ids(self.training, triple, direction), top_k=top_k, filtered=filtered
                )
                for triple, row in zip(triples, scores, strict=True)
            ]

    def candidate_scores(self, triples: np.ndarray, direction: Direction = "tail") -> np.ndarray:
        """Return the model's scores of all entities in place of the tail (or head) of triples (b, 3): (b, E) float32.

        Raises the errors of `complete`.
        """
        with torch.inference_mode():
            return self.featurizer.candidate_scores(checked(triples, self.vocabulary), direction).cpu().numpy()

    def exact_influences(
        self,
        triples: np.ndarray,
        rows: np.ndarray,
        direction: Direction = "tail",
        *,
        score: Score | None = None,
        damping: Damping | None = None,
        outcome: Outcome = "logit",
    ) -> np.ndarray:
        """Return ⟨∇ℓ, ∇ℓ'⟩ of training triples `rows` (m,) and test triples (b, 3), recomputed: (m, b) float32.

        `score`, `damping` and `outcome` are those of `query`.
        """
        with torch.inference_mode():
            terms = self._terms(checked(triples, self.vocabulary), direction, score, damping, outcome)
            blocks = torch.as_tensor(rows).split(self.featurizer.scanned)
            return torch.cat([self._influences.every(block, terms, score or self.score) for block in blocks]).numpy()

    def bounds(
        self, triple: np.ndarray, rows: np.ndarray, direction: Direction = "tail", *, score: Score | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return an upper, a lower and a tighter upper bound of the influences of training triples (m,), (m,) each.

        A search relies on these bounds. Raises `BadRequest` for an index that has no search.
        """
        if not self.searches:
            raise BadRequest("this index was built with projection none: it holds no bounds")
        with torch.inference_mode():
            terms = self._terms(checked(triple[None], self.vocabulary), direction, score, None)
            upper, low, high = self._retrievals[score or self.score].bounds(terms, torch.as_tensor(rows))
            return upper.numpy(), low.numpy(), high.numpy()

    @property
    def certifies(self) -> bool:
        """Whether every answer is proved to be exact unless `max_candidates` cuts it short."""
        return all(retrieval.certifies for retrieval in self._retrievals.values())

    @property
    def score(self) -> Score:
        """The score that the index answers with by default."""
        return PRECONDITIONS[self.manifest.configuration.get("precondition", "none")]

    def loss(self, score: Score) -> str:
        """Return the name of the loss whose gradients a score multiplies; self-influences are of TracIn's."""
        return str(self.manifest.configuration["loss" if score == "preconditioned" else "tracin_loss"])

    @property
    def searched_scores(self) -> Collection[Score]:
        """The scores that there is a search for; by others every query is an exact scan."""
        return self._retrievals.keys()

    @property
    def searches(self) -> bool:
        """Whether there is an index; without one every query is an exact scan."""
        return bool(self._retrievals)

    def encode_again(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return what `Files.take` returns of training triples `rows` (m,), of float32 codes and ``.grad``, anew."""
        with torch.inference_mode():
            codes = to_host(self.featurizer.codes(self.training.triples[rows], self._codec))()
        checked = (*self._codec.checked, *OF_TWO_LOSSES)
        return {name: array for name, array in codes.items() if name in checked} | read_gradients(codes)

    def self_influence_again(self, rows: np.ndarray) -> np.ndarray:
        """Return the preconditioned self-influences of training triples `rows` (m,), computed anew, (m,) float32."""
        with torch.inference_mode():
            apart = self.featurizer.plain.training_terms_apart(self.training.triples[rows])
            self_influences = [inner(terms, self._changed(terms, "preconditioned", None)).diagonal() for terms in apart]
            return torch.stack(self_influences).sum(0).cpu().numpy()

    def _check(self, score: Score | None, damping: Damping | None, outcome: Outcome) -> None:
        """Raise `BadRequest` for a damping that is none, and for what plain influence does not have."""
        check_damping(damping)
        for name, chosen in (("damping", damping is not None), ("outcome", outcome != "logit")):
            if chosen and (score or self.score) == "tracin":
                raise BadRequest(f"{name} is of the preconditioned score: ask for that, too")

    def _explaining(self, outcome: Outcome, score: Score = "preconditioned") -> Featurizer:
        """Return the featurizer of a score, for an outcome of test triples."""
        return replace(self._influences.featurizers[score], outcome=outcome)

    def _damping(self, damping: Damping | None) -> Damping:
        """Return σ² of the preconditioned score."""
        return damping or self.manifest.configuration["damping"] or "auto"

    def _terms(
        self,
        triples: np.ndarray,
        direction: Direction,
        score: Score | None,
        damping: Damping | None,
        outcome: Outcome = "logit",
    ) -> Terms:
        """Return the query gradients of test triples (b, 3)."""
        self._check(score, damping, outcome)
        terms = self._explaining(outcome, score or self.score).test_terms(triples, direction)
        return self._changed(terms, score or self.score, damping)

    def _changed(self, terms: Terms, score: Score, damping: Damping | None) -> Terms:
        """Return Pg' of test triples, or g' as it is."""
        return terms if score == "tracin" else self._influences.preconditioner(terms, self._damping(damping))
