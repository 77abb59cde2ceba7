"""The rows of a generation, encoded in parts that survive a crash."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from kgtrace_indexer.building.lanes import Lanes
from kgtrace_indexer.index.codec import Codec, PrincipalCodec
from kgtrace_indexer.index.files import shards_of
from kgtrace_indexer.index.short_code import WIDTH
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_indexer.models.featurizer import SQUARED_NORM, Featurizer
from kgtrace_indexer.transfers import to_host
from kgtrace_store import durable
from kgtrace_store.errors import NonFinite
from kgtrace_store.staging import Staging
from kgtrace_store.vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]
"""Called with a stage, the count that is done, and the count of all."""
Write = Callable[[range, dict[str, np.ndarray]], None]
"""Called with a part, and with the stored arrays of what was encoded; the part is in the journal when it returns."""

_PART = 65_536
"""Most triples in a part: a crash loses a part, and the codes of one are in memory at a time."""
_PART_BYTES = 64 << 20
"""Most bytes in a part: with several checkpoints, or many negatives, triples have longer codes."""


def write_parts(
    staging: Staging,
    featurizer: Featurizer,
    codec: Codec,
    table: TripleTable,
    parts: Mapping[range, np.ndarray],
    *,
    write: Write,
    row: Mapping[str, np.ndarray],
    batch_size: int,
    progress: Progress,
) -> None:
    """Encode rows of a table for each part, and write them; parts that an earlier attempt finished are kept.

    `row` are the arrays that `stored` returns for one triple.
    """
    finished = {part for part in parts if part_name(part) in staging.parts()}
    done, total = sum(len(parts[part]) for part in finished), sum(map(len, parts.values()))
    if finished:
        progress("gradients", done, total)

    def encoded(count: int) -> None:
        nonlocal done
        done += count
        progress("gradients", done, total)

    with Lanes(featurizer.model.device, several=featurizer.concurrent) as lanes:
        for part, rows in parts.items():
            if part in finished:
                continue
            arrays = encode_part(
                lanes, featurizer, codec, table, rows, row=row, batch_size=batch_size, encoded=encoded
            )  # fmt: skip
            lanes.write(partial(write, part, arrays))


def encode_part(
    lanes: Lanes,
    featurizer: Featurizer,
    codec: Codec,
    table: TripleTable,
    rows: np.ndarray,
    *,
    row: Mapping[str, np.ndarray],
    batch_size: int,
    encoded: Callable[[int], None] = lambda count: None,
) -> dict[str, np.ndarray]:
    """Return the stored arrays of the rows (m,) of a table; `encoded` is called with the length of each batch."""
    arrays = {key: np.empty((len(rows), *one.shape[1:]), one.dtype) for key, one in row.items()}
    fill = partial(_fill, arrays, featurizer, codec, table, rows)
    for count in lanes.map(fill, [slice(start, start + batch_size) for start in range(0, len(rows), batch_size)]):
        encoded(count)
    return arrays


def _fill(
    arrays: Mapping[str, np.ndarray],
    featurizer: Featurizer,
    codec: Codec,
    table: TripleTable,
    rows: np.ndarray,
    batch: slice,
) -> int:
    """Encode a batch of the rows (m,) of a table into its place in arrays (m, ...); return how many triples it has."""
    for name, array in stored(featurizer, codec, table, rows[batch]).items():
        arrays[name][batch] = array
    return len(rows[batch])


def stored(featurizer: Featurizer, codec: Codec, table: TripleTable, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays that a generation has of training triples `batch`, rows of the table.

    Raises `NonFinite` for a gradient that is NaN or infinite, naming the triple.
    """
    triples = table.ids[batch]
    with torch.inference_mode():
        codes = to_host(featurizer.codes(triples, codec))
    arrays = {
        "triples": triples.astype(np.int32),
        "train_index": table.train_index[batch].astype(np.int64),
        **codes(),
    }
    norms = [arrays[name] for name in ("self_influence", SQUARED_NORM) if name in arrays]
    wrong = np.flatnonzero(~np.isfinite(norms).all(0))
    if len(wrong):
        row, ids = int(arrays["train_index"][wrong[0]]), triples[wrong[0]].tolist()
        raise NonFinite(
            f"the gradient of training triple {row} (ids {ids}) is not finite: check the model's parameters"
        )
    return arrays


def require_space(
    staging: Staging,
    row: Mapping[str, np.ndarray],
    codec: Codec,
    known: np.ndarray | None,
    *,
    parts: Sequence[range],
    shards: Sequence[range],
    model: ModelFile,
    vocabulary: Vocabulary,
) -> None:
    """Raise `StorageFailed` now when the disk would be full later.

    Parameters
    ----------
    row
        What `stored` gives for one triple with `codec`.
    known
        All training triples (N, 3), where only a sample of them is indexed.
    parts
        Which triples are written one after the other.
    shards
        Which triples lie together.
    """
    missing = sum(len(part) for part in parts if part_name(part) not in staging.parts())
    row_bytes = _bytes(row)
    search_bytes = (
        2 * WIDTH if isinstance(codec, PrincipalCodec) else 4 * sum(row[name].size for name in codec.searched)
    )
    list_bytes = sum(array.nbytes for name, array in row.items() if name.endswith(".high"))  # at most, with ids
    list_bytes += sum(8 * array.size for name, array in row.items() if name.endswith(".row"))
    states = 1 + len(model.checkpoints)
    tensors = states * sum(tensor.nbytes for tensor in model.tensors.values())
    labels = sum(map(len, [*vocabulary.entities, *vocabulary.relations]))
    offsets = 8 * len(shards) * states * sum(len(tensor) for tensor in model.tensors.values() if tensor.ndim == 2)
    needed = row_bytes * missing + (search_bytes + list_bytes) * shards[-1].stop
    unsampled = 0 if known is None else known.nbytes
    graph = 16 * (shards[-1].stop if known is None else len(known)) + 8 * len(vocabulary.entities)
    durable.require_space(staging.path, needed + tensors + labels + offsets + unsampled + graph)


def parts_of(count: int, row: Mapping[str, np.ndarray], shard_size: int | None) -> list[range]:
    """Return the parts of `count` triples, given the stored arrays of one triple; no part spans two shards."""
    size = max(1, min(_PART, _PART_BYTES // _bytes(row)))
    return [
        range(start, min(start + size, shard.stop))
        for shard in shards_of(count, shard_size)
        for start in range(shard.start, shard.stop, size)
    ]


def part_name(part: range) -> str:
    """Return the name of the file that holds a part."""
    return f"part-{part.start:010d}-{part.stop:010d}.h5"


def _bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())
