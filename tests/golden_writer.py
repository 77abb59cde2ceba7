"""Writes ``tests/golden/schema-N``: a tiny index as this version of kgtrace writes it, for later ones to read.

    python -m tests.golden_writer

Run once for each schema version, before it is released; what has been released is never written again.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from kgtrace_indexer import (
    BuildConfig,
    ModelFile,
    TripleTable,
    build,
    open_index,
    read_model,
    read_training_folder,
)
from kgtrace_server.cli.demo import train_umls
from kgtrace_store import Vocabulary, layout

_TRIPLES = 24
_CONFIG = BuildConfig(dim=4, landmarks=8, device="cpu")


def main() -> None:
    """Write the index and the answer to one query."""
    root = Path(__file__).parent / "golden" / f"schema-{layout.SCHEMA_VERSION}"
    with tempfile.TemporaryDirectory() as folder:
        train_umls(Path(folder), epochs=1, embedding_dim=8)
        model = read_model(Path(folder))
        vocabulary, table = read_training_folder(Path(folder) / "training_triples")
    shutil.rmtree(root, ignore_errors=True)
    build(root, *_shrunk(model, vocabulary, table), _CONFIG)
    triple = open_index(root, device="cpu").training.triples[5].astype(np.int64)
    found = open_index(root, device="cpu").query(triple[None], top_k=5).attributions[0]
    answer = {
        "triple": triple.tolist(),
        "train_index": found.train_index.tolist(),
        "influence": found.influence.tolist(),
    }
    (root / "answer.json").write_text(json.dumps(answer, indent=1) + "\n")
    for leftover in (root / layout.STAGING, root / layout.BUILD_LOCK, root / layout.PUBLISH_LOCK):
        shutil.rmtree(leftover, ignore_errors=True)
        leftover.unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    sys.stdout.write(f"{root}: {size} bytes\n")


def _shrunk(model: ModelFile, vocabulary: Vocabulary, table: TripleTable) -> tuple[ModelFile, Vocabulary, TripleTable]:
    """Return the model of the entities and relations of a few training triples alone."""
    ids = table.ids[:_TRIPLES]
    entities, relations = np.unique(ids[:, ::2]), np.unique(ids[:, 1])
    rows = torch.as_tensor(np.stack([2 * relations, 2 * relations + 1], 1).ravel())
    tensors = {}
    for name, tensor in model.tensors.items():
        if name.startswith("entity_representations"):
            tensors[name] = tensor[torch.as_tensor(entities)]
        elif name.startswith("relation_representations"):
            tensors[name] = tensor[rows]
        else:
            tensors[name] = tensor
    small = ModelFile(
        model.interaction,
        tensors,
        len(entities),
        len(relations),
        model.inverse_triples,
        model.modules,
        model.loss,
        "umls",
    )
    labels = Vocabulary([vocabulary.entities[i] for i in entities], [vocabulary.relations[i] for i in relations])
    columns = [np.searchsorted(entities, ids[:, 0]), np.searchsorted(relations, ids[:, 1])]
    new = np.stack([*columns, np.searchsorted(entities, ids[:, 2])], 1).astype(np.int32)
    return small, labels, TripleTable(new, np.arange(len(new)), 0)


if __name__ == "__main__":
    main()
