"""Three replicas behind HAProxy, on the loopback interface of this machine: requests that fail while replicas come and go.

    python -m benchmarks.replicas                     # three quarters of an hour; needs haproxy
    python -m benchmarks.replicas --phases kill drain # only these, and the memory

Builds two generations of CoDEx-S from the folder in KGTRACE_SHARED, starts three times ``kgtrace serve`` on one index root,
and HAProxy before them with the settings of ``docker/haproxy.cfg``. Asks at random moments, at a steady rate, while nothing
else happens, while one replica after the other is killed, while generations are published and rolled back, and while one
replica after the other is told to end, and at last for half an hour in which a replica is killed each minute and a
generation published or rolled back every two; before a replica ends, many requests come at once, so that all have some in hand.
Then compares the memory of ``kgtrace serve`` with one process and with several. Writes ``benchmarks/results/NAME.json`` and
the tables of ``docs/scale.md``.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.fb15k237 import machine
from benchmarks.pages import DOCS, replace
from benchmarks.reload import KEY, LONGEST, Load, connections, prepare, publish, served
from benchmarks.service import KGTRACE, RESULTS, connection, request, serving
from kgtrace_store import IndexRoot

CONFIGURATION = Path(__file__).parents[1] / "docker" / "haproxy.cfg"
REPLICAS = 3
BURST = 30
"""Requests that come at once before a replica ends."""
PROCESSES = (1, 2, 4)
DISTURBANCES = {
    "quiet": "nothing else happens",
    "kill": "{} replicas are killed",
    "publish_and_roll_back": "{} generations are published or rolled back",
    "drain": "{} replicas are drained",
    "long": "a replica is killed each minute and a generation published or rolled back every two, {} times in all",
}


def main() -> None:
    """Run the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of quiet load (default: %(default)s)")
    parser.add_argument("--times", type=int, default=12, help="of each disturbance (default: %(default)s)")
    parser.add_argument("--minutes", type=int, default=30, help="of the long phase (default: %(default)s)")
    parser.add_argument("--phases", nargs="+", choices=DISTURBANCES, default=list(DISTURBANCES), metavar="PHASE")
    parser.add_argument("--name", default="replicas-cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = IndexRoot(Path(folder) / "index")
        requests = [request(triple) for triple in prepare(root).tolist()]
        with Replicas(root.path, Path(folder), REPLICAS) as replicas:
            numbers = {"rate": args.rate, "seconds": args.seconds, "times": args.times, "minutes": args.minutes}
            phases = uvloop.run(measure(root, replicas, requests, args.phases, **numbers))
        memory = [memory_of(root.path, requests, workers) for workers in PROCESSES]
    file = RESULTS / f"{args.name}.json"
    if file.exists():
        phases = json.loads(file.read_text())["phases"] | phases
    found = {"machine": machine(), "phases": phases, "memory": memory}
    file.write_text(json.dumps(found, indent=2) + "\n")
    replace(DOCS / "scale.md", "replicas", phases_table(phases))
    replace(DOCS / "scale.md", "processes", memory_table(memory))


class Replicas(contextlib.AbstractContextManager["Replicas"]):
    """Processes of ``kgtrace serve`` on one index root, and HAProxy before them."""

    def __init__(self, root: Path, folder: Path, count: int) -> None:
        """Start them; ``folder`` takes the proxy's configuration."""
        self._root = root
        self.port, *self.ports = free_ports(1 + count)
        """The proxy's, and those of the replicas."""
        path = folder / "haproxy.cfg"
        path.write_text(configuration(self.port, self.ports))
        self.processes = [self._serve(port) for port in self.ports]
        self._proxy = subprocess.Popen(["haproxy", "-f", path, "-q"], stdout=subprocess.DEVNULL)

    def __exit__(self, *_: object) -> None:
        """End all."""
        self._proxy.terminate()
        for process in self.processes:
            process.terminate()
        for process in (self._proxy, *self.processes):
            process.wait(LONGEST)

    def restart(self, number: int) -> None:
        """Start a replica in the place of one that has ended."""
        self.processes[number] = self._serve(self.ports[number])

    async def ready(self) -> None:
        """Return when all replicas answer from an index, and one of them through the proxy."""
        for port in (*self.ports, self.port):
            await ready(port)

    def _serve(self, port: int) -> subprocess.Popen[bytes]:
        command = [KGTRACE, "serve", "--index", self._root, "--port", str(port), "--threads", "1", "--device", "cpu"]
        command += ["--admin-key", KEY, "--log-level", "error"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def configuration(port: int, replicas: list[int]) -> str:
    """Return the documented settings for replicas on ports of this machine."""
    lines = []
    for line in CONFIGURATION.read_text().splitlines():
        if line.strip().startswith("bind "):
            lines.append(f"    bind 127.0.0.1:{port}")
        elif line.strip().startswith("server-template "):
            lines += [f"    server kgtrace{number} 127.0.0.1:{at}" for number, at in enumerate(replicas)]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listening.getsockname()[1] for listening in taken]


async def ready(port: int) -> None:
    """Wait until a port is listened on, and answers from an index."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with connection(port) as ask:
                if (await ask(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200:
                    return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"nothing on port {port} was ready within {LONGEST:.0f} s")


async def measure(
    root: IndexRoot,
    replicas: Replicas,
    requests: list[bytes],
    phases: Sequence[str],
    *,
    rate: float,
    seconds: float,
    times: int,
    minutes: int,
) -> dict[str, dict[str, Any]]:
    """Load the proxy while nothing happens, and while replicas and generations come and go; say how that went."""
    await replicas.ready()
    ids = [status.id for status in root.generations()]
    load = Load(replicas.port, requests, rate, {id_: odd for odd, id_ in enumerate(ids)})

    burst: list[str | None] = []

    async def replaced(number: int, *, kill: bool) -> float:
        """Replace a replica while all have requests in hand: when the first of many that came at once is answered."""
        asked = [asyncio.ensure_future(problem_of(load, data)) for data in requests[:BURST]]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        seconds = await timed_replacement(replicas, number, kill=kill)
        burst.extend(await asyncio.gather(*asked))
        return seconds

    async def quiet() -> list[float]:
        await asyncio.sleep(seconds)
        return []

    async def kill() -> list[float]:
        return [await replaced(turn % REPLICAS, kill=True) for turn in range(times)]

    async def switched(generation: str) -> float:
        begun = time.perf_counter()
        if generation == ids[-1]:
            await publish(replicas.port, generation)
        else:
            await roll_back(replicas.port)
        for port in replicas.ports:
            await served(port, generation)
        return time.perf_counter() - begun

    async def publish_and_roll_back() -> list[float]:
        took = []
        for _ in range(times):
            took += [await switched(generation) for generation in reversed(ids)]
        return took

    async def drain() -> list[float]:
        return [await replaced(turn % REPLICAS, kill=False) for turn in range(times)]

    async def long() -> list[float]:
        took, begun = list[float](), time.monotonic()
        for minute in range(minutes):
            took.append(await replaced(minute % REPLICAS, kill=True))
            if minute % 2:
                took.append(await switched(ids[-1] if minute % 4 == 1 else ids[0]))
            await asyncio.sleep(max(0, begun + 60 * (minute + 1) - time.monotonic()))
        return took

    root.publish(ids[0])
    for port in replicas.ports:
        await served(port, ids[0])
    works = {"quiet": quiet, "kill": kill, "publish_and_roll_back": publish_and_roll_back, "drain": drain, "long": long}
    found = {}
    for name in phases:
        found[name] = {"per_second": rate, **await load.during(works[name])}
        failed = [problem for problem in burst if problem is not None]
        found[name]["in_hand"] = {
            "requests": len(burst),
            "failures": len(failed),
            "first_failure": next(iter(failed), None),
        }
        burst.clear()
    return found


async def problem_of(load: Load, data: bytes) -> str | None:
    """Send a request on a connection of its own; return what is wrong with the answer."""
    try:
        async with connections(load.port) as ask:
            return load.problem(*await ask(data))
    except (OSError, asyncio.IncompleteReadError, ValueError) as e:  # the last: no JSON, of the proxy
        return repr(e)


async def timed_replacement(replicas: Replicas, number: int, *, kill: bool) -> float:
    """End a replica, by force or by asking it to, and start another; return the seconds until it is ready."""
    begun = time.perf_counter()
    process = replicas.processes[number]
    (process.kill if kill else process.terminate)()
    code = await asyncio.to_thread(process.wait, LONGEST)
    if not kill and code != 0:
        raise RuntimeError(f"a replica that was told to end did so with exit code {code}")
    replicas.restart(number)
    await ready(replicas.ports[number])
    return time.perf_counter() - begun


async def roll_back(port: int) -> None:
    """Make the generation before the live one live."""
    async with connections(port) as ask:
        head = f"POST /v1/admin/rollback HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 0\r\n\r\n"
        status, answer = await ask(head.encode())
    if status != 200:
        raise RuntimeError(f"{status}: {answer}")


def memory_of(root: Path, requests: list[bytes], workers: int) -> dict[str, Any]:
    """Return the megabytes of a service of so many processes after some hundred answers, shared pages counted once."""
    with serving(root, "--workers", str(workers)) as (port, pid):
        uvloop.run(each_on_its_own_connection(port, requests[:200]))
        pages = [proportional(process) for process in family(pid)]
    return {"workers": workers, "megabytes": sum(pages) / 1e6}


async def each_on_its_own_connection(port: int, requests: list[bytes]) -> None:
    """Ask one after the other, so that all processes have a share."""
    for data in requests:
        async with connection(port) as ask:
            await ask(data)


def family(pid: int) -> Iterator[int]:
    """Yield a process and all that it has started."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from family(int(child))


def proportional(pid: int) -> int:
    """Return the bytes in memory of a process; of a page that n processes share, an n-th."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def phases_table(phases: dict[str, dict[str, Any]]) -> str:
    """Return the requests of each phase in Markdown."""
    lines = [
        "| while | requests | failed | p50 | p99 | in hand at the end | of them failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in DISTURBANCES.items():
        part = phases[name]
        cells = [title.format(part["reloads"]), f"{part['answers']:,}", part["failures"]]
        cells += [f"{part['p50_ms']:.0f} ms", f"{part['p99_ms']:.0f} ms"]
        cells += [part["in_hand"]["requests"], part["in_hand"]["failures"]] if part["in_hand"]["requests"] else ["", ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def memory_table(memory: list[dict[str, Any]]) -> str:
    """Return the memory of so many processes in Markdown."""
    lines = ["| processes | memory |", "|---|---|"]
    return "\n".join(lines + [f"| {part['workers']} | {part['megabytes']:.0f} MB |" for part in memory])


if __name__ == "__main__":
    main()
