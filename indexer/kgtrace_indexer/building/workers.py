"""Parts of a build, encoded by other processes: on this machine, or by Ray.

The builder chooses directions, lays out the files of the generation, says which parts are missing, and enters finished
ones in its journal; workers encode a part at a time, and write it into its place in these files, which all of them
see. A worker knows nothing of other parts, so its failure costs the part that it had in hand: half-written it is not in
the journal, and the next worker writes over it. The content of a part does not depend on the worker that encodes it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kgtrace_indexer.building.files import Layout
from kgtrace_indexer.building.lanes import Lanes
from kgtrace_indexer.building.parts import Progress, encode_part, part_name
from kgtrace_indexer.index.codec import PCA, read_codec
from kgtrace_indexer.index.training_set import in_order
from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_store import durable
from kgtrace_store.arrays import read_part
from kgtrace_store.errors import WorkerLost
from kgtrace_store.staging import Staging, Step

BASES = "bases.h5"
"""The part that holds the directions."""
_IDS, _TRAIN_INDEX, _TRAINING = "ids.npy", "train-index.npy", "training.npy"

ATTEMPTS = 3
"""Workers that die over one part before the build gives up."""


@dataclass(frozen=True, slots=True)
class Task:
    """The input of a worker, besides the files in the folder."""

    arrays: Layout
    """The model, and the files that parts go into; every worker sees them."""
    configuration: Mapping[str, Any]
    """As a generation's manifest holds it."""
    folder: Path
    """Where directions and triples lie; every worker sees it."""
    batch_size: int
    device: str


class Workers(Protocol):
    """Processes that encode parts."""

    def encode(self, task: Task, parts: Sequence[range]) -> Iterator[tuple[range, Step]]:
        """Yield each part, in any order, once it is on disk in its place, with its step for the journal.

        Raises the errors of encoding, and `WorkerLost` for a part that no worker survives.
        """


class Encoder:
    """The work of a worker: encodes parts of a task."""

    def __init__(self, task: Task) -> None:
        """Read the folder, and place the model on the device."""
        device = pick_device(task.device)
        directions = read_part(task.folder / BASES) if task.configuration["projection"] == PCA else {}
        ids, train_index = (np.load(task.folder / name, mmap_mode="r") for name in (_IDS, _TRAIN_INDEX))
        training = np.load(task.folder / _TRAINING) if (task.folder / _TRAINING).exists() else ids
        self._featurizer = featurizer_for(task.arrays.model, task.configuration, device, training)
        self._codec = read_codec(task.configuration, directions, device)
        self._table = TripleTable(ids, train_index, 0)
        self._task = task

    def encode(self, part: range) -> Step:
        """Write a part into its place; return it for the journal."""
        featurizer = self._featurizer
        with Lanes(featurizer.model.device, several=featurizer.concurrent) as lanes:
            arrays = encode_part(
                lanes, featurizer, self._codec, self._table, np.arange(part.start, part.stop),
                row=self._task.arrays.row, batch_size=self._task.batch_size,
            )  # fmt: skip
        return self._task.arrays.place(part, arrays)


def write_parts_with(
    workers: Workers,
    staging: Staging,
    table: TripleTable,
    training: np.ndarray | None,
    parts: Sequence[range],
    *,
    arrays: Layout,
    configuration: Mapping[str, Any],
    batch_size: int,
    device: str,
    progress: Progress,
) -> None:
    """Encode and write as `write_parts`, by workers, into `arrays`.

    `training` are all training triples if a sample is indexed.
    """
    missing = [part for part in parts if part_name(part) not in staging.parts()]
    done = len(table.ids) - sum(map(len, missing))
    if done:
        progress("gradients", done, len(table.ids))
    order = in_order(table.ids)
    inputs = {_IDS: table.ids[order], _TRAIN_INDEX: table.train_index[order]}
    for name, array in (inputs if training is None else {**inputs, _TRAINING: training}).items():
        with durable.writing(staging.part_path(name), array.nbytes):
            np.save(staging.part_path(name), array)
    arrays = replace(arrays, folder=arrays.folder.absolute())  # the folder that other processes begin in may differ
    task = Task(arrays, configuration, staging.part_path(BASES).parent.absolute(), batch_size, device)
    for part, step in workers.encode(task, missing):
        staging.enter(step)
        done += len(part)
        progress("gradients", done, len(table.ids))


def count_lost(lost: Counter[range | None], part: range | None, more: str) -> None:
    """Count a worker that died over a part, or before it had one.

    Raises `WorkerLost`, and says `more`, when there have been `ATTEMPTS`.
    """
    lost[part] += 1
    if lost[part] == ATTEMPTS:
        when = f"over training triples {part.start} to {part.stop}" if part else "before their first part"
        raise WorkerLost(f"{ATTEMPTS} workers died {when}{more}")
