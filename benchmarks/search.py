"""Search back ends by size and batch: milliseconds, memory, and what each bound lets through.

    python -m benchmarks.search                      # builds the index of FB15k-237 first; about 20 minutes on two cores
    python -m benchmarks.search --index INDEX --max 1000000

The codes are those of a real index; larger sizes repeat them, each number changed at random by up to 5 %. Queries are
test triples. All back ends run in one process with the same threads, one after the other, and look for the 64 largest
inner products. Reads models and data sets from the folder in KGTRACE_SHARED. Writes ``benchmarks/results/NAME.json``
and a table of ``docs/growth.md``.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.fb15k237 import KGTRACE, RESULTS, SHARED, TRACIN_OPTIONS, machine
from benchmarks.pages import DOCS, replace
from kgtrace_indexer import Attributor, open_index, read_model, read_triples
from kgtrace_indexer.index.codec import read_codec
from kgtrace_indexer.index.short_code import WIDTH, ShortCode
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.transfers import to_host
from kgtrace_store import FaissSearch, IndexRoot, layout
from kgtrace_store.arrays import open_arrays
from kgtrace_store.search import set_search_threads

MODEL, DATASET = "conve-fb15k-237", "FB15k-237"
SIZES = (0, 2_000_000, 10_000_000)
"""Triples; 0 means as many as the index holds."""
BATCHES = (1, 16, 256)
HITS = 64
RERANKED = 10 * HITS
TOP_K = 10
JITTER = 0.05
_BLOCK = 1 << 17
"""Codes made, or multiplied, at a time."""
_REPETITIONS = 5
_SECONDS = 6.0
"""Of repetitions of one measurement, about."""

Search = Callable[[np.ndarray], np.ndarray]
"""Maps row numbers of queries (b,) to the ids of hits, (b, HITS)."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of triples, or what they are asked with."""

    whole: np.ndarray
    """(n, k + B) float32, by descending energy: as IndexFlatIPPanorama needs it."""
    short: np.ndarray
    """(n, WIDTH) float32 of bfloat16 values, or of any in a query."""


