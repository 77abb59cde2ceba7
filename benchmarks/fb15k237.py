"""FB15k-237 from model folder to certified answers over HTTP, with every claim checked against the full scan.

    python -m benchmarks.fb15k237            # all of it; about 5 minutes on two cores
    python -m benchmarks.fb15k237 --queries 20 --dataset CoDEx-S --model conve-codex-s
    python -m benchmarks.fb15k237 --tracin --name fb15k237-tracin-cpu    # plain influence of bce instead of the default

Reads models and data sets from the folder in KGTRACE_SHARED. Writes ``benchmarks/results/NAME.json`` and prints a table.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgtrace_indexer import Attributor, open_index, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples

SHARED = Path(os.environ.get("KGTRACE_SHARED", "../shared"))
RESULTS = Path(__file__).parent / "results"
KGTRACE = Path(sys.executable).parent / "kgtrace"
TOP_K = 10
BLOCK = 2048
LOOP_TRIPLES = 60
TRACIN_OPTIONS = ("--score", "tracin")
"""What of ``kgtrace build`` makes the index answer with plain influence unless it is asked for the other score."""


def main() -> None:
    """Run the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="FB15k-237")
    parser.add_argument("--model", default="conve-fb15k-237")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--tracin", action="store_true", help="build with --score tracin")
    parser.add_argument("--name", default="fb15k237-cpu")
    args = parser.parse_args()
    folder = SHARED / "models" / args.model
    vocabulary, _ = read_training_folder(folder / "training_triples")
    test = read_triples(SHARED / "data" / args.dataset / "test.txt", vocabulary, skip_unknown=True).ids
    queries = test[np.random.default_rng(0).choice(len(test), args.queries, replace=False)].astype(np.int64)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "index"
        found: dict[str, Any] = {"machine": machine(), "dataset": args.dataset, "model": args.model}
        found["build"] = measure_build(folder, root, *(TRACIN_OPTIONS if args.tracin else ()))
        with serving(root) as address:
            found["http"], answers = measure_http(address, queries)
            found["budget"] = measure_budget(address, queries)
        attributor = open_index(root, device="cpu")
        found["in_process"] = measure_in_process(attributor, queries)
        found["exact"] = compare_with_exact(attributor, queries, answers)
        found["bounds"] = count_violations(attributor, queries)
        found["loop"] = measure_loop(folder, queries[0], len(attributor), found["http"]["milliseconds"]["median"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": os.cpu_count(),
        "cpu": cpu[1] if cpu else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measure_build(folder: Path, root: Path, *options: str) -> dict[str, Any]:
    """Build as a user does, in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(
        [KGTRACE, "build", "--model", folder, "--index", root, "--device", "cpu", "--json", *options],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    report = json.loads(done.stdout)
    return {
        "seconds": seconds,
        "stages": report["seconds"],
        "triples": report["triples"],
        "triples_per_second": report["triples"] / seconds,
        "bytes_on_disk": report["bytes"],
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Serve an index on a free port of this machine."""
    server = subprocess.Popen(
        [KGTRACE, "serve", "--index", root, "--port", "0", "--device", "cpu"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = server.stdout.readline() if server.stdout else ""
        address = line.split(" at ")[1].split()[0]
        wait_until(lambda: status(f"{address}/readyz") == 200, seconds=120)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def status(url: str) -> int:
    """Return the HTTP status of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Ask again and again until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not ready after {seconds} s")
        time.sleep(0.1)


def post(address: str, triple: np.ndarray, **options: Any) -> dict[str, Any]:
    """Ask for the influences of one triple."""
    head, relation, tail = triple.tolist()
    body = {"triples": [{"head": head, "relation": relation, "tail": tail}], "top_k": TOP_K, **options}
    request = urllib.request.Request(
        f"{address}/v1/influences", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)["results"][0]
        return answer


def measure_http(address: str, queries: np.ndarray) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask one triple after the other."""
    for triple in queries[:5]:
        post(address, triple)
    answers, milliseconds = [], []
    for triple in queries:
        start = time.perf_counter()
        answers.append(post(address, triple))
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {
        "queries": len(queries),
        "certified": sum(answer["certified"] for answer in answers),
        "milliseconds": spread(milliseconds),
        "candidates": spread([answer["candidates"] for answer in answers]),
        "exact_terms": spread([answer["exact_terms"] for answer in answers]),
    }, answers


def measure_budget(address: str, queries: np.ndarray) -> dict[str, Any]:
    """Ask with a budget that is too small: what is not proved must not be called certified."""
    answers = [post(address, triple, max_candidates=20) for triple in queries]
    gaps = [answer["bound_gap"] for answer in answers]
    return {
        "max_candidates": 20,
        "certified": sum(answer["certified"] for answer in answers),
        "gap_agrees": all((gap == 0) == answer["certified"] for gap, answer in zip(gaps, answers, strict=True)),
    }


def measure_in_process(attributor: Attributor, queries: np.ndarray) -> dict[str, Any]:
    """Ask the engine itself, beside one forward and backward pass of the same triple."""
    attributor.query(queries[:1])
    single, stages = [], []
    for triple in queries:
        start = time.perf_counter()
        answer = attributor.query(triple[None], top_k=TOP_K)
        single.append(1e3 * (time.perf_counter() - start))
        stages.append((answer.seconds.gradient, answer.seconds.search, answer.seconds.rerank))
    start = time.perf_counter()
    attributor.query(queries, top_k=TOP_K)
    batch = 1e3 * (time.perf_counter() - start) / len(queries)
    means = dict(zip(("gradient", "search", "rerank"), (1e3 * np.mean(stages, 0)).tolist(), strict=True))
    return {"milliseconds": spread(single), "mean_milliseconds_by_stage": means, "batch_milliseconds_a_query": batch}


def compare_with_exact(attributor: Attributor, queries: np.ndarray, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare what HTTP answered with the full scan."""
    start = time.perf_counter()
    exact = attributor.query(queries, top_k=TOP_K, exact=True).attributions
    seconds = time.perf_counter() - start
    worst, different = 0.0, 0
    for answer, truth in zip(answers, exact, strict=True):
        influence = np.array([i["influence"] for i in answer["influences"]])
        index = np.array([i["train_index"] for i in answer["influences"]])
        worst = max(worst, float((np.abs(influence - truth.influence) / np.abs(truth.influence)).max()))
        tied = np.isclose(influence, truth.influence, rtol=1e-4)
        different += int(not (tied.all() and len(set(index) ^ set(truth.train_index)) == 0))
    return {"seconds": seconds, "worst_relative_error": worst, "answers_with_other_ids": different}


def count_violations(attributor: Attributor, queries: np.ndarray) -> dict[str, Any]:
    """Compare both bounds with the exact influence for every pair of training and test triple."""
    index, factor, pairs, tightest = 0, 0, 0, np.inf
    rows = np.arange(len(attributor))
    for block in np.split(rows, range(16 * BLOCK, len(rows), 16 * BLOCK)):
        exact = np.concatenate(
            [attributor.exact_influences(queries, part) for part in np.split(block, range(BLOCK, len(block), BLOCK))]
        )
        for triple, truth in zip(queries, exact.T, strict=True):
            upper, low, high = attributor.bounds(triple, block)
            index += int((upper < truth).sum())
            factor += int(((low > truth) | (high < truth)).sum())
            wide = high > low  # others have no influence, and bounds that say so
            tightest = min(tightest, float(((high - truth)[wide] / (high - low)[wide]).min(initial=np.inf)))
            pairs += len(block)
    return {"pairs": pairs, "index_bound": index, "factor_bound": factor, "smallest_margin_of_interval": tightest}


def measure_loop(folder: Path, query: np.ndarray, triples: int, milliseconds: float) -> dict[str, Any]:
    """Time the plain loop, one forward and backward pass and one full dot product a training triple, on a slice."""
    model = torch.load(folder / "trained_model.pkl", weights_only=False).eval()
    parameters = list(model.parameters())

    def gradient(triple: np.ndarray) -> list[torch.Tensor]:
        head, relation, tail = triple.tolist()
        score = model.score_hrt(torch.tensor([[head, 2 * relation, tail]]))
        return list(torch.autograd.grad(torch.nn.functional.softplus(-score).sum(), parameters))

    _, table = read_training_folder(folder / "training_triples")
    target = gradient(query)
    chosen = table.ids[np.random.default_rng(1).choice(len(table.ids), LOOP_TRIPLES)].astype(np.int64)
    start = time.perf_counter()
    for triple in chosen:
        sum(float((a * b).sum()) for a, b in zip(gradient(triple), target, strict=True))
    each = 1e3 * (time.perf_counter() - start) / LOOP_TRIPLES
    return {
        "timed_triples": LOOP_TRIPLES,
        "milliseconds_a_triple": each,
        "extrapolated_hours_a_query": each * triples / 3.6e6,
        "times_slower_than_http": each * triples / milliseconds,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median, mean, 90 % quantile and maximum."""
    return {
        "median": float(np.median(values)), "mean": float(np.mean(values)),
        "p90": float(np.quantile(values, 0.9)), "max": float(np.max(values)),
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    build, http, exact, bounds, loop = (found[k] for k in ("build", "http", "exact", "bounds", "loop"))
    ms, candidates, inside = http["milliseconds"], http["candidates"], found["in_process"]
    rows = [
        ("build", f"{build['seconds']:.0f} s, {build['triples_per_second']:,.0f} triples/s"),
        ("peak memory of the build", f"{build['peak_resident_bytes'] / 2**20:,.0f} MiB"),
        ("on disk", f"{build['bytes_on_disk'] / 2**20:,.0f} MiB ({build['bytes_on_disk'] / build['triples']:,.0f} B a triple)"),
        ("certified", f"{http['certified']} of {http['queries']}"),
        (f"certified with max_candidates {found['budget']['max_candidates']}", f"{found['budget']['certified']} of {http['queries']}"),
        ("one query over HTTP", f"median {ms['median']:.1f} ms, 90 % {ms['p90']:.1f} ms, max {ms['max']:.0f} ms"),
        ("one query in process", f"median {inside['milliseconds']['median']:.1f} ms"),
        ("candidates a query", f"median {candidates['median']:,.0f}, 90 % {candidates['p90']:,.0f}, max {candidates['max']:,.0f}"),
        ("exact influences a query", f"median {http['exact_terms']['median']:.0f}, 90 % {http['exact_terms']['p90']:.0f}"),
        ("answers that differ from the full scan", f"{exact['answers_with_other_ids']}"),
        ("largest relative error of an influence", f"{exact['worst_relative_error']:.1e}"),
        ("bounds violated", f"{bounds['index_bound']} and {bounds['factor_bound']} of {bounds['pairs']:,} pairs"),
        ("plain loop", f"{loop['milliseconds_a_triple']:.0f} ms a triple, so {loop['extrapolated_hours_a_query']:.1f} h a query"),
        ("plain loop over HTTP query", f"{loop['times_slower_than_http']:,.0f} ×"),
    ]  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


if __name__ == "__main__":
    main()
