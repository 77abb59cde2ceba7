"""What the routes stand on: the service of the moment, the thread it computes in, and the index root it came from."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kgtrace_server import catalogue
from kgtrace_server.calls import AT_LEAST
from kgtrace_server.http.kept import Kept
from kgtrace_server.http.reload import NotEnoughMemory, Reloader, open_warm
from kgtrace_server.http.worker import Worker
from kgtrace_server.problems import CannotSwitch, GenerationUnavailable, NotReady, root_errors_as
from kgtrace_server.schema.operation import Generations, IndexInfo, Ready, Reload, Switched
from kgtrace_server.service import Service
from kgtrace_store.errors import BadRequest, KgtraceError
from kgtrace_store.generations import IndexRoot

if TYPE_CHECKING:
    from kgtrace_server.http.metrics import Metrics
    from kgtrace_server.settings import Settings


_ADVICE = "check --index (KGTRACE_INDEX), publish a generation, or build one first"
"""For the operator of a service on a folder in which no generation is live."""

_log = logging.getLogger(__name__)


class Backend:
    """Holds one service, which can be replaced at any moment: requests keep the one they began with."""

    def __init__(self, source: Service | Callable[[str], Service], settings: "Settings", metrics: "Metrics") -> None:
        """Take a service, or a function that loads the generation of an id: ``settings.index`` is then followed.

        Raises `BadRequest` for such a function without an index.
        """

        def begin() -> None:
            from kgtrace_indexer.threads import limit_threads

            limit_threads(settings.threads)

        self.worker = Worker(
            settings.queue_length,
            begin=begin,
            observe=metrics.batch,
            queued=metrics.queued,
            restarted=metrics.restarted,
        )
        self._patience = settings.deadline / 2
        self._root = None if settings.index is None else settings.index.absolute()
        self._threads = settings.threads
        self._service: Service | None = None
        self._reloader: Reloader[Service] | None = None
        self._kept = Kept(self._open)
        if isinstance(source, Service):
            self._service = source
        elif self._root is None:
            raise BadRequest("generations are loaded from an index root, and the settings name none")
        else:
            self._reloader = Reloader(
                self._root,
                source,
                self.swap,
                searches=settings.search == "faiss",
                processes=settings.workers,
                make_room=self._kept.release,
                ended=metrics.reload,
            )
        metrics.watch(self._index)

    @property
    def generation(self) -> str | None:
        """Id of the generation that answers, once there is one."""
        service = self._service
        return None if service is None else service.generation

    @property
    def service(self) -> Service:
        """The service. Raises `NotReady` saying why there is none."""
        service = self._service
        if service is None:
            raise NotReady(self._why_not())
        return service

    async def at_least(self, generation: str) -> Service:
        """Return the service of a generation or of a later one. One that is older loads what is live first.

        Raises `NotReady` where that takes longer than half the deadline, or what is live is older, too.
        """
        if (self.generation or "") < generation:
            await self.look(self._patience)
        service = self.service
        if service.generation < generation:
            raise NotReady(
                f"generation {service.generation} answers, older than {generation}, which {AT_LEAST} asks for: "
                "try again shortly, or without it after a rollback"
            )
        return service

    async def exactly(self, generation: str) -> Service:
        """Return the service of a generation, which is opened if it is not the one that answers; see `Kept`.

        Raises `GenerationUnavailable`, and `NotReady` where there is no memory for it or another one is being opened.
        """
        service = self._service
        if service is not None and service.generation == generation:
            return service
        return await self._kept.service(generation)

    async def look(self, seconds: float) -> None:
        """Load the live generation if it is not the one that answers; return when that has ended, or time is up."""
        if self._reloader is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._reloader.look())), seconds)

    def start(self) -> None:
        """Begin to follow the index root, unless the service came loaded. Logs a warning where nothing is live yet."""
        if self._reloader is not None:
            if (missing := self._missing()) is not None:
                _log.warning("nothing to serve: %s; waiting until a generation is live there: %s", missing, _ADVICE)
            self._reloader.start()

    def swap(self, service: Service) -> None:
        """Answer requests that begin from now on with another service."""
        self._service = service

    def close(self) -> None:
        """Refuse new requests; wait a moment for the running computation and reload."""
        self.worker.close()
        if self._reloader is not None:
            self._reloader.close()

    def ready(self) -> Ready:
        """Return the serving generation and the outcome of the last reload. Raises `NotReady`."""
        reloader = self._reloader
        return Ready(
            status="ready",
            generation=self.service.generation,
            draining=() if reloader is None else tuple(reloader.draining),
            reload=None if reloader is None else self._without_place(reloader.last),
        )

    def generations(self) -> Generations:
        """List the generations on disk. Raises `CannotSwitch` where the root cannot be read, or there is none."""
        with self._root_as(CannotSwitch) as root:
            listed = catalogue.generations(root)
            live = root.current()
        shown = (replace(info, problem=info.problem and self._shown(info.problem)) for info in listed)
        return Generations(live, self.generation, tuple(shown))

    def publish(self, generation: str) -> Switched:
        """Make a generation live and load it. Raises `CannotSwitch`."""
        with self._root_as(CannotSwitch) as root:
            root.publish(generation)
        return self._switched(generation)

    def rollback(self) -> Switched:
        """Make the generation before the live one live and load it. Raises `CannotSwitch`."""
        with self._root_as(CannotSwitch) as root:
            live = root.rollback()
        return self._switched(live)

    def _switched(self, live: str) -> Switched:
        reload = None if self._reloader is None else self._reloader.check()
        return Switched(live, self.generation, self._without_place(reload))

    def _open(self, generation: str) -> Service:
        """Open a generation besides the one that answers: on the CPU and by FAISS; GPU and Milvus are the latter's."""
        from kgtrace_indexer.threads import limit_threads

        limit_threads(self._threads)
        with self._root_as(GenerationUnavailable) as root, root.open(generation, verify=False) as opened:
            if self._reloader is not None:
                try:
                    self._reloader.require_memory(opened.manifest, searches=True)
                except NotEnoughMemory as e:
                    raise NotReady(str(e)) from e
            attributor = open_warm(root.path, generation, device="cpu")
        _log.info("opened generation %s for questions that name it", generation)
        return Service(attributor)

    @contextmanager
    def _root_as(self, kind: type[KgtraceError]) -> Iterator[IndexRoot]:
        """Yield the index root; where it cannot be used, raise an error of a kind that does not say where it lies."""
        if self._root is None:
            raise kind("the service was started on one generation, without an index root")
        try:
            with root_errors_as(kind):
                yield IndexRoot(self._root)
        except kind as e:
            raise kind(self._shown(str(e))) from e

    def _why_not(self) -> str:
        if (missing := self._missing()) is not None:
            return f"nothing has been published: {self._shown(missing)}: {_ADVICE}; it is served as soon as it is live"
        last = None if self._reloader is None else self._reloader.last
        if last is None or last.ok:
            return "the index is being loaded: try again shortly"
        return f"the index could not be loaded: {self._shown(last.reason or '')}"

    def _missing(self) -> str | None:
        return None if self._root is None else IndexRoot(self._root).missing()

    def _without_place(self, reload: Reload | None) -> Reload | None:
        """Return how an attempt to load a generation ended, without the place of the index."""
        return reload and replace(reload, reason=reload.reason and self._shown(reload.reason))

    def _shown(self, text: str) -> str:
        """Leave out where the index lies: that is nobody's business but the operator's, who has the log."""
        return text if self._root is None else _without(self._root, text)

    def _index(self) -> IndexInfo | None:
        service = self._service
        return None if service is None else service.index_info()


def _without(root: Path, text: str) -> str:
    return text.replace(f"{root}/", "").replace(str(root), "the index root")
