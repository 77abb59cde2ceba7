"""The arrays of a generation, joined from parts, and indexed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kgtrace_indexer.index.codec import Codec, PrincipalCodec
from kgtrace_indexer.index.files import (
    BASIS,
    MEAN_SQUARE,
    NAMED,
    PRECONDITIONED,
    Files,
    Shard,
    rows_of,
    shard_folders,
    shards_of,
)
from kgtrace_indexer.index.inverted import InvertedFile
from kgtrace_indexer.index.preconditioner import Moments, has_slopes, moments
from kgtrace_indexer.index.rows import RUN, RowList, RowLists, arranged, is_listed, listed_tables
from kgtrace_indexer.index.self_influence import preconditioned_self_influences
from kgtrace_indexer.index.short_code import COLUMNS, WIDTH, ShortCode
from kgtrace_indexer.index.training_set import KNOWN, in_order
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.models.checkpoints import parameter_of
from kgtrace_indexer.models.featurizer import OF_TWO_LOSSES
from kgtrace_store import durable, layout
from kgtrace_store.arrays import assemble, merge, open_arrays, write_part
from kgtrace_store.search import FaissSearch

_SHARED = (*NAMED, *OF_TWO_LOSSES)
"""Arrays that no shard has: answers read them whatever is searched."""
_BLOCK = 65_536
"""Rows copied at a time into the search index."""


def join_parts(
    folder: Path,
    parts: Sequence[range],
    paths: Sequence[Path],
    shard_size: int | None,
    bases: Mapping[str, np.ndarray],
    model: ModelFile,
) -> None:
    """Write ``gradients.h5`` and the lists of rows of a generation, and of its shards, from the parts at some paths."""
    runs = [_Run(open_arrays(path), np.arange(part.start, part.stop)) for part, path in zip(parts, paths, strict=True)]
    count = parts[-1].stop
    if shard_size is None:
        assemble(paths, folder / layout.GRADIENTS, wanted=lambda name: not is_listed(name), extra=bases)
        _write_rows(folder, runs, range(count), model)
        return
    assemble(paths, folder / layout.GRADIENTS, wanted=lambda name: name in _SHARED, extra=bases)
    for shard, within in _shards(folder, count, shard_size):
        these = [i for i, part in enumerate(parts) if part.start in shard]
        codes = [paths[i] for i in these]
        assemble(codes, within / layout.GRADIENTS, wanted=lambda name: name not in _SHARED and not is_listed(name))
        _write_rows(within, [runs[i] for i in these], shard, model)


def merge_parts(
    folder: Path,
    old: Files,
    parts: Sequence[range],
    paths: Sequence[Path],
    shard_size: int | None,
    model: ModelFile,
) -> None:
    """Write the same from the arrays of a generation and parts of further triples."""
    new = [open_arrays(path) for path in paths]
    bases = {name: array for name, array in old.arrays.items() if name.startswith(BASIS)}
    order = in_order(np.concatenate([old.arrays["triples"], *(part["triples"] for part in new)]))
    places = np.argsort(order)  # of old triples, then of new ones
    count = len(old.arrays["triples"])
    starts = np.cumsum([0, *map(len, old.shards)])
    runs = [_Run(_unlisted(shard), places[start:]) for start, shard in zip(starts, old.shards, strict=False)]
    runs += [_Run(arrays, places[count + part.start :]) for part, arrays in zip(parts, new, strict=True)]
    codes = [{name: array for name, array in part.items() if not is_listed(name)} for part in new]
    if shard_size is None:
        merge([rows_of(old.arrays), *codes], order, folder / layout.GRADIENTS, extra=bases)
        _write_rows(folder, runs, range(len(order)), model)
        return
    names = [name for name in _SHARED if name in old.arrays]
    shared = [{name: source[name] for name in names} for source in (old.arrays, *new)]
    merge(shared, order, folder / layout.GRADIENTS, extra=bases)
    codes = [{name: part[name] for name in part if name not in _SHARED} for part in codes]
    for shard, within in _shards(folder, len(order), shard_size):
        these = order[shard.start : shard.stop]
        merge([*(shard.codes for shard in old.shards), *codes], these, within / layout.GRADIENTS)
        _write_rows(within, runs, shard, model)


def index_files(folder: Path, codec: Codec, known: np.ndarray | None) -> None:
    """Write search indexes and the second moments of embedding rows for the arrays in a folder.

    `known` (N, 3) int32 are all training triples, where only a sample of them is indexed.
    """
    folders = shard_folders(folder) or [folder]
    codes = [open_arrays(each / layout.GRADIENTS) for each in folders]
    common = {} if known is None else {KNOWN: known[in_order(known)]}
    width, shorten = sum(codes[0][name].shape[1] for name in codec.searched), None
    if isinstance(codec, PrincipalCodec):
        short = ShortCode.choose(sum((_energy(arrays["projected"]) for arrays in codes), np.zeros(())))
        common[COLUMNS] = short.columns
        width, shorten = WIDTH, short.stored
    listed: list[dict[str, RowList]] = []
    starts = np.cumsum([0, *(len(next(iter(arrays.values()))) for arrays in codes)])
    for each, arrays, start in zip(folders, codes, starts, strict=False):
        if codec.searched:
            _search_index([arrays[name] for name in codec.searched], width, shorten).write(each / layout.SEARCH)
        listed.append({} if has_slopes(arrays) else Shard.open_rows(each, int(start)))
        scales: dict[str, np.ndarray] = {}
        for number, (table, rows) in enumerate(listed[-1].items()):
            inverted = InvertedFile.build(rows)
            inverted.write(each / layout.LISTS.format(number))
            scales[f"{table}.scale"] = inverted.scale
        if each != folder:
            write_part(each / layout.SCALES, scales)
        else:
            common |= scales
    lists = RowLists({table: [rows[table] for rows in listed] for table in listed[0]})
    if lists.tables:
        common[MEAN_SQUARE] = np.array([lists.mean_square()])
    write_part(folder / layout.SCALES, common)
    for number, table in enumerate(lists.tables):
        _write_moments(folder / layout.MOMENTS.format(number), lists, table)


def add_self_influences(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Write self-influences by the preconditioned score for the indexed arrays in a folder."""
    files = Files.open(folder)
    count = len(files.arrays["triples"])
    found = preconditioned_self_influences(files.preconditioner(), files.slopes(), count, configuration["damping"])
    write_part(folder / layout.SELF_INFLUENCE, {PRECONDITIONED: found})


