"""Checks of an index against its model, for the gate before a generation goes live and for ``kgtrace verify``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kgtrace_indexer.answers import Attribution
from kgtrace_indexer.building.fit import fit
from kgtrace_indexer.building.step import Step, step
from kgtrace_indexer.index.bases import FLOOR
from kgtrace_indexer.models.featurizer import SLOPE, SQUARED_NORM
from kgtrace_indexer.names import Score
from kgtrace_indexer.query.attributor import Attributor

_ROWS = 64
"""Training triples whose stored row is compared with a fresh one."""
_QUERIES = 4
"""Training triples whose certified answer is compared with exact influences."""
_PROBES = 1024
"""Random training triples whose exact influences on the `_QUERIES` are computed."""
_BLOCK = 256
"""Probes that are computed together."""
_TOP_K = 10
_TOLERANCE = 1e-3
"""Relative: float32 in another batch, or on another device."""

_NOTHING = 1e8 * FLOOR
"""‖g‖² of triples that have hardly any gradient: their stored self-influence is rounding."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer."""

    name: str
    ok: bool
    detail: str
    warning: bool = False
    """Whether an operator should look at it, though it is no reason to withhold the generation."""


def verify(attributor: Attributor, *, seed: int = 0) -> list[Check]:
    """Check counts, finite values, stored rows against fresh ones, answers against exact influences, and that training
    triples find themselves; the latter by every score that there is a search for.

    An answer that is not certified may overlook training triples within its gap, and no others; without an index,
    answers are the exact influences. Checksums are compared when a generation is opened. The sample is drawn with
    `seed`.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(attributor), min(_ROWS, len(attributor)), replace=False))
    queries = rng.choice(len(attributor), min(_QUERIES, len(attributor)), replace=False)
    probes = np.sort(rng.choice(len(attributor), min(_PROBES, len(attributor)), replace=False))
    checks = [_counts(attributor), _finite(attributor), _stored_rows(attributor, rows)]
    for score in attributor.searched_scores:
        of_score = _searched(attributor, queries, probes, score)
        checks += [check if score == "tracin" else replace(check, name=f"{score} {check.name}") for check in of_score]
    if "preconditioned" in attributor.training.self_influence:
        checks.append(_self_influences(attributor, queries))
    checks.append(_ranks(attributor, seed))
    if (taken := step(attributor, seed=seed)) is not None:
        checks.append(_step(taken))
    return checks


def _counts(attributor: Attributor) -> Check:
    lengths = attributor.files.lengths()
    wrong = {name: n for name, n in lengths.items() if n != len(attributor)}
    return Check(
        "counts", not wrong, f"{len(attributor)} rows in {len(lengths)} arrays" + (f", but {wrong}" * bool(wrong))
    )


def _finite(attributor: Attributor) -> Check:
    wrong = {
        name for name, block in attributor.files.blocks() if block.dtype.kind == "f" and not np.isfinite(block).all()
    }
    self_influences = attributor.training.self_influence
    wrong |= {f"self-influences, {score}" for score, values in self_influences.items() if not np.isfinite(values).all()}
    return Check("finite", not wrong, f"NaN or infinity in {sorted(wrong)}" if wrong else "no NaN or infinity")


def _stored_rows(attributor: Attributor, rows: np.ndarray) -> Check:
    worst, norms = 0.0, attributor.training.squared_norm
    fresh = attributor.encode_again(rows)
    stored = attributor.files.take(fresh.keys(), rows)
    for name, again in fresh.items():
        of_rows = name == SQUARED_NORM or name.endswith(".grad")
        scale = np.sqrt(norms["preconditioned" if of_rows else "tracin"][rows])  # ‖g‖, the unit of φ and ρ
        if name in ("self_influence", SQUARED_NORM):
            scale = scale**2
        elif name == SLOPE:
            scale = np.ones_like(scale)
        error = np.abs(again - stored[name]).reshape(len(rows), -1).max(1, initial=0)
        worst = max(worst, float((error / np.maximum(scale, np.finfo(np.float32).tiny)).max()))
    return Check(
        "stored rows",
        worst <= _TOLERANCE,
        f"{len(rows)} training triples reproduce theirs within {worst:.1e} (at most {_TOLERANCE:.0e})",
    )


def _self_influences(attributor: Attributor, rows: np.ndarray) -> Check:
    """Stored preconditioned self-influences match recomputed ones within float32's precision."""
    stored = attributor.training.self_influence
    error = np.abs(attributor.self_influence_again(rows) - stored["preconditioned"][rows])
    worst = float((error / np.maximum(stored["tracin"][rows], _NOTHING)).max())
    return Check(
        "preconditioned self-influences",
        worst < _TOLERANCE,
        f"{len(rows)} compared, largest difference {worst:.1e} ‖g‖²",
    )