def main() -> None:
    """Measure all back ends at all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="an index of FB15k-237 (default: one is built)")
    parser.add_argument("--max", type=int, default=SIZES[-1], metavar="N", help="leave out larger sizes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="search-cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_search_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = args.index or build(Path(folder))
        attributor = open_index(root, device="cpu", verify=False)
        test = read_triples(SHARED / "data" / DATASET / "test.txt", attributor.vocabulary, skip_unknown=True).ids
        triples = test[np.random.default_rng(0).choice(len(test), BATCHES[-1], replace=False)].astype(np.int64)
        codes, queries = codes_of(root, attributor, triples)
        thresholds = np.array([each.influence[-1] for each in attributor.query(triples, top_k=TOP_K).attributions])
        found: dict[str, Any] = {
            "machine": machine(),
            "threads": args.threads,
            "faiss": faiss.__version__,
            "through": let_through(codes, queries, thresholds),
            "sizes": {},
        }
        for size in SIZES:
            if size <= args.max:
                found["sizes"][size or len(attributor)] = measure(enlarged(codes, size), queries, thresholds)
                RESULTS.mkdir(exist_ok=True)
                (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    if args.name == "search-cpu":
        replace(DOCS / "growth.md", "search", table(found))


def build(folder: Path) -> Path:
    """Build the index as a user does."""
    root = folder / "index"
    subprocess.run(
        [KGTRACE, "build", "--model", SHARED / "models" / MODEL, "--index", root, "--device", "cpu", "--json",
         *TRACIN_OPTIONS],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return root


def codes_of(root: Path, attributor: Attributor, triples: np.ndarray) -> tuple[Codes, Codes]:
    """Return the codes of all training triples of an index, and of test triples."""
    with IndexRoot(root).open(verify=False) as generation:
        configuration = generation.manifest.configuration
        model = read_model(generation.path / layout.MODEL)
        codec = read_codec(configuration, open_arrays(generation.path / layout.GRADIENTS), torch.device("cpu"))
    featurizer = featurizer_for(model, configuration, torch.device("cpu"), attributor.training.known)
    with torch.inference_mode():
        asked = to_host(codec.join([codec.encode(featurizer.test_terms(triples, "tail"), None)]))()
    stored = {name: attributor.files.stacks()[name].pieces[0].numpy() for name in codec.searched}
    short = ShortCode.choose(np.square(stored["projected"], dtype=np.float64).sum(0))
    whole = np.concatenate([stored["projected"], stored["residual"]], 1)
    order = np.argsort(-np.square(whole, dtype=np.float64).sum(0), kind="stable")
    return (
        Codes(np.ascontiguousarray(whole[:, order]), short.stored(stored["projected"], stored["residual"])),
        Codes(
            np.ascontiguousarray(np.concatenate([asked["projected"], asked["residual"]], 1)[:, order]),
            short.query_vectors(asked["projected"], asked["residual"]),
        ),
    )


def enlarged(codes: Codes, size: int) -> Codes:
    """Return `size` codes: those that there are, again and again, a little different each time."""
    if not size:
        return codes
    rng = np.random.default_rng(0)

    def repeated(rows: np.ndarray) -> np.ndarray:
        found = np.empty((size, rows.shape[1]), np.float32)
        for start in range(0, size, _BLOCK):
            block = found[start : start + _BLOCK]
            rng.random(out=block, dtype=np.float32)
            block *= 2 * JITTER
            block += 1 - JITTER
            block *= rows[np.arange(start, start + len(block)) % len(rows)]
        return found

    return Codes(repeated(codes.whole), repeated(codes.short))


def let_through(codes: Codes, queries: Codes, thresholds: np.ndarray) -> dict[str, Any]:
    """Count the triples whose bound reaches the k-th influence of the certified answer."""
    found = {}
    for name, rows, asked in (("whole", codes.whole, queries.whole), ("short", codes.short, queries.short)):
        counts = np.array(
            [int((rows @ query >= threshold).sum()) for query, threshold in zip(asked, thresholds, strict=True)]
        )
        found[name] = {
            "bytes": rows.shape[1] * (4 if name == "whole" else 2),
            "mean": float(counts.mean()),
            "median": float(np.median(counts)),
            "p90": float(np.quantile(counts, 0.9)),
            "max": int(counts.max()),
        }
    return found


def measure(codes: Codes, queries: Codes, thresholds: np.ndarray) -> dict[str, Any]:
    """Measure each back end in turn; only one is in memory at a time."""
    found: dict[str, Any] = {}
    truth: np.ndarray | None = None
    for name, backend in BACKENDS.items():
        start = time.perf_counter()
        with backend(codes, queries) as (search, size):
            each: dict[str, Any] = {
                "build_seconds": time.perf_counter() - start,
                "bytes_a_triple": size / len(codes.whole),
            }
            each["milliseconds_a_query"] = {batch: timed(search, batch) for batch in BATCHES}
            if "whole" in name:
                hits = search(np.arange(BATCHES[-1]))
                truth = hits if truth is None else truth
                each["recall"] = float(
                    np.mean([len(np.intersect1d(a, b)) / HITS for a, b in zip(hits, truth, strict=True)])
                )
        found[name] = each
        print(name, json.dumps(each), flush=True)
    index = FaissSearch.build(iter([codes.short]), len(codes.short), WIDTH, half=True)
    milliseconds = []
    for query, threshold in zip(queries.short[:50], thresholds[:50], strict=True):
        start = time.perf_counter()
        index.range_search(query, float(threshold))
        milliseconds.append(1e3 * (time.perf_counter() - start))
    found[RANGE] = {"bytes_a_triple": 2.0 * WIDTH, "milliseconds_a_query": {1: float(np.median(milliseconds))}}
    return found


def timed(search: Search, batch: int) -> float:
    """Return the median milliseconds a query of a few repetitions, after one that does not count."""
    rows = np.arange(BATCHES[-1])
    search(rows[:batch])
    seconds: list[float] = []
    while len(seconds) < _REPETITIONS and sum(seconds) < _SECONDS:
        start = time.perf_counter()
        search(np.roll(rows, -batch * len(seconds))[:batch])
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds)) / batch


@contextmanager
def flat(codes: Codes, queries: Codes) -> Iterator[tuple[Search, int]]:
    """FAISS's exhaustive index over whole codes."""
    index = faiss.IndexFlatIP(codes.whole.shape[1])
    index.add(codes.whole)
    yield lambda rows: index.search(queries.whole[rows], HITS)[1], written(index)


