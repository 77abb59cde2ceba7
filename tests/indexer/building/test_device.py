"""A batch of a build on a GPU: few kernels whatever its size, nothing waited for, and the codes of the CPU."""

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable
from kgtrace_indexer.building.parts import stored
from kgtrace_indexer.index.bases import Bases, fit_bases
from kgtrace_indexer.index.codec import PrincipalCodec
from kgtrace_indexer.models.featurizer import Featurizer, featurizer_for
from kgtrace_store import Vocabulary
from tests.simulated_gpu import simulated_gpu

Umls = tuple[ModelFile, Vocabulary, TripleTable]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
KERNELS = 120


@pytest.fixture(scope="module")
def directions(umls: Umls) -> dict[str, np.ndarray]:
    """Principal directions of a few triples."""
    featurizer, table = _featurizer(umls, CPU), umls[2]
    with torch.inference_mode():
        return fit_bases(featurizer.plain.training_terms_apart(table.ids[:256]), 16).arrays()


def _featurizer(umls: Umls, device: torch.device) -> Featurizer:
    """Return the featurizer of both scores, of all parameters and both directions."""
    return featurizer_for(umls[0], BuildConfig().settings, device, umls[2].ids)


@pytest.mark.parametrize("size", [256, 8192])
def test_a_batch_is_a_few_whole_tensor_operations(umls: Umls, directions: dict[str, np.ndarray], size: int) -> None:
    """All arrays that an index stores of a training triple included; the host waits for the copies of these alone."""
    table = umls[2]
    batch = np.resize(np.arange(len(table.ids)), size)
    on_cpu = stored(
        _featurizer(umls, CPU), PrincipalCodec(Bases.from_arrays(directions, CPU), torch.float16), table, batch
    )
    with simulated_gpu() as gpu:
        featurizer, codec = _featurizer(umls, GPU), PrincipalCodec(Bases.from_arrays(directions, GPU), torch.float16)
        gpu.reset()
        on_gpu = stored(featurizer, codec, table, batch)
        assert gpu.kernels.total() <= KERNELS
        assert gpu.waits == {"synchronize": 1}
    assert on_gpu.keys() == on_cpu.keys()
    for name, array in on_cpu.items():
        assert on_gpu[name].dtype == array.dtype
        np.testing.assert_allclose(on_gpu[name], array, rtol=1e-3, atol=1e-4 * np.abs(array).max(), err_msg=name)
