"""Lines and fields of text files, read as streams.

Files may be compressed with gzip, bzip2, xz or Zstandard, or be the only file of a zip archive (told by content, not by
name); they may start with a byte-order mark, end lines with CRLF and hold blank lines.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from kgtrace_store.errors import MissingExtra, UnreadableInput

MAX_LINE_BYTES = 1 << 20
"""A longer line means that the file is not text; reading it whole could take all memory."""

INTEGER = re.compile(r"-?[0-9]{1,18}")
"""An id, if in range."""

_BUFFER_BYTES = 1 << 20
_UNPACKED_BYTES = 1 << 16
"""Of the content of a compressed file: few, since content before damage in the same buffer is lost."""
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\t|\r?\Z)')
"""A field in the quotes of CSV: it may hold anything, and quotes twice."""
_LONGEST_QUOTE = 100


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line that is not blank.

    Raises :class:`UnreadableInput`, naming the line.
    """
    return without_ends(text_lines(path))


def without_ends(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without CR at their ends."""
    return ((number, text.rstrip("\r")) for number, text in lines if not is_blank(text))


def counted(path: Path, first: tuple[int, str], lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines after a first one that holds their number; raise :class:`UnreadableInput` if there are more or fewer."""
    count = 0
    for line in lines:
        count += 1
        yield line
    if count != int(first[1]):
        raise UnreadableInput(
            f"{path} line {first[0]}: says that {int(first[1]):,} lines follow, but {count:,} do: is the file whole?"
        )


def is_blank(text: str) -> bool:
    return not text.rstrip("\r").strip(" ")


def csv_rows(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line, and fields, of every row of a file with the quotes of CSV; CR at the end is kept.

    A field in quotes may go on over several lines. Quotes that CSV would not write are taken as they are.
    """
    lines = iter(lines)
    waiting: deque[tuple[int, str]] = deque()
    while line := waiting.popleft() if waiting else next(lines, None):
        number, text = line
        if is_blank(text):
            continue
        fields = csv_fields(text)
        if fields is None and text.count('"') % 2:
            taken: list[str] = []
            room, ended = MAX_LINE_BYTES, False
            while room > 0 and not ended and (line := waiting.popleft() if waiting else next(lines, None)):
                taken.append(line[1])
                room, ended = room - len(line[1]) - 1, line[1].count('"') % 2 == 1
            fields = csv_fields("\n".join([text, *taken]))
            if fields is None:
                waiting.extendleft((number + len(taken) - i, text) for i, text in enumerate(reversed(taken)))
        yield number, text.split("\t") if fields is None else fields


def csv_fields(text: str) -> list[str] | None:
    """The fields of a row with the quotes of CSV undone; None if a quote opens a field and none ends it."""
    if '"' not in text:
        return text.split("\t")
    fields = []
    at = 0
    while True:
        quoted = _QUOTED.match(text, at)
        if quoted is None and text.startswith('"', at):
            return None
        start = at if quoted is None else quoted.end()
        end = text.find("\t", start)
        end = len(text) if end < 0 else end
        fields.append(text[start:end] if quoted is None else quoted[1].replace('""', '"') + text[start:end])
        if end == len(text):
            return fields
        at = end + 1


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line, up to its LF.

    Raises :class:`UnreadableInput`, naming the line.
    """
    number = 0
    with content(path, lambda: f"line {number}") as f:
        while line := f.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) >= MAX_LINE_BYTES:
                why = "its lines end in CR alone: end them with LF" if b"\r" in line else "not a text file?"
                raise UnreadableInput(f"{path} line {number} is longer than {MAX_LINE_BYTES} bytes: {why}")
            try:
                text = line.removesuffix(b"\n").decode("utf-8")
            except UnicodeDecodeError as e:
                raise UnreadableInput(
                    f"{path} line {number} is not UTF-8: {e.reason} at byte {e.start}; convert the file"
                ) from e
            yield number, text


@contextmanager
def content(path: Path, place: Callable[[], str]) -> Iterator[io.BufferedReader[Any]]:
    """Open a text file, decompressed and without byte-order mark, for reading in the block.

    Raises :class:`UnreadableInput` for a file that is missing, truncated, damaged or UTF-16; the message about damage
    names the last ``place`` that was read.
    """
    kind = None
    damage: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
    try:
        with ExitStack() as stack:
            f = stack.enter_context(io.BufferedReader(io.FileIO(path), _BUFFER_BYTES))
            kind = _compression(f.peek(10)[:10])
            if kind == "Zstandard":
                damage += (_zstd(path).ZstdError,)
            if kind is not None:
                unpacked: Any = stack.enter_context(_decompressed(path, f, kind))
                f = io.BufferedReader(unpacked, _UNPACKED_BYTES)
            start = f.peek(3)[:3]
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UnreadableInput(f"{path} line 1 is not UTF-8: it is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
            if start == codecs.BOM_UTF8:
                f.read(len(start))
            yield f
    except damage as e:
        raise UnreadableInput(f"{path} is a truncated or damaged {kind} file after {place()}: {e}") from e
    except OSError as e:
        if kind is not None and e.errno is None:  # not the system's error, but one of gzip or bz2 about their data
            raise UnreadableInput(f"{path} is a truncated or damaged {kind} file after {place()}: {e}") from e
        raise UnreadableInput(f"cannot read {path}: {e.strerror}") from e


def _compression(head: bytes) -> str | None:
    """What a file that begins so is compressed with, if with anything that is read here."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:] in (b"1AY&SY", b"\x17rE8P\x90"):  # the first block, or the end of none
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "Zstandard"
    return "zip" if head.startswith(b"PK\x03\x04") else None


def _decompressed(path: Path, raw: io.BufferedReader[Any], kind: str) -> IO[bytes]:
    """The content of a compressed file; of a zip archive, that of its only file."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    if kind == "Zstandard":
        return _zstd(path).ZstdFile(raw)  # type: ignore[no-any-return]
    archive = zipfile.ZipFile(raw)
    files = [entry for entry in archive.infolist() if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        raise UnreadableInput(
            f"{path} is a zip archive of {len(files)} files, not of one: unpack it and name one of them"
        )
    try:
        return archive.open(files[0])
    except (RuntimeError, NotImplementedError) as e:  # encrypted, or compressed in a way that Python does not know
        raise UnreadableInput(f"{path} cannot be unpacked here: {e}; unpack it first") from e


def _zstd(path: Path) -> Any:
    """Python's module for Zstandard, or its backport. Raises `MissingExtra`."""
    try:
        return import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError as e:
        raise MissingExtra(f"{path} is compressed with Zstandard: pip install 'kgtrace[zstd]', or decompress it") from e


def line_ends(line: str) -> str:
    """Return the part of a message that explains a line with CR."""
    return "; its lines end in CR alone: end them with LF" if "\r" in line else ""


def quote(text: object) -> str:
    """A foreign string for a message: one line, of bounded length."""
    text = str(text)
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…")
