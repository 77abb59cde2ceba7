"""The arrays of a generation: where they lie, and how they are indexed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgtrace_indexer.building.parts import part_name
from kgtrace_indexer.index.codec import Codec, PrincipalCodec
from kgtrace_indexer.index.files import (
    MEAN_SQUARE,
    NAMED,
    PRECONDITIONED,
    Files,
    Shard,
    shard_folders,
    shards_of,
)
from kgtrace_indexer.index.inverted import InvertedFile
from kgtrace_indexer.index.neighbours import graph_of
from kgtrace_indexer.index.preconditioner import Moments, has_slopes, moments
from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.rows import RowList, RowLists, is_read, list_dtype, list_reads, listed_tables
from kgtrace_indexer.index.self_influence import preconditioned_self_influences
from kgtrace_indexer.index.short_code import COLUMNS, WIDTH, ShortCode
from kgtrace_indexer.index.training_set import KNOWN, in_order
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.models.checkpoints import parameter_of
from kgtrace_indexer.models.featurizer import OF_TWO_LOSSES
from kgtrace_indexer.names import Damping
from kgtrace_store import durable, layout
from kgtrace_store.arrays import assemble, lay_out, open_arrays, read_rows, write_part, write_rows
from kgtrace_store.search import FaissSearch
from kgtrace_store.staging import Staging, Step, place_rows

_SHARED = (*NAMED, *OF_TWO_LOSSES)
"""Arrays that no shard has: all answers read them, of any search."""
_BLOCK = 65_536
"""Rows copied at a time into the search index."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a generation: the arrays, and the rows of them, that each holds."""

    folder: Path
    """Of the generation."""
    row: Mapping[str, np.ndarray]
    """The stored arrays of one training triple, as `kgtrace_indexer.building.parts.stored` returns them."""
    count: int
    """Training triples."""
    shard_size: int | None
    model: ModelFile

    def files(self) -> dict[str, tuple[range, list[str]]]:
        """Return the training triples and the names of the arrays in each file, by its path in the folder."""
        tables = {
            layout.ROWS.format(i): [name for name in self.row if name.startswith(f"{table}.") and is_read(name)]
            for i, table in enumerate(listed_tables(self.row))
        }
        others, everything = [name for name in self.row if not is_read(name)], range(self.count)
        if self.shard_size is None:
            return {name: (everything, names) for name, names in {layout.GRADIENTS: others, **tables}.items()}
        shared = [name for name in _SHARED if name in self.row]
        within = {layout.GRADIENTS: [name for name in others if name not in _SHARED], **tables}
        return {layout.GRADIENTS: (everything, shared)} | {
            f"{layout.SHARDS}/{number:04d}/{name}": (shard, names)
            for number, shard in enumerate(shards_of(self.count, self.shard_size))
            for name, names in within.items()
        }

    def create(self, bases: Mapping[str, np.ndarray]) -> None:
        """Lay out the files that are not there yet, and write the bases."""
        for path, (triples, names) in self.files().items():
            if (self.folder / path).exists():
                continue
            durable.make_folder((self.folder / path).parent)
            like, lengths = dict(self.row), dict.fromkeys(names, len(triples))
            for table in listed_tables(names):
                reads = self.row[f"{table}.row"].shape[1] * len(triples)
                like |= {f"{table}.offsets": np.empty(0, np.int64), f"{table}.listed": np.empty(0, list_dtype(reads))}
                lengths |= {f"{table}.offsets": self._rows(table) + 1, f"{table}.listed": reads}
            lay_out(self.folder / path, like, lengths, bases if path == layout.GRADIENTS else {})

    def write(self, staging: Staging, part: range, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of a part into their places, and enter it in the journal."""
        staging.enter(self.place(part, arrays))

    def place(self, part: range, arrays: Mapping[str, np.ndarray]) -> Step:
        """Write the arrays of a part into their places; return it for the journal."""
        places = {
            path: (part.start - triples.start, {name: arrays[name] for name in names})
            for path, (triples, names) in self.files().items()
            if part.start in triples
        }
        return place_rows(self.folder, part_name(part), places)

    def list_rows(self) -> None:
        """List the reads of each table by row, once all parts are in their places."""
        for path, (_, names) in self.files().items():
            for table in listed_tables(names):
                write_rows(self.folder / path, 0, self._listed(table, open_arrays(self.folder / path)[f"{table}.row"]))

    def read(self, part: range) -> dict[str, np.ndarray]:
        """Return the arrays of consecutive training triples, which may lie in several shards."""
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in self.row}
        for path, (triples, names) in self.files().items():
            start, stop = max(part.start, triples.start), min(part.stop, triples.stop)
            if start < stop:
                rows = range(start - triples.start, stop - triples.start)
                for name, array in read_rows(self.folder / path, names, rows).items():
                    pieces[name].append(array)
        return {name: np.concatenate([self.row[name][:0], *arrays]) for name, arrays in pieces.items()}

    def _listed(self, table: str, row: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{table}.{name}": array for name, array in list_reads(row, self._rows(table)).items()}

    def _rows(self, table: str) -> int:
        return len(self.model.tensors[parameter_of(table)])


def index_files(
    folder: Path, codec: Codec, known: np.ndarray | None, configuration: Mapping[str, Any], device: torch.device
) -> None:
    """Write search indexes, second moments of embedding rows and preconditioned self-influences for a folder's arrays.

    `known` (N, 3) int32 are all training triples, where only a sample of them is indexed.
    """
    folders = shard_folders(folder) or [folder]
    codes = [open_arrays(shard / layout.GRADIENTS) for shard in folders]
    common = {} if known is None else {KNOWN: known[in_order(known)]}
    width, shorten = sum(codes[0][name].shape[1] for name in codec.searched), None
    if isinstance(codec, PrincipalCodec):
        short = ShortCode.choose(sum((_energy(arrays["projected"]) for arrays in codes), np.zeros(())))
        common[COLUMNS] = short.columns
        width, shorten = WIDTH, short.stored
    listed: list[dict[str, RowList]] = []
    starts = np.cumsum([0, *(len(next(iter(arrays.values()))) for arrays in codes)])
    for shard, arrays, start in zip(folders, codes, starts, strict=False):
        if codec.searched:
            _search_index([arrays[name] for name in codec.searched], width, shorten).write(shard / layout.SEARCH)
        listed.append({} if has_slopes(arrays) else Shard.open_rows(shard, int(start)))
        scales: dict[str, np.ndarray] = {}
        for number, (table, rows) in enumerate(listed[-1].items()):
            scales[f"{table}.scale"] = InvertedFile.write(rows, shard / layout.LISTS.format(number))
        if shard != folder:
            write_part(shard / layout.SCALES, scales)
        else:
            common |= scales
    lists = RowLists({table: [rows[table] for rows in listed] for table in listed[0]})
    if lists.tables:
        common[MEAN_SQUARE] = lists.mean_squares()
    write_part(folder / layout.SCALES, common)
    triples = common[KNOWN] if KNOWN in common else open_arrays(folder / layout.GRADIENTS)["triples"]
    write_part(folder / layout.GRAPH, graph_of(triples))
    resident = ResidentRows.fitting(lists, device)
    for number, table in enumerate(lists.tables):
        _write_moments(folder / layout.MOMENTS.format(number), lists, table, resident)
    if lists.tables:
        _add_self_influences(folder, configuration["damping"], resident)


def _add_self_influences(folder: Path, damping: Damping | None, resident: ResidentRows | None) -> None:
    """Write self-influences by the preconditioned score for the indexed arrays in a folder."""
    files = Files.open(folder)
    self_influences = preconditioned_self_influences(
        files.preconditioner(resident), files.tracin_lists(), len(files.arrays["triples"]), damping
    )
    write_part(folder / layout.SELF_INFLUENCE, {PRECONDITIONED: self_influences})


def _write_moments(path: Path, rows: RowLists, table: str, resident: ResidentRows | None) -> None:
    pieces = []
    for number, batch in enumerate(moments(rows, table, resident)):
        pieces.append(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        write_part(pieces[-1], {f"{table}.{name}": getattr(batch, name) for name in Moments.NAMES})
    assemble(pieces, path)
    for piece in pieces:
        piece.unlink()


def _energy(rows: np.ndarray) -> np.ndarray:
    """Return the sum of squares of each column of (n, k), (k,)."""
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        total += np.einsum("nk,nk->k", block, block, dtype=np.float64)
    return total


def _search_index(columns: Sequence[np.ndarray], width: int, shorten: Callable[..., np.ndarray] | None) -> FaissSearch:
    """Index vectors (n, width) made of arrays (n, ·), in half the bytes if `shorten` makes them."""

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(columns[0]), _BLOCK):
            block = [column[start : start + _BLOCK] for column in columns]
            yield block[0] if shorten is None else shorten(*block)

    return FaissSearch.build(blocks(), len(columns[0]), width, half=shorten is not None)
