"""``kgtrace VERB``: arguments in, exit codes out."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from math import inf, nan
from pathlib import Path
from typing import Any

from kgtrace_server.cli import commands
from kgtrace_server.cli.printable import printable
from kgtrace_server.settings import DEVICES, ENGINE_SETTINGS, add_flags
from kgtrace_store.cpus import calm_threads
from kgtrace_store.errors import KgtraceError

INTERRUPTED = 130
BROKEN_PIPE = 141
"""As shells report a program that SIGINT or SIGPIPE ended."""

ORDERS = ("proponents", "opponents", "absolute")
DIRECTIONS = ("tail", "head")
RANKINGS = ("descending", "ascending")
GROUPS = ("relation", "head", "tail", "triple")
STRATA = ("relation", "head", "tail")
LOSSES = ("bce", "removal", "bce-1vsall", "bce-kvsall", "ce-1vsall", "margin", "nssa", "softplus")
PROJECTIONS = ("pca", "gaussian", "sparse", "none")
PRECONDITIONERS = ("none", "fisher")
SHELLS = ("bash", "zsh", "fish")
PRESETS = ("baseline", "standard", "fast", "very-fast", "ultra-fast", "extreme")
"""Written out, for they live in a package that takes a second to import; a test compares them."""

PRESETS_HELP = """\
presets:
  baseline    all parameters, exact inner products, all training triples
  standard    the last two modules, exact inner products, all training triples
  fast        the last two modules, gaussian projection to 256, all training triples
  very-fast   the same with 50 % of the training triples, by relation
  ultra-fast  the same with 10 % of the training triples, by relation
  extreme     the last module, sparse projection to 128, 5 % of the training triples, by relation
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code: 0 success, 1 failure, 2 wrong call."""
    args = parser().parse_args(_with_guards(sys.argv[1:] if argv is None else argv))
    calm_threads(os.environ)
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
        message = printable(" ".join(str(e).split()))
        if not isinstance(e, KgtraceError):
            message = f"unexpected {type(e).__name__}: {message}: run it again with --debug to see where, and report it"
        sys.stderr.write(f"kgtrace: {message}\n")
        return 1
    return code


_TRIPLE = "--triple"
_GUARD = "\0"
"""Before a label of a triple, so that none looks like an option; no argument of a program can hold it."""


def _with_guards(argv: Sequence[str]) -> list[str]:
    """Mark the three arguments after each ``--triple`` as labels, whatever they begin with."""
    guarded = list(argv)
    at = 0
    while at < len(guarded):
        if guarded[at] == _TRIPLE and at + 3 < len(guarded):
            guarded[at + 1 : at + 4] = [_GUARD + label for label in guarded[at + 1 : at + 4]]
            at += 3
        at += 1
    return guarded


def _label(text: str) -> str:
    return text.removeprefix(_GUARD)


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
    _tracin(verb("tracin", commands.tracin, "compute influences at once, without an index"))
    _self_influence(verb("self-influence", commands.self_influence, "rank training triples by their own gradients"))
    _evaluate(verb("evaluate", commands.evaluate, "measure accuracy and speed of configurations on your own model"))
    serve = verb("serve", commands.serve, "run the HTTP service")
    add_flags(serve)
    verify = verb("verify", commands.verify, "check a generation: checksums, counts, values, exactness on a sample")
    verify.add_argument("generation", nargs="?", metavar="ID", help="default: the live one")
    _index(verify)
    _device(verify)
    _json(verify)
    listing = verb("list", commands.list_generations, "list the generations of an index root; * marks the live one")
    publish = verb("publish", commands.publish, "make a generation live")
    publish.add_argument("generation", metavar="ID", help="as `kgtrace list` shows it")
    rollback = verb("rollback", commands.rollback, "make the generation before the live one live")
    prune = verb("prune", commands.prune, "remove old generations; the live one stays")
    prune.add_argument("--keep", type=_integer(1), default=3, metavar="N", help="newest to keep (default: %(default)s)")
    _engine(prune)
    for over_generations in (listing, publish, rollback, prune):
        _index(over_generations)
        _json(over_generations)
    demo = verb("demo", commands.demo, "train a small model, index it, serve it and ask it")
    demo.add_argument("--once", action="store_true", help="stop after the first answer")
    completion = verb("completion", commands.completion, "print what lets a shell complete verbs, flags and file names")
    completion.add_argument("shell", choices=SHELLS, help="that is to read it")
    completion.set_defaults(command_line=root)
    return root


def _build(build: argparse.ArgumentParser) -> None:
    _ids(_trained(build), "--train")
    what = build.add_argument_group("what is indexed")
    _gradients(what, "removal")
    what.add_argument(
        "--layers",
        nargs="+",
        default=["all"],
        metavar="LAYER",
        help="all, last:N, or parameter names and patterns (default: all)",
    )
    what.add_argument(
        "--projection",
        choices=PROJECTIONS,
        default="pca",
        help="how gradients are kept: pca certifies every answer, gaussian and sparse guess, none keeps nothing and "
        "leaves every query to compute every influence (default: %(default)s)",
    )
    what.add_argument(
        "--dim", type=_integer(1), default=64, metavar="K", help="numbers kept of a gradient (default: %(default)s)"
    )
    what.add_argument(
        "--landmarks",
        type=_integer(1),
        default=2048,
        metavar="M",
        help="triples that the directions are chosen from (default: %(default)s)",
    )
    what.add_argument(
        "--sample-rate",
        type=_rate,
        default=1.0,
        metavar="P",
        help="index this share of the training triples; others cannot be named (default: all)",
    )
    what.add_argument(
        "--stratify-by", choices=STRATA, help="draw that share from the triples of each, and at least one"
    )
    what.add_argument(
        "--precondition",
        choices=PRECONDITIONERS,
        help="what queries are answered with by default: none is plain TracIn, fisher turns down what all gradients of "
        "an embedding row have in common (default: fisher with projection pca, where rows have gradients of their own)",
    )
    what.add_argument("--damping", type=_damping, metavar="X|auto", help="of fisher; auto is 3 (default: auto)")
    what.add_argument(
        "--seed", type=_integer(0), default=0, metavar="N", help="of all random choices (default: %(default)s)"
    )
    what.add_argument(
        "--shard-size",
        type=_integer(1),
        metavar="N",
        help="keep codes, rows and search indexes of so many training triples each in files of their own "
        "(default: of all together)",
    )
    what.add_argument(
        "--dtype", choices=("float32", "float16"), default="float16", help="of stored codes (default: %(default)s)"
    )
    how = build.add_argument_group("how")
    _how(how)
    how.add_argument(
        "--workers",
        type=_integer(1),
        metavar="N",
        help="processes that compute gradients, a GPU each where there are several (default: this process)",
    )
    how.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute gradients on a Ray cluster, auto, HOST:PORT or ray://HOST:PORT, by --workers actors",
    )


def _append(append: argparse.ArgumentParser) -> None:
    append.add_argument(
        "--train",
        type=Path,
        required=True,
        metavar="FILE",
        help="lines of head⇥relation⇥tail; those that are indexed already are skipped",
    )
    append.add_argument("--skip-unknown", action="store_true", help="count and skip lines with unknown labels")
    _ids(append, "--train")
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
        _TRIPLE,
        nargs=3,
        type=_label,
        action="append",
        metavar=("HEAD", "RELATION", "TAIL"),
        help="test triple: labels, or ids where no label is made of digits; may be repeated",
    )
    which.add_argument("--test", type=Path, metavar="FILE", help="test triples: lines of head⇥relation⇥tail")
    some = query.add_mutually_exclusive_group()
    some.add_argument("--test-indices", type=_integer(0), nargs="+", metavar="I", help="rows of --test, from 0")
    some.add_argument("--max-test-triples", type=_integer(1), metavar="N", help="only the first N of --test")
    query.add_argument("--skip-unknown", action="store_true", help="count and skip lines of --test with unknown labels")
    _ids(query, "--test")
    query.add_argument(
        "--top-k", type=_integer(1), default=10, metavar="K", help="training triples to name (default: %(default)s)"
    )
    query.add_argument("--order", choices=ORDERS, default="proponents", help="default: %(default)s")
    query.add_argument("--direction", choices=DIRECTIONS, default="tail", help="what to explain (default: %(default)s)")
    query.add_argument(
        "--aggregate",
        choices=GROUPS,
        metavar="BY",
        help="sum the influences on all test triples: by relation, head or tail of the training triples, or of each "
        "training triple",
    )
    built = "(default: as the index was built)"
    query.add_argument("--precondition", choices=PRECONDITIONERS, help=f"TracIn or the preconditioned score {built}")
    query.add_argument("--damping", type=_asked_damping, metavar="X|auto", help=f"of fisher; auto is 3 {built}")
    query.add_argument("--exact", action="store_true", help="compute every training triple's influence: slow")
    query.add_argument(
        "--max-candidates", type=_integer(0), metavar="N", help="look at no more; the answer may not be certified"
    )
    _filters(query).add_argument(
        "--within-hops",
        type=_integer(1),
        metavar="N",
        help="so near to the test triple: with 1 those that touch its head or tail, with 2 what touches these, ...",
    )
    _device(query)
    _engine(query)
    query.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=".json: as POST /v1/influences answers; .csv, .parquet: one row per influence; "
        "an interrupted run goes on where it stopped; with --aggregate as POST /v1/aggregate answers, one row per sum",
    )
    query.add_argument("--fresh", action="store_true", help="discard what an interrupted run left beside --output")
    _json(query)


def _tracin(tracin: argparse.ArgumentParser) -> None:
    tracin.formatter_class = argparse.RawDescriptionHelpFormatter
    tracin.epilog = PRESETS_HELP
    tracin.set_defaults(names=None)
    tracin.add_argument(
        "--model-path",
        dest="model",
        type=Path,
        required=True,
        metavar="PATH",
        help="PyKEEN folder of save_to_directory, converted folder, or file (.pkl, .pt)",
    )
    _state_dict(tracin)
    tracin.add_argument(
        "--output-channels", type=_integer(1), metavar="C", help="of a ConvE; checked against the model's own"
    )
    data = tracin.add_argument_group("triples")
    data.add_argument(
        "--train", type=Path, metavar="FILE", help="lines of head⇥relation⇥tail (default: the model's own)"
    )
    data.add_argument("--entity-to-id", type=Path, metavar="FILE", help="lines of label⇥id or id⇥label")
    data.add_argument("--relation-to-id", type=Path, metavar="FILE", help="the same for relations")
    data.add_argument("--test", type=Path, metavar="FILE", help="test triples: lines of head⇥relation⇥tail")
    some = data.add_mutually_exclusive_group()
    some.add_argument("--test-indices", type=_integer(0), nargs="+", metavar="I", help="rows of --test, from 0")
    some.add_argument("--max-test-triples", type=_integer(1), metavar="N", help="only the first N of --test")
    data.add_argument(
        "--skip-unknown",
        action="store_true",
        help="skip lines of --train with unknown labels; those of --test always are",
    )
    _ids(data, "--train and --test")
    what = tracin.add_argument_group("what is computed")
    what.add_argument(
        "--mode",
        choices=("single", "test", "self"),
        default="test",
        help="influences on test triples, as a list or with a summary, or self-influences (default: %(default)s)",
    )
    what.add_argument(
        "--top-k", type=_integer(1), default=10, metavar="K", help="training triples to name (default: %(default)s)"
    )
    what.add_argument(
        "--learning-rate", type=_positive, default=1.0, metavar="X", help="factor of all influences (default: 1)"
    )
    what.add_argument("--directions", choices=("forward", "both"), help="of the training side (default: as trained)")
    cost = tracin.add_argument_group("for how much work; what is given explicitly goes before the preset")
    cost.add_argument("--preset", choices=PRESETS, default="baseline", help="see below (default: %(default)s)")
    boolean = argparse.BooleanOptionalAction
    cost.add_argument("--use-last-layers-only", action=boolean, help="let only the last modules' parameters count")
    cost.add_argument(
        "--num-last-layers", type=_integer(1), metavar="N", help="modules, counted from the score backwards"
    )
    cost.add_argument(
        "--last-layer-names", nargs="+", metavar="NAME", help="instead: modules or parameters, or patterns"
    )
    cost.add_argument("--use-projection", action=boolean, help="estimate influences from random projections")
    cost.add_argument("--projection-dim", type=_integer(1), metavar="D", help="to so many numbers")
    cost.add_argument("--projection-type", choices=("gaussian", "sparse"), help="of what kind")
    cost.add_argument("--sample-rate", type=_rate, metavar="P", help="look at this share of the training triples")
    cost.add_argument(
        "--stratify-by", choices=(*STRATA, "none"), help="draw that share from the triples of each, and at least one"
    )
    how = tracin.add_argument_group("how")
    how.add_argument("--seed", type=_integer(0), default=0, metavar="N", help="of sample and projection (default: 0)")
    how.add_argument("--output", type=Path, metavar="FILE.json", help="write JSON there, whole or not at all")
    _device(how)
    _batch(how)
    _json(how)


def _self_influence(ranking: argparse.ArgumentParser) -> None:
    _index(ranking)
    ranking.add_argument(
        "--top-k", type=_integer(1), default=10, metavar="K", help="training triples to name (default: %(default)s)"
    )
    ranking.add_argument("--order", choices=RANKINGS, default="descending", help="default: %(default)s")
    ranking.add_argument(
        "--precondition",
        choices=PRECONDITIONERS,
        help="none is the squared norm, fisher the preconditioned score (default: what the index was built with)",
    )
    _filters(ranking)
    _device(ranking)
    ranking.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=".json: as GET /v1/self-influence answers; .csv, .parquet: one row per training triple",
    )
    _json(ranking)


def _evaluate(evaluate: argparse.ArgumentParser) -> None:
    _ids(_trained(evaluate), "--train and --test")
    asked = evaluate.add_argument_group("what is asked")
    asked.add_argument(
        "--test", type=Path, required=True, metavar="FILE", help="test triples: lines of head⇥relation⇥tail"
    )
    asked.add_argument(
        "--max-test-triples",
        type=_integer(1),
        default=50,
        metavar="N",
        help="how many of them are drawn at random (default: %(default)s)",
    )
    asked.add_argument(
        "--top-k", type=_integer(1), default=10, metavar="K", help="training triples to find (default: %(default)s)"
    )
    asked.add_argument("--order", choices=ORDERS, default="proponents", help="default: %(default)s")
    _gradients(asked, "bce")
    how = evaluate.add_argument_group("how")
    how.add_argument(
        "--seed",
        type=_integer(0),
        default=0,
        metavar="N",
        help="of test triples, samples, projections and the index (default: %(default)s)",
    )
    _device(how)
    _batch(how)
    how.add_argument(
        "--output",
        type=Path,
        metavar="FILE.json",
        help="what was measured; an interrupted run goes on where it stopped",
    )
    how.add_argument("--plots", type=Path, metavar="DIR", help="write pictures there, as PNG and SVG")
    how.add_argument("--fresh", action="store_true", help="discard what an interrupted run left beside --output")
    _json(how)


# Arguments that several verbs share.


def _common(default: object) -> argparse.ArgumentParser:
    """``--debug``, before the verb and after it; the one after it must not undo the one before."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=default, help="show where a failure comes from")
    return common


