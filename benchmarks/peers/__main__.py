"""Run kgtrace and its peers side by side, on the inner linear layer and on the output layer of one ConvE.

    python -m benchmarks.peers                          # all of it; about an hour on two cores
    python -m benchmarks.peers --quick                  # a small version; minutes, once the environments are there
    python -m benchmarks.peers --task linear --only captum-fast bergson-tuned
    python -m benchmarks.peers --write-only             # only tables and pictures again, from what was measured before

Reads models and data sets from the folder in KGTRACE_SHARED. Makes a virtual environment for each peer in ``.bench``,
which needs the network once. Writes ``benchmarks/results/peers-TASK-cpu.json`` row by row, so that a run that was
interrupted goes on, and from it tables in ``docs/benchmarks.md`` and pictures in ``docs/images``. A peer that cannot be
installed or run gets a row that says so.
"""

import argparse
import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fb15k237 import RESULTS, SHARED, machine
from benchmarks.peers.environments import ROOT, python_of
from benchmarks.peers.methods import FULL, QUICK, REFERENCE, ROWS, TOP_K, Row, Scale
from benchmarks.peers.problem import Size, make_problem
from benchmarks.peers.protocol import FOUND, IDS, INFLUENCES, TASKS
from benchmarks.peers.report import compare, table, write_page, write_picture

BENCH = ROOT / ".bench"
LIMIT = 7200
"""Seconds after which a row is given up."""


def main() -> None:
    """Measure what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the results")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--dataset", default="FB15k-237")
    parser.add_argument("--model", default="conve-fb15k-237")
    parser.add_argument("--write-only", action="store_true")
    args = parser.parse_args()
    args.fresh |= args.quick
    scale, kind = (QUICK, "quick") if args.quick else (FULL, "cpu")
    if not args.write_only:
        facts = make_problem(BENCH / f"problem-{kind}", Size(args.model, args.dataset, scale.train, scale.test), SHARED)
        for task in args.task:
            measure_task(task, kind, scale, facts, args)
    for task in args.task:
        found = json.loads(results(task, kind).read_text())
        print(f"\n{table(found)}")
        write_picture(
            found, results(task, kind).with_suffix(".svg") if args.quick else ROOT / f"docs/images/peers-{task}.svg"
        )
    if not args.quick:
        write_page(
            {task: json.loads(results(task, kind).read_text()) for task in TASKS if results(task, kind).exists()}
        )


def results(task: str, kind: str) -> Path:
    """Return where a task's figures are."""
    return (BENCH if kind == "quick" else RESULTS) / f"peers-{task}-{kind}.json"


def measure_task(task: str, kind: str, scale: Scale, facts: dict[str, Any], args: argparse.Namespace) -> None:
    """Measure the rows of a task that are not there, or were asked for again."""
    file = results(task, kind)
    begun = {"machine": machine(), "task": task, "scale": asdict(scale), "top_k": TOP_K, "problem": facts, "rows": {}}
    found = json.loads(file.read_text()) if file.exists() and not (args.fresh and not args.only) else begun
    if found["problem"]["size"] != facts["size"]:
        found = begun
    problem = BENCH / f"problem-{kind}"
    for row in ROWS:
        triples = min(scale.train, (row.quick_triples if args.quick else row.triples) or scale.train)
        left_out = args.quick and row.quick_triples == 0
        asked = args.only is None or row.name in args.only
        there = row.name in found["rows"] and not args.fresh and "error" not in found["rows"][row.name]
        needed = row.name == REFERENCE and not (problem / f"{task}_exact.npy").exists()
        if task not in row.tasks or left_out or not ((asked and not there) or needed):
            continue
        print(f"{task}: {row.name} ...", flush=True)
        found["rows"][row.name] = measure_row(
            row, task, triples, scale, problem, SHARED / "models" / args.model, args.quick
        )
        order = [row.name for row in ROWS]
        found["rows"] = dict(sorted(found["rows"].items(), key=lambda item: order.index(item[0])))
        file.write_text(json.dumps(found, indent=2) + "\n")


def measure_row(
    row: Row, task: str, triples: int, scale: Scale, problem: Path, model: Path, quick: bool
) -> dict[str, Any]:
    """Return a row's figures, or its error. A quick run tries no batch sizes: it takes the middle one."""
    folder = BENCH / f"run-{os.getpid()}"
    command = f"python -m benchmarks.peers --task {task} --only {row.name} --fresh"
    options = {**row.options, **row.by_task.get(task, {})}
    found: dict[str, Any] = {"title": row.title, "command": command, "options": options}
    request: dict[str, Any] = {
        "problem": str(problem), "folder": str(folder), "model": str(model), "task": task, "options": options,
        "tune": False, "batch_sizes": list(row.batch_sizes), "tuned_on": row.tuned_on, "triples": triples,
        "stored": scale.train, "singles": scale.singles, "top_k": TOP_K,
        "batches": list(scale.batches if row.batches is None else row.batches),
        "compared": min(scale.compared, row.compared or scale.compared),
    }  # fmt: skip
    try:
        python = python_of(row.environment, BENCH)
        if quick:
            request["batch_sizes"] = [row.batch_sizes[len(row.batch_sizes) // 2]]
        elif len(row.batch_sizes) > 1:
            found["tried"] = start(python, row, {**request, "tune": True})["tried"]
            best = max(found["tried"], key=found["tried"].__getitem__)
            request["batch_sizes"] = [int(best)]
        found |= start(python, row, request)
        if row.name == REFERENCE:
            shutil.copy(folder / INFLUENCES, problem / f"{task}_exact.npy")
        if row.comparable:
            found["recall"] = compare(
                np.load(problem / f"{task}_exact.npy")[:, :triples], np.load(folder / IDS),
                np.load(folder / INFLUENCES) if row.exact else None,
            )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        output = getattr(error, "output", None) or getattr(error, "stdout", None)
        said = output if isinstance(output, str) else str(error)
        found["error"] = said.strip().splitlines()[-1][:500] if said.strip() else repr(error)
        print(f"  failed: {found['error']}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def start(python: Path, row: Row, request: dict[str, Any]) -> dict[str, Any]:
    """Run a runner in its environment and return what it found."""
    folder = Path(request["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps(request))
    subprocess.run(
        [python, "-m", f"benchmarks.peers.runners.{row.runner}", str(folder / "request.json")],
        check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT,
        env={**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    found: dict[str, Any] = json.loads((folder / FOUND).read_text())
    return found


if __name__ == "__main__":
    main()
