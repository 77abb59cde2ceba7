"""Following an index root: the next generation is loaded beside the one that answers, and then takes its place."""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from kgtrace_server.http.memory import available_memory
from kgtrace_server.schema.operation import Reload
from kgtrace_store import layout
from kgtrace_store.errors import KgtraceError
from kgtrace_store.generations import IndexRoot
from kgtrace_store.manifest import Manifest

if TYPE_CHECKING:
    from kgtrace_indexer.query.attributor import Attributor
    from kgtrace_store.milvus import Milvus

_INTERVAL = 2.0
"""Seconds between looks at ``CURRENT``, a file of 24 bytes."""

_RETRY = 60.0
"""Seconds until a generation that failed is tried again: its failure may be of the moment, as that of memory is."""

_WARM_QUERIES = 4
"""Training triples explained before a generation answers requests: first calls are several times slower."""

_BYTES_PER_LABEL_BYTE = 16
"""Memory for each byte of the vocabulary's files: labels and names as Python's strings, and tables that find them."""

_VOCABULARY = layout.VOCABULARY + "/"

_log = logging.getLogger(__name__)


class NotEnoughMemory(KgtraceError, MemoryError):
    """Two generations do not fit beside each other."""


class Served(Protocol):
    """What answers requests."""

    @property
    def generation(self) -> str:
        """Id of the generation that it answers from."""


S = TypeVar("S", bound=Served)


