"""Verbs of operators: ``serve``, and the verbs that look after the generations of an index."""

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from kgtrace_server import catalogue
from kgtrace_server.cli import arguments, render
from kgtrace_server.cli.arguments import Verb, WrongCall, add
from kgtrace_server.cli.console import say
from kgtrace_server.cli.verbs.build import engine_settings
from kgtrace_server.settings import Settings, add_flags
from kgtrace_store.errors import BadRequest

if TYPE_CHECKING:
    from kgtrace_indexer.building.checks import Check

SHELLS = ("bash", "zsh", "fish")


def register(verb: Verb) -> None:
    """Add the verbs."""
    add_flags(verb("serve", serve, "run the HTTP service"))
    checking = verb("verify", verify, "check a generation: checksums, counts, values, exactness on a sample")
    checking.add_argument("generation", nargs="?", metavar="ID", help="default: the live one")
    arguments.index(checking)
    add(checking, "--device", "--json")
    listing = verb("list", list_generations, "list the generations of an index root; * marks the live one")
    publishing = verb("publish", publish, "make a generation live")
    publishing.add_argument("generation", metavar="ID", help="as `kgtrace list` shows it")
    rolling_back = verb("rollback", rollback, "make the generation before the live one live")
    pruning = verb("prune", prune, "remove old generations; the live one stays")
    pruning.add_argument(
        "--keep", type=arguments.integer(1), default=3, metavar="N", help="newest to keep (default: %(default)s)"
    )
    arguments.engine(pruning)
    for over_generations in (listing, publishing, rolling_back, pruning):
        arguments.index(over_generations)
        add(over_generations, "--json")
    showing = verb("demo", demo, "train a small model, index it, serve it and ask it")
    showing.add_argument("--once", action="store_true", help="stop after the first answer")
    completing = verb("completion", completion, "print what lets a shell complete verbs, flags and file names")
    completing.add_argument("shell", choices=SHELLS, help="that is to read it")


def serve(args: argparse.Namespace) -> int:
    """Run the HTTP service until a signal stops it."""
    try:
        settings = Settings.resolve(vars(args), os.environ)
    except BadRequest as e:
        raise WrongCall(str(e)) from e
    if settings.index is None:
        raise WrongCall("no index: give --index ROOT or set KGTRACE_INDEX")
    from kgtrace_server.http import logs, serving, tracing, workers
    from kgtrace_server.http.app import create_app

    logs.configure(settings.log_level, settings.log_format)
    tracer = tracing.provider_from(os.environ)
    with serving.listen(settings) as listening:
        at = serving.address(listening)
        sys.stdout.write(f"kgtrace serves {settings.index} at {at}\ndashboard: {at}/\ndocumentation: {at}/docs\n")
        sys.stdout.flush()
        if settings.workers > 1:
            workers.supervise(settings, listening)
        else:
            serving.serve(create_app(serving.loader(settings), settings, tracer), settings, listening)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check a generation against its manifest, its model and itself."""
    from kgtrace_indexer.building.checks import verify as run_checks
    from kgtrace_indexer.query.opening import open_index

    attributor = open_index(args.index, args.generation, device=args.device)
    checks = run_checks(attributor)
    sound = all(check.ok for check in checks)
    rows = [(_verdict(check), check.name, check.detail) for check in checks]
    facts = {"generation": attributor.manifest.generation, "ok": sound, "checks": [asdict(check) for check in checks]}
    say(args, facts, render.table(rows))
    return 0 if sound else 1


def _verdict(check: "Check") -> str:
    if check.ok:
        return "WARNING" if check.warning else "ok"
    return "FAILED"


def list_generations(args: argparse.Namespace) -> int:
    """Show the generations on disk, and which of them is live."""
    from kgtrace_store.generations import IndexRoot

    root = IndexRoot(args.index)
    root.require()
    generations = catalogue.generations(root)
    rows = [("", "generation", "built at", "triples", "model", "agreement")]
    for info in generations:
        if info.problem is None:
            overlap = None if info.agreement is None else info.agreement["overlap"]
            agreement = "" if overlap is None else f"{overlap:.0%}"
            shown = (str(info.built_at), f"{(info.counts or {}).get('triples', 0):,}", str(info.model), agreement)
        else:
            shown = (f"unreadable: {info.problem}", "", "", "")
        rows.append(("*" if info.live else "", info.id, *shown))
    say(args, {"live": root.current(), "generations": generations}, render.table(rows))
    return 0


def publish(args: argparse.Namespace) -> int:
    """Make a generation live."""
    from kgtrace_store.generations import IndexRoot

    IndexRoot(args.index).publish(args.generation)
    say(args, {"live": args.generation}, f"generation {args.generation} is live\n")
    return 0


def rollback(args: argparse.Namespace) -> int:
    """Make the generation before the live one live."""
    from kgtrace_store.generations import IndexRoot

    live = IndexRoot(args.index).rollback()
    say(args, {"live": live}, f"generation {live} is live again\n")
    return 0


def prune(args: argparse.Namespace) -> int:
    """Remove old generations."""
    from kgtrace_server import engines
    from kgtrace_store.generations import IndexRoot

    milvus = engines.milvus(engine_settings(args))
    removed = IndexRoot(args.index).prune(args.keep)
    if milvus is not None:
        milvus.drop(removed)
    say(args, {"removed": removed}, "".join(f"removed {id_}\n" for id_ in removed) or "nothing to remove\n")
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
