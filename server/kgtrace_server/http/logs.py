"""The log: JSON objects, or lines for people; one for each request."""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Format = Literal["json", "text"]

_REQUESTS = logging.getLogger("kgtrace_server.requests")

_QUIET = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked every few seconds by machines; their lines appear at level debug."""

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True, slots=True)
class Line:
    """The facts about a request that are logged; its question is not among them."""

    request_id: str
    method: str
    route: str
    """As declared, ``none`` where no route matched or the request did not get that far."""
    status: int
    seconds: float
    """From its head to the end of its answer."""
    queue_seconds: float | None
    """Waiting to be computed, where it was."""
    generation: str | None
    """The generation that answered."""


class JsonFormatter(logging.Formatter):
    """One JSON object a record, always in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = getattr(record, "line", None)
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **({} if line is None else {name: getattr(line, name) for name in Line.__slots__}),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content)


def configure(level: str, format_: str) -> None:
    """Send the log of this process to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format_ == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it reports every instruction set it tries


def write_line(line: Line) -> None:
    """Log a request."""
    level = logging.DEBUG if line.route in _QUIET else logging.INFO
    if _REQUESTS.isEnabledFor(level):
        _REQUESTS.log(
            level,
            "%s %s %d in %.3f s, request %s",
            line.method,
            line.route,
            line.status,
            line.seconds,
            line.request_id,
            extra={"line": line},
        )
