"""Batches side by side come out as one after the other, and what goes wrong in a thread is raised."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build
from kgtrace_indexer.building.lanes import Lanes
from kgtrace_store import IndexRoot, Vocabulary

Umls = tuple[ModelFile, Vocabulary, TripleTable]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Other tests compute on as many threads as they did."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


@pytest.mark.usefixtures("three_cores")
def test_results_come_in_order_whoever_is_first() -> None:
    """The first item is done only after the third has been, and comes first all the same."""
    third = threading.Event()

    def double(item: int) -> int:
        if item == 0:
            assert third.wait(120)
        if item == 2:
            third.set()
        return 2 * item

    with Lanes(CPU, several=True) as lanes:
        assert list(lanes.map(double, range(4))) == [0, 2, 4, 6]


def test_models_that_allow_one_batch_at_a_time_get_one() -> None:
    """Items are never computed at the same time."""
    busy = threading.Lock()

    def alone(item: int) -> bool:
        free = busy.acquire(blocking=False)
        busy.release()
        return free

    with Lanes(CPU, several=False) as lanes:
        assert all(lanes.map(alone, range(200)))


def test_threads_that_begin_later_compute_on_all_cores() -> None:
    """Lanes of one core each leave no trace."""
    found: list[int] = []
    torch.set_num_threads(2)
    with Lanes(CPU, several=True) as lanes:
        assert list(lanes.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [2]


def test_errors_of_batches_and_of_the_writer_are_raised() -> None:
    """In the thread that asked; what the writer raised at the latest when everything should be written."""

    def fail(item: object = None) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), Lanes(CPU, several=True) as lanes:
        list(lanes.map(fail, range(3)))
    with pytest.raises(ValueError, match="no"), Lanes(CPU, several=True) as lanes:
        lanes.write(fail)


def test_what_is_written_is_written_in_order() -> None:
    """One piece after the other, all of them before the context is left."""
    written: list[int] = []
    with Lanes(CPU, several=True) as lanes:
        for i in range(20):
            lanes.write(lambda i=i: written.append(i))
    assert written == list(range(20))


def test_the_number_of_lanes_changes_nothing(umls: Umls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches at a time give the same files, byte for byte, as one."""
    model, vocabulary, table = umls
    config = BuildConfig(precondition="none", dim=16, landmarks=256, device="cpu")
    build(tmp_path / "one", model, vocabulary, table, config)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    build(tmp_path / "three", model, vocabulary, table, config)
    one, three = (IndexRoot(tmp_path / name).open().manifest.files for name in ("one", "three"))
    assert one == three
