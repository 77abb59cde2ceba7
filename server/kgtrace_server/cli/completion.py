"""What shells need in order to complete the command line: verbs, flags, choices, and names of files and folders."""

import argparse
from collections.abc import Iterator

import shtab

_NAMES = {
    "FILE": shtab.FILE,
    "FILE.json": shtab.FILE,
    "PATH": shtab.FILE,
    "MODEL": shtab.FILE,
    "OUT": shtab.DIRECTORY,
    "DIR": shtab.DIRECTORY,
    "ROOT": shtab.DIRECTORY,
}
"""What completes an argument, by its metavar. Files stand for both: a model is a file or a folder."""


def script(command_line: argparse.ArgumentParser, shell: str) -> str:
    """Return the program that a shell (``bash``, ``zsh``, ``fish``) sources to complete a command line."""
    for action in actions(command_line):
        if action.metavar in _NAMES:
            action.complete = _NAMES[action.metavar]  # type: ignore[attr-defined]
    return shtab.complete(command_line, shell)


def actions(command_line: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of all its verbs."""
    for action in command_line._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from actions(verb)
