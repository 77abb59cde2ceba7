"""Text that others wrote, on a terminal."""

import re

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, colour or reorder text, and halves of surrogate pairs."""


def printable(text: str) -> str:
    """Return text, such as a label, with escapes such as ``\\x1b`` in place of control characters of a terminal."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)
