"""Recall, tables and plots: everything that compares the rows is computed here, from what the runners left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
MARK = "<!-- measured -->"
PEERS = ("captum", "traker", "dattri", "bergson")
HEADINGS = {
    "linear": "The inner linear layer: 10,368 → 200, loss `bce`",
    "output": "The output layer: 200 → all entities, loss `ce-1vsall`",
}


def compare(exact: np.ndarray, ids: np.ndarray, influences: np.ndarray | None) -> dict[str, Any]:
    """Compare a row's answers with the exact influences.

    Parameters
    ----------
    exact
        (q, n): of the training triples that the row really embedded.
    ids
        (p, k), p ≤ q: the training triples it named for the first queries.
    influences
        (p, n) from an exact method, else None.

    Returns the share of the exact top k that was named, and the largest error of an influence in relation to the
    largest influence of its query.
    """
    exact, top_k = exact[: len(ids)], ids.shape[1]
    best = np.argsort(-exact, 1, kind="stable")[:, :top_k]
    shared = [len(set(a) & set(b)) / top_k for a, b in zip(best.tolist(), ids.tolist(), strict=True)]
    found = {"queries": len(ids), "triples": exact.shape[1], "at": top_k, "recall": float(np.mean(shared))}
    if influences is not None:
        errors = np.abs(influences - exact).max(1) / np.abs(exact).max(1)
        found["relative_error"] = float(errors.max())
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return the rows of a task as Markdown."""
    sizes = sorted(
        {int(size) for row in found["rows"].values() for size in row.get("query", {}).get("batch_seconds", {})}
    )
    header = [
        "", "triples/s", "on", "batch", "B a triple", "peak memory", "one query", *(f"each of {size}" for size in sizes),
        "recall of top 10", "certified",
    ]  # fmt: skip
    lines = [header, *(cells(row, sizes) for row in found["rows"].values())]
    ruled = [lines[0], ["---"] * len(header), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def cells(row: Mapping[str, Any], sizes: list[int]) -> list[str]:
    """Return one row of the table."""
    if "error" in row:
        return [row["title"], f"failed: `{row['error']}`", *[""] * (7 + len(sizes))]
    build, query, recall = row["build"], row["query"], row.get("recall")
    mark = " †" if query["extrapolated"] else " ‡" if query["copies"] else ""
    return [
        row["title"],
        quantity(build["triples"] / build["seconds"]) + ("" if build["bytes_a_triple"] else " (a pass)"),
        f"{build['triples']:,}",
        "" if "tried" not in row else str(build["batch_size"]),
        f"{build['bytes_a_triple']:,.0f}" if build["bytes_a_triple"] else "nothing kept",
        f"{build['peak_bytes'] / 2**20:,.0f} MiB",
        duration(query["single_seconds"]) + mark,
        *(duration(query["batch_seconds"][str(s)]) + mark if str(s) in query["batch_seconds"] else "" for s in sizes),
        accuracy(recall) if recall else "other parameters",
        proof(row),
    ]


def proof(row: Mapping[str, Any]) -> str:
    """Return which answers are known to be right."""
    if "certified" in row:
        return f"{row['certified']:.0%}"
    return "no" if row["build"]["bytes_a_triple"] else "full scan"


def accuracy(recall: Mapping[str, Any]) -> str:
    """Return recall, and the error of influences where the method is exact."""
    shown = f"{recall['recall']:.2f}"
    return shown + (f", error {recall['relative_error']:.0e}" if "relative_error" in recall else "")


def duration(seconds: float) -> str:
    """Return seconds in a fitting unit."""
    for limit, unit, size in ((1.0, "ms", 1e-3), (120.0, "s", 1.0), (7200.0, "min", 60.0)):
        if seconds < limit:
            return f"{quantity(seconds / size)} {unit}"
    return f"{quantity(seconds / 3600)} h"


def quantity(value: float) -> str:
    """Return a number with two or three significant digits, and no exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def write_page(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the part of the page that follows from the results."""
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(f"{before}{MARK}\n{measured(tasks)}{MARK}{after}")


def measured(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables of all tasks."""
    return "\n".join(section(task, found) for task, found in tasks.items())


def section(task: str, found: Mapping[str, Any]) -> str:
    """Return the table of one task, and what was measured how."""
    problem, machine = found["problem"], found["machine"]
    forward = problem["train"] / problem["forward_seconds"][task]
    return f"""### {HEADINGS[task]}

{problem["train"]:,} training triples of {problem["size"]["dataset"]} drawn at random, with {problem["pairs"]:,} distinct (h, r), {problem["test"]} test triples; {machine["cores"]} cores ({machine["cpu"]}), torch {machine["torch"]}, {versions(found)}. A forward pass alone, one for each distinct (h, r), takes {problem["forward_seconds"][task]:.0f} s: {forward:,.0f} triples/s; kgtrace's time holds its own, the peers start behind it. Measured by

```
python -m benchmarks.peers --task {task}
```

![build rate, query time and recall](images/peers-{task}.svg)

{table(found)}

{ratios(found)}
"""


def versions(found: Mapping[str, Any]) -> str:
    """Return the version of each peer that ran."""
    pairs = {pair for row in found["rows"].values() for pair in row.get("versions", {}).items()}
    return ", ".join(f"{name} {version}" for name, version in sorted(pairs) if name in PEERS)


def ratios(found: Mapping[str, Any]) -> str:
    """Return how kgtrace stands to the best of the others, in this run."""
    rows = {name: row for name, row in found["rows"].items() if "error" not in row}
    if "kgtrace" not in rows:
        return ""
    own = rows["kgtrace"]
    peers = {name: row for name, row in rows.items() if not name.startswith(("kgtrace", "loop"))}
    lines = []
    if stored := {name: row for name, row in peers.items() if row["build"]["bytes_a_triple"] is not None}:
        forward = found["problem"]["forward_seconds"][found["task"]] / found["problem"]["train"]  # seconds a triple
        seconds = {name: row["build"]["seconds"] / row["build"]["triples"] for name, row in rows.items()}
        best = min(stored, key=seconds.__getitem__)
        lines.append(
            f"kgtrace embeds {seconds[best] / seconds['kgtrace']:.2g} × as many triples a second as the fastest peer that "
            f"keeps vectors, {stored[best]['title']}, and {(seconds[best] + forward) / seconds['kgtrace']:.2g} × as many "
            "where the forward pass is charged to both"
        )
    if peers:
        fast = min(peers, key=lambda name: peers[name]["query"]["single_seconds"])
        times = peers[fast]["query"]["single_seconds"] / own["query"]["single_seconds"]
        lines.append(
            f"the fastest peer at answering, {peers[fast]['title']}, takes {times:.2g} × its time for one query"
            + (f", at recall {peers[fast]['recall']['recall']:.2f}" if "recall" in peers[fast] else "")
        )
    if exact := {name: row for name, row in peers.items() if "relative_error" in row.get("recall", {})}:
        fast = min(exact, key=lambda name: exact[name]["query"]["single_seconds"])
        times = exact[fast]["query"]["single_seconds"] / own["query"]["single_seconds"]
        lines.append(f"the fastest exact one, {exact[fast]['title']}, {quantity(times)} ×")
        scan = rows["kgtrace-exact"]["query"]["batch_seconds"] if "kgtrace-exact" in rows else {}
        lines += [
            f"and {quantity(seconds / scan[size])} × that of kgtrace's own full scan for each of {size}"
            for size, seconds in exact[fast]["query"]["batch_seconds"].items()
            if size in scan
        ]
    return "; ".join(lines) + "." if lines else ""


def write_picture(found: Mapping[str, Any], file: Path) -> None:
    """Draw build rates, and query time against recall."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "kgtrace", "font.size": 8})
    rows = [row for row in found["rows"].values() if "error" not in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.32 * len(rows) + 1.6), layout="constrained")
    numbers = range(1, len(rows) + 1)
    rates = [row["build"]["triples"] / row["build"]["seconds"] for row in rows]
    own = ["C1" if row["title"].startswith("**") else "C0" for row in rows]
    names = [f"{row['title'].replace('*', '').replace('`', '')}  {i}" for i, row in zip(numbers, rows, strict=True)]
    left.barh(names, rates, color=own, log=True)
    left.bar_label(left.containers[0], [quantity(rate) for rate in rates], padding=2)
    left.invert_yaxis()
    left.margins(x=0.15)
    left.set_xlabel("triples a second, embedded or scanned")
    for i, row, color in zip(numbers, rows, own, strict=True):
        if "recall" in row:
            place = row["query"]["single_seconds"], row["recall"]["recall"]
            right.plot(*place, "o", color=color)
            right.annotate(str(i), place, (2, 4 + 8 * (i % 2)), textcoords="offset points")
    right.set_xscale("log")
    right.set_ylim(-0.05, 1.15)
    right.margins(x=0.1)
    right.set_xlabel(f"seconds for one query among {found['scale']['train']:,} triples")
    right.set_ylabel("recall of the exact top 10 among those embedded")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