class Reloader(Generic[S]):
    """Keeps the service on the live generation of an index root.

    ::

        reloader = Reloader(root, load, backend.swap)     # lifespan, start-up; nothing has been read yet
        reloader.start()                                  # loads the live generation, or waits for the first
        reloader.check()                                  # after a publication: reload now, and say how it ended
        reloader.close()                                  # lifespan, shutdown

    ``load(generation)`` opens, verifies and warms (see `open_warm`); ``swap(service)`` replaces the one reference that
    new requests take. Both are called in this class's thread, or in that of a caller of `check`, never in two at once.
    Threads of OpenMP and torch are limited by thread: ``load`` must set the limits, as the computing thread does.

    If loading fails, the current generation keeps serving; `last` is the outcome. One that failed is tried again
    when ``CURRENT`` changes, when `check` is called, and after a minute. Memory for both is asked for only where a
    generation serves already: the first one is always loaded.

    The one that was replaced ends by itself: requests in flight hold it, and when the last of them lets go its memory
    and its lock against pruning are released. Until then its id is in `draining`.
    """

    def __init__(
        self,
        root: Path,
        load: Callable[[str], S],
        swap: Callable[[S], None],
        *,
        searches: bool = True,
        processes: int = 1,
        make_room: Callable[[], None] = lambda: None,
        ended: Callable[[Reload], None] = lambda _: None,
        interval: float = _INTERVAL,
        memory: Callable[[], int | None] = available_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store.

        ``searches``: whether this process searches, and so holds the searched index in memory. ``processes``: how many
        processes of this machine load each generation, at the same time. ``make_room`` is called before memory for
        another generation is looked for, ``ended`` after each attempt.
        """
        self._root = IndexRoot(root)
        self._load = load
        self._swap = swap
        self._served: weakref.ref[S] | None = None
        self._generation: str | None = None
        self._in_use = 0
        self._searches = searches
        self._processes = processes
        self._make_room = make_room
        self._ended_with = ended
        self._interval = interval
        self._memory = memory
        self._clock = clock
        self._draining: list[tuple[str, weakref.ref[S]]] = []
        self._retry_at = 0.0
        self._one_at_a_time = threading.Lock()
        self._closing = threading.Event()
        self._hurry = threading.Event()
        self._next_look: Future[None] = Future()
        self._thread = threading.Thread(target=self._follow, name="kgtrace-reload", daemon=True)
        self.last: Reload | None = None
        """The last attempt, None before the first."""

    @property
    def generation(self) -> str | None:
        """Id of the generation that answers, None before the first."""
        return self._generation

    @property
    def draining(self) -> list[str]:
        """Ids of replaced generations that still answer requests, oldest first."""
        return [id_ for id_, service in self._draining if service() is not None]

    def start(self) -> None:
        """Begin to follow ``CURRENT``, in a thread; its first look is at once."""
        self._thread.start()

    def look(self) -> Future[None]:
        """Let the thread look at ``CURRENT`` now; the future is done when that look, and any load, has ended."""
        look = self._next_look
        self._hurry.set()
        return look

    def close(self, timeout: float = 5.0) -> None:
        """Stop following; a load in progress is waited for so many seconds, and never swapped in."""
        self._closing.set()
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def check(self, *, now: bool = True) -> Reload | None:
        """Load the live generation if it is not the one that answers; return how that ended, None if nothing was done.

        ``now=False`` leaves one that failed alone until its time to be tried again has come.
        """
        with self._one_at_a_time:
            self._draining = [(id_, service) for id_, service in self._draining if service() is not None]
            started = self._clock()
            live: str | None = None
            try:
                live = self._root.current()
                if live is None or live == self._generation:
                    return None
                if not now and self._failed_before(live) and started < self._retry_at:
                    return None
                if not self._replace(live):
                    return None
            except BaseException as e:  # SystemExit, too: a thread that ends by itself follows no generation any more
                if self._failed_before(live) and not now and started < self._retry_at:
                    return None  # CURRENT itself cannot be read, and that has been said
                return self._ended(live, started, e)
            return self._ended(live, started, None)

    def _follow(self) -> None:
        while not self._closing.is_set():
            self._hurry.clear()
            look, self._next_look = self._next_look, Future()
            self.check(now=False)
            look.set_result(None)
            self._hurry.wait(self._interval)

    def _replace(self, live: str) -> bool:
        """Load and swap; False when closed in the meantime."""
        with self._root.open(live, verify=False) as generation:  # held, so that it cannot be pruned meanwhile
            manifest = generation.manifest
            self._make_room()
            self.require_memory(manifest)
            service = self._load(live)
        if self._closing.is_set():
            return False
        self._swap(service)
        if self._served is not None and self._generation is not None:
            self._draining.append((self._generation, self._served))
        self._served, self._generation = weakref.ref(service), live
        sizes = self._memory_by_file(manifest)
        self._in_use = sum(size for name, size in sizes.items() if not name.startswith(_VOCABULARY))
        return True

    def require_memory(self, new: Manifest, *, searches: bool = False) -> None:
        """Raise `NotEnoughMemory` if a generation does not fit beside the one that answers.

        ``searches``: this process searches the new one, even if it leaves searching the other to Milvus.
        """
        if self._generation is None:
            return  # there is nothing to protect: better slow than not at all
        available = self._memory()
        # The kernel counts the mapped files of the old generation, which every query reads, as available.
        needed = sum(self._memory_by_file(new, searches=searches).values()) + self._in_use
        if available is not None and available < needed:
            raise NotEnoughMemory(
                f"generation {new.generation} beside generation {self._generation} needs {needed} bytes of memory, "
                f"{available} are available: free some, or restart the service on {new.generation} alone"
            )

    def _memory_by_file(self, manifest: Manifest, *, searches: bool = False) -> dict[str, int]:
        """Return the bytes of memory that all processes together need to serve a generation at full speed, by file.

        They share all of it but the vocabulary.
        """
        of_vocabulary = _BYTES_PER_LABEL_BYTE * self._processes
        return {
            name: record.bytes * (of_vocabulary if name.startswith(_VOCABULARY) else 1)
            for name, record in manifest.files.items()
            if not layout.MAPPED.fullmatch(name) and (searches or self._searches or not name.endswith(layout.SEARCH))
        }

    def _failed_before(self, generation: str | None) -> bool:
        return self.last is not None and not self.last.ok and self.last.generation == generation

    def _ended(self, generation: str | None, started: float, error: BaseException | None) -> Reload:
        ended = self._clock()
        reason = None
        if error is None:
            _log.info("serving generation %s, loaded in %.1f s", generation, ended - started)
        else:
            self._retry_at = ended + _RETRY
            reason = str(error) if isinstance(error, KgtraceError) else f"{type(error).__name__}; see the log"
            kept = "there is none to keep" if self._generation is None else f"{self._generation} goes on serving"
            unexpected = None if isinstance(error, KgtraceError) else error
            _log.error("cannot serve generation %s, %s: %s", generation, kept, reason, exc_info=unexpected)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self.last = Reload(generation, error is None, reason, now, ended - started)
        self._ended_with(self.last)
        return self.last


def open_warm(root: Path, generation: str, *, device: str = "auto", milvus: "Milvus | None" = None) -> "Attributor":
    """Open a generation, compare its checksums and let it answer a few queries, so that the first user need not wait.

    Raises the errors of `open_index`.
    """
    from kgtrace_indexer.query.opening import open_index

    attributor = open_index(root, generation, device=device, milvus=milvus)
    rows = np.linspace(0, len(attributor) - 1, min(_WARM_QUERIES, len(attributor)), dtype=np.int64)
    for triple in np.asarray(attributor.training.triples[rows], np.int64):
        if attributor.searches:
            attributor.query(triple[None])
        else:  # it would compute every influence
            attributor.exact_influences(triple[None], rows)
    attributor.reasons.prepare()
    return attributor
