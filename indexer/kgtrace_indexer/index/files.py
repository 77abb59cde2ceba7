"""The arrays of a generation on disk: joined from parts, indexed, and read again.

They lie in three files, or, where a shard has a size, in three files for each so many training triples: codes, posting
lists and search index. What names a training triple, and the directions that codes refer to, then stay in one place.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.index.training_set import KNOWN, PostingLists, TrainingSet
from kgtrace_indexer.models.featurizer import BCE_SELF_INFLUENCE
from kgtrace_indexer.names import Score
from kgtrace_store import layout
from kgtrace_store.arrays import open_arrays, read_blocks
from kgtrace_store.errors import CorruptGeneration

NAMED = ("triples", "train_index", "self_influence")
"""Arrays of every generation that say who a training triple is."""
PRECONDITIONED: Score = "preconditioned"
"""Name of the only array of self-influences by another score."""
BASIS = "basis."
"""Begins the names of arrays that have no row for each training triple."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Training triples whose codes lie together."""

    folder: Path
    codes: Mapping[str, np.ndarray]
    """By name, a row for each of them."""
    postings: Mapping[str, np.ndarray]
    """Which of them read each row of each embedding table."""

    def __len__(self) -> int:
        """Return how many they are."""
        return len(next(iter(self.codes.values())))


@dataclass(frozen=True, slots=True)
class Files:
    """The arrays of a generation, memory-mapped."""

    folder: Path
    arrays: Mapping[str, np.ndarray]
    """All of them, or those that no shard has."""
    postings: Mapping[str, np.ndarray]
    shards: Sequence[Shard]
    """At least one, in the order of their training triples."""
    preconditioned: np.ndarray | None = None
    """(n,) float32: self-influence by the preconditioned score, where it was computed."""

    @classmethod
    def open(cls, folder: Path) -> "Files":
        """Map the files of a generation's folder. Raises `CorruptGeneration`."""
        arrays, postings = open_arrays(folder / layout.GRADIENTS), open_arrays(folder / layout.POSTINGS)
        path = folder / layout.SELF_INFLUENCE
        preconditioned = open_arrays(path)[PRECONDITIONED] if path.exists() else None
        shards = [
            Shard(within, open_arrays(within / layout.GRADIENTS), open_arrays(within / layout.POSTINGS))
            for within in shard_folders(folder)
        ]
        for shard in shards:
            if set(shard.codes) != set(shards[0].codes):
                raise CorruptGeneration(
                    f"{shard.folder} holds arrays {sorted(shard.codes)}, the first shard {sorted(shards[0].codes)}"
                )
        return cls(folder, arrays, postings, shards or [Shard(folder, rows_of(arrays), postings)], preconditioned)

    def stacks(self) -> dict[str, Stack]:
        """Return every array with a row for each training triple."""
        pieces = {name: [array] for name, array in rows_of(self.arrays).items()}
        pieces |= {name: [shard.codes[name] for shard in self.shards] for name in self.shards[0].codes}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written
            return {name: Stack([torch.from_numpy(piece) for piece in found]) for name, found in pieces.items()}

    def training_set(self) -> TrainingSet:
        """Return who the training triples are."""
        starts = accumulate((len(shard) for shard in self.shards), initial=0)
        lists = [
            PostingLists(start, _tables(shard.postings)) for start, shard in zip(starts, self.shards, strict=False)
        ]
        triples, train_index, squared_norm = (self.arrays[name] for name in NAMED)
        self_influence: dict[Score, np.ndarray] = {"tracin": self.arrays.get(BCE_SELF_INFLUENCE, squared_norm)}
        if self.preconditioned is not None:
            self_influence["preconditioned"] = self.preconditioned
        return TrainingSet(triples, train_index, squared_norm, self_influence, lists, self.postings.get(KNOWN, triples))

    def blocks(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield all arrays with a row for each training triple, and the bases, as `read_blocks` does."""
        for folder in dict.fromkeys([self.folder, *(shard.folder for shard in self.shards)]):
            yield from read_blocks(folder / layout.GRADIENTS)


def shards_of(count: int, shard_size: int | None) -> list[range]:
    """Return which of `count` triples lie together: all of them, unless a shard has a size."""
    size = count if shard_size is None else shard_size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def shard_folders(folder: Path) -> list[Path]:
    """Return the folders of a generation's shards, in the order of their numbers."""
    return sorted((folder / layout.SHARDS).glob("*"), key=lambda shard: (len(shard.name), shard.name))


def _tables(postings: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return offsets and rows by table."""
    tables = [name.removesuffix(".rows") for name in postings if name.endswith(".rows")]
    return {table: (postings[f"{table}.offsets"], postings[f"{table}.rows"]) for table in tables}


def rows_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return those with a row for each training triple."""
    return {name: array for name, array in arrays.items() if not name.startswith(BASIS)}
