"""Gradients of any score that reads rows of tables and has a few parameters of its own: one mechanism for all models.

Automatic differentiation gives the gradient of one number. One pass gives the gradients of all loss terms of a batch,
because every tensor that belongs to a single loss term is a leaf of its own:

* the *rows* that it reads are gathered into per-sample leaves (m, width); the sum's gradient with respect to such a
  leaf holds each loss term's own gradient in its own row;
* a *linear layer* that every sample passes once has the gradient δ ⊗ a, of its output's gradient and its input, and
  a *batch norm* the gradients Σ δ x̂ and Σ δ (`kgtrace_indexer.models.layer_calls`);
* of a large parameter in which the score is linear, the caller names the factors of the gradient (`RankOne`);
* the *remaining* small tensors are differentiated sample by sample with `torch.func.vmap`.

Only the score is differentiated; the loss enters by its slope. Models are in evaluation mode: dropout off, batch norm
with its running statistics.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from kgtrace_indexer.gradients.layers import Selection, select_layers
from kgtrace_indexer.gradients.losses import CONTRAST, ONE_TO_ALL, OWN_SCORE, Loss, OneToAll, score_itself
from kgtrace_indexer.gradients.terms import Kron, Rows, Slopes, Spread, Terms, concatenate
from kgtrace_indexer.models.layer_calls import layer_gradients, observe_layers, record_calls, single_calls
from kgtrace_indexer.pieces import chunk_floats
from kgtrace_store.errors import UnsupportedModel

MAX_FLOATS = 1 << 17
"""Most floats that one loss term's gradient of a table row, or of all small parameters together, may have."""

_PROBES = 8
"""Samples that tell whether a score is linear in its tail."""
_LINEAR = 1e-3
"""How far from linear a score may be, in units of the product of norms; float32 errs by about 1e-6."""
_TINY = 1e-12
"""Keeps a scale of zero apart from none."""

Representations = Sequence[Tensor]
"""The representations of a head, a relation or a tail: tensors (…, *shape) with common leading dimensions."""


def _as_stored(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True, slots=True)
class Reading:
    """One representation that the score reads: a row of a table, in the form the score wants."""

    table: str
    """Name of the table's parameter."""
    form: Callable[[Tensor], Tensor] = _as_stored
    """Makes representations (m, *shape) of rows (m, width); differentiable, each row by itself."""


@dataclass(frozen=True, slots=True)
class RankOne:
    """How the score's gradient with respect to a large parameter factors: u ⊗ v, in any order of its elements."""

    u: Callable[[Representations], Tensor]
    """(m, p), of the tails."""
    v: Callable[[Representations, Representations], Tensor]
    """(m, q), of heads and relations: shared by all loss terms with the same."""


