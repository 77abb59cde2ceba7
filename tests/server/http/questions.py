"""A question that the small index answers, and its route."""

from collections.abc import Callable
from typing import Any

Check = Callable[..., dict[str, Any]]
TRIPLE = ["aspirin", "treats", "headache"]
INFLUENCES = "/v1/influences"
