"""Offline indexing: stream the training triples through the model and commit a generation.

::

    triples, sorted by relation and head ─► landmarks ─► bases ─┐
         └─► batches ─► gradient terms ─► codes ─► parts ───────┴─► gradients.h5, search.faiss, model, vocabulary

Sorting lets all triples of one (h, r), and most of one (t, r⁻¹), share a forward pass. Memory holds one batch of
gradient terms and one part of codes, whatever the number of triples; of the triples themselves it holds the ids.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgtrace_indexer.building.facts import counts, provenance
from kgtrace_indexer.building.files import Layout, index_files
from kgtrace_indexer.building.gate import pass_gate
from kgtrace_indexer.building.parts import Progress, parts_of, require_space, stored, write_parts
from kgtrace_indexer.building.stages import Stages
from kgtrace_indexer.building.workers import BASES, Workers, write_parts_with
from kgtrace_indexer.gradients.losses import check_loss, resolve_negatives
from kgtrace_indexer.index.bases import Bases, fit_bases
from kgtrace_indexer.index.codec import DTYPES, PCA, PROJECTIONS, Codec, PrincipalCodec, read_codec
from kgtrace_indexer.index.files import shards_of
from kgtrace_indexer.index.preconditioner import check_damping, check_rows
from kgtrace_indexer.index.training_set import in_order
from kgtrace_indexer.inputs.model_file import ModelFile, write_model
from kgtrace_indexer.inputs.sampling import check_sampling, sample_table
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_indexer.inputs.triples import TripleTable, out_of_range
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_indexer.names import PRECONDITIONS, Damping, Stratum
from kgtrace_store import layout
from kgtrace_store.arrays import read_part
from kgtrace_store.errors import BadRequest, EmptyInput, IdOutOfRange, VocabularyMismatch
from kgtrace_store.generations import IndexRoot
from kgtrace_store.staging import Staging
from kgtrace_store.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """What is indexed and how; part of the generation's fingerprint but for the last two fields."""

    loss: str | None = None
    """Name of ℓ; None means ``bce`` for plain influence and ``removal`` for the preconditioned score."""
    label_smoothing: float = 0.0
    """ε of losses over all tails."""
    negatives: int | None = None
    """K of losses that compare with negatives; None means 1 for these."""
    directions: str | None = None
    """``forward`` or ``both``; None means as trained."""
    layers: tuple[str, ...] = ("all",)
    """``all``, ``last:N``, or parameter names and patterns."""
    projection: str = PCA
    """``pca``: principal directions and norms of the rest, for certified answers; ``gaussian``, ``sparse``: random
    projections; ``none``: no index, every query computes every influence."""
    dim: int = 64
    """k, the length of the index code φ or of a random projection."""
    landmarks: int = 2048
    """Training triples whose gradients the directions are chosen from."""
    sample_rate: float = 1.0
    """Share of the training triples that is indexed."""
    stratify_by: Stratum | None = None
    """``relation``, ``head`` or ``tail``: draw that share from the triples of each, and at least one."""
    seed: int = 0
    """Fixes the choice of landmarks, random projections, the sample and negatives."""
    precondition: str | None = None
    """What queries are answered with unless they ask otherwise: ``none``, TracIn itself, or ``fisher``, the
    preconditioned score; None means ``fisher`` where the index can, and ``none`` elsewhere."""
    damping: Damping | None = None
    """σ² of the latter, in units of `kgtrace_indexer.index.rows.RowLists.mean_squares`; None and ``auto`` are 3."""
    shard_size: int | None = None
    """Training triples whose codes, rows and search indexes lie together in files of their own; None: all."""
    dtype: str = "float16"
    """Stored type of factor codes; float16 halves the disk and adds to the factor bound's slack."""
    batch_size: int | None = None
    """Triples featurized together; memory grows with it. None chooses what suits model and device."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    def __post_init__(self) -> None:
        """Raise `BadRequest` for values that cannot be honoured."""
        for name, least in (("dim", 1), ("landmarks", 1), ("batch_size", 1), ("seed", 0), ("shard_size", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise BadRequest(f"{name} is {getattr(self, name)}, must be at least {least}")
        for name, chosen, known in (
            ("dtype", self.dtype, DTYPES),
            ("projection", self.projection, PROJECTIONS),
            ("precondition", self.precondition or "none", PRECONDITIONS),
        ):
            if chosen not in known:
                raise BadRequest(f"{name} {chosen!r} is not one of {', '.join(known)}")
        if self.shard_size is not None and self.projection == "none":
            raise BadRequest("shard_size splits what a search reads, and projection none keeps nothing of the kind")
        check_damping(self.damping)
        check_loss(self.loss or "bce", self.label_smoothing, self.negatives)
        check_sampling(self.sample_rate, self.stratify_by, self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """All fields, with the loss of each score."""
        both = self.loss or "bce"  # a random projection and a full scan know plain influence alone
        loss = "removal" if self.loss is None and self.projection == PCA else both
        return asdict(self) | {"loss": loss, "tracin_loss": both}


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did."""

    generation: str
    published: bool
    triples: int
    skipped: int
    """Lines that were passed over."""
    left_out: int
    """Of these, how many a file of triples to skip names."""
    bytes: int
    """On disk."""
    agreement: float | None
    """Overlap of the top training triples with the previously live generation's; None if there was none."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    warnings: tuple[str, ...] = ()
    """Warnings of the gate: no check failed, but an operator should look at them."""

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
    gate_report: Path | None = None,
    workers: Workers | None = None,
    committed: Callable[[str], None] = lambda generation: None,
    progress: Progress = lambda stage, done, total: None,
) -> BuildReport:
    """Index training triples and publish the generation; an interrupted build of the same input is resumed.

    `gate_report` is a file for the verdict of the gate, written whether the generation passes or not. `workers` compute
    the gradients, if they are not to be computed here; the index is the same. `committed` is called with the id of the
    new generation before it is published; if the call raises, the generation stays unpublished.

    Raises
    ------
    EmptyInput
        There are no training triples.
    VocabularyMismatch, IdOutOfRange
        The vocabulary or the triples do not belong to the model.
    NonFinite
        A gradient that is NaN or infinite, naming the triple.
    BuilderRunning, StorageFailed, GateFailed, PublishConflict, WorkerLost
        See `kgtrace_store.errors`. The live generation stays as it was.
    """
    check_input(model, vocabulary, table)
    stages = Stages()
    device = pick_device(config.device)
    settings = config.settings
    featurizer = featurizer_for(model, settings, device, table.ids)
    settings |= {"directions": featurizer.directions, "layers": list(config.layers)}
    settings["negatives"] = resolve_negatives(settings["loss"], config.negatives)
    del settings["batch_size"], settings["device"]
    index_root = IndexRoot(root)
    with index_root.stage(_fingerprint(model, vocabulary, table, settings), fresh=fresh) as staging:
        live = index_root.current()
        known = table.ids if config.sample_rate < 1 else None
        indexed = sample_table(table, config.sample_rate, config.stratify_by, config.seed)
        codec = _codec(staging, featurizer, indexed, config)
        stages.lap("landmarks")
        first = stored(featurizer, codec, indexed, np.arange(1))
        settings["precondition"] = _precondition(config.precondition, first)
        batch_size = featurizer.batch_size(config.batch_size)
        count = len(indexed.ids)
        parts, shards = parts_of(count, first, config.shard_size), shards_of(count, config.shard_size)
        require_space(staging, first, codec, known, parts=parts, shards=shards, model=model, vocabulary=vocabulary)
        arrays = Layout(staging.path, first, count, config.shard_size, model)
        arrays.create(codec.arrays())
        if workers is None:
            order = in_order(indexed.ids)
            write_parts(
                staging, featurizer, codec, indexed, {part: order[part.start : part.stop] for part in parts},
                write=partial(arrays.write, staging), row=first, batch_size=batch_size, progress=progress,
            )  # fmt: skip
        else:
            write_parts_with(
                workers, staging, indexed, known, parts, arrays=arrays, configuration=settings,
                batch_size=batch_size, device=config.device, progress=progress,
            )  # fmt: skip
        arrays.list_rows()
        stages.lap("gradients")
        contents = Contents(
            model,
            vocabulary,
            codec,
            known,
            configuration=settings,
            counts=counts(model, count, len(table.ids), skipped=table.skipped, left_out=table.left_out),
            provenance=provenance(model, device),
        )
        return finish(
            index_root,
            staging,
            contents,
            live=live,
            device=config.device,
            publish=publish,
            gate_report=gate_report,
            committed=committed,
            stages=stages,
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """What a generation is made of besides its arrays."""

    model: ModelFile
    vocabulary: Vocabulary
    codec: Codec
    known: np.ndarray | None
    """All training triples (N, 3), where only a sample of them is indexed."""
    configuration: Mapping[str, Any]
    counts: Mapping[str, int]
    provenance: Mapping[str, Any]


def finish(
    index_root: IndexRoot,
    staging: Staging,
    contents: Contents,
    *,
    live: str | None,
    device: str,
    publish: bool,
    gate_report: Path | None,
    committed: Callable[[str], None],
    stages: Stages,
) -> BuildReport:
    """Turn arrays in their places into a generation: index them, let it pass the gate, commit and publish it.

    `live` is the generation to compare with and to replace, unless another build has replaced it in the meantime.
    `committed` is as in `build`.
    """
    index_files(staging.path, contents.codec, contents.known, contents.configuration, pick_device(device))
    write_model(contents.model, staging.path / layout.MODEL)
    contents.vocabulary.write(staging.path / layout.VOCABULARY)
    stages.lap("index")
    facts: dict[str, Any] = {
        "configuration": contents.configuration,
        "counts": contents.counts,
        "provenance": contents.provenance,
    }
    with staging.draft(**facts) as draft:
        verdict = pass_gate(draft, index_root.path, live, device=device, report=gate_report)
    stages.lap("gate")
    generation = staging.commit(**facts)
    stages.lap("commit")
    committed(generation)
    if publish:
        index_root.publish(generation, expected=live)
        stages.lap("publish")
    with index_root.open(generation, verify=False) as finished:
        size = sum(record.bytes for record in finished.manifest.files.values())
    return BuildReport(
        generation=generation,
        published=publish,
        triples=contents.counts["triples"],
        skipped=contents.counts["skipped"],
        left_out=contents.counts["left_out"],
        bytes=size,
        agreement=None if verdict.agreement is None else verdict.agreement.overlap,
        seconds=stages.seconds,
        warnings=verdict.warnings(),
    )


def check_input(model: ModelFile, vocabulary: Vocabulary, table: TripleTable) -> None:
    """Raise `EmptyInput`, or `VocabularyMismatch` or `IdOutOfRange` for labels or ids that do not fit the model."""
    if not len(table.ids):
        raise EmptyInput("there are no training triples")
    for noun, have, need in (
        ("entities", len(vocabulary.entities), model.num_entities),
        ("relations", len(vocabulary.relations), model.num_relations),
    ):
        if have != need:
            raise VocabularyMismatch(
                f"the vocabulary has {have} {noun}, the model {need}: use the id maps it was trained with"
            )
    for state in (model, *(checkpoint for _, checkpoint in model.checkpoints)):
        for noun, labels in (("entities", vocabulary.entities), ("relations", vocabulary.relations)):
            _check_labels(state, noun, labels)
    if wrong := out_of_range(table.ids, model.num_entities, model.num_relations):
        raise IdOutOfRange(f"training triple {table.train_index[wrong[0]]}: {wrong[1]}")


def _check_labels(model: ModelFile, noun: str, labels: Sequence[str]) -> None:
    """Compare the labels with those that the model's file records, if it does; raise `VocabularyMismatch`."""
    recorded = model.label_ids.get(noun, {})
    differing = [(label, i) for label, i in recorded.items() if i >= len(labels) or labels[i] != label]
    if differing:
        label, i = differing[0]
        there = quote(labels[i]) if i < len(labels) else "nothing"
        raise VocabularyMismatch(
            f"{model.source} records id {i} for {quote(label)} of its {noun}, the id map has {there} there "
            f"({len(differing)} of {len(recorded)} differ): use the id maps it was trained with"
        )


