"""Workers that are actors of a Ray cluster (https://docs.ray.io).

Every node has kgtrace installed and sees the index root under the same path. In place of an actor that dies, or whose
node does, another is started, where Ray finds room for it; until it does, the others encode all parts.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kgtrace_indexer.building.workers import Encoder, Task, count_lost
from kgtrace_store.errors import BadRequest, MissingExtra
from kgtrace_store.staging import Step


class RayWorkers:
    """Actors of a cluster: so many, or one for each GPU, or where there are none for each core."""

    def __init__(self, address: str, count: int | None = None) -> None:
        """`address` is that of `ray.init`: ``auto``, ``local``, HOST:PORT or ``ray://HOST:PORT``."""
        self._ray = _import_ray()
        self._address = address
        self._count = count

    def encode(self, task: Task, parts: Sequence[range]) -> Iterator[tuple[range, Step]]:
        """Yield parts as they are finished; a part whose actor died is given to another actor."""
        ray = self._ray
        try:
            context = ray.init(address=self._address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as e:
            raise BadRequest(f"no Ray cluster answers at {self._address}: {e}") from e
        with context:
            yield from self._encode(task, parts)

    def _encode(self, task: Task, parts: Sequence[range]) -> Iterator[tuple[range, Step]]:
        ray = self._ray
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if task.device != "cpu" else 0
        count = min(self._count or gpus or int(resources.get("CPU", 1)), len(parts))
        actor = ray.remote(_Actor).options(num_cpus=1, num_gpus=1 if gpus else 0)
        shared = ray.put(task)
        busy: dict[Any, tuple[Any, range | None]] = {}

        def start() -> None:
            worker = actor.remote(shared)
            busy[worker.begin.remote()] = worker, None  # a part would wait with it for room, perhaps for ever

        for _ in range(count):
            start()
        todo, lost = deque(parts), Counter[range | None]()
        free: list[Any] = []
        while todo or any(part for _, part in busy.values()):
            while todo and free:
                worker, following = free.pop(), todo.popleft()
                busy[worker.encode.remote(following)] = worker, following
            (done,), _ = ray.wait(list(busy), num_returns=1)
            worker, part = busy.pop(done)
            try:
                step = ray.get(done)
            except ray.exceptions.RayTaskError as e:
                raise e.cause from None
            except ray.exceptions.RayActorError:
                count_lost(lost, part, f"; is there memory for {count}{'' if part else ', and kgtrace,'} on the nodes?")
                if part:
                    todo.appendleft(part)
                start()
            else:
                del lost[part]
                free.append(worker)
                if part:
                    yield part, step


class _Actor:
    """An encoder on one thread: Ray counts an actor as a core."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        self._task = task
        self._encoder: Encoder | None = None

    def begin(self) -> None:
        """Return once there is room for this actor."""

    def encode(self, part: range) -> Step:
        self._encoder = self._encoder or Encoder(self._task)
        return self._encoder.encode(part)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as e:
        raise MissingExtra("--ray needs Ray: pip install 'kgtrace[scale]'") from e
    return ray
