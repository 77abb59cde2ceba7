"""Named trade-offs of `kgtrace tracin`, from everything to very little.

==========  ===========  ============  ====================
preset      layers       projection    sample
==========  ===========  ============  ====================
baseline    all          none          all
standard    last two     none          all
fast        last two     gaussian 256  all
very-fast   last two     gaussian 256  50 %, by relation
ultra-fast  last two     gaussian 256  10 %, by relation
extreme     the last     sparse 128    5 %, by relation
==========  ===========  ============  ====================
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kgtrace_indexer.random_projection import Kind
from kgtrace_indexer.sampling import Stratum


@dataclass(frozen=True, slots=True)
class Preset:
    """What counts of the gradients, and of the training triples."""

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
"""By name, from the most exact to the cheapest."""
