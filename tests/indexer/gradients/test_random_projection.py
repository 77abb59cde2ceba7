"""Random projections: right on average, and the same everywhere."""

from math import sqrt

import numpy as np
import pytest
import torch

from kgtrace_indexer.gradients.random_projection import RandomProjection, leading
from kgtrace_indexer.gradients.terms import Kron, Rows, Slopes, Spread, Terms, inner
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from kgtrace_indexer.names import Kind
from kgtrace_store.errors import BadRequest

KINDS: list[Kind] = ["gaussian", "sparse"]


@pytest.fixture(scope="module")
def featurizer(umls: tuple) -> Featurizer:
    return featurizer_for(umls[0], {"loss": "bce", "layers": ["all"], "directions": "both"}, torch.device("cpu"))


def _explicit(projection: RandomProjection, block: str, gradient: torch.Tensor) -> torch.Tensor:
    """Project a matrix gradient (p, q) by forming every U_j ⊗ V_j."""
    cpu = torch.device("cpu")
    u = projection.matrix(block, "u", gradient.shape[0], cpu)
    v = projection.matrix(block, "v", gradient.shape[1], cpu)
    matrices = torch.einsum("pj,qj->jpq", u, v)  # (dim, p, q)
    return (matrices * gradient).sum((1, 2)) / sqrt(projection.dim)


@pytest.mark.parametrize("kind", KINDS)
def test_projections_are_those_of_the_matrix_multiplied_out(kind: Kind) -> None:
    """Factored projections equal the inner products of the whole gradient with U_j ⊗ V_j."""
    torch.manual_seed(0)
    u, v, flat, grad = torch.randn(4, 3), torch.randn(2, 5), torch.randn(4, 2), torch.randn(4, 6)
    group, index = torch.tensor([0, 1, 1, 0]), torch.tensor([7, 2, 2, 0])
    base, x, tail, own = torch.randn(2, 8), torch.randn(2, 6), torch.tensor([3, 2, 7, 1]), torch.randn(4)
    spread = {"t": Spread(Slopes(base, group, tail[:, None], own[:, None]), x)}
    terms = Terms(2, torch.zeros(4), {"w": Kron(u, v, group)}, {"b": flat}, {"t": [Rows(index, grad)]}, spread)
    projection = RandomProjection(kind, 9, seed=1)
    slopes = base[group].clone()
    slopes[torch.arange(4), tail] += own
    table = slopes[:, :, None] * x[group][:, None]  # (4, 8, 6)
    table[torch.arange(4), index] += grad
    wanted = torch.stack(
        [
            _explicit(projection, "w", torch.outer(u[i], v[group[i]]))
            + flat[i] @ projection.matrix("b", "g", 2, torch.device("cpu")) / 3
            + _explicit(projection, "t", table[i])
            for i in range(4)
        ]
    )
    torch.testing.assert_close(projection.project(terms), wanted[0::2] + wanted[1::2])


@pytest.mark.parametrize("loss", ["bce", "ce-1vsall"])
@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_unbiased(kind: Kind, loss: str, umls: tuple) -> None:
    """Over many seeds the mean estimate of every influence is the influence, within five standard errors."""
    config = {"loss": loss, "layers": ["all"], "directions": "both"}
    featurizer = featurizer_for(umls[0], config, torch.device("cpu"))
    a, b = featurizer.training_terms(umls[2].ids[:6]), featurizer.test_terms(umls[2].ids[:6], "tail")
    estimates = []
    for seed in range(60):
        projection = RandomProjection(kind, 64, seed)
        estimates.append(projection.project(a) @ projection.project(b).T)
    found = torch.stack(estimates).double()
    error = found.std(0) / sqrt(len(found))
    wanted = inner(a, b)
    assert ((found.mean(0) - wanted).abs() <= 5 * error).all()
    assert (error.diagonal() < 0.1 * wanted.diagonal()).all()  # tight enough to notice a wrong scale


def test_sparse_entries_have_unit_variance() -> None:
    """They are √3 · {−1, 0, +1}, two thirds of them 0."""
    entries = RandomProjection("sparse", 64, 0).matrix("w", "u", 3000, torch.device("cpu"))
    values, counts = entries.unique(return_counts=True)
    torch.testing.assert_close(values, sqrt(3) * torch.tensor([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(counts / counts.sum(), [1 / 6, 2 / 3, 1 / 6], rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_change_projections(kind: Kind, featurizer: Featurizer, umls: tuple) -> None:
    """A triple's projection is the same alone and in a batch, whichever rows were met before, and in a new object."""
    triples = umls[2].ids[:40]
    together = RandomProjection(kind, 32, 3).project(featurizer.training_terms(triples))
    single = RandomProjection(kind, 32, 3)
    alone = torch.cat([single.project(featurizer.training_terms(triples[i : i + 1])) for i in range(39, -1, -1)])
    torch.testing.assert_close(together, alone.flip(0), rtol=1e-4, atol=1e-5)
    other = RandomProjection(kind, 32, 4).project(featurizer.training_terms(triples))
    assert not torch.isclose(together, other).any(1).all()


def test_wide_tables_grow_without_changing() -> None:
    """Columns drawn later leave those drawn before as they are, however the table was met."""
    cpu = torch.device("cpu")
    grown, once = RandomProjection("gaussian", 4, 0), RandomProjection("gaussian", 4, 0)
    first = grown.matrix("t", "u", 10, cpu).clone()
    torch.testing.assert_close(grown.matrix("t", "u", 5000, cpu), once.matrix("t", "u", 5000, cpu), rtol=0, atol=0)
    torch.testing.assert_close(grown.matrix("t", "u", 10, cpu), first, rtol=0, atol=0)
    assert len(torch.unique(once.matrix("t", "u", 5000, cpu), dim=0)) == 5000


@pytest.mark.parametrize("kind", KINDS)
def test_a_projection_contains_the_smaller_ones(kind: Kind, featurizer: Featurizer, umls: tuple) -> None:
    """The leading coordinates, rescaled, are the projection of fewer dimensions with the same seed."""
    terms = featurizer.training_terms(umls[2].ids[:10])
    large = RandomProjection(kind, 96, 5).project(terms)
    small = RandomProjection(kind, 24, 5).project(terms)
    torch.testing.assert_close(leading(large, 24), small, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadRequest, match="a projection of 96 coordinates contains none of 97"):
        leading(large, 97)


def test_wrong_arguments_are_named() -> None:
    """A kind, dimension or seed that cannot be honoured is refused with its value."""
    with pytest.raises(BadRequest, match="projection 'haar' is not one of gaussian, sparse"):
        RandomProjection("haar", 4, 0)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="projection dimension is 0"):
        RandomProjection("sparse", 0, 0)
    with pytest.raises(BadRequest, match="seed is -1"):
        RandomProjection("sparse", 4, -1)
