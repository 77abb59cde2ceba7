"""Reloads under load: what happens to latency while generations come and go, on the loopback interface of this machine.

    python -m benchmarks.reload                       # about four minutes

Builds two generations of CoDEx-S from the folder in KGTRACE_SHARED, starts ``kgtrace serve`` in a process of its own, and
asks it 70 % of what it can answer, at random moments: first while nothing else happens, then while the admin route
switches the generation again and again, then while ``CURRENT`` is changed on disk and the service notices by itself.
Latency counts from the moment at which a request was due. Writes ``benchmarks/results/NAME.json`` and prints a table.
"""

import argparse
import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.fb15k237 import machine
from benchmarks.service import RESULTS, SHARED, closed_loop, percentile, request, serving
from kgtrace_indexer import BuildConfig, TripleTable, build, read_model, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_store import IndexRoot

KEY = "admin-key-of-this-benchmark"
CLIENTS = 8
"""Connections that find out what the service can answer."""
SHARE = 0.7
"""Of that, what is asked."""
QUERIES = 1000
LONGEST = 60.0
"""Seconds after which a reload that was not noticed fails the benchmark."""


def main() -> None:
    """Run the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of quiet load (default: %(default)s)")
    parser.add_argument("--reloads", type=int, default=50, help="by the admin route (default: %(default)s)")
    parser.add_argument("--noticed", type=int, default=20, help="by looking at the disk (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the service (default: %(default)s)")
    parser.add_argument("--name", default="reload-cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = IndexRoot(Path(folder))
        requests = [request(triple) for triple in prepare(root).tolist()]
        with serving(root.path, "--threads", str(args.threads), "--queue-length", "1024", "--admin-key", KEY) as (
            port,
            _,
        ):
            found = uvloop.run(measure(root, port, requests, args.seconds, args.reloads, args.noticed))
    found = {"machine": machine(), **found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


def prepare(root: IndexRoot) -> np.ndarray:
    """Build two generations whose rows tell them apart, even in one, odd in the other; return test triples (n, 3)."""
    folder = SHARED / "models" / "conve-codex-s"
    vocabulary, triples = read_training_folder(folder / "training_triples")
    for odd in (0, 1):
        numbered = TripleTable(triples.ids, 2 * np.arange(len(triples.ids)) + odd, 0)
        build(root.path, read_model(folder), vocabulary, numbered, BuildConfig(loss="bce", precondition="none"))
    test = read_triples(SHARED / "data" / "CoDEx-S" / "test.txt", vocabulary, skip_unknown=True).ids
    return test[np.random.default_rng(0).choice(len(test), QUERIES, replace=False)].astype(np.int64)


async def measure(
    root: IndexRoot, port: int, requests: list[bytes], seconds: float, reloads: int, noticed: int
) -> dict[str, Any]:
    """Measure quiet load, reloads on request, and reloads that the service notices."""
    ids = [status.id for status in root.generations()]
    capacity = (await closed_loop(port, requests, CLIENTS, 5.0))["per_second"]
    load = Load(port, requests, SHARE * capacity, {id_: odd for odd, id_ in enumerate(ids)})

    async def quietly() -> list[float]:
        await asyncio.sleep(seconds)
        return []

    async def on_request() -> list[float]:
        return [await timed(publish(port, ids[i % 2])) for i in range(reloads)]

    async def on_disk() -> list[float]:
        took = []
        for i in range(noticed):
            await asyncio.to_thread(root.publish, ids[i % 2])
            took.append(await timed(served(port, ids[i % 2])))
        return took

    found: dict[str, Any] = {"capacity_per_second": capacity, "asked_per_second": load.rate}
    for name, work in (("quiet", quietly), ("on_request", on_request), ("on_disk", on_disk)):
        found[name] = await load.during(work)
    for name in ("on_request", "on_disk"):
        found[name]["p99_ratio"] = found[name]["p99_ms"] / found["quiet"]["p99_ms"]
    return found


@dataclass
class Load:
    """Asks at random moments, at a rate, whether or not answers keep up."""

    port: int
    requests: list[bytes]
    rate: float
    parity: dict[str, int]
    """Of the rows that each generation names."""
    _chance: random.Random = field(default_factory=lambda: random.Random(0))

    async def during(self, work: Callable[[], Awaitable[list[float]]]) -> dict[str, Any]:
        """Load the service for as long as something else takes; return what came of both."""
        seconds: list[float] = []
        problems: list[str] = []
        asked = set()
        async with connections(self.port) as ask:

            async def one(due: float) -> None:
                try:
                    status, answer = await ask(self._chance.choice(self.requests))
                    problem = self.problem(status, answer)
                except (OSError, asyncio.IncompleteReadError, ValueError) as e:  # the last: no JSON, of a proxy
                    problem = repr(e)
                seconds.append(time.perf_counter() - due)
                if problem is not None:
                    problems.append(problem)

            working = asyncio.ensure_future(work())
            due = time.perf_counter()
            while not working.done():
                due += self._chance.expovariate(self.rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                task = asyncio.ensure_future(one(due))
                asked.add(task)
                task.add_done_callback(asked.discard)
            await asyncio.gather(*asked)
        took = working.result()
        return {
            "answers": len(seconds),
            "failures": len(problems),
            "first_failure": problems[0] if problems else None,
            "p50_ms": percentile(seconds, 50),
            "p99_ms": percentile(seconds, 99),
            "max_ms": percentile(seconds, 100),
            "reloads": len(took),
            "reload_p50_ms": percentile(took, 50) if took else None,
        }

    def problem(self, status: int, answer: Any) -> str | None:
        """Return what is wrong with an answer."""
        if status != 200:
            return f"{status}: {answer}"
        rows = {found["train_index"] % 2 for found in answer["results"][0]["influences"]}
        if rows != {self.parity[answer["generation"]]}:
            return f"rows {rows} in an answer of generation {answer['generation']}"
        return None


Ask = Callable[[bytes], Awaitable[tuple[int, Any]]]


@contextlib.asynccontextmanager
async def connections(port: int) -> AsyncIterator[Ask]:
    """Send requests over as many kept connections as are needed at a time."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    every: list[asyncio.StreamWriter] = []

    async def ask(data: bytes) -> tuple[int, Any]:
        while idle and idle[-1][0].at_eof():
            idle.pop()  # nobody had used it for as long as the service keeps one
        if not idle:
            idle.append(await asyncio.open_connection("127.0.0.1", port))
            every.append(idle[-1][1])
        reader, writer = idle.pop()
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
        if "connection: close" not in head:
            idle.append((reader, writer))
        return int(head[9:12]), json.loads(body)

    try:
        yield ask
    finally:
        for writer in every:
            writer.close()


