"""Addresses and warnings."""

import logging
import signal
import socket
from typing import Any

import pytest
import uvicorn

from kgtrace_server.http import serving, workers
from kgtrace_server.settings import Settings
from kgtrace_store.cpus import usable_cpus


def test_a_free_port_is_taken_and_told() -> None:
    """Port 0 is for tests and demonstrations: the address says which one it became."""
    with serving.listen(Settings(port=0)) as listening:
        assert serving.address(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_taken_port_is_named() -> None:
    """The message says what to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(serving.CannotListen, match=rf"port {port}: Address already in use.*: choose another"):
            serving.listen(Settings(port=port))
    with pytest.raises(serving.CannotListen, match=r"host\.invalid"):
        serving.listen(Settings(host="host.invalid"))


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        (Settings(port=0), False),
        (Settings(host="0.0.0.0", port=0), True),
        (Settings(host="0.0.0.0", port=0, read_key="s3cret"), False),
    ],
)
def test_listening_to_strangers_without_a_key_is_warned_of(
    caplog: pytest.LogCaptureFixture, settings: Settings, warned: bool
) -> None:
    """One line in the log, saying what to do."""
    with caplog.at_level(logging.WARNING), serving.listen(settings) as listening:
        assert serving.address(listening).startswith("http://127.0.0.1:")
    assert ("set KGTRACE_READ_KEY" in caplog.text) is warned


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        (Settings(threads=8, workers=3), 2),
        (Settings(threads=1, workers=4), 1),
        (Settings(workers=2), max(1, usable_cpus() // 2)),
    ],
)
def test_processes_divide_the_threads(settings: Settings, threads: int) -> None:
    """Each has at least one."""
    assert workers.threads_of_each(settings) == threads


def test_a_signal_before_the_server_listens_to_any_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops a service while it starts would wait for it for ever."""
    run = uvicorn.Server.run

    def told_to_stop(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit
        run(server, sockets)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (event := (await receive())["type"]).startswith("lifespan."):
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return

    monkeypatch.setattr(serving, "bound_heap", lambda: None)
    monkeypatch.setattr(uvicorn.Server, "run", told_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    with serving.listen(Settings(port=0)) as listening:
        serving.serve(app, Settings(port=0), listening)
    assert signal.getsignal(signal.SIGTERM) is before
