"""Arguments that several verbs share, and how their texts are read."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from math import inf, nan
from pathlib import Path
from typing import Any, get_args

from kgtrace_indexer.inputs.registries import InMlflow, OnHub, address
from kgtrace_indexer.names import PRECONDITIONS, Direction, Directions, LossName, Order, Score, Stratum
from kgtrace_server.settings import DEVICES, ENGINE_SETTINGS, add_flags
from kgtrace_store.errors import BadRequest

Verb = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds a verb: its name, its function and a summary; returns its parser."""

Container = argparse._ActionsContainer
"""A parser, or a group of its arguments."""


class WrongCall(Exception):
    """Arguments that each are fine and together are not."""


def choices(names: Any) -> tuple[str, ...]:
    """Return the texts of a literal, or of a union of literals."""
    return tuple(text for part in get_args(names) for text in get_args(part) or (part,))


DIRECTIONS = choices(Direction)
ORDERS = choices(Order)
SCORES = choices(Score)
STRATA = choices(Stratum)
LOSSES = choices(LossName)

TRIPLE, WITHOUT = "--triple", "--without"
_GUARD = "\0"
"""Before a label of a triple, so that none looks like an option; no argument of a program can hold it."""


def with_guards(argv: Sequence[str]) -> list[str]:
    """Mark the three arguments after each ``--triple`` and ``--without`` as labels, even if they begin with a dash."""
    guarded = list(argv)
    at = 0
    while at < len(guarded):
        if guarded[at] in (TRIPLE, WITHOUT) and at + 3 < len(guarded):
            guarded[at + 1 : at + 4] = [_GUARD + label for label in guarded[at + 1 : at + 4]]
            at += 3
        at += 1
    return guarded


def label(text: str) -> str:
    """Take the mark off again."""
    return text.removeprefix(_GUARD)


# Types.


def integer(least: int) -> Callable[[str], int]:
    """Read integers that are large enough."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
        return value

    return parse


def rate(text: str) -> float:
    """Read a share."""
    if not 0 < (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return value


def positive(text: str) -> float:
    """Read a positive number."""
    if not 0 < (value := _number(text)) < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def damping(text: str) -> float | str:
    """Read σ², or ``auto``."""
    return "auto" if text == "auto" else positive(text)


def prefix(text: str) -> tuple[str, str]:
    """Read a prefix and what it stands for."""
    name, equals, iri = text.partition("=")
    if not equals or not iri or ":" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=IRI, such as wd=http://www.wikidata.org/entity/")
    return name, iri


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def model_place(text: str) -> Path | OnHub | InMlflow:
    """Read a path, or a model's address in a registry."""
    try:
        return address(text) or Path(text)
    except BadRequest as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else integer(1)(text)


def _precondition(text: str) -> str:
    if text not in PRECONDITIONS:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(PRECONDITIONS)})")
    return PRECONDITIONS[text]


# Arguments.

_SHARED: Mapping[str, Mapping[str, Any]] = {
    "--batch-size": {"type": _batch_size, "metavar": "N|auto", "help": "triples computed together (default: auto)"},
    "--device": {"choices": DEVICES, "default": "auto", "help": "where gradients are computed (default: %(default)s)"},
    "--directions": {"choices": choices(Directions), "help": "of the training side (default: as trained)"},
    "--embedding-dim": {"type": integer(1), "metavar": "D", "help": "numbers in an entity's row"},
    "--entity-to-id": {"type": Path, "metavar": "FILE", "help": "lines of label⇥id or id⇥label"},
    "--fresh": {"action": "store_true", "help": "discard what an interrupted run left beside --output"},
    "--ids": {"action": "store_true"},
    "--interaction": {"metavar": "NAME", "help": "of a state dict: ConvE, 'TransE(p_norm=1)'"},
    "--json": {"action": "store_true", "help": "print JSON"},
    "--max-test-triples": {"type": integer(1), "metavar": "N", "help": "only the first N of --test"},
    "--only-iris": {
        "action": "store_true",
        "help": "refuse RDF with literals or blank nodes, instead of leaving such statements out",
    },
    "--order": {"choices": ORDERS, "default": ORDERS[0], "help": "default: %(default)s"},
    "--output": {"type": Path, "metavar": "FILE"},
    "--relation-to-id": {"type": Path, "metavar": "FILE", "help": "the same for relations"},
    "--seed": {"type": integer(0), "default": 0, "metavar": "N"},
    "--skip": {
        "type": Path,
        "metavar": "FILE",
        "help": "leave out the training triples in these lines of head⇥relation⇥tail; each must be one, or with "
        "--skip-unknown is counted",
    },
    "--skip-unknown": {"action": "store_true", "help": "count and skip lines with unknown labels"},
    "--stratify-by": {"choices": STRATA, "help": "draw that share from the triples of each, and at least one"},
    "--test": {"type": Path, "metavar": "FILE", "help": "test triples: lines of head⇥relation⇥tail, RDF or columns"},
    "--test-indices": {"type": integer(0), "nargs": "+", "metavar": "I", "help": "rows of --test, from 0"},
    "--top-k": {
        "type": integer(1),
        "default": 10,
        "metavar": "K",
        "help": "training triples to name (default: %(default)s)",
    },
    "--train": {
        "type": Path,
        "metavar": "FILE",
        "help": "lines of head⇥relation⇥tail, RDF (.nt, .nq, .ttl, .trig), or columns (.parquet, .arrow, .feather)",
    },
}
"""Arguments of several verbs, as `argparse` takes them."""


