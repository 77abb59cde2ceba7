"""Archives that are damaged, foreign or hostile."""

import io
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from kgtrace_store.errors import UnreadableModel
from tests.indexer.inputs.pickles import dumps, read_all, tensor, write_archive


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
