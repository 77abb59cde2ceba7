"""The results of `kgtrace evaluate`, as JSON for programs and as a table for people."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kgtrace_server.cli import render

if TYPE_CHECKING:
    from kgtrace_indexer.building.build import BuildConfig
    from kgtrace_indexer.evaluation import Evaluation
    from kgtrace_indexer.inputs.model_file import ModelFile

_HEADER = ("", "", "layers", "projection", "sample", "overlap", "Pearson", "Spearman", "s a query", "× loop")


def document(
    evaluation: "Evaluation", model: "ModelFile", config: "BuildConfig", *, top_k: int, order: str, skipped: int
) -> dict[str, Any]:
    """Return all measurements with their input; `skipped` lines of the test file had unknown labels."""
    import torch

    from kgtrace_indexer.evaluation.speed import LOOP_SLICE, SLICE
    from kgtrace_indexer.models.protocol import pick_device

    index = evaluation.index
    return {
        "model": {
            "source": model.source,
            "interaction": model.interaction,
            "fingerprint": model.fingerprint(),
            "checkpoints": len(model.checkpoints),
        },
        "loss": config.loss,
        "directions": evaluation.directions,
        "training_triples": evaluation.training_triples,
        "test_triples": evaluation.test_triples,
        "skipped_test_triples": skipped,
        "top_k": top_k,
        "order": order,
        "seed": config.seed,
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": pick_device(config.device).type,
            "torch": torch.__version__,
        },
        "timed_triples": min(SLICE, evaluation.training_triples),
        "plain_loop": None
        if evaluation.loop_seconds_a_query is None
        else {
            "timed_triples": min(LOOP_SLICE, evaluation.training_triples),
            "seconds_a_triple": evaluation.loop_seconds_a_query / evaluation.training_triples,
            "seconds_a_query": evaluation.loop_seconds_a_query,
        },
        "index": {**asdict(index), "times_faster": evaluation.times_faster(index.seconds_a_query)},
        "configurations": [
            {
                **asdict(measured.configuration),
                "training_triples": measured.training_triples,
                **asdict(measured.accuracy),
                "seconds_a_query": measured.seconds_a_query,
                "times_faster": evaluation.times_faster(measured.seconds_a_query),
            }
            for measured in evaluation.configurations
        ],
    }


def table(content: Mapping[str, Any]) -> str:
    """Return a document as text."""
    index, loop = content["index"], content["plain_loop"]
    rows: list[Sequence[str]] = [_HEADER]
    if loop is not None:
        rows.append(("plain loop", "", "all", "-", "100 %", "-", "-", "-", *_speed(loop["seconds_a_query"], 1.0)))
    rows.append(
        (
            "kgtrace index",
            f"certified {index['certified']} of {content['test_triples']}",
            "all",
            "-",
            "100 %",
            f"{index['overlap']:.2f}",
            "-",
            "-",
            *_speed(index["seconds_a_query"], index["times_faster"]),
        )
    )
    group = None
    for row in content["configurations"]:
        rows.append(
            (
                row["group"] if row["group"] != group else "",
                row["name"],
                row["layers"][0] if len(row["layers"]) == 1 else f"{len(row['layers'])} parameters",
                "-" if row["projection"] is None else f"{row['projection']} {row['dim']}",
                f"{100 * row['sample_rate']:g} %",
                *(f"{row[measure]:.2f}" for measure in ("overlap", "pearson", "spearman")),
                *_speed(row["seconds_a_query"], row["times_faster"]),
            )
        )
        group = row["group"]
    return f"{_title(content)}\n\n{render.table(rows, right=(4, 5, 6, 7, 8, 9))}\n{_notes(content)}"


def _title(content: Mapping[str, Any]) -> str:
    return (
        f"{content['model']['source']} ({content['model']['interaction']}): {content['training_triples']:,} training "
        f"triples, {content['test_triples']:,} test triples, loss {content['loss']}, directions "
        f"{content['directions']}, top {content['top_k']} by {content['order']}"
    )


def _notes(content: Mapping[str, Any]) -> str:
    index, loop = content["index"], content["plain_loop"]
    notes = [
        f"overlap: share of the exact top {content['top_k']}, over all parameters and training triples, that is named.",
        "Pearson, Spearman: with the exact influences, over the training triples that the configuration looks at.",
        f"s a query: timed on up to {content['timed_triples']:,} neighbouring training triples, the best of three, and "
        "extrapolated; that of the index is a median.",
        "plain loop: not run with this PyKEEN model."
        if loop is None
        else f"plain loop: a forward and a backward pass for each training triple, loss bce, forward direction; timed "
        f"on {loop['timed_triples']} triples, {1e3 * loop['seconds_a_triple']:.2f} ms each, and extrapolated.",
        f"index: built in {index['build_seconds']:.1f} s, {index['bytes'] / 1e6:,.1f} MB; slowest query "
        f"{index['slowest_seconds']:.3f} s.",
    ]
    return "".join(f"{note}\n" for note in notes)


def _speed(seconds: float, times_faster: float | None) -> tuple[str, str]:
    return _three_digits(seconds), "-" if times_faster is None else _three_digits(times_faster)


def _three_digits(value: float) -> str:
    """Return a number with three significant digits, and no exponent."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}"
