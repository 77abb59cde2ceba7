"""ConvE's tensors and forward pass (Dettmers et al., 2018, https://arxiv.org/abs/1707.01476).

In evaluation mode, with batch norm as a fixed affine map and one forward pass for each distinct (h, r)::

    image (C, 2H, W) → bn0 → patches → convolution → bn1 → relu = a (q,) → linear → bn2 → relu = x (d,) → x · e_t + b_t

The last step, the score, is left to the caller. g is the number of distinct (h, r), O that of output channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_store.errors import UnsupportedModel

ENTITY = "entity_representations.0._embeddings.weight"
BIAS = "entity_representations.1._embeddings.weight"
RELATION = "relation_representations.0._embeddings.weight"

_CHUNK_FLOATS = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Size of the widest temporary, (chunk, q) floats. On a CPU 8 MiB stay in the caches, and are not given back to the
system; a GPU has room for 1 GiB."""

_REMEMBERED = 256
"""Distinct (h, r) up to which the last forward pass is kept: a query wants the gradients and the scores of the same."""


class BatchNorm:
    """Batch norm with running statistics: y = scale · (z − mean) + bias for each channel; the identity if absent."""

    def __init__(
        self, model: ModelFile, prefix: str | None, size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        def tensor(name: str, default: float) -> Tensor:
            recorded = None if prefix is None else model.tensors.get(f"{prefix}.{name}")
            return (torch.full((size,), default) if recorded is None else recorded).to(device, dtype)

        eps = 0.0 if prefix is None else float(model.modules.get(prefix, {}).get("eps", 1e-5))
        self.weight_name = f"{prefix}.weight"
        self.bias_name = f"{prefix}.bias"
        self.names = [] if prefix is None else [self.weight_name, self.bias_name]
        self.mean = tensor("running_mean", 0.0)
        self.inverse_std = (tensor("running_var", 1.0) + eps).rsqrt()
        self.gain = tensor("weight", 1.0)
        self.scale = self.inverse_std * self.gain
        self.bias = tensor("bias", 0.0)


@dataclass(frozen=True, slots=True)
class Convolved:
    """Values up to the linear layer's input, for the g distinct (h, r) of a batch."""

    image: Tensor
    """(g, C, 2H, W): normalised input of bn0."""
    patches: Tensor
    """(g, C·kh·kw + 1, positions): convolution patches and a row of ones."""
    v: Tensor
    """(g, q + 1): input a of the linear layer, and a last column of ones for its bias."""


@dataclass(frozen=True, slots=True)
class Hidden(Convolved):
    """Values of a whole forward pass."""

    normal: Tensor
    """(g, d): normalised input of bn2."""
    x: Tensor
    """(g, d): the last hidden layer, which is multiplied with the tail's row."""


class ConvENetwork:
    """A trained ConvE's tensors on a device, and its forward pass up to x.

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
        tensors = {name: t.to(self.device, dtype) for name, t in model.tensors.items() if t.is_floating_point()}
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
            shape[name] for name in ("input_channels", "image_height", "image_width")
        )
        norms = [name.removesuffix(".running_mean") for name in model.tensors if name.endswith("running_mean")]
        conv_module, linear_module = conv.removesuffix(".weight"), linear.removesuffix(".weight")
        first = next((n for n in norms if "hr2d" in n and n < conv_module), None)
        second = next((n for n in norms if "hr2d" in n and n > conv_module), None)
        last = next((n for n in norms if "hr1d" in n and n > linear_module), None)
        self.bn0 = BatchNorm(model, first, self.channels, self.device, dtype)
        self.bn1 = BatchNorm(model, second, self.conv.shape[0], self.device, dtype)
        self.bn2 = BatchNorm(model, last, self.linear.shape[0], self.device, dtype)
        self.conv_bn1 = self.conv * self.bn1.scale[:, None]  # the convolution and bn1 together
        self.conv_bn1[:, -1] += self.bn1.bias - self.bn1.mean * self.bn1.scale
        self.step = max(1, _CHUNK_FLOATS[self.device.type] // self.linear.shape[1])  # samples computed at a time
        self._last: tuple[Tensor, Hidden] | None = None

    def distinct(self, head: Tensor, relation: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the distinct heads and relation rows, (g,) each, and each sample's place among them, (m,)."""
        pairs, group = torch.unique(head * len(self.relations) + relation, return_inverse=True)
        return (pairs // len(self.relations), pairs % len(self.relations)), group

    def forward(self, head: Tensor, relation: Tensor) -> Hidden:
        """Run the forward pass for distinct heads and relation rows (g,); the last small one is remembered."""
        if len(head) > _REMEMBERED:
            return self.compute(head, relation)
        pairs, last = torch.stack([head, relation]), self._last  # which another thread may replace
        if last is None or not torch.equal(last[0], pairs):
            self._last = last = pairs, self.compute(head, relation)
        return last[1]

    def compute(self, head: Tensor, relation: Tensor) -> Hidden:
        """Run the forward pass for heads and relation rows (g,)."""
        convolved = self.convolve(head, relation)
        return self.activate(convolved, convolved.v[:, :-1] @ self.linear.T)

    def convolve(self, head: Tensor, relation: Tensor) -> Convolved:
        """Run the forward pass up to the linear layer's input a."""
        shape = (-1, self.channels, self.height, self.width)
        image = torch.cat(
            [self.entities.index_select(0, head).view(shape), self.relations.index_select(0, relation).view(shape)], 2
        )
        image = (image - self.bn0.mean[:, None, None]) * self.bn0.inverse_std[:, None, None]
        columns = unfold(image * self.bn0.gain[:, None, None] + self.bn0.bias[:, None, None], self.kernel_size)
        patches = torch.cat([columns, torch.ones_like(columns[:, :1])], 1)  # (g, C·kh·kw + 1, positions)
        v = self.linear.new_ones(len(head), self.linear.shape[1] + 1)
        for chunk, out in zip(patches.split(self.step), v.split(self.step), strict=True):
            z1 = torch.matmul(self.conv_bn1, chunk)  # (·, O, positions)
            torch.clamp_min(z1.flatten(1), 0, out=out[:, :-1])
        return Convolved(image, patches, v)

    def activate(self, convolved: Convolved, z2: Tensor) -> Hidden:
        """Finish the forward pass, given z2 = W a, (g, d)."""
        normal = (z2 + self.linear_bias - self.bn2.mean) * self.bn2.inverse_std
        x = (normal * self.bn2.gain + self.bn2.bias).relu()
        return Hidden(convolved.image, convolved.patches, convolved.v, normal, x)


def unfold(image: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return `torch.nn.functional.unfold` of (g, C, H, W), (g, C·kh·kw, positions); eight times faster on a CPU."""
    windows = image.unfold(2, kernel_size[0], 1).unfold(3, kernel_size[1], 1)  # (g, C, H', W', kh, kw)
    return windows.permute(0, 1, 4, 5, 2, 3).reshape(len(image), -1, windows.shape[2] * windows.shape[3])
