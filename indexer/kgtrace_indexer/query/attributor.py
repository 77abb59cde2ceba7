"""Which training triples influenced a prediction: featurize, search, certify."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Aggregation, Answer, Attribution, Completions, Restriction, Seconds
from kgtrace_indexer.gradients.terms import Terms, inner, squared_norms
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.codec import Codec, PrincipalCodec, RandomCodec, read_codec
from kgtrace_indexer.index.device_search import TorchSearch
from kgtrace_indexer.index.files import Files
from kgtrace_indexer.index.preconditioner import Preconditioner, check_damping
from kgtrace_indexer.index.short_code import COLUMNS, ShortCode
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.index.training_set import TrainingSet, touching
from kgtrace_indexer.inputs.model_reader import read_model
from kgtrace_indexer.inputs.triples import out_of_range
from kgtrace_indexer.models.featurizer import OF_BCE, Featurizer, featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_indexer.names import PRECONDITIONS, Damping, Direction, Group, Order, Score
from kgtrace_indexer.query.aggregate import GroupSums
from kgtrace_indexer.query.cascade import Ask, Brackets, Cascade, Pool, Retrieval
from kgtrace_indexer.query.certify import Found, best, nth_largest, value
from kgtrace_indexer.query.completions import complete
from kgtrace_indexer.query.total import Total
from kgtrace_indexer.threads import one_thread
from kgtrace_store import layout
from kgtrace_store.errors import Abandoned, BadRequest, CorruptGeneration, IdOutOfRange
from kgtrace_store.generation import Generation
from kgtrace_store.generations import IndexRoot
from kgtrace_store.manifest import Manifest
from kgtrace_store.milvus import Milvus
from kgtrace_store.search import FaissSearch, SearchIndex
from kgtrace_store.sharded_search import ShardedSearch
from kgtrace_store.vocabulary import Vocabulary

_SCAN_BLOCK = 2048
"""Training triples featurized at a time in a full scan."""
_TEST_BLOCK = 64
"""Test triples, or rows of their gradients' sum, that are computed together where influences on many are summed."""
_BRACKET_BLOCK = 8192
"""Training triples whose factor bound is computed at a time in a full scan."""

_VANISHED = float(np.finfo(np.float32).tiny)
"""‖g'‖² below which g' has, at best, a few correct digits."""


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds = {"gradient": 0.0, "search": 0.0, "rerank": 0.0}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


@dataclass(frozen=True, slots=True)
class _Part:
    """What is summed up: influences on one test triple, or on several together."""

    rows: Tensor
    """(m,) int64: training triples that count."""
    exact: Callable[[Tensor], Tensor]
    """Maps training triples (m,) to their influences (m,)."""
    brackets: Brackets | None
    """None where only exact influences are of use."""


