"""``kgtrace build``, ``append`` and ``convert``: a model and its training triples become an index."""

import argparse
import os
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kgtrace_indexer.names import PRECONDITIONS, Projection
from kgtrace_server.cli import arguments, inputs, render
from kgtrace_server.cli.arguments import Verb, WrongCall, add, integer
from kgtrace_server.cli.console import say, warn
from kgtrace_server.cli.progress import Progress
from kgtrace_server.settings import ENGINE_SETTINGS, Settings, variable
from kgtrace_store.errors import BadRequest, SearchUnavailable

if TYPE_CHECKING:
    from kgtrace_indexer.building.build import BuildReport
    from kgtrace_indexer.building.workers import Workers

NOTHING_TO_STRATIFY = "--stratify-by says how a sample is drawn: give --sample-rate P below 1, too"


def register(verb: Verb) -> None:
    """Add the verbs."""
    _build_arguments(verb("build", build, "index the training triples of a model and publish the index"))
    _append_arguments(verb("append", append, "extend the live index by new training triples of the same model"))
    _convert_arguments(verb("convert", convert, "turn a model into safetensors, without executing its pickle"))


def _build_arguments(to: argparse.ArgumentParser) -> None:
    arguments.trained(to, ids_in="--train")
    contents = to.add_argument_group("what is indexed")
    add(contents, "--skip")
    arguments.gradients(contents, None)
    contents.add_argument(
        "--layers",
        nargs="+",
        default=["all"],
        metavar="LAYER",
        help="all, last:N, or parameter names and patterns (default: all)",
    )
    contents.add_argument(
        "--projection",
        choices=arguments.choices(Projection),
        default="pca",
        help="how gradients are kept: pca certifies every answer, gaussian and sparse guess, none keeps nothing and "
        "leaves every query to compute every influence (default: %(default)s)",
    )
    contents.add_argument(
        "--dim", type=integer(1), default=64, metavar="K", help="numbers kept of a gradient (default: %(default)s)"
    )
    contents.add_argument(
        "--landmarks",
        type=integer(1),
        default=2048,
        metavar="M",
        help="triples that the directions are chosen from (default: %(default)s)",
    )
    contents.add_argument(
        "--sample-rate",
        type=arguments.rate,
        default=1.0,
        metavar="P",
        help="index this share of the training triples; others cannot be named (default: all)",
    )
    add(contents, "--stratify-by")
    arguments.score(
        contents,
        "of queries that do not ask for another: tracin is plain TracIn, preconditioned turns down what all gradients "
        "of an embedding row have in common (default: preconditioned with projection pca, where rows have gradients of "
        "their own)",
    )
    contents.add_argument(
        "--damping",
        type=lambda text: None if text == "auto" else arguments.positive(text),
        metavar="X|auto",
        help="of the preconditioned score; auto is 3 (default: auto)",
    )
    add(contents, "--seed", help="of all random choices (default: %(default)s)")
    contents.add_argument(
        "--shard-size",
        type=integer(1),
        metavar="N",
        help="keep codes, rows and search indexes of so many training triples each in files of their own "
        "(default: of all together)",
    )
    contents.add_argument(
        "--dtype", choices=("float32", "float16"), default="float16", help="of stored codes (default: %(default)s)"
    )
    how = to.add_argument_group("how")
    arguments.generation(how)
    how.add_argument(
        "--workers",
        type=integer(1),
        metavar="N",
        help="processes that compute gradients, a GPU each where there are several (default: this process)",
    )
    how.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute gradients on a Ray cluster, auto, HOST:PORT or ray://HOST:PORT, by --workers actors",
    )


def _append_arguments(to: argparse.ArgumentParser) -> None:
    add(
        to,
        "--train",
        required=True,
        help="lines of head⇥relation⇥tail, RDF or columns; triples that are indexed already are skipped",
    )
    add(to, "--skip", "--skip-unknown", "--only-iris")
    arguments.ids(to, "--train")
    arguments.generation(to)


def _convert_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "model",
        type=arguments.model_place,
        metavar="MODEL",
        help="PyKEEN folder, or file (.pkl, .pt); or hf://OWNER/REPO or mlflow:/NAME/VERSION",
    )
    to.add_argument("out", type=Path, metavar="OUT", help="folder for model.safetensors and model.json")
    arguments.state_dict(to)
    add(to, "--relation-to-id", help="tells how many relations a state dict is of")
    add(to, "--json")


def build(args: argparse.Namespace) -> int:
    """Index training triples and publish the generation."""
    if args.stratify_by is not None and args.sample_rate == 1:
        raise WrongCall(NOTHING_TO_STRATIFY)
    settings = engine_settings(args)
    if settings.search == "milvus" and args.projection == "none":
        raise WrongCall("--projection none leaves --search milvus nothing to search: leave out one of them")
    _check_gate_report(args)
    inputs.check_trained(args)
    workers = _workers(args)
    from kgtrace_indexer.building.build import build as build_index

    precondition = next((old for old, score in PRECONDITIONS.items() if score == args.score), None)
    config = inputs.configuration(args, layers=tuple(args.layers), precondition=precondition)
    vocabulary, triples = inputs.indexed_data(args)
    model = inputs.read_states(args, vocabulary, triples)
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
            workers=workers,
            committed=partial(_prepare, args, settings),
            progress=progress,
        )
    _switch(settings, report)
    _say_built(args, report)
    return 0


