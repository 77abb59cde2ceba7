"""Pickles of plain values, tensors and objects, read without being executed."""

import struct
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from kgtrace_indexer.inputs.inert import Global, Inert
from tests.indexer.inputs.pickles import dumps, read_all, tensor, write_archive

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back_as_they_are(tmp_path: Path, protocol: int) -> None:
    """Containers and scalars of any protocol that torch.save takes equal what torch.load gives."""
    value = {
        "numbers": [0, -1, 300, 70_000, 2**40, -(2**80), 0.5, float("inf")],
        "text": "käse" * 100,
        "bytes": b"\x00\xff",
        "nested": ([], (), {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "flags": [True, False, None],
        "ordered": OrderedDict(a=1),
        "size": torch.Size([2, 3]),
    }
    torch.save(value, tmp_path / "x.pt", pickle_protocol=protocol)
    expected = torch.load(tmp_path / "x.pt", weights_only=False)
    found = read_all(tmp_path / "x.pt")
    if protocol == 2:  # has no opcode for bytes: they are a call of _codecs.encode, which is not made
        assert found.pop("bytes").origin == Global("_codecs", "encode")
        del expected["bytes"]
    assert found == expected


def test_sets_become_lists(tmp_path: Path) -> None:
    """A set is read without hashing what is in it."""
    for protocol in (2, 4):
        torch.save({"set": {"a"}, "frozen": frozenset({"b"})}, tmp_path / "x.pt", pickle_protocol=protocol)
        assert list(read_all(tmp_path / "x.pt")["set"]) == ["a"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_equal_those_of_torch_load(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every element type comes back bit for bit."""
    value = torch.arange(-6, 6).reshape(3, 4).to(dtype)
    torch.save({"x": value}, tmp_path / "x.pt")
    found = read_all(tmp_path / "x.pt")["x"]
    assert found.dtype == dtype
    assert torch.equal(found, value)


def test_views_keep_their_shape_and_share_their_storage(tmp_path: Path) -> None:
    """Transposed, sliced, scalar and empty tensors of one storage are views of one memory."""
    base = torch.arange(24.0).reshape(4, 6)
    views = {"base": base, "t": base.T, "slice": base[1:, ::2], "scalar": base[2, 3], "empty": base[:0]}
    torch.save(views, tmp_path / "x.pt")
    found = read_all(tmp_path / "x.pt")
    assert all(torch.equal(found[name], view) for name, view in views.items())
    found["base"][2, 3] = -1
    assert found["scalar"] == -1


def test_parameters_and_storageless_tensors_are_tensors(tmp_path: Path) -> None:
    """Parameters, with and without attributes, and tensors without elements are read like any other."""
    plain, marked = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    marked.note = "kept by PyTorch"
    torch.save([plain, marked, torch.empty(0, 5)], tmp_path / "x.pt")
    found = read_all(tmp_path / "x.pt")
    assert [tuple(x.shape) for x in found] == [(2,), (3,), (0, 5)]


def test_big_endian_files_are_swapped(tmp_path: Path) -> None:
    """A file that says it was written with the other byte order gives the same numbers."""
    other = {"little": "big", "big": "little"}[sys.byteorder]
    numbers = struct.pack({"big": ">6f", "little": "<6f"}[other], *range(6))
    path = write_archive(tmp_path / "x.pt", dumps({"x": tensor()}), {"data/0": numbers, "byteorder": other.encode()})
    assert read_all(path)["x"].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_objects_remember_class_and_attributes(tmp_path: Path) -> None:
    """An object becomes its class's name and its attributes; functions become names."""
    module = torch.nn.Linear(2, 3)
    module.activation = torch.nn.functional.relu
    torch.save(module, tmp_path / "x.pt")
    root = read_all(tmp_path / "x.pt")
    assert isinstance(root, Inert)
    assert str(root.origin) == "torch.nn.modules.linear.Linear"
    assert root.attributes["in_features"] == 2
    assert str(root.attributes["activation"]) == "torch.nn.functional.relu"
