"""FB15k-237 from model folder to certified answers over HTTP, with every claim checked against the full scan.

    python -m benchmarks.fb15k237            # all of it; about 10 minutes on two cores
    python -m benchmarks.fb15k237 --queries 20 --dataset CoDEx-S --model conve-codex-s

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
from kgtrace_indexer.names import Score

SHARED = Path(os.environ.get("KGTRACE_SHARED", "../shared"))
RESULTS = Path(__file__).parent / "results"
KGTRACE = Path(sys.executable).parent / "kgtrace"
TOP_K = 10
BLOCK = 2048
LOOP_TRIPLES = 60
SCORES: tuple[Score, Score] = ("preconditioned", "tracin")
TRACIN_OPTIONS = ("--score", "tracin")
"""What of ``kgtrace build`` makes the index answer with plain influence unless it is asked for the other score."""


def main() -> None:
    """Run the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="FB15k-237")
    parser.add_argument("--model", default="conve-fb15k-237")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--name", default="fb15k237-cpu")
    args = parser.parse_args()
    folder = SHARED / "models" / args.model
    vocabulary, _ = read_training_folder(folder / "training_triples")
    test = read_triples(SHARED / "data" / args.dataset / "test.txt", vocabulary, skip_unknown=True).ids
    queries = test[np.random.default_rng(0).choice(len(test), args.queries, replace=False)].astype(np.int64)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "index"
        found: dict[str, Any] = {"machine": machine(), "dataset": args.dataset, "model": args.model}
        found["build"] = measure_build(folder, root)
        attributor = open_index(root, device="cpu")
        for score in SCORES:
            one = found[score] = {}
            with serving(root) as address:
                one["http"], answers = measure_http(address, queries, score)
                one["budget"] = measure_budget(address, queries, score)
            one["in_process"] = measure_in_process(attributor, queries, score)
            one["exact"] = compare_with_exact(attributor, queries, answers, score)
            one["bounds"] = count_violations(attributor, queries, score)
        found["loop"] = measure_loop(folder, queries[0], len(attributor))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu[1] if cpu else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measure_build(folder: Path, root: Path, *options: str, device: str = "cpu") -> dict[str, Any]:
    """Build as a user does, in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(
        [KGTRACE, "build", "--model", folder, "--index", root, "--device", device, "--json", *options],
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


def measure_http(address: str, queries: np.ndarray, score: Score) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask one triple after the other."""
    for triple in queries[:5]:
        post(address, triple, score=score)
    answers, milliseconds = [], []
    for triple in queries:
        start = time.perf_counter()
        answers.append(post(address, triple, score=score))
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {
        "queries": len(queries),
        "certified": sum(answer["certified"] for answer in answers),
        "milliseconds": spread(milliseconds),
        "candidates": spread([answer["candidates"] for answer in answers]),
        "exact_terms": spread([answer["exact_terms"] for answer in answers]),
    }, answers


def measure_budget(address: str, queries: np.ndarray, score: Score) -> dict[str, Any]:
    """Ask with a budget that is too small: what is not proved must not be called certified."""
    answers = [post(address, triple, max_candidates=20, score=score) for triple in queries]
    gaps = [answer["bound_gap"] for answer in answers]
    return {
        "max_candidates": 20,
        "certified": sum(answer["certified"] for answer in answers),
        "gap_agrees": all((gap == 0) == answer["certified"] for gap, answer in zip(gaps, answers, strict=True)),
    }


def measure_in_process(attributor: Attributor, queries: np.ndarray, score: Score) -> dict[str, Any]:
    """Ask the engine itself, beside one forward and backward pass of the same triple."""
    attributor.query(queries[:1], score=score)
    single, stages = [], []
    for triple in queries:
        start = time.perf_counter()
        answer = attributor.query(triple[None], top_k=TOP_K, score=score)
        single.append(1e3 * (time.perf_counter() - start))
        stages.append((answer.seconds.gradient, answer.seconds.search, answer.seconds.rerank))
    start = time.perf_counter()
    attributor.query(queries, top_k=TOP_K, score=score)
    batch = 1e3 * (time.perf_counter() - start) / len(queries)
    means = dict(zip(("gradient", "search", "rerank"), (1e3 * np.mean(stages, 0)).tolist(), strict=True))
    return {"milliseconds": spread(single), "mean_milliseconds_by_stage": means, "batch_milliseconds_a_query": batch}


