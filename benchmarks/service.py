"""The HTTP service under load, on the loopback interface of this machine.

    python -m benchmarks.service                              # about five minutes: everything but the soak
    python -m benchmarks.service --only overload              # one part
    python -m benchmarks.service --only soak --soak-rate 10   # half an hour of moderate load

Builds an index of CoDEx-S from the folder in KGTRACE_SHARED, or takes the one in --index, starts ``kgtrace serve`` in a
process of its own, and loads it from this one. Every part is bounded in time. Puts what was measured into
``benchmarks/results/NAME.json``, beside the parts that were measured before, and prints all of it as a table.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.fb15k237 import machine
from kgtrace_indexer import BuildConfig, build, open_index, read_model, read_training_folder
from kgtrace_indexer.inputs.triples import read_triples
from kgtrace_indexer.threads import limit_threads

SHARED = Path(os.environ.get("KGTRACE_SHARED", "../shared"))
RESULTS = Path(__file__).parent / "results"
KGTRACE = Path(sys.executable).parent / "kgtrace"
TOP_K = 10
BATCH = 64
BATCHES = 5
BODY_LIMIT = 1 << 20
WARM_UP = 1 / 3
"""Share of a soak that passes before memory is compared."""
WINDOW = 300
"""Seconds over which a soak's memory is averaged."""


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="index root of CoDEx-S; built where absent")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each number of clients (default: %(default)s)")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--soak-minutes", type=float, default=30.0)
    parser.add_argument("--soak-rate", type=float, default=20.0, help="requests a second (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=max(1, (os.cpu_count() or 2) - 1),
        help="of the engine, in process and in the service; the load takes a core, too (default: %(default)s)",
    )
    usual = [part for part in PARTS if part != "soak"]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=usual, help="default: all but the soak")
    parser.add_argument("--name", default="service-cpu")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{args.name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found["machine"] = machine()
    with contextlib.ExitStack() as stack:
        root = args.index or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "index"
        queries = prepare(root)
        trial = Trial(args, root, queries, [request(triple) for triple in queries.tolist()])
        for part in args.only:
            found.setdefault("load_before", {})[part] = os.getloadavg()[0]
            found |= PARTS[part](trial)
            path.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


@dataclass(frozen=True)
class Trial:
    """What is measured, and how."""

    args: argparse.Namespace
    root: Path
    queries: np.ndarray
    """(1000, 3) test triples."""
    requests: list[bytes]
    """One for each of them."""

    def serve(self, *flags: str) -> contextlib.AbstractContextManager[tuple[int, int]]:
        """Run the service; give its port and process id."""
        return serving(self.root, "--threads", str(self.args.threads), *flags)


def throughput(trial: Trial) -> dict[str, Any]:
    """Compare the engine in this process with the service, at several numbers of clients."""
    in_process = measure_in_process(trial.root, trial.queries, trial.args.threads)
    with trial.serve("--queue-length", "256") as (port, pid):
        http = {
            str(clients): with_cpu(pid, closed_loop(port, trial.requests, clients, trial.args.seconds))
            for clients in (1, 8, 64, 256)
        }
    return {"in_process": in_process, "http": http}


def overloads(trial: Trial) -> dict[str, Any]:
    """Ask ten times as much as the service can answer, of clients that back off when told to and of others."""
    seconds = trial.args.overload_seconds
    with trial.serve() as (port, _):
        found = {
            "peak": uvloop.run(closed_loop(port, trial.requests, BATCH, trial.args.seconds)),
            "back_off": overload(port, trial.requests, seconds, back_off=True),
            "no_back_off": overload(port, trial.requests, seconds / 3, back_off=False),
        }
    return {"overload": found}


def slow(trial: Trial) -> dict[str, Any]:
    """See whether clients that trickle keep others from being answered."""
    with trial.serve() as (port, _):
        return {"slow": uvloop.run(slow_clients(port, trial.requests, trial.args.seconds))}


def body(trial: Trial) -> dict[str, Any]:
    """See whether a body without end takes memory."""
    with trial.serve() as (port, pid):
        uvloop.run(closed_loop(port, trial.requests, 8, 2.0))
        uvloop.run(large_body(port, pid, 2))  # whatever the size, the first refusal takes memory that stays
        return {"body": uvloop.run(large_body(port, pid))}


def soaked(trial: Trial) -> dict[str, Any]:
    """See whether memory grows for as long as questions come."""
    with trial.serve() as (port, pid):
        run = soak(port, pid, trial.requests, trial.args.soak_minutes * 60, trial.args.soak_rate)
        return {"soak": uvloop.run(run)}


PARTS: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "throughput": throughput,
    "overload": overloads,
    "slow": slow,
    "body": body,
    "soak": soaked,
}


