"""A graph of Wikidata's shape and size: an index of 16 million training triples built, asked, asked cold, and extended.

    python -m benchmarks.wikidata --folder FOLDER               # two hours on two cores, 35 GB of disk; as root
    python -m benchmarks.wikidata --folder FOLDER --triples 1000000

Graph, model and options of the build are those of `benchmarks.growth`: one relation has a sixth of the triples, and the
largest hub is the tail of 1 % of them. All questions are by the default score, in one process, on one thread. Cold they
are asked in a control group, which only root can make, of a quarter of the index's size, or of a gigabyte if that is
more, with nothing of the index in memory at first. Each step (build, ask, cold, append) is measured once: the command
goes on where it was interrupted, unless --fresh. Writes ``benchmarks/results/wikidata-cpu.json`` and the tables of
``docs/scale.md``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cold import SHARE, control_group, forget, within
from benchmarks.fb15k237 import KGTRACE, RESULTS, TOP_K, machine, spread
from benchmarks.growth import WARM_UP, build, measured, resident, write_input
from benchmarks.pages import DOCS, replace
from benchmarks.synthetic import TRIPLES_AN_ENTITY, Graph, draw, train
from kgtrace_indexer import Attributor, Restriction, open_index, read_triples
from kgtrace_store import IndexRoot
from kgtrace_store.search import set_search_threads

QUERIES = 50
TOGETHER = 10
"""Test triples whose influences are summed."""
SECONDS = 120
"""After which no further question of a kind is asked."""
ADDED = 100
"""One training triple is appended for so many indexed ones."""
LEAST = 1 << 30
"""Bytes of memory of a process that holds none of an index: with fewer, one could not be asked at all."""


def main() -> None:
    """Take the steps that were not taken yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="keeps graph, model and index")
    parser.add_argument("--triples", type=int, default=16_000_000, metavar="N")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "wikidata-cpu.json"
    found = json.loads(path.read_text()) if path.exists() and not args.fresh else {}
    if found.get("triples") != args.triples:
        found = {"machine": machine(), "triples": args.triples}
    prepare(args.folder, args.triples, found)
    for name, step in STEPS.items():
        if name not in found:
            found[name] = step(args.folder)
            print(name, json.dumps(found[name]), flush=True)
            path.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    replace(DOCS / "scale.md", "wikidata", table(found))


