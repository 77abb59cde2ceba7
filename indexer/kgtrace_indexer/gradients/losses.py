"""Losses and their slopes dℓ/ds: of a triple's own score, of the scores of all tails, or of those of negatives.

======================================  =========================  ================================================
loss                                    scores it needs            how a model takes part
======================================  =========================  ================================================
bce, removal                            the triple's own           `ScoringModel.terms`
margin, nssa, softplus                  and of seeded negatives    the same: `Contrast` couples its loss terms
bce-1vsall, bce-kvsall, ce-1vsall       of all entities as tail    `OneToAllModel.one_to_all_terms`
======================================  =========================  ================================================

Formulas, signs and means are those of PyKEEN's losses in its LCWA and sLCWA training loops, for a batch of one triple.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kgtrace_indexer.gradients.negatives import corrupted
from kgtrace_indexer.gradients.terms import Slopes
from kgtrace_indexer.names import ContrastName, OneToAllName
from kgtrace_store.errors import BadRequest, UnsupportedModel

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps the scores of loss terms (m,) to their losses (m,) and slopes dℓ/ds (m,). All loss terms of a triple must be
passed together, for a `Contrast` compares them."""


def bce(score: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ(s) = softplus(−s), binary cross-entropy of the logit s against 1, and ℓ'(s) = −σ(−s)."""
    return F.softplus(-score), -(-score).sigmoid()


def removal(score: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ(s) = −s and ℓ'(s) = −1: how much the loss of 1-N training rises when this label is removed.

    Binary cross-entropy of s against 1 is softplus(−s), against 0 it is softplus(s); their difference is −s.
    """
    return -score, torch.full_like(score, -1.0)


def score_itself(score: Tensor) -> tuple[Tensor, Tensor]:
    """Return s and 1: gradients under this "loss" are those of the score."""
    return score, torch.ones_like(score)


def bce_over_removal(loss: Tensor) -> Tensor:
    """Return σ(−s) for losses −s (m,) under `removal`: the factor that turns their gradients into those under `bce`."""
    return loss.sigmoid()


@dataclass(frozen=True, slots=True)
class KnownTails:
    """The tails of every (source, relation row) in the training triples, inverse directions included."""

    relations: int
    """One more than the largest relation row of a training triple."""
    keys: Tensor
    """(n,) int64: source · relations + relation row, ascending."""
    tails: Tensor
    """(n,) int64: a known tail of each key."""

    @classmethod
    def of(cls, triples: np.ndarray, inverse_triples: bool, device: torch.device) -> "KnownTails":
        """Collect the tails of training triples (n, 3) with original relation ids."""
        head, relation, tail = triples.astype(np.int64).T
        source, row = head, (2 if inverse_triples else 1) * relation
        if inverse_triples:
            source, row, tail = (np.concatenate(x) for x in ((source, tail), (row, row + 1), (tail, head)))
        relations = int(row.max(initial=-1)) + 1
        order = np.lexsort((row, source))
        keys = source[order] * relations + row[order]
        return cls(relations, torch.as_tensor(keys, device=device), torch.as_tensor(tail[order], device=device))

    def labels(self, source: Tensor, relation: Tensor, entities: int) -> Tensor:
        """Return True for the known tails of each (source, relation row), (groups, E) bool."""
        keys = torch.where(relation < self.relations, source * self.relations + relation, -1)
        start, end = torch.searchsorted(self.keys, keys), torch.searchsorted(self.keys, keys, right=True)
        counts = end - start
        group = torch.repeat_interleave(counts)  # (known,)
        place = torch.arange(len(group), device=keys.device) - (counts.cumsum(0) - counts)[group] + start[group]
        labels = torch.zeros(len(keys), entities, dtype=torch.bool, device=keys.device)
        labels[group, self.tails[place]] = True
        return labels


@dataclass(frozen=True, slots=True)
class OneToAll:
    """A loss of the scores of all entities as tail (1-N, or LCWA, training).

    With labels y over the E entities, after smoothing by ε, it is (eq. (9) of ``docs/how-it-works.md``)

    * ``bce-1vsall``, ``bce-kvsall``: the mean over e of softplus(s_e) − y_e s_e; ε makes 1 − ε of 1, ε / (E − 1) of 0;
    * ``ce-1vsall``: log Σ exp(s_e) − Σ y_e s_e; ε makes (1 − ε) y + ε / E of y.

    A triple's own tail is always labelled; with ``bce-kvsall`` all known tails of its (h, r) are, so all training
    triples of one (h, r) have the same gradient.
    """

    cross_entropy: bool
    """Whether the scores make one softmax or E sigmoids."""
    smoothing: float = 0.0
    """ε."""
    known: KnownTails | None = None
    """Tails labelled besides a triple's own."""

    def __call__(
        self, scores: Tensor, source: Tensor, relation: Tensor, group: Tensor, tail: Tensor
    ) -> tuple[Tensor, Slopes]:
        """Return the losses (m,) and the slopes of all scores, eq. (8) and (10).

        Parameters
        ----------
        scores
            (groups, E): of all tails of each (source, relation row).
        source, relation
            (groups,) int64 each.
        group, tail
            (m,) int64 each: the row of `scores` of each loss term, and its own tail.
        """
        low, high, weight = self._labels(scores.shape[1])  # y₀, y₁, w
        score = scores[group, tail]
        if self.cross_entropy:
            base = scores.softmax(1)
            peak = base.argmax(1)
            others = base.scatter(1, peak[:, None], 0.0).sum(1)  # 1 − p of the peak, which 1 − p would round off
            own = torch.where(tail == peak[group], (1 - high) - others[group], base[group, tail] - high)
            free = scores.logsumexp(1)
        else:
            base = scores.sigmoid()
            own = (1 - high) - (-score).sigmoid()
            free = F.softplus(scores).sum(1)
        shared, extra, base = free - low * scores.sum(1), score * (high - low), base - low
        if self.known is not None:
            known = self.known.labels(source, relation, scores.shape[1])
            shared = shared - (high - low) * torch.where(known, scores, 0.0).sum(1)
            base = torch.where(known, (1 - high) - (-scores).sigmoid(), base)
            labelled = known[group, tail]
            extra, own = torch.where(labelled, 0.0, extra), torch.where(labelled, base[group, tail], own)
        return weight * (shared[group] - extra), _slopes(weight * base, group, tail, weight * own)

    def _labels(self, entities: int) -> tuple[float, float, float]:
        """Return the labels of wrong and of right tails, and the weight of an entity's loss."""
        if self.cross_entropy:
            low = self.smoothing / entities
            return low, 1 - self.smoothing + low, 1.0
        return self.smoothing / max(1, entities - 1), 1 - self.smoothing, 1 / entities


def _slopes(base: Tensor, group: Tensor, tail: Tensor, own: Tensor) -> Slopes:
    """Return slopes that are `base` (groups, E), but `own` (m,) at the loss term's own tail (m,)."""
    peak = base.abs().argmax(1)
    height = base.gather(1, peak[:, None])[:, 0]
    base = base.scatter(1, peak[:, None], 0.0)  # the own slope of the peak's tail may cancel it: see `Slopes`
    left = torch.where(tail == peak[group], 0.0, height[group])
    index, others = torch.stack([tail, peak[group]], 1), torch.stack([own - base[group, tail], left], 1)
    return Slopes(base, group, index, others)


@dataclass(frozen=True, slots=True)
class Contrast:
    """A loss of a triple's score and those of its K negatives (sLCWA training); a `Loss` of groups of K + 1 scores."""

    compare: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Maps (n, K + 1) scores, the triple's own first, to losses (n,) and slopes (n, K + 1)."""
    negatives: int
    """K."""
    seed: int
    """Fixes the negatives, see `kgtrace_indexer.gradients.negatives`."""
    entities: int
    """E: negatives are drawn from all entities."""

    def with_negatives(self, instances: np.ndarray) -> np.ndarray:
        """Return instances (m, 3), each followed by its negatives, (m · (K + 1), 3)."""
        return corrupted(instances, self.negatives, self.entities, self.seed).reshape(-1, 3)

    def __call__(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return each group's loss at its first score, 0 at the others, and the slopes of all, (m,) each."""
        loss, slope = self.compare(score.view(-1, self.negatives + 1))
        return F.pad(loss[:, None], (0, self.negatives)).flatten(), slope.flatten()


def margin_ranking(scores: Tensor, *, margin: float) -> tuple[Tensor, Tensor]:
    """Return the mean over k of max(0, s_k − s + margin), PyKEEN's `MarginRankingLoss`, and its slopes."""
    over = scores[:, 1:] - scores[:, :1] + margin  # (n, K)
    slope = (over > 0) / over.new_tensor(over.shape[1])
    return over.relu().mean(1), torch.cat([-slope.sum(1, keepdim=True), slope], 1)


def self_adversarial(scores: Tensor, *, margin: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ½ [softplus(−margin − s) + Σ_k w_k softplus(margin + s_k)], PyKEEN's `NSSALoss`, and its slopes.

    The weights w = softmax(temperature · s_k) are constants to it (Sun et al., 2019, https://arxiv.org/abs/1902.10197).
    """
    own, others = margin + scores[:, :1], margin + scores[:, 1:]
    weight = (temperature * scores[:, 1:]).softmax(1)
    loss = F.softplus(-own)[:, 0] + (weight * F.softplus(others)).sum(1)
    return loss / 2, torch.cat([-(-own).sigmoid(), weight * others.sigmoid()], 1) / 2


def pointwise_softplus(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of softplus(−s) and all softplus(s_k), PyKEEN's `SoftplusLoss`, and its slopes."""
    sign = torch.ones_like(scores)
    sign[:, 0] = -1
    return F.softplus(sign * scores).mean(1), sign * (sign * scores).sigmoid() / scores.shape[1]


OWN_SCORE: dict[str, Loss] = {"bce": bce, "removal": removal}
"""Losses of a triple's own score."""
ONE_TO_ALL: tuple[str, ...] = get_args(OneToAllName)
"""Losses of all tails' scores."""
CONTRAST: tuple[str, ...] = get_args(ContrastName)
"""Losses that compare with negatives."""
NAMES = (*OWN_SCORE, *ONE_TO_ALL, *CONTRAST)
"""Values of ``--loss``."""


def check_loss(name: str, label_smoothing: float, negatives: int | None) -> None:
    """Raise `BadRequest` for an unknown loss, or for options that it does not have."""
    if name not in NAMES:
        raise BadRequest(f"unknown loss {name!r}; known: {', '.join(NAMES)}")
    if not 0 <= label_smoothing < 1:
        raise BadRequest(f"label smoothing is {label_smoothing}, must be at least 0 and below 1")
    if label_smoothing and name not in ONE_TO_ALL:
        raise BadRequest(f"label smoothing is for losses over all tails, {', '.join(ONE_TO_ALL)}; loss {name} has none")
    if negatives is not None and name not in CONTRAST:
        raise BadRequest(f"negatives are for losses that draw them, {', '.join(CONTRAST)}; loss {name} has none")
    if negatives is not None and negatives < 1:
        raise BadRequest(f"negatives is {negatives}, must be at least 1")


def resolve_negatives(name: str, negatives: int | None) -> int | None:
    """Return K of a loss that draws negatives, by default 1 as PyKEEN's sampler; None for other losses."""
    return (1 if negatives is None else negatives) if name in CONTRAST else None


def loss_by_name(
    name: str,
    *,
    label_smoothing: float = 0.0,
    negatives: int | None = None,
    seed: int = 0,
    entities: int,
    trained_with: Mapping[str, Any],
    known: Callable[[], KnownTails],
) -> Loss | OneToAll:
    """Return a loss.

    Parameters
    ----------
    entities
        Their number: negatives are drawn from all of them.
    trained_with
        The model's own loss, from `ModelFile.loss`. If it is of the same class, it gives the margin and temperature;
        PyKEEN's defaults are taken otherwise.
    known
        Collects the known tails; called if the loss needs them.

    Raises `BadRequest` as `check_loss` does, and `UnsupportedModel` for a margin or temperature that is not a number.
    """
    check_loss(name, label_smoothing, negatives)
    if name in OWN_SCORE:
        return OWN_SCORE[name]
    if name in ONE_TO_ALL:
        return OneToAll(name == "ce-1vsall", label_smoothing, known() if name == "bce-kvsall" else None)
    if name == "margin":
        margin = _scalar(trained_with, "MarginRankingLoss", "margin", 1.0)
        compare: Callable[[Tensor], tuple[Tensor, Tensor]] = partial(margin_ranking, margin=margin)
    elif name == "nssa":
        gamma = _scalar(trained_with, "NSSALoss", "margin", 9.0)
        alpha = _scalar(trained_with, "NSSALoss", "inverse_softmax_temperature", 1.0)
        compare = partial(self_adversarial, margin=gamma, temperature=alpha)
    else:
        compare = pointwise_softplus
    return Contrast(compare, resolve_negatives(name, negatives) or 1, seed, entities)


def _scalar(trained: Mapping[str, Any], kind: str, name: str, default: float) -> float:
    """Return a number of the loss that a model was trained with, if it is of that class."""
    value = trained.get(name, default) if trained.get("class") == kind else default
    if not isinstance(value, int | float):
        raise UnsupportedModel(f"the model's {kind} has {name} {value!r}, which is no number")
    return float(value)
