"""The arrays of a generation on disk, by file.

They lie in one folder or, where a shard has a size, in a folder for each so many training triples: codes, lists of
embedding rows, and search indexes. The arrays `NAMED`, and the directions that codes refer to, then stay in one place.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kgtrace_indexer.index.inverted import InvertedFile
from kgtrace_indexer.index.neighbours import Neighbours, graph_of
from kgtrace_indexer.index.preconditioner import Moments, Preconditioner, check_rows, has_slopes
from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.rows import RowList, RowLists, listed_tables
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.index.training_set import KNOWN, TrainingSet
from kgtrace_indexer.models.checkpoints import checkpoint_count
from kgtrace_indexer.models.featurizer import SLOPE, SQUARED_NORM
from kgtrace_indexer.names import Score
from kgtrace_store import layout
from kgtrace_store.arrays import open_arrays, read_blocks
from kgtrace_store.errors import CorruptGeneration

NAMED = ("triples", "train_index", "self_influence")
"""Arrays of every generation that identify a training triple."""
PRECONDITIONED: Score = "preconditioned"
"""Name of the only array of self-influences by another score."""
BASIS = "basis."
"""Begins the names of arrays that have no row for each training triple."""
MEAN_SQUARE = "mean_square"
"""Name of the units of damping, (checkpoints,) float64."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Training triples whose codes lie together."""

    folder: Path
    codes: Mapping[str, np.ndarray]
    """By name, a row for each training triple."""
    scales: Mapping[str, np.ndarray]
    """How the search indexes are to be read."""
    rows: Mapping[str, RowList]
    """Gradients of embedding rows, by table."""

    @classmethod
    def open(cls, folder: Path, start: int, codes: Mapping[str, np.ndarray]) -> "Shard":
        """Map the files of a folder whose first training triple is number `start`. Raises `CorruptGeneration`."""
        return cls(folder, codes, open_arrays(folder / layout.SCALES), cls.open_rows(folder, start))

    @staticmethod
    def open_rows(folder: Path, start: int) -> dict[str, RowList]:
        """Map the gradients of embedding rows alone."""
        rows: dict[str, RowList] = {}
        for number in range(len(list(folder.glob(layout.ROWS.format("*"))))):
            path = folder / layout.ROWS.format(number)
            arrays = open_arrays(path)
            try:
                rows |= {table: RowList.of(start, table, arrays) for table in listed_tables(arrays)}
            except KeyError as e:
                raise CorruptGeneration(f"{path} lacks {e}") from e
        return rows

    def inverted_files(self) -> dict[str, InvertedFile]:
        """Map the inverted files. Raises `CorruptGeneration`."""
        files = {}
        scaled = sorted(name.removesuffix(".scale") for name in self.scales if name.endswith(".scale"))
        if scaled != list(self.rows):
            raise CorruptGeneration(f"{self.folder}: {layout.SCALES} has tables {scaled}, the rows {list(self.rows)}")
        for number, (table, rows) in enumerate(self.rows.items()):
            path = self.folder / layout.LISTS.format(number)
            files[table] = InvertedFile.read(path, rows.start, self.scales[f"{table}.scale"], rows.width)
        return files

    def __len__(self) -> int:
        """Return the number of training triples."""
        return len(next(iter(self.codes.values())))


