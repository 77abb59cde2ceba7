"""The search over an open generation's files, checked against its manifest."""

from collections.abc import Mapping, Sequence

import torch

from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.codec import Codec, PrincipalCodec, RandomCodec
from kgtrace_indexer.index.device_search import TorchSearch
from kgtrace_indexer.index.files import Files
from kgtrace_indexer.index.short_code import COLUMNS, ShortCode
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.query.cascade import Cascade, Pool, Retrieval
from kgtrace_indexer.query.row_search import RowSearch
from kgtrace_store import layout
from kgtrace_store.errors import CorruptGeneration
from kgtrace_store.generation import Generation
from kgtrace_store.milvus import Milvus
from kgtrace_store.search import FaissSearch, SearchIndex
from kgtrace_store.sharded_search import ShardedSearch


def read_retrieval(
    opened: Generation, files: Files, codec: Codec, training: TrainingSet, device: torch.device, milvus: Milvus | None
) -> Retrieval | None:
    """Return the search over a generation, or None where there is no index. Raises `CorruptGeneration`."""
    stacks = files.stacks()
    if missing := [name for name in codec.searched if name not in stacks]:
        raise CorruptGeneration(f"{opened.path}: {layout.GRADIENTS} lacks {', '.join(missing)}")
    stored = [FaissSearch.read(shard.folder / layout.SEARCH) for shard in files.shards] if codec.searched else []
    _check_counts(opened, training, files, stored)
    if not stored:
        return None
    index = _index(stored, device) if milvus is None else _held(milvus, opened.id, stored, training)
    match codec:
        case PrincipalCodec(bases):
            place = _place(stacks, device)
            codes = Codes({name: stack.to(place) for name, stack in stacks.items()}, files.row_lists())
            lists = RowSearch(codes.rows, files.inverted_files(), len(codes))
            return Cascade(bases, codes, index, ShortCode(files.scales[COLUMNS]), lists)
        case RandomCodec(projection):
            return Pool(projection, stacks["projected"], index, training.squared_norm)
    return None


def _index(stored: Sequence[FaissSearch], device: torch.device) -> SearchIndex:
    """Return the index over all shards, on a device."""
    indexes: list[SearchIndex] = [index if device.type == "cpu" else TorchSearch.of(index, device) for index in stored]
    return indexes[0] if len(indexes) == 1 else ShardedSearch(indexes)


def _held(milvus: Milvus, generation: str, stored: Sequence[FaissSearch], training: TrainingSet) -> SearchIndex:
    """Return the same index in Milvus."""
    vectors = (block for index in stored for block in index.vectors())
    return milvus.hold(generation, vectors, training.triples, stored[0].dim)


def _check_counts(opened: Generation, training: TrainingSet, files: Files, stored: Sequence[FaissSearch]) -> None:
    """Raise `CorruptGeneration` where manifest, arrays and search indexes are not of the same training triples."""
    count, rows = opened.manifest.counts["triples"], len(training.triples)
    indexed = sum(index.ntotal for index in stored) if stored else count
    told = {len(values) for values in training.self_influence.values()}
    if not count == rows == indexed == sum(map(len, files.shards)) or told != {count}:
        raise CorruptGeneration(
            f"{opened.path}: the manifest counts {count} triples, {layout.GRADIENTS} holds {rows}, "
            f"{layout.SEARCH} {indexed}, self-influences are of {', '.join(map(str, sorted(told)))}"
        )


def _place(stacks: Mapping[str, Stack], device: torch.device) -> torch.device:
    """Return where codes should be: with the model on a GPU that has room for them twice, else mapped on the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(device)
    return device if 2 * sum(stack.nbytes for stack in stacks.values()) < free else torch.device("cpu")
