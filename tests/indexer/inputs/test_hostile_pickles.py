"""Hostile pickles: each would leave a file behind, or take all memory, if it had its way."""

import builtins
import os
import pickle
import random
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer.inputs import inert, torch_files
from kgtrace_indexer.inputs.inert import Global, Inert
from kgtrace_indexer.inputs.torch_files import open_archive
from kgtrace_store.errors import UnreadableModel
from tests.indexer.inputs.pickles import Call, Reference, dumps, read_all, refusal, tensor, write_archive


def marker_calls(marker: Path) -> dict[str, object]:
    """Objects whose unpickling would make `marker`."""
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, (f"touch {marker}",)),
        "builtins.exec": Call(builtins.exec, (code,)),
        "builtins.eval": Call(builtins.eval, (code,)),
        "nested in a list": [1, {"a": (Call(os.system, (f"touch {marker}",)),)}],
        "argument of a rebuild": Call(torch._utils._rebuild_parameter, (Call(builtins.eval, (code,)), True, None)),
        "argument of an unknown class": Call(Call, (Call(os.mkdir, (str(marker),)), ())),
        "write by pathlib": Call(Path.touch, (marker,)),
        "storage type": tensor(kind=Call(builtins.eval, (code,))),
        "storage key": tensor(key=Call(builtins.eval, (code,))),
        "size": tensor(size=Call(builtins.eval, (code,))),
    }


@pytest.mark.parametrize("which", marker_calls(Path("x")))
def test_nothing_a_pickle_calls_is_called(tmp_path: Path, which: str) -> None:
    """A pickle full of calls is at most read; nothing it names runs."""
    marker = tmp_path / "marker"
    path = write_archive(tmp_path / "x.pt", dumps({"payload": marker_calls(marker)[which]}))
    assert refusal(path) is None or "x.pt holds a pickle that torch.save does not write" in str(refusal(path))
    assert not marker.exists()


def test_globals_are_not_imported(tmp_path: Path) -> None:
    """A module that the pickle names is not imported, not even looked for."""
    data = b"\x80\x02cantigravity\nfly\n)R}X\x01\x00\x00\x00aNsb."
    root = read_all(write_archive(tmp_path / "x.pt", data))
    assert root.origin == Global("antigravity", "fly")
    assert root.attributes == {"a": None}
    assert "antigravity" not in sys.modules


HUGE = 2**62
BAD_TENSORS: dict[str, tuple[Call, str]] = {
    "larger than its storage": (tensor(size=(1000, 3)), "reaches element 2999"),
    "huge": (tensor(size=(HUGE, 4)), "negative or too large"),
    "beyond int64": (tensor(size=(2**5000,), stride=(1,)), "negative or too large"),
    "huge and empty": (tensor(size=(HUGE, HUGE, 0), stride=(1, 1, 1)), "negative or too large"),
    "expanded": (tensor(size=(2**40,), stride=(0,)), f"with {2**40} values"),
    "negative size": (tensor(size=(-2, 3)), "negative or too large"),
    "negative stride": (tensor(stride=(-3, 1)), "negative or too large"),
    "huge stride": (tensor(stride=(HUGE, 1)), "reaches element"),
    "negative offset": (tensor(offset=-1), "negative or too large"),
    "offset past the end": (tensor(offset=1), "reaches element 6"),
    "size of strings": (tensor(size=("2", "3")), "negative or too large"),
    "more strides than sizes": (tensor(stride=(3, 1, 1)), "2 dimensions with 3 strides"),
    "many dimensions": (tensor(size=(1,) * 100, stride=(1,) * 100), "100 dimensions"),
    "missing storage": (tensor(key="7"), "entry 'data/7' is missing"),
    "storage outside the archive": (tensor(key="../../../etc/passwd"), "is missing"),
    "declared larger than stored": (tensor(numel=2**50), "has 24 bytes instead of"),
    "declared smaller than stored": (tensor(numel=1), "has 24 bytes instead of 4"),
    "negative storage": (tensor(numel=-6), "not a storage"),
    "storage of no known type": (tensor(kind=torch.QInt8Storage), "'torch.QInt8Storage'"),
    "storage that is a list": (tensor(kind=list), "list'"),
}


@pytest.mark.parametrize("which", BAD_TENSORS)
def test_impossible_tensors_are_refused(tmp_path: Path, which: str) -> None:
    """A tensor that its storage cannot hold is a named error and takes no memory."""
    bad, message = BAD_TENSORS[which]
    path = write_archive(tmp_path / "x.pt", dumps({"x": bad}))
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableModel, match=r"x\.pt") as error:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_one_storage_under_two_types_is_refused(tmp_path: Path) -> None:
    """Two tensors must agree on what their storage is."""
    data = dumps([tensor(), tensor(kind=torch.IntStorage)])
    with pytest.raises(UnreadableModel, match="declared with two types or sizes"):
        read_all(write_archive(tmp_path / "x.pt", data))


