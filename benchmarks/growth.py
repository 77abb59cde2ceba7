"""How cost grows with the number of training triples: builds and queries on synthetic graphs of 10⁴ to 1.6 · 10⁷ triples.

    python -m benchmarks.growth              # an hour on two cores; needs 21 GB of disk under --folder
    python -m benchmarks.growth --max 1000000
    python -m benchmarks.growth --quick      # 10⁴ and 10⁵; leaves docs alone

Graphs and models are those of `benchmarks.synthetic`, with one entity for six triples; entities, labels and the model
grow with the triples, as they do in reality. A last pair of builds takes the same entities and model for N and 4 N
triples: what is left is what grows with triples alone. Each size is measured once: the command goes on where it was
interrupted, unless --fresh. Writes ``benchmarks/results/NAME.json``, and table and picture of ``docs/growth.md``.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fb15k237 import KGTRACE, RESULTS, SCORES, TOP_K, machine, spread
from benchmarks.pages import DOCS, replace
from benchmarks.synthetic import TRIPLES_AN_ENTITY, Graph, draw, train
from kgtrace_indexer import Attributor, open_index
from kgtrace_indexer.names import Score
from kgtrace_store import IndexRoot, layout
from kgtrace_store.search import set_search_threads

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 16_000_000)
QUICK = SIZES[:2]
PAIR = (250_000, 1_000_000)
"""N and 4 N; 4 N is one of the sizes."""
DIM = 32
"""Length of the index code: with the default of 64, 10⁷ triples need 4 GB more of disk while they are built."""
QUERIES = 50
WARM_UP = 10
DISK_LIMIT = 25e9
"""Bytes that a build may take at its peak."""
_LINES = 1 << 18
"""Lines written at a time."""


def main() -> None:
    """Measure all sizes that are not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max", type=int, default=SIZES[-1], metavar="N", help="leave out larger sizes")
    parser.add_argument("--quick", action="store_true", help="only 10⁴ and 10⁵, and no change to docs")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--folder", type=Path, help="where indexes are built (default: the temporary folder)")
    args = parser.parse_args()
    path = RESULTS / ("growth-quick.json" if args.quick else "growth-cpu.json")
    found = {"sizes": {}, "pair": {}} if args.fresh or args.quick or not path.exists() else json.loads(path.read_text())
    found["machine"] = machine()
    jobs = [("sizes", n, n) for n in (QUICK if args.quick else SIZES) if n <= args.max]
    if not args.quick and args.max >= PAIR[1]:
        jobs.insert(jobs.index(("sizes", PAIR[1], PAIR[1])), ("pair", *PAIR))
    for kind, count, of in jobs:
        if str(count) not in found[kind]:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                found[kind][str(count)] = measure(Path(folder), count, of, bytes_a_triple(found))
            path.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    if not args.quick:
        replace(DOCS / "growth.md", "growth", table(found))
        draw_growth(found, DOCS / "images" / "growth.svg")


