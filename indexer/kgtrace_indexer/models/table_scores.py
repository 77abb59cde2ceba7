"""Scores of models of other frameworks, which read nothing but rows of tables.

A reader in `kgtrace_indexer.inputs.frameworks` records which tables a score reads, and the numbers that a framework
chose for its version of it. A complex row is two rows, real and imaginary part, or one whose halves they are.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgtrace_indexer.inputs.frameworks.described import SCORE
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.models.autograd import AutogradModel, Reading, Representations
from kgtrace_indexer.models.pykeen import frozen_parameters
from kgtrace_store.errors import UnsupportedModel


def _complex(rows: Representations) -> tuple[Tensor, Tensor]:
    """Return real and imaginary parts, (..., d) each."""
    real, imaginary = rows if len(rows) == 2 else rows[0].chunk(2, dim=-1)
    return real, imaginary


def _unit(x: Tensor, p: float | None) -> Tensor:
    """Divide rows by their p-norm; leave them as they are if there is no p."""
    return x if p is None else F.normalize(x, p=p, dim=-1)


class Translation(nn.Module):
    """s = margin − ‖h + r − t + eps‖_p ^ power (Bordes et al., 2013).

    With `entity_norm` heads and tails, with `relation_norm` relations are divided by that norm of theirs before.
    """

    def __init__(
        self,
        p: float,
        power: float = 1.0,
        margin: float = 0.0,
        eps: float = 0.0,
        entity_norm: float | None = None,
        relation_norm: float | None = None,
    ) -> None:
        super().__init__()
        self.p, self.power, self.margin, self.eps = p, power, margin, eps
        self.entity_norm, self.relation_norm = entity_norm, relation_norm

    def forward(self, h: Representations, r: Representations, t: Representations) -> Tensor:
        """Return scores of heads, relations and tails (..., d)."""
        head, tail = _unit(h[0], self.entity_norm), _unit(t[0], self.entity_norm)
        difference = head + _unit(r[0], self.relation_norm) - tail + self.eps
        if self.power == self.p:  # no root, whose slope at 0 is infinite
            distance = difference.abs().pow(self.p).sum(-1)
        else:
            distance = torch.linalg.vector_norm(difference, self.p, dim=-1) ** self.power
        return self.margin - distance


class DistMult(nn.Module):
    """s = Σ h r t (Yang et al., 2015); with `entity_norm` heads and tails are divided by that norm of theirs."""

    def __init__(self, entity_norm: float | None = None) -> None:
        super().__init__()
        self.entity_norm = entity_norm

    def forward(self, h: Representations, r: Representations, t: Representations) -> Tensor:
        """Return scores of heads, relations and tails (..., d)."""
        return (_unit(h[0], self.entity_norm) * r[0] * _unit(t[0], self.entity_norm)).sum(-1)


class ComplEx(nn.Module):
    """s = Re Σ h r t̄ (Trouillon et al., 2016)."""

    def forward(self, h: Representations, r: Representations, t: Representations) -> Tensor:
        """Return scores of complex heads, relations and tails (..., d)."""
        (h_re, h_im), (r_re, r_im), (t_re, t_im) = map(_complex, (h, r, t))
        return ((h_re * r_re - h_im * r_im) * t_re + (h_re * r_im + h_im * r_re) * t_im).sum(-1)


class Rotation(nn.Module):
    """s = margin − ‖ |h exp(i r π / phase) − t + eps| ‖_p (Sun et al., 2019).

    `phase` is the angle that stands for half a turn; `eps` is added to real and imaginary parts.
    """

    def __init__(self, p: float, margin: float = 0.0, phase: float = math.pi, eps: float = 0.0) -> None:
        super().__init__()
        self.p, self.margin, self.scale, self.eps = p, margin, math.pi / phase, eps

    def forward(self, h: Representations, r: Representations, t: Representations) -> Tensor:
        """Return scores of complex heads and tails and of angles (..., d)."""
        (h_re, h_im), (t_re, t_im) = _complex(h), _complex(t)
        angle = r[0] * self.scale
        cos, sin = angle.cos(), angle.sin()
        real, imaginary = h_re * cos - h_im * sin - t_re, h_re * sin + h_im * cos - t_im
        moduli = torch.complex(real + self.eps, imaginary + self.eps).abs()  # (..., d), with slope 0 at 0
        distance: Tensor = torch.linalg.vector_norm(moduli, self.p, dim=-1)
        return self.margin - distance


class ComplexTranslation(nn.Module):
    """s = −‖ |h r − t| ‖_p, of RotatE where relations are complex numbers that training keeps at modulus 1."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, h: Representations, r: Representations, t: Representations) -> Tensor:
        """Return scores of complex heads, relations and tails (..., d)."""
        head, relation, tail = (torch.complex(*_complex(rows)) for rows in (h, r, t))
        distance: Tensor = torch.linalg.vector_norm((head * relation - tail).abs(), self.p, dim=-1)
        return -distance


class Bilinear(nn.Module):
    """s = hᵀ R t, R (d, d) being the relation's row (Nickel et al., 2011); `entity_norm` as in `DistMult`."""

    def __init__(self, entity_norm: float | None = None) -> None:
        super().__init__()
        self.entity_norm = entity_norm

    def forward(self, h: Representations, r: Representations, t: Representations) -> Tensor:
        """Return scores of heads and tails (..., d) and relations (..., d·d)."""
        head, tail = _unit(h[0], self.entity_norm), _unit(t[0], self.entity_norm)
        matrix = r[0].unflatten(-1, (head.shape[-1], head.shape[-1]))
        score: Tensor = ((head[..., None, :] @ matrix)[..., 0, :] * tail).sum(-1)  # (..., 1, d) @ (..., d, d)
        return score


SCORES: Mapping[str, Callable[..., nn.Module]] = {
    score.__name__: score for score in (Translation, DistMult, ComplEx, Rotation, ComplexTranslation, Bilinear)
}
"""Scores by the name that readers record."""


def table_score_model(model: ModelFile, device: torch.device) -> AutogradModel:
    """Put the model of another framework on a device; raise `UnsupportedModel` where the file does not describe it."""
    recorded: dict[str, Any] = dict(model.modules[SCORE])
    name, entity, relation = (recorded.pop(key, None) for key in ("class", "entity", "relation"))
    tables = [*(entity or ()), *(relation or ())]
    if name not in SCORES or not entity or not relation or not all(table in model.tensors for table in tables):
        raise UnsupportedModel(f"{model.source} does not say which tables {model.interaction} reads: convert it again")
    readings = [Reading(table) for table in entity]
    return AutogradModel(
        {table: model.tensors[table].to(device) for table in tables},
        head=readings,
        relation=[Reading(table) for table in relation],
        tail=readings,
        score=SCORES[name](**recorded),
        frozen=frozen_parameters(model),
    )
