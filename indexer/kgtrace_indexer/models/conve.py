"""ConvE's scores, and its gradients in closed form.

Every gradient is linear in dℓ/ds. One product for each loss term, Q = Σ_positions dy1 ⊗ patch, is all that is needed of
the convolution's side: the gradients of its weight and bias and of its batch norms are linear images of Q. Equation
numbers refer to ``docs/how-it-works.md``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kgtrace_indexer.gradients.layers import Selection, select_layers
from kgtrace_indexer.gradients.losses import Loss, OneToAll
from kgtrace_indexer.gradients.terms import Kron, Rows, Spread, Terms
from kgtrace_indexer.models.conve_network import BIAS, ENTITY, RELATION, ConvENetwork, Convolved, Hidden, unfold
from kgtrace_indexer.models.factors import Factors


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of all parameters: the gradient of one test triple."""

    test: Terms
    head_use: bool
    """Whether entities change where they are read as heads."""

    def of(self, name: str, like: Tensor) -> Tensor:
        """Return the change of a small parameter of a shape."""
        return self.test.flat[name].sum(0).view_as(like) if name in self.test.flat else torch.zeros_like(like)

    def of_rows(self, table: str, index: Tensor, width: int) -> Tensor:
        """Return the change of rows (m,) of a table, (m, width)."""
        change = torch.zeros(len(index), width, device=index.device)
        for use in self.test.rows.get(table, ()):
            change = change + (index[:, None] == use.index).to(use.grad.dtype) @ use.grad  # (m, k) @ (k, width)
        return change