@dataclass(frozen=True, slots=True)
class _Run:
    """Reads of embedding rows by some training triples, sorted by row."""

    arrays: Mapping[str, np.ndarray]
    """``TABLE.row`` and so on."""
    places: np.ndarray
    """(·,) int64: where those training triples, and perhaps others after them, stand among all."""


def _unlisted(shard: Shard) -> dict[str, np.ndarray]:
    """Return the reads of a shard as those of a part."""
    found: dict[str, np.ndarray] = {}
    for table, rows in shard.rows.items():
        row = np.arange(len(rows.offsets) - 1).repeat(np.diff(rows.offsets))
        arrays = (row, rows.triple, rows.read, rows.norm, rows.grad)
        found |= {f"{table}.{name}": array for name, array in zip(RUN, arrays, strict=True)}
    return found


def _write_rows(folder: Path, runs: Sequence[_Run], shard: range, model: ModelFile) -> None:
    """Write the reads by the training triples of a shard, listed by the row."""
    for number, table in enumerate(listed_tables(runs[0].arrays)):
        row, read = (np.concatenate([run.arrays[f"{table}.{name}"] for run in runs]) for name in ("row", "read"))
        triple = np.concatenate([run.places[run.arrays[f"{table}.triple"]] for run in runs])
        here = np.flatnonzero((triple >= shard.start) & (triple < shard.stop))
        order = here[np.lexsort((read[here], triple[here], row[here]))]
        size = len(model.tensors[parameter_of(table)])
        arrays = arranged(row[order], triple[order] - shard.start, read[order], size, len(shard))
        merge(
            [{f"{table}.{name}": run.arrays[f"{table}.{name}"] for name in ("norm", "grad")} for run in runs],
            order,
            folder / layout.ROWS.format(number),
            extra={f"{table}.{name}": array for name, array in arrays.items()},
        )


def _write_moments(path: Path, rows: RowLists, table: str) -> None:
    pieces = []
    for number, held in enumerate(moments(rows, table)):
        pieces.append(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        write_part(pieces[-1], {f"{table}.{name}": getattr(held, name) for name in Moments.NAMES})
    assemble(pieces, path)
    for piece in pieces:
        piece.unlink()


def _shards(folder: Path, count: int, shard_size: int) -> Iterator[tuple[range, Path]]:
    """Yield the training triples of each shard with its folder, which is made."""
    for number, shard in enumerate(shards_of(count, shard_size)):
        within = folder / layout.SHARDS / f"{number:04d}"
        durable.make_folder(within)
        yield shard, within


def _energy(rows: np.ndarray) -> np.ndarray:
    """Return the sum of squares of each column of (n, k), (k,)."""
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        total += np.einsum("nk,nk->k", block, block, dtype=np.float64)
    return total


def _search_index(columns: Sequence[np.ndarray], width: int, shorten: Callable[..., np.ndarray] | None) -> FaissSearch:
    """Index what is made of arrays (n, ·): vectors (n, width), in half the bytes where they are shortened."""

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(columns[0]), _BLOCK):
            block = [column[start : start + _BLOCK] for column in columns]
            yield block[0] if shorten is None else shorten(*block)

    return FaissSearch.build(blocks(), len(columns[0]), width, half=shorten is not None)
