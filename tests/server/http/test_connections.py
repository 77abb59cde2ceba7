"""A server on a socket of this machine: what arrives there need not be HTTP."""

import http.client
import json
import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from kgtrace_server.http import middleware, protocol, serving
from kgtrace_server.http.app import create_app
from kgtrace_server.service import Service
from tests.server.conftest import patient
from tests.server.waiting import PATIENCE, Gate, wait_until

TRIPLE = ["aspirin", "treats", "headache"]
LIMIT = 10_000
SLOW = b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
"""A request whose body does not end."""

Address = tuple[str, int]


@pytest.fixture
def serve(service: Service) -> Iterator[Callable[..., Address]]:
    """Starts servers, and stops them."""
    running = []

    def start(**settings: Any) -> Address:
        configured = patient(port=0, body_limit=LIMIT, log_level="error", **settings)
        listening = serving.listen(configured)
        server = serving.server(create_app(service, configured), configured)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread, listening))
        address: Address = listening.getsockname()[:2]
        return address

    yield start
    for server, thread, listening in running:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
        listening.close()


def post(address: Address, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    connection.request("POST", "/v1/influences", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    found = response.status, json.load(response)
    connection.close()
    return found


def raw(address: Address, data: bytes, *, end: bool) -> bytes:
    """Send bytes and, if so wished, that no more will come; read until the server closes."""
    received = b""
    with socket.create_connection(address, timeout=PATIENCE) as connection, suppress(ConnectionError):
        connection.sendall(data)
        if end:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            received += piece
    return received


def test_answers_come_over_a_socket_through_the_fast_parts(serve: Callable[..., Address]) -> None:
    """httptools parses, uvloop waits; connections are kept."""
    status, body = post(address := serve(), {"triples": [TRIPLE], "top_k": 2})
    assert status == 200
    assert len(body["results"][0]["influences"]) == 2
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    for _ in range(3):
        connection.request("GET", "/livez")
        assert connection.getresponse().read() == b'{"status":"alive"}'
        kept = connection.sock
    assert kept is connection.sock is not None
    connection.close()
    assert issubclass(protocol.BoundedProtocol, protocol.HttpToolsProtocol)


def test_whoever_sends_too_much_gets_to_see_why(serve: Callable[..., Address], monkeypatch: pytest.MonkeyPatch) -> None:
    """An announced body and a chunked one, from a client that reads while it writes."""
    monkeypatch.setattr(middleware, "_LINGER_SECONDS", PATIENCE)
    host, port = serve()
    url = f"http://{host}:{port}/v1/influences"
    json_ = ["-H", "Content-Type: application/json"]
    for extra in (json_, [*json_, "-H", "Transfer-Encoding: chunked"], [*json_, "-H", "Expect:"]):
        done = subprocess.run(
            ["curl", "-s", "-w", "%{http_code}", "-X", "POST", "--data-binary", "@-", *extra, url],
            input=b" " * 30_000_000,
            stdout=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
        )
        assert done.stdout.endswith(b"413"), (extra, done)
        assert b"larger than 10000 bytes" in done.stdout


def test_a_client_that_leaves_is_not_computed_for(serve: Callable[..., Address], attributor: Any) -> None:
    """What waited for nobody is dropped from the queue, and its place is free."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    address = serve(queue_length=1)
    request = json.dumps({"triples": [TRIPLE]}).encode()
    head = b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(request)
    first = socket.create_connection(address)
    first.sendall(head + request)
    wait_until(gate.reached.is_set)
    with socket.create_connection(address) as second:
        second.sendall(head + request)
        wait_until(lambda: metric(address, "kgtrace_queue_depth") == 1)
        assert post(address, {"triples": [TRIPLE]})[0] == 429
    wait_until(lambda: metric(address, "kgtrace_queue_depth") == 0)
    wait_until(lambda: metric(address, 'kgtrace_rejections_total{reason="client_gone"}') == 1)
    gate.opened.set()
    first.close()
    assert post(address, {"triples": [TRIPLE]})[0] == 200
    assert len(attributor.calls) == 2


def test_the_queue_is_asked_before_the_body_is_read(serve: Callable[..., Address], attributor: Any) -> None:
    """429 to a request whose body has not been sent yet."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    address = serve(queue_length=0)
    busy = threading.Thread(target=post, args=(address, {"triples": [TRIPLE]}))
    busy.start()
    wait_until(gate.reached.is_set)
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.sendall(b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := connection.recv(65536)):
            answer += piece
    gate.opened.set()
    busy.join()
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 1\r\n" in answer


def test_a_body_that_trickles_in_ends_at_the_deadline(serve: Callable[..., Address]) -> None:
    """504, and the connection with it."""
    with socket.create_connection(serve(deadline=0.5), timeout=PATIENCE) as slow:
        slow.sendall(SLOW)
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"connection: close" in answer.lower()


def test_others_are_served_while_a_body_trickles_in(serve: Callable[..., Address]) -> None:
    """A body that never ends keeps nobody else from being answered."""
    address = serve()
    with socket.create_connection(address) as slow:
        slow.sendall(SLOW)
        assert post(address, {"triples": [TRIPLE]})[0] == 200


def test_heads_are_bounded_in_bytes(serve: Callable[..., Address], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without end, headers without end, trailers without end: the server closes, though the client waits."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 10 * PATIENCE)
    address = serve()
    flood = 40 * protocol.HEAD_BYTES
    for beginning in (
        b"GET /" + b"a" * flood,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (flood // 6),
        b"GET / HTTP/1.1\r\nX: " + b"y" * flood,
        b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * (flood // 6),
        b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * flood,
    ):
        assert b" 200 " not in raw(address, beginning, end=False).split(b"\r\n")[0]
    assert post(address, {"triples": [TRIPLE]})[0] == 200


def test_heads_are_bounded_in_time(serve: Callable[..., Address], monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that never comes, or never ends: the connection is closed without a word."""
    address = serve()
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    for beginning in (b"", b"GET / HT"):
        assert raw(address, beginning, end=False) == b""
    monkeypatch.undo()
    assert post(address, {"triples": [TRIPLE]})[0] == 200


def test_no_bytes_are_our_fault(serve: Callable[..., Address]) -> None:
    """Whatever arrives, nothing answers 5xx, and the next request is served."""
    address = serve()
    body = json.dumps({"triples": [TRIPLE]}).encode()
    good = (
        b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    seeds = [
        good + body,
        b"GET /v1/entities?q=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b'POST /v1/influences HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"tri\r\n0\r\n\r\n',
        b"GET /livez HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"GET http://other/livez HTTP/1.1\r\n\r\n",
        b"GET /%ff%00%2e%2e/ HTTP/1.1\r\nX-Request-Id: \xff\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/influences HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/influences HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]
    chance = random.Random(0)
    for round_ in range(150):
        data = bytearray(chance.choice(seeds) if round_ >= len(seeds) else seeds[round_])
        for _ in range(chance.randrange(6) if round_ >= len(seeds) else 0):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 8)]
                case 2:
                    data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 8)))
                case _:
                    data += data[at:]
            data = data or bytearray(b"\n")
        answer = raw(address, bytes(data), end=True)
        for line in answer.split(b"\r\n"):
            assert not line.startswith(b"HTTP/1.1 5"), (bytes(data), answer)
        assert b"Traceback" not in answer
    assert post(address, {"triples": [TRIPLE]})[0] == 200


def test_requests_in_flight_are_answered_before_it_stops(service: Service, attributor: Any) -> None:
    """Stopping refuses new connections, and finishes what it began."""
    gate = Gate()
    attributor.before_query = gate.pass_through
    settings = patient(port=0, log_level="error")
    with serving.listen(settings) as listening:
        server = serving.server(create_app(service, settings), settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        address = listening.getsockname()[:2]
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(post(address, {"triples": [TRIPLE]})[0]))
        asking.start()
        wait_until(gate.reached.is_set)
        server.should_exit = True
        wait_until(lambda: refused(address))
        gate.opened.set()
        asking.join()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert answers == [200]


def refused(address: Address) -> bool:
    """Tell whether nobody listens any more."""
    try:
        socket.create_connection(address, timeout=PATIENCE).close()
    except ConnectionError:
        return True
    return False


def metric(address: Address, name: str) -> float:
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    (value,) = [line.rsplit(" ", 1)[1] for line in lines if line.rsplit(" ", 1)[0] == name]
    return float(value)
