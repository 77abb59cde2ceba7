"""The arrays of a generation on disk: joined from parts, indexed, and read again.

They lie in three files, or, where a shard has a size, in three files for each so many training triples: codes, posting
lists and search index. What names a training triple, and the directions that codes refer to, then stay in one place.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgtrace_indexer.answers import Score
from kgtrace_indexer.bounds import Codes
from kgtrace_indexer.checkpoints import parameter_of
from kgtrace_indexer.codec import Codec, PrincipalCodec
from kgtrace_indexer.featurizer import BCE_SELF_INFLUENCE, BCE_SLOPE, OF_BCE
from kgtrace_indexer.model_file import ModelFile
from kgtrace_indexer.parts import in_order, shards_of
from kgtrace_indexer.projection import Bases
from kgtrace_indexer.self_influence import preconditioned_self_influences
from kgtrace_indexer.short_code import COLUMNS, WIDTH, ShortCode
from kgtrace_indexer.stack import Stack
from kgtrace_indexer.training_set import KNOWN, PostingLists, TrainingSet, posting_lists
from kgtrace_store import durable, layout
from kgtrace_store.arrays import assemble, merge, open_arrays, read_blocks, write_part
from kgtrace_store.errors import CorruptGeneration
from kgtrace_store.search import FaissSearch

_NAMED = ("triples", "train_index", "self_influence")
"""Arrays of every generation that say who a training triple is."""
_SHARED = (*_NAMED, *OF_BCE)
"""Arrays that no shard has: answers read them whatever is searched."""
_PRECONDITIONED: Score = "preconditioned"
"""Name of the only array of self-influences by another score."""
_BASIS = "basis."
"""Begins the names of arrays that have no row for each training triple."""
_BLOCK = 65_536
"""Rows copied at a time into the search index."""


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
        preconditioned = open_arrays(path)[_PRECONDITIONED] if path.exists() else None
        shards = [
            Shard(within, open_arrays(within / layout.GRADIENTS), open_arrays(within / layout.POSTINGS))
            for within in _within(folder)
        ]
        for shard in shards:
            if set(shard.codes) != set(shards[0].codes):
                raise CorruptGeneration(
                    f"{shard.folder} holds arrays {sorted(shard.codes)}, the first shard {sorted(shards[0].codes)}"
                )
        return cls(folder, arrays, postings, shards or [Shard(folder, _rows(arrays), postings)], preconditioned)

    def stacks(self) -> dict[str, Stack]:
        """Return every array with a row for each training triple."""
        pieces = {name: [array] for name, array in _rows(self.arrays).items()}
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
        triples, train_index, squared_norm = (self.arrays[name] for name in _NAMED)
        self_influence: dict[Score, np.ndarray] = {"tracin": self.arrays.get(BCE_SELF_INFLUENCE, squared_norm)}
        if self.preconditioned is not None:
            self_influence["preconditioned"] = self.preconditioned
        return TrainingSet(triples, train_index, squared_norm, self_influence, lists, self.postings.get(KNOWN, triples))

    def blocks(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield all arrays with a row for each training triple, and the bases, as `read_blocks` does."""
        for folder in dict.fromkeys([self.folder, *(shard.folder for shard in self.shards)]):
            yield from read_blocks(folder / layout.GRADIENTS)


def join_parts(
    folder: Path, parts: Sequence[range], paths: Sequence[Path], shard_size: int | None, bases: Mapping[str, np.ndarray]
) -> None:
    """Write ``gradients.h5`` of a generation, and of its shards, from the parts that lie at some paths."""
    if shard_size is None:
        assemble(paths, folder / layout.GRADIENTS, extra=bases)
        return
    assemble(paths, folder / layout.GRADIENTS, wanted=lambda name: name in _SHARED, extra=bases)
    for shard, within in _shards(folder, parts[-1].stop, shard_size):
        these = [path for part, path in zip(parts, paths, strict=True) if part.start in shard]
        assemble(these, within / layout.GRADIENTS, wanted=lambda name: name not in _SHARED)