def measure(folder: Path, count: int, of: int, known_bytes: float) -> dict[str, Any]:
    """Build an index of the first `count` of `of` triples, ask it, and leave nothing of it."""
    needed = 2.1 * known_bytes * count
    if needed > min(DISK_LIMIT, shutil.disk_usage(folder).free):
        return {"left_out": f"needs about {needed / 1e9:.0f} GB of disk"}
    graph = draw(of + WARM_UP + QUERIES, of // TRIPLES_AN_ENTITY, seed=0)
    training, queries = graph.triples[:count], graph.triples[of:].astype(np.int64)
    start = time.perf_counter()
    state = train(Graph(graph.triples[:of], graph.entities, graph.relations), seed=0)
    found: dict[str, Any] = {"entities": graph.entities, "training_seconds": time.perf_counter() - start}
    torch.save(state, folder / "model.pt")
    write_input(folder, Graph(training, graph.entities, graph.relations))
    del graph, state
    found["build"] = build(folder)
    with multiprocessing.get_context("spawn").Pool(1) as process:
        found["query"] = process.apply(ask, (folder / "index", queries))
    return found


def write_input(folder: Path, graph: Graph) -> None:
    """Write what `kgtrace build` reads beside a state dict."""
    for name, count, letter in (("entities", graph.entities, "Q"), ("relations", graph.relations, "P")):
        with (folder / f"{name}.tsv").open("w") as file:
            file.writelines(f"{letter}{i}\t{i}\n" for i in range(count))
    with (folder / "train.tsv").open("w") as file:
        file.write("head\trelation\ttail\n")
        for start in range(0, len(graph.triples), _LINES):
            block = graph.triples[start : start + _LINES]
            file.write("%d\t%d\t%d\n" * len(block) % tuple(block.ravel().tolist()))


def build(folder: Path, *options: str) -> dict[str, Any]:
    """Build as a user does, with further options."""
    return measured(
        [KGTRACE, "build", "--model", folder / "model.pt", "--train", folder / "train.tsv",
         "--entity-to-id", folder / "entities.tsv", "--relation-to-id", folder / "relations.tsv",
         "--index", folder / "index", "--dim", str(DIM), "--device", "cpu", "--json", *options],
        folder / "index",
    )  # fmt: skip


def measured(arguments: list[str | Path], root: Path) -> dict[str, Any]:
    """Run a build, or its like, in a process of its own; watch its memory, and the disk of the index."""
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    own, disk = 0, 0
    while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        own = max(own, resident(process.pid)["RssAnon"])
        disk = max(disk, occupied(root))
        time.sleep(0.05)
    report = json.loads(process.stdout.read()) if process.stdout else {}
    _, _, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    stages = {"read": seconds - sum(report["seconds"].values()), **report["seconds"]}
    return {
        "generation": report["generation"],
        "triples": report["triples"],
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "stages": stages,
        "triples_per_second": report["triples"] / seconds,
        "peak_own_bytes": own,
        "peak_resident_bytes": used.ru_maxrss * 1024,
        "bytes_on_disk": report["bytes"],
        "peak_bytes_on_disk": disk,
    }


def ask(root: Path, queries: np.ndarray) -> dict[str, Any]:
    """Ask an index for the influences on test triples (n, 3) by each score; the first few do not count.

    On one thread: two that wait for each other are slowed down by whatever else runs.
    """
    torch.set_num_threads(1)
    set_search_threads(1)
    start = time.perf_counter()
    attributor = open_index(root, device="cpu")
    opened = time.perf_counter() - start
    by_score: dict[str, Any] = {score: ask_by(attributor, queries, score) for score in SCORES}
    memory = resident(os.getpid())
    with IndexRoot(root).open(verify=False) as generation:
        files = generation.manifest.files.items()
        search = sum(record.bytes for name, record in files if name.endswith(layout.SEARCH))
    return by_score | {
        "open_seconds": opened,
        "search_bytes": search,
        "own_bytes": memory["RssAnon"],
        "mapped_bytes": memory["RssFile"],
    }


def ask_by(attributor: Attributor, queries: np.ndarray, score: Score) -> dict[str, Any]:
    """Ask by one score."""
    milliseconds, answers = [], []
    for triple in queries:
        start = time.perf_counter()
        answers += attributor.query(triple[None], top_k=TOP_K, score=score).attributions
        milliseconds.append(1e3 * (time.perf_counter() - start))
    counted = answers[WARM_UP:]
    return {
        "queries": QUERIES,
        "milliseconds": spread(milliseconds[WARM_UP:]),
        "candidates": spread([each.candidates for each in counted]),
        "exact_terms": spread([each.exact_terms for each in counted]),
        "certified": sum(each.certified for each in counted),
    }


def resident(process: int) -> dict[str, int]:
    """Return the bytes that a process has in memory: its own (``RssAnon``), and of files it maps (``RssFile``)."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        text = ""
    lines = dict(re.findall(r"^(RssAnon|RssFile):\s+(\d+) kB", text, re.MULTILINE))
    return {name: 1024 * int(lines.get(name, 0)) for name in ("RssAnon", "RssFile")}


def occupied(folder: Path) -> int:
    """Return the bytes that files below a folder take, while another process writes and removes some."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(parent) / name).stat().st_size
    return total


def bytes_a_triple(found: dict[str, Any]) -> float:
    """Return how many bytes of disk a triple takes in the largest index measured."""
    built = [each["build"] for each in found["sizes"].values() if "build" in each]
    return max(((each["triples"], each["bytes_on_disk"] / each["triples"]) for each in built), default=(0, 0.0))[1]


MEASURES: dict[str, tuple[str, ...]] = {
    "build, s": ("build", "seconds"),
    "build, s of CPU": ("build", "cpu_seconds"),
    "own memory of the build, bytes": ("build", "peak_own_bytes"),
    "disk, bytes": ("build", "bytes_on_disk"),
    "default score, median ms": ("query", "preconditioned", "milliseconds", "median"),
    "default score, 90 % ms": ("query", "preconditioned", "milliseconds", "p90"),
    "default score, candidates, median": ("query", "preconditioned", "candidates", "median"),
    "TracIn, median ms": ("query", "tracin", "milliseconds", "median"),
    "TracIn, 90 % ms": ("query", "tracin", "milliseconds", "p90"),
    "TracIn, candidates, median": ("query", "tracin", "candidates", "median"),
    "search codes, bytes": ("query", "search_bytes"),
    "own memory of a querying process, bytes": ("query", "own_bytes"),
}
"""What is fitted, and where it stands in a result."""


def series(found: dict[str, Any], keys: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes (m,) that were measured, and a measure of them (m,)."""
    rows = sorted((int(n), each) for n, each in found["sizes"].items() if "build" in each)
    values = [each for _, each in rows]
    for key in keys:
        values = [each[key] for each in values]
    return np.array([n for n, _ in rows], float), np.array(values, float)


def exponent(sizes: np.ndarray, values: np.ndarray) -> float:
    """Return e of the least-squares fit values ∝ sizes^e in logarithms; NaN for a single size."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0]) if len(sizes) > 1 else float("nan")


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    rows = [(int(n), each) for n, each in sorted(found["sizes"].items(), key=lambda item: int(item[0]))]
    lines = [
        "| training triples | entities | build | triples/s | own memory, all resident | disk (at its peak) "
        "| search codes | asking: own, mapped |",
        "|---|" + "---|" * 7,
    ]
    for n, each in rows:
        if "left_out" in each:
            lines.append(f"| {n:,} | left out: {each['left_out']} |" + " |" * 6)
            continue
        made, asked = each["build"], each["query"]
        lines.append(
            f"| {n:,} | {each['entities']:,} | {made['seconds']:,.0f} s | {made['triples_per_second']:,.0f} "
            f"| {_mega(made['peak_own_bytes'])}, {_mega(made['peak_resident_bytes'])} "
            f"| {_mega(made['bytes_on_disk'])} ({_mega(made['peak_bytes_on_disk'])}) "
            f"| {_mega(asked['search_bytes'])} | {_mega(asked['own_bytes'])}, {_mega(asked['mapped_bytes'])} |"
        )
    lines += [
        "",
        "| training triples | score | median | 90 % | largest | candidates median, 90 % | exact median, 90 % | certified |",
        "|---|" + "---|" * 7,
    ]
    for n, each in rows:
        for score, words in zip(SCORES, ("default", "TracIn"), strict=True):
            if "query" in each:
                asked = each["query"][score]
                ms, candidates, exact = (asked[key] for key in ("milliseconds", "candidates", "exact_terms"))
                lines.append(
                    f"| {n:,} | {words} | {ms['median']:.1f} ms | {ms['p90']:.1f} ms | {ms['max']:.1f} ms "
                    f"| {candidates['median']:,.0f}, {candidates['p90']:,.0f} "
                    f"| {exact['median']:,.0f}, {exact['p90']:,.0f} | {asked['certified']} of {asked['queries']} |"
                )
    stages = list(rows[0][1]["build"]["stages"])
    lines += ["", "| seconds of the build | " + " | ".join(stages) + " |", "|---|" + "---|" * len(stages)]
    for n, each in rows:
        if "build" in each:
            lines.append(f"| {n:,} | " + " | ".join(f"{each['build']['stages'][name]:,.1f}" for name in stages) + " |")
    lines += ["", "| grows as N to the | over all sizes | from the last size but one to the last |", "|---|---|---|"]
    for name, keys in MEASURES.items():
        sizes, values = series(found, keys)
        lines.append(f"| {name} | {exponent(sizes, values):.2f} | {exponent(sizes[-2:], values[-2:]):.2f} |")
    pair = [found["pair"].get(str(PAIR[0]), {}), found["sizes"].get(str(PAIR[1]), {})]
    if all("build" in each for each in pair):
        lines += ["", "| the same entities and model | build | own memory | all resident |", "|---|---|---|---|"]
        for each in pair:
            made = each["build"]
            lines.append(
                f"| {made['triples']:,} | {made['seconds']:,.0f} s | {_mega(made['peak_own_bytes'])} "
                f"| {_mega(made['peak_resident_bytes'])} |"
            )
    return "\n".join(lines)


def _mega(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def draw_growth(found: dict[str, Any], path: Path) -> None:
    """Draw build and query time, memory and candidates over N, each with its fitted line."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = {
        "Build: seconds": {"wall clock": "build, s", "CPU": "build, s of CPU"},
        "Query: milliseconds": {
            "default, median": "default score, median ms",
            "default, 90 %": "default score, 90 % ms",
            "TracIn, median": "TracIn, median ms",
        },
        "Memory: MB": {
            "build": "own memory of the build, bytes",
            "querying process": "own memory of a querying process, bytes",
            "search codes": "search codes, bytes",
        },
        "Candidates of a query, median": {
            "default": "default score, candidates, median",
            "TracIn": "TracIn, candidates, median",
        },
    }
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "kgtrace", "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        for axes, (title, lines) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            for (label, name), colour in zip(lines.items(), ("#0072B2", "#D55E00", "#009E73"), strict=False):
                sizes, values = series(found, MEASURES[name])
                values = values / 1e6 if "bytes" in name else values
                slope = exponent(sizes, values)
                axes.loglog(sizes, values, "o", color=colour, label=f"{label}: N^{slope:.2f}")
                axes.loglog(
                    sizes,
                    np.exp(np.log(values).mean() + slope * (np.log(sizes) - np.log(sizes).mean())),
                    color=colour,
                    lw=1,
                )
            axes.set(title=title, xlabel="training triples N")
            axes.grid(color="#e6e6e6")
            axes.legend(frameon=False)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
