"""Models that PyKEEN's own pipeline trains, as a configuration file of it says."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pykeen.datasets import get_dataset
from pykeen.models import ERModel
from pykeen.pipeline import pipeline
from pykeen.triples import CoreTriplesFactory
from pykeen.utils import load_configuration
from torch import Tensor
from yaml import YAMLError

from benchmarks.truth.graphs import Graph
from benchmarks.truth.training import Trained, saved
from kgtrace_indexer import ModelFile, TripleTable, read_model
from kgtrace_indexer.building.build import check_input
from kgtrace_indexer.inputs.training_folder import check_against_folder
from kgtrace_store.errors import UnreadableInput, UnsupportedModel, VocabularyMismatch

_DATA = ("dataset", "dataset_kwargs", "training", "testing", "validation")
_APART = (
    *_DATA, "evaluation_entity_whitelist", "evaluation_relation_whitelist", "metadata", "random_seed", "result_tracker",
    "result_tracker_kwargs", "use_testing_data",
)  # fmt: skip
"""Arguments that are given here, or that only say what PyKEEN evaluates afterwards, and where it writes that."""
_APART_WITHIN = {
    "model_kwargs": ("random_seed",),  # models of all seeds would be one
    "training_kwargs": (
        "checkpoint_directory", "checkpoint_frequency", "checkpoint_name", "checkpoint_on_failure",  # would be resumed
        "num_workers",  # a process of a pool has no processes of its own
    ),
}  # fmt: skip
_SCORES = 1 << 17
"""Scores computed together: of 200 numbers each, what a distance is the norm of takes 100 MiB."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How to train."""

    arguments: str
    """Those of `pykeen.pipeline.pipeline`, as JSON with sorted keys: what was trained is kept by this text."""

    @classmethod
    def read(cls, file: Path) -> "Pipeline":
        """Read a configuration, JSON or YAML, as `pykeen.pipeline.pipeline_from_path` does. Raises `UnreadableInput`."""
        try:
            found = load_configuration(file)
        except OSError as e:
            raise UnreadableInput(f"cannot read {file}: {e.strerror}") from e
        except (ValueError, YAMLError) as e:
            raise UnreadableInput(f"{file} is no configuration of PyKEEN's pipeline: {e}") from e
        arguments = found.get("pipeline") if isinstance(found, Mapping) else None
        if not isinstance(arguments, Mapping):
            raise UnreadableInput(
                f'{file} is no configuration of PyKEEN\'s pipeline: it has no key "pipeline" with a mapping of dataset, '
                "model, training_loop and so on"
            )
        return cls(json.dumps(arguments, sort_keys=True))

    def graph(self) -> Graph:
        """Read the data. Raises `UnreadableInput`."""
        arguments = json.loads(self.arguments)
        try:
            data = get_dataset(**{key: arguments[key] for key in _DATA if key in arguments})
            return Graph.of(data.training, data.testing, data.validation)
        except (OSError, ValueError, LookupError) as e:
            raise UnreadableInput(f"the data of the pipeline cannot be read: {e}") from e

    def train(self, graph: Graph, triples: np.ndarray, seed: int) -> Trained:
        """Train on some triples (n, 3) of a graph. One thread, one seed: one result."""
        return Trained(self._run(graph, triples, seed, {}), [])

    def scores(self, model: ERModel, head: Tensor, relation: Tensor) -> Tensor:
        """Return a trained model's scores of heads (m,) and relations (m,) with all entities as tail, (m, E).

        They are those of its ``predict_t`` before a sigmoid, if it has any.
        """
        pairs = torch.stack([head, 2 * relation if model.use_inverse_triples else relation], 1)
        return torch.cat([model.score_t(some) for some in pairs.split(max(1, _SCORES // model.num_entities))])

    def trained_before(self, path: Path, graph: Graph) -> Trained:
        """Read a model that was trained so on the graph, a folder or a file, executing nothing that is in it.

        Raises the errors of `read_model`, `VocabularyMismatch` for a model of other data, and `UnsupportedModel` for
        one that this pipeline does not train.
        """
        found = read_model(path)
        table = TripleTable(graph.train.astype(np.int32), np.arange(len(graph.train)), 0)
        saved_with = (path if path.is_dir() else path.parent) / "training_triples"
        try:
            check_input(found, graph.vocabulary, table)
            check_against_folder(saved_with, graph.vocabulary, table, path)
        except VocabularyMismatch as e:
            raise VocabularyMismatch(f"{path} is not of the data of the pipeline: {e}") from e
        model = self._run(graph, graph.train, 0, {"epochs": 0, "stopper": None, "stopper_kwargs": None})
        with TemporaryDirectory() as folder:
            _check_alike(found, saved(model, Path(folder)))
        model.load_state_dict(found.tensors)
        return Trained(model, [])

    def _run(self, graph: Graph, triples: np.ndarray, seed: int, changes: Mapping[str, Any]) -> ERModel:
        """Return what PyKEEN trains, in evaluation mode; of the test triples it evaluates one, since it has to."""
        arguments = json.loads(self.arguments)
        inverse = (arguments.get("dataset_kwargs") or {}).get("create_inverse_triples", False)
        asked = {key: value for key, value in arguments.items() if key not in _APART}
        for key, apart in _APART_WITHIN.items():
            asked[key] = {name: value for name, value in (asked.get(key) or {}).items() if name not in apart}
        sizes = len(graph.vocabulary.entities), len(graph.vocabulary.relations)
        validation = CoreTriplesFactory(torch.from_numpy(graph.validation), *sizes)
        with _quiet():
            result = pipeline(
                training=CoreTriplesFactory(torch.from_numpy(triples), *sizes, create_inverse_triples=inverse),
                testing=CoreTriplesFactory(torch.from_numpy(graph.test[:1]), *sizes),
                validation=validation if len(graph.validation) else None,
                random_seed=seed,
                use_tqdm=False,
                **{"device": "cpu", **asked, **changes},
            )
        return result.model.cpu().eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyKEEN from remarks, the same ones in each of many trainings."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _check_alike(found: ModelFile, expected: ModelFile) -> None:
    """Raise `UnsupportedModel` where a model differs from one that a pipeline trains, as far as both files tell."""
    recorded = found.modules.get("interaction", {}).keys() & expected.modules["interaction"].keys() - {"class"}
    theirs, ours = (
        {
            "interaction": model.interaction,
            "use of inverse triples": model.inverse_triples,
            **{f"shape of {name}": tuple(tensor.shape) for name, tensor in model.tensors.items()},
            **{f"interaction's {name}": model.modules["interaction"][name] for name in sorted(recorded)},
        }
        for model in (found, expected)
    )
    for key in {**ours, **theirs}:
        if theirs.get(key) != ours.get(key):
            raise UnsupportedModel(
                f"{found.source} is of another pipeline: its {key} is {theirs.get(key)}, and {ours.get(key)} of models "
                "that this one trains"
            )
