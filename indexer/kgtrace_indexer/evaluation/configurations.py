"""The configurations that an evaluation compares: presets, projection dimensions, sample rates, numbers of layers."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Literal

from kgtrace_indexer.models.protocol import ScoringModel
from kgtrace_indexer.names import PRESETS, Kind, Stratum
from kgtrace_store.errors import BadRequest

Group = Literal["preset", "dimension", "sample rate", "layers"]
"""What is varied."""

DIMENSIONS = (64, 128, 256, 512, 1024)
RATES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)

_KINDS: tuple[Kind, ...] = ("gaussian", "sparse")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to approximate the influences of all training triples."""

    group: Group
    name: str
    """Unique within its group."""
    layers: tuple[str, ...] = ("all",)
    """As ``--layers`` takes them."""
    projection: Kind | None = None
    """None: exact inner products of the gradients of `layers`."""
    dim: int | None = None
    """Coordinates of the projection, where there is one."""
    sample_rate: float = 1.0
    stratify_by: Stratum | None = None

    @property
    def shown_layers(self) -> str:
        """The layers in a few words."""
        return self.layers[0] if len(self.layers) == 1 else f"{len(self.layers)} parameters"


def configurations(model: ScoringModel, tensors: Sequence[str]) -> list[Configuration]:
    """Return all configurations to compare, for a model whose state dict holds `tensors`, in that order."""
    return [*_presets(model), *_dimensions(), *_rates(), *_layers(model, tensors)]


def _presets(model: ScoringModel) -> Iterator[Configuration]:
    """Yield the presets whose layers the model has."""
    for name, preset in PRESETS.items():
        with suppress(BadRequest):
            model.select(preset.layers)
            yield Configuration(
                "preset",
                name,
                layers=preset.layers,
                projection=preset.projection,
                dim=None if preset.projection is None else preset.dim,
                sample_rate=preset.sample_rate,
                stratify_by=preset.stratify_by,
            )


def _dimensions() -> Iterator[Configuration]:
    for kind in _KINDS:
        for dim in DIMENSIONS:
            yield Configuration("dimension", f"{kind} {dim}", projection=kind, dim=dim)


def _rates() -> Iterator[Configuration]:
    for rate in RATES:
        yield Configuration("sample rate", f"{100 * rate:g} %", sample_rate=rate, stratify_by="relation")


def _layers(model: ScoringModel, tensors: Sequence[str]) -> Iterator[Configuration]:
    """Yield the last modules counted from the score backwards; and the last two *parameters* in the model's order."""
    everything = model.select(["all"])
    trained = [name for name in tensors if name in everything]
    yield Configuration("layers", "last 2 parameters", layers=tuple(trained[-2:]))
    for number in count(1):
        layers = (f"last:{number}",)
        try:
            selection = model.select(layers)
        except BadRequest:  # the model has fewer
            return
        if selection == everything:
            layers = ("all",)
        yield Configuration("layers", layers[0], layers=layers)
