"""The tensors of a PyKEEN ConvE, and the hyper-parameters that follow from their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kgtrace_store.errors import UnsupportedModel

ENTITIES = "entity_representations.0._embeddings.weight"
BIASES = "entity_representations.1._embeddings.weight"
RELATIONS = "relation_representations.0._embeddings.weight"
LINEAR = "interaction.hr1d.0.weight"

_MOST_LISTED = 6
"""Tensor names in one message."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by tensor name."""


def looks_like_conve(names: Sequence[str]) -> bool:
    """Whether a state dict's names are those of PyKEEN's ConvE."""
    return any(n.startswith("interaction.hr2d.") for n in names)


def has_batch_norm(names: Sequence[str]) -> bool:
    """Whether the model was made with ``apply_batch_normalization``, PyKEEN's default."""
    return any(n.endswith(".running_mean") for n in names)


def infer_shape(tensors: Mapping[str, torch.Tensor], source: str) -> dict[str, Any]:
    """PyKEEN's ``ConvEShapeInformation`` as a mapping, from the tensors alone.

    The embedding is an image of C·H·W values. C and the kernel are the convolution's shape; H and W solve
    ``in_features = O·(2H − kh + 1)·(W − kw + 1)``. Where both H×W and its mirror W/2 × 2H do, PyKEEN's
    default is taken: one channel, as square as possible, no higher than wide.

    Raises :class:`UnsupportedModel` if tensors are missing or no image fits.
    """
    conv = _convolution([*tensors])
    dimensions = {ENTITIES: 2, LINEAR: 2, conv: 4}
    if any(name not in tensors or tensors[name].dim() != dims for name, dims in dimensions.items()):
        raise _unsupported(source, {k: tuple(t.shape) for k, t in tensors.items()}, list(dimensions))
    dim = tensors[ENTITIES].shape[1]
    out_channels, channels, kernel_height, kernel_width = tensors[conv].shape
    features = tensors[LINEAR].shape[1]
    pixels = dim // channels if channels and dim % channels == 0 else 0
    heights = [
        h
        for h in range(1, pixels + 1)
        if pixels % h == 0
        and 2 * h >= kernel_height
        and pixels // h >= kernel_width
        and out_channels * (2 * h - kernel_height + 1) * (pixels // h - kernel_width + 1) == features
    ]
    if not heights:
        raise UnsupportedModel(
            f"{source}: no image of {channels} channels has {dim} values and gives the linear layer its "
            f"{features} inputs through {out_channels} filters of {kernel_height}×{kernel_width}"
        )
    default = max((h for h in range(1, math.isqrt(pixels) + 1) if pixels % h == 0), default=0)
    if len(heights) > 1 and default not in heights:
        images = " or ".join(f"{h}×{pixels // h}" for h in heights)
        raise UnsupportedModel(
            f"{source}: the tensors leave open whether the image is {images}; "
            "pass the whole saved model (trained_model.pkl), which records it"
        )
    height = default if default in heights else heights[0]
    return {
        "class": "ConvEShapeInformation",
        "embedding_dim": dim,
        "input_channels": channels,
        "image_height": height,
        "image_width": pixels // height,
        "output_channels": out_channels,
        "kernel_height": kernel_height,
        "kernel_width": kernel_width,
    }


def shape_before_1_11(attributes: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """PyKEEN's ``ConvEShapeInformation``, which is recorded since 1.11; before, the image is, and the tensors tell
    the rest. None if they do not.
    """
    conv = tensors.get(_convolution([*tensors]))
    table = tensors.get(ENTITIES)
    if conv is None or conv.dim() != 4 or table is None or table.dim() != 2:
        return None
    return {
        "class": "ConvEShapeInformation",
        "embedding_dim": table.shape[1],
        "input_channels": attributes.get("input_channels"),
        "image_height": attributes.get("embedding_height"),
        "image_width": attributes.get("embedding_width"),
        "output_channels": conv.shape[0],
        "kernel_height": conv.shape[2],
        "kernel_width": conv.shape[3],
    }


def check_shapes(tensors: Mapping[str, torch.Tensor], shape_info: Any, source: str) -> None:
    """Compare tensors with the tensors of a ConvE of that shape; regularizers' own tensors may be there too.

    Raises :class:`UnsupportedModel`, listing the differences.
    """
    shapes = {k: tuple(t.shape) for k, t in tensors.items() if "regularizer" not in k}
    fields = _fields(shape_info)
    tables = [shapes.get(name, ()) for name in (ENTITIES, RELATIONS)]
    if not fields or any(len(table) != 2 for table in tables):
        raise _unsupported(source, shapes, [ENTITIES, RELATIONS, "interaction.shape_info"])
    rows = [table[0] for table in tables]
    expected = _expected(rows[0], rows[1], batch_norm=has_batch_norm([*shapes]), **fields)
    if shapes != expected:
        missing = [f"{n} {s}" for n, s in expected.items() if n not in shapes]
        surplus = [f"{n} {s}" for n, s in shapes.items() if n not in expected]
        common = [(n, shapes[n], s) for n, s in expected.items() if n in shapes]
        differing = [f"{n} {has} instead of {wants}" for n, has, wants in common if has != wants]
        parts = {"lacks": missing, "also has": surplus, "has": differing}
        raise UnsupportedModel(
            f"{source} is not PyKEEN's ConvE: it "
            + "; it ".join(f"{verb} {_first_few(items)}" for verb, items in parts.items() if items)
        )


def batch_norm_modules(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Attributes of the batch norms of a state dict, which does not record them: PyTorch's defaults."""
    norms = [n.removesuffix(".running_mean") for n in names if n.endswith(".running_mean")]
    kind = {True: "BatchNorm2d", False: "BatchNorm1d"}
    return {n: {"class": kind[".hr2d." in n], "eps": 1e-5} for n in norms}


def _convolution(names: Sequence[str]) -> str:
    """Name of the convolution's weight."""
    return f"interaction.hr2d.{2 if has_batch_norm(names) else 1}.weight"


def _fields(shape_info: Any) -> dict[str, int]:
    """The integers of a shape information; empty when it is none."""
    names = (
        *("embedding_dim", "input_channels", "image_height", "image_width"),
        *("output_channels", "kernel_height", "kernel_width"),
    )
    fields: dict[str, Any] = {n: shape_info.get(n) for n in names} if isinstance(shape_info, Mapping) else {}
    return fields if all(type(v) is int and v > 0 for v in fields.values()) else {}


def _expected(
    entities: int,
    relations: int,
    *,
    batch_norm: bool,
    embedding_dim: int,
    input_channels: int,
    image_height: int,
    image_width: int,
    output_channels: int,
    kernel_height: int,
    kernel_width: int,
) -> dict[str, tuple[int, ...]]:
    """Shape by name of every tensor that PyKEEN's ConvE of these hyper-parameters has."""
    features = output_channels * (2 * image_height - kernel_height + 1) * (image_width - kernel_width + 1)
    if input_channels * image_height * image_width != embedding_dim:
        features = -1  # no tensor has this shape: the comparison fails
    conv = 2 if batch_norm else 1
    shapes: dict[str, tuple[int, ...]] = {
        ENTITIES: (entities, embedding_dim),
        BIASES: (entities, 1),
        RELATIONS: (relations, embedding_dim),
        f"interaction.hr2d.{conv}.weight": (output_channels, input_channels, kernel_height, kernel_width),
        f"interaction.hr2d.{conv}.bias": (output_channels,),
        LINEAR: (embedding_dim, features),
        "interaction.hr1d.0.bias": (embedding_dim,),
    }
    if batch_norm:
        norms = {"hr2d.0": input_channels, "hr2d.3": output_channels, "hr1d.2": embedding_dim}
        for module, size in norms.items():
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"interaction.{module}.{name}"] = (size,)
            shapes[f"interaction.{module}.num_batches_tracked"] = ()
    return shapes


def _unsupported(source: str, shapes: Shapes, expected: Sequence[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"{source} is not PyKEEN's ConvE: expected {', '.join(expected)}, "
        f"found {_first_few([f'{n} {s}' for n, s in shapes.items()])}"
    )


def _first_few(items: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - _MOST_LISTED} more" if len(items) > _MOST_LISTED else ""
    return ", ".join(items[:_MOST_LISTED]) + more