def add(to: Container, *flags: str, **changes: Any) -> None:
    """Add shared arguments, with changes."""
    for flag in flags:
        to.add_argument(flag, **{**_SHARED[flag], **changes})


def common(default: object) -> argparse.ArgumentParser:
    """``--debug``, before the verb and after it; the one after it must not undo the one before."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--debug", action="store_true", default=default, help="show where a failure comes from")
    return parser


def index(to: Container) -> None:
    """``--index``."""
    root = os.environ.get("KGTRACE_INDEX")
    to.add_argument(
        "--index",
        type=Path,
        metavar="ROOT",
        required=not root,
        default=Path(root) if root else None,
        help="index root (default: KGTRACE_INDEX)",
    )


def generation(to: Container) -> None:
    """How a generation is built, and where."""
    index(to)
    add(to, "--device", "--batch-size")
    engine(to)
    to.add_argument("--no-publish", dest="publish", action="store_false", help="build, but do not make it live")
    add(to, "--fresh", help="discard what an interrupted build left")
    to.add_argument("--gate-report", type=Path, metavar="FILE", help="also write the verdict of the checks there")
    add(to, "--json")


def engine(to: Container) -> None:
    """Which engine searches."""
    add_flags(to, ENGINE_SETTINGS)


def score(to: Container, meaning: str) -> None:
    """``--score``, or ``--precondition``, which is not shown."""
    either = to.add_mutually_exclusive_group()
    either.add_argument("--score", choices=SCORES, help=meaning)
    either.add_argument("--precondition", dest="score", type=_precondition, help=argparse.SUPPRESS)


def test_rows(to: Container) -> None:
    """Which triples of ``--test`` are explained."""
    add(to.add_mutually_exclusive_group(), "--test-indices", "--max-test-triples")


def filters(to: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Which training triples may be named."""
    restrict = to.add_argument_group(
        "which training triples may be named (labels, or ids where no label is made of digits; may be repeated, and "
        "--relation=LABEL takes one that begins with -)"
    )
    labels: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "LABEL"}
    for name in ("head", "relation", "tail"):
        restrict.add_argument(f"--{name}", dest=f"must_{name}", help=f"those whose {name} is one of these", **labels)
        restrict.add_argument(f"--not-{name}", dest=f"must_not_{name}", help="those whose is none of these", **labels)
    return restrict


def model(to: argparse.ArgumentParser, flag: str = "--model", **more: Any) -> None:
    """The model, and the facts that a bare state dict lacks."""
    kind = (
        "PyKEEN folder of save_to_directory, converted folder, or file (.pkl, .pt); or hf://OWNER/REPO or "
        "mlflow:/NAME/VERSION"
    )
    options: dict[str, Any] = {
        "dest": "model",
        "type": model_place,
        "required": True,
        "metavar": "PATH",
        "help": kind,
    } | more
    options["help"] = kind + more.get("help", "")
    to.add_argument(flag, **options)
    state_dict(to)


def state_dict(to: argparse.ArgumentParser) -> None:
    """The facts that a bare state dict lacks."""
    add(to.add_argument_group("facts that a bare state dict does not tell"), "--interaction", "--embedding-dim")


def trained(to: argparse.ArgumentParser, ids_in: str) -> None:
    """A model, or several, and their training triples."""
    seeds = "; repeated for models of other seeds: influence is the mean over all, scores are the first one's"
    model(to, dest="models", action="append", help=seeds)
    data = to.add_argument_group("training data, where the model's folder does not carry it")
    add(data, "--train", "--entity-to-id", "--relation-to-id")
    data.add_argument("--names", type=Path, metavar="FILE", help="lines of label⇥name, for people to read, or RDF")
    data.add_argument(
        "--lang", default="en", metavar="TAG", help="language of names in RDF, where there is a choice (default: en)"
    )
    data.add_argument(
        "--prefix",
        dest="prefixes",
        type=prefix,
        action="append",
        default=[],
        metavar="NAME=IRI",
        help="what NAME:… stands for, besides the prefixes of RDF files; may be repeated",
    )
    add(data, "--skip-unknown", "--only-iris")
    ids(data, ids_in)


def ids(to: Container, files: str) -> None:
    """``--ids``."""
    add(to, "--ids", help=f"the lines of {files} hold ids, not labels")


def gradients(to: Container, loss: str | None) -> None:
    """The gradients whose inner product an influence is, under ``loss`` by default; None: a loss of each score."""
    to.add_argument(
        "--loss",
        choices=LOSSES,
        default=loss,
        metavar="NAME",
        help=f"whose gradient: {', '.join(LOSSES)} (default: "
        f"{loss or 'bce for tracin, and removal, the score itself, for preconditioned'})",
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
        type=integer(1),
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
    add(to, "--directions")
