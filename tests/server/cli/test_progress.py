"""What a long build says while it runs."""

import io

from kgtrace_server.cli.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_each_tenth() -> None:
    """A fast stage of many steps writes about ten lines, the last one complete."""
    stream = io.StringIO()
    with Progress("triples", stream, Clock()) as progress:
        for done in range(1, 1001):
            progress("gradients", done, 1000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("gradients: 1,000 of 1,000 triples (100 %)")


def test_a_slow_stage_gets_a_line_each_ten_seconds() -> None:
    """Rate and time left are told."""
    stream, clock = io.StringIO(), Clock()
    with Progress("triples", stream, clock) as progress:
        for done in range(0, 50_000, 1000):
            progress("gradients", done, 1_000_000)
            clock.now += 5
    lines = stream.getvalue().splitlines()
    assert 20 <= len(lines) <= 26
    assert lines[0] == "gradients: 2,000 of 1,000,000 triples (0 %), 200 triples/s, 1 h 23 min left"


def test_what_an_earlier_attempt_did_is_not_counted_as_speed() -> None:
    """A resumed build begins at half; its rate is its own."""
    stream, clock = io.StringIO(), Clock()
    with Progress("triples", stream, clock) as progress:
        progress("gradients", 500, 1000)
        clock.now = 10.0
        progress("gradients", 600, 1000)
    assert "600 of 1,000 triples (60 %), 10 triples/s, 40 s left" in stream.getvalue()


def test_a_terminal_gets_a_bar_for_each_stage() -> None:
    """Bars end with the stage, and the terminal is left on a fresh line."""
    stream = Terminal()
    with Progress("triples", stream) as progress:
        for stage in ("gradients", "index"):
            for done in (1, 2):
                progress(stage, done, 2)
    shown = stream.getvalue()
    assert "gradients: 100%" in shown
    assert "index: 100%" in shown
    assert shown.endswith("\n")