@pytest.mark.parametrize("id", ["0", ("module", list, "source", "text"), ("storage",), 7, [("storage",)]], ids=str)
def test_references_to_anything_but_storages_are_refused(tmp_path: Path, id: Any) -> None:
    """The only outside reference torch.save makes is to a storage."""
    with pytest.raises(UnreadableModel, match="a reference to something that is not a storage"):
        read_all(write_archive(tmp_path / "x.pt", dumps([Reference(id)])))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "exhausted"),
        (b"\x80\x02", "exhausted"),
        (b"\x80\x02.", "ends with 0 values"),
        (b"\x80\x02NN.", "ends with 2 values"),
        (b"\x80\x02(N.", "instead of one"),
        (b"\x80\x02R.", "empty stack"),
        (b"\x80\x02)R.", "empty stack"),
        (b"\x80\x02t.", "closes a mark"),
        (b"\x80\x02Na.", "empty stack"),
        (b"\x80\x02NNa.", "not a list"),
        (b"\x80\x02NNNs.", "not a dict"),
        (b"\x80\x02}(Nu.", "without a value"),
        (b"\x80\x02N)R.", "not a name"),
        (b"\x80\x02N}b.", "not an object"),
        (b"\x80\x02h\x07.", "never stored"),
        (b"\x80\x02q\x07.", "empty stack"),
        (b"\x80\x04NN\x93.", "not a string"),
        (b"\x80\x02\xff.", "unknown"),
        (b"\x80\x09N.", "protocol 9"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.", "expected"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"cos\nsystem\n(S'touch marker'\ntR.", "opcode STRING"),
        (b"(ios\nsystem\n.", "opcode INST"),
        (b"(cos\nsystem\no.", "opcode OBJ"),
        (b"P0\n.", "opcode PERSID"),
    ],
)
def test_broken_pickles_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    """Opcodes that make no sense, or that torch.save never writes, are named in a one-line error."""
    with pytest.raises(UnreadableModel, match=r"holds a pickle that torch\.save does not write") as error:
        read_all(write_archive(tmp_path / "x.pt", data))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_huge_memo_index_takes_no_memory(tmp_path: Path) -> None:
    """Five bytes that make pickle.Unpickler allocate gigabytes are stored under a dictionary key."""
    data = b"\x80\x02]r\xff\xff\xff\xff0j\xff\xff\xff\xff."
    assert read_all(write_archive(tmp_path / "x.pt", data)) == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
        b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.",
        b"\x80\x02cx\nX\nq\x00)" + b"\x81\x85q\x010h\x00h\x01" * 100_000 + b"\x81.",
    ],
    ids=["tuples", "lists", "a key of tuples", "calls"],
)
def test_deep_nesting_does_not_overflow(tmp_path: Path, data: bytes) -> None:
    """Up to a million levels of nesting are read, and forgotten again, without recursion."""
    with open_archive(write_archive(tmp_path / "x.pt", data)) as archive:
        assert isinstance(archive.root, tuple | list | dict | Inert)


def test_cycles_are_read(tmp_path: Path) -> None:
    """A list that holds itself is just that."""
    value: list[Any] = []
    value.append(value)
    with open_archive(write_archive(tmp_path / "x.pt", dumps(value))) as archive:
        assert isinstance(archive.root, list)
        assert archive.root[0] is archive.root


def test_an_oversized_description_is_refused_unread(tmp_path: Path) -> None:
    """A data.pkl above the limit is refused by its size, with a way out."""
    data = dumps(bytes(torch_files.MAX_PICKLE_BYTES), protocol=4)
    with pytest.raises(UnreadableModel, match=r"more than the 67108864 allowed; save the weights alone"):
        read_all(write_archive(tmp_path / "x.pt", data))


def test_a_description_of_too_many_steps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file of small size can make is bounded by its opcodes: the last one that is allowed is executed."""
    assert inert.MAX_PICKLE_STEPS == 4 * 2**20
    monkeypatch.setattr(inert, "MAX_PICKLE_STEPS", 1003)
    body = b"\x80\x02" + (pickle.NONE + pickle.POP) * 500
    assert read_all(write_archive(tmp_path / "x.pt", body + pickle.NONE + b".")) is None
    longer = write_archive(tmp_path / "y.pt", body + pickle.NONE * 2 + b".")
    with pytest.raises(UnreadableModel, match=r"in more than the 1003 steps allowed; save the weights alone"):
        read_all(longer)


def test_labels_of_two_hundred_thousand_entities_are_read(tmp_path: Path) -> None:
    """As a checkpoint of PyKEEN's training loop carries them."""
    labels = {f"http://www.wikidata.org/entity/Q{i}": i for i in range(200_000)}
    with open_archive(write_archive(tmp_path / "x.pt", dumps({"entity_to_id_dict": labels}))) as archive:
        assert archive.root == {"entity_to_id_dict": labels}


def test_random_opcodes_are_named_or_inert(tmp_path: Path) -> None:
    """Random mutations of a real pickle never raise anything but the named error."""
    data = dumps({"x": tensor(), "y": [Call(os.getcwd, ()), (1, 2, {"a": "b"})]})
    rng = random.Random(1)
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        assert len(refusal(write_archive(tmp_path / "x.pt", bytes(damaged))) or "") < 1000
