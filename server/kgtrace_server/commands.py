"""What the verbs of the command line do. Each takes the parsed arguments and returns an exit code.

Whatever is slow to import is imported inside, so that ``--help`` and wrong calls answer at once.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgtrace_server import catalogue
from kgtrace_server.progress import Progress
from kgtrace_server.settings import Settings
from kgtrace_store.errors import BadRequest, IndexNotFound

if TYPE_CHECKING:
    from kgtrace_indexer.build import BuildReport
    from kgtrace_indexer.model_file import ModelFile
    from kgtrace_indexer.triples import TripleTable
    from kgtrace_server.service import Field, Service
    from kgtrace_server.wire import Influences
    from kgtrace_store.vocabulary import Vocabulary

_BATCH = 64
"""Test triples explained at a time: few enough to show progress, many enough to share forward passes."""

CONFIGURATION = ("loss", "directions", "dim", "landmarks", "seed", "dtype", "device")
"""Arguments of ``build`` that are fields of `BuildConfig` as they are."""


class WrongCall(Exception):
    """Arguments that each are fine and together are not."""


def convert(args: argparse.Namespace) -> int:
    """Turn a PyKEEN model into tensors and facts."""
    from kgtrace_indexer.model_file import write_model

    model = _read_model(args, None if args.relation_to_id is None else _count_relations(args.relation_to_id))
    write_model(model, args.out)
    facts = {
        "out": str(args.out),
        "model": model.interaction,
        "entities": model.num_entities,
        "relations": model.num_relations,
        "inverse_triples": model.inverse_triples,
        "fingerprint": model.fingerprint(),
    }
    inverse = "with" if model.inverse_triples else "without"
    _say(
        args,
        facts,
        f"{args.out}: {model.interaction}, {model.num_entities:,} entities, {model.num_relations:,} relations, "
        f"{inverse} inverse relations\n",
    )
    return 0


def build(args: argparse.Namespace) -> int:
    """Index training triples and publish the generation."""
    from kgtrace_indexer.build import BuildConfig
    from kgtrace_indexer.build import build as build_index
    from kgtrace_indexer.model_file import with_checkpoints

    if args.learning_rates and not args.checkpoints:
        raise WrongCall("--learning-rates weigh --checkpoints PATH...: give them too")
    chosen: dict[str, Any] = {name: getattr(args, name) for name in CONFIGURATION}
    if args.batch_size is not None:
        chosen["batch_size"] = args.batch_size
    config = BuildConfig(layers=tuple(args.layers), **chosen)
    vocabulary, triples = _training_data(args)
    model = with_checkpoints(_read_model(args, len(vocabulary.relations)), args.checkpoints, args.learning_rates)
    with Progress("triples") as progress:
        report = build_index(
            args.index,
            model,
            vocabulary,
            triples,
            config,
            publish=args.publish,
            fresh=args.fresh,
            gate_report=args.gate_report,
            progress=progress,
        )
    _say_built(args, report)
    return 0


def append(args: argparse.Namespace) -> int:
    """Extend the live generation by new training triples of the same model."""
    from kgtrace_indexer.append import append as append_to_index

    chosen = {} if args.batch_size is None else {"batch_size": args.batch_size}
    with Progress("triples") as progress:
        report = append_to_index(
            args.index,
            args.train,
            skip_unknown=args.skip_unknown,
            device=args.device,
            publish=args.publish,
            fresh=args.fresh,
            gate_report=args.gate_report,
            progress=progress,
            **chosen,
        )
    _say_built(args, report)
    return 0


def _say_built(args: argparse.Namespace, report: "BuildReport") -> None:
    facts = {
        "generation": report.generation,
        "published": report.published,
        "triples": report.triples,
        "skipped": report.skipped,
        "bytes": report.bytes,
        "agreement": report.agreement,
        "seconds": report.seconds,
    }
    skipped = f" ({report.skipped:,} skipped)" if report.skipped else ""
    what = "is live" if report.published else f"is built; make it live with: kgtrace publish {report.generation}"
    agreed = "" if report.agreement is None else f", {report.agreement:.0%} of top training triples as before"
    _say(
        args,
        facts,
        f"generation {report.generation} {what}\n"
        f"{report.triples:,} triples{skipped}, {report.bytes / 1e6:,.1f} MB, {sum(report.seconds.values()):.1f} s"
        f"{agreed}\n",
    )


def query(args: argparse.Namespace) -> int:
    """Explain test triples from an index."""
    if (args.test_indices is not None or args.max_test_triples is not None) and args.test is None:
        raise WrongCall("--test-indices and --max-test-triples choose among the triples of --test FILE")
    from kgtrace_indexer.engine import open_attributor
    from kgtrace_server import render
    from kgtrace_server.service import Service

    if args.output is not None:
        render.check_format(args.output)
    attributor = open_attributor(args.index, device=args.device)
    service = Service(attributor)
    if args.test is None:
        triples = [service.triple_from_text(*triple) for triple in args.triple]
        test_indices = list(range(len(triples)))
    else:
        triples, test_indices = _test_triples(args, attributor.vocabulary)
    answer = _explain(args, service, triples)
    if args.output is not None:
        render.write_influences(args.output, answer, test_indices)
    if args.json:
        sys.stdout.write(render.json_text(answer))
    elif args.output is None:
        sys.stdout.write(render.influences(answer))
    else:
        found = sum(len(result["influences"]) for result in answer["results"])
        sys.stdout.write(f"{args.output}: {found:,} influences on {len(triples):,} test triples\n")
    return 0


def serve(args: argparse.Namespace) -> int:
    """Run the HTTP service until it is told to stop."""
    try:
        settings = Settings.resolve(vars(args), os.environ)
    except BadRequest as e:
        raise WrongCall(str(e)) from e
    if settings.index is None:
        raise WrongCall("no index: give --index ROOT or set KGTRACE_INDEX")
    from kgtrace_server import logs, serving
    from kgtrace_server.app import create_app

    logs.configure(settings.log_level, settings.log_format)
    app = create_app(serving.loader(settings), settings)
    with serving.listen(settings) as listening:
        at = serving.address(listening)
        sys.stdout.write(f"kgtrace serves {settings.index} at {at} (documentation: {at}/docs)\n")
        sys.stdout.flush()
        serving.serve(app, settings, listening)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check a generation against its manifest, its model and itself."""
    from kgtrace_indexer.checks import verify as run_checks
    from kgtrace_indexer.engine import open_attributor

    attributor = open_attributor(args.index, args.generation, device=args.device)
    checks = run_checks(attributor)
    sound = all(found.ok for found in checks)
    rows = [("ok" if found.ok else "FAILED", found.name, found.detail) for found in checks]
    facts = {
        "generation": attributor.manifest.generation,
        "ok": sound,
        "checks": [{"name": found.name, "ok": found.ok, "detail": found.detail} for found in checks],
    }
    _say_table(args, facts, rows)
    return 0 if sound else 1


