"""Sets: how long the smallest set, a sufficient set and a what-if take, for predictions that a model ranks first.

    python -m benchmarks.necessary --index INDEX --test test.txt

Prints a line for each question. Milliseconds are of the wall, and of the CPU, which other processes do not lengthen.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kgtrace import SetExplainer, open_index, read_triples
from kgtrace_store.errors import BadRequest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--predictions", type=int, default=60)
    args = parser.parse_args()
    attributor = open_index(args.index, device="cpu", verify=False)
    explainer, stored = SetExplainer(attributor), attributor.training.train_index
    test = read_triples(args.test, attributor.vocabulary, skip_unknown=True).ids
    test = np.random.default_rng(0).permutation(test).astype(np.int64)
    answers = attributor.query(test[: 20 * args.predictions], top_k=1).attributions
    first = np.array([one.triple for one in answers if one.rank == 1])[: args.predictions]
    print(
        f"{len(first)} predictions ranked first, of {len(answers)} test triples, {len(attributor):,} training triples"
    )
    print("\n| question | median | 90 % | max | CPU, median | answer |\n|---|---|---|---|---|---|")
    few = np.random.default_rng(1).choice(stored, 4, replace=False)
    line(
        "what-if without 4 training triples",
        first,
        lambda triple: explainer.what_if(triple, few).rank_after > 1,
        "fall",
    )
    for sides in ("head", "both"):
        found = [explainer.necessary(triple, candidates=sides).candidates for triple in first]  # type: ignore[arg-type]
        line(
            f"necessary, candidates of {sides} (median {np.median(found):.0f}, max {max(found):,})", first,
            lambda triple, sides=sides: explainer.necessary(triple, candidates=sides).suffices, "suffice",
        )  # fmt: skip
    line("sufficient, 10 entities", first[: len(first) // 3], lambda triple: sufficient(explainer, triple), "suffice")


def sufficient(explainer: SetExplainer, triple: np.ndarray) -> bool:
    """Return whether there is a sufficient set; none where the tail ranks first with every entity."""
    try:
        return explainer.sufficient(triple).suffices
    except BadRequest:
        return False


def line(title: str, triples: np.ndarray, ask: Callable[[np.ndarray], bool], word: str) -> None:
    """Time a question about each of some triples, and print its line."""
    wall, cpu, said = [], [], 0
    for triple in triples:
        begun = time.perf_counter(), time.process_time()
        said += ask(triple)
        wall.append(1e3 * (time.perf_counter() - begun[0]))
        cpu.append(1e3 * (time.process_time() - begun[1]))
    times = (np.median(wall), np.quantile(wall, 0.9), max(wall), np.median(cpu))
    print(f"| {title} | {' | '.join(f'{each:,.0f} ms' for each in times)} | {said} of {len(triples)} {word} |")


if __name__ == "__main__":
    main()
