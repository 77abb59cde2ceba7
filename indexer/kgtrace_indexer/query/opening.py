"""Opens a generation for queries: model, files and searches, checked against its manifest."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kgtrace_indexer.index.bounds import Codes
from kgtrace_indexer.index.codec import Codec, PrincipalCodec, RandomCodec, read_codec
from kgtrace_indexer.index.device_search import TorchSearch
from kgtrace_indexer.index.files import Files
from kgtrace_indexer.index.inverted import InvertedFile
from kgtrace_indexer.index.milvus_rows import MilvusRows
from kgtrace_indexer.index.preconditioner import has_slopes
from kgtrace_indexer.index.resident import ResidentRows
from kgtrace_indexer.index.short_code import COLUMNS, ShortCode
from kgtrace_indexer.index.stack import Stack
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.inputs.model_reader import read_model
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_indexer.names import Score
from kgtrace_indexer.pieces import free_bytes
from kgtrace_indexer.query.attributor import Attributor
from kgtrace_indexer.query.cascade import Cascade, Pool
from kgtrace_indexer.query.resident_search import ResidentCascade, ResidentSearch
from kgtrace_indexer.query.retrieval import Retrieval
from kgtrace_indexer.query.row_search import RowSearch
from kgtrace_store import layout
from kgtrace_store.errors import CorruptGeneration
from kgtrace_store.generation import Generation
from kgtrace_store.generations import IndexRoot
from kgtrace_store.milvus import Milvus
from kgtrace_store.search import FaissSearch, SearchIndex
from kgtrace_store.sharded_search import ShardedSearch
from kgtrace_store.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


def open_index(
    root: Path,
    generation: str | None = None,
    *,
    device: str = "auto",
    verify: bool = True,
    milvus: Milvus | None = None,
) -> Attributor:
    """Open a generation of an index root, by default the live one.

    `verify` compares every checksum first: about a second for each gigabyte. `milvus` searches, instead of FAISS;
    vectors that it does not hold yet are sent there first.

    Raises
    ------
    IndexNotFound, GenerationNotFound, CorruptGeneration, SchemaTooNew, SchemaTooOld
        The files on disk cannot be used.
    SearchUnavailable
        Milvus cannot be used.
    """
    return read_attributor(IndexRoot(root).open(generation, verify=verify), device=device, milvus=milvus)


def read_attributor(opened: Generation, *, device: str = "auto", milvus: Milvus | None = None) -> Attributor:
    """Return an attributor over a generation that is open, as `open_index` does."""
    on = pick_device(device)
    files = Files.open(opened.path)
    codec = read_codec(opened.manifest.configuration, files.arrays, on)
    training = files.training_set()
    by_lists = milvus is None and not has_slopes(files.shards[0].codes)
    resident = ResidentRows.fitting(files.row_lists(), on) if by_lists else None
    return Attributor(
        generation=opened,
        vocabulary=Vocabulary.read(opened.path / layout.VOCABULARY),
        featurizer=featurizer_for(
            read_model(opened.path / layout.MODEL), opened.manifest.configuration, on, training.known
        ),
        codec=codec,
        retrievals=_retrievals(opened, files, codec, training, resident, on, milvus),
        files=files,
        training=training,
        resident=resident,
    )


def _retrievals(
    opened: Generation,
    files: Files,
    codec: Codec,
    training: TrainingSet,
    resident: ResidentRows | None,
    device: torch.device,
    milvus: Milvus | None,
) -> Mapping[Score, Retrieval]:
    """Return the search over a generation by each score, where there is one. Raises `CorruptGeneration`."""
    stacks = files.stacks()
    if missing := [name for name in codec.searched if name not in stacks]:
        raise CorruptGeneration(f"{opened.path}: {layout.GRADIENTS} lacks {', '.join(missing)}")
    stored = [FaissSearch.read(shard.folder / layout.SEARCH) for shard in files.shards] if codec.searched else []
    _check_counts(opened, training, files, stored)
    if not stored:
        return {}
    index = _index(stored, device) if milvus is None else _milvus_index(milvus, opened.id, stored, training)
    match codec:
        case PrincipalCodec(bases):
            place = _place(stacks, device)
            codes = Codes({name: stack.to(place) for name, stack in stacks.items()}, files.tracin_lists())
            inverted = files.inverted_files()
            engine = None if milvus is None else _milvus_lists(milvus, opened.id, inverted, training)
            of_lists = files.row_lists(), inverted, training.squared_norm["preconditioned"], engine
            lists = RowSearch(*of_lists) if resident is None else ResidentSearch(*of_lists, resident=resident)
            of_codes = bases, codes, index, ShortCode(files.scales[COLUMNS])
            cascade = Cascade(*of_codes)
            if resident is not None and place == device:
                cascade = ResidentCascade(*of_codes, resident=resident.weighted(codes.rows))
            retrievals: dict[Score, Retrieval] = {"tracin": cascade if bases.dense or files.of_two_losses else lists}
            if lists.files:
                retrievals["preconditioned"] = lists
            return retrievals
        case RandomCodec(projection):
            return {"tracin": Pool(projection, stacks["projected"], index, training.squared_norm["tracin"])}
    return {}


def _index(stored: Sequence[FaissSearch], device: torch.device) -> SearchIndex:
    """Return the index over all shards, on a device."""
    indexes: list[SearchIndex] = [index if device.type == "cpu" else TorchSearch.of(index, device) for index in stored]
    return indexes[0] if len(indexes) == 1 else ShardedSearch(indexes)


def _milvus_index(milvus: Milvus, generation: str, stored: Sequence[FaissSearch], training: TrainingSet) -> SearchIndex:
    """Return the index over all shards, held by Milvus."""
    vectors = (block for index in stored for block in index.vectors())
    return milvus.hold(generation, vectors, training.triples, stored[0].dim)


def _milvus_lists(
    milvus: Milvus, generation: str, files: Mapping[str, Sequence[InvertedFile]], training: TrainingSet
) -> Mapping[str, MilvusRows]:
    """Return the inverted lists of each table, held by Milvus."""
    return {
        table: MilvusRows.hold(milvus, generation, number, pieces, training.triples)
        for number, (table, pieces) in enumerate(files.items())
    }


def _check_counts(opened: Generation, training: TrainingSet, files: Files, stored: Sequence[FaissSearch]) -> None:
    """Raise `CorruptGeneration` where manifest, arrays and search indexes are not of the same training triples."""
    count, rows = opened.manifest.counts["triples"], len(training.triples)
    indexed = sum(index.ntotal for index in stored) if stored else count
    lengths = {len(values) for values in training.self_influence.values()}
    if not count == rows == indexed == sum(map(len, files.shards)) or lengths != {count}:
        raise CorruptGeneration(
            f"{opened.path}: the manifest counts {count} triples, {layout.GRADIENTS} holds {rows}, "
            f"{layout.SEARCH} {indexed}, self-influences are of {', '.join(map(str, sorted(lengths)))}"
        )


def _place(stacks: Mapping[str, Stack], device: torch.device) -> torch.device:
    """Return where codes should be: with the model on a GPU that has room for them twice, else mapped on the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")
    size = sum(stack.nbytes for stack in stacks.values())
    fits = 2 * size < free_bytes(device)
    _log.info(
        "codes (%.1f GB) are %s", size / 1e9, "in the GPU's memory" if fits else "on the CPU: the GPU is too full"
    )
    return device if fits else torch.device("cpu")