def list_generations(args: argparse.Namespace) -> int:
    """Show what is on disk, and which of it is live."""
    from kgtrace_store.generations import IndexRoot

    if not args.index.is_dir():
        raise IndexNotFound(f"there is no index root {args.index}: build one first")
    root = IndexRoot(args.index)
    generations = catalogue.generations(root)
    rows = [("", "generation", "built at", "triples", "model")]
    for found in generations:
        if found["problem"] is None:
            triples = (found["counts"] or {}).get("triples", 0)
            shown = (str(found["built_at"]), f"{triples:,}", str(found["model"]))
        else:
            shown = (f"unreadable: {found['problem']}", "", "")
        rows.append(("*" if found["live"] else "", found["id"], *shown))
    _say_table(args, {"live": root.current(), "generations": generations}, rows)
    return 0


def publish(args: argparse.Namespace) -> int:
    """Make a generation live."""
    from kgtrace_store.generations import IndexRoot

    IndexRoot(args.index).publish(args.generation)
    _say(args, {"live": args.generation}, f"generation {args.generation} is live\n")
    return 0


def rollback(args: argparse.Namespace) -> int:
    """Make the generation before the live one live."""
    from kgtrace_store.generations import IndexRoot

    live = IndexRoot(args.index).rollback()
    _say(args, {"live": live}, f"generation {live} is live again\n")
    return 0


def prune(args: argparse.Namespace) -> int:
    """Remove old generations."""
    from kgtrace_store.generations import IndexRoot

    removed = IndexRoot(args.index).prune(args.keep)
    _say(args, {"removed": removed}, "".join(f"removed {id_}\n" for id_ in removed) or "nothing to remove\n")
    return 0


def demo(args: argparse.Namespace) -> int:
    """Train, build, serve and ask, from nothing."""
    from kgtrace_server.demo import run

    run(once=args.once)
    return 0


