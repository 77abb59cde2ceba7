"""What every configuration is applied to."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from kgtrace_indexer.building.build import BuildConfig
from kgtrace_indexer.evaluation.configurations import Configuration
from kgtrace_indexer.index.training_set import in_order
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.sampling import sample_rows
from kgtrace_indexer.inputs.triples import TripleTable
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from kgtrace_indexer.models.protocol import pick_device
from kgtrace_indexer.names import Order

_BATCH_SIZE = 2048
"""Training triples featurized at a time, by default."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Training triples, test triples, and the options of their queries."""

    featurizer: Featurizer
    """Of the exact answer."""
    ids: np.ndarray
    """(n, 3) int32: training triples, sorted so that neighbours share forward passes."""
    train_index: np.ndarray
    """(n,) int64: their rows as read."""
    test: np.ndarray
    """(b, 3) int64: test triples, whose tails are explained."""
    top_k: int
    order: Order
    seed: int
    """Of projections and samples."""
    batch_size: int
    """Training triples featurized at a time."""

    @classmethod
    def of(
        cls, model: ModelFile, table: TripleTable, test: np.ndarray, config: BuildConfig, top_k: int, order: Order
    ) -> "Problem":
        """Put the model on its device and the training triples in order. Raises as `featurizer_for` does."""
        by_relation = in_order(table.ids)
        featurizer = featurizer_for(model, config.settings, pick_device(config.device), table.ids)
        return cls(
            featurizer,
            table.ids[by_relation],
            table.train_index[by_relation],
            test.astype(np.int64),
            top_k,
            order,
            config.seed,
            batch_size=featurizer.block(config.batch_size or _BATCH_SIZE),
        )

    def featurizer_of(self, configuration: Configuration) -> Featurizer:
        """Return the featurizer of a configuration's layers."""
        return replace(self.featurizer, selection=self.featurizer.model.select(configuration.layers))

    def rows(self, configuration: Configuration) -> np.ndarray:
        """Return the training triples that a configuration looks at: ascending rows of `ids`, (m,) int64."""
        if configuration.sample_rate == 1:
            return np.arange(len(self.ids))
        return sample_rows(self.ids, configuration.sample_rate, configuration.stratify_by, self.seed)

    def fingerprint(self, model: ModelFile, config: BuildConfig, configurations: Sequence[Configuration]) -> str:
        """Return a sha256, in hex, over everything that accuracies depend on."""
        settings = asdict(config) | {"top_k": self.top_k, "order": self.order, "directions": self.featurizer.directions}
        del settings["device"], settings["batch_size"]
        digest = hashlib.sha256(model.fingerprint().encode())
        digest.update(json.dumps([settings, [asdict(c) for c in configurations]], sort_keys=True).encode())
        for array in (self.ids, self.train_index, self.test):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
