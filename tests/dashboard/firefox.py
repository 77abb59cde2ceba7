"""Firefox as it is installed, over WebDriver BiDi: Playwright drives only a patched build, Selenium needs a driver."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.server.waiting import PATIENCE

NAMES = ("firefox-esr", "firefox")
"""Of the program, in the order in which they are looked for."""

KEYS = {"Tab": "\ue004", "Enter": "\ue007", "ArrowDown": "\ue015"}
"""Names of keys that write no character, as WebDriver codes them."""

_WATCH = """() => {
    globalThis.refused = [];
    globalThis.made = [];
    document.addEventListener("securitypolicyviolation", ({ violatedDirective }) => refused.push(violatedDirective));
    const create = URL.createObjectURL;
    URL.createObjectURL = (blob) => {
        made.push({ type: blob.type, size: blob.size });
        return create.call(URL, blob);
    };
}"""
"""Runs before a page does, and notes what its policy refuses and which files it makes."""


def firefox_path() -> str | None:
    """Return where Firefox is: what KGTRACE_FIREFOX names, or the first of `NAMES` that is installed."""
    return os.environ.get("KGTRACE_FIREFOX") or next(filter(None, map(shutil.which, NAMES)), None)


class Firefox:
    """One tab. Errors of scripts, and what the page logs as errors, are in `errors`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)
        self.errors: list[str] = []
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["log.entryAdded"])
        self._tab = self.ask("browsingContext.getTree")["contexts"][0]["context"]
        self.ask("browsingContext.activate", context=self._tab)
        self.ask("script.addPreloadScript", functionDeclaration=_WATCH)

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command, and return its result. Raises `AssertionError` if the browser refuses it."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(PATIENCE))
            if message.get("id") == number:
                assert message["type"] == "success", message
                return message["result"]
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.errors.append(message["params"]["text"])

    def resize(self, width: int, height: int) -> None:
        viewport = {"width": width, "height": height}
        self.ask("browsingContext.setViewport", context=self._tab, viewport=viewport)

    def open(self, url: str) -> None:
        """Load a page, until everything that it asked for is shown."""
        self.ask("browsingContext.navigate", context=self._tab, url=url, wait="complete")
        self.settle()

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, which may be a promise."""
        found = self.ask(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).then((value) => JSON.stringify(value))",
            target={"context": self._tab},
            awaitPromise=True,
        )
        assert found["type"] == "success", found
        return json.loads(found["result"].get("value", "null"))

    def until(self, condition: str) -> None:
        """Wait until a condition holds, which is looked at before each frame."""
        look = f"const look = () => ({condition}) ? done(true) : requestAnimationFrame(look);"
        assert self.evaluate(f"new Promise((done) => {{ {look} look(); }})")

    def settle(self) -> None:
        self.until("document.querySelector('main .panel') && !document.querySelector('[aria-busy]')")

    def click(self, selector: str) -> None:
        """Click the first element that a selector matches, with the mouse."""
        found = f"document.querySelector({json.dumps(selector)})"
        shown = f"({found}.scrollIntoView({{ block: 'center' }}), {found})"
        node = self.ask(
            "script.evaluate",
            expression=shown,
            target={"context": self._tab},
            awaitPromise=False,
            resultOwnership="none",
        )
        assert node["type"] == "success", node
        origin = {"type": "element", "element": {"sharedId": node["result"]["sharedId"]}}
        button = [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        move = {"type": "pointerMove", "x": 0, "y": 0, "origin": origin}
        self._act({"type": "pointer", "id": "mouse", "actions": [move, *button]})

    def press(self, *keys: str) -> None:
        """Press keys, one after the other: those of `KEYS` by name, texts by character."""
        values = [value for key in keys for value in ([KEYS[key]] if key in KEYS else key)]
        actions = [{"type": kind, "value": value} for value in values for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keyboard", "actions": actions})

    def _act(self, source: dict[str, Any]) -> None:
        self.ask("input.performActions", context=self._tab, actions=[source])


@contextmanager
def launched(profile: Path) -> Iterator[Firefox]:
    """Run the browser, without a window and with a profile of its own, for as long as the block runs."""
    program = firefox_path()
    assert program is not None
    command = [program, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            lines = (re.search(r"WebDriver BiDi listening on (ws://\S+)", line) for line in process.stderr)
            address = next(filter(None, lines), None)
            assert address is not None, "Firefox ended before it listened"
            with connect(f"{address[1]}/session", max_size=None) as socket:
                yield Firefox(socket)
        finally:
            process.terminate()
