"""Untrained models of PyKEEN, saved as it saves them."""

from typing import Any

import torch

from kgtrace_indexer.inputs.model_file import ModelFile

RELATIONS = 55
"""Of the Nations data set."""


def make_model(name: str = "conve", *, inverse: bool = True, **options: Any) -> Any:
    """An untrained PyKEEN model over Nations, its running statistics moved away from their start."""
    from pykeen.datasets import Nations
    from pykeen.models import model_resolver

    triples = Nations(create_inverse_triples=inverse).training
    model = model_resolver.make(name, triples_factory=triples, random_seed=0, **({"embedding_dim": 8} | options))
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


def assert_same_tensors(found: ModelFile, state: dict[str, torch.Tensor]) -> None:
    assert list(found.tensors) == list(state)
    for name, tensor in state.items():
        assert torch.equal(found.tensors[name], tensor), name
