"""The protocol of a search for training triples of large influence, by bounds."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import Terms
from kgtrace_indexer.index.bases import FLOOR, ROUNDING
from kgtrace_indexer.index.rows import RowLists
from kgtrace_indexer.query.certify import SearchOptions, TopK
from kgtrace_indexer.query.total import Total

Brackets = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps training triples (m,) to estimates of their influence and how far these may be off, (m,) each."""


class Retrieval(Protocol):
    """Finds training triples of large influence on one test triple."""

    @property
    def certifies(self) -> bool:
        """Whether answers are certified unless `max_candidates` cuts them short."""

    def find(self, terms: Terms, options: SearchOptions) -> list[TopK]:
        """Return the best training triples with their exact influences, and how much better an unseen one could be."""

    def brackets(self, terms: Terms) -> Brackets | None:
        """Return estimates of the influence on a test triple, or None where only exact influences are of use."""

    def total_brackets(self, total: Total) -> Brackets | None:
        """Return estimates of the influence on many test triples together, or None as above."""

    def bounds(self, terms: Terms, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return an upper, a lower and a tighter upper bound of the influences of training triples (m,), (m,) each."""


def row_brackets(lists: RowLists, total: Total) -> Brackets:
    """Return the influence on many test triples together, whose gradient is of table rows alone."""
    tables = {name: (table.index.cpu().numpy(), table.grad.cpu().numpy()) for name, table in total.tables.items()}

    def exact(rows: Tensor) -> tuple[Tensor, Tensor]:
        influence = torch.from_numpy(lists.against(tables, rows.numpy()))
        return influence, torch.zeros_like(influence)

    return exact


def norm_products(terms: Terms, squared: Tensor) -> Tensor:
    """Return ‖g‖‖g'‖ for squared norms of gradients g and a test triple's g', with slack for rounding."""
    own = squared_norms(terms)[0].cpu()
    return (squared + FLOOR).sqrt() * (own + FLOOR).sqrt() * (1 + ROUNDING)
