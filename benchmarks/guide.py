"""The guide's three tables, measured: `kgtrace evaluate` on the real models, and its figures in ``docs/guide.md``.

    python -m benchmarks.guide                       # both data sets; about 15 minutes on two cores
    python -m benchmarks.guide --dataset CoDEx-S     # one of them; about 4 minutes
    python -m benchmarks.guide --write-only          # only write the page again, from what was measured before

Reads models and data sets from the folder in KGTRACE_SHARED. Writes ``benchmarks/results/evaluate-NAME-cpu.json``,
pictures to ``docs/images`` and the part between the marks of the page. A run that was interrupted goes on, from what it
left in ``kgtrace-guide`` in the folder for temporary files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("KGTRACE_SHARED", "../shared"))
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
PAGE = ROOT / "docs" / "guide.md"
WORK = Path(tempfile.gettempdir()) / "kgtrace-guide"
"""Outside of the repository, for an unfinished evaluation holds an index."""
MARK = "<!-- measured -->"
KGTRACE = Path(sys.executable).parent / "kgtrace"


@dataclass(frozen=True)
class Case:
    """A model, and how many of its test triples are looked at."""

    dataset: str
    name: str
    test_triples: int

    @property
    def model(self) -> str:
        """Folder of the model."""
        return f"conve-{self.dataset.lower()}"

    @property
    def results(self) -> Path:
        """What was measured."""
        return RESULTS / f"evaluate-{self.name}-cpu.json"

    def options(self) -> list[str]:
        """Return the arguments that the page shows, too."""
        return ["--skip-unknown", "--max-test-triples", str(self.test_triples), "--order", "absolute"]


CASES = (Case("FB15k-237", "fb15k237", 40), Case("CoDEx-S", "codex-s", 100))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=[case.dataset for case in CASES])
    parser.add_argument("--write-only", action="store_true")
    args = parser.parse_args()
    for case in CASES if not args.write_only else ():
        if args.dataset in (None, case.dataset):
            measure(case)
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(f"{before}{MARK}\n{measured()}{MARK}{after}")


def measure(case: Case) -> None:
    """Evaluate as a user does, in a process of its own."""
    WORK.mkdir(exist_ok=True)
    IMAGES.mkdir(exist_ok=True)
    output = WORK / f"{case.name}.json"
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(
            [
                KGTRACE, "evaluate", "--model", SHARED / "models" / case.model,
                "--test", SHARED / "data" / case.dataset / "test.txt", *case.options(), "--device", "cpu",
                "--output", output, "--plots", temporary,
            ],
            check=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        case.results.write_bytes(output.read_bytes())
        for picture in Path(temporary).glob("*.svg"):
            (IMAGES / f"{case.name}-{picture.name}").write_bytes(picture.read_bytes())


def measured() -> str:
    """Return the part of the page that follows from the results."""
    parts = [section(case, json.loads(case.results.read_text())) for case in CASES if case.results.exists()]
    return "\n".join(parts)


def section(case: Case, content: Mapping[str, Any]) -> str:
    """Return the tables of one data set."""
    index, loop, machine = content["index"], content["plain_loop"], content["machine"]
    command = (
        f"kgtrace evaluate --model {case.model} --test {case.dataset}/test.txt {' '.join(case.options())} --plots DIR"
    )
    return f"""### {case.dataset}

ConvE with 200 dimensions, {content["training_triples"]:,} training triples, {content["test_triples"]} test triples drawn at random; {machine["threads"]} threads. Measured by

```
{command}
```

![overlap against speed](images/{case.name}-accuracy-speed.svg)

{configurations(content)}

The plain loop took {1e3 * loop["seconds_a_triple"]:.1f} ms for each of {loop["timed_triples"]} triples. The index was built in {index["build_seconds"]:.0f} s and takes {index["bytes"] / 1e6:,.0f} MB; its slowest query took {index["slowest_seconds"]:.2f} s.

![overlap against dimension](images/{case.name}-overlap-dimension.svg)

{dimensions(content)}

![overlap against sample rate](images/{case.name}-overlap-sample-rate.svg)

{rates(content)}
"""


def configurations(content: Mapping[str, Any]) -> str:
    """Return the presets and layers, with the index and the plain loop beside them."""
    index, loop = content["index"], content["plain_loop"]
    rows: list[Sequence[str]] = [
        ("configuration", "layers", "projection", "sample", "overlap", "Pearson", "Spearman", "seconds a query", "× plain loop"),
        ("plain loop", "all", "", "all", "", "", "", number(loop["seconds_a_query"]), "1"),
        (
            f"**index** ({index['certified']} of {content['test_triples']} certified)", "all", "", "all",
            f"**{index['overlap']:.2f}**", "", "", number(index["seconds_a_query"]), number(index["times_faster"]),
        ),
    ]  # fmt: skip
    for found in content["configurations"]:
        if found["group"] in ("preset", "layers"):
            named = f"`{found['name']}`" if found["group"] == "preset" else found["name"]
            rows.append(
                (
                    named,
                    found["layers"][0] if len(found["layers"]) == 1 else "entity bias, relation table",
                    "" if found["projection"] is None else f"{found['projection']} {found['dim']}",
                    "all" if found["sample_rate"] == 1 else f"{100 * found['sample_rate']:g} %",
                    *(f"{found[measure]:.2f}" for measure in ("overlap", "pearson", "spearman")),
                    number(found["seconds_a_query"]),
                    number(found["times_faster"]),
                )
            )
    return markdown(rows)


def dimensions(content: Mapping[str, Any]) -> str:
    """Return what projections of all layers find."""
    found = [c for c in content["configurations"] if c["group"] == "dimension"]
    dims = sorted({c["dim"] for c in found})
    rows: list[Sequence[str]] = [("coordinates", *map(str, dims), "certified index")]
    for kind in ("gaussian", "sparse"):
        own = {c["dim"]: c for c in found if c["projection"] == kind}
        for measure in ("overlap", "pearson", "spearman"):
            last = f"{content['index']['overlap']:.2f}" if measure == "overlap" else ""
            rows.append(
                (
                    f"{kind}, {measure.capitalize() if measure != 'overlap' else measure}",
                    *(f"{own[d][measure]:.2f}" for d in dims),
                    last,
                )
            )
        rows.append(
            (
                f"{kind}, × plain loop",
                *(number(own[d]["times_faster"]) for d in dims),
                number(content["index"]["times_faster"]),
            )
        )
    return markdown(rows)


def rates(content: Mapping[str, Any]) -> str:
    """Return what samples find."""
    found = [c for c in content["configurations"] if c["group"] == "sample rate"]
    return markdown(
        [
            ("sampled, by relation", *(c["name"] for c in found), "certified index"),
            ("overlap", *(f"{c['overlap']:.2f}" for c in found), f"{content['index']['overlap']:.2f}"),
            ("× plain loop", *(number(c["times_faster"]) for c in found), number(content["index"]["times_faster"])),
        ]
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table, the first one its header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def number(value: float) -> str:
    """Return a number with two or three significant digits, and no exponent."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    main()
