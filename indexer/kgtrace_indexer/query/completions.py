"""The model's best completions of (h, r, ·) or (·, r, t)."""

import numpy as np
import torch
from torch import Tensor

from kgtrace_indexer.answers import Completions


def complete(
    triple: np.ndarray, column: int, scores: Tensor, known: np.ndarray, *, top_k: int, filtered: bool
) -> Completions:
    """Return the entities of the highest scores, and their filtered ranks.

    Parameters
    ----------
    triple
        (3,) int64; its `column`, 0 or 2, is to be completed.
    scores
        (E,) of all entities in that place.
    known
        Entities that make a training triple there.
    filtered
        Leave these out.
    """
    scores = scores.cpu()
    is_known = torch.zeros(len(scores), dtype=torch.bool)
    is_known[torch.as_tensor(known.astype(np.int64))] = True
    ranked = scores.argsort(descending=True, stable=True)
    chosen = (ranked[~is_known[ranked]] if filtered else ranked)[:top_k]
    others = -scores[~is_known].sort(descending=True).values  # ascending, as searchsorted wants it
    higher, reached = (torch.searchsorted(others, -scores[chosen], right=right) for right in (False, True))
    equal = reached - higher - (~is_known[chosen]).long()  # others of the same score
    triples = np.repeat(triple[None], len(chosen), 0)
    triples[:, column] = chosen.numpy()
    return Completions(
        triples=triples,
        entities=chosen.numpy(),
        scores=scores[chosen].numpy(),
        ranks=1 + higher.numpy() + equal.numpy() / 2,
        in_training=is_known[chosen].numpy(),
    )
