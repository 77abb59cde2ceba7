"""Gradients of linear layers and batch norms, from one recorded call: the layer's input and its output's gradient."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgtrace_indexer.gradients.layers import Selection
from kgtrace_indexer.gradients.terms import Kron

Layer = nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a layer."""

    input: Tensor
    output: Tensor


_CALLS: ContextVar[dict[str, list[LayerCall]] | None] = ContextVar("calls", default=None)
"""Calls recorded by layer name; each thread has its own."""


def observe_layers(module: nn.Module) -> dict[str, Layer]:
    """Return the layers of a module by name, and let `record_calls` see their calls."""
    layers: dict[str, Layer] = {n: x for n, x in module.named_modules() if isinstance(x, Layer)}
    for name, layer in layers.items():

        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            if (calls := _CALLS.get()) is not None:
                calls.setdefault(name, []).append(LayerCall(inputs[0], output))

        layer.register_forward_hook(record)
    return layers


@contextmanager
def record_calls() -> Iterator[dict[str, list[LayerCall]]]:
    """Record every call of an observed layer under its name."""
    calls: dict[str, list[LayerCall]] = {}
    token = _CALLS.set(calls)
    try:
        yield calls
    finally:
        _CALLS.reset(token)


def single_calls(
    layers: Mapping[str, Layer], calls: Mapping[str, Sequence[LayerCall]], samples: int
) -> dict[str, LayerCall]:
    """Return the calls of the layers that were called once, with one input for each sample.

    Only of these does the gradient of a sample follow from its own input and output.
    """

    def follows(layer: Layer, x: Tensor) -> bool:
        return len(x) == samples and (not isinstance(layer, nn.Linear) or x.shape[:-1].numel() == samples)

    single = {name: made[0] for name, made in calls.items() if len(made) == 1}
    return {name: call for name, call in single.items() if follows(layers[name], call.input)}


def layer_gradients(
    name: str, layer: Layer, x: Tensor, delta: Tensor, selection: Selection
) -> tuple[dict[str, Kron], dict[str, Tensor]]:
    """Return a layer's rank-1 block and small gradients, for inputs x (m, ...) and its outputs' gradients (m, ...)."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    with_weight, with_bias = weight in selection, layer.bias is not None and bias in selection
    flat: dict[str, Tensor] = {}
    if isinstance(layer, nn.Linear):
        x, delta = x.reshape(len(x), -1), delta.reshape(len(x), -1)
        if with_weight:  # eq. (3) of docs/how-it-works.md; the bias is the last column
            ones = torch.full_like(x[:, :1], float(with_bias))
            return {weight: Kron(delta, torch.cat([x, ones], 1), torch.arange(len(x), device=x.device))}, {}
    elif with_weight:
        normal = F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
        flat[weight] = _by_channel(delta * normal)
    if with_bias:
        flat[bias] = _by_channel(delta)
    return {}, flat


def _by_channel(x: Tensor) -> Tensor:
    """Sum (m, channels, …) over all positions, (m, channels)."""
    return x.reshape(*x.shape[:2], -1).sum(2)