def _fingerprint(model: ModelFile, vocabulary: Vocabulary, table: TripleTable, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for text in (
        model.fingerprint(),
        json.dumps(settings, sort_keys=True),
        json.dumps([list(vocabulary.entities), list(vocabulary.relations)]),
        json.dumps([dict(vocabulary.entity_names), dict(vocabulary.relation_names)], sort_keys=True),
        json.dumps(dict(vocabulary.prefixes), sort_keys=True),
        str(layout.SCHEMA_VERSION),
    ):
        digest.update(hashlib.sha256(text.encode()).digest())
    for array in (table.ids, table.train_index):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _precondition(precondition: str | None, stored: Collection[str]) -> str:
    """Return the preconditioning of queries by default: ``fisher`` if the arrays of these names allow it, or ``none``.

    Raises `BadRequest` if they do not allow a `precondition` that is given.
    """
    if precondition == "none":
        return precondition
    try:
        check_rows(stored)
    except BadRequest:
        if precondition is not None:
            raise
        return "none"
    return "fisher"


def _codec(staging: Staging, featurizer: Featurizer, table: TripleTable, config: BuildConfig) -> Codec:
    if config.projection == PCA:
        return PrincipalCodec(_bases(staging, featurizer, table, config), DTYPES[config.dtype])
    return read_codec(asdict(config), {}, featurizer.model.device)


def _bases(staging: Staging, featurizer: Featurizer, table: TripleTable, config: BuildConfig) -> Bases:
    """Choose the directions, or read those an interrupted build chose: part codes depend on them."""
    name = BASES
    if name not in staging.parts():
        count = min(config.landmarks, len(table.ids))
        chosen = np.random.default_rng(config.seed).choice(len(table.ids), count, replace=False)
        with torch.inference_mode():
            landmarks = featurizer.plain.training_terms_apart(table.ids[np.sort(chosen)])
            staging.write_part(name, fit_bases(landmarks, config.dim).arrays())
    return Bases.from_arrays(read_part(staging.part_path(name)), featurizer.model.device)
