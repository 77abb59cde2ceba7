"""The command line in Markdown, from its parser."""

import argparse
from collections.abc import Iterator


def reference(command_line: argparse.ArgumentParser) -> str:
    """Return a section for each verb."""
    (verbs,) = (action for action in command_line._actions if isinstance(action, argparse._SubParsersAction))
    return "\n".join(line for name, verb in verbs.choices.items() for line in _section(name, verb))


def _section(name: str, verb: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{_capital(verb.description or '')}.\n"
    if isinstance(verb.epilog, str):
        yield f"```text\n{verb.epilog.strip()}\n```\n"
    for group in verb._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        actions = [action for action in shown if action.dest not in ("help", "debug")]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            yield f"*{_capital(group.title or '')}*\n"
        yield "| argument | meaning |"
        yield "|---|---|"
        for action in actions:
            yield f"| {_call(action)} | {_meaning(action)} |"
        yield ""


def _call(action: argparse.Action) -> str:
    """Return how an argument is given: ``--top-k K``."""
    formatter = argparse.HelpFormatter("")
    named = formatter._get_default_metavar_for_optional if action.option_strings else None
    value = "" if action.nargs == 0 else formatter._format_args(action, named(action) if named else action.dest)
    calls = [f"{name} {value}".strip() for name in action.option_strings] or [value]
    return ", ".join(f"`{call}`" for call in calls).replace("|", "\\|")


def _meaning(action: argparse.Action) -> str:
    said = (action.help or "") % {**vars(action), "prog": "kgtrace"}
    facts = ["required"] if action.required and action.option_strings else []
    if isinstance(action, argparse._AppendAction):
        facts.append("may be repeated")
    return "; ".join([said, *facts]).replace("|", "\\|")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
