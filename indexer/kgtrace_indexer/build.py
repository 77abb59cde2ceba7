"""Offline indexing: stream the training triples through the model and commit a generation.

::

    triples, sorted by relation and head ─► landmarks ─► bases ─┐
         └─► batches ─► gradient terms ─► codes ─► parts ───────┴─► gradients.h5, search.faiss, model, vocabulary

Sorting lets all triples of one (h, r), and most of one (t, r⁻¹), share a forward pass. Memory holds one batch of
gradient terms and one part of codes, whatever the number of triples; of the triples themselves it holds the ids.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgtrace_indexer.checks import verify
from kgtrace_indexer.engine import open_attributor
from kgtrace_indexer.featurizer import Featurizer, featurizer_for
from kgtrace_indexer.model_file import ModelFile, write_model
from kgtrace_indexer.models import pick_device
from kgtrace_indexer.projection import Bases, factor_codes, fit_bases, index_code
from kgtrace_indexer.training_set import posting_lists
from kgtrace_indexer.triples import TripleTable
from kgtrace_store import layout
from kgtrace_store.arrays import assemble, open_arrays, read_part, write_part
from kgtrace_store.errors import BadRequest, GateFailed, IdOutOfRange, NonFinite, VocabularyMismatch
from kgtrace_store.generations import IndexRoot
from kgtrace_store.search import FaissSearch
from kgtrace_store.staging import Staging
from kgtrace_store.vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and of how much."""

