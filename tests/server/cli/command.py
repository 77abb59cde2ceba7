"""The command line, called in this process or as a program."""

import sys

import pytest

from kgtrace_server.cli import parser as cli

KGTRACE = (sys.executable, "-c", "from kgtrace_server.cli import main; raise SystemExit(main())")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