def _workers(args: argparse.Namespace) -> "Workers | None":
    """Return who computes the gradients: None for this process alone."""
    if args.ray is not None:
        from kgtrace_indexer.building.ray_workers import RayWorkers

        return RayWorkers(args.ray, args.workers)
    if args.workers is not None:
        from kgtrace_indexer.building.local_workers import LocalWorkers

        return LocalWorkers(args.workers)
    return None


def append(args: argparse.Namespace) -> int:
    """Extend the live generation by new training triples of the same model."""
    _check_gate_report(args)
    settings = engine_settings(args)
    from kgtrace_indexer.building.append import append as append_to_index

    chosen = {} if args.batch_size is None else {"batch_size": args.batch_size}
    with Progress("triples") as progress:
        report = append_to_index(
            args.index,
            args.train,
            skip=args.skip,
            skip_unknown=args.skip_unknown,
            ids=args.ids,
            only_iris=args.only_iris,
            device=args.device,
            publish=args.publish,
            fresh=args.fresh,
            gate_report=args.gate_report,
            committed=partial(_prepare, args, settings),
            progress=progress,
            **chosen,
        )
    _switch(settings, report)
    _say_built(args, report)
    return 0


def convert(args: argparse.Namespace) -> int:
    """Turn a PyKEEN model into tensors and facts."""
    inputs.fetch_model(args)
    from kgtrace_indexer.inputs.model_file import write_model

    num_relations = None
    if args.relation_to_id is not None:
        from kgtrace_indexer.inputs.id_maps import read_vocabulary

        # Both maps have one format, and only the number of relations is needed.
        num_relations = len(read_vocabulary(args.relation_to_id, args.relation_to_id).relations)
    model = inputs.read_model(args, num_relations)
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
    say(
        args,
        facts,
        f"{args.out}: {model.interaction}, {model.num_entities:,} entities, {model.num_relations:,} relations, "
        f"{inverse} inverse relations\n",
    )
    return 0


def engine_settings(args: argparse.Namespace) -> Settings:
    """Return the settings of the engine that searches, from flags and environment."""
    chosen = [setting for setting in fields(Settings) if setting.name in ENGINE_SETTINGS]
    environment = {variable(setting): os.environ.get(variable(setting), "") for setting in chosen}
    try:
        return Settings.resolve({setting.name: getattr(args, setting.name) for setting in chosen}, environment)
    except BadRequest as e:
        raise WrongCall(str(e)) from e


def _prepare(args: argparse.Namespace, settings: Settings, generation: str) -> None:
    """Send a generation to Milvus, if that is to search, so that it can be switched to at once."""
    from kgtrace_indexer.query.opening import open_index
    from kgtrace_server import engines

    try:
        if (milvus := engines.milvus(settings)) is not None:
            open_index(args.index, generation, device="cpu", verify=False, milvus=milvus)
    except SearchUnavailable as e:
        raise SearchUnavailable(
            f"{e}; generation {generation} is built, but not live: kgtrace publish {generation} lets a service send it"
        ) from e


def _switch(settings: Settings, report: "BuildReport") -> None:
    """Let Milvus answer from a generation that was published."""
    from kgtrace_server import engines

    if report.published and (milvus := engines.milvus(settings)) is not None:
        milvus.switch(report.generation)


def _check_gate_report(args: argparse.Namespace) -> None:
    """Raise `BadRequest` where the report could not be written; the first build makes the index root itself."""
    if args.gate_report is not None and (args.index.is_dir() or args.gate_report.parent != args.index):
        render.check_output(args.gate_report)


def _say_built(args: argparse.Namespace, report: "BuildReport") -> None:
    facts = {
        "generation": report.generation,
        "published": report.published,
        "triples": report.triples,
        "skipped": report.skipped,
        "left_out": report.left_out,
        "bytes": report.bytes,
        "agreement": report.agreement,
        "seconds": report.seconds,
        "warnings": list(report.warnings),
    }
    for warning in report.warnings:
        warn(warning)
    left_out = f", {report.left_out:,} of them as --skip says" if report.left_out else ""
    skipped = f" ({report.skipped:,} skipped{left_out})" if report.skipped else ""
    state = "is live" if report.published else f"is built; make it live with: kgtrace publish {report.generation}"
    agreed = "" if report.agreement is None else f", {report.agreement:.0%} of top training triples as before"
    say(
        args,
        facts,
        f"generation {report.generation} {state}\n"
        f"{report.triples:,} triples{skipped}, {report.bytes / 1e6:,.1f} MB, {sum(report.seconds.values()):.1f} s"
        f"{agreed}\n",
    )
