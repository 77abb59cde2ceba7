"""ConvE (Dettmers et al., 2018, https://arxiv.org/abs/1707.01476): scores, and gradients in closed form.

In evaluation mode, with batch norm as a fixed affine map and one forward pass for each distinct (h, r)::

    image (C, 2H, W) → bn0 → patches → convolution → bn1 → relu = a (q,) → linear → bn2 → relu = x (d,) → x · e_t + b_t

Every gradient is linear in dℓ/ds, and all that is needed of the convolution's side is one product per loss term,
Q = Σ_positions dy1 ⊗ patch, of which its weight, bias and batch-norm gradients are linear images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kgtrace_indexer.layers import Selection, select_layers
from kgtrace_indexer.losses import Loss, OneToAll
from kgtrace_indexer.model_file import ModelFile
from kgtrace_indexer.terms import Kron, Rows, Spread, Terms
from kgtrace_store.errors import UnsupportedModel

ENTITY = "entity_representations.0._embeddings.weight"
BIAS = "entity_representations.1._embeddings.weight"
RELATION = "relation_representations.0._embeddings.weight"

_CHUNK_FLOATS = 1 << 22
"""Size of the widest temporary, (chunk, q) floats: 16 MiB stays near the caches."""


class _Affine:
    """Batch norm with running statistics: y = scale · (z − mean) + bias for each channel; the identity if absent."""

    def __init__(
        self, model: ModelFile, prefix: str | None, size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        def tensor(name: str, default: float) -> Tensor:
            found = None if prefix is None else model.tensors.get(f"{prefix}.{name}")
            return (torch.full((size,), default) if found is None else found).to(device, dtype)

        eps = 0.0 if prefix is None else float(model.modules.get(prefix, {}).get("eps", 1e-5))
        self.weight_name = f"{prefix}.weight"
        self.bias_name = f"{prefix}.bias"
        self.names = [] if prefix is None else [self.weight_name, self.bias_name]
        self.mean = tensor("running_mean", 0.0)
        self.inverse_std = (tensor("running_var", 1.0) + eps).rsqrt()
        self.scale = self.inverse_std * tensor("weight", 1.0)
        self.bias = tensor("bias", 0.0)


@dataclass(frozen=True, slots=True)
class _Hidden:
    """What one forward pass leaves for the distinct (h, r) of a batch."""

    image: Tensor
    """(g, C, 2H, W): normalised input of bn0."""
    patches: Tensor
    """(g, C·kh·kw + 1, positions): convolution patches and a row of ones."""
    a: Tensor
    """(g, q): input of the linear layer."""
    normal: Tensor
    """(g, d): normalised input of bn2."""
    x: Tensor
    """(g, d): what is multiplied with the tail."""


class ConvE:
    """A trained ConvE on a device, as a `ScoringModel`.

    Raises `UnsupportedModel` when the folder holds another interaction or representations with a normaliser.
    """

    def __init__(
        self, model: ModelFile, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        if model.interaction != "ConvE":
            raise UnsupportedModel(f"interaction {model.interaction} is not supported; supported: ConvE")
        for path, attributes in model.modules.items():
            if "_representations." in path and attributes.get("normalizer") is not None:
                raise UnsupportedModel(
                    f"{path} has normalizer {attributes['normalizer']}; only plain embeddings are supported"
                )
        self.device = torch.device(device)
        tensors = {
            name: tensor.to(self.device, dtype) for name, tensor in model.tensors.items() if tensor.is_floating_point()
        }
        self.entities = tensors[ENTITY]  # (E, d)
        self.bias = tensors[BIAS][:, 0]  # (E,)
        self.relations = tensors[RELATION]  # (R or 2R, d)

        conv = next(name for name, t in tensors.items() if name.startswith("interaction.hr2d.") and t.dim() == 4)
        linear = next(name for name, t in tensors.items() if name.startswith("interaction.hr1d.") and t.dim() == 2)
        self.conv_weight_name, self.conv_bias_name = conv, conv.replace("weight", "bias")
        self.linear_weight_name, self.linear_bias_name = linear, linear.replace("weight", "bias")
        weight = tensors[conv]  # (O, C, kh, kw)
        self.kernel_size = (weight.shape[2], weight.shape[3])
        self.conv = torch.cat([weight.flatten(1), tensors[self.conv_bias_name][:, None]], 1)  # (O, C·kh·kw + 1)
        self.linear = tensors[linear]  # (d, q)
        self.linear_bias = tensors[self.linear_bias_name]  # (d,)

        shape = model.modules["interaction"]["shape_info"]
        self.channels, self.height, self.width = (
            shape["input_channels"],
            shape["image_height"],
            shape["image_width"],
        )
        norms = [name.removesuffix(".running_mean") for name in model.tensors if name.endswith("running_mean")]
        conv_module, linear_module = conv.removesuffix(".weight"), linear.removesuffix(".weight")
        first = next((n for n in norms if "hr2d" in n and n < conv_module), None)
        second = next((n for n in norms if "hr2d" in n and n > conv_module), None)
        last = next((n for n in norms if "hr1d" in n and n > linear_module), None)
        self.bn0 = _Affine(model, first, self.channels, self.device, dtype)
        self.bn1 = _Affine(model, second, self.conv.shape[0], self.device, dtype)
        self.bn2 = _Affine(model, last, self.linear.shape[0], self.device, dtype)

    @property
    def depths(self) -> list[list[str]]:
        """Parameter names by module, from the score backwards."""
        return [
            [ENTITY, BIAS],
            [self.linear_weight_name, self.linear_bias_name, *self.bn2.names],
            [self.conv_weight_name, self.conv_bias_name, *self.bn0.names, *self.bn1.names],
            [RELATION],
        ]

    def select(self, layers: Sequence[str]) -> Selection:
        """Resolve ``--layers`` for this model."""
        return select_layers(layers, self.depths)

    def tail_scores(self, head: Tensor, relation: Tensor) -> Tensor:
        """Return the scores of all entities as tail, (m, E), for heads (m,) and relation rows (m,)."""
        return self._forward(head, relation).x @ self.entities.T + self.bias

    def terms(
        self,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        *,
        directions: int,
        loss: Loss,
        selection: Selection,
    ) -> Terms:
        """Return the gradients of m loss terms (h, r) → t.

        Parameters
        ----------
        head, relation, tail
            (m,) int64 each; `relation` holds rows of the relation table.
        directions
            How many consecutive loss terms make up a triple.
        """
        hidden, group, _ = self._hidden(head, relation)
        x, e = hidden.x[group], self.entities[tail]
        value, slope = loss((x * e).sum(1) + self.bias[tail])
        kron, flat, rows = self._blocks(hidden, group, head, relation, slope[:, None] * e, selection)
        if ENTITY in selection or BIAS in selection:
            output = slope[:, None] * self._output(x, selection)  # (m, d + 1): the entity's row and its bias
            rows[ENTITY] = [Rows(tail, output), *rows.get(ENTITY, [])]
        return Terms(directions, value, kron, flat, rows)

    def one_to_all_terms(
        self,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        *,
        directions: int,
        loss: OneToAll,
        selection: Selection,
    ) -> Terms:
        """Return the gradients of m loss terms of all tails' scores; see `OneToAllModel`."""
        hidden, group, pair = self._hidden(head, relation)
        value, slopes = loss(hidden.x @ self.entities.T + self.bias, *pair, group, tail)
        kron, flat, rows = self._blocks(hidden, group, head, relation, slopes.along(self.entities), selection)
        spread = {}
        if ENTITY in selection or BIAS in selection:
            spread[ENTITY] = Spread(slopes, self._output(hidden.x, selection))
        return Terms(directions, value, kron, flat, rows, spread)

    def _hidden(self, head: Tensor, relation: Tensor) -> tuple[_Hidden, Tensor, tuple[Tensor, Tensor]]:
        """Return one forward pass for the distinct (h, r), which of them each sample has, and what they are."""
        pairs, group = torch.unique(head * len(self.relations) + relation, return_inverse=True)
        pair = pairs // len(self.relations), pairs % len(self.relations)
        return self._forward(*pair), group, pair

    def _output(self, x: Tensor, selection: Selection) -> Tensor:
        """Return the score's gradient with respect to the tail's row and bias, (m, d + 1), for x (m, d)."""
        return torch.cat([x * (ENTITY in selection), torch.full_like(x[:, :1], float(BIAS in selection))], 1)

    def _blocks(
        self, hidden: _Hidden, group: Tensor, head: Tensor, relation: Tensor, pull: Tensor, selection: Selection
    ) -> tuple[dict[str, Kron], dict[str, Tensor], dict[str, list[Rows]]]:
        """Return all blocks but that of the tail's row, given dℓ/dx as `pull` (m, d)."""
        dy2 = (hidden.x[group] > 0) * pull  # (m, d)
        delta = dy2 * self.bn2.scale
        kron: dict[str, Kron] = {}
        flat: dict[str, Tensor] = {}
        rows: dict[str, list[Rows]] = {}
        if self.linear_weight_name in selection:
            ones = torch.full_like(hidden.a[:, :1], float(self.linear_bias_name in selection))
            kron[self.linear_weight_name] = Kron(delta, torch.cat([hidden.a, ones], 1), group)
        elif self.linear_bias_name in selection:
            flat[self.linear_bias_name] = delta
        _keep(flat, selection, {self.bn2.weight_name: dy2 * hidden.normal[group], self.bn2.bias_name: dy2})
        deeper = {*self.depths[2], *self.depths[3]}
        if deeper & selection.parameters or (ENTITY in selection and selection.head_use):
            small, head_grad, relation_grad = self._backward(hidden, group, delta)
            _keep(flat, selection, small)
            if RELATION in selection:
                rows[RELATION] = [Rows(relation, relation_grad)]
            if ENTITY in selection and selection.head_use:
                rows[ENTITY] = [Rows(head, F.pad(head_grad, (0, 1)))]
        return kron, flat, rows

    def _forward(self, head: Tensor, relation: Tensor) -> _Hidden:
        step = max(1, _CHUNK_FLOATS // self.linear.shape[1])
        parts = [self._forward_chunk(h, r) for h, r in zip(head.split(step), relation.split(step), strict=True)]
        return (
            parts[0]
            if len(parts) == 1
            else _Hidden(*(torch.cat(field) for field in zip(*map(_fields, parts), strict=True)))
        )

    def _forward_chunk(self, head: Tensor, relation: Tensor) -> _Hidden:
        shape = (-1, self.channels, self.height, self.width)
        image = torch.cat([self.entities[head].view(shape), self.relations[relation].view(shape)], 2)
        image = (image - self.bn0.mean[:, None, None]) * self.bn0.inverse_std[:, None, None]
        weight = (self.bn0.scale / self.bn0.inverse_std)[:, None, None]
        columns = _unfold(image * weight + self.bn0.bias[:, None, None], self.kernel_size)
        patches = torch.cat([columns, torch.ones_like(columns[:, :1])], 1)  # (g, C·kh·kw + 1, positions)
        z1 = torch.matmul(self.conv, patches)  # (g, O, positions)
        shift = (self.bn1.bias - self.bn1.mean * self.bn1.scale)[:, None]
        a = (z1 * self.bn1.scale[:, None]).add_(shift).relu_().flatten(1)
        normal = (a @ self.linear.T + self.linear_bias - self.bn2.mean) * self.bn2.inverse_std
        x = (normal * (self.bn2.scale / self.bn2.inverse_std) + self.bn2.bias).relu()
        return _Hidden(image, patches, a, normal, x)

    def _backward(self, hidden: _Hidden, group: Tensor, delta: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the small tensors' gradients and those of the head's and the relation's embedding, (m, d) each."""
        step = max(1, _CHUNK_FLOATS // self.linear.shape[1])
        parts = [self._backward_chunk(hidden, g, d) for g, d in zip(group.split(step), delta.split(step), strict=True)]
        q, image, bn0_weight, bn0_bias = (torch.cat(field) for field in zip(*parts, strict=True))
        weight_part, total = q[:, :, :-1], q[:, :, -1]  # (m, O, C·kh·kw), (m, O)
        scaled = q * self.bn1.scale[:, None]
        # Σ dy1 · (z1 − mean)/σ, with z1 = conv · patches
        bn1_weight = ((q * self.conv).sum(2) - total * self.bn1.mean) * self.bn1.inverse_std
        small = {
            self.conv_weight_name: scaled[:, :, : weight_part.shape[2]].flatten(1),
            self.conv_bias_name: scaled[:, :, -1],
            self.bn1.weight_name: bn1_weight,
            self.bn1.bias_name: total,
            self.bn0.weight_name: bn0_weight,
            self.bn0.bias_name: bn0_bias,
        }
        head, relation = image.split(self.height, 2)  # (m, C, H, W) each
        return small, head.flatten(1), relation.flatten(1)

    def _backward_chunk(self, hidden: _Hidden, group: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dy1 = delta @ self.linear  # (m, d) @ (d, q) -> (m, q)
        dy1.mul_(hidden.a[group] > 0)
        dy1 = dy1.view(len(group), self.conv.shape[0], -1)  # (m, O, positions)
        q = torch.bmm(dy1, hidden.patches[group].transpose(1, 2))  # (m, O, C·kh·kw + 1)
        columns = torch.matmul((self.conv[:, :-1] * self.bn1.scale[:, None]).T, dy1)  # (m, C·kh·kw, positions)
        image = F.fold(columns, (2 * self.height, self.width), self.kernel_size)  # (m, C, 2H, W)
        bn0_weight = (image * hidden.image[group]).sum((2, 3))
        return q, image * self.bn0.scale[:, None, None], bn0_weight, image.sum((2, 3))


def _unfold(image: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return `torch.nn.functional.unfold` of (g, C, H, W), (g, C·kh·kw, positions); eight times faster on a CPU."""
    windows = image.unfold(2, kernel_size[0], 1).unfold(3, kernel_size[1], 1)  # (g, C, H', W', kh, kw)
    return windows.permute(0, 1, 4, 5, 2, 3).reshape(len(image), -1, windows.shape[2] * windows.shape[3])


def _fields(hidden: _Hidden) -> tuple[Tensor, ...]:
    return hidden.image, hidden.patches, hidden.a, hidden.normal, hidden.x


def _keep(blocks: dict[str, Tensor], selection: Selection, found: Mapping[str, Tensor]) -> None:
    blocks.update({name: grad for name, grad in found.items() if name in selection})
