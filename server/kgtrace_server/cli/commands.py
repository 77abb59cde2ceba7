"""What the verbs of the command line do. Each takes the parsed arguments and returns an exit code.

Whatever is slow to import is imported inside, so that ``--help`` and wrong calls answer at once.
"""

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgtrace_server import catalogue
from kgtrace_server.cli.printable import printable
from kgtrace_server.cli.progress import Progress
from kgtrace_server.settings import ENGINE_SETTINGS, Settings, variable
from kgtrace_store.errors import BadRequest, SearchUnavailable, UnreadableModel

if TYPE_CHECKING:
    import numpy as np

    from kgtrace_indexer.building.build import BuildConfig, BuildReport
    from kgtrace_indexer.building.checks import Check
    from kgtrace_indexer.building.workers import Workers
    from kgtrace_indexer.inputs.model_file import ModelFile
    from kgtrace_indexer.inputs.triples import TripleTable
    from kgtrace_indexer.query.attributor import Attributor
    from kgtrace_server.cli.bulk import Bulk
    from kgtrace_server.service import Field, Service
    from kgtrace_store.vocabulary import Vocabulary

CONFIGURATION = (
    *("loss", "label_smoothing", "negatives", "directions", "projection", "dim", "landmarks"),
    *("sample_rate", "stratify_by", "precondition", "damping", "seed", "shard_size", "dtype", "device"),
)
"""Arguments of ``build`` that are fields of `BuildConfig` as they are."""

SAMPLING_PRESETS = ("very-fast", "ultra-fast", "extreme")
"""Presets of ``tracin`` that draw a sample. Written out, for their table takes seconds to import; a test compares."""

_NOTHING_TO_STRATIFY = "--stratify-by says how a sample is drawn: give --sample-rate P below 1, too"


class WrongCall(Exception):
    """Arguments that each are fine and together are not."""


