"""The arrays of a generation, joined from parts, and indexed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kgtrace_indexer.index.bases import Bases
from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.codec import Codec, PrincipalCodec
from kgtrace_indexer.index.files import BASIS, NAMED, PRECONDITIONED, Files, rows_of, shard_folders, shards_of
from kgtrace_indexer.index.self_influence import preconditioned_self_influences
from kgtrace_indexer.index.short_code import COLUMNS, WIDTH, ShortCode
from kgtrace_indexer.index.training_set import KNOWN, in_order, posting_lists
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.models.checkpoints import parameter_of
from kgtrace_indexer.models.featurizer import BCE_SLOPE, OF_BCE
from kgtrace_store import durable, layout
from kgtrace_store.arrays import assemble, merge, open_arrays, write_part
from kgtrace_store.search import FaissSearch

_SHARED = (*NAMED, *OF_BCE)
"""Arrays that no shard has: answers read them whatever is searched."""
_BLOCK = 65_536
"""Rows copied at a time into the search index."""


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
    bases = {name: array for name, array in old.arrays.items() if name.startswith(BASIS)}
    order = in_order(np.concatenate([old.arrays["triples"], *(part["triples"] for part in new)]))
    if shard_size is None:
        merge([rows_of(old.arrays), *new], order, folder / layout.GRADIENTS, extra=bases)
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
    folders = shard_folders(folder) or [folder]
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
    write_part(folder / layout.SELF_INFLUENCE, {PRECONDITIONED: found})


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
