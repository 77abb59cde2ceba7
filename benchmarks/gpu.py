"""What a GPU does: equal to the CPU first, then the rates of builds, single queries, batches and scans.

    python -m benchmarks.gpu                                              # minutes on a GPU
    python -m benchmarks.gpu --device cpu --model conve-codex-s --dataset CoDEx-S      # a trial of the script itself

Answers of one index on the GPU and on the CPU are compared before anything is timed. Where FAISS has its GPU build its
exhaustive search stands beside the products of torch that kgtrace uses. Reads models and data sets from the folder in
KGTRACE_SHARED. Writes ``benchmarks/results/gpu-DEVICE.json``, named after the device, and prints a table.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.fb15k237 import RESULTS, SCORES, SHARED, machine, measure_build
from kgtrace_indexer import Attributor, open_index
from kgtrace_indexer.index.device_search import TorchSearch
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store import FaissSearch, IndexRoot, layout

COMPARED, SCANNED = 64, 256
BATCHES = (1, 256, 1024)
HITS = 64
_SECONDS = 3.0
"""Of repetitions of one measurement, about."""


def main() -> None:
    """Compare, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dataset", default="FB15k-237")
    parser.add_argument("--model", default="conve-fb15k-237")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    found: dict[str, Any] = {"machine": machine(), "device": name, "model": args.model, "build": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = SHARED / "models" / args.model
        for layers in ("all", "last:2"):
            root = Path(temporary) / layers
            found["build"][layers] = measure_build(folder, root, "--layers", layers, device=args.device)
        root = Path(temporary) / "all"
        on_device, on_cpu = open_index(root, device=args.device), open_index(root, device="cpu", verify=False)
        test = read_triples(SHARED / "data" / args.dataset / "test.txt", on_cpu.vocabulary, skip_unknown=True).ids
        test = test[np.random.default_rng(0).permutation(len(test))].astype(np.int64)
        found["equal"] = {score: compared(on_device, on_cpu, test[:COMPARED], score) for score in SCORES}
        found["queries"] = {
            score: {batch: per_second(on_device, test[:batch], score=score) for batch in BATCHES} for score in SCORES
        }
        found["scans"] = {score: per_second(on_device, test[:SCANNED], score=score, exact=True) for score in SCORES}
        found["search"] = searches(root, args.device)
    file = RESULTS / f"gpu-{name.lower().replace(' ', '-')}.json"
    if args.device == "cuda":
        file.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


def compared(one: Attributor, other: Attributor, test: np.ndarray, score: Any) -> dict[str, float]:
    """Return the largest relative difference of answers, and how many are certified."""
    answers = [attributor.query(test, score=score).attributions for attributor in (one, other)]
    pairs = list(zip(*answers, strict=True))
    return {
        "difference": max(float(np.abs(a.influence / b.influence - 1).max()) for a, b in pairs),
        "certified": sum(a.certified for a, _ in pairs),
    }


def per_second(attributor: Attributor, test: np.ndarray, **options: Any) -> float:
    """Return how many test triples are answered a second, all of them at once."""
    return len(test) / seconds(lambda: attributor.query(test, **options))


def seconds(function: Callable[[], object]) -> float:
    """Return the median time of a call, after one that is not timed; it ends on the CPU, so nothing else is waited for."""
    function()
    times = list[float]()
    while len(times) < 3 or (sum(times) < _SECONDS and len(times) < 100):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def searches(root: Path, device: str) -> dict[str, dict[int, float]]:
    """Return milliseconds of a search of all short codes for a batch, by torch's products and, if it can, by FAISS."""
    with IndexRoot(root).open(verify=False) as generation:
        stored = FaissSearch.read(generation.path / layout.SEARCH)
    vectors = np.concatenate(list(stored.vectors()))
    ways: dict[str, Any] = {"torch": TorchSearch.of(stored, torch.device(device))}
    if getattr(faiss, "get_num_gpus", int)() > 0:
        flat = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), vectors.shape[1])
        flat.add(vectors)
        ways["FAISS"] = flat
    queries = vectors[np.random.default_rng(0).permutation(len(vectors))[: max(BATCHES)]]
    return {
        title: {
            batch: 1e3 * seconds(lambda way=way, batch=batch: way.search(queries[:batch], HITS)) for batch in BATCHES
        }
        for title, way in ways.items()
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = [f"| {found['device']}, {found['model']} | |", "|---|---|"]
    for layers, build in found["build"].items():
        rate, stage = build["triples_per_second"], build["triples"] / build["stages"]["gradients"]
        lines.append(f"| build, layers {layers}: all of it, gradient stage | {rate:,.0f}/s, {stage:,.0f}/s |")
    for score in SCORES:
        equal, rates = found["equal"][score], found["queries"][score]
        lines.append(f"| {score}: difference to the CPU, certified | {equal['difference']:.1e}, {equal['certified']} |")
        lines.append(f"| {score}: one query | {1e3 / rates[1]:.1f} ms |")
        lines += [f"| {score}: {batch} at once | {rates[batch]:,.0f}/s |" for batch in BATCHES[1:]]
        lines.append(f"| {score}: full scan for {SCANNED} | {SCANNED / found['scans'][score]:.2f} s |")
    for title, times in found["search"].items():
        lines.append(
            f"| {title}, {HITS} largest products | {', '.join(f'{b}: {t:.2f} ms' for b, t in times.items())} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
