"""What the verbs print."""

import argparse
import io
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kgtrace_server.cli import render
from kgtrace_server.printable import printable
from kgtrace_server.schema.answer import to_json
from kgtrace_server.schema.answers import Aggregate, SelfInfluences
from kgtrace_store import durable

A = TypeVar("A", Aggregate, SelfInfluences)


def say(args: argparse.Namespace, facts: Mapping[str, Any], text: str) -> None:
    """Print a result: its facts as JSON on request, else a text."""
    sys.stdout.write(render.json_text(facts) if args.json else text)


def say_answer(
    args: argparse.Namespace, answer: A, page: Callable[[A], str], counts: Mapping[str, int], text: str, note: str = ""
) -> None:
    """Print an answer, or write it to ``--output`` and print how much it holds, behind a note for people."""
    if args.output is None:
        sys.stdout.write(to_json(answer, indent=2).decode() + "\n" if args.json else note + page(answer))
        return
    content = io.BytesIO()
    render.write_rows(content, args.output.suffix.lower(), answer)
    durable.replace_file(args.output, content.getvalue())
    facts = {"output": str(args.output), "generation": answer.generation, **counts}
    say(args, facts, f"{note}{args.output}: {text}\n")


def warn(text: str) -> None:
    """Print a warning."""
    sys.stderr.write(f"kgtrace: warning: {printable(text)}\n")
