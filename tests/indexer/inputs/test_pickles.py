"""Reading ``torch.save`` files: the same objects as PyTorch, and nothing of what a hostile file asks for."""

import builtins
import io
import os
import pickle
import random
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kgtrace_indexer.inputs import inert, torch_files
from kgtrace_indexer.inputs.inert import Global, Inert, StoredTensor
from kgtrace_indexer.inputs.torch_files import TorchArchive, open_archive
from kgtrace_store.errors import UnreadableModel

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


@dataclass
class Call:
    """Pickles as a call that its reader should not make."""

    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


@dataclass
class Reference:
    """Pickles as a persistent id, whatever it says."""

    id: Any


def dumps(value: object, protocol: int = 2) -> bytes:
    """Pickle with :class:`Reference` as persistent ids."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.id if isinstance(value, Reference) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def tensor(
    size: Any = (2, 3),
    stride: Any = (3, 1),
    offset: Any = 0,
    *,
    numel: Any = 6,
    key: Any = "0",
    kind: Any = torch.FloatStorage,
) -> Call:
    """A tensor as ``torch.save`` would write it, but with any numbers."""
    storage = Reference(("storage", kind, key, "cpu", numel))
    return Call(torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict()))


def write_archive(path: Path, data: bytes, entries: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """A zip archive in the layout of ``torch.save`` around any pickle; one storage of six floats by default."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in ({"data/0": bytes(24)} if entries is None else entries).items():
            archive.writestr(f"archive/{name}", content)
    return path


def read_all(path: Path) -> Any:
    """Open an archive and load every tensor in it."""
    with open_archive(path) as archive:
        return _loaded(archive, archive.root)


def refusal(path: Path) -> str | None:
    """The error message of reading an archive, if it cannot be read."""
    try:
        read_all(path)
    except UnreadableModel as e:
        return str(e)
    return None


def _loaded(archive: TorchArchive, value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return archive.load(value)
    if isinstance(value, dict):
        return {k: _loaded(archive, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_loaded(archive, v) for v in value)
    return value


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


# Hostile files. Each would leave a file behind, or take all memory, if it had its way.


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


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """A bomb, whether in the pickle or in a storage, is refused before it is unpacked."""
    bomb = write_archive(tmp_path / "a.pt", dumps([None] * 1_000_000), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnreadableModel, match=r"'archive/data.pkl' is compressed"):
        read_all(bomb)
    path = tmp_path / "b.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(tensor(size=(10**7,), stride=(1,), numel=10**7)))
        archive.writestr("archive/data/0", bytes(4 * 10**7), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnreadableModel, match=r"'archive/data/0' is compressed"):
        read_all(path)


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """Entries that contain each other cannot add up to more than the file."""
    count, size = 40, 4_000
    payload = bytes(size)
    infos = []
    for i in reversed(range(count)):  # each entry's content is the next one's header and content
        info = zipfile.ZipInfo(f"archive/data/{i}")
        info.CRC, info.file_size, info.compress_size = zipfile.crc32(payload), len(payload), len(payload)
        infos.insert(0, info)
        payload = info.FileHeader() + payload
    numel = [info.file_size for info in infos]
    tensors = [tensor((n,), (1,), numel=n, key=str(i), kind=torch.ByteStorage) for i, n in enumerate(numel)]
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(tensors))
        assert archive.fp is not None
        start = archive.fp.tell()
        archive.fp.write(payload)
        archive.start_dir = archive.fp.tell()
        for info in infos:
            info.header_offset = start
            start += len(info.FileHeader())
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    assert sum(numel) > 10 * path.stat().st_size
    with pytest.raises(UnreadableModel, match="overlap"):
        read_all(path)


def test_entry_names_are_never_paths(tmp_path: Path) -> None:
    """An archive whose names climb out of it writes nothing."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("../data.pkl", dumps({"x": tensor(key="../escaped")}))
        archive.writestr("../data/../escaped", bytes(24))
    before = sorted(tmp_path.parent.rglob("*"))
    assert read_all(tmp_path / "x.pt")["x"].sum() == 0
    assert sorted(tmp_path.parent.rglob("*")) == before


def _zip_of(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"head\trelation\ttail\n", "not a zip archive"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}",
            "it is a NumPy array; of a model saved as such, pass the folder with both tables",
        ),
        (b"PK\x03\x04", "truncated or damaged"),
        (pickle.dumps({"x": 1}, protocol=2), "bare pickle or was saved by PyTorch before 1.6"),
        (_zip_of(["word/document.xml"]), "0 entries NAME/data.pkl"),
        (_zip_of(["a/data.pkl", "b/data.pkl"]), "2 entries NAME/data.pkl"),
    ],
    ids=["empty", "text", "array", "zip header", "bare pickle", "foreign zip", "two models"],
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that torch.save did not write is refused with what it seems to be."""
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UnreadableModel, match=r"x\.pt") as error:
        read_all(tmp_path / "x.pt")
    assert message in str(error.value)


def test_legacy_files_say_how_to_save_them_again(tmp_path: Path) -> None:
    """The format of PyTorch before 1.6 is refused with a hint."""
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnreadableModel, match=r"save it again with torch.save"):
        read_all(tmp_path / "x.pt")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    """What cannot be opened is an unreadable model with the system's reason."""
    with pytest.raises(UnreadableModel, match="No such file"):
        read_all(tmp_path / "x.pt")
    with pytest.raises(UnreadableModel, match="Is a directory"):
        read_all(tmp_path)


def test_an_unknown_byte_order_is_refused(tmp_path: Path) -> None:
    """Guessing the byte order would give wrong numbers."""
    path = write_archive(tmp_path / "x.pt", dumps(1), {"byteorder": b"middle"})
    with pytest.raises(UnreadableModel, match="byte order"):
        read_all(path)


def test_every_truncation_is_named(tmp_path: Path) -> None:
    """A file cut anywhere is an unreadable model, never another error or a wrong tensor."""
    torch.save({"x": torch.arange(100.0)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(UnreadableModel):
            read_all(tmp_path / "cut.pt")


def test_flipped_bits_are_named_or_harmless(tmp_path: Path) -> None:
    """A damaged byte is an unreadable model unless it is one that carries no meaning."""
    expected = torch.arange(100.0)
    torch.save({"x": expected}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "bad.pt").write_bytes(damaged)
        try:
            found = read_all(tmp_path / "bad.pt")
        except UnreadableModel:
            refused += 1
        else:
            assert torch.equal(found["x"], expected)
    assert refused > 100


def test_random_opcodes_are_named_or_inert(tmp_path: Path) -> None:
    """Random mutations of a real pickle never raise anything but the named error."""
    data = dumps({"x": tensor(), "y": [Call(os.getcwd, ()), (1, 2, {"a": "b"})]})
    rng = random.Random(1)
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        assert len(refusal(write_archive(tmp_path / "x.pt", bytes(damaged))) or "") < 1000
