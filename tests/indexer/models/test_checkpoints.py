"""Influence summed over checkpoints."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, TripleTable, build, open_index, read_model, read_training_folder
from kgtrace_indexer.building.build import check_input
from kgtrace_indexer.gradients.losses import bce
from kgtrace_indexer.gradients.norms import squared_norms
from kgtrace_indexer.gradients.terms import inner
from kgtrace_indexer.inputs.model_reader import read_checkpoint, with_checkpoints
from kgtrace_indexer.models.checkpoints import Checkpoints, parameter_of
from kgtrace_indexer.models.featurizer import Featurizer
from kgtrace_indexer.models.protocol import scoring_model
from kgtrace_server.cli.demo import train_umls
from kgtrace_store import Vocabulary
from kgtrace_store.errors import BadRequest, UnsupportedModel, VocabularyMismatch
from tests.indexer.oracle import gradient, pykeen_model

RATES = {"checkpoint_0000008.pt": 0.5, "checkpoint_0000016.pt": 0.25}


def test_influence_is_the_weighted_sum_of_autograds(shared) -> None:
    """Σ η_c ⟨g_c, g'_c⟩ with gradients from autograd at each checkpoint; scores are the trained model's."""
    folder = shared / "models" / "conve-codex-s"
    model = read_model(folder)
    _, table = read_training_folder(folder / "training_triples")
    rng = np.random.default_rng(0)
    first, second = (table.ids[rng.choice(len(table.ids), 12)] for _ in range(2))
    second[:6, 0] = first[:6, 0]
    cpu = torch.device("cpu")
    trained = scoring_model(model, cpu)
    parts = [
        (rate, scoring_model(read_checkpoint(folder / "checkpoints" / name, model), cpu))
        for name, rate in RATES.items()
    ]
    together = Checkpoints(trained, parts)
    featurizer = Featurizer(together, bce, together.select(["all"]), "both", inverse_triples=True)
    a, b = featurizer.training_terms(first), featurizer.test_terms(second, "tail")
    oracle = pykeen_model(folder)
    wanted, own = torch.zeros(12), torch.zeros(12)
    for name, rate in RATES.items():
        oracle.load_state_dict(torch.load(folder / "checkpoints" / name, weights_only=False)["state_dict"])
        g = [gradient(oracle, t, ["tail", "head"]) for t in first]
        h = [gradient(oracle, t, ["tail"]) for t in second]
        wanted += rate * torch.stack([x @ y for x, y in zip(g, h, strict=True)])
        own += rate * torch.stack([x @ x for x in g])
    torch.testing.assert_close(inner(a, b).diagonal(), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(squared_norms(a), own, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        featurizer.candidate_scores(first, "tail"),
        trained.tail_scores(*torch.as_tensor(first[:, :2].astype(np.int64) * [1, 2]).T),
    )


def test_blocks_come_apart(umls) -> None:
    """The blocks of one checkpoint after the other, as landmarks are looked at, are those of all together."""
    model, _, table = umls
    trained = scoring_model(model, torch.device("cpu"))
    together = Checkpoints(trained, [(0.5, trained), (1.0, trained), (2.0, trained)])
    featurizer = Featurizer(together, bce, together.select(["all"]), "both", inverse_triples=True)
    wanted, found = featurizer.training_terms(table.ids[:20]), list(featurizer.training_terms_apart(table.ids[:20]))
    assert len(found) == 3
    assert featurizer.block(300) == 100
    assert [name for terms in found for name in terms.kron] == list(wanted.kron)
    assert [table for terms in found for table in terms.rows] == list(wanted.rows)
    torch.testing.assert_close(torch.cat([terms.flat_sum() for terms in found], 1), wanted.flat_sum())
    torch.testing.assert_close(sum(inner(terms, terms) for terms in found), inner(wanted, wanted))


def test_one_checkpoint_of_rate_one_changes_nothing(umls) -> None:
    """The trained model as its only checkpoint gives its own influences."""
    model, _, table = umls
    trained = scoring_model(model, torch.device("cpu"))
    single = Checkpoints(trained, [(1.0, trained)])
    terms = [
        (f.training_terms(table.ids[:20]), f.test_terms(table.ids[20:30], "tail"))
        for f in (Featurizer(m, bce, m.select(["all"]), "both", inverse_triples=True) for m in (trained, single))
    ]
    torch.testing.assert_close(inner(*terms[0]), inner(*terms[1]))


@pytest.mark.parametrize("block", ["hr1d.weight", "hr1d.weight@0", "hr1d.weight@12"])
def test_blocks_know_their_parameter(block: str) -> None:
    """The copies of a parameter at all checkpoints have its name."""
    assert parameter_of(block) == "hr1d.weight"


def test_an_index_of_checkpoints_answers_exactly(umls, umls_folder, tmp_path) -> None:
    """Checkpoints are kept in the generation, and certified answers are the weighted sum's."""
    model, vocabulary, table = umls
    other = tmp_path / "other"
    train_umls(other, epochs=1, embedding_dim=32)
    summed = with_checkpoints(model, [umls_folder, other], [0.5, 2.0])
    assert summed.fingerprint() != model.fingerprint()
    few = TripleTable(table.ids[:400], table.train_index[:400], 0)
    build(
        tmp_path / "index", summed, vocabulary, few, BuildConfig(loss="bce", precondition="none", dim=16, landmarks=200)
    )
    attributor = open_index(tmp_path / "index", device="cpu")
    queries = table.ids[:8].astype(np.int64)
    found = attributor.query(queries).attributions
    for a, b in zip(found, attributor.query(queries, exact=True).attributions, strict=True):
        assert a.certified
        np.testing.assert_allclose(a.influence, b.influence, rtol=1e-4)
    oracles = [(0.5, pykeen_model(umls_folder)), (2.0, pykeen_model(other))]
    best = found[0]
    wanted = sum(
        rate * float(gradient(m, best.triples[0], ["tail", "head"]) @ gradient(m, queries[0], ["tail"]))
        for rate, m in oracles
    )
    assert best.influence[0] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("rates", "message"),
    [([1.0, 1.0, 1.0], "2 checkpoints and 3 learning rates"), ([0.0], "learning rate 0.0 is not a positive number")],
)
def test_wrong_rates_are_refused(umls, umls_folder, rates: list[float], message: str) -> None:
    """Rates that fit no checkpoint are refused with both numbers."""
    with pytest.raises(BadRequest, match=message):
        with_checkpoints(umls[0], [umls_folder, umls_folder], rates)