def _filters(to: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Arguments that say which training triples may be named."""
    restrict = to.add_argument_group(
        "which training triples may be named (labels, or ids where no label is made of digits; may be repeated, and "
        "--relation=LABEL takes one that begins with -)"
    )
    labels: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "LABEL"}
    for name in ("head", "relation", "tail"):
        restrict.add_argument(f"--{name}", dest=f"must_{name}", help=f"those whose {name} is one of these", **labels)
        restrict.add_argument(f"--not-{name}", dest=f"must_not_{name}", help="those whose is none of these", **labels)
    return restrict


def _trained(to: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Arguments that say which model was trained on what. Return the group of those about data."""
    to.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="PATH",
        help="PyKEEN folder of save_to_directory, converted folder, or file (.pkl, .pt)",
    )
    _state_dict(to)
    data = to.add_argument_group("training data, where the model's folder does not carry it")
    data.add_argument("--train", type=Path, metavar="FILE", help="lines of head⇥relation⇥tail")
    data.add_argument("--entity-to-id", type=Path, metavar="FILE", help="lines of label⇥id or id⇥label")
    data.add_argument("--relation-to-id", type=Path, metavar="FILE", help="the same for relations")
    data.add_argument("--names", type=Path, metavar="FILE", help="lines of label⇥name, for people to read")
    data.add_argument("--skip-unknown", action="store_true", help="count and skip lines with unknown labels")
    return data


