"""The media types of explanations, and which of them a client would rather have."""

import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO

from kgtrace_server import graphml, jsonld
from kgtrace_server.schema.answer import Answer, to_json
from kgtrace_server.schema.answers import Influences

JSON = "application/json"

_WRITERS: Mapping[str, Callable[[BinaryIO, Iterable[Influences]], int]] = {
    jsonld.MEDIA_TYPE: jsonld.write,
    graphml.MEDIA_TYPE: graphml.write,
}

MEDIA_TYPES = (JSON, *_WRITERS)

_RANGES = {"*/*": JSON, "application/*": JSON, **{name: name for name in MEDIA_TYPES}}
"""What a client gets for what it accepts."""

_WEIGHT = re.compile(r";\s*q=([01](?:\.\d*)?)\s*(?:;|$)", re.IGNORECASE)


def preferred(accept: str) -> str:
    """Return the media type with the largest weight in an ``Accept`` header, the first of equals; JSON without one."""
    best, most = JSON, 0.0
    for accepted in accept.split(","):
        weight = float(given[1]) if (given := _WEIGHT.search(accepted)) else 1.0
        name = accepted.partition(";")[0].strip().lower()
        if name in _RANGES and weight > most:
            best, most = _RANGES[name], weight
    return best


def written(answer: Answer, media_type: str) -> bytes:
    """Return an answer in one of the `MEDIA_TYPES`; other answers than explanations are JSON."""
    if not isinstance(answer, Influences) or media_type == JSON:
        return to_json(answer)
    content = io.BytesIO()
    _WRITERS[media_type](content, [answer])
    return content.getvalue()
