"""The parameters whose gradients count: ``all``, ``last:N``, or names and patterns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kgtrace_store.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Selection:
    """The parameters whose gradients make up the influence."""

    parameters: frozenset[str]
    """Parameter names, as in the model's state dict."""
    head_use: bool
    """Whether the entity table counts where it is read as head, too, or only as tail."""

    def __contains__(self, name: str) -> bool:
        """Return whether the parameter's gradient counts."""
        return name in self.parameters


NO_PARAMETERS = Selection(frozenset(), head_use=False)
"""Selects nothing: for losses without gradients."""


def select_layers(layers: Sequence[str], depths: Sequence[Iterable[str]]) -> Selection:
    """Resolve ``--layers`` against a model.

    Parameters
    ----------
    layers
        ``["all"]``, ``["last:N"]``, or shell patterns, each of parameters or of modules with all their parameters.
    depths
        The model's parameter names, grouped by module in compute order *from the score backwards*. The first group
        holds the entity table's use as tail, the last one its use as head.

    Raises
    ------
    BadRequest
        N out of range, or a pattern that matches no parameter.
    """
    groups = [frozenset(group) for group in depths]
    everything = frozenset().union(*groups)
    if list(layers) == ["all"]:
        return Selection(everything, head_use=True)
    if len(layers) == 1 and layers[0].startswith("last:"):
        count = layers[0].removeprefix("last:")
        if not count.isdecimal() or not 1 <= int(count) <= len(groups):
            raise BadRequest(f"layers {layers[0]!r}: this model has last:1 to last:{len(groups)}")
        return Selection(frozenset().union(*groups[: int(count)]), head_use=int(count) == len(groups))
    if not layers:
        raise BadRequest("no layers given: all, last:N, or parameter names")
    chosen: set[str] = set()
    for pattern in layers:
        matched = {name for name in everything if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not matched:
            raise BadRequest(
                f"layers {pattern!r} matches no parameter; known: all, last:N, {', '.join(sorted(everything))}"
            )
        chosen |= matched
    return Selection(frozenset(chosen), head_use=True)
