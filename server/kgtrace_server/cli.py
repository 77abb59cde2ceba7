"""``kgtrace VERB``: arguments in, exit codes out."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kgtrace_server import commands
from kgtrace_server.settings import DEVICES, add_flags
from kgtrace_store.errors import KgtraceError

INTERRUPTED = 130
BROKEN_PIPE = 141
"""As shells report a program that SIGINT or SIGPIPE ended."""

ORDERS = ("proponents", "opponents", "absolute")
DIRECTIONS = ("tail", "head")
"""Written out, for they live in a package that takes a second to import; a test compares them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code: 0 success, 1 failure, 2 wrong call."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except commands.WrongCall as e:
        args.parser.error(str(e))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader is gone; without this the interpreter would complain when it flushes at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as e:
        if args.debug:
            raise
        message = " ".join(str(e).split())
        if not isinstance(e, KgtraceError):
            message = f"unexpected {type(e).__name__}: {message}: run it again with --debug to see where, and report it"
        sys.stderr.write(f"kgtrace: {message}\n")
        return 1
    return code


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="kgtrace",
        description="Which training triples made a knowledge-graph embedding model say this?",
        parents=[_common(default=False)],
    )
    root.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = root.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=summary, description=summary, parents=[_common(default=argparse.SUPPRESS)])
        added.set_defaults(run=run, parser=added)
        return added

    _build(verb("build", commands.build, "index the training triples of a model and publish the index"))
    _append(verb("append", commands.append, "extend the live index by new training triples of the same model"))
    _convert(verb("convert", commands.convert, "turn a model into safetensors, without executing its pickle"))
    _query(verb("query", commands.query, "name the training triples that influenced test triples"))
    serve = verb("serve", commands.serve, "run the HTTP service")
    add_flags(serve)
    verify = verb("verify", commands.verify, "check a generation: checksums, counts, values, exactness on a sample")
    verify.add_argument("generation", nargs="?", metavar="ID", help="default: the live one")
    _index(verify)
    _device(verify)
    _json(verify)
    listing = verb("list", commands.list_generations, "list the generations of an index root; * marks the live one")
    publish = verb("publish", commands.publish, "make a generation live")
    publish.add_argument("generation", metavar="ID")
    rollback = verb("rollback", commands.rollback, "make the generation before the live one live")
    prune = verb("prune", commands.prune, "remove old generations; the live one stays")
    prune.add_argument("--keep", type=_integer(1), default=3, metavar="N", help="newest to keep (default: %(default)s)")
    for over_generations in (listing, publish, rollback, prune):
        _index(over_generations)
        _json(over_generations)
    demo = verb("demo", commands.demo, "train a small model, index it, serve it and ask it")
    demo.add_argument("--once", action="store_true", help="stop after the first answer")
    return root


def _build(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="PATH",
        help="PyKEEN folder of save_to_directory, converted folder, or file (.pkl, .pt)",
    )
    _state_dict(build)
    data = build.add_argument_group("training data, where the model's folder does not carry it")
    data.add_argument("--train", type=Path, metavar="FILE", help="lines of head⇥relation⇥tail")
    data.add_argument("--entity-to-id", type=Path, metavar="FILE", help="lines of label⇥id or id⇥label")
    data.add_argument("--relation-to-id", type=Path, metavar="FILE", help="the same for relations")
    data.add_argument("--names", type=Path, metavar="FILE", help="lines of label⇥name, for people to read")
    data.add_argument("--skip-unknown", action="store_true", help="count and skip lines with unknown labels")
    what = build.add_argument_group("what is indexed")
    what.add_argument("--loss", default="bce", metavar="NAME", help="whose gradient (default: %(default)s)")
    what.add_argument(
        "--checkpoints",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="states of the model during training whose influences are summed (default: the model alone)",
    )
    what.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        default=[],
        metavar="X",
        help="weight of each checkpoint, or one for all (default: 1)",
    )
    what.add_argument("--directions", choices=("forward", "both"), help="of the training side (default: as trained)")
    what.add_argument(
        "--layers",
        nargs="+",
        default=["all"],
        metavar="LAYER",
        help="all, last:N, or parameter names and patterns (default: all)",
    )
    what.add_argument(
        "--dim", type=_integer(1), default=64, metavar="K", help="directions in the index (default: %(default)s)"
    )
    what.add_argument(
        "--landmarks",
        type=_integer(1),
        default=2048,
        metavar="M",
        help="triples that the directions are chosen from (default: %(default)s)",
    )
    what.add_argument("--seed", type=_integer(0), default=0, metavar="N", help="of that choice (default: %(default)s)")
    what.add_argument(
        "--dtype", choices=("float32", "float16"), default="float16", help="of stored codes (default: %(default)s)"
    )
    _how(build.add_argument_group("how"))


