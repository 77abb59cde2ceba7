"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

_EVERY_SECONDS = 10.0
_EVERY_FRACTION = 0.1
"""A log gets a line when either has passed since the last: enough to see it move, and no flood."""


class Progress:
    """Called with a stage, how much of it is done and of how much; use as a context manager."""

    def __init__(self, unit: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._stage: str | None = None
        self._bar: Any = None
        self._begun = self._reported = 0.0
        self._first = self._last = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report."""
        if stage != self._stage:
            self._begin(stage, done, total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        now = self._clock()
        due = now - self._reported >= _EVERY_SECONDS or done - self._last >= _EVERY_FRACTION * total
        if due or done == total:
            self._stream.write(f"{stage}: {self._line(done, total, now)}\n")
            self._stream.flush()
            self._reported, self._last = now, done

    def __enter__(self) -> "Progress":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal on a fresh line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _begin(self, stage: str, done: int, total: int) -> None:
        self.__exit__()
        self._stage = stage
        # A resumed stage begins with the work of the earlier run; the rate must not count that.
        self._begun, self._first = self._clock(), done
        self._reported, self._last = self._begun, 0
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=stage, unit=f" {self._unit}", unit_scale=True, file=self._stream
            )

    def _line(self, done: int, total: int, now: float) -> str:
        line = f"{done:,} of {total:,} {self._unit} ({100 * done // max(total, 1)} %)"
        seconds = now - self._begun
        if done <= self._first or seconds <= 0:
            return line
        rate = (done - self._first) / seconds
        return f"{line}, {rate:,.0f} {self._unit}/s, {_duration((total - done) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
