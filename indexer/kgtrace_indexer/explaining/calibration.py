"""How predicted changes of a score compare with what training again without the triples changed.

Constants measured by ``python -m benchmarks.truth.sets``; ``docs/sets.md`` has the experiment and what it found.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Calibration:
    """Turns the preconditioned influence of a set into a change of the score, with an interval."""

    factor: float
    """The predicted change is −factor · influence / σ²."""
    floor: float
    """Half the width of the interval of a set without influence."""
    slope: float
    """By how much half the width grows with the predicted change."""
    measured_on: str
    """Model and data set of the experiment, for people."""

    def half_width(self, change: float) -> float:
        """Return half the width of the 90 % interval around a predicted change."""
        return self.floor + self.slope * abs(change)


BY_INTERACTION: Mapping[str, Calibration] = {
    "ConvE": Calibration(5.961, 0.713, 0.3, "ConvE on UMLS"),
    "ComplEx": Calibration(4.503, 0.778, 0.95, "ComplEx on UMLS"),
}
"""Calibrations of models with inverse relations that were trained 1-N with binary cross-entropy, by interaction."""

LOSSES = ("BCEWithLogitsLoss", "BCEAfterSigmoidLoss")
"""Their names in PyKEEN. Of a model that was trained with a softmax the intervals held 36 and 42 % of the changes."""

UNCALIBRATED = 5.2
"""The factor for other interactions: the mean of these."""
