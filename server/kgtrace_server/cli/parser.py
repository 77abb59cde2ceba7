"""``kgtrace VERB``: arguments in, exit codes out."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from kgtrace_server.cli import arguments
from kgtrace_server.cli.verbs import build, evaluate, explain, mcp, operate, push, query, self_influence, tracin
from kgtrace_server.printable import printable
from kgtrace_store.cpus import calm_threads
from kgtrace_store.errors import KgtraceError

INTERRUPTED = 130
BROKEN_PIPE = 141
"""As shells report a program that SIGINT or SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code: 0 success, 1 failure, 2 wrong call."""
    args = parser().parse_args(arguments.with_guards(sys.argv[1:] if argv is None else argv))
    calm_threads(os.environ)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except arguments.WrongCall as e:
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="kgtrace",
        description="Which training triples made a knowledge-graph embedding model say this?",
        parents=[arguments.common(default=False)],
    )
    root.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = root.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        debug = arguments.common(default=argparse.SUPPRESS)
        added = verbs.add_parser(name, help=summary, description=summary, parents=[debug])
        added.set_defaults(run=run, parser=added, command_line=root)
        return added

    build.register(verb)
    query.register(verb)
    explain.register(verb)
    tracin.register(verb)
    self_influence.register(verb)
    evaluate.register(verb)
    mcp.register(verb)
    operate.register(verb)
    push.register(verb)
    return root


class _Version(argparse.Action):
    """Looks the version up only when it is needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"kgtrace {version('kgtrace')}\n")
        parser.exit()