class AutogradModel:
    """A score over table rows, as a `ScoringModel`.

    Parameters
    ----------
    tables
        Embedding tables (rows, width) by parameter name.
    head, relation, tail
        The representations that the score reads of each.
    score
        Called as ``score(h, r, t)`` with a list of representations for each; returns a score for each sample. Heads
        and relations may come as (m, 1, *shape) with tails (1, n, *shape); scores are then (m, n). It must compute
        every sample by itself, and call its linear layers and batch norms rather than use their weights.
    frozen
        Parameters that were not trained: they have no gradient.
    factors
        Large parameters of `score` that are no linear layers.
    scratch
        Floats of temporaries for each head and relation, beyond rows and linear layers: bounds the memory of a chunk.

    Raises `UnsupportedModel` for rows of more than `MAX_FLOATS` values, and for batch norms without running statistics.
    """

    def __init__(
        self,
        tables: Mapping[str, Tensor],
        *,
        head: Sequence[Reading],
        relation: Sequence[Reading],
        tail: Sequence[Reading],
        score: nn.Module,
        frozen: frozenset[str] = frozenset(),
        factors: Mapping[str, RankOne] | None = None,
        scratch: int = 0,
    ) -> None:
        self._tables = {name: table.detach() for name, table in tables.items()}
        self._head, self._relation, self._tail = list(head), list(relation), list(tail)
        self._score = score.eval().requires_grad_(False)
        self._frozen = frozen
        self._factors = dict(factors or {})
        self._layers = observe_layers(score)
        for name, module in self._layers.items():
            if not isinstance(module, nn.Linear) and module.running_mean is None:
                raise UnsupportedModel(f"batch norm {name} has no running statistics: it mixes the samples of a batch")
        readings = [*self._head, *self._relation, *self._tail]
        widths = sum(self._tables[reading.table].shape[1] for reading in readings)
        linear = [module for module in self._layers.values() if isinstance(module, nn.Linear)]
        layers = sum(module.in_features + module.out_features for module in linear)
        self._pair_floats = widths + layers
        self._floats = self._pair_floats + scratch
        for reading in readings:
            if (width := self._tables[reading.table].shape[1]) > MAX_FLOATS:
                raise UnsupportedModel(
                    f"{reading.table} has rows of {width} values, more than the {MAX_FLOATS} that can be explained"
                )

    @property
    def device(self) -> torch.device:
        """Where tensors passed in must be, and results are."""
        return next(iter(self._tables.values())).device

    @property
    def depths(self) -> list[list[str]]:
        """Parameter names from the score backwards: tables read as tail; the score's own parameters; all others."""
        tails = [reading.table for reading in self._tail]
        others = [reading.table for reading in [*self._head, *self._relation] if reading.table not in tails]
        groups = [tails, [name for name, _ in self._score.named_parameters()], others]
        trained = [[name for name in dict.fromkeys(group) if name not in self._frozen] for group in groups]
        return [trained[0], trained[2]] if not trained[1] else trained

    def select(self, layers: Sequence[str]) -> Selection:
        """Resolve ``--layers`` for this model."""
        return select_layers(layers, self.depths)

    def tail_scores(self, head: Tensor, relation: Tensor) -> Tensor:
        """Return the scores of all entities as tail, (m, E), for heads (m,) and relation rows (m,)."""
        entities = len(self._tables[self._tail[0].table])
        pairs = max(1, chunk_floats(self.device) // self._pair_floats)  # scores at a time
        step = max(1, min(pairs // entities, chunk_floats(self.device) // self._floats))
        return torch.cat(
            [self._tail_scores(h, r, pairs) for h, r in zip(head.split(step), relation.split(step), strict=True)]
        )

    def head_scores(self, relation: Tensor, tail: Tensor) -> Tensor:
        """Return the scores of all entities as head, (m, E), for relation rows (m,) and tails (m,)."""
        entities = len(self._tables[self._head[0].table])
        pairs = torch.arange(len(tail) * entities, device=self.device)
        scores = []
        for batch in pairs.split(max(1, chunk_floats(self.device) // self._floats)):
            query, head = batch // entities, batch % entities
            slots = ((self._head, head), (self._relation, relation[query]), (self._tail, tail[query]))
            scores.append(self._score(*(self._read(readings, index) for readings, index in slots)))
        return torch.cat(scores).view(len(tail), entities)

    def _tail_scores(self, head: Tensor, relation: Tensor, pairs: int) -> Tensor:
        h, r = (
            [x.unsqueeze(1) for x in self._read(readings, index)]
            for readings, index in ((self._head, head), (self._relation, relation))
        )
        everyone = torch.arange(len(self._tables[self._tail[0].table]), device=self.device)
        return torch.cat(
            [
                self._score(h, r, [x.unsqueeze(0) for x in self._read(self._tail, tails)]).expand(len(head), len(tails))
                for tails in everyone.split(max(1, pairs // max(1, len(head))))
            ],
            1,
        )

    def _read(self, readings: Sequence[Reading], index: Tensor) -> list[Tensor]:
        return [reading.form(self._tables[reading.table][index]) for reading in readings]

    def terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: Loss, selection: Selection
    ) -> Terms:
        """Return the gradients of m loss terms (h, r) → t; see `ScoringModel.terms`.

        Raises `UnsupportedModel` when parameters that are left for `vmap` have more than `MAX_FLOATS` elements.
        """
        triples = max(1, chunk_floats(self.device) // self._floats // per_triple)
        step = triples * per_triple  # the loss compares a triple's scores
        chunk = partial(self._chunk, loss=loss, selection=selection)
        return replace(_chunked(chunk, step, head, relation, tail), per_triple=per_triple)

    def one_to_all_terms(
        self, head: Tensor, relation: Tensor, tail: Tensor, *, per_triple: int, loss: OneToAll, selection: Selection
    ) -> Terms:
        """Return the gradients of m loss terms of all tails' scores; see `OneToAllModel`.

        Raises `UnsupportedModel` where the score is not linear in the tail's rows, and as `terms` does.
        """
        if not self.linear:
            raise UnsupportedModel(
                f"losses over all tails ({', '.join(ONE_TO_ALL)}) need a score that is linear in the tail's embedding, "
                f"and 0 where that is; this model's is not; losses that work: {', '.join([*OWN_SCORE, *CONTRAST])}"
            )
        step = max(1, chunk_floats(self.device) // (self._floats + len(self._tables[self._tail[0].table])))
        chunk = partial(self._one_to_all_chunk, loss=loss, selection=selection)
        return replace(_chunked(chunk, step, head, relation, tail), per_triple=per_triple)

    def expected_rows(
        self, head: Tensor, relation: Tensor, weights: Tensor, selection: Selection
    ) -> Mapping[str, Sequence[Rows]]:
        """Return the gradients of Σ_e w_e s(h, r, e) in the rows of heads and relations; see `ExpectedScoreModel`."""
        uses = [(reading, head, selection.head_use) for reading in self._head]
        uses += [(reading, relation, True) for reading in self._relation]
        with torch.inference_mode(False), torch.enable_grad():
            weights = weights.clone()  # there are no derivatives with inference tensors
            leaves = [self._tables[reading.table][index].requires_grad_() for reading, index, _ in uses]
            readings = [reading for reading, _, _ in uses]
            totals = [torch.zeros_like(leaf) for leaf in leaves]
            for scores, pull in self._weighted_scores(readings, leaves, weights):
                for total, part in zip(
                    totals, torch.autograd.grad(scores, leaves, pull, materialize_grads=True), strict=True
                ):
                    total += part
        rows: dict[str, list[Rows]] = {}
        for (reading, index, counts), total in zip(uses, totals, strict=True):
            if counts and reading.table in selection:
                rows.setdefault(reading.table, []).append(Rows(index, total))
        return rows

    def _weighted_scores(
        self, readings: Sequence[Reading], leaves: Sequence[Tensor], weights: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield scores and their weights, (k,) each, whose weighted sum is Σ_e w_e s(h, r, e) summed over all (m,).

        Heads and relations are `leaves` (m, width) of `readings`. Every score is of a single triple, as in `terms`:
        some scores of many tails at once are the same numbers with other derivatives.
        """
        if self.linear:
            h, r, _ = self._slots([reading.form(leaf) for reading, leaf in zip(readings, leaves, strict=True)])
            t = [reading.form(weights @ self._tables[reading.table]) for reading in self._tail]
            yield self._score(h, r, t), weights.new_ones(len(weights))
            return
        pairs = torch.arange(weights.numel(), device=self.device)
        for batch in pairs.split(max(1, chunk_floats(self.device) // self._floats)):
            query, tail = batch // weights.shape[1], batch % weights.shape[1]
            h, r, _ = self._slots([reading.form(leaf[query]) for reading, leaf in zip(readings, leaves, strict=True)])
            yield self._score(h, r, self._read(self._tail, tail)), weights[query, tail]

    def _one_to_all_chunk(
        self, head: Tensor, relation: Tensor, tail: Tensor, loss: OneToAll, selection: Selection
    ) -> Terms:
        first, group = _distinct(head, relation)
        outputs = self._outputs(head[first], relation[first])  # x: (groups, width) for each reading of the tail
        tables = [self._tables[reading.table] for reading in self._tail]
        scores = torch.stack([x @ table.T for x, table in zip(outputs, tables, strict=True)]).sum(0)  # (groups, E)
        value, slopes = loss(scores, head[first], relation[first], group, tail)
        spread: dict[str, Spread] = {}
        for reading, x in zip(self._tail, outputs, strict=True):
            if reading.table in selection:
                other = spread.get(reading.table)
                spread[reading.table] = Spread(slopes, x if other is None else x + other.x)
        return replace(self._chunk(head, relation, slopes, score_itself, selection), loss=value, spread=spread)

    def _outputs(self, head: Tensor, relation: Tensor) -> list[Tensor]:
        """Return the score's gradients with respect to the tail's rows at 0, (m, width) each."""
        h, r = self._read(self._head, head), self._read(self._relation, relation)
        leaves = [
            torch.zeros(len(head), self._tables[reading.table].shape[1], device=self.device, requires_grad=True)
            for reading in self._tail
        ]
        score = self._score(h, r, [reading.form(leaf) for reading, leaf in zip(self._tail, leaves, strict=True)])
        return list(torch.autograd.grad(score.sum(), leaves, materialize_grads=True))

    @cached_property
    def linear(self) -> bool:
        """Whether the score is 0 at a tail of zeros, and otherwise linear in it, from a few samples."""
        entities = len(self._tables[self._tail[0].table])
        tables = [self._tables[reading.table] for reading in self._relation]
        relations = len(tables[0]) if tables else 1
        probes = torch.arange(_PROBES, device=self.device)
        head, relation = probes * max(1, entities // _PROBES) % entities, probes % relations
        generator = torch.Generator().manual_seed(0)
        rows = []
        for reading in self._tail:
            table = self._tables[reading.table]
            noise = torch.randn(_PROBES, table.shape[1], generator=generator).to(self.device)
            rows.append(noise * (table.std(correction=0) + _TINY))
        with torch.inference_mode(False), torch.enable_grad():
            outputs = self._outputs(head, relation)
        h, r = self._read(self._head, head), self._read(self._relation, relation)
        linear = torch.stack([(x * row).sum(1) for x, row in zip(outputs, rows, strict=True)]).sum(0)
        norms = torch.stack([x.norm(dim=1) * row.norm(dim=1) for x, row in zip(outputs, rows, strict=True)]).sum(0)
        for scale in (0.0, -1.0, 1.0, 1000.0):
            score = self._score(h, r, [reading.form(scale * x) for reading, x in zip(self._tail, rows, strict=True)])
            most = _LINEAR * max(abs(scale), _TINY) * norms + _TINY
            if not bool(((score - scale * linear).abs() <= most).all()):  # NaN, too
                return False
        return True

    def _chunk(self, head: Tensor, relation: Tensor, tail: Tensor | Slopes, loss: Loss, selection: Selection) -> Terms:
        """Return the gradients of m loss terms, each as a triple of its own.

        Their tails are entities (m,), or the pseudo-rows w = Σ u_e row_e of slopes u, eq. (7) of
        ``docs/how-it-works.md``, whose own gradients are left out.
        """
        uses = [(reading, head, selection.head_use) for reading in self._head]
        uses += [(reading, relation, True) for reading in self._relation]
        if isinstance(tail, Slopes):
            pseudo = [tail.along(self._tables[reading.table]) for reading in self._tail]
        else:
            pseudo = []
            uses += [(reading, tail, True) for reading in self._tail]
        gathered = [self._tables[reading.table][index] for reading, index, _ in uses]
        leaves = [rows.detach().requires_grad_() for rows in [*gathered, *pseudo]]
        readings = [*self._head, *self._relation, *self._tail]
        forms = [reading.form(leaf) for reading, leaf in zip(readings, leaves, strict=True)]
        with record_calls() as calls:
            score = self._score(*self._slots(forms))  # (m,)
        value, slope = loss(score.detach())
        layers = single_calls(self._layers, calls, len(head))
        inputs = [*leaves, *(call.output for call in layers.values())]
        grads = torch.autograd.grad(score, inputs, slope, materialize_grads=True)

        rows: dict[str, list[Rows]] = {}
        for (reading, index, counts), leaf in zip(uses, grads, strict=False):
            if counts and reading.table in selection:
                rows.setdefault(reading.table, []).append(Rows(index, leaf))
        kron: dict[str, Kron] = {}
        flat: dict[str, Tensor] = {}
        for (name, call), delta in zip(layers.items(), grads[len(leaves) :], strict=True):
            blocks, small = layer_gradients(name, self._layers[name], call.input.detach(), delta, selection)
            kron |= blocks
            flat |= small
        h, r, t = self._slots([form.detach() for form in forms])
        for name, factor in self._factors.items():
            if name in selection:
                first, group = _distinct(head, relation)
                v = factor.v([x[first] for x in h], [x[first] for x in r])
                kron[name] = Kron(factor.u(t) * slope[:, None], v, group)
        done = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")} | self._factors.keys()
        left = {n: p for n, p in self._score.named_parameters() if n in selection and n not in done}
        flat |= {name: g * slope[:, None] for name, g in self._small(left, h, r, t).items()}
        return Terms(1, value, kron, flat, rows)

    def _small(self, parameters: Mapping[str, Tensor], *slots: Representations) -> dict[str, Tensor]:
        """Return the score's gradients with respect to small parameters, (m, size) each."""
        if (size := sum(p.numel() for p in parameters.values())) > MAX_FLOATS:
            largest = max(parameters, key=lambda name: parameters[name].numel())
            raise UnsupportedModel(
                f"gradients of {largest} {tuple(parameters[largest].shape)} are no short sums of rank-1 terms, and "
                f"{size} values a triple are more than the {MAX_FLOATS} that can be kept; leave it out with --layers"
            )
        if not parameters:
            return {}

        def one(parameters: dict[str, Tensor], *forms: Tensor) -> Tensor:
            score: Tensor = functional_call(self._score, parameters, self._slots([x[None] for x in forms]))
            return score.squeeze(0)

        forms = [form for slot in slots for form in slot]
        detached = {name: p.detach() for name, p in parameters.items()}
        grads = vmap(grad(one), (None, *(0 for _ in forms)))(detached, *forms)
        return {name: g.reshape(len(forms[0]), -1) for name, g in grads.items()}

    def _slots(self, forms: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Split representations into the head's, the relation's and the tail's."""
        first, second = len(self._head), len(self._head) + len(self._relation)
        return list(forms[:first]), list(forms[first:second]), list(forms[second:])


def _chunked(chunk: Callable[..., Terms], step: int, *ids: Tensor) -> Terms:
    """Return the loss terms that `chunk` makes of `step` heads, relations and tails at a time."""
    with torch.inference_mode(False), torch.enable_grad():
        return concatenate([chunk(*batch) for batch in zip(*(column.split(step) for column in ids), strict=True)])


def _distinct(head: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of one sample of each distinct (head, relation), (groups,), and each sample's group, (m,)."""
    pairs, group = torch.unique(torch.stack([head, relation], 1), dim=0, return_inverse=True)
    first = torch.empty(len(pairs), dtype=torch.int64, device=head.device)
    first[group] = torch.arange(len(group), device=head.device)
    return first, group