def _append(append: argparse.ArgumentParser) -> None:
    append.add_argument(
        "--train",
        type=Path,
        required=True,
        metavar="FILE",
        help="lines of head⇥relation⇥tail; those that are indexed already are skipped",
    )
    append.add_argument("--skip-unknown", action="store_true", help="count and skip lines with unknown labels")
    _how(append)


def _convert(convert: argparse.ArgumentParser) -> None:
    convert.add_argument("model", type=Path, metavar="MODEL", help="PyKEEN folder, or file (.pkl, .pt)")
    convert.add_argument("out", type=Path, metavar="OUT", help="folder for model.safetensors and model.json")
    _state_dict(convert)
    convert.add_argument(
        "--relation-to-id", type=Path, metavar="FILE", help="tells how many relations a state dict is of"
    )
    _json(convert)


def _query(query: argparse.ArgumentParser) -> None:
    _index(query)
    which = query.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--triple",
        nargs=3,
        action="append",
        metavar=("HEAD", "RELATION", "TAIL"),
        help="test triple: labels, or ids where no label is the same; may be repeated",
    )
    which.add_argument("--test", type=Path, metavar="FILE", help="test triples: lines of head⇥relation⇥tail")
    some = query.add_mutually_exclusive_group()
    some.add_argument("--test-indices", type=_integer(0), nargs="+", metavar="I", help="rows of --test, from 0")
    some.add_argument("--max-test-triples", type=_integer(1), metavar="N", help="only the first N of --test")
    query.add_argument("--skip-unknown", action="store_true", help="skip lines of --test with unknown labels")
    query.add_argument(
        "--top-k", type=_integer(1), default=10, metavar="K", help="training triples to name (default: %(default)s)"
    )
    query.add_argument("--order", choices=ORDERS, default="proponents", help="default: %(default)s")
    query.add_argument("--direction", choices=DIRECTIONS, default="tail", help="what to explain (default: %(default)s)")
    query.add_argument("--exact", action="store_true", help="compute every training triple's influence: slow")
    query.add_argument(
        "--max-candidates", type=_integer(0), metavar="N", help="look at no more; the answer may not be certified"
    )
    restrict = query.add_argument_group("which training triples may be named (labels or ids)")
    for name in ("head", "relation", "tail"):
        restrict.add_argument(f"--{name}", dest=f"must_{name}", nargs="+", metavar="LABEL")
        restrict.add_argument(f"--not-{name}", dest=f"must_not_{name}", nargs="+", metavar="LABEL")
    _device(query)
    query.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=".json: as POST /v1/influences answers; .csv, .parquet: one row per influence",
    )
    _json(query)


# Arguments that several verbs share.


def _common(default: object) -> argparse.ArgumentParser:
    """``--debug``, before the verb and after it; the one after it must not undo the one before."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=default, help="show where a failure comes from")
    return common


def _how(to: "argparse._ActionsContainer") -> None:
    """Arguments of the verbs that build a generation."""
    _index(to)
    _device(to)
    to.add_argument(
        "--batch-size", type=_batch_size, metavar="N|auto", help="triples computed together (default: auto)"
    )
    to.add_argument("--no-publish", dest="publish", action="store_false", help="build, but do not make it live")
    to.add_argument("--fresh", action="store_true", help="discard what an interrupted build left")
    to.add_argument("--gate-report", type=Path, metavar="FILE", help="also write the verdict of the checks there")
    _json(to)


def _index(to: "argparse._ActionsContainer") -> None:
    root = os.environ.get("KGTRACE_INDEX")
    to.add_argument(
        "--index",
        type=Path,
        metavar="ROOT",
        required=not root,
        default=Path(root) if root else None,
        help="index root (default: KGTRACE_INDEX)",
    )


def _device(to: "argparse._ActionsContainer") -> None:
    to.add_argument(
        "--device", choices=DEVICES, default="auto", help="where gradients are computed (default: %(default)s)"
    )


def _json(to: "argparse._ActionsContainer") -> None:
    to.add_argument("--json", action="store_true", help="print JSON")


def _state_dict(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("facts that a bare state dict does not tell")
    group.add_argument("--interaction", metavar="NAME", help="as PyKEEN calls it: ConvE")
    group.add_argument("--embedding-dim", type=_integer(1), metavar="D")


def _integer(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
        return value

    return parse


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else _integer(1)(text)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        parser.exit(message=f"kgtrace {version('kgtrace')}\n")