def test_a_checkpoint_of_another_model_is_refused(umls, tmp_path) -> None:
    """A state of other shapes is no checkpoint of this model."""
    train_umls(tmp_path, epochs=1, embedding_dim=16)
    with pytest.raises(UnsupportedModel, match="is not a checkpoint of"):
        with_checkpoints(umls[0], [tmp_path], [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train TransE and ConvE on Nations; return the folder of their models and training-loop checkpoints."""
    from pykeen import models
    from pykeen.datasets import Nations
    from pykeen.training import LCWATrainingLoop

    out: Path = tmp_path_factory.mktemp("loop")
    for name, options in (("TransE", {}), ("ConvE", {"output_channels": 2})):
        triples = Nations(create_inverse_triples=name == "ConvE").training
        model = getattr(models, name)(triples_factory=triples, random_seed=0, embedding_dim=8, **options)
        loop = LCWATrainingLoop(model=model, triples_factory=triples, optimizer=torch.optim.Adam(model.parameters()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyKEEN's own options
            loop.train(
                triples,
                num_epochs=1,
                checkpoint_directory=str(out),
                checkpoint_name=f"{name}.pt",
                checkpoint_frequency=0,
                use_tqdm=False,
            )
        (out / name).mkdir()
        torch.save(model, out / name / "trained_model.pkl")
        triples.to_path_binary(out / name / "training_triples")
    return out


def test_a_training_loop_checkpoint_is_a_checkpoint(trained: Path) -> None:
    """With NumPy's random state under the highest pickle protocol, as PyKEEN writes it."""
    model = read_model(trained / "TransE")
    checkpoint = read_checkpoint(trained / "TransE.pt", model)
    assert checkpoint.fingerprint() == model.fingerprint()
    assert {noun: len(ids) for noun, ids in checkpoint.label_ids.items()} == {"entities": 14, "relations": 55}
    check_input(with_checkpoints(model, [trained / "TransE.pt"], []), *read_training_folder(_triples(trained)))


def test_a_training_loop_checkpoint_of_conve_is_a_model(trained: Path) -> None:
    """Its relations' labels say how many rows are inverses."""
    model, found = read_model(trained / "ConvE"), read_model(trained / "ConvE.pt")
    assert (found.num_relations, found.inverse_triples) == (55, True)
    assert all((found.tensors[name] == tensor).all() for name, tensor in model.tensors.items())
    check_input(found, *read_training_folder(trained / "ConvE" / "training_triples"))


@pytest.mark.parametrize("noun", ["entities", "relations"])
def test_id_maps_that_contradict_a_checkpoint_are_refused(noun: str, trained: Path) -> None:
    """Ids made anew name the first label that differs, for the model's own file and for checkpoints."""
    vocabulary, table = read_training_folder(_triples(trained))
    labels = {"entities": vocabulary.entities, "relations": vocabulary.relations}
    swapped = Vocabulary(**{**labels, noun: [labels[noun][1], labels[noun][0], *labels[noun][2:]]})
    message = (
        f"records id 0 for '{labels[noun][0]}' of its {noun}, the id map has '{labels[noun][1]}' there "
        + re.escape(f"(2 of {len(labels[noun])} differ)")
    )
    model = with_checkpoints(read_model(trained / "TransE"), [trained / "TransE.pt"], [])
    with pytest.raises(VocabularyMismatch, match=rf"TransE\.pt {message}"):
        check_input(model, swapped, table)
    with pytest.raises(VocabularyMismatch, match=rf"ConvE\.pt {message}"):
        check_input(read_model(trained / "ConvE.pt"), swapped, table)


def _triples(trained: Path) -> Path:
    return trained / "TransE" / "training_triples"