def compare_with_exact(
    attributor: Attributor, queries: np.ndarray, answers: list[dict[str, Any]], score: Score
) -> dict[str, Any]:
    """Compare what HTTP answered with the full scan: the influences that rank, and those by the other score."""
    start = time.perf_counter()
    exact = attributor.query(queries, top_k=TOP_K, score=score, exact=True).attributions
    seconds = time.perf_counter() - start
    worst, different = 0.0, 0
    for answer, truth in zip(answers, exact, strict=True):
        influence = np.array([i["influence"] for i in answer["influences"]])
        index = np.array([i["train_index"] for i in answer["influences"]])
        for name in SCORES:
            value, wanted = np.array([i[name] for i in answer["influences"]]), getattr(truth, name)
            if np.array_equal(index, truth.train_index):
                worst = max(worst, float(np.abs(value - wanted).max() / max(np.abs(wanted).max(), 1e-30)))
        tied = np.isclose(influence, truth.influence, rtol=1e-4)
        different += int(not (tied.all() and len(set(index) ^ set(truth.train_index)) == 0))
    return {"seconds": seconds, "worst_relative_error": worst, "answers_with_other_ids": different}


def count_violations(attributor: Attributor, queries: np.ndarray, score: Score) -> dict[str, Any]:
    """Compare both bounds with the exact influence for every pair of training and test triple."""
    index, factor, pairs, tightest = 0, 0, 0, np.inf
    rows = np.arange(len(attributor))
    for block in np.split(rows, range(16 * BLOCK, len(rows), 16 * BLOCK)):
        exact = np.concatenate(
            [
                attributor.exact_influences(queries, part, score=score)
                for part in np.split(block, range(BLOCK, len(block), BLOCK))
            ]
        )
        for triple, truth in zip(queries, exact.T, strict=True):
            upper, low, high = attributor.bounds(triple, block, score=score)
            index += int((upper < truth).sum())
            factor += int(((low > truth) | (high < truth)).sum())
            wide = high > low  # others have no influence, and bounds that say so
            tightest = min(tightest, float(((high - truth)[wide] / (high - low)[wide]).min(initial=np.inf)))
            pairs += len(block)
    return {"pairs": pairs, "index_bound": index, "factor_bound": factor, "smallest_margin_of_interval": tightest}


def measure_loop(folder: Path, query: np.ndarray, triples: int) -> dict[str, Any]:
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
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median, mean, 90 % quantile and maximum."""
    return {
        "median": float(np.median(values)), "mean": float(np.mean(values)),
        "p90": float(np.quantile(values, 0.9)), "max": float(np.max(values)),
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown, a column for each score."""
    build, loop = found["build"], found["loop"]
    hours = loop["extrapolated_hours_a_query"]
    shared = [
        ("build", f"{build['seconds']:.0f} s, {build['triples_per_second']:,.0f} triples/s"),
        ("peak memory of the build", f"{build['peak_resident_bytes'] / 2**20:,.0f} MiB"),
        ("on disk", f"{build['bytes_on_disk'] / 2**20:,.0f} MiB ({build['bytes_on_disk'] / build['triples']:,.0f} B a triple)"),
        ("plain loop", f"{loop['milliseconds_a_triple']:.0f} ms a triple, so {hours:.1f} h a query"),
    ]  # fmt: skip
    columns = []
    for score in SCORES:
        http, budget, inside, exact, bounds = (
            found[score][name] for name in ("http", "budget", "in_process", "exact", "bounds")
        )
        ms, candidates, terms = http["milliseconds"], http["candidates"], http["exact_terms"]
        columns.append([
            ("certified", f"{http['certified']} of {http['queries']}"),
            (f"certified with max_candidates {budget['max_candidates']}", f"{budget['certified']} of {http['queries']}"),
            ("one query over HTTP", f"median {ms['median']:.1f} ms, 90 % {ms['p90']:.1f} ms, max {ms['max']:.0f} ms"),
            ("one query in process", f"median {inside['milliseconds']['median']:.1f} ms"),
            (f"a query of {http['queries']} together, in process", f"{inside['batch_milliseconds_a_query']:.1f} ms"),
            ("candidates a query", f"median {candidates['median']:,.0f}, 90 % {candidates['p90']:,.0f}, max {candidates['max']:,.0f}"),
            ("exact influences a query", f"median {terms['median']:.0f}, 90 % {terms['p90']:.0f}"),
            ("answers that differ from the full scan", f"{exact['answers_with_other_ids']}"),
            ("largest error of an influence by either score, over the answer's largest", f"{exact['worst_relative_error']:.1e}"),
            ("bounds violated", f"{bounds['index_bound']} and {bounds['factor_bound']} of {bounds['pairs']:,} pairs"),
            ("plain loop over HTTP query", f"{hours * 3.6e6 / ms['median']:,.0f} ×"),
        ])  # fmt: skip
    rows = [(name, value, "the same index") for name, value in shared]
    rows += [(name, one, other) for (name, one), (_, other) in zip(*columns, strict=True)]
    rows = [(name, value, "" if name == "plain loop" else other) for name, value, other in rows]
    return "\n".join(["| | default | `--score tracin` |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    main()