class ConvE(ConvENetwork):
    """A trained ConvE on a device, as a `ScoringModel`. Raises as `ConvENetwork` does."""

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
        at = self.grouped(head, relation)
        return torch.addmm(self.bias, self.forward(at).x, self.entities.T).index_select(0, at.group)

    def terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: Loss, selection: Selection
    ) -> Terms:
        """Return the gradients of m loss terms (h, r) → t; see `ScoringModel.terms`."""
        at = self.grouped(head, relation, tail)
        head, relation, tail = at.ids
        hidden = self.forward(at)
        x, e = hidden.x.index_select(0, at.group), self.entities.index_select(0, tail)
        bias = self.bias.index_select(0, tail)
        score = torch.baddbmm(bias[:, None, None], x[:, None], e[:, :, None])  # (m, 1, d) @ (m, d, 1)
        value, slope = loss(score[:, 0, 0])
        kron, flat, rows = self._blocks(hidden, at.group, head, relation, x, slope[:, None] * e, selection)
        if ENTITY in selection or BIAS in selection:
            rows[ENTITY] = [Rows(tail, slope[:, None] * _output(x, selection)), *rows.get(ENTITY, [])]
        return Terms(per_triple, value, kron, flat, rows)

    def one_to_all_terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: OneToAll, selection: Selection
    ) -> Terms:
        """Return the gradients of m loss terms of all tails' scores, eq. (7); see `OneToAllModel`."""
        at = self.grouped(head, relation, tail)
        head, relation, tail = at.ids
        hidden = self.forward(at)
        x = hidden.x.index_select(0, at.group)
        value, slopes = loss(hidden.x @ self.entities.T + self.bias, *at.pair, at.group, tail)
        kron, flat, rows = self._blocks(hidden, at.group, head, relation, x, slopes.along(self.entities), selection)
        spread = {}
        if ENTITY in selection or BIAS in selection:
            spread[ENTITY] = Spread(slopes, _output(hidden.x, selection))
        return Terms(per_triple, value, kron, flat, rows, spread)

    def expected_rows(
        self, head: Tensor, relation: Tensor, weights: Tensor, selection: Selection
    ) -> Mapping[str, Sequence[Rows]]:
        """Return the gradients of Σ_e w_e s(h, r, e) in the rows of heads and relations; see `ExpectedScoreModel`."""
        at = self.grouped(head, relation)
        head, relation = at.ids
        hidden = self.forward(at)
        x = hidden.x.index_select(0, at.group)
        _, _, rows = self._blocks(hidden, at.group, head, relation, x, weights @ self.entities, selection)
        return rows

    def factors(self, head: Tensor, relation: Tensor, selection: Selection) -> Factors:
        """Return the factors of the scores of (h, r) → e, for one head and relation row (1,); see `FactoredModel`."""
        at = self.grouped(head, relation)
        head, relation = at.ids
        hidden = self.forward(at)
        own = {ENTITY: _output(hidden.x, selection)[0]} if ENTITY in selection or BIAS in selection else {}
        alive = (hidden.x[0] > 0).nonzero().flatten()  # the others stay 0
        if not len(alive):
            return Factors({}, self.entities[:, alive], own)
        every = torch.zeros_like(alive)
        delta = torch.diag(self.bn2.scale)[alive]
        pieces = [self._to_image(self._to_maps(hidden, g, d)) for g, d in _pieces(self.step, every, delta)]
        at_head, at_relation = (torch.cat(pieces) * self.bn0.scale[:, None, None]).split(self.height, 2)
        rows: dict[str, list[Rows]] = {}
        if RELATION in selection:
            rows[RELATION] = [Rows(relation[every], at_relation.flatten(1))]
        if ENTITY in selection and selection.head_use:
            rows[ENTITY] = [Rows(head[every], F.pad(at_head.flatten(1), (0, 1)))]
        return Factors(rows, self.entities[:, alive], own)

    def influences(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, loss: Loss, selection: Selection, test: Terms
    ) -> Tensor:
        """Return the inner products of m loss terms' gradients, as of `terms`, with that of one test triple, (m,).

        ⟨∇ℓ, g'⟩ is the derivative of ℓ along g', eq. (16), which one forward pass for each distinct (h, r) gives in
        forward mode (Wengert, 1964): no gradient is formed, and loss terms of one (h, r) share almost all of the work.
        """
        at = self.grouped(head, relation, tail)
        group, tail = at.group, at.ids[2]
        change = _Change(test, selection.head_use)
        if self._reaches_input(selection):
            convolved = self.convolve(*at.pair)
            a_change = self._a_change(convolved, *at.pair, change)  # (g, q)
            both = torch.cat([convolved.v[:, :-1], a_change]) @ self.linear.T  # reads the weight once
            z2, z2_change = both.split(len(a_change))  # (g, d) each
            hidden = self.activate(convolved, z2)
        else:
            hidden = self.compute(*at.pair)
            z2_change = torch.zeros_like(hidden.x)
        x_change = self._x_change(hidden, z2_change, change).index_select(0, group)  # (m, d)

        x, e = hidden.x.index_select(0, group), self.entities.index_select(0, tail)
        _, slope = loss((x * e).sum(1) + self.bias[tail])
        row_change = change.of_rows(ENTITY, tail, e.shape[1] + 1)  # (m, d + 1): the tail's row and its bias
        return slope * ((x_change * e + x * row_change[:, :-1]).sum(1) + row_change[:, -1])

    def _a_change(self, convolved: Convolved, head: Tensor, relation: Tensor, change: _Change) -> Tensor:
        """Return the derivative of a along a change of the parameters, (g, q): eq. (17)."""
        width = self.entities.shape[1]
        shape = (len(head), self.channels, self.height, self.width)
        heads = change.of_rows(ENTITY, head, width + 1)[:, :-1] * change.head_use
        image = torch.cat([heads.reshape(shape), change.of_rows(RELATION, relation, width).view(shape)], 2)
        gain = change.of(self.bn0.weight_name, self.bn0.gain)[:, None, None]
        shift = change.of(self.bn0.bias_name, self.bn0.bias)[:, None, None]
        columns = unfold(image * self.bn0.scale[:, None, None] + convolved.image * gain + shift, self.kernel_size)

        weight, bias = self.conv[:, :-1], self.conv[:, -1]
        conv = torch.cat([change.of(self.conv_weight_name, weight), change.of(self.conv_bias_name, bias)[:, None]], 1)
        gain = change.of(self.bn1.weight_name, bias) * self.bn1.inverse_std
        conv = conv * self.bn1.scale[:, None] + self.conv * gain[:, None]
        conv[:, -1] += change.of(self.bn1.bias_name, bias) - self.bn1.mean * gain
        a_change = torch.empty_like(convolved.v[:, :-1])
        chunks = (tensor.split(self.step) for tensor in (convolved.patches, columns, convolved.v, a_change))
        for patches, column, v, out in zip(*chunks, strict=True):
            z1 = torch.matmul(conv, patches) + torch.matmul(self.conv_bn1[:, :-1], column)  # (·, O, positions)
            torch.mul(z1.flatten(1), v[:, :-1].sign(), out=out)
        return a_change

    def _x_change(self, hidden: Hidden, z2_change: Tensor, change: _Change) -> Tensor:
        """Return the derivative of x, (g, d), given that of W a for a fixed W: eq. (17)."""
        z2 = z2_change + change.of(self.linear_bias_name, self.linear_bias)
        if (block := change.test.kron.get(self.linear_weight_name)) is not None:
            v = block.v.index_select(0, block.group)
            z2 = z2 + (hidden.v @ v.T) @ block.u  # (g, q + 1) @ (q + 1, ·) @ (·, d)
        y2 = z2 * self.bn2.scale + hidden.normal * change.of(self.bn2.weight_name, self.bn2.gain)
        return (y2 + change.of(self.bn2.bias_name, self.bn2.bias)) * hidden.x.sign()

    def _reaches_input(self, selection: Selection) -> bool:
        """Return whether a parameter before the linear layer is selected."""
        deeper = {*self.depths[2], *self.depths[3]}
        return bool(deeper & selection.parameters) or (ENTITY in selection and selection.head_use)

    def _blocks(
        self,
        hidden: Hidden,
        group: Tensor,
        head: Tensor,
        relation: Tensor,
        x: Tensor,
        pull: Tensor,
        selection: Selection,
    ) -> tuple[dict[str, Kron], dict[str, Tensor], dict[str, list[Rows]]]:
        """Return all blocks but that of the tail's row, given x of each loss term, (m, d), and dℓ/dx as `pull`."""
        dy2 = _through_relu(pull, x)  # (m, d)
        delta = dy2 * self.bn2.scale
        kron: dict[str, Kron] = {}
        rows: dict[str, list[Rows]] = {}
        flat = {self.bn2.weight_name: dy2 * hidden.normal.index_select(0, group), self.bn2.bias_name: dy2}
        if self.linear_weight_name in selection:  # eq. (3); without the bias the last column of v is 0
            v = hidden.v if self.linear_bias_name in selection else F.pad(hidden.v[:, :-1], (0, 1))
            kron[self.linear_weight_name] = Kron(delta, v, group)
        else:
            flat = {self.linear_bias_name: delta, **flat}
        if self._reaches_input(selection):
            small, head_grad, relation_grad = self._backward(hidden, group, delta)
            flat |= small
            if RELATION in selection:
                rows[RELATION] = [Rows(relation, relation_grad)]
            if ENTITY in selection and selection.head_use:
                rows[ENTITY] = [Rows(head, F.pad(head_grad, (0, 1)))]
        return kron, {name: grad for name, grad in flat.items() if name in selection}, rows

    def _backward(self, hidden: Hidden, group: Tensor, delta: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the gradients of small tensors, and of the head's and the relation's embedding, (m, d) each."""
        chunks = [self._backward_chunk(hidden, g, d) for g, d in _pieces(self.step, group, delta)]
        *small, image = chunks[0] if len(chunks) == 1 else (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
        head, relation = image.split(self.height, 2)  # (m, C, H, W) each
        names = [self.conv_weight_name, self.conv_bias_name, self.bn1.weight_name, self.bn1.bias_name]
        names += [self.bn0.weight_name, self.bn0.bias_name]
        blocks = [*small[0].split(self.of_q_sizes, 1), *small[1:]]
        return dict(zip(names, blocks, strict=True)), head.flatten(1), relation.flatten(1)

    def _backward_chunk(self, hidden: Hidden, group: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return gradients of the convolution and bn1 side by side, of bn0's weight and bias, and of the image."""
        dy1 = self._to_maps(hidden, group, delta)
        q = torch.bmm(dy1, hidden.patches.index_select(0, group).mT)  # (m, O, C·kh·kw + 1)
        image = self._to_image(dy1)
        bn0_weight = torch.einsum("mchw,mchw->mc", image, hidden.image.index_select(0, group))
        return q.flatten(1) @ self.of_q, bn0_weight, image.sum((2, 3)), image * self.bn0.scale[:, None, None]

    def _to_maps(self, hidden: Hidden, group: Tensor, delta: Tensor) -> Tensor:
        """Return the gradient of the convolution's output behind bn1, (m, O, positions), from the linear layer's δ."""
        dy1 = _through_relu(delta @ self.linear, hidden.v.index_select(0, group)[:, :-1])  # (m, d) @ (d, q) -> (m, q)
        return dy1.view(len(group), self.conv.shape[0], -1)

    def _to_image(self, dy1: Tensor) -> Tensor:
        """Return the gradient of the image behind bn0, (m, C, 2H, W)."""
        columns = torch.matmul(self.conv_bn1[:, :-1].T, dy1)  # (m, C·kh·kw, positions)
        return F.fold(columns, (2 * self.height, self.width), self.kernel_size)


def _pieces(step: int, group: Tensor, delta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield groups (m,) and gradients (m, d), `step` at a time."""
    return zip(group.split(step), delta.split(step), strict=True)


def _through_relu(grad: Tensor, output: Tensor) -> Tensor:
    """Return the gradient of relu's input, (m, d), given that of its output and the output itself, (m, d) each."""
    through: Tensor = torch.ops.aten.threshold_backward(grad, output, 0)  # in one operation, as autograd computes it
    return through


def _output(x: Tensor, selection: Selection) -> Tensor:
    """Return the score's gradient with respect to the tail's row and bias, (m, d + 1), for x (m, d): eq. (6)."""
    return F.pad(x if ENTITY in selection else torch.zeros_like(x), (0, 1), value=float(BIAS in selection))