def merge_parts(folder: Path, old: Files, paths: Sequence[Path], shard_size: int | None) -> None:
    """Write ``gradients.h5`` as `join_parts` does, from the arrays of a generation and parts of further triples."""
    new = [open_arrays(path) for path in paths]
    held = {*old.arrays, *old.shards[0].codes}  # of an older generation perhaps not all
    new = [{name: array for name, array in part.items() if name in held} for part in new]
    bases = {name: array for name, array in old.arrays.items() if name.startswith(_BASIS)}
    order = in_order(np.concatenate([old.arrays["triples"], *(part["triples"] for part in new)]))
    if shard_size is None:
        merge([_rows(old.arrays), *new], order, folder / layout.GRADIENTS, extra=bases)
        return
    names = [name for name in _SHARED if name in old.arrays]
    shared = [{name: source[name] for name in names} for source in (old.arrays, *new)]
    merge(shared, order, folder / layout.GRADIENTS, extra=bases)
    codes = [{name: part[name] for name in part if name not in _SHARED} for part in new]
    for shard, within in _shards(folder, len(order), shard_size):
        these = order[shard.start : shard.stop]
        merge([*(shard.codes for shard in old.shards), *codes], these, within / layout.GRADIENTS)


def index_files(folder: Path, codec: Codec, known: np.ndarray | None, model: ModelFile) -> None:
    """Write posting lists and search indexes for the arrays in a folder.

    `known` (N, 3) int32 are all training triples, where only a sample of them is indexed.
    """
    folders = _within(folder) or [folder]
    codes = [open_arrays(each / layout.GRADIENTS) for each in folders]
    common = {} if known is None else {KNOWN: known[in_order(known)]}
    width, shorten = sum(codes[0][name].shape[1] for name in codec.searched), None
    if isinstance(codec, PrincipalCodec):
        short = ShortCode.choose(sum((_energy(arrays["projected"]) for arrays in codes), np.zeros(())))
        common[COLUMNS] = short.columns
        width, shorten = WIDTH, short.stored
    for each, arrays in zip(folders, codes, strict=True):
        if codec.searched:
            _search_index([arrays[name] for name in codec.searched], width, shorten).write(each / layout.SEARCH)
        write_part(each / layout.POSTINGS, postings(arrays, model) | (common if each == folder else {}))
    if folders != [folder]:
        write_part(folder / layout.POSTINGS, common)


def add_self_influences(folder: Path, bases: Bases, configuration: Mapping[str, Any]) -> None:
    """Write self-influences by the preconditioned score for the arrays and posting lists in a folder.

    Not under ``removal`` for an older generation's arrays, which say nothing of ``bce``.
    """
    files = Files.open(folder)
    stacks = files.stacks()
    if configuration["loss"] == "removal" and BCE_SLOPE not in stacks:
        return
    damping = configuration["damping"]
    found = preconditioned_self_influences(Codes.of(stacks), bases, files.training_set(), damping)
    write_part(folder / layout.SELF_INFLUENCE, {_PRECONDITIONED: found})


def postings(arrays: Mapping[str, np.ndarray], model: ModelFile) -> dict[str, np.ndarray]:
    """Return which triples read each row of each embedding table: ``TABLE.offsets`` and ``TABLE.rows``."""
    columns: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        if name.endswith(".index"):
            columns.setdefault(name.removesuffix(".index").rpartition(".")[0], []).append(array)
    found: dict[str, np.ndarray] = {}
    for table, uses in columns.items():
        offsets, rows = posting_lists(np.concatenate(uses, 1), len(model.tensors[parameter_of(table)]))
        found |= {f"{table}.offsets": offsets, f"{table}.rows": rows}
    return found


def _within(folder: Path) -> list[Path]:
    """Return the folders of a generation's shards, in the order of their numbers."""
    return sorted((folder / layout.SHARDS).glob("*"), key=lambda shard: (len(shard.name), shard.name))


def _shards(folder: Path, count: int, shard_size: int) -> Iterator[tuple[range, Path]]:
    """Yield the training triples of each shard with its folder, which is made."""
    for number, shard in enumerate(shards_of(count, shard_size)):
        within = folder / layout.SHARDS / f"{number:04d}"
        durable.make_folder(within)
        yield shard, within


def _tables(postings: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return offsets and rows by table."""
    tables = [name.removesuffix(".rows") for name in postings if name.endswith(".rows")]
    return {table: (postings[f"{table}.offsets"], postings[f"{table}.rows"]) for table in tables}


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


def _rows(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return those with a row for each training triple."""
    return {name: array for name, array in arrays.items() if not name.startswith(_BASIS)}
