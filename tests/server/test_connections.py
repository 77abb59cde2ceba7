"""A server on a socket of this machine: what arrives there need not be HTTP."""

import http.client
import json
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kgtrace_server import protocol, serving
from kgtrace_server.app import create_app
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings

TRIPLE = ["aspirin", "treats", "headache"]
LIMIT = 10_000

Address = tuple[str, int]


@pytest.fixture
def serve(service: Service) -> Iterator[Callable[..., Address]]:
    """Starts servers, and stops them."""
    running = []

    def start(**settings: Any) -> Address:
        configured = Settings(port=0, body_limit=LIMIT, log_level="error", **settings)
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
        thread.join(20)
        assert not thread.is_alive()
        listening.close()


def post(address: Address, body: Any, timeout: float = 10) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    connection.request("POST", "/v1/influences", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    found = response.status, json.load(response)
    connection.close()
    return found


def raw(address: Address, data: bytes, timeout: float = 5) -> bytes:
    """Send bytes, and read until the server closes or nothing comes any more."""
    received = b""
    with socket.create_connection(address, timeout=timeout) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += piece
        except OSError:  # the server has closed, or says nothing more
            pass
    return received


def test_answers_come_over_a_socket_through_the_fast_parts(serve: Callable[..., Address]) -> None:
    """httptools parses, uvloop waits; connections are kept."""
    status, body = post(address := serve(), {"triples": [TRIPLE], "top_k": 2})
    assert status == 200
    assert len(body["results"][0]["influences"]) == 2
    connection = http.client.HTTPConnection(*address)
    for _ in range(3):
        connection.request("GET", "/livez")
        assert connection.getresponse().read() == b'{"status":"alive"}'
        kept = connection.sock
    assert kept is connection.sock is not None
    connection.close()
    assert issubclass(protocol.BoundedProtocol, protocol.HttpToolsProtocol)


def test_whoever_sends_too_much_gets_to_see_why(serve: Callable[..., Address]) -> None:
    """An announced body and a chunked one, from a client that reads while it writes."""
    host, port = serve()
    url = f"http://{host}:{port}/v1/influences"
    json_ = ["-H", "Content-Type: application/json"]
    for extra in (json_, [*json_, "-H", "Transfer-Encoding: chunked"], [*json_, "-H", "Expect:"]):
        done = subprocess.run(
            ["curl", "-s", "-w", "%{http_code}", "-X", "POST", "--data-binary", "@-", *extra, url],
            input=b" " * 30_000_000,
            stdout=subprocess.PIPE,
            check=False,
            timeout=20,
        )
        assert done.stdout.endswith(b"413"), (extra, done)
        assert b"larger than 10000 bytes" in done.stdout


def test_a_client_that_leaves_is_not_computed_for(serve: Callable[..., Address], attributor: Any) -> None:
    """What waited for nobody is dropped from the queue, and its place is free."""
    gate = threading.Event()
    attributor.before_query = lambda: gate.wait(20)
    address = serve(queue_length=1)
    request = json.dumps({"triples": [TRIPLE]}).encode()
    head = b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(request)
    first = socket.create_connection(address)
    first.sendall(head + request)
    wait_for(lambda: metric(address, "kgtrace_batch_requests_count") == 1)
    with socket.create_connection(address) as second:
        second.sendall(head + request)
        wait_for(lambda: metric(address, "kgtrace_queue_depth") == 1)
        assert post(address, {"triples": [TRIPLE]})[0] == 429
    wait_for(lambda: metric(address, "kgtrace_queue_depth") == 0)
    gate.set()
    first.close()
    assert post(address, {"triples": [TRIPLE]})[0] == 200
    assert metric(address, 'kgtrace_rejections_total{reason="client_gone"}') >= 1
    assert len(attributor.calls) == 2


def test_the_queue_is_asked_before_the_body_is_read(serve: Callable[..., Address], attributor: Any) -> None:
    """429 to a request whose body has not been sent yet."""
    gate = threading.Event()
    attributor.before_query = lambda: gate.wait(20)
    address = serve(queue_length=0)
    busy = threading.Thread(target=post, args=(address, {"triples": [TRIPLE]}))
    busy.start()
    wait_for(lambda: metric(address, "kgtrace_batch_requests_count") == 1)
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        answer = connection.recv(65536)
    gate.set()
    busy.join()
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 1\r\n" in answer


def test_a_body_that_trickles_in_ends_at_the_deadline(serve: Callable[..., Address]) -> None:
    """504, and the connection with it; others are served meanwhile."""
    address = serve(deadline=0.5)
    with socket.create_connection(address, timeout=5) as slow:
        slow.sendall(b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert post(address, {"triples": [TRIPLE]})[0] == 200
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"connection: close" in answer.lower()


def test_heads_are_bounded_in_bytes_and_time(serve: Callable[..., Address], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without end, headers without end, trailers without end, and a head that never comes."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    address = serve()
    flood = 40 * protocol.HEAD_BYTES
    for beginning in (
        b"GET /" + b"a" * flood,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (flood // 6),
        b"GET / HTTP/1.1\r\nX: " + b"y" * flood,
        b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * (flood // 6),
        b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * flood,
    ):
        started = time.monotonic()
        answer = raw(address, beginning)
        assert time.monotonic() - started < 3
        assert b" 200 " not in answer.split(b"\r\n")[0]
    for beginning in (b"", b"GET / HT"):
        with socket.create_connection(address, timeout=5) as silent:
            silent.sendall(beginning)
            assert silent.recv(100) == b""
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
        answer = raw(address, bytes(data))
        for line in answer.split(b"\r\n"):
            assert not line.startswith(b"HTTP/1.1 5"), (bytes(data), answer)
        assert b"Traceback" not in answer
    assert post(address, {"triples": [TRIPLE]})[0] == 200


def test_requests_in_flight_are_answered_before_it_stops(service: Service, attributor: Any) -> None:
    """Stopping refuses new connections, and finishes what it began."""
    gate = threading.Event()
    attributor.before_query = lambda: gate.wait(20)
    settings = Settings(port=0, log_level="error")
    with serving.listen(settings) as listening:
        server = serving.server(create_app(service, settings), settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        address = listening.getsockname()[:2]
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(post(address, {"triples": [TRIPLE]})[0]))
        asking.start()
        wait_for(lambda: metric(address, "kgtrace_batch_requests_count") == 1)
        server.should_exit = True
        time.sleep(0.3)
        gate.set()
        asking.join(20)
        thread.join(20)
    assert answers == [200]


def metric(address: Address, name: str) -> float:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    (value,) = [line.rsplit(" ", 1)[1] for line in lines if line.rsplit(" ", 1)[0] == name]
    return float(value)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
