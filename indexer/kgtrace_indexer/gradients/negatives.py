"""Negatives of training instances, as a function of a seed and the instance alone.

Training draws new negatives in every epoch; an influence needs one fixed draw that is the same in any batch, in any
process, and for training and test triples alike. So negative k of (source, relation, target) comes from a hash of
these, k and the seed, each mixed in by splitmix64 (Steele, Lea and Flood, 2014,
https://doi.org/10.1145/2660193.2660195).

As PyKEEN's `BasicNegativeSampler` does, a negative replaces the source or the target, with equal chance, by any other
entity with equal chance; known triples are not left out. With inverse triples that is done to each direction by itself.
"""

import numpy as np


def corrupted(instances: np.ndarray, count: int, entities: int, seed: int) -> np.ndarray:
    """Return instances (m, 3) int64, each followed by `count` negatives: (m, count + 1, 3) int64.

    Columns are source, relation row and target. With a single entity nothing is replaced.
    """
    state = _mixed(np.full((len(instances), count), seed % 2**64, np.uint64))
    for column in instances.T.astype(np.uint64):
        state = _mixed(state ^ column[:, None])
    state = _mixed(state ^ np.arange(count, dtype=np.uint64))
    side = np.where(state >> np.uint64(63), 2, 0)[:, :, None]  # (m, count, 1): the column replaced
    together = np.repeat(instances[:, None, :].astype(np.int64), count + 1, 1)
    negatives = together[:, 1:]
    if entities > 1:
        drawn = (_mixed(state) % np.uint64(entities - 1)).astype(np.int64)[:, :, None]
        drawn += drawn >= np.take_along_axis(negatives, side, 2)  # any but the one that stood there
        np.put_along_axis(negatives, side, drawn, 2)
    return together


def _mixed(state: np.ndarray) -> np.ndarray:
    """Return splitmix64's next output for each state, uint64."""
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64
        x = state + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