def _searched(attributor: Attributor, queries: np.ndarray, probes: np.ndarray, score: Score) -> Iterator[Check]:
    """Compare the answers for training triples `queries`, and bounds, with exact influences of `probes`."""
    triples = np.asarray(attributor.training.triples[queries], np.int64)
    blocks = np.split(probes, range(_BLOCK, len(probes), _BLOCK))
    exact = np.concatenate([attributor.exact_influences(triples, block, score=score) for block in blocks])
    attributions = attributor.query(triples, top_k=_TOP_K, score=score).attributions
    overlooked, violated = 0, 0
    for triple, influences, attribution in zip(triples, exact.T, attributions, strict=True):
        named = np.isin(attributor.training.train_index[probes], attribution.train_index)
        squared = attributor.training.squared_norm[score][probes].astype(np.float64)
        norms = np.sqrt(attribution.self_influence * squared)
        admitted = attribution.influence[-1] + attribution.bound_gap
        overlooked += int((influences[~named] > admitted + _TOLERANCE * norms[~named]).sum())
        upper, low, high = attributor.bounds(triple, probes, score=score)
        violated += int(((upper < influences) | (low > influences) | (high < influences)).sum())
    pairs = f"{len(probes)} × {len(queries)} pairs"
    certified = sum(attribution.certified for attribution in attributions)
    yield Check("bounds", not violated, f"violated by {violated} of {pairs}")
    yield Check(
        "answers",
        not overlooked and (certified == len(queries) or not attributor.certifies),
        f"{certified} of {len(queries)} certified; {overlooked} of {pairs} overlooked",
    )
    own = attributor.exact_influences(triples, queries, score=score).diagonal()
    squared = attributor.training.squared_norm[score][queries].astype(np.float64)
    yield _self_retrieval(attributor, queries, own, squared, attributions)


def _self_retrieval(
    attributor: Attributor,
    rows: np.ndarray,
    own: np.ndarray,
    squared_norm: np.ndarray,
    attributions: Sequence[Attribution],
) -> Check:
    """A training triple is known as one, and named for itself unless as many others influence it more.

    `own` (m,) are the influences of training triples `rows` (m,) on themselves.
    """
    named, missed = 0, 0
    for row, influence, squared, attribution in zip(rows, own, squared_norm, attributions, strict=True):
        itself = attributor.training.train_index[row] in attribution.train_index
        margin = _TOLERANCE * np.sqrt(attribution.self_influence * squared)
        outranked = (
            len(attribution.influence) == _TOP_K
            and attribution.influence[-1] + attribution.bound_gap >= influence - margin
        )
        named += itself
        missed += not attribution.in_training or not (itself or outranked)
    return Check(
        "self-retrieval", not missed, f"{named} of {len(rows)} training triples name themselves, {missed} missed"
    )


def _ranks(attributor: Attributor, seed: int) -> Check:
    """Training triples rank better than chance; a model that was not trained is legal, so this never fails."""
    model_fit = fit(attributor, seed=seed)
    measured = (
        f"tails of {model_fit.triples} outrank {model_fit.outranked:.1%} of the entities that are no known tails, "
        f"{model_fit.deviations:.1f} standard deviations above swapped tails"
    )
    if not model_fit.chance:
        return Check("ranks of training triples", True, measured)
    return Check(
        "ranks of training triples",
        True,
        f"hardly better than chance: {measured}; if the model is trained, its id maps or training triples are not "
        "those it was trained with",
        warning=True,
    )


def _step(taken: Step) -> Check:
    """Scores change as their gradients foretell; a model that bends more is legal, so this never fails."""
    measured = (
        f"scores move by {taken.named:.2g} along named training triples, where their gradients foretell "
        f"{taken.foretold:.2g}, and by {taken.random:.2g} along random ones"
    )
    if not taken.wrong:
        return Check("gradient step", True, measured)
    reason = "the gradients of this model are not the slopes of its scores"
    return Check("gradient step", True, f"{reason}: {measured}", warning=True)