@dataclass(frozen=True, slots=True)
class Files:
    """The arrays of a generation, memory-mapped."""

    folder: Path
    arrays: Mapping[str, np.ndarray]
    """All arrays, or, with shards, the arrays that belong to no shard."""
    scales: Mapping[str, np.ndarray]
    """How the search indexes are to be read, as far as no shard has its own."""
    shards: Sequence[Shard]
    """At least one, in the order of their training triples."""
    preconditioned: np.ndarray | None = None
    """(n,) float32: self-influence by the preconditioned score, where it was computed."""

    @classmethod
    def open(cls, folder: Path) -> "Files":
        """Map the files of a generation's folder. Raises `CorruptGeneration`."""
        arrays = open_arrays(folder / layout.GRADIENTS)
        path = folder / layout.SELF_INFLUENCE
        preconditioned = open_arrays(path)[PRECONDITIONED] if path.exists() else None
        shards: list[Shard] = []
        for within in shard_folders(folder):
            start = sum(len(shard) for shard in shards)
            shards.append(Shard.open(within, start, open_arrays(within / layout.GRADIENTS)))
            for kind in ("codes", "rows"):
                here, first = (sorted(getattr(shard, kind)) for shard in (shards[-1], shards[0]))
                if here != first:
                    raise CorruptGeneration(f"{within} holds {kind} {here}, the first shard {first}")
        scales = open_arrays(folder / layout.SCALES)
        return cls(folder, arrays, scales, shards or [Shard.open(folder, 0, rows_of(arrays))], preconditioned)

    def stacks(self) -> dict[str, Stack]:
        """Return every array with a row for each training triple."""
        pieces = {name: [array] for name, array in rows_of(self.arrays).items()}
        pieces |= {name: [shard.codes[name] for shard in self.shards] for name in self.shards[0].codes}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written
            return {name: Stack([torch.from_numpy(piece) for piece in parts]) for name, parts in pieces.items()}

    def row_lists(self) -> RowLists:
        """Return the gradients of embedding rows, of the preconditioned score's loss."""
        return RowLists({table: [shard.rows[table] for shard in self.shards] for table in self.shards[0].rows})

    def tracin_lists(self) -> RowLists:
        """Return the gradients of embedding rows of TracIn's loss."""
        lists = self.row_lists()
        return lists.weighted(self.arrays[SLOPE]) if self.of_two_losses else lists

    @property
    def of_two_losses(self) -> bool:
        """Whether TracIn's loss is another than that of the preconditioned score."""
        return SLOPE in self.arrays

    def inverted_files(self) -> dict[str, list[InvertedFile]]:
        """Map the inverted files of each table, one for each shard. Raises `CorruptGeneration`.

        There are none where every gradient is in all rows of a table.
        """
        if has_slopes(self.shards[0].codes):
            return {}
        by_shard = [shard.inverted_files() for shard in self.shards]
        return {table: [files[table] for files in by_shard] for table in by_shard[0]}

    def preconditioner(self, resident: ResidentRows | None = None) -> Preconditioner:
        """Return P, on a GPU where the lists are resident.

        Raises `BadRequest` as `check_rows` does, and `CorruptGeneration`.
        """
        lists = self.row_lists()
        check_rows([*self.shards[0].codes, *(f"{table}.high" for table in lists.tables)])
        moments = {}
        for number, table in enumerate(lists.tables):
            path = self.folder / layout.MOMENTS.format(number)
            arrays = open_arrays(path)
            try:
                moments[table] = Moments(*(arrays[f"{table}.{name}"] for name in Moments.NAMES))
            except KeyError as e:
                raise CorruptGeneration(f"{path} lacks {e}") from e
        units, checkpoints = self.scales[MEAN_SQUARE], checkpoint_count(lists.tables)
        if len(units) != checkpoints:
            raise CorruptGeneration(
                f"{self.folder / layout.SCALES} has {len(units)} units of damping for {checkpoints} checkpoints, as an "
                "earlier kgtrace wrote it: build the index again"
            )
        return Preconditioner(lists, moments, units, resident)

    def training_set(self) -> TrainingSet:
        """Return the training triples with their squared norms and self-influences."""
        triples, train_index, tracin = (self.arrays[name] for name in NAMED)
        squared_norm: dict[Score, np.ndarray] = {
            "tracin": tracin, "preconditioned": self.arrays.get(SQUARED_NORM, tracin),
        }  # fmt: skip
        self_influence: dict[Score, np.ndarray] = {"tracin": tracin}
        if self.preconditioned is not None:
            self_influence["preconditioned"] = self.preconditioned
        return TrainingSet(triples, train_index, squared_norm, self_influence, self.scales.get(KNOWN, triples))

    def neighbours(self) -> Neighbours:
        """Map the graph of all training triples, or make it where it was not written. Raises `CorruptGeneration`."""
        known = self.scales.get(KNOWN, self.arrays["triples"])
        path = self.folder / layout.GRAPH
        return Neighbours(known, open_arrays(path) if path.exists() else graph_of(known))

    def lengths(self) -> dict[str, int]:
        """Return the number of rows of each stored array that should have one for each training triple."""
        lists = self.row_lists().tables
        lengths = {name: len(stack) for name, stack in self.stacks().items()}
        return lengths | {table: sum(map(len, pieces)) for table, pieces in lists.items()}

    def take(self, names: Collection[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return rows (m,) of stored arrays; for ``TABLE.grad`` the gradients of all reads, (m, R, d)."""
        stacks, lists = self.stacks(), self.row_lists()
        arrays = {name: stacks[name].take(torch.from_numpy(rows)).numpy() for name in names if name in stacks}
        return arrays | {
            f"{table}.grad": lists.gradients(table, rows) for table in lists.tables if f"{table}.grad" in names
        }

    def blocks(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield all arrays with a row for each training triple or read, and the bases, as `read_blocks` does."""
        for folder in dict.fromkeys([self.folder, *(shard.folder for shard in self.shards)]):
            for path in [folder / layout.GRADIENTS, *sorted(folder.glob(layout.ROWS.format("*")))]:
                yield from read_blocks(path)


def shards_of(count: int, shard_size: int | None) -> list[range]:
    """Return the triples of each shard, of `count` triples: all in one, unless a shard has a size."""
    size = count if shard_size is None else shard_size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def shard_folders(folder: Path) -> list[Path]:
    """Return the folders of a generation's shards, in the order of their numbers."""
    return sorted((folder / layout.SHARDS).glob("*"), key=lambda shard: (len(shard.name), shard.name))


def rows_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with a row for each training triple."""
    return {name: array for name, array in arrays.items() if not name.startswith(BASIS)}
