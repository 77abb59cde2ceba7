"""The kinds of problems that the service answers with, in Markdown, from the errors that become them."""

from collections.abc import Iterator
from http import HTTPStatus

from kgtrace_server import problems
from kgtrace_store.errors import KgtraceError

_HEAD = "| type | status | meaning |\n|---|---|---|\n"


def reference() -> str:
    """Return a table with an anchor for each type."""
    rows = [("invalid-request", 422, "The request does not have the documented shape; `detail` names the fields.")]
    for kind in sorted(_kinds(KgtraceError), key=problems.type_of):
        status = problems.status_of(kind(""))
        if status != HTTPStatus.INTERNAL_SERVER_ERROR:  # told without its cause, as about:blank
            rows.append((_name(problems.type_of(kind)), int(status), (kind.__doc__ or "").split("\n")[0]))
    return _HEAD + "".join(
        f'| <span id="{name}">`{name}`</span> | {status} | {meaning.replace("``", "`")} |\n'
        for name, status, meaning in rows
    )


def _kinds(kind: type[KgtraceError]) -> Iterator[type[KgtraceError]]:
    for derived in kind.__subclasses__():
        yield derived
        yield from _kinds(derived)


def _name(type_: str) -> str:
    return type_.removeprefix(problems.TYPE_PREFIX)