_PART = 65_536
"""Triples in a part: what a crash costs at most, and what of the codes is in memory at a time."""
_BLOCK = 65_536
"""Rows copied at a time into the search index."""
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """What is indexed and how; part of the generation's fingerprint but for the last two fields."""

    loss: str = "bce"
    """Name of ℓ."""
    directions: str | None = None
    """``forward`` or ``both``; None means as trained."""
    layers: tuple[str, ...] = ("all",)
    """``all``, ``last:N``, or parameter names and patterns."""
    dim: int = 64
    """k, the length of the index code φ."""
    landmarks: int = 2048
    """Training triples whose gradients the directions are chosen from."""
    seed: int = 0
    """Fixes the choice of landmarks."""
    dtype: str = "float16"
    """Stored type of factor codes; float16 halves the disk and adds to the factor bound's slack."""
    batch_size: int = 2048
    """Triples featurized together; memory grows with it."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    def __post_init__(self) -> None:
        """Raise `BadRequest` for values that cannot be honoured."""
        for name, least in (("dim", 1), ("landmarks", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise BadRequest(f"{name} is {getattr(self, name)}, must be at least {least}")
        if self.dtype not in _DTYPES:
            raise BadRequest(f"dtype {self.dtype!r} is not one of {', '.join(_DTYPES)}")


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did."""

    generation: str
    published: bool
    triples: int
    skipped: int
    """Lines of unknown entities or relations that were passed over."""
    bytes: int
    """On disk."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""

    @property
    def triples_per_second(self) -> float:
        """Training triples by seconds of the gradient stage."""
        return self.triples / self.seconds["gradients"] if self.seconds.get("gradients") else 0.0


def build(
    root: Path,
    model: ModelFile,
    vocabulary: Vocabulary,
    table: TripleTable,
    config: BuildConfig,
    *,
    publish: bool = True,
    fresh: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> BuildReport:
    """Index training triples and publish the generation; an interrupted build of the same input is resumed.

    Raises
    ------
    VocabularyMismatch, IdOutOfRange
        The vocabulary or the triples do not belong to the model.
    NonFinite
        A gradient that is NaN or infinite, naming the triple.
    BuilderRunning, StorageFailed, GateFailed
        See `kgtrace_store.errors`. The live generation stays as it was.
    """
    _check(model, vocabulary, table)
    clock = _Stages()
    device = pick_device(config.device)
    featurizer = featurizer_for(model, asdict(config), device)
    settings = asdict(config) | {"directions": featurizer.directions, "layers": list(config.layers)}
    del settings["batch_size"], settings["device"]
    order = np.lexsort(table.ids.T[[2, 0, 1]])  # by relation, head, tail
    index_root = IndexRoot(root)
    live = index_root.current()
    with index_root.stage(_fingerprint(model, vocabulary, table, settings), fresh=fresh) as staging:
        bases = _bases(staging, featurizer, table, config)
        clock.lap("landmarks")
        parts = list(_write_parts(staging, featurizer, bases, table, order, config, progress))
        clock.lap("gradients")
        target = staging.path / layout.GRADIENTS
        assemble(parts, target, extra=bases.arrays())
        arrays = open_arrays(target)
        write_part(staging.path / layout.POSTINGS, postings(arrays, model))
        clock.lap("assemble")
        _write_search(arrays, staging.path / layout.SEARCH)
        clock.lap("index")
        write_model(model, staging.path / layout.MODEL)
        vocabulary.write(staging.path / layout.VOCABULARY)
        generation = staging.commit(
            configuration=settings,
            counts={
                "triples": len(order),
                "skipped": table.skipped,
                "entities": model.num_entities,
                "relations": model.num_relations,
            },
            provenance={
                "model": model.source,
                "interaction": model.interaction,
                "device": device.type,
                "versions": {
                    "kgtrace": version("kgtrace"),
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
            },
        )
    clock.lap("commit")
    failed = [c for c in verify(open_attributor(root, generation, device=config.device, verify=False)) if not c.ok]
    clock.lap("gate")
    if failed:
        reasons = "; ".join(f"{c.name}: {c.detail}" for c in failed)
        raise GateFailed(f"generation {generation} was built but not published: {reasons}")
    if publish:
        index_root.publish(generation, expected=live)
        clock.lap("publish")
    size = sum(f.bytes for f in index_root.open(generation, verify=False).manifest.files.values())
    return BuildReport(generation, publish, len(order), table.skipped, size, clock.seconds)


def _check(model: ModelFile, vocabulary: Vocabulary, table: TripleTable) -> None:
    for noun, have, need in (
        ("entities", len(vocabulary.entities), model.num_entities),
        ("relations", len(vocabulary.relations), model.num_relations),
    ):
        if have != need:
            raise VocabularyMismatch(
                f"the vocabulary has {have} {noun}, the model {need}: use the id maps it was trained with"
            )
    for column, noun, size in (
        (0, "head", model.num_entities),
        (1, "relation", model.num_relations),
        (2, "tail", model.num_entities),
    ):
        wrong = np.flatnonzero((table.ids[:, column] < 0) | (table.ids[:, column] >= size))
        if len(wrong):
            row = int(table.train_index[wrong[0]])
            raise IdOutOfRange(
                f"training triple {row}: {noun} id {table.ids[wrong[0], column]} is out of range: the model has {size}"
            )


def _fingerprint(model: ModelFile, vocabulary: Vocabulary, table: TripleTable, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for text in (
        model.fingerprint(),
        json.dumps(settings, sort_keys=True),
        "\n".join([*vocabulary.entities, *vocabulary.relations]),
    ):
        digest.update(hashlib.sha256(text.encode()).digest())
    for array in (table.ids, table.train_index):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _bases(staging: Staging, featurizer: Featurizer, table: TripleTable, config: BuildConfig) -> Bases:
    """Choose the directions, or read those an interrupted build chose: part codes depend on them."""
    name = "bases.h5"
    if name not in staging.parts():
        count = min(config.landmarks, len(table.ids))
        chosen = np.random.default_rng(config.seed).choice(len(table.ids), count, replace=False)
        with torch.inference_mode():
            staging.write_part(
                name, fit_bases(featurizer.training_terms(table.ids[np.sort(chosen)]), config.dim).arrays()
            )
    return Bases.from_arrays(read_part(staging.part_path(name)), featurizer.model.device)


def _write_parts(
    staging: Staging, featurizer: Featurizer, bases: Bases, table: TripleTable, order: np.ndarray,
    config: BuildConfig, progress: Progress,
) -> Iterator[Path]:  # fmt: skip
    done = 0
    for start in range(0, len(order), _PART):
        rows = order[start : start + _PART]
        name = f"part-{start // _PART:06d}.h5"
        if name not in staging.parts():
            batches = []
            for batch in np.split(rows, range(config.batch_size, len(rows), config.batch_size)):
                batches.append(encode(featurizer, bases, table, batch, _DTYPES[config.dtype]))
                done += len(batch)
                progress("gradients", done, len(order))
            staging.write_part(name, {key: np.concatenate([b[key] for b in batches]) for key in batches[0]})
        else:
            done += len(rows)
            progress("gradients", done, len(order))
        yield staging.part_path(name)


def encode(
    featurizer: Featurizer, bases: Bases, table: TripleTable, batch: np.ndarray, dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """Return everything that is stored of training triples `batch`, rows of the table."""
    triples = table.ids[batch]
    with torch.inference_mode():
        terms = featurizer.training_terms(triples)
        arrays = {
            "triples": triples.astype(np.int32),
            "train_index": table.train_index[batch].astype(np.int64),
            **index_code(terms, bases).arrays(),
            **factor_codes(terms, bases, dtype),
        }
    wrong = np.flatnonzero(~np.isfinite(arrays["self_influence"]))
    if len(wrong):
        row, ids = int(arrays["train_index"][wrong[0]]), triples[wrong[0]].tolist()
        raise NonFinite(
            f"the gradient of training triple {row} (ids {ids}) is not finite: check the model's parameters"
        )
    return arrays


def postings(arrays: Mapping[str, np.ndarray], model: ModelFile) -> dict[str, np.ndarray]:
    """Return which triples read each row of each embedding table: ``TABLE.offsets`` and ``TABLE.rows``."""
    columns: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        if name.endswith(".index"):
            columns.setdefault(name.removesuffix(".index").rpartition(".")[0], []).append(array)
    found: dict[str, np.ndarray] = {}
    for table, uses in columns.items():
        offsets, rows = posting_lists(np.concatenate(uses, 1), len(model.tensors[table]))
        found |= {f"{table}.offsets": offsets, f"{table}.rows": rows}
    return found


def _write_search(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Index [φ, ρ]."""
    projected, residual = arrays["projected"], arrays["residual"]

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(projected), _BLOCK):
            part = slice(start, start + _BLOCK)
            yield np.concatenate([projected[part], residual[part]], 1)

    FaissSearch.build(blocks(), len(projected), projected.shape[1] + residual.shape[1]).write(path)


class _Stages:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
