"""Workers that are processes of this machine."""

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from kgtrace_indexer.building.workers import Encoder, Task, count_lost
from kgtrace_store.errors import KgtraceError
from kgtrace_store.staging import Step


@dataclass(slots=True)
class _Worker:
    number: int
    process: SpawnProcess
    connection: "Connection[range, Step | KgtraceError]"
    part: range | None = None
    """The part that it encodes; None if it waits."""

    def give(self, part: range) -> None:
        self.part = part
        with suppress(
            BrokenPipeError
        ):  # it died while it had nothing to do; `encode` notices as it waits for the answer
            self.connection.send(part)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class LocalWorkers:
    """So many processes, which share the cores; with several GPUs each takes the next."""

    def __init__(self, count: int) -> None:
        self._count = count

    def encode(self, task: Task, parts: Sequence[range]) -> Iterator[tuple[range, Step]]:
        """Yield parts as they are finished; one that its worker did not survive is given to another."""
        todo, lost = deque(parts), Counter[range | None]()
        workers = [self._start(task, number) for number in range(min(self._count, len(parts)))]
        try:
            while todo or any(worker.part for worker in workers):
                for worker in workers:
                    if worker.part is None and todo:
                        worker.give(todo.popleft())
                ready = wait([worker.connection for worker in workers if worker.part is not None])
                for worker in [worker for worker in workers if worker.connection in ready]:
                    part, worker.part = worker.part, None
                    assert part is not None
                    try:
                        answer = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        worker.end()
                        code = worker.process.exitcode
                        count_lost(lost, part, f", the last with exit code {code}; is there memory for {self._count}?")
                        todo.appendleft(part)
                        workers[worker.number] = self._start(task, worker.number)
                        continue
                    if isinstance(answer, KgtraceError):
                        raise answer
                    yield part, answer
        finally:
            for worker in workers:
                worker.end()

    def _start(self, task: Task, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a fork may not use CUDA, nor the threads that there were
        ours, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // self._count)
        process = context.Process(target=_serve, args=(theirs, task, number, threads), daemon=True)
        process.start()
        theirs.close()  # so that its end shows at ours
        return _Worker(number, process, ours)


def _serve(connection: "Connection[Step | KgtraceError, range]", task: Task, number: int, threads: int) -> None:
    """Encode parts until the builder closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all processes; the builder then ends us
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    encoder: Encoder | None = None
    with suppress(EOFError, BrokenPipeError):
        while True:
            part = connection.recv()
            try:
                encoder = encoder or Encoder(task)
                connection.send(encoder.encode(part))
            except KgtraceError as e:
                connection.send(e)
