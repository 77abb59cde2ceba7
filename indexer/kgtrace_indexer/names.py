"""Names that the indexer, the service and the command line share: literals, defaults and presets. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Order = Literal["proponents", "opponents", "absolute"]
"""Largest influence first, most negative first, or largest magnitude first."""

Score = Literal["tracin", "preconditioned"]
"""Inner products of gradients, or of embedding rows with P between; see `kgtrace_indexer.index.preconditioner`."""

PRECONDITIONS: Mapping[str, Score] = {"none": "tracin", "fisher": "preconditioned"}
"""The score that an index answers with by default, by the ``precondition`` of its configuration."""

Outcome = Literal["logit", "probability"]
"""What of a prediction is explained by the preconditioned score: s(h, r, t), or the logarithm of the probability that a
softmax over all tails gives t; see `kgtrace_indexer.models.log_probability`."""

Damping = float | Literal["auto"]
"""σ² of the preconditioned score in units of `kgtrace_indexer.index.rows.RowLists.mean_squares`; ``auto`` is 3."""

ReasonName = Literal[
    "itself",
    "inverse",
    "same-pair",
    "path",
    "same-head-relation",
    "same-relation-tail",
    "shares-head",
    "shares-tail",
    "same-relation",
    "none",
]
"""How a training triple is related to the prediction; `kgtrace_indexer.query.reasons` says which goes first."""

Ranking = Literal["descending", "ascending"]
"""Largest self-influence first, or smallest."""

Group = Literal["relation", "head", "tail", "triple"]
"""The property that the training triples of a group share; with ``triple`` each is a group of its own."""

Direction = Literal["tail", "head"]
"""The side of the test triple that is explained: (h, r) → t, or (t, r⁻¹) → h if the model has inverse relations.
Without inverse relations both have the score s(h, r, t), and only the entities that it is ranked among differ."""

Directions = Literal["forward", "both"]
"""The loss terms of a training triple: (h, r) → t alone, or (t, r⁻¹) → h as well."""

SetMode = Literal["necessary", "sufficient"]
"""The smallest set without which a prediction falls, or which makes other entities have it."""

SetCandidates = Literal["head", "tail", "both"]
"""The entity of a test triple that the training triples of a set must have: its head, its tail, or either."""

Stratum = Literal["relation", "head", "tail"]
"""The field that all triples of one stratum share."""

Kind = Literal["gaussian", "sparse"]
"""Entries N(0, 1), or √3 · {−1, 0, +1} with probabilities 1/6, 2/3, 1/6 (Achlioptas, 2003)."""

Projection = Literal["pca", "gaussian", "sparse", "none"]
"""How an index makes gradients short: principal coordinates, random projections, or not at all, for a full scan."""

OneToAllName = Literal["bce-1vsall", "bce-kvsall", "ce-1vsall"]
"""Losses over the scores of all entities."""

ContrastName = Literal["margin", "nssa", "softplus"]
"""Losses that compare a triple with sampled negatives."""

LossName = Literal["bce", "removal"] | OneToAllName | ContrastName


@dataclass(frozen=True, slots=True)
class Preset:
    """A trade-off between fidelity and cost: the gradients, and the training triples, that are compared."""

    last_layers: int | None = None
    """Modules counted from the score backwards; None for all parameters."""
    projection: Kind | None = None
    """None: exact inner products."""
    dim: int = 256
    """Of the projection, where there is one."""
    sample_rate: float = 1.0
    """Share of the training triples that is compared."""
    stratify_by: Stratum | None = None
    """Field whose values the sample is drawn evenly from."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The value of ``--layers`` for `last_layers`."""
        return ("all",) if self.last_layers is None else (f"last:{self.last_layers}",)


PRESETS: Mapping[str, Preset] = {
    "baseline": Preset(),
    "standard": Preset(2),
    "fast": Preset(2, "gaussian"),
    "very-fast": Preset(2, "gaussian", sample_rate=0.5, stratify_by="relation"),
    "ultra-fast": Preset(2, "gaussian", sample_rate=0.1, stratify_by="relation"),
    "extreme": Preset(1, "sparse", dim=128, sample_rate=0.05, stratify_by="relation"),
}
"""The presets of `kgtrace tracin`, from the most exact to the cheapest."""