def _ids(to: "argparse._ActionsContainer", files: str) -> None:
    to.add_argument("--ids", action="store_true", help=f"the lines of {files} hold ids, not labels")


def _gradients(to: "argparse._ActionsContainer", loss: str) -> None:
    """Arguments that say what influence is the inner product of, under some loss unless another is asked for."""
    to.add_argument(
        "--loss",
        choices=LOSSES,
        default=loss,
        metavar="NAME",
        help=f"whose gradient: {', '.join(LOSSES)} (default: %(default)s)",
    )
    to.add_argument(
        "--label-smoothing",
        type=float,
        default=0.0,
        metavar="X",
        help="of the losses over all tails, as in training (default: 0)",
    )
    to.add_argument(
        "--negatives",
        type=_integer(1),
        metavar="K",
        help="of margin, nssa and softplus: how many each triple is compared with (default: 1)",
    )
    to.add_argument(
        "--checkpoints",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="states of the model during training whose influences are summed (default: the model alone)",
    )
    to.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        default=[],
        metavar="X",
        help="weight of each checkpoint, or one for all (default: 1)",
    )
    to.add_argument("--directions", choices=("forward", "both"), help="of the training side (default: as trained)")


def _how(to: "argparse._ActionsContainer") -> None:
    """Arguments of the verbs that build a generation."""
    _index(to)
    _device(to)
    _batch(to)
    _engine(to)
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


def _engine(to: "argparse._ActionsContainer") -> None:
    add_flags(to, ENGINE_SETTINGS)


def _batch(to: "argparse._ActionsContainer") -> None:
    to.add_argument(
        "--batch-size", type=_batch_size, metavar="N|auto", help="triples computed together (default: auto)"
    )


def _json(to: "argparse._ActionsContainer") -> None:
    to.add_argument("--json", action="store_true", help="print JSON")


def _state_dict(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("facts that a bare state dict does not tell")
    group.add_argument("--interaction", metavar="NAME", help="as PyKEEN calls it: ConvE")
    group.add_argument("--embedding-dim", type=_integer(1), metavar="D", help="numbers in an entity's row")


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


def _rate(text: str) -> float:
    if not 0 < (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return value


def _positive(text: str) -> float:
    if not 0 < (value := _number(text)) < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _damping(text: str) -> float | None:
    return None if text == "auto" else _positive(text)


def _asked_damping(text: str) -> float | str:
    return "auto" if text == "auto" else _positive(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else _integer(1)(text)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"kgtrace {version('kgtrace')}\n")
        parser.exit()
