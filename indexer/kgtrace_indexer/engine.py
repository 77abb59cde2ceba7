"""Which training triples influenced a prediction: featurize, search, certify."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Answer, Attribution, Direction, Order, Restriction, Seconds
from kgtrace_indexer.bounds import Codes, encode_query
from kgtrace_indexer.certify import CertifiedSearch, Found, best
from kgtrace_indexer.featurizer import Featurizer, featurizer_for
from kgtrace_indexer.model_file import read_model
from kgtrace_indexer.models import pick_device
from kgtrace_indexer.projection import Bases, index_code
from kgtrace_indexer.terms import Terms, inner, squared_norms
from kgtrace_indexer.training_set import TrainingSet
from kgtrace_store import layout
from kgtrace_store.arrays import open_arrays
from kgtrace_store.errors import Abandoned, BadRequest, CorruptGeneration, IdOutOfRange
from kgtrace_store.generation import Generation
from kgtrace_store.generations import IndexRoot
from kgtrace_store.manifest import Manifest
from kgtrace_store.search import FaissSearch, SearchIndex
from kgtrace_store.vocabulary import Vocabulary

_SCAN_BLOCK = 2048
"""Training triples featurized at a time in a full scan."""


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds = {"gradient": 0.0, "search": 0.0, "rerank": 0.0}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


class Attributor:
    """Answers which training triples influenced a prediction. A call uses all of torch's threads."""

    def __init__(
        self,
        generation: Generation,
        vocabulary: Vocabulary,
        featurizer: Featurizer,
        bases: Bases,
        codes: Codes,
        index: SearchIndex,
        training: TrainingSet,
    ) -> None:
        self._generation = generation
        self.vocabulary = vocabulary
        self._featurizer = featurizer
        self._bases = bases
        self._codes = codes
        self._index = index
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
        wanted
            Asked between the blocks of an exact scan, which may take minutes: whether anybody still waits for it.

        Raises
        ------
        Abandoned
            Nobody does.
        IdOutOfRange
            An id beyond the model's tables.
        BadRequest
            `top_k` or `max_candidates` out of range, or arrays of another shape.
        MissingInverseRelations
            Direction ``head`` on a model without inverse relations.
        """
        triples = self._checked(triples)
        if top_k < 1:
            raise BadRequest(f"top_k is {top_k}, must be at least 1")
        if max_candidates is not None and max_candidates < 0:
            raise BadRequest(f"max_candidates is {max_candidates}, must be at least 0")
        with torch.inference_mode():
            clock = _Clock()
            terms = self._featurizer.test_terms(triples, direction)
            scores = self._featurizer.candidate_scores(triples, direction)
            norms = squared_norms(terms).total
            clock.lap("gradient")
            mask = self.training.allowed(restriction)
            if exact:
                found = self._scan(terms, top_k, order, mask, wanted)
                clock.lap("rerank")
            else:
                found = [
                    self._search(terms.triple(i), top_k, order, max_candidates, mask, clock)
                    for i in range(len(triples))
                ]
            attributions = [
                self._attribution(triples[i], scores[i], float(norms[i]), found[i], direction)
                for i in range(len(triples))
            ]
            clock.lap("gradient")
        return Answer(attributions, Seconds(**clock.seconds))

    def exact_influences(self, triples: np.ndarray, rows: np.ndarray, direction: Direction = "tail") -> np.ndarray:
        """Return ⟨∇ℓ, ∇ℓ'⟩ of training triples `rows` (m,) and test triples (b, 3), recomputed: (m, b) float32."""
        with torch.inference_mode():
            terms = self._featurizer.test_terms(self._checked(triples), direction)
            return inner(self._training_terms(torch.as_tensor(rows)), terms).cpu().numpy()

    def bounds(
        self, triple: np.ndarray, rows: np.ndarray, direction: Direction = "tail"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the index's upper bound, and the factor bound's two, for training triples (m,): (m,) each."""
        with torch.inference_mode():
            code = encode_query(self._featurizer.test_terms(self._checked(triple[None]), direction), self._bases)
            at = torch.as_tensor(rows)
            estimate, slack = self._codes.bracket(code, at)
            return (
                self._codes.index_upper(code, 1, at).numpy(),
                (estimate - slack).numpy(),
                (estimate + slack).numpy(),
            )

    def rows(self) -> dict[str, np.ndarray]:
        """Return the stored arrays with one row for each training triple."""
        return {name: tensor.numpy() for name, tensor in self._codes.arrays.items()}

    def encode_again(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the index codes of training triples `rows` (m,), computed anew under their stored names."""
        with torch.inference_mode():
            return index_code(self._training_terms(torch.as_tensor(rows)), self._bases).arrays()

    def _checked(self, triples: np.ndarray) -> np.ndarray:
        triples = np.asarray(triples)
        if triples.ndim != 2 or triples.shape[1] != 3 or not np.issubdtype(triples.dtype, np.integer):
            raise BadRequest(f"triples have shape {triples.shape} and type {triples.dtype}, need (b, 3) integers")
        entities, relations = len(self.vocabulary.entities), len(self.vocabulary.relations)
        limits = (entities, relations, entities)
        for column, (name, limit) in enumerate(zip(("head", "relation", "tail"), limits, strict=True)):
            wrong = triples[(triples[:, column] < 0) | (triples[:, column] >= limit), column]
            if len(wrong):
                raise IdOutOfRange(f"{name} id {wrong[0]} is out of range: the model has {limit}")
        return triples

    def _training_terms(self, rows: Tensor) -> Terms:
        return self._featurizer.training_terms(self.training.triples[rows.numpy()])

    def _search(
        self,
        terms: Terms,
        top_k: int,
        order: Order,
        max_candidates: int | None,
        mask: np.ndarray | None,
        clock: _Clock,
    ) -> Found:
        """Search the best of one test triple through the index, or among the allowed triples."""

        def exact(rows: Tensor) -> Tensor:
            clock.lap("search")
            influence = inner(self._training_terms(rows), terms)[:, 0].cpu()
            clock.lap("rerank")
            return influence

        search = CertifiedSearch(
            encode_query(terms, self._bases),
            self._codes,
            exact,
            top_k=top_k,
            order=order,
            max_candidates=max_candidates,
        )
        if mask is None:
            found = search.everywhere(self._index, self.training)
        else:
            found = search.among(torch.as_tensor(np.flatnonzero(mask)))
        clock.lap("search")
        return found

    def _scan(
        self, terms: Terms, top_k: int, order: Order, mask: np.ndarray | None, wanted: Callable[[], bool]
    ) -> list[Found]:
        """Compute the influence of every allowed training triple on all test triples at once."""
        rows = torch.arange(len(self)) if mask is None else torch.as_tensor(np.flatnonzero(mask))
        kept = [(rows[:0], torch.empty(0))] * len(terms)
        for block in rows.split(_SCAN_BLOCK) if len(rows) else ():
            if not wanted():
                raise Abandoned(f"an exact scan of {len(rows)} training triples was given up")
            influences = inner(self._training_terms(block), terms).cpu()  # (m, b)
            kept = [
                best(torch.cat([seen, block]), torch.cat([values, influence]), order, top_k)
                for (seen, values), influence in zip(kept, influences.T, strict=True)
            ]
        return [Found(seen, values, 0.0, len(rows), len(rows)) for seen, values in kept]

    def _attribution(
        self,
        triple: np.ndarray,
        scores: Tensor,
        squared_norm: float,
        found: Found,
        direction: Direction,
    ) -> Attribution:
        head, relation, tail = (int(i) for i in triple)
        if direction == "tail":
            known, target = self.training.tails_of(head, relation), tail
        else:
            known, target = self.training.heads_of(relation, tail), head
        score = float(scores[target])
        loss, _ = self._featurizer.loss(scores[target])
        better = scores > score
        better[torch.as_tensor(known.astype(np.int64))] = False
        rows = found.rows.numpy()
        norms = np.sqrt(self.training.self_influence[rows] * squared_norm)
        influence = found.influence.numpy()
        return Attribution(
            triple=(head, relation, tail),
            score=score,
            rank=1 + int(better.sum()),
            in_training=bool(np.isin(target, known)),
            loss=float(loss),
            self_influence=squared_norm,
            certified=found.bound_gap == 0.0,
            bound_gap=found.bound_gap,
            candidates=found.candidates,
            exact_terms=found.exact_terms,
            train_index=np.asarray(self.training.train_index[rows]),
            triples=np.asarray(self.training.triples[rows]),
            influence=influence,
            cosine=np.divide(influence, norms, out=np.zeros_like(influence), where=norms > 0),
        )


def open_attributor(
    root: Path, generation: str | None = None, *, device: str = "auto", verify: bool = True
) -> Attributor:
    """Open a generation of an index root, by default the live one.

    `verify` compares every checksum first: about a second for each gigabyte.

    Raises
    ------
    IndexNotFound, GenerationNotFound, CorruptGeneration, SchemaTooNew
        What lies on disk cannot be used.
    """
    return read_attributor(IndexRoot(root).open(generation, verify=verify), device=device)


def read_attributor(opened: Generation, *, device: str = "auto") -> Attributor:
    """Return what answers from a generation that is open. Raises `CorruptGeneration`."""
    on = pick_device(device)
    arrays = open_arrays(opened.path / layout.GRADIENTS)
    postings = open_arrays(opened.path / layout.POSTINGS)
    index = FaissSearch.read(opened.path / layout.SEARCH)
    training = TrainingSet.of(arrays, postings)
    count = opened.manifest.counts["triples"]
    if not count == len(training.triples) == index.ntotal:
        raise CorruptGeneration(
            f"{opened.path}: the manifest counts {count} triples, {layout.GRADIENTS} holds {len(training.triples)}, "
            f"{layout.SEARCH} {index.ntotal}"
        )
    return Attributor(
        generation=opened,
        vocabulary=Vocabulary.read(opened.path / layout.VOCABULARY),
        featurizer=featurizer_for(read_model(opened.path / layout.MODEL), opened.manifest.configuration, on),
        bases=Bases.from_arrays(arrays, on),
        codes=Codes.of(arrays),
        index=index,
        training=training,
    )