@contextmanager
def panorama(codes: Codes, queries: Codes) -> Iterator[tuple[Search, int]]:
    """The same, which leaves a vector as soon as the norm of the rest says that it is no hit."""
    index = faiss.IndexFlatIPPanorama(codes.whole.shape[1], 8, 128)
    index.add(codes.whole)
    yield lambda rows: index.search(queries.whole[rows], HITS)[1], written(index)


@contextmanager
def half(codes: Codes, queries: Codes) -> Iterator[tuple[Search, int]]:
    """What an index holds: short codes in bfloat16."""
    index = FaissSearch.build(iter([codes.short]), len(codes.short), WIDTH, half=True)
    yield lambda rows: index.search(queries.short[rows], HITS)[1], 2 * codes.short.size


@contextmanager
def rabitq(codes: Codes, queries: Codes) -> Iterator[tuple[Search, int]]:
    """A bit for each number; the best are ranked again by whole codes, which then are on disk at best."""
    index = faiss.IndexRaBitQFastScan(codes.whole.shape[1], faiss.METRIC_INNER_PRODUCT)
    index.train(codes.whole[:: max(1, len(codes.whole) // 100_000)])
    index.add(codes.whole)

    def search(rows: np.ndarray) -> np.ndarray:
        asked = queries.whole[rows]
        _, ids = index.search(asked, RERANKED)
        scores = np.einsum("bmk,bk->bm", codes.whole[ids], asked)
        best = np.argpartition(-scores, HITS, axis=1)[:, :HITS]
        return np.take_along_axis(ids, best, 1)

    yield search, written(index)


@contextmanager
def product(stored: np.ndarray, asked: np.ndarray) -> Iterator[tuple[Search, int]]:
    """Matrix products of blocks of codes, and the best of each."""
    blocks, queries = torch.from_numpy(stored).split(_BLOCK), torch.from_numpy(asked)

    def search(rows: np.ndarray) -> np.ndarray:
        some = queries[torch.from_numpy(rows)]
        scores, ids = [], []
        for i, block in enumerate(blocks):
            best = torch.mm(some, block.T).topk(min(HITS, len(block)))
            scores.append(best.values)
            ids.append(best.indices + i * _BLOCK)
        best = torch.cat(scores, 1).topk(HITS)
        found: np.ndarray = torch.cat(ids, 1).gather(1, best.indices).numpy()
        return found

    yield search, stored.nbytes


def written(index: Any) -> int:
    """Return the bytes of a FAISS index."""
    sizes: list[int] = []

    def count(data: bytes) -> int:
        sizes.append(len(data))
        return len(data)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count))
    return sum(sizes)


BACKENDS = {
    "whole codes, IndexFlatIP": flat,
    **({"whole codes, IndexFlatIPPanorama": panorama} if hasattr(faiss, "IndexFlatIPPanorama") else {}),
    "whole codes, torch.mm": lambda codes, queries: product(codes.whole, queries.whole),
    **({"whole codes, IndexRaBitQFastScan, ×10 again": rabitq} if hasattr(faiss, "IndexRaBitQFastScan") else {}),
    "short codes, bfloat16 (ours)": half,
    "short codes, torch.mm": lambda codes, queries: product(codes.short, queries.short),
}
RANGE = "short codes, bfloat16, all above the threshold (ours)"


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = []
    for size, backends in found["sizes"].items():
        lines += [
            f"| {int(size):,} triples | B a triple | "
            + " | ".join(f"ms, batch {batch}" for batch in BATCHES)
            + " | recall |",
            "|---|" + "---|" * (len(BATCHES) + 2),
        ]
        for name, each in backends.items():
            ms = {int(batch): value for batch, value in each["milliseconds_a_query"].items()}
            cells = [f"{ms[batch]:.3g}" if batch in ms else "" for batch in BATCHES]
            recall = f"{each['recall']:.3f}" if "recall" in each else ""
            lines.append(f"| {name} | {each['bytes_a_triple']:.0f} | " + " | ".join(cells) + f" | {recall} |")
        lines.append("")
    lines += ["| bound | B a triple | lets through, mean | median | 90 % | max |", "|---|---|---|---|---|---|"]
    for name, each in found["through"].items():
        lines.append(
            f"| {name} codes | {each['bytes']} | {each['mean']:,.0f} | {each['median']:,.0f} | {each['p90']:,.0f} | {each['max']:,} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