def _say(args: argparse.Namespace, facts: Mapping[str, Any], text: str) -> None:
    from kgtrace_server import render

    sys.stdout.write(render.json_text(facts) if args.json else text)


def _say_table(args: argparse.Namespace, facts: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> None:
    from kgtrace_server import render

    _say(args, facts, render.table(rows))


def _read_model(args: argparse.Namespace, num_relations: int | None) -> "ModelFile":
    from kgtrace_indexer.model_file import read_model

    return read_model(
        args.model,
        interaction=args.interaction,
        embedding_dim=args.embedding_dim,
        num_relations=num_relations,
    )


def _count_relations(relation_to_id: Path) -> int:
    from kgtrace_indexer.triples import read_vocabulary

    # Both maps have one format, and only the number of relations is wanted.
    return len(read_vocabulary(relation_to_id, relation_to_id).relations)


def _training_data(args: argparse.Namespace) -> "tuple[Vocabulary, TripleTable]":
    """Read the id maps and training triples that were named, and the others from the model's folder."""
    from kgtrace_indexer.triples import (
        ENTITY_TO_ID,
        RELATION_TO_ID,
        read_training_folder,
        read_triples,
        read_vocabulary,
    )

    if args.train is None and (args.entity_to_id or args.relation_to_id):
        raise WrongCall("--entity-to-id and --relation-to-id say what the labels of --train FILE mean: give it too")
    carried = args.model / "training_triples"
    if None in (args.train, args.entity_to_id, args.relation_to_id) and not carried.is_dir():
        raise BadRequest(f"{args.model} carries no training_triples: pass --train, --entity-to-id and --relation-to-id")
    vocabulary = read_vocabulary(
        args.entity_to_id or carried / ENTITY_TO_ID, args.relation_to_id or carried / RELATION_TO_ID, args.names
    )
    if args.train is None:
        return vocabulary, read_training_folder(carried)[1]
    return vocabulary, read_triples(args.train, vocabulary, skip_unknown=args.skip_unknown)


def _test_triples(args: argparse.Namespace, vocabulary: "Vocabulary") -> tuple[list[tuple[int, int, int]], list[int]]:
    """Read the chosen test triples, and which rows of the file they are."""
    from kgtrace_indexer.triples import read_triples

    table = read_triples(args.test, vocabulary, skip_unknown=args.skip_unknown)
    rows = {index: row for row, index in enumerate(table.train_index.tolist())}
    chosen = list(rows)[: args.max_test_triples] if args.test_indices is None else args.test_indices
    missing = [index for index in chosen if index not in rows]
    if missing:
        raise BadRequest(f"--test-indices {missing[0]}: {args.test} has no such row to explain; it has {len(rows)}")
    ids = table.ids.tolist()
    return [(head, relation, tail) for head, relation, tail in (ids[rows[index]] for index in chosen)], chosen


def _explain(args: argparse.Namespace, service: "Service", triples: Sequence[tuple[int, int, int]]) -> "Influences":
    from kgtrace_server.service import Question

    must, must_not = _filter(args, service, "must"), _filter(args, service, "must_not")
    answers = []
    with Progress("test triples") as progress:
        for start in range(0, len(triples), _BATCH):
            batch = triples[start : start + _BATCH]
            question = Question(
                batch,
                top_k=args.top_k,
                order=args.order,
                exact=args.exact,
                max_candidates=args.max_candidates,
                must=must,
                must_not=must_not,
                direction=args.direction,
            )
            answers.append(service.influences(question))
            if len(triples) > _BATCH:
                progress("query", start + len(batch), len(triples))
    seconds = [answer["seconds"] for answer in answers]
    return {
        "generation": service.generation,
        "results": [result for answer in answers for result in answer["results"]],
        "seconds": {
            "gradient": sum(s["gradient"] for s in seconds),
            "search": sum(s["search"] for s in seconds),
            "rerank": sum(s["rerank"] for s in seconds),
        },
    }


def _filter(args: argparse.Namespace, service: "Service", kind: str) -> "dict[Field, list[int]]":
    condition: dict[Field, list[int]] = {}
    for name, resolve in (
        ("head", service.entity_from_text),
        ("relation", service.relation_from_text),
        ("tail", service.entity_from_text),
    ):
        texts = getattr(args, f"{kind}_{name}")
        if texts is not None:
            condition[name] = [resolve(text) for text in texts]  # type: ignore[index]
    return condition
