"""``kgtrace push``: an index to a repository of the Hugging Face Hub."""

import argparse
from pathlib import Path

from kgtrace_indexer.inputs.registries import OnHub, address
from kgtrace_server.cli.arguments import Verb, add
from kgtrace_server.cli.console import say
from kgtrace_store.errors import BadRequest


def register(verb: Verb) -> None:
    """Add the verb."""
    pushing = verb("push", push, "upload a generation and a card to a repository of the Hugging Face Hub")
    pushing.add_argument("index", type=Path, metavar="ROOT", help="index root")
    pushing.add_argument(
        "place", type=_repository, metavar="hf://OWNER/REPO", help="repository, made if it is not there"
    )
    pushing.add_argument("--generation", metavar="ID", help="default: the live one")
    pushing.add_argument(
        "--public", action="store_true", help="let everybody read a repository that is made (default: private)"
    )
    add(pushing, "--json")


def push(args: argparse.Namespace) -> int:
    """Upload a generation."""
    from kgtrace_server.cli import pushing
    from kgtrace_store.generations import IndexRoot

    commit = pushing.push(IndexRoot(args.index), args.generation, args.place, public=args.public)
    say(args, {"pushed": str(args.place), "commit": commit}, f"pushed to {args.place}: {commit}\n")
    return 0


def _repository(text: str) -> OnHub:
    try:
        place = address(text)
    except BadRequest as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    if not isinstance(place, OnHub):
        raise argparse.ArgumentTypeError(f"{text!r} is not hf://OWNER/REPO")
    return place