class Attributor:
    """Answers which training triples influenced a prediction. Scans use all of torch's threads, and queries one."""

    def __init__(
        self,
        generation: Generation,
        vocabulary: Vocabulary,
        featurizer: Featurizer,
        codec: Codec,
        retrieval: Retrieval | None,
        files: Files,
        training: TrainingSet,
    ) -> None:
        """`retrieval` is None where there is no index: every query is then an exact scan."""
        self._generation = generation
        self.vocabulary = vocabulary
        self._featurizer = featurizer
        self._codec = codec
        self._retrieval = retrieval
        self._files = files
        self.training = training

    @property
    def manifest(self) -> Manifest:
        """What the generation says about itself."""
        return self._generation.manifest

    @property
    def device(self) -> torch.device:
        """Where gradients are computed."""
        return self._featurizer.model.device

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
            σ² of the latter in units of `kgtrace_indexer.index.preconditioner.mean_square`; ``auto`` for `AUTO_DAMPING`
            of these, None for the index's own.
        wanted
            Asked between the blocks of an exact scan, which may take minutes: whether anybody still waits for it.

        Raises
        ------
        Abandoned
            Nobody does.
        IdOutOfRange
            An id beyond the model's tables.
        BadRequest
            `top_k`, `max_candidates`, `within_hops` or `damping` out of range, arrays of another shape, or a
            preconditioned score of an index that has none.
        MissingInverseRelations
            Direction ``head`` under a loss of all tails' scores, on a model without inverse relations.
        """
        triples = self._checked(triples)
        _require_positive("top_k", top_k)
        if max_candidates is not None and max_candidates < 0:
            raise BadRequest(f"max_candidates is {max_candidates}, must be at least 0")
        scans = exact or self._retrieval is None
        with torch.inference_mode(), nullcontext() if scans else one_thread():
            clock = _Clock()
            terms = self._featurizer.test_terms(triples, direction)
            scores = self._featurizer.candidate_scores(triples, direction)
            losses = terms.losses()
            asked = self._asked(terms, score, damping)
            norms = squared_norms(asked).total
            own = norms if asked is terms else inner(terms, asked).diagonal()
            clock.lap("gradient")
            mask, near = self.training.allowed(restriction), self._near(triples, restriction)
            if self._retrieval is None or scans:
                found = self._scan(asked, top_k, order, mask, near, wanted)
                clock.lap("rerank")
            else:
                among = [self._among(mask, entities) for entities in near]
                rows = [None if allowed is None else self._rows(allowed) for allowed in among]
                fields = restriction if restriction.within_hops is None else None
                asks = [
                    Ask(top_k, order, max_candidates, some, self._exactly(asked.triple(i), clock), fields)
                    for i, some in enumerate(rows)
                ]
                found = self._retrieval.find(asked, asks)
                clock.lap("search")
            attributions = [
                self._attribution(
                    triples[i], scores[i], float(losses[i]), float(own[i]), float(norms[i]), found[i], direction
                )
                for i in range(len(triples))
            ]
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
        wanted: Callable[[], bool] = lambda: True,
    ) -> Aggregation:
        """Return influences on one test triple, or summed over several, by relation, head or tail of training triples.

        By ``triple`` every training triple is a group of its own; those that are named then have their exact
        influences, and are certified. What is not listed here, and what is raised, is as in `query`.

        Parameters
        ----------
        triples
            (3,) or (b, 3) int64: head, relation, tail ids. `restriction.within_hops` counts from each of them alone.
        by
            What the training triples of a group have in common.
        exact
            Compute every training triple's influence; else sums are estimates with bounds on their errors, unless
            several test triples have gradients in dense layers, for which there are none.
        """
        _require_positive("top_k", top_k)
        triples = self._checked(np.atleast_2d(triples))
        sizes = {"relation": len(self.vocabulary.relations), "triple": len(self)}
        sums = GroupSums(sizes.get(by, len(self.vocabulary.entities)))
        with torch.inference_mode():
            asked = partial(self._asked, score=score, damping=damping)
            whole = None
            if restriction.within_hops is None:
                whole = self._together(triples, restriction, direction, asked, wanted)

            def parts() -> Iterator[_Part]:
                if whole is not None:
                    yield whole
                    return
                for triple in triples:
                    yield self._alone(triple[None], restriction, direction, asked)

            if whole is not None and by != "triple":
                for block, influence, slack in self._summands(whole, whole.rows, exact, wanted):
                    sums.add(self._groups(block, by), influence, slack)
                return sums.best(order, top_k)
            influence, slack = torch.zeros(2, len(self), dtype=torch.float64)
            counts = torch.zeros(len(self), dtype=torch.bool)
            for part in parts():
                for block, some, off in self._summands(part, part.rows, exact, wanted):
                    influence[block] += some
                    slack[block] += off
                    counts[block] = True
            rows = counts.nonzero().flatten()
            if by == "triple":
                again = rows[(slack[rows] > 0) & _may_lead(influence[rows], slack[rows], order, top_k)]
                influence[again], slack[again] = 0.0, 0.0
                for part in parts():
                    for block, some, _ in self._summands(part, again[torch.isin(again, part.rows)], True, wanted):
                        influence[block] += some
            for block in rows.split(_BRACKET_BLOCK):
                sums.add(self._groups(block, by), influence[block], slack[block])
        return sums.best(order, top_k)

    def complete(
        self, triples: np.ndarray, *, top_k: int = 10, direction: Direction = "tail", filtered: bool = False
    ) -> list[Completions]:
        """Return the model's best tails (or heads) for test triples (b, 3), whose own tails (or heads) do not matter.

        `filtered` leaves out those that make a training triple. Raises what `query` raises.
        """
        _require_positive("top_k", top_k)
        triples = self._checked(triples)
        column = 2 if direction == "tail" else 0
        with torch.inference_mode(), one_thread():
            scores = self._featurizer.candidate_scores(triples, direction)
            return [
                complete(triple, column, row, self._known(triple, direction), top_k=top_k, filtered=filtered)
                for triple, row in zip(triples, scores, strict=True)
            ]

    def candidate_scores(self, triples: np.ndarray, direction: Direction = "tail") -> np.ndarray:
        """Return the model's scores of all entities in place of the tail (or head) of triples (b, 3): (b, E) float32.

        Raises what `complete` raises.
        """
        with torch.inference_mode():
            return self._featurizer.candidate_scores(self._checked(triples), direction).cpu().numpy()

    def exact_influences(
        self,
        triples: np.ndarray,
        rows: np.ndarray,
        direction: Direction = "tail",
        *,
        score: Score | None = None,
        damping: Damping | None = None,
    ) -> np.ndarray:
        """Return ⟨∇ℓ, ∇ℓ'⟩ of training triples `rows` (m,) and test triples (b, 3), recomputed: (m, b) float32.

        `score` and `damping` are those of `query`.
        """
        with torch.inference_mode():
            terms = self._asked(self._featurizer.test_terms(self._checked(triples), direction), score, damping)
            blocks = torch.as_tensor(rows).split(self._featurizer.block(_SCAN_BLOCK))
            return torch.cat([self._influences(block, terms) for block in blocks]).numpy()

    def bounds(
        self, triple: np.ndarray, rows: np.ndarray, direction: Direction = "tail", *, score: Score | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return an upper, a lower and a tighter upper bound of the influences of training triples (m,), (m,) each.

        They are those that a search takes for granted. Raises `BadRequest` where nothing is searched.
        """
        if self._retrieval is None:
            raise BadRequest("this index was built with projection none: it holds no bounds")
        with torch.inference_mode():
            terms = self._asked(self._featurizer.test_terms(self._checked(triple[None]), direction), score, None)
            upper, low, high = self._retrieval.bounds(terms, torch.as_tensor(rows))
            return upper.numpy(), low.numpy(), high.numpy()

    @property
    def certifies(self) -> bool:
        """Whether every answer is proved to be exact unless `max_candidates` cuts it short."""
        return self._retrieval is None or self._retrieval.certifies

    @property
    def score(self) -> Score:
        """What the index was built to answer with, unless asked otherwise."""
        return PRECONDITIONS[self.manifest.configuration.get("precondition", "none")]

    @property
    def self_influence_loss(self) -> str:
        """Name of the loss that self-influences are of."""
        same = self.training.self_influence["tracin"] is self.training.squared_norm
        return str(self.manifest.configuration["loss"]) if same else "bce"

    @property
    def searches(self) -> bool:
        """Whether there is an index; without one every query is an exact scan."""
        return self._retrieval is not None

    def rows(self) -> dict[str, Stack]:
        """Return the stored arrays with one row for each training triple, on the CPU."""
        return self._files.stacks()

    def stored_blocks(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield everything in ``gradients.h5`` in bounded blocks, with the name of the array that each belongs to."""
        return self._files.blocks()

    def encode_again(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the stored float32 codes of training triples `rows` (m,), computed anew under their names."""
        with torch.inference_mode():
            codes = self._featurizer.codes(self.training.triples[rows], self._codec)
        return {name: codes[name] for name in (*self._codec.checked, *OF_BCE) if name in codes}

    def self_influence_again(self, rows: np.ndarray) -> np.ndarray:
        """Return the preconditioned self-influences of training triples `rows` (m,), computed anew, (m,) float32."""
        with torch.inference_mode():
            apart = self._featurizer.self_influence_terms_apart(self.training.triples[rows])
            found = [inner(terms, self._asked(terms, "preconditioned", None)).diagonal() for terms in apart]
            return torch.stack(found).sum(0).cpu().numpy()

    @cached_property
    def _preconditioner(self) -> Preconditioner:
        if not isinstance(self._retrieval, Cascade):
            raise BadRequest("the preconditioned score needs an index that was built with projection pca")
        return Preconditioner(self._retrieval.codes, self._retrieval.bases, self.training)

    def _asked(self, terms: Terms, score: Score | None, damping: Damping | None) -> Terms:
        """Return what the gradients of training triples are multiplied with."""
        check_damping(damping)
        if (self.score if score is None else score) == "tracin":
            if damping is not None:
                raise BadRequest("damping is of the preconditioned score: ask for that, too")
            return terms
        return self._preconditioner(terms, self.manifest.configuration.get("damping") if damping is None else damping)

    def _alone(
        self, triple: np.ndarray, restriction: Restriction, direction: Direction, asked: Callable[[Terms], Terms]
    ) -> "_Part":
        """Return what to sum up of one test triple (1, 3)."""
        terms = asked(self._featurizer.test_terms(triple, direction))
        (near,) = self._near(triple, restriction)
        return _Part(
            rows=self._rows(self._among(self.training.allowed(restriction), near)),
            exact=lambda rows: self._influences(rows, terms)[:, 0],
            brackets=None if self._retrieval is None else self._retrieval.brackets(terms),
        )

    def _together(
        self,
        triples: np.ndarray,
        restriction: Restriction,
        direction: Direction,
        asked: Callable[[Terms], Terms],
        wanted: Callable[[], bool],
    ) -> "_Part":
        """Return what to sum up of all test triples (b, 3) as one, whatever is near to them."""
        if len(triples) == 1:
            return self._alone(triples, restriction, direction, asked)
        first = self._featurizer.test_terms(triples[:1], direction)
        as_it_is = asked(first) is first  # plain influence; also raises what is wrong before the work begins
        blocks = _blocks(torch.arange(len(triples)), self._featurizer.block(_TEST_BLOCK), wanted)
        total = Total.of(self._featurizer.test_terms(triples[block.numpy()], direction) for block in blocks)
        if not as_it_is:
            total = total.changed_rows(asked, lambda rows: _blocks(rows, _TEST_BLOCK, wanted))

        def exact(rows: Tensor) -> Tensor:
            return total.influences(self._featurizer.training_terms(self.training.triples[rows.numpy()])).cpu()

        searched = self._retrieval if isinstance(self._retrieval, Cascade) and not total.dense else None
        return _Part(
            rows=self._rows(self.training.allowed(restriction)),
            exact=exact,
            brackets=None if searched is None else searched.rows_brackets(total),
        )

    def _summands(
        self, part: "_Part", rows: Tensor, exact: bool, wanted: Callable[[], bool]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield blocks of training triples (m,) with their influences and how far these may be off, (m,) each."""
        brackets = None if exact else part.brackets
        size = self._featurizer.block(_SCAN_BLOCK) if brackets is None else _BRACKET_BLOCK
        for block in _blocks(rows, size, wanted):
            if brackets is None:
                influence = part.exact(block)
                yield block, influence, torch.zeros_like(influence)
            else:
                yield block, *brackets(block)

    def _groups(self, rows: Tensor, by: Group) -> Tensor:
        """Return the group of each training triple (m,), (m,) int64."""
        if by == "triple":
            return rows
        return torch.from_numpy(
            self.training.triples[rows.numpy(), ("head", "relation", "tail").index(by)].astype(np.int64)
        )

    def _checked(self, triples: np.ndarray) -> np.ndarray:
        triples = np.asarray(triples)
        if triples.ndim != 2 or triples.shape[1] != 3 or not np.issubdtype(triples.dtype, np.integer):
            raise BadRequest(f"triples have shape {triples.shape} and type {triples.dtype}, need (b, 3) integers")
        if not len(triples):
            raise BadRequest("there are no triples to explain")
        if wrong := out_of_range(triples, len(self.vocabulary.entities), len(self.vocabulary.relations)):
            raise IdOutOfRange(wrong[1])
        return triples

    def _near(self, triples: np.ndarray, restriction: Restriction) -> list[np.ndarray | None]:
        """Return for each test triple a mask (E,) of the entities that a training triple must touch; None for all."""
        if restriction.within_hops is None:
            return [None] * len(triples)
        _require_positive("within_hops", restriction.within_hops)
        entities = len(self.vocabulary.entities)
        return [self.training.reached(triple, restriction.within_hops - 1, entities) for triple in triples]

    def _among(self, mask: np.ndarray | None, near: np.ndarray | None) -> np.ndarray | None:
        """Return a mask (n,) of the training triples that are in one and touch the other, or None for all."""
        if near is None:
            return mask
        touched = touching(self.training.triples, near)
        return touched if mask is None else touched & mask

    def _rows(self, mask: np.ndarray | None) -> Tensor:
        return torch.arange(len(self)) if mask is None else torch.as_tensor(np.flatnonzero(mask))

    def _known(self, triple: np.ndarray, direction: Direction) -> np.ndarray:
        """Return the entities that make a training triple in place of the tail (or the head)."""
        head, relation, tail = (int(i) for i in triple)
        return self.training.tails_of(head, relation) if direction == "tail" else self.training.heads_of(relation, tail)

    def _influences(self, rows: Tensor, tests: Terms) -> Tensor:
        """Return the exact influences of training triples (m,) on test triples, (m, b), on the CPU."""
        return self._featurizer.influences(self.training.triples[rows.numpy()], tests)

    def _exactly(self, terms: Terms, clock: _Clock) -> Callable[[Tensor], Tensor]:
        """Return what computes the influences of training triples (m,) on one test triple, (m,)."""

        def exact(rows: Tensor) -> Tensor:
            clock.lap("search")
            influence = self._influences(rows, terms)[:, 0]
            clock.lap("rerank")
            return influence

        return exact

    def _scan(
        self,
        terms: Terms,
        top_k: int,
        order: Order,
        mask: np.ndarray | None,
        near: list[np.ndarray | None],
        wanted: Callable[[], bool],
    ) -> list[Found]:
        """Compute the influence of every allowed training triple on all test triples at once."""
        masks = [entities for entities in near if entities is not None]
        rows = self._rows(self._among(mask, np.logical_or.reduce(masks) if masks else None))
        kept = [Found(rows[:0], torch.empty(0), 0.0, 0, 0)] * len(terms)
        for block in _blocks(rows, self._featurizer.block(_SCAN_BLOCK), wanted):
            influences = self._influences(block, terms)  # (m, b)
            triples = self.training.triples[block.numpy()]
            for i, entities in enumerate(near):
                these = slice(None) if entities is None else torch.from_numpy(touching(triples, entities))
                kept[i] = _extended(kept[i], block[these], influences[these, i], order, top_k)
        return kept

    def _attribution(
        self,
        triple: np.ndarray,
        scores: Tensor,
        loss: float,
        self_influence: float,
        squared_norm: float,
        found: Found,
        direction: Direction,
    ) -> Attribution:
        head, relation, tail = (int(i) for i in triple)
        known = self._known(triple, direction)
        target = tail if direction == "tail" else head
        score = float(scores[target])
        better, equal = scores > score, scores == score
        for counted in (better, equal):
            counted[torch.as_tensor(known.astype(np.int64))] = False
        equal[target] = False
        rows = found.rows.numpy()
        norms = np.sqrt(self.training.squared_norm[rows].astype(np.float64) * squared_norm)
        influence = found.influence.numpy()
        return Attribution(
            triple=(head, relation, tail),
            score=score,
            rank=1 + int(better.sum()) + int(equal.sum()) / 2,
            in_training=bool(np.isin(target, known)),
            loss=loss,
            self_influence=self_influence,
            certified=found.certified,
            bound_gap=found.bound_gap,
            candidates=found.candidates,
            exact_terms=found.exact_terms,
            train_index=np.asarray(self.training.train_index[rows]),
            triples=np.asarray(self.training.triples[rows]),
            influence=influence,
            cosine=np.divide(influence, norms, out=np.zeros_like(influence), where=norms > 0),
            notes=self._notes((head, relation, tail), squared_norm),
        )

    def _notes(self, triple: tuple[int, int, int], squared_norm: float) -> list[str]:
        """Return remarks on a test triple, the squared norm of whose gradient is `squared_norm`."""
        head, relation, tail = triple
        absent = [
            f"entity {self.vocabulary.entities[entity]!r}"
            for entity in dict.fromkeys((head, tail))
            if not self.training.has_entity(entity)
        ]
        if not self.training.has_relation(relation):
            absent.append(f"relation {self.vocabulary.relations[relation]!r}")
        notes = [f"{named} occurs in no training triple: none says anything of it" for named in absent]
        if squared_norm < _VANISHED:
            notes.append(
                f"the gradient of the loss {self.manifest.configuration['loss']} vanishes in float32 for this triple: "
                "influences on it are 0 or nearly so, and their order says nothing"
            )
        return notes


def _require_positive(name: str, number: int) -> None:
    if number < 1:
        raise BadRequest(f"{name} is {number}, must be at least 1")


def _may_lead(influence: Tensor, slack: Tensor, order: Order, top_k: int) -> Tensor:
    """Return which influences (m,), known up to a slack each, may be among the best: (m,) bool."""
    middle = value(influence, order)
    return middle + slack >= nth_largest(middle - slack, top_k)


def _blocks(rows: Tensor, size: int, wanted: Callable[[], bool]) -> Iterator[Tensor]:
    """Split rows (m,), for as long as somebody waits for what is made of them. Raises `Abandoned`."""
    for block in rows.split(size) if len(rows) else ():
        if not wanted():
            raise Abandoned(f"a scan of {len(rows)} training triples was given up")
        yield block


def _extended(found: Found, rows: Tensor, influence: Tensor, order: Order, top_k: int) -> Found:
    """Take in the influences of further rows (m,) in a full scan."""
    seen, values = best(torch.cat([found.rows, rows]), torch.cat([found.influence, influence]), order, top_k)
    return Found(seen, values, 0.0, found.candidates + len(rows), found.exact_terms + len(rows))


def open_index(
    root: Path,
    generation: str | None = None,
    *,
    device: str = "auto",
    verify: bool = True,
    milvus: Milvus | None = None,
) -> Attributor:
    """Open a generation of an index root, by default the live one.

    `verify` compares every checksum first: about a second for each gigabyte. `milvus` searches, instead of FAISS; what
    it does not hold yet is sent there first.

    Raises
    ------
    IndexNotFound, GenerationNotFound, CorruptGeneration, SchemaTooNew
        What lies on disk cannot be used.
    SearchUnavailable
        Milvus cannot.
    """
    return read_attributor(IndexRoot(root).open(generation, verify=verify), device=device, milvus=milvus)


def read_attributor(opened: Generation, *, device: str = "auto", milvus: Milvus | None = None) -> Attributor:
    """Return what answers from a generation that is open, as `open_index` does."""
    on = pick_device(device)
    files = Files.open(opened.path)
    codec = read_codec(opened.manifest.configuration, files.arrays, on)
    stacks = files.stacks()
    if missing := [name for name in codec.searched if name not in stacks]:
        raise CorruptGeneration(f"{opened.path}: {layout.GRADIENTS} lacks {', '.join(missing)}")
    training = files.training_set()
    stored = [FaissSearch.read(shard.folder / layout.SEARCH) for shard in files.shards] if codec.searched else []
    _check_counts(opened, training, files, stored)
    retrieval: Retrieval | None = None
    if stored:
        index = _index(stored, on) if milvus is None else _held(milvus, opened.id, stored, training)
        match codec:
            case PrincipalCodec(bases):
                place = _place(stacks, on)
                codes = Codes.of({name: stack.to(place) for name, stack in stacks.items()})
                short = ShortCode(files.postings[COLUMNS]) if COLUMNS in files.postings else None
                retrieval = Cascade(bases, codes, index, short, training)
            case RandomCodec(projection):
                retrieval = Pool(projection, stacks["projected"], index, training.squared_norm)
    return Attributor(
        generation=opened,
        vocabulary=Vocabulary.read(opened.path / layout.VOCABULARY),
        featurizer=featurizer_for(
            read_model(opened.path / layout.MODEL), opened.manifest.configuration, on, training.known
        ),
        codec=codec,
        retrieval=retrieval,
        files=files,
        training=training,
    )


def _index(stored: Sequence[FaissSearch], device: torch.device) -> SearchIndex:
    """Return the index over all shards, on a device."""
    indexes: list[SearchIndex] = [index if device.type == "cpu" else TorchSearch.of(index, device) for index in stored]
    return indexes[0] if len(indexes) == 1 else ShardedSearch(indexes)


def _held(milvus: Milvus, generation: str, stored: Sequence[FaissSearch], training: TrainingSet) -> SearchIndex:
    """Return the same index in Milvus."""
    vectors = (block for index in stored for block in index.vectors())
    return milvus.hold(generation, vectors, training.triples, stored[0].dim)


def _check_counts(opened: Generation, training: TrainingSet, files: Files, stored: Sequence[FaissSearch]) -> None:
    """Raise `CorruptGeneration` where manifest, arrays and search indexes are not of the same training triples."""
    count, rows = opened.manifest.counts["triples"], len(training.triples)
    indexed = sum(index.ntotal for index in stored) if stored else count
    told = {len(values) for values in training.self_influence.values()}
    if not count == rows == indexed == sum(map(len, files.shards)) or told != {count}:
        raise CorruptGeneration(
            f"{opened.path}: the manifest counts {count} triples, {layout.GRADIENTS} holds {rows}, "
            f"{layout.SEARCH} {indexed}, self-influences are of {', '.join(map(str, sorted(told)))}"
        )


def _place(stacks: Mapping[str, Stack], device: torch.device) -> torch.device:
    """Return where codes should be: with the model on a GPU that has room for them twice, else mapped on the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(device)
    return device if 2 * sum(stack.nbytes for stack in stacks.values()) < free else torch.device("cpu")
