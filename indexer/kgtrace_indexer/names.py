"""Names that the indexer, the service and the command line share: literals, defaults and presets. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Order = Literal["proponents", "opponents", "absolute"]
"""Largest influence first, most negative first, or largest magnitude first."""

Score = Literal["tracin", "preconditioned"]
"""Inner products of gradients, or of embedding rows with P between; see `kgtrace_indexer.index.preconditioner`."""

Damping = float | Literal["auto"]
"""σ² of the preconditioned score in units of `kgtrace_indexer.index.preconditioner.mean_square`; ``auto`` is 3."""

Ranking = Literal["descending", "ascending"]
"""Largest self-influence first, or smallest."""

Group = Literal["relation", "head", "tail", "triple"]
"""What the training triples of a group have in common; with ``triple`` each is a group of its own."""

Direction = Literal["tail", "head"]
"""Which side of the test triple is explained: (h, r) → t, or (t, r⁻¹) → h where the model has inverse relations. Where
it has none, both have the score s(h, r, t), and differ in the entities that it is ranked among."""

Directions = Literal["forward", "both"]
"""Which loss terms a training triple has: (h, r) → t alone, or (t, r⁻¹) → h as well."""

Stratum = Literal["relation", "head", "tail"]
"""What triples of one stratum have in common."""

Kind = Literal["gaussian", "sparse"]
"""Entries N(0, 1), or √3 · {−1, 0, +1} with probabilities 1/6, 2/3, 1/6 (Achlioptas, 2003)."""

Projection = Literal["pca", "gaussian", "sparse", "none"]
"""Directions that the index searches along: principal, random, or none, for a full scan."""

OneToAllName = Literal["bce-1vsall", "bce-kvsall", "ce-1vsall"]
"""Losses over the scores of all entities."""

ContrastName = Literal["margin", "nssa", "softplus"]
"""Losses that compare a triple with sampled negatives."""

LossName = Literal["bce", "removal"] | OneToAllName | ContrastName


@dataclass(frozen=True, slots=True)
class Preset:
    """A trade-off between fidelity and cost: which gradients, and which training triples, are compared."""

    last_layers: int | None = None
    """Modules counted from the score backwards; None for all parameters."""
    projection: Kind | None = None
    """None: exact inner products."""
    dim: int = 256
    """Of the projection, where there is one."""
    sample_rate: float = 1.0
    """Share of the training triples that is looked at."""
    stratify_by: Stratum | None = None
    """What the sample is drawn evenly over."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The same as ``--layers`` takes it."""
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