def prepare(root: Path) -> np.ndarray:
    """Build the index unless it is there; return test triples (1000, 3)."""
    folder = SHARED / "models" / "conve-codex-s"
    vocabulary, triples = read_training_folder(folder / "training_triples")
    if not (root / "CURRENT").exists():
        build(root, read_model(folder), vocabulary, triples, BuildConfig(loss="bce", precondition="none"))
    test = read_triples(SHARED / "data" / "CoDEx-S" / "test.txt", vocabulary, skip_unknown=True).ids
    return test[np.random.default_rng(0).choice(len(test), 1000, replace=False)].astype(np.int64)


def measure_in_process(root: Path, queries: np.ndarray, threads: int) -> dict[str, float]:
    """Time the engine that the service runs, without it: a query at a time, and in batches."""
    limit_threads(threads)
    attributor = open_index(root, device="cpu")
    for triple in queries[:20]:
        attributor.query(triple[None], top_k=TOP_K)
    single = []
    for triple in queries[:200]:
        started = time.perf_counter()
        attributor.query(triple[None], top_k=TOP_K)
        single.append(time.perf_counter() - started)
    started, began = time.perf_counter(), time.process_time()
    for start in range(0, BATCHES * BATCH, BATCH):
        attributor.query(queries[start : start + BATCH], top_k=TOP_K)
    return {
        "single_p50_ms": 1e3 * float(np.median(single)),
        "single_per_second": len(single) / sum(single),
        "batch_per_second": BATCHES * BATCH / (time.perf_counter() - started),
        "batch_cpu_ms": 1e3 * (time.process_time() - began) / (BATCHES * BATCH),
    }


