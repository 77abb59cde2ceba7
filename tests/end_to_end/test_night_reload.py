"""A service under load while generations come and go."""

import http.client
import json
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import pytest

from kgtrace_store import IndexRoot
from tests.end_to_end.conftest import Umls, wait_until
from tests.end_to_end.service import KEY, PATIENCE, TRIPLES, Server, serving, two_generations

CLIENTS = 16
"""Each asks again as soon as it has its answer: as much as the service can take."""
ANSWERS = 10
"""Of each generation before the next one comes."""
RELOADS, SAMPLED = 50, 4
NOTICED = 4
"""One reload of so many is not asked for: the service notices that ``CURRENT`` has changed."""
IN_FLIGHT = 100


@pytest.fixture(scope="module")
def root(umls: Umls, tmp_path_factory: pytest.TempPathFactory) -> IndexRoot:
    """Two generations."""
    return two_generations(umls, tmp_path_factory.mktemp("index"))


@pytest.fixture
def server(root: IndexRoot) -> Iterator[Server]:
    """The command, serving the two generations."""
    with serving(root, "--threads", "1", "--queue-length", str(2 * IN_FLIGHT)) as server:
        yield server


class Load:
    """Asks about random training triples, as fast as the service answers, for as long as the block lasts."""

    def __init__(self, port: int, triples: list[list[int]], parity: dict[str, int]) -> None:
        self.failures: list[str] = []
        self.generations: Counter[str] = Counter()
        """Answers of each generation."""
        self._port = port
        self._triples = triples
        self._parity = parity
        self._stop = threading.Event()
        self._answered = threading.Condition()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> "Load":
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, generation: str) -> None:
        """Return when the generation has answered a few times more."""
        with self._answered:
            wanted = self.generations[generation] + ANSWERS
            self._answered.wait_for(lambda: self.generations[generation] >= wanted or self.failures, PATIENCE)
            assert self.failures or self.generations[generation] >= wanted

    def _client(self, seed: int) -> None:
        chance = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        while not self._stop.is_set():
            try:
                generation, problem = self._asked(connection, chance.choice(self._triples))
            except Exception as e:
                generation, problem = "", repr(e)
                connection.close()
            with self._answered:
                self.generations[generation] += 1
                if problem is not None:
                    self.failures.append(problem)
                self._answered.notify_all()
        connection.close()

    def _asked(self, connection: http.client.HTTPConnection, triple: list[int]) -> tuple[str, str | None]:
        """Return the generation that answered, and what is wrong with the answer."""
        body = json.dumps({"triples": [triple], "top_k": 5})
        connection.request("POST", "/v1/influences", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            return "", f"{response.status}: {answer}"
        generation, header = answer["generation"], response.headers["X-Kgtrace-Generation"]
        rows = {found["train_index"] % 2 for found in answer["results"][0]["influences"]}
        if rows != {self._parity[generation]} or header != generation:
            return generation, f"mixed: rows {rows}, header {header}, body {generation}"
        return generation, None


@pytest.mark.parametrize("reloads", [SAMPLED, pytest.param(RELOADS, marks=pytest.mark.slow)])
def test_reloads_under_load(umls: Umls, root: IndexRoot, server: Server, reloads: int) -> None:
    """While the service has all the requests that it can answer, none fails and no answer mixes generations."""
    ids = [status.id for status in root.generations()]
    triples = umls[2].ids[:TRIPLES].tolist()
    with Load(server.port, triples, {id_: odd for odd, id_ in enumerate(ids)}) as load:
        for i in range(reloads):
            wanted = ids[i % 2]
            if (i + 1) % NOTICED:
                status, answer = server.ask("POST", "/v1/admin/publish", {"generation": wanted}, {"X-API-Key": KEY})
                assert status == 200, answer
                assert json.loads(answer)["serving"] == wanted
            else:
                root.publish(wanted)
            load.wait_for(wanted)
    print(f"{reloads} reloads, {sum(load.generations.values())} answers, {len(load.failures)} failures")
    assert load.failures == []
    assert set(load.generations) == set(ids)


@pytest.mark.slow
def test_sigterm_with_requests_in_flight(umls: Umls, server: Server) -> None:
    """Told to stop while 100 requests wait, the service answers them all before it ends."""
    scan = {"triples": umls[2].ids[:256].tolist(), "exact": True, "top_k": 1}  # computed one after the other
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        asked = [pool.submit(server.ask, "POST", "/v1/influences", scan) for _ in range(IN_FLIGHT)]
        wait_until(lambda: server.taken() + server.waiting() == IN_FLIGHT)
        waiting = server.waiting()
        server.process.send_signal(signal.SIGTERM)
        statuses = Counter(request.result()[0] for request in asked)
    assert server.process.wait(PATIENCE) == 0
    print(f"{waiting} of {IN_FLIGHT} were waiting when told to stop")
    assert statuses == {200: IN_FLIGHT}
    assert waiting > 0
