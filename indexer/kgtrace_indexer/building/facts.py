"""What a generation records about itself, for its manifest: how much it holds, and where it comes from."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from kgtrace_indexer.inputs.model_file import ModelFile


def counts(model: ModelFile, triples: int, training_triples: int, *, skipped: int, left_out: int) -> dict[str, int]:
    """Return the manifest's counts, by noun: `triples` are indexed of all `training_triples`."""
    return {
        "triples": triples,
        "training_triples": training_triples,
        "skipped": skipped,
        "left_out": left_out,
        "entities": model.num_entities,
        "relations": model.num_relations,
    }


def provenance(model: ModelFile, device: torch.device) -> dict[str, Any]:
    """Return where a generation comes from, for the manifest."""
    return {
        "model": model.source,
        "summed": [{"model": state.source, "weight": weight} for weight, state in model.checkpoints],
        "interaction": model.interaction,
        "loss": model.loss.get("class"),
        "device": device.type,
        "versions": {
            "kgtrace": version("kgtrace"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
