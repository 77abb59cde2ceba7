"""ConvE's tensors and forward pass (Dettmers et al., 2018, https://arxiv.org/abs/1707.01476).

In evaluation mode, with batch norm as a fixed affine map and one forward pass for each distinct (h, r)::

    image (C, 2H, W) → bn0 → patches → convolution → bn1 → relu = a (q,) → linear → bn2 → relu = x (d,) → x · e_t + b_t

The last step, the score, is left to the caller. g is the number of distinct (h, r), O that of output channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.pieces import piece_floats
from kgtrace_indexer.transfers import to_device
from kgtrace_store.errors import UnsupportedModel

ENTITY = "entity_representations.0._embeddings.weight"
BIAS = "entity_representations.1._embeddings.weight"
RELATION = "relation_representations.0._embeddings.weight"

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
        self.shift = -self.mean * self.inverse_std
        self.gain = tensor("weight", 1.0)
        self.scale = self.inverse_std * self.gain
        self.bias = tensor("bias", 0.0)


@dataclass(frozen=True, slots=True)
class Grouped:
    """The ids of m samples on the model's device, and their distinct (h, r)."""

    keys: np.ndarray
    """(g,) int64: a number of each distinct (h, r), ascending."""
    pair: tuple[Tensor, Tensor]
    """Distinct heads and relation rows, (g,) int64 each."""
    group: Tensor
    """(m,) int64: each sample's place among them."""
    ids: tuple[Tensor, ...]
    """Heads, relation rows and, where given, tails of the samples, (m,) int64 each."""


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
        self.of_q, self.of_q_sizes = self._of_q()
        self.bn2_shift = (self.linear_bias - self.bn2.mean) * self.bn2.inverse_std
        self.floats = self.linear.shape[1]  # of the widest vector of a loss term
        self.step = max(1, 2 * piece_floats(self.device) // self.linear.shape[1])  # samples computed at a time
        self._last: tuple[np.ndarray, Hidden] | None = None

    def _of_q(self) -> tuple[Tensor, list[int]]:
        """Return the linear map (O · (C·kh·kw + 1), ·) from Q to the gradients of the convolution and bn1.

        The columns are those of the convolution's weight and bias, and of bn1's weight and bias: so many of each.
        """
        channels, width = self.conv.shape
        of_q = self.conv.new_zeros(channels, width, channels, width + 2)
        every = torch.arange(channels, device=self.device)
        of_q[every, :, every, :width] = torch.diag_embed(self.bn1.scale[:, None].expand(-1, width))
        # Σ dy1 · (z1 − mean)/σ, with z1 = conv · patches
        of_q[every, :, every, width] = self.conv * self.bn1.inverse_std[:, None]
        of_q[every, -1, every, width] -= self.bn1.mean * self.bn1.inverse_std
        of_q[every, -1, every, width + 1] = 1.0
        of_q = of_q.flatten(0, 1)  # (O · width, O, width + 2)
        maps = [of_q[:, :, : width - 1], of_q[:, :, width - 1], of_q[:, :, width], of_q[:, :, width + 1]]
        flat = [one.flatten(1) for one in maps]
        return torch.cat(flat, 1), [one.shape[1] for one in flat]

    @property
    def ids_device(self) -> torch.device:
        """The CPU: distinct (h, r) are found there, so that nobody waits for a GPU to count them."""
        return torch.device("cpu")

    def grouped(self, head: Tensor, relation: Tensor, *tail: Tensor) -> Grouped:
        """Find the distinct heads and relation rows of samples (m,), and put all ids on the model's device."""
        ids = [column.cpu().numpy() for column in (head, relation, *tail)]
        keys, group = np.unique(ids[0] * len(self.relations) + ids[1], return_inverse=True)
        columns = [*np.divmod(keys, len(self.relations)), group, *ids]
        placed = to_device(np.concatenate(columns), self.device)  # in one copy
        heads, relations, groups, *samples = placed.split([len(column) for column in columns])
        return Grouped(keys, (heads, relations), groups, tuple(samples))

    def forward(self, at: Grouped) -> Hidden:
        """Run the forward pass for the distinct heads and relation rows; the last small one is remembered."""
        if len(at.keys) > _REMEMBERED:
            return self.compute(*at.pair)
        last = self._last  # which another thread may replace
        if last is None or not np.array_equal(last[0], at.keys):
            self._last = last = at.keys, self.compute(*at.pair)
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
        image = torch.addcmul(self.bn0.shift[:, None, None], image, self.bn0.inverse_std[:, None, None])
        patches = unfold(
            torch.addcmul(self.bn0.bias[:, None, None], image, self.bn0.gain[:, None, None]),
            self.kernel_size,
            ones=True,
        )
        v = self.linear.new_ones(len(head), self.linear.shape[1] + 1)
        for chunk, out in zip(patches.split(self.step), v.split(self.step), strict=True):
            z1 = torch.matmul(self.conv_bn1, chunk)  # (·, O, positions)
            torch.clamp_min(z1.flatten(1), 0, out=out[:, :-1])
        return Convolved(image, patches, v)

    def activate(self, convolved: Convolved, z2: Tensor) -> Hidden:
        """Finish the forward pass, given z2 = W a, (g, d)."""
        normal = torch.addcmul(self.bn2_shift, z2, self.bn2.inverse_std)
        x = torch.addcmul(self.bn2.bias, normal, self.bn2.gain).relu()
        return Hidden(convolved.image, convolved.patches, convolved.v, normal, x)


def unfold(image: Tensor, kernel_size: tuple[int, int], *, ones: bool = False) -> Tensor:
    """Return `torch.nn.functional.unfold` of (g, C, H, W), (g, C·kh·kw, positions); eight times faster on a CPU.

    `ones` adds a row of ones, (g, C·kh·kw + 1, positions).
    """
    windows = image.unfold(2, kernel_size[0], 1).unfold(3, kernel_size[1], 1)  # (g, C, H', W', kh, kw)
    size = windows.shape[1] * kernel_size[0] * kernel_size[1]
    columns = image.new_ones(len(image), size + ones, *windows.shape[2:4])
    columns[:, :size].unflatten(1, (windows.shape[1], *kernel_size)).copy_(windows.permute(0, 1, 4, 5, 2, 3))
    return columns.flatten(2)
