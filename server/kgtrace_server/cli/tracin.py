"""``kgtrace tracin``: its computations, and the documents that it writes.

Mode ``single`` gives a list with an object for each test triple, ``test`` puts that list under ``results``, beside the
numbers of triples and the options, and ``self`` gives a list with an object for each training triple. Their fields are
those of `kgtrace_indexer.query.analyzer`, and labels beside the ids.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.sampling import sample_table
from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_indexer.names import PRESETS, Preset
from kgtrace_indexer.query.analyzer import TracInAnalyzer
from kgtrace_server.cli.render import table
from kgtrace_server.printable import printable
from kgtrace_store.errors import UnsupportedModel
from kgtrace_store.vocabulary import Vocabulary

_BATCH = 256
"""Test triples explained in one pass over the training triples: their gradients take less than 100 MB."""


def chosen(args: argparse.Namespace) -> Preset:
    """Return the preset with the arguments that were given in the place of its own.

    To say how many last layers count, or how gradients are projected, is to ask for it.
    """
    preset = PRESETS[args.preset]
    last, projecting = args.use_last_layers_only, args.use_projection
    if last is None and (args.num_last_layers or args.last_layer_names):
        last = True
    if projecting is None and (args.projection_dim or args.projection_type):
        projecting = True
    if last is not None:
        preset = replace(preset, last_layers=(args.num_last_layers or preset.last_layers or 2) if last else None)
    if projecting is not None:
        kind = args.projection_type or preset.projection or "gaussian"
        preset = replace(preset, projection=kind if projecting else None, dim=args.projection_dim or preset.dim)
    if args.sample_rate is not None:
        preset = replace(preset, sample_rate=args.sample_rate)
    if args.stratify_by is not None:
        preset = replace(preset, stratify_by=None if args.stratify_by == "none" else args.stratify_by)
    return preset


def check_channels(model: ModelFile, output_channels: int) -> None:
    """Raise `UnsupportedModel` for a model whose convolution has other output channels, or that has none."""
    kernels = [t for name, t in model.tensors.items() if name.startswith("interaction.hr2d.") and t.dim() == 4]
    if [len(kernel) for kernel in kernels] != [output_channels]:
        have = f"{len(kernels[0])} output channels" if kernels else "no convolution"
        raise UnsupportedModel(
            f"{model.source} is a {model.interaction} with {have}, not {output_channels} (--output-channels)"
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One call of the verb."""

    model: ModelFile
    vocabulary: Vocabulary
    training: TripleTable
    preset: Preset
    args: argparse.Namespace
    progress: Callable[[str, int, int], None]

    def explained(self, test: np.ndarray, test_indices: np.ndarray) -> list[dict[str, Any]]:
        """Return the document of mode single for test triples (b, 3), rows `test_indices` (b,) of their file."""
        sample = self._sample()
        passes = -(-len(test) // _BATCH)
        finished = 0

        def step(done: int, total: int) -> None:
            self.progress("influences", finished * total + done, passes * total)

        analyzer = self._analyzer(step)
        results = []
        for start in range(0, len(test), _BATCH):
            batch, indices = test[start : start + _BATCH].tolist(), test_indices[start : start + _BATCH].tolist()
            answers = analyzer.compute_influences_for_test_triples(
                batch, sample, learning_rate=self.args.learning_rate, top_k=self.args.top_k
            )
            finished += 1
            for index, triple, answer in zip(indices, batch, answers, strict=True):
                influences = [{**row, **self._labels("train_", row)} for row in answer]
                label = list(self._labels("", dict(zip(("head", "relation", "tail"), triple, strict=True))).values())
                results.append(
                    {
                        "test_index": index,
                        "test_triple": triple,
                        "test_triple_label": label,
                        "influences": influences,
                    }
                )
        return results

    def summed_up(self, results: Sequence[Mapping[str, Any]], skipped: int) -> dict[str, Any]:
        """Return the document of mode test; `skipped` lines of the test file had unknown labels."""
        return {
            "num_test_triples": len(results),
            "num_skipped_test_triples": skipped,
            "num_training_triples": len(self.training.ids),
            "num_sampled_triples": len(self._sample().ids),
            "sample_rate": self.preset.sample_rate,
            "top_k": self.args.top_k,
            "learning_rate": self.args.learning_rate,
            "results": results,
        }

    def self_influences(self) -> list[dict[str, Any]]:
        """Return the document of mode self."""
        rows = self._analyzer(lambda done, total: self.progress("gradients", done, total)).compute_self_influence(
            self._sample(), learning_rate=self.args.learning_rate, top_k=self.args.top_k
        )
        return [{**row, **self._labels("", row)} for row in rows]

    def _sample(self) -> TripleTable:
        return sample_table(self.training, self.preset.sample_rate, self.preset.stratify_by, self.args.seed)

    def _analyzer(self, progress: Callable[[int, int], None]) -> TracInAnalyzer:
        last = self.preset.last_layers is not None
        return TracInAnalyzer(
            self.model,
            use_last_layers_only=last,
            num_last_layers=self.preset.last_layers or 0,
            last_layer_names=self.args.last_layer_names if last else None,
            use_projection=self.preset.projection is not None,
            projection_dim=self.preset.dim,
            projection_type=self.preset.projection or "gaussian",
            device=self.args.device,
            directions=self.args.directions,
            seed=self.args.seed,
            progress=progress,
            **({} if self.args.batch_size is None else {"batch_size": self.args.batch_size}),
        )

    def _labels(self, prefix: str, row: Mapping[str, Any]) -> dict[str, str]:
        entities, relations = self.vocabulary.entities, self.vocabulary.relations
        return {
            f"{prefix}{field}_label": labels[row[f"{prefix}{field}"]]
            for field, labels in (("head", entities), ("relation", relations), ("tail", entities))
        }


def explanations(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the influences on test triples as text."""
    return "\n".join(
        "  ".join(map(printable, result["test_triple_label"]))
        + "\n"
        + _ranked(result["influences"], "influence", "train_")
        for result in results
    )


def self_influences(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return self-influences as text."""
    return _ranked(rows, "self_influence", "")


def _ranked(rows: Sequence[Mapping[str, Any]], measure: str, prefix: str) -> str:
    lines = [("", measure.replace("_", "-"), "row", "head", "relation", "tail")]
    for position, row in enumerate(rows, 1):
        labels = (row[f"{prefix}{field}_label"] for field in ("head", "relation", "tail"))
        lines.append((str(position), f"{row[measure]:.4g}", str(row["train_index"]), *labels))
    return table(lines, right=(0, 1, 2))
