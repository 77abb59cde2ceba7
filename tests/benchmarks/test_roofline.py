"""The roofline in docs/speed.md is the one that its command computes, from bytes that a build really copies."""

import numpy as np
import torch
from benchmarks.roofline import PAGE, Machine, Shapes, Stage, tables

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable
from kgtrace_indexer.building.parts import stored
from kgtrace_indexer.index.bases import fit_bases
from kgtrace_indexer.index.codec import PrincipalCodec
from kgtrace_indexer.models.conve import ConvE
from kgtrace_indexer.models.featurizer import featurizer_for
from kgtrace_store import Vocabulary


def test_the_page_has_the_table() -> None:
    assert tables(Shapes(), Machine()) in PAGE.read_text()


def test_bytes_over_the_bus_are_those_of_a_build(umls: tuple[ModelFile, Vocabulary, TripleTable]) -> None:
    """All arrays of a training triple, but for its ids, which the CPU has."""
    model, _, table = umls
    featurizer = featurizer_for(model, BuildConfig().settings, torch.device("cpu"), table.ids)
    network = featurizer.model
    assert isinstance(network, ConvE)
    with torch.inference_mode():
        bases = fit_bases(featurizer.plain.training_terms_apart(table.ids[:512]), 16)
    one = stored(featurizer, PrincipalCodec(bases, torch.float16), table, np.arange(1))
    copied = sum(array.nbytes for name, array in one.items() if name not in ("triples", "train_index"))
    channels, patch = network.conv.shape
    shapes = Shapes(
        width=network.entities.shape[1],
        outputs=network.floats,
        channels=channels,
        patch=patch,
        dim=16,
        v_dims=min(64, network.floats),
    )
    assert shapes.stored == copied


def test_the_slowest_of_memory_cores_and_bus_decides() -> None:
    machine = Machine(memory=10.0, float32=100.0, bus=1.0)
    assert Stage("memory", 50.0, 100.0, 2.0).seconds(machine) == 5.0
    assert Stage("cores", 10.0, 300.0, 2.0).seconds(machine) == 3.0
    assert Stage("bus", 10.0, 100.0, 4.0).seconds(machine) == 4.0
