"""Extending the live generation by new training triples of the same model, without computing the old ones again.

::

    live gradients.h5, sorted ──────────────────────────────────┐
    new triples ─► sort ─► gradient terms, a part at a time ────┴─► gradients.h5 ─► search.faiss, ... as in a build

The directions that codes refer to are those of the live generation: they were chosen from its triples alone. Answers
stay exact, for bounds hold in any directions; they only take longer when the new triples are of another kind.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kgtrace_indexer.building.build import BuildReport, Contents, check_input, finish
from kgtrace_indexer.building.facts import counts, provenance
from kgtrace_indexer.building.files import Layout
from kgtrace_indexer.building.parts import Progress, parts_of, require_space, stored, write_parts
from kgtrace_indexer.building.stages import Stages
from kgtrace_indexer.index.codec import read_codec
from kgtrace_indexer.index.files import BASIS, Files, shards_of
from kgtrace_indexer.index.training_set import in_order
from kgtrace_indexer.inputs.model_reader import read_model
from kgtrace_indexer.inputs.sampling import sample_table
from kgtrace_indexer.inputs.skipping import without
from kgtrace_indexer.inputs.triples import TripleTable, read_triples
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_store import layout
from kgtrace_store.errors import BadRequest, EmptyInput
from kgtrace_store.generation import Generation
from kgtrace_store.generations import IndexRoot
from kgtrace_store.staging import Staging
from kgtrace_store.vocabulary import Vocabulary


def append(
    root: Path,
    train: Path,
    *,
    skip: Path | None = None,
    skip_unknown: bool = False,
    ids: bool = False,
    only_iris: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    publish: bool = True,
    fresh: bool = False,
    gate_report: Path | None = None,
    committed: Callable[[str], None] = lambda generation: None,
    progress: Progress = lambda stage, done, total: None,
) -> BuildReport:
    """Index the triples of a file besides those of the live generation, as a new generation.

    The file continues the one that was read before: its first line has the ``train_index`` after that one's last.
    Lines whose triple is indexed already, or stands further up in the file, are skipped and counted, so that a
    training file that has grown may be given whole; so are triples that the file `skip` names. `skip_unknown`, `ids`
    and `only_iris` are as in `read_triples`, `committed` as in `build`.

    Raises
    ------
    IndexNotFound, CorruptGeneration, SchemaTooNew, SchemaTooOld
        There is no live generation to extend.
    EmptyInput
        Every triple of the file is indexed already.
    BadRequest
        Loss ``bce-kvsall``: known tails are labels of the triples that are indexed, too.
    Whatever `read_triples` and `build` raise.
    """
    stages = Stages()
    index_root = IndexRoot(root)
    on = pick_device(device)
    with index_root.open() as live:
        model = read_model(live.path / layout.MODEL)
        vocabulary = Vocabulary.read(live.path / layout.VOCABULARY)
        files = Files.open(live.path)
        known = files.training_set().known
        configuration, old_counts = live.manifest.configuration, live.manifest.counts
        if configuration["loss"] == "bce-kvsall":
            raise BadRequest(
                f"{live.id} has loss bce-kvsall, whose labels are all known tails: with new triples the gradients of "
                "those indexed change; build it anew"
            )
        table = read_triples(train, vocabulary, skip_unknown=skip_unknown, ids=ids, only_iris=only_iris)
        warnings = table.warnings(train)
        if skip is not None:
            table, passed_over = without(table, skip, vocabulary, skip_unknown=skip_unknown)
            warnings += passed_over
        new = _added(table, known, old_counts, train)
        check_input(model, vocabulary, new)
        rate, stratify_by = configuration.get("sample_rate", 1.0), configuration.get("stratify_by")
        added = sample_table(new, rate, stratify_by, configuration["seed"])
        everything = np.concatenate([known, new.ids])
        featurizer = featurizer_for(model, configuration, on, everything)
        codec = read_codec(configuration, files.arrays, on)
        stages.lap("read")
        with index_root.stage(_fingerprint(live, new), fresh=fresh) as staging:
            total = old_counts["triples"] + len(added.ids)
            unsampled = everything if rate < 1 else None
            first = stored(featurizer, codec, added, np.arange(1))
            shard_size = configuration.get("shard_size")
            parts, shards = parts_of(total, first, shard_size), shards_of(total, shard_size)
            require_space(
                staging, first, codec, unsampled, parts=parts, shards=shards, model=model, vocabulary=vocabulary
            )
            merge = _Merge(
                Layout(live.path, first, old_counts["triples"], shard_size, model),
                Layout(staging.path, first, total, shard_size, model),
                in_order(np.concatenate([files.arrays["triples"], added.ids])),
                staging,
            )
            merge.whole.create({name: array for name, array in files.arrays.items() if name.startswith(BASIS)})
            write_parts(
                staging, featurizer, codec, added, {part: merge.added(part) for part in parts},
                write=merge.write, row=first, batch_size=featurizer.batch_size(batch_size), progress=progress,
            )  # fmt: skip
            merge.whole.list_rows()
            stages.lap("gradients")
            held = counts(
                model,
                total,
                len(everything),
                skipped=old_counts["skipped"] + new.skipped,
                left_out=old_counts.get("left_out", 0) + new.left_out,
            )
            contents = Contents(
                model,
                vocabulary,
                codec,
                unsampled,
                configuration=configuration,
                counts=held,
                provenance=provenance(model, on) | {"extends": live.id, "model": live.manifest.provenance.get("model")},
            )
            report = finish(
                index_root,
                staging,
                contents,
                live=live.id,
                device=device,
                publish=publish,
                gate_report=gate_report,
                committed=committed,
                stages=stages,
            )
            return replace(report, warnings=(*warnings, *report.warnings))


@dataclass(frozen=True, slots=True)
class _Merge:
    """Training triples that are indexed already, and others, in their common order."""

    old: Layout
    whole: Layout
    order: np.ndarray
    """(n,) int64: of all triples in their order, the number among the old ones, or after them among the added ones."""
    staging: Staging

    def added(self, part: range) -> np.ndarray:
        """Return the numbers of the added triples in a part."""
        rows = self.order[part.start : part.stop]
        return rows[rows >= self.old.count] - self.old.count

    def write(self, part: range, added: Mapping[str, np.ndarray]) -> None:
        """Write a part: the arrays of the added triples in it, between those of the old ones."""
        rows = self.order[part.start : part.stop]
        known = rows < self.old.count
        start = int(rows[known][0]) if known.any() else 0
        old = self.old.read(range(start, start + int(known.sum())))
        whole = {name: np.empty((len(part), *array.shape[1:]), array.dtype) for name, array in added.items()}
        for name, array in whole.items():
            array[known], array[~known] = old[name], added[name]
        self.whole.write(self.staging, part, whole)


def _added(table: TripleTable, known: np.ndarray, old: Mapping[str, int], source: Path) -> TripleTable:
    """Return the new triples of a table, their rows numbered after the lines read before. Raises `EmptyInput`."""
    lines = len(known) + old["skipped"]
    _, first = np.unique(table.ids, axis=0, return_index=True)
    first.sort()
    rows = np.concatenate([table.ids[first], known])
    order = in_order(rows)
    ordered = rows[order]
    before_its_equal = order[:-1][(ordered[1:] == ordered[:-1]).all(1)]  # of a new triple and a known one, the new one
    keep = np.delete(first, before_its_equal[before_its_equal < len(first)])
    if not len(keep):
        raise EmptyInput(f"{source}: all of its {len(table.ids)} triples are indexed already: nothing to append")
    skipped = table.skipped + len(table.ids) - len(keep)
    return TripleTable(table.ids[keep], table.train_index[keep] + lines, skipped, left_out=table.left_out)


def _fingerprint(live: Generation, added: TripleTable) -> str:
    digest = hashlib.sha256(f"append {live.manifest.fingerprint} {added.skipped}".encode())
    for array in (added.ids, added.train_index):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
