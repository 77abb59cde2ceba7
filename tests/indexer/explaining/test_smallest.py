"""The smallest set, against all subsets."""

from itertools import combinations

import numpy as np
from hypothesis import example, given, strategies as st
from hypothesis.extra.numpy import arrays

from kgtrace_indexer.explaining.smallest import SmallestSet

EFFECTS = st.integers(-4, 4).map(float)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, list[np.ndarray] | None]:
    """Effects of a few facts on a few rivals, their gaps, the size of sets, and bridges or none."""
    facts, rivals = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    effects = draw(arrays(np.float64, (facts, rivals), elements=EFFECTS))
    gaps = draw(arrays(np.float64, rivals, elements=st.integers(0, 9).map(float)))
    bridge = st.sets(st.integers(0, facts - 1), min_size=1, max_size=2).map(lambda chosen: np.array(sorted(chosen)))
    return effects, gaps, draw(st.integers(1, 4)), draw(st.none() | st.lists(bridge, max_size=3))


@given(problems(), st.integers(1, 4))
@example((np.array([[-2.0], [2.0], [2.0], [0.0], [4.0], [4.0]]), np.array([7.0]), 4, [np.array([1, 2])]), 1)
def test_no_subset_is_smaller_or_of_larger_margin(
    problem: tuple[np.ndarray, np.ndarray, int, list[np.ndarray] | None], block: int
) -> None:
    """Whether or not rivals are looked at together; a set that lets no rival pass has the largest margin of all."""
    effects, gaps, most, bridges = problem
    search = SmallestSet(most, bridges)
    for start in range(0, len(gaps), block):
        rivals = np.arange(start, min(start + block, len(gaps)))
        search.look(effects[:, rivals], gaps[rivals], rivals)
    tried = {
        (size, rival): max(
            (effects[list(chosen), rival].sum() - gaps[rival], chosen)
            for chosen in combinations(range(len(effects)), size)
            if bridges is None or any(set(bridge) <= set(chosen) for bridge in bridges)
        )
        for size in range(1, min(most, len(effects)) + 1)
        for rival in range(len(gaps))
        if bridges is None or any(len(bridge) <= size for bridge in bridges)
    }
    found = search.answer
    if not tried:
        assert found is None
        return
    assert found is not None
    passing = [size for (size, _), (margin, _) in tried.items() if margin > 0]
    sizes = {min(passing)} if passing else set(range(1, most + 1))
    assert found.margin == max(margin for (size, _), (margin, _) in tried.items() if size in sizes)
    assert found.margin == effects[found.facts, found.rival].sum() - gaps[found.rival]
    assert len(set(found.facts.tolist())) == len(found.facts)
    assert len(found.facts) in sizes
    assert bridges is None or any(set(bridge) <= set(found.facts.tolist()) for bridge in bridges)