async def timed(work: Awaitable[None]) -> float:
    """Return how many seconds it takes."""
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


async def publish(port: int, generation: str) -> None:
    """Switch to a generation by the admin route, which answers when it is served."""
    body = json.dumps({"generation": generation}).encode()
    head = f"POST /v1/admin/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
    async with connections(port) as ask:
        status, answer = await ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    if status != 200 or answer["serving"] != generation:
        raise RuntimeError(f"{status}: {answer}")


async def served(port: int, generation: str) -> None:
    """Wait until a generation answers."""
    end = time.perf_counter() + LONGEST
    async with connections(port) as ask:
        while (await ask(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))[1].get("generation") != generation:
            if time.perf_counter() > end:
                raise RuntimeError(f"generation {generation} was not loaded within {LONGEST:.0f} s")
            await asyncio.sleep(0.05)


def table(found: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [f"asked {found['asked_per_second']:.1f}/s of {found['capacity_per_second']:.1f}/s"]
    for name in ("quiet", "on_request", "on_disk"):
        part = found[name]
        line = f"{name}: {part['answers']} answers, {part['failures']} failed, p50 {part['p50_ms']:.0f} ms, "
        line += f"p99 {part['p99_ms']:.0f} ms, max {part['max_ms']:.0f} ms"
        if part["reloads"]:
            line += (
                f"; {part['reloads']} reloads of {part['reload_p50_ms']:.0f} ms, p99 {part['p99_ratio']:.2f} × quiet"
            )
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
