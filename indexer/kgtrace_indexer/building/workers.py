"""Parts of a build, encoded by other processes: on this machine, or by Ray.

The builder chooses directions, says which parts are missing, and enters finished ones in its journal; workers encode a
part at a time, and write it into a folder that all of them see. A worker knows nothing of other parts, so its failure
costs the part that it had in hand. The content of a part does not depend on the worker that encodes it.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kgtrace_indexer.building.lanes import Lanes
from kgtrace_indexer.building.parts import Progress, Write, encode_part, part_name, stored
from kgtrace_indexer.index.codec import PCA, read_codec
from kgtrace_indexer.index.training_set import in_order
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_store import durable
from kgtrace_store.arrays import read_part, write_part
from kgtrace_store.errors import WorkerLost
from kgtrace_store.staging import Staging

BASES = "bases.h5"
"""The part that holds the directions."""
_IDS, _TRAIN_INDEX, _TRAINING = "ids.npy", "train-index.npy", "training.npy"

ATTEMPTS = 3
"""Workers that die over one part before the build gives up."""


@dataclass(frozen=True, slots=True)
class Task:
    """The input of a worker, besides the files in the folder."""

    model: ModelFile
    configuration: Mapping[str, Any]
    """As a generation's manifest holds it."""
    folder: Path
    """Where directions and triples lie, and parts go; every worker sees it."""
    batch_size: int
    device: str


class Workers(Protocol):
    """Processes that encode parts."""

    def encode(self, task: Task, parts: Sequence[range]) -> Iterator[tuple[range, str]]:
        """Yield each part, in any order, with the name of the file in the task's folder that holds it.

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
        self._featurizer = featurizer_for(task.model, task.configuration, device, training)
        self._codec = read_codec(task.configuration, directions, device)
        self._table = TripleTable(ids, train_index, 0)
        self._row = stored(self._featurizer, self._codec, self._table, np.arange(1))
        self._task = task

    def encode(self, part: range) -> str:
        """Write a part, and return the name of its file: one that no other worker writes to."""
        featurizer = self._featurizer
        with Lanes(featurizer.model.device, several=featurizer.concurrent) as lanes:
            arrays = encode_part(
                lanes, featurizer, self._codec, self._table, np.arange(part.start, part.stop),
                row=self._row, batch_size=self._task.batch_size,
            )  # fmt: skip
        name = f"{part_name(part)}.{uuid.uuid4().hex}"
        write_part(self._task.folder / name, arrays)
        return name


def write_parts_with(
    workers: Workers,
    staging: Staging,
    table: TripleTable,
    training: np.ndarray | None,
    parts: Sequence[range],
    *,
    model: ModelFile,
    configuration: Mapping[str, Any],
    write: Write,
    batch_size: int,
    device: str,
    progress: Progress,
) -> None:
    """Encode and write as `write_parts`, by workers. `training` are all training triples if a sample is indexed."""
    missing = [part for part in parts if part_name(part) not in staging.parts()]
    done = len(table.ids) - sum(map(len, missing))
    if done:
        progress("gradients", done, len(table.ids))
    order = in_order(table.ids)
    inputs = {_IDS: table.ids[order], _TRAIN_INDEX: table.train_index[order]}
    for name, array in (inputs if training is None else {**inputs, _TRAINING: training}).items():
        with durable.writing(staging.part_path(name), array.nbytes):
            np.save(staging.part_path(name), array)
    task = Task(model, configuration, staging.part_path(BASES).parent, batch_size, device)
    for part, name in workers.encode(task, missing):
        write(part, read_part(staging.part_path(name)))
        durable.remove_file(staging.part_path(name))
        done += len(part)
        progress("gradients", done, len(table.ids))


def count_lost(lost: Counter[range], part: range, more: str) -> None:
    """Count a worker that died over a part. Raises `WorkerLost`, and says `more`, when there have been `ATTEMPTS`."""
    lost[part] += 1
    if lost[part] == ATTEMPTS:
        raise WorkerLost(f"{ATTEMPTS} workers died over training triples {part.start} to {part.stop}{more}")
