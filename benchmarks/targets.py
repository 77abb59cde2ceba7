"""What kgtrace wants to reach on FB15k-237, beside what it reaches: every ratio from one run on one machine.

    python -m benchmarks.targets             # about 10 minutes on two cores

Reads models and data sets from the folder in KGTRACE_SHARED. Writes ``benchmarks/results/targets-cpu.json`` and the table
in ``docs/speed.md``. What is compared with a query or a build is measured beside it, in turns, for machines slow down and speed up.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvloop

from benchmarks import service
from benchmarks.fb15k237 import KGTRACE, RESULTS, SCORES, SHARED, TOP_K, machine, post, serving, spread
from benchmarks.pages import replace
from benchmarks.service import closed_loop, request, with_cpu
from kgtrace_indexer import open_index, read_model, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.names import Score

FOLDER = SHARED / "models" / "conve-fb15k-237"
BATCH = 256
ROUNDS = 5
CLIENTS = 64


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100)
    args = parser.parse_args()
    vocabulary, table = read_training_folder(FOLDER / "training_triples")
    test = read_triples(SHARED / "data" / "FB15k-237" / "test.txt", vocabulary, skip_unknown=True).ids
    queries = test[np.random.default_rng(0).choice(len(test), max(BATCH, args.queries), replace=False)].astype(np.int64)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found: dict[str, Any] = {
            "machine": machine(),
            "build": measure_builds(folder, table.ids.astype(np.int64)),
            "memory": measure_memory(folder),
            "query": measure_queries(folder / "all", queries, args.queries),
            "clients": measure_clients(folder / "all", queries),
        }
        found["query"]["bytes_in_memory"] = searched_bytes(folder / "all", found["build"]["triples"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "targets-cpu.json").write_text(json.dumps(found, indent=2) + "\n")
    replace(Path(__file__).parents[1] / "docs" / "speed.md", "targets", report(found))
    print(report(found))


def build(root: Path, *options: str) -> dict[str, Any]:
    """Build as a user does, in a process of its own; return its report, seconds and largest resident size."""
    start = time.perf_counter()
    command = [str(KGTRACE), "build", "--index", str(root), "--device", "cpu", "--json", "--fresh"]
    command += options
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    printed = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return json.loads(printed) | {"wall": time.perf_counter() - start, "peak_bytes": usage.ru_maxrss * 1024}


def measure_builds(folder: Path, ids: np.ndarray) -> dict[str, Any]:
    """Time both builds, each between two forward passes over the distinct (h, r) of both directions."""
    model = ConvE(read_model(FOLDER))
    relations = len(model.relations)
    forward, inverse = ids[:, 0] * relations + 2 * ids[:, 1], ids[:, 2] * relations + 2 * ids[:, 1] + 1
    pairs = torch.from_numpy(np.unique(np.concatenate([forward, inverse])))

    def passes() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in pairs.split(BATCH):
                model.compute(batch // relations, batch % relations)
        return time.perf_counter() - start

    passes()
    seconds, found = [passes()], {"triples": len(ids), "distinct_pairs": len(pairs)}
    for name, layers in (("all", "all"), ("last2", "last:2")):
        report = build(folder / name, "--model", str(FOLDER), "--layers", layers)
        seconds.append(passes())
        found[name] = {
            "seconds": report["wall"],
            "stages": report["seconds"],
            "peak_bytes": report["peak_bytes"],
            "bytes": report["bytes"],
            "share_of_forward_rate": float(np.mean(seconds[-2:])) / report["wall"],
            "share_of_forward_rate_gradients_alone": float(np.mean(seconds[-2:])) / report["seconds"]["gradients"],
        }
    return found | {"forward_only_seconds": seconds}


def measure_memory(folder: Path) -> dict[str, Any]:
    """Build from N and from 4N training triples, and compare the largest resident sizes."""
    train = (SHARED / "data" / "FB15k-237" / "train.txt").read_text().splitlines(keepends=True)
    np.random.default_rng(0).shuffle(train)
    found = {}
    for count in (len(train) // 4, len(train)):
        path = folder / f"train-{count}.txt"
        path.write_text("".join(train[:count]))
        peak = build(folder / f"index-{count}", "--model", str(FOLDER), "--train", str(path))["peak_bytes"]
        found[str(count)] = peak
    return found


def measure_queries(root: Path, queries: np.ndarray, count: int) -> dict[str, Any]:
    """Time queries in process and over HTTP, a forward and backward pass, the plain loop, and a batch, in turns."""
    attributor = open_index(root, device="cpu", verify=False)
    model = torch.load(FOLDER / "trained_model.pkl", weights_only=False).eval()

    def backward(triple: np.ndarray) -> None:
        model.zero_grad(set_to_none=True)
        head, relation, tail = triple.tolist()
        torch.nn.functional.softplus(-model.score_hrt(torch.tensor([[head, 2 * relation, tail]]))).sum().backward()

    target = {name: p.grad.clone() for name, p in _with_gradients(model, backward, queries[0])}

    def loop(triple: np.ndarray) -> None:
        """One turn of the guide's loop: gradients of all parameters, copied, and their product with the test triple's."""
        gradients = {name: p.grad.clone() for name, p in _with_gradients(model, backward, triple)}
        sum(float((gradient * target[name]).sum()) for name, gradient in gradients.items())

    def ask(score: Score, triple: np.ndarray) -> None:
        attributor.query(triple[None], top_k=TOP_K, score=score)

    def post_by(score: Score, triple: np.ndarray) -> None:
        post(address, triple, score=score)

    with serving(root) as address:
        turns: dict[str, Callable[[np.ndarray], object]] = {
            **{f"in_process {score}": partial(ask, score) for score in SCORES},
            **{f"http {score}": partial(post_by, score) for score in SCORES},
            "forward_backward": backward,
            "loop": loop,
        }
        times: dict[str, list[float]] = {name: [] for name in turns}
        for turn in turns.values():
            turn(queries[0])
        for triple in queries[:count]:
            for name, turn in turns.items():
                start = time.perf_counter()
                turn(triple)
                times[name].append(1e3 * (time.perf_counter() - start))
    batches: dict[str, list[float]] = {score: [] for score in SCORES}
    answers = []
    for _ in range(ROUNDS):
        for score in SCORES:
            start = time.perf_counter()
            found = attributor.query(queries[:BATCH], top_k=TOP_K, score=score).attributions
            batches[score].append(1e3 * (time.perf_counter() - start) / BATCH)
            answers += found
    loop_hours = float(np.median(times["loop"])) * len(attributor) / 3.6e6
    return {
        "milliseconds": {name: spread(values) for name, values in times.items()},
        "batch_milliseconds_a_triple": {score: float(np.median(each)) for score, each in batches.items()},
        "certified": sum(answer.certified for answer in answers),
        "asked": len(answers),
        "candidates": spread([answer.candidates for answer in answers]),
        "exact_terms": spread([answer.exact_terms for answer in answers]),
        "loop_hours_a_query": loop_hours,
    }


def measure_clients(root: Path, queries: np.ndarray) -> dict[str, Any]:
    """Let many clients ask the service at once, each again as soon as it is answered; they share the cores with it."""
    requests = [request(triple) for triple in queries.tolist()]
    with service.serving(root, "--queue-length", str(CLIENTS)) as (port, pid):
        uvloop.run(closed_loop(port, requests, CLIENTS, 3))
        return with_cpu(pid, closed_loop(port, requests, CLIENTS, 20))


def _with_gradients(
    model: torch.nn.Module, backward: Callable[[np.ndarray], None], triple: np.ndarray
) -> list[tuple[str, torch.nn.Parameter]]:
    backward(triple)
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.grad is not None]


def searched_bytes(root: Path, triples: int) -> float:
    """Return the bytes of the search index for each training triple."""
    generation = (root / "CURRENT").read_text().strip()
    return (root / "generations" / generation / "search.faiss").stat().st_size / triples


def report(found: dict[str, Any]) -> str:
    """Return targets and figures as Markdown."""
    build, memory, query = found["build"], list(found["memory"].values()), found["query"]
    ms = {name: values["median"] for name, values in query["milliseconds"].items()}
    loop, rows = query["loop_hours_a_query"] * 3.6e6, []
    for score, words, most in zip(SCORES, ("default score", "TracIn"), ("≤ 1.3 ×", "≤ 2.5 ×"), strict=True):
        http, own, batch = ms[f"http {score}"], ms[f"in_process {score}"], query["batch_milliseconds_a_triple"][score]
        rows += [
            (f"{words}: one query over HTTP against the guide's loop, timed here", "≥ 500,000 ×", f"{loop / http:,.0f} × ({http:.1f} ms against {ms['loop']:.1f} ms a training triple)"),
            (f"{words}: one query in process against a forward and backward pass of its triple", most, f"{own / ms['forward_backward']:.1f} × ({own:.1f} ms against {ms['forward_backward']:.1f} ms)"),
            (f"{words}: HTTP beyond in process", "≤ 2 ms", f"{http - own:.1f} ms"),
            (f"{words}: batch of {BATCH}, a triple, against one alone", "≤ 1/6", f"1/{own / batch:.1f} ({batch:.1f} ms)"),
        ]  # fmt: skip
    clients = found["clients"]
    rows += [
        (f"default score: answers a second to {CLIENTS} clients", "≥ 250", f"{clients['per_second']:.0f} ({clients['cpu_ms']:.1f} ms of CPU each, p99 {clients['p99_ms']:.0f} ms)"),
        ("build of last:2 against forward passes alone", "≥ 50 %", share(build, "last2")),
        ("build of all against forward passes alone", "≥ 25 %", share(build, "all")),
        ("bytes a triple that every query by TracIn reads", "≤ 300 B", f"{query['bytes_in_memory']:.0f} B"),
        ("certified, by either score", "all", f"{query['certified']} of {query['asked']}"),
        ("peak memory of a build at 4N against N", "≤ 110 %", f"{memory[1] / memory[0]:.0%} ({memory[0] / 2**20:,.0f} and {memory[1] / 2**20:,.0f} MiB)"),
    ]  # fmt: skip
    return "\n".join(["| what | target | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def share(build: dict[str, Any], name: str) -> str:
    """Return how fast a build was compared with forward passes alone."""
    one = build[name]
    return (
        f"{one['share_of_forward_rate']:.0%} ({one['seconds']:.0f} s, {build['triples'] / one['seconds']:,.0f} triples/s); "
        f"its gradients alone {one['share_of_forward_rate_gradients_alone']:.0%}"
    )


if __name__ == "__main__":
    main()
