"""``--layers``."""

import pytest

from kgtrace_indexer.gradients.layers import select_layers
from kgtrace_store.errors import BadRequest

DEPTHS = [["entity", "bias"], ["linear.weight", "linear.bias"], ["conv.weight"], ["relation"]]


def test_all_and_the_deepest_last_are_the_same() -> None:
    """The last module reached includes the entity table's use as head."""
    assert select_layers(["all"], DEPTHS) == select_layers(["last:4"], DEPTHS)
    assert select_layers(["all"], DEPTHS).head_use


@pytest.mark.parametrize(
    ("count", "names"),
    [(1, {"entity", "bias"}), (2, {"entity", "bias", "linear.weight", "linear.bias"})],
)
def test_last_counts_modules_from_the_score(count: int, names: set[str]) -> None:
    """Modules are counted in compute order from the score backwards, with the entity table's output use only."""
    selection = select_layers([f"last:{count}"], DEPTHS)
    assert selection.parameters == names
    assert not selection.head_use


def test_patterns() -> None:
    """Patterns are shell patterns over the names of parameters, and of modules."""
    assert select_layers(["linear.*", "relation"], DEPTHS).parameters == {"linear.weight", "linear.bias", "relation"}
    assert select_layers(["l?near"], DEPTHS).parameters == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("layers", [["last:0"], ["last:5"], ["last:x"], ["last:"], ["lin"], []])
def test_wrong_layers_are_refused(layers: list[str]) -> None:
    """What cannot be honoured is refused by name, with what there is."""
    with pytest.raises(BadRequest, match=r"last:1 to last:4|matches no parameter|no layers"):
        select_layers(layers, DEPTHS)