def convert(args: argparse.Namespace) -> int:
    """Turn a PyKEEN model into tensors and facts."""
    from kgtrace_indexer.inputs.model_file import write_model

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
    if args.stratify_by is not None and args.sample_rate == 1:
        raise WrongCall(_NOTHING_TO_STRATIFY)
    settings = _search(args)
    if settings.search == "milvus" and args.projection == "none":
        raise WrongCall("--projection none leaves --search milvus nothing to search: leave out one of them")
    _check_gate_report(args)
    _check_trained(args)
    workers = _workers(args)
    from kgtrace_indexer.building.build import build as build_index

    config = _configuration(args, layers=tuple(args.layers))
    vocabulary, triples = _training_data(args)
    model = _with_checkpoints(args, vocabulary)
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
    settings = _search(args)
    from kgtrace_indexer.building.append import append as append_to_index

    chosen = {} if args.batch_size is None else {"batch_size": args.batch_size}
    with Progress("triples") as progress:
        report = append_to_index(
            args.index,
            args.train,
            skip_unknown=args.skip_unknown,
            ids=args.ids,
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


def _search(args: argparse.Namespace) -> Settings:
    """Return the settings that say what searches, from flags and environment."""
    chosen = [setting for setting in fields(Settings) if setting.name in ENGINE_SETTINGS]
    environment = {variable(setting): os.environ.get(variable(setting), "") for setting in chosen}
    try:
        return Settings.resolve({setting.name: getattr(args, setting.name) for setting in chosen}, environment)
    except BadRequest as e:
        raise WrongCall(str(e)) from e


def _prepare(args: argparse.Namespace, settings: Settings, generation: str) -> None:
    """Send a generation to Milvus, if that is to search, so that it can be switched to at once."""
    from kgtrace_indexer.query.attributor import open_index
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
    from kgtrace_server.cli import render

    if args.gate_report is not None and (args.index.is_dir() or args.gate_report.parent != args.index):
        render.check_output(args.gate_report)


def _say_built(args: argparse.Namespace, report: "BuildReport") -> None:
    facts = {
        "generation": report.generation,
        "published": report.published,
        "triples": report.triples,
        "skipped": report.skipped,
        "bytes": report.bytes,
        "agreement": report.agreement,
        "seconds": report.seconds,
        "warnings": list(report.warnings),
    }
    for warning in report.warnings:
        _warn(warning)
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
    if args.fresh and args.output is None:
        raise WrongCall("--fresh discards what an interrupted run left beside --output FILE: give it too")
    if args.aggregate is not None and (args.fresh or args.max_candidates is not None):
        raise WrongCall("--aggregate sums all influences in one go: leave --max-candidates and --fresh out")
    from kgtrace_server import engines
    from kgtrace_server.cli import render

    if args.output is not None:
        render.check_format(args.output)
    settings = _search(args)
    from kgtrace_indexer.query.attributor import open_index
    from kgtrace_server.cli import bulk

    milvus = engines.milvus(settings)
    asked = _bulk(args, open_index(args.index, device=args.device, milvus=milvus))
    if args.aggregate is not None:
        return _aggregated(args, asked)
    with Progress("test triples") as progress:
        if args.output is None:
            answers = bulk.stream(asked, progress)
            if args.json:
                render.write_influences(sys.stdout.buffer, ".json", answers, asked.test_indices, skipped=asked.skipped)
            else:
                sys.stdout.write(_sample_note(asked.service))
                for number, answer in enumerate(answers):
                    sys.stdout.write(("\n" if number else "") + render.influences(answer))
            return 0
        count = bulk.write(asked, args.output, fresh=args.fresh, progress=progress)
    facts = {
        "output": str(args.output),
        "generation": asked.service.generation,
        "test_triples": len(asked.ids),
        "skipped_test_triples": asked.skipped or 0,
        "influences": count,
    }
    text = f"{args.output}: {count:,} influences on {len(asked.ids):,} test triples\n"
    _say(args, facts, _sample_note(asked.service) + text)
    return 0


def _aggregated(args: argparse.Namespace, asked: "Bulk") -> int:
    """Sum the influences on all test triples."""
    from kgtrace_server.cli import render
    from kgtrace_server.service import Grouping
    from kgtrace_store import durable

    options = asked.options
    question = Grouping(
        asked.ids.tolist(),
        args.aggregate,
        top_k=options.top_k,
        order=options.order,
        exact=options.exact,
        must=options.must,
        must_not=options.must_not,
        within_hops=options.within_hops,
        direction=options.direction,
        score=options.score,
        damping=options.damping,
    )
    answer = asked.service.aggregate(question)
    if args.output is None:
        text = render.json_text(answer) if args.json else _sample_note(asked.service) + render.aggregate(answer)
        sys.stdout.write(text)
        return 0
    content = io.BytesIO()
    count = render.write_aggregate(content, args.output.suffix.lower(), answer)
    durable.replace_file(args.output, content.getvalue())
    facts = {
        "output": str(args.output),
        "generation": asked.service.generation,
        "test_triples": len(asked.ids),
        "groups": count,
    }
    text = f"{args.output}: {count:,} sums over {len(asked.ids):,} test triples\n"
    _say(args, facts, _sample_note(asked.service) + text)
    return 0


def tracin(args: argparse.Namespace) -> int:
    """Compute influences straight from a model, without an index."""
    import json

    if args.mode != "self" and args.test is None:
        raise WrongCall(f"--mode {args.mode} explains the triples of --test FILE: give it too")
    layers = {"--num-last-layers": args.num_last_layers, "--last-layer-names": args.last_layer_names}
    projection = {"--projection-dim": args.projection_dim, "--projection-type": args.projection_type}
    for wanted, refusal, details in (
        (args.use_last_layers_only, "--no-use-last-layers-only", layers),
        (args.use_projection, "--no-use-projection", projection),
    ):
        for flag, value in details.items():
            if wanted is False and value is not None:
                raise WrongCall(f"{refusal} leaves {flag} nothing to say: leave out one of them")
    samples = args.preset in SAMPLING_PRESETS if args.sample_rate is None else args.sample_rate < 1
    if args.stratify_by not in (None, "none") and not samples:
        raise WrongCall(_NOTHING_TO_STRATIFY)
    _check_trained(args)
    from kgtrace_server.cli import render

    if args.output is not None:
        render.check_format(args.output, (".json",))
    from kgtrace_indexer.inputs.triples import read_triples
    from kgtrace_server.cli import tracin as run
    from kgtrace_store import durable

    preset = run.chosen(args)
    vocabulary, training = _training_data(args)
    model = _read_model(args, len(vocabulary.relations))
    if args.output_channels is not None:
        run.check_channels(model, args.output_channels)
    document: Any
    with Progress("triples") as progress:
        asked = run.Run(model, vocabulary, training, preset, args, progress)
        if args.mode == "self":
            document = rows = asked.self_influences()
            count, page = f"{len(rows):,} training triples", run.self_influences(rows)
        else:
            test = read_triples(args.test, vocabulary, skip_unknown=True, ids=args.ids)
            _say_skipped(args.test, test)
            if args.mode == "single" and args.test_indices is None and args.max_test_triples is None:
                args.max_test_triples = 1
            results = asked.explained(*_chosen(args, test))
            document = results if args.mode == "single" else asked.summed_up(results, test.skipped)
            count, page = f"influences on {len(results):,} test triples", run.explanations(results)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    if args.output is not None:
        durable.replace_file(args.output, text.encode())
        page = f"{args.output}: {count}\n"
    sys.stdout.write(text if args.json else page)
    return 0


def self_influence(args: argparse.Namespace) -> int:
    """Rank training triples by self-influence."""
    from kgtrace_server.cli import render

    ending = ".json" if args.output is None else render.check_format(args.output)
    from kgtrace_indexer.index.preconditioner import SCORES
    from kgtrace_indexer.query.attributor import open_index
    from kgtrace_server.service import Service
    from kgtrace_store import durable

    service = Service(open_index(args.index, device=args.device))
    must, must_not = _filter(args, service, "must"), _filter(args, service, "must_not")
    score = None if args.precondition is None else SCORES[args.precondition]
    answer = service.self_influences(top_k=args.top_k, order=args.order, score=score, must=must, must_not=must_not)
    if args.output is None:
        sys.stdout.write(render.json_text(answer) if args.json else render.self_influences(answer))
        return 0
    content = io.BytesIO()
    count = render.write_self_influences(content, ending, answer)
    durable.replace_file(args.output, content.getvalue())
    facts = {"output": str(args.output), "generation": service.generation, "triples": count}
    _say(args, facts, f"{args.output}: {count:,} training triples\n")
    return 0


def serve(args: argparse.Namespace) -> int:
    """Run the HTTP service until it is told to stop."""
    try:
        settings = Settings.resolve(vars(args), os.environ)
    except BadRequest as e:
        raise WrongCall(str(e)) from e
    if settings.index is None:
        raise WrongCall("no index: give --index ROOT or set KGTRACE_INDEX")
    from kgtrace_server.http import logs, serving, tracing
    from kgtrace_server.http.app import create_app

    logs.configure(settings.log_level, settings.log_format)
    app = create_app(serving.loader(settings), settings, tracing.provider_from(os.environ))
    with serving.listen(settings) as listening:
        at = serving.address(listening)
        sys.stdout.write(f"kgtrace serves {settings.index} at {at}\ndashboard: {at}/\ndocumentation: {at}/docs\n")
        sys.stdout.flush()
        serving.serve(app, settings, listening)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check a generation against its manifest, its model and itself."""
    from kgtrace_indexer.building.checks import verify as run_checks
    from kgtrace_indexer.query.attributor import open_index

    attributor = open_index(args.index, args.generation, device=args.device)
    checks = run_checks(attributor)
    sound = all(found.ok for found in checks)
    rows = [(_verdict(found), found.name, found.detail) for found in checks]
    facts = {
        "generation": attributor.manifest.generation,
        "ok": sound,
        "checks": [asdict(found) for found in checks],
    }
    _say_table(args, facts, rows)
    return 0 if sound else 1


def _verdict(check: "Check") -> str:
    if check.ok:
        return "WARNING" if check.warning else "ok"
    return "FAILED"


def list_generations(args: argparse.Namespace) -> int:
    """Show what is on disk, and which of it is live."""
    from kgtrace_store.generations import IndexRoot

    root = IndexRoot(args.index)
    root.require()
    generations = catalogue.generations(root)
    rows = [("", "generation", "built at", "triples", "model", "agreement")]
    for found in generations:
        if found["problem"] is None:
            triples = (found["counts"] or {}).get("triples", 0)
            overlap = None if found["agreement"] is None else found["agreement"]["overlap"]
            agreement = "" if overlap is None else f"{overlap:.0%}"
            shown = (str(found["built_at"]), f"{triples:,}", str(found["model"]), agreement)
        else:
            shown = (f"unreadable: {found['problem']}", "", "", "")
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
    from kgtrace_server import engines
    from kgtrace_store.generations import IndexRoot

    milvus = engines.milvus(_search(args))
    removed = IndexRoot(args.index).prune(args.keep)
    if milvus is not None:
        milvus.drop(removed)
    _say(args, {"removed": removed}, "".join(f"removed {id_}\n" for id_ in removed) or "nothing to remove\n")
    return 0


def demo(args: argparse.Namespace) -> int:
    """Train, build, serve and ask, from nothing."""
    from kgtrace_server.cli.demo import run

    run(once=args.once)
    return 0


def completion(args: argparse.Namespace) -> int:
    """Print a program for a shell."""
    from kgtrace_server.cli.completion import script

    sys.stdout.write(script(args.command_line, args.shell) + "\n")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Measure configurations against the exact answer."""
    if args.fresh and args.output is None:
        raise WrongCall("--fresh discards what an interrupted run left beside --output FILE: give it too")
    _check_trained(args)
    from kgtrace_server.cli import render

    if args.output is not None:
        render.check_format(args.output, (".json",))
    from kgtrace_indexer.evaluation import evaluate as measure
    from kgtrace_server.cli import evaluation, plots
    from kgtrace_store import durable

    if args.plots is not None:
        plots.require()
        durable.make_folder(args.plots)
    config = _configuration(args)
    vocabulary, triples = _training_data(args)
    model = _with_checkpoints(args, vocabulary)
    test, skipped = _drawn(args, vocabulary)
    with _work_folder(args.output) as folder, Progress("steps") as progress:
        found = measure(
            folder,
            model,
            vocabulary,
            triples,
            test,
            config,
            top_k=args.top_k,
            order=args.order,
            fresh=args.fresh,
            progress=progress,
        )
        content = evaluation.document(found, model, config, top_k=args.top_k, order=args.order, skipped=skipped)
        if args.output is not None:
            durable.replace_file(args.output, render.json_text(content).encode())
        drawn = [] if args.plots is None else plots.write(content, args.plots)
    _say(args, content, evaluation.table(content) + "".join(f"{path}\n" for path in drawn if path.suffix == ".png"))
    return 0


@contextmanager
def _work_folder(output: Path | None) -> Iterator[Path]:
    """Yield where an evaluation keeps what it has found: beside its output, so that it can go on from there.

    The folder goes once all is written.
    """
    if output is not None:
        from kgtrace_store import durable

        folder = output.with_name(f"{output.name}.partial")
        yield folder
        durable.remove_tree(folder)
        return
    with tempfile.TemporaryDirectory(prefix="kgtrace-evaluate-") as temporary:
        yield Path(temporary)


def _drawn(args: argparse.Namespace, vocabulary: "Vocabulary") -> "tuple[np.ndarray, int]":
    """Return test triples drawn at random, (n, 3), in the order of the file, and how many lines were skipped."""
    import numpy as np

    from kgtrace_indexer.inputs.triples import read_triples

    test = read_triples(args.test, vocabulary, skip_unknown=args.skip_unknown, ids=args.ids)
    _say_skipped(args.test, test)
    count = min(args.max_test_triples, len(test.ids))
    rows = np.random.default_rng(args.seed).choice(len(test.ids), count, replace=False)
    return test.ids[np.sort(rows)], test.skipped


def _configuration(args: argparse.Namespace, **more: Any) -> "BuildConfig":
    """Return the configuration of an index; what the verb has no argument for is left at its default."""
    from kgtrace_indexer.building.build import BuildConfig

    chosen: dict[str, Any] = {name: getattr(args, name) for name in CONFIGURATION if hasattr(args, name)}
    if args.batch_size is not None:
        chosen["batch_size"] = args.batch_size
    return BuildConfig(**chosen, **more)


def _with_checkpoints(args: argparse.Namespace, vocabulary: "Vocabulary") -> "ModelFile":
    """Read the model, and the checkpoints whose influences are summed."""
    from kgtrace_indexer.inputs.model_reader import with_checkpoints

    return with_checkpoints(_read_model(args, len(vocabulary.relations)), args.checkpoints, args.learning_rates)


def _sample_note(service: "Service") -> str:
    """Say what an index of a sample leaves out."""
    rate = service.index_info()["sample_rate"]
    return "" if rate == 1 else f"of a sample of {rate:.3g} of the training triples; no others can be named\n\n"


def _warn(text: str) -> None:
    sys.stderr.write(f"kgtrace: warning: {printable(text)}\n")


def _say(args: argparse.Namespace, facts: Mapping[str, Any], text: str) -> None:
    from kgtrace_server.cli import render

    sys.stdout.write(render.json_text(facts) if args.json else text)


def _say_table(args: argparse.Namespace, facts: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> None:
    from kgtrace_server.cli import render

    _say(args, facts, render.table(rows))


def _read_model(args: argparse.Namespace, num_relations: int | None) -> "ModelFile":
    from kgtrace_indexer.inputs.model_reader import read_model

    return read_model(
        args.model,
        interaction=args.interaction,
        embedding_dim=args.embedding_dim,
        num_relations=num_relations,
    )


def _count_relations(relation_to_id: Path) -> int:
    from kgtrace_indexer.inputs.id_maps import read_vocabulary

    # Both maps have one format, and only the number of relations is wanted.
    return len(read_vocabulary(relation_to_id, relation_to_id).relations)


def _carried(args: argparse.Namespace) -> Path:
    """Return where PyKEEN puts the training triples beside a model."""
    model: Path = args.model
    return (model if model.is_dir() else model.parent) / "training_triples"


def _lacks_labels(carried: Path) -> bool:
    """Whether there are training triples without labels beside a model."""
    if not carried.is_dir():
        return False
    from kgtrace_indexer.inputs.training_folder import has_labels

    return not has_labels(carried)


def _check_trained(args: argparse.Namespace) -> None:
    """Check the arguments that name the model and its training triples, as far as that needs no torch.

    Raises `WrongCall` for one that another has to go with, and `UnreadableModel` where there is no model.
    """
    carried = _carried(args)
    if args.train is None and args.ids and getattr(args, "test", None) is None:
        raise WrongCall("--ids says that --train FILE holds ids: give it too")
    if args.train is None and (args.entity_to_id or args.relation_to_id) and not _lacks_labels(carried):
        raise WrongCall("--entity-to-id and --relation-to-id say what the labels of --train FILE mean: give it too")
    if getattr(args, "learning_rates", None) and not args.checkpoints:
        raise WrongCall("--learning-rates weigh --checkpoints PATH...: give them too")
    try:
        args.model.stat()
    except OSError as e:
        raise UnreadableModel(f"cannot read model {args.model}: {e.strerror}") from e


def _training_data(args: argparse.Namespace) -> "tuple[Vocabulary, TripleTable]":
    """Read the id maps and training triples that were named, and the others from the model's folder.

    Raises `VocabularyMismatch` where the former contradict the latter.
    """
    from kgtrace_indexer.inputs.id_maps import read_vocabulary
    from kgtrace_indexer.inputs.model_reader import check_place
    from kgtrace_indexer.inputs.training_folder import NUMERIC_TRIPLES, check_against_folder, read_folder_vocabulary
    from kgtrace_indexer.inputs.triples import read_triples

    carried = _carried(args)
    if None in (args.train, args.entity_to_id, args.relation_to_id) and not carried.is_dir():
        check_place(args.model)
        raise BadRequest(
            f"{args.model} carries no training_triples, which PyKEEN writes with save_training=True: pass --train, "
            "--entity-to-id and --relation-to-id"
        )
    if None in (args.entity_to_id, args.relation_to_id):
        vocabulary = read_folder_vocabulary(
            carried, entity_to_id=args.entity_to_id, relation_to_id=args.relation_to_id, names=args.names
        )
    else:
        vocabulary = read_vocabulary(args.entity_to_id, args.relation_to_id, args.names)
    if args.train is None:
        return vocabulary, read_triples(carried / NUMERIC_TRIPLES, vocabulary, ids=True)
    table = read_triples(args.train, vocabulary, skip_unknown=args.skip_unknown, ids=args.ids)
    check_against_folder(carried, vocabulary, table, args.train)
    return vocabulary, table


def _say_skipped(path: Path, table: "TripleTable") -> None:
    """Say how many lines of a file of test triples were left out, if any were."""
    if table.skipped:
        lines = len(table.ids) + table.skipped
        _warn(f"{table.skipped:,} of {lines:,} lines of {path} name unknown entities or relations: they were skipped")


def _chosen(args: argparse.Namespace, table: "TripleTable") -> "tuple[np.ndarray, np.ndarray]":
    """Return the chosen ones of a file's triples (n, 3), and which rows they are (n,)."""
    import numpy as np

    if args.test_indices is None:
        return table.ids[: args.max_test_triples], table.train_index[: args.max_test_triples]
    chosen = np.array(args.test_indices, np.int64)
    rows = np.searchsorted(table.train_index, chosen)  # ascending, with gaps where lines were skipped
    missing = chosen[table.train_index[np.minimum(rows, len(table.ids) - 1)] != chosen]
    if len(missing):
        raise BadRequest(
            f"--test-indices {missing[0]}: {args.test} has no such row to explain; it has {len(table.ids)}"
        )
    return table.ids[rows], chosen


def _bulk(args: argparse.Namespace, attributor: "Attributor") -> "Bulk":
    """Return the test triples of a call, and what it asks about them."""
    import numpy as np

    from kgtrace_indexer.index.preconditioner import SCORES
    from kgtrace_indexer.inputs.triples import read_triples
    from kgtrace_server.cli.bulk import Bulk
    from kgtrace_server.service import Question, Service

    service = Service(attributor)
    skipped = None
    if args.test is None:
        ids = np.array([service.triple_from_text(*triple) for triple in args.triple], np.int64)
        test_indices = np.arange(len(ids))
    else:
        table = read_triples(args.test, attributor.vocabulary, skip_unknown=args.skip_unknown, ids=args.ids)
        _say_skipped(args.test, table)
        skipped = table.skipped if args.skip_unknown else None
        ids, test_indices = _chosen(args, table)
    options = Question(
        [],
        top_k=args.top_k,
        order=args.order,
        exact=args.exact,
        max_candidates=args.max_candidates,
        must=_filter(args, service, "must"),
        must_not=_filter(args, service, "must_not"),
        within_hops=args.within_hops,
        direction=args.direction,
        score=None if args.precondition is None else SCORES[args.precondition],
        damping=args.damping,
    )
    return Bulk(service, options, ids, test_indices, skipped)


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
