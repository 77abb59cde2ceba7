"""Arrays: parts in, one contiguous file out, memory maps back."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from kgtrace_store import arrays
from kgtrace_store.arrays import (
    assemble,
    lay_out,
    let_go,
    open_arrays,
    read_part,
    read_rows,
    write_part,
    write_rows,
)
from kgtrace_store.errors import CorruptGeneration, StorageFailed

DTYPES = st.sampled_from(["float32", "float16", "int32", "int64"])


@st.composite
def tables(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.sampled_from(["phi", "rho", "triples", "terms"]), unique=True, min_size=1))
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)
    return {name: draw(hnp.arrays(draw(DTYPES), draw(shapes))) for name in names}


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@settings(max_examples=50)
@given(tables(), st.data())
def test_round_trip(whole: dict[str, np.ndarray], data: st.DataObject) -> None:
    """However arrays are cut into parts and copied in blocks, the file holds the whole arrays."""
    count = data.draw(st.integers(1, 4))
    cuts = {
        name: sorted(data.draw(st.integers(0, len(array))) for _ in range(count - 1)) for name, array in whole.items()
    }
    split = {name: np.split(array, cuts[name]) for name, array in whole.items()}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_BLOCK_BYTES", data.draw(st.sampled_from([1, 50, 1 << 20])))
        folder = Path(name)
        paths = [folder / f"{i}.h5" for i in range(count)]
        for i, path in enumerate(paths):
            write_part(path, {key: split[key][i] for key in whole})
            for key, array in read_part(path).items():
                same(array, split[key][i])
        assemble(paths, folder / "all.h5")
        found = open_arrays(folder / "all.h5")
        assert set(found) == set(whole)
        for key, array in whole.items():
            same(found[key], array)


def test_pages_that_are_let_go_are_read_again(tmp_path: Path) -> None:
    """They are not in memory any more, and hold what they held; arrays that are no maps stay as they are."""
    path, pages = tmp_path / "all.h5", 1 << 14
    lay_out(path, {}, {}, {"a": np.arange(pages * 512).reshape(pages, 512)})
    rows = np.asarray(open_arrays(path)["a"]).reshape(-1, 256)[1:]

    def mapped() -> int:
        return int(re.search(r"RssFile:\s*(\d+)", Path("/proc/self/status").read_text())[1])

    before = rows.sum()
    most = mapped()
    let_go(rows)
    assert mapped() < most - pages * 3
    assert rows.sum() == before
    let_go(np.arange(3)[1:])


def test_rows_are_written_into_their_places(tmp_path: Path) -> None:
    """In any order; rows that do not belong there are refused, with both shapes."""
    path, rows = tmp_path / "all.h5", {"a": np.arange(4, dtype=np.int32), "b": np.ones((4, 2, 3), np.float16)}
    lay_out(path, rows, {"a": 10, "b": 10}, {"c": np.arange(5)})
    for start, count in ((6, 4), (0, 2), (2, 4)):
        write_rows(path, start, {name: start + array[:count] for name, array in rows.items()})
    found = open_arrays(path)
    same(found["a"], np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], np.int32))
    same(found["b"][:, 1, 2], np.array([1, 1, 3, 3, 3, 3, 7, 7, 7, 7], np.float16))
    same(found["c"], np.arange(5))
    same(read_rows(path, ["a"], range(2, 5))["a"], np.arange(2, 5, dtype=np.int32))
    for start, array in ((8, rows["a"]), (0, rows["a"].astype(np.int64)), (0, rows["b"])):
        with pytest.raises(CorruptGeneration, match=r"'a' of shape \(10,\) and type int32 has no place for rows"):
            write_rows(path, start, {"a": array})
    for call in (lambda: write_rows(path, 0, {"d": rows["a"]}), lambda: read_rows(path, ["d"], range(1))):
        with pytest.raises(CorruptGeneration, match="lacks d"):
            call()


def test_arrays_are_aligned_read_only_maps(tmp_path: Path) -> None:
    """Readers get memory maps on cache line boundaries that they cannot write through."""
    write_part(tmp_path / "0", {"a": np.arange(3, dtype=np.int8), "b": np.ones((5, 2), np.float32)})
    assemble([tmp_path / "0"], tmp_path / "all", extra={"basis": np.eye(3)})
    found = open_arrays(tmp_path / "all")
    assert sorted(found) == ["a", "b", "basis"]
    same(found["basis"], np.eye(3))
    for array in found.values():
        assert isinstance(array, np.memmap)
        assert array.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from kgtrace_store.arrays import assemble, open_arrays, write_part
from kgtrace_store.errors import StorageFailed
from kgtrace_store.search import FaissSearch

folder = Path(sys.argv[1])
arrays = {"a": np.ones((2000, 3), np.float32), "b": np.arange(9)}
index = FaissSearch.build([np.ones((50, 3), np.float32)], 50, 3)
write_part(folder / "0", arrays)
for name, least, write in [
    ("part", 24_000, lambda path: write_part(path, arrays)),
    ("all", 24_000, lambda path: assemble([folder / "0"], path)),
    ("search", 600, index.write),
]:
    for limit in [least // 2, least]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(folder / name)
        except StorageFailed as e:
            print(str(e).replace(str(folder), ""))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def test_failed_writes_are_named(tmp_path: Path) -> None:
    """When the system refuses to write on, every writer says so; parts do not appear."""
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *["cannot write /part.tmp"] * 2,
        *["cannot write /all"] * 2,
        *["cannot write /search"] * 2,
    ]
    assert all("File too large" in line for line in lines)
    assert not (tmp_path / "part").exists()


def test_a_full_disk_is_noticed_before_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message holds what is needed and what is free."""
    write_part(tmp_path / "0", {"a": np.zeros((1000, 2), np.float32)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100, free=10))
    with pytest.raises(StorageFailed, match=r"No space left on device \(needed 73536 bytes, 10 free\)"):
        assemble([tmp_path / "0"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_disk_that_does_not_tell_its_size_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems answer 0 for everything; nothing follows from that."""
    write_part(tmp_path / "0", {"a": np.arange(3)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, free=0))
    assemble([tmp_path / "0"], tmp_path / "all")
    assert open_arrays(tmp_path / "all")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a": np.zeros((1, 3), np.float32)}, r"shape \(3,\) and type float32.*\(2,\) and float32"),
        ({"a": np.zeros((1, 2), np.float16)}, r"type float16.*\(2,\) and float32"),
        ({"b": np.zeros((1, 2), np.float32)}, r"holds arrays \['b'\], the parts before it \['a'\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, second: dict[str, np.ndarray], message: str) -> None:
    """The message holds what the part has and what the parts before it have."""
    write_part(tmp_path / "0", {"a": np.zeros((4, 2), np.float32)})
    write_part(tmp_path / "1", second)
    with pytest.raises(CorruptGeneration, match=message):
        assemble([tmp_path / "0", tmp_path / "1"], tmp_path / "all")


def test_extra_arrays_have_names_of_their_own(tmp_path: Path) -> None:
    """An array cannot come from the parts and from outside of them."""
    write_part(tmp_path / "0", {"a": np.arange(3)})
    with pytest.raises(CorruptGeneration, match="'a' is in the parts and in extra"):
        assemble([tmp_path / "0"], tmp_path / "all", extra={"a": np.arange(3)})


def test_chunked_arrays_are_refused(tmp_path: Path) -> None:
    """Only an array in one piece can be mapped."""
    with h5py.File(tmp_path / "all", "w") as f:
        f.create_dataset("a", data=np.arange(100), chunks=(10,))
    with pytest.raises(CorruptGeneration, match="'a' is not contiguous"):
        open_arrays(tmp_path / "all")


@pytest.mark.parametrize("keep", [0, 10, 600, -1])
def test_truncated_files_are_refused(tmp_path: Path, keep: int) -> None:
    """A file that lost its end does not open, wherever it was cut."""
    write_part(tmp_path / "0", {"a": np.arange(1000)})
    data = (tmp_path / "0").read_bytes()
    (tmp_path / "0").write_bytes(data[:keep])
    for reader in (open_arrays, read_part):
        with pytest.raises(CorruptGeneration, match="not a whole HDF5 file"):
            reader(tmp_path / "0")


def test_missing_files_are_refused(tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(CorruptGeneration, match="nowhere is missing"):
        open_arrays(tmp_path / "nowhere")