def prepare(folder: Path, count: int, found: dict[str, Any]) -> None:
    """Write graph, model, test triples, and triples to append, unless they are there; note the shape of the graph."""
    written = (folder / "test.txt").exists()
    if written and "entities" in found:
        return
    added = count // ADDED
    graph = draw(count + added + WARM_UP + QUERIES, count // TRIPLES_AN_ENTITY, seed=0)
    training, rest = graph.triples[:count], graph.triples[count:]
    relations, tails = (np.bincount(training[:, column]) for column in (1, 2))
    found |= {
        "entities": graph.entities, "relation_triples": int(relations.max()), "hub_triples": int(tails.max()), "added": added,
    }  # fmt: skip
    if not written:
        torch.save(train(Graph(training, graph.entities, graph.relations), seed=0), folder / "model.pt")
        write_input(folder, Graph(training, graph.entities, graph.relations))
        np.savetxt(folder / "more.tsv", rest[:added], "%d", "\t", header="head\trelation\ttail", comments="")
        np.savetxt(folder / "test.txt", rest[added:], "Q%d\tP%d\tQ%d")


def build_anew(folder: Path) -> dict[str, Any]:
    """Build the index."""
    shutil.rmtree(folder / "index", ignore_errors=True)
    return build(folder)


def append(folder: Path) -> dict[str, Any]:
    """Extend the index, and take the extension away again."""
    root = IndexRoot(folder / "index")
    with root.open(verify=False) as generation:
        before = sum(record.bytes for record in generation.manifest.files.values())
    arguments = [KGTRACE, "append", "--index", root.path, "--train", folder / "more.tsv", "--device", "cpu", "--json"]
    found = measured(arguments, root.path)
    found["bytes_before"] = before
    root.rollback()
    shutil.rmtree(root.path / "generations" / found["generation"])
    return found


def asked(folder: Path, group: Path | None = None) -> dict[str, Any]:
    """Ask in a process of its own, in a control group if there is one."""
    code = "import sys; from benchmarks.wikidata import ask; ask(sys.argv[1])"
    command: list[str | Path] = [sys.executable, "-c", code, folder]
    done = subprocess.run(
        command if group is None else within(group, command), check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cold(folder: Path) -> dict[str, Any]:
    """Ask with a quarter of the index's size as memory, and none of it there at first."""
    with IndexRoot(folder / "index").open(verify=False) as generation:
        files = [generation.path / name for name in generation.manifest.files]
    limit = max(LEAST, sum(file.stat().st_size for file in files) // SHARE)
    forget(files)
    with control_group(limit) as group:
        return {"limit": limit} | asked(folder, group)


STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "build": build_anew,
    "ask": asked,
    "cold": cold,
    "append": append,
}


def ask(folder: str) -> None:
    """Ask every kind of question, those about test triples after some that do not count; print the times."""
    torch.set_num_threads(1)
    set_search_threads(1)
    start = time.perf_counter()
    attributor = open_index(Path(folder) / "index", device="cpu", verify=False)  # checksums would read all of it
    found: dict[str, Any] = {"open_seconds": time.perf_counter() - start, "kinds": {}}
    queries = read_triples(Path(folder) / "test.txt", attributor.vocabulary).ids.astype(np.int64)
    for triple in queries[:WARM_UP]:
        attributor.query(triple[None], top_k=TOP_K)
    for name, question in questions(attributor).items():
        found["kinds"][name] = timed(question, queries[WARM_UP:])
    print(json.dumps(found | {"memory": resident(os.getpid())}))


Question = Callable[[np.ndarray, np.ndarray], bool | None]
"""Asks about a test triple (3,), or about several (n, 3); returns whether the answer is certified, None if it need not
be."""


def questions(attributor: Attributor) -> dict[str, Question]:
    """Return the kinds of questions by their names in the table."""
    relation = int(np.bincount(attributor.training.triples[:, 1]).argmax())

    def query(triple: np.ndarray, _: np.ndarray, **options: Any) -> bool:
        (answer,) = attributor.query(triple[None], top_k=TOP_K, **options).attributions
        return answer.certified

    def aggregate(_: np.ndarray, several: np.ndarray, by: Any) -> bool:
        return attributor.aggregate(several, by, top_k=TOP_K).certified

    def self_influence(*_: np.ndarray) -> None:
        attributor.training.by_self_influence("preconditioned", TOP_K, "descending", Restriction())

    return {
        "top 10": query,
        "of the largest relation": partial(query, restriction=Restriction(must={"relation": {relation}})),
        "within one hop": partial(query, restriction=Restriction(within_hops=1)),
        "within two hops": partial(query, restriction=Restriction(within_hops=2)),
        "opponents": partial(query, order="opponents"),
        "largest absolute influence": partial(query, order="absolute"),
        f"sums by relation over {TOGETHER} test triples": partial(aggregate, by="relation"),
        f"top 10 over {TOGETHER} test triples": partial(aggregate, by="triple"),
        "self-influence, top 10": self_influence,
    }


def timed(question: Question, queries: np.ndarray) -> dict[str, Any]:
    """Ask about test triples (n, 3), one after the other, until the time is over."""
    milliseconds: list[float] = []
    certified: list[bool] = []
    end = time.perf_counter() + SECONDS
    for number, triple in enumerate(queries):
        start = time.perf_counter()
        if start > end:
            break
        answer = question(triple, np.roll(queries, -number, axis=0)[:TOGETHER])
        milliseconds.append(1e3 * (time.perf_counter() - start))
        certified += [] if answer is None else [answer]
    return {"milliseconds": spread(milliseconds), "asked": len(milliseconds), "certified": sum(certified),
            "certifiable": len(certified)}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    built, warm, chilled, added = (found[step] for step in STEPS)
    lines = [
        f"{found['triples']:,} training triples, {found['relation_triples']:,} of them of the largest relation and "
        f"{found['hub_triples']:,} with the largest hub as tail; {found['entities']:,} entities:",
        "",
        "| | seconds | triples/s | own memory, all resident | disk | at the peak, times that |",
        "|---|---|---|---|---|---|",
    ]
    for name, made, count, before in (
        ("build", built, found["triples"], 0),
        (f"append {found['added']:,}", added, found["added"], added["bytes_before"]),
    ):
        disk = made["bytes_on_disk"]
        lines.append(
            f"| {name} | {made['seconds']:,.0f} | {count / made['seconds']:,.0f} "
            f"| {_giga(made['peak_own_bytes'])}, {_giga(made['peak_resident_bytes'])} | {_giga(disk)} "
            f"| {(made['peak_bytes_on_disk'] - before) / disk:.2f} |"
        )
    lines += [
        "",
        f"| ms by the default score: median, 90 %, largest | index in memory | cold, in {_giga(chilled['limit'])} "
        "| certified |",
        "|---|---|---|---|",
    ]
    for name, one in warm["kinds"].items():
        other = chilled["kinds"][name]
        lines.append(f"| {name} | {_times(one)} | {_times(other)} | {_certified(one)}, {_certified(other)} |")
    lines += ["", f"Own memory of the process that asked: {_giga(warm['memory']['RssAnon'])}, cold "
              f"{_giga(chilled['memory']['RssAnon'])}."]  # fmt: skip
    return "\n".join(lines)


def _times(one: dict[str, Any]) -> str:
    return ", ".join(f"{one['milliseconds'][name]:,.1f}" for name in ("median", "p90", "max"))


def _certified(one: dict[str, Any]) -> str:
    return f"{one['certified']} of {one['certifiable']}" if one["certifiable"] else "read, not searched"


def _giga(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


if __name__ == "__main__":
    main()
