"""Text files of a small vocabulary, compressed or not."""

import bz2
import gzip
import io
import lzma
import os
import sys
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from kgtrace_indexer.inputs.id_maps import read_vocabulary
from kgtrace_store.vocabulary import Vocabulary

zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

SHARED = Path(os.environ.get("KGTRACE_SHARED", Path(__file__).parents[3].parent / "shared"))
needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"no data under {SHARED}")

VOCABULARY = Vocabulary(["ann", "bob", "cid"], ["knows", "likes"])

Write = Callable[..., Path]


def entities_of(write: Write, content: str | bytes) -> list[str]:
    """Entity labels that an id map gives, in the order of their ids."""
    return list(read_vocabulary(write(content), write("0\tr\n")).entities)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "Zstandard": lambda content: zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1}),
    "zip": lambda content: zipped({"t/t.tsv": content, "t/": b"", "__MACOSX/t/._t.tsv": b"\x00"}),
}


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of some files."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()
