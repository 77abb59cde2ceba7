"""Where a query's time goes."""

import time


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds = {"gradient": 0.0, "search": 0.0, "rerank": 0.0}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as a stage's."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now