@contextlib.contextmanager
def serving(root: Path, *flags: str) -> Iterator[tuple[int, int]]:
    """Run the service; yield its port and process id."""
    command = [KGTRACE, "serve", "--index", root, "--port", "0", "--device", "cpu", "--log-level", "warning", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split(":")[2].split()[0])
        uvloop.run(ready(port))
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def ready(port: int) -> None:
    """Wait for the index."""
    async with connection(port) as ask:
        while (await ask(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")).status != 200:
            await asyncio.sleep(0.1)


def request(triple: list[int]) -> bytes:
    """Return a whole HTTP request about one triple."""
    body = json.dumps({"triples": [triple], "top_k": TOP_K}).encode()
    head = f"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@dataclass
class Reply:
    """What came back."""

    status: int
    retry_after: float
    closes: bool


Ask = Callable[[bytes], Awaitable[Reply]]


@contextlib.asynccontextmanager
async def connection(port: int) -> Any:
    """A kept connection; an HTTP client that costs little of the cores that it shares with the service."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask(data: bytes) -> Reply:
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = re.search(r"content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        pause = re.search(r"retry-after: (\d+)", head)
        return Reply(int(head[9:12]), float(pause[1]) if pause else 0.0, "connection: close" in head)

    try:
        yield ask
    finally:
        writer.close()


@dataclass
class Tally:
    """Statuses, and seconds of those that were answered."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def summary(self, elapsed: float) -> dict[str, Any]:
        """Return what is reported."""
        return {
            "per_second": self.statuses["200"] / elapsed,
            "p50_ms": percentile(self.seconds, 50),
            "p99_ms": percentile(self.seconds, 99),
            "statuses": dict(self.statuses),
        }


def percentile(seconds: list[float], q: float) -> float:
    """Milliseconds."""
    return 1e3 * float(np.percentile(seconds, q)) if seconds else float("nan")


async def closed_loop(
    port: int, requests: list[bytes], clients: int, seconds: float, *, back_off: bool = False
) -> dict[str, Any]:
    """Let clients ask, each one request at a time, and pause only where ``back_off`` and told to."""
    tally = Tally()
    started = time.perf_counter()
    end = started + seconds
    chance = random.Random(0)

    async def client(number: int) -> None:
        position, refused = number, 0
        while time.perf_counter() < end:
            try:
                async with connection(port) as ask:
                    while time.perf_counter() < end:
                        begun = time.perf_counter()
                        reply = await ask(requests[position % len(requests)])
                        tally.statuses[str(reply.status)] += 1
                        if reply.status == 200:
                            tally.seconds.append(time.perf_counter() - begun)
                            position += clients
                            refused = 0
                        elif back_off:
                            refused += 1
                            pause = reply.retry_after + min(5.0, 0.1 * 2**refused) * chance.random()
                            await asyncio.sleep(min(pause, max(0.0, end - time.perf_counter())))
                        if reply.closes:
                            break
            except (OSError, asyncio.IncompleteReadError):
                tally.statuses["connection lost"] += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return tally.summary(time.perf_counter() - started)


def with_cpu(pid: int, load: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Add what the service computed for each answer: unlike the time that passed, it does not depend on neighbours."""
    before = cpu_seconds(pid)
    measured = uvloop.run(load)
    return measured | {"cpu_ms": 1e3 * (cpu_seconds(pid) - before) / max(1, measured["statuses"].get("200", 0))}


def cpu_seconds(pid: int) -> float:
    """Time that a process has computed, in all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def overload(port: int, requests: list[bytes], seconds: float, *, back_off: bool) -> dict[str, Any]:
    """Load with ten times the clients that fill the service, while another process looks whether it is alive."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        probes = pool.apply_async(probe, (port, seconds))
        found = uvloop.run(closed_loop(port, requests, 10 * BATCH, seconds, back_off=back_off))
        return found | {"livez": probes.get(seconds + 30)}


def probe(port: int, seconds: float) -> dict[str, Any]:
    """Ask ``/livez`` twenty times a second."""

    async def ask_often() -> dict[str, Any]:
        tally = Tally()
        end = time.perf_counter() + seconds
        async with connection(port) as ask:
            while time.perf_counter() < end:
                begun = time.perf_counter()
                tally.statuses[str((await ask(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")).status)] += 1
                tally.seconds.append(time.perf_counter() - begun)
                await asyncio.sleep(0.05)
        return tally.summary(seconds)

    return uvloop.run(ask_often())


async def slow_clients(port: int, requests: list[bytes], seconds: float, count: int = 200) -> dict[str, Any]:
    """Compare eight ordinary clients alone with the same beside clients that send a byte every 100 ms."""
    alone = await closed_loop(port, requests, 8, seconds)

    async def trickle() -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.1)

    slow = [asyncio.ensure_future(trickle()) for _ in range(count)]
    await asyncio.sleep(1)
    beside = await closed_loop(port, requests, 8, seconds)
    for task in slow:
        task.cancel()
    return {"alone": alone, "beside": beside, "clients": count}


async def large_body(port: int, pid: int, megabytes: int = 100) -> dict[str, Any]:
    """Send a chunked body without end, and watch the service's memory."""
    before = resident(pid)
    most = before
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    writer.write(b"POST /v1/influences HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = 0
    with contextlib.suppress(OSError):
        for _ in range(megabytes * 16):
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)  # drain alone lets nothing else run while the service keeps up
            sent += 65536
            most = max(most, resident(pid))
    head = b""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        head = await answer
    writer.close()
    return {
        "status": int(head[9:12] or 0),
        "sent_mb": sent / 2**20,
        "growth_mb": (most - before) / 2**20,
        "limit_mb": BODY_LIMIT / 2**20,
    }


async def soak(port: int, pid: int, requests: list[bytes], seconds: float, rate: float) -> dict[str, Any]:
    """Ask at a steady rate; fit a line to the service's memory after the warm-up."""
    tally = Tally()
    samples: list[tuple[float, float]] = []
    started = time.perf_counter()
    clients = 8

    async def client(number: int) -> None:
        position = number
        async with connection(port) as ask:
            for step in range(number, int(seconds * rate), clients):
                await asyncio.sleep(max(0.0, started + step / rate - time.perf_counter()))
                begun = time.perf_counter()
                tally.statuses[str((await ask(requests[position % len(requests)])).status)] += 1
                tally.seconds.append(time.perf_counter() - begun)
                position += clients

    async def watch() -> None:
        while (elapsed := time.perf_counter() - started) < seconds:
            samples.append((elapsed, resident(pid) / 2**20))
            await asyncio.sleep(5)

    await asyncio.gather(watch(), *(client(number) for number in range(clients)))
    elapsed, memory = np.array(samples).T
    warm = elapsed >= WARM_UP * seconds
    slope = float(np.polyfit(elapsed[warm], memory[warm], 1)[0]) if warm.sum() > 1 else float("nan")
    windows = (elapsed // WINDOW).astype(int)
    return tally.summary(time.perf_counter() - started) | {
        "minutes": seconds / 60,
        "warm_up_minutes": WARM_UP * seconds / 60,
        "resident_mb": [float(memory[windows == i].mean()) for i in range(windows.max() + 1)],
        "growth_mb_per_hour": 3600 * slope,
    }


def resident(pid: int) -> int:
    """Bytes of memory that are the process's own: files that it maps belong to the system's cache."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def table(found: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = ["| what | requests/s | p50 ms | p99 ms | CPU ms each | statuses |", "|---|---|---|---|---|---|"]

    def row(name: str, measured: dict[str, Any]) -> None:
        statuses = ", ".join(f"{count} × {status}" for status, count in sorted(measured["statuses"].items()))
        cpu = f"{measured['cpu_ms']:.1f}" if "cpu_ms" in measured else ""
        lines.append(
            f"| {name} | {measured['per_second']:.1f} | {measured['p50_ms']:.1f} | {measured['p99_ms']:.1f} | {cpu} "
            f"| {statuses} |"
        )

    if "in_process" in found:
        engine = found["in_process"]
        lines.append(
            f"| engine in process, one at a time | {engine['single_per_second']:.1f} | {engine['single_p50_ms']:.1f} | | | |"
        )
        lines.append(
            f"| engine in process, batches of {BATCH} | {engine['batch_per_second']:.1f} | | | {engine['batch_cpu_ms']:.1f} | |"
        )
        for clients, measured in found["http"].items():
            row(f"HTTP, {clients} clients", measured)
    if "overload" in found:
        row(f"{BATCH} clients, queue of 64", found["overload"]["peak"])
        for name, title in (("back_off", "with back-off"), ("no_back_off", "without back-off")):
            row(f"{10 * BATCH} clients {title}", found["overload"][name])
            row("`/livez` meanwhile", found["overload"][name]["livez"])
    if "slow" in found:
        row("8 clients", found["slow"]["alone"])
        row(f"8 clients beside {found['slow']['clients']} slow ones", found["slow"]["beside"])
    if "body" in found:
        large = found["body"]
        lines.append(
            f"\nA chunked body of 100 MB: {large['status']} after {large['sent_mb']:.1f} MB, memory grew by "
            f"{large['growth_mb']:.1f} MB (limit of a body: {large['limit_mb']:.0f} MB)."
        )
    if "soak" in found:
        measured = found["soak"]
        windows = ", ".join(f"{megabytes:.1f}" for megabytes in measured["resident_mb"])
        lines.append(
            f"\n{measured['minutes']:.0f} minutes at {measured['per_second']:.0f} requests/s: {measured['statuses']}; "
            f"memory in each five minutes {windows} MB, "
            f"after {measured['warm_up_minutes']:.0f} minutes {measured['growth_mb_per_hour']:+.2f} MB/h."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
