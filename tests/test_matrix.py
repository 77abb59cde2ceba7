"""Options crossed with each other: every pair of values of any two of them is built, gated, asked and compared.

`ARRAY` is a covering array of the combinations that kgtrace takes; those that it refuses are in `REFUSED`, with the
error that says so. Oracles are the full scan, and gradients from PyTorch's autograd on PyKEEN's own modules.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from kgtrace_indexer import (
    Attributor,
    BuildConfig,
    ModelFile,
    Restriction,
    TripleTable,
    append,
    build,
    open_index,
)
from kgtrace_indexer.building.workers import Encoder, Task
from kgtrace_indexer.gradients.losses import ONE_TO_ALL
from kgtrace_indexer.gradients.negatives import corrupted
from kgtrace_indexer.models.checkpoints import checkpoint_of, parameter_of
from kgtrace_indexer.models.conve_network import BIAS, ENTITY
from kgtrace_store import Vocabulary
from kgtrace_store.errors import BadRequest, KgtraceError, MissingInverseRelations, UnsupportedModel
from tests.indexer.models.zoo import ZOO, Saved, factory, round_trip, stir
from tests.simulated_gpu import simulated_gpu

MODELS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "ConvE": ("ConvE", True, {}),
    "TransE-wide": ("TransE", True, {"embedding_dim": 300}),
    "DistMult-wide": ("DistMult", True, {"embedding_dim": 300}),
    "ComplEx": ("ComplEx", False, {}),
    "RotatE": ("RotatE", True, {}),
    "TuckER": ("TuckER", False, {}),
    "ERMLP": ("ERMLP", True, {}),
}
"""PyKEEN's class, whether with inverse triples, and what it is made with. Rows of 300 numbers are wide."""

OPTIONS: dict[str, Sequence[Any]] = {
    "model": list(MODELS),
    "loss": [None, "removal", "bce", "ce-1vsall", "bce-kvsall", "nssa"],
    "checkpoints": [0, 1, 2],
    "directions": [None, "forward"],
    "layers": ["all", "last:1", "*relation*"],
    "projection": ["pca", "gaussian", "sparse", "none"],
    "landmarks": [40, 1],
    "sample": [(1.0, None), (0.7, None), (0.7, "relation")],
    "shard_size": [None, 13],
    "workers": [False, True],
    "appended": [False, True],
    "device": ["cpu", "cuda", "full cuda"],
    "dtype": ["float16", "float32"],
    "precondition": [None, "none"],
    "damping": [None, 0.05, 30.0],
    "asked": [
        ("tracin", None, "logit"),
        ("preconditioned", None, "logit"),
        ("preconditioned", "auto", "probability"),
        ("preconditioned", 2.0, "logit"),
    ],
    "order": ["proponents", "opponents", "absolute"],
    "explained": ["tail", "head"],
    "among": [None, "relation", "neighbourhood"],
}
"""Every option and its values; the first is the default."""

RATES = (0.5, 2.0)
RELATION = 27
"""Of the training triples that a filter lets through."""
RESTRICTIONS = {
    None: Restriction(),
    "relation": Restriction(must={"relation": {RELATION}}),
    "neighbourhood": Restriction(within_hops=2),
}
TRIPLES, NEW, TOP_K = 26, 6, 5

Case = Mapping[str, Any]


ALONE = ("model", "loss", "checkpoints", "directions", "landmarks")

LOSS_OPTIONS: dict[str, dict[str, Any]] = {"nssa": {"negatives": 2}, "ce-1vsall": {"label_smoothing": 0.1}}

DEFAULTS: Case = {name: values[0] for name, values in OPTIONS.items()}

_NOT_LINEAR = ["TransE-wide", "RotatE", "ERMLP"]
_PRECONDITIONED = OPTIONS["asked"][1:]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Values of two options that do not go together."""

    values: Mapping[str, Sequence[Any]]
    error: type[KgtraceError]
    words: str

    def cases(self) -> Iterator[Case]:
        """Yield the pairs, everything else being the default."""
        for pair in product(*self.values.values()):
            yield {**DEFAULTS, **dict(zip(self.values, pair, strict=True))}


REFUSED = [
    Refusal({"model": _NOT_LINEAR, "loss": ONE_TO_ALL}, UnsupportedModel, "linear in the tail's embedding"),
    Refusal({"projection": ["none"], "shard_size": [13]}, BadRequest, "shard_size splits what a search reads"),
    Refusal({"loss": ["bce-kvsall"], "appended": [True]}, BadRequest, "has loss bce-kvsall"),
    Refusal({"loss": ONE_TO_ALL, "asked": _PRECONDITIONED}, BadRequest, "a loss of single tails"),
    Refusal({"projection": ["gaussian", "sparse", "none"], "asked": _PRECONDITIONED}, BadRequest, "projection pca"),
]


def taken(case: Case) -> bool:
    """Return whether kgtrace takes these options, some or all, together."""
    return not any(
        all(name in case and case[name] in values for name, values in refusal.values.items()) for refusal in REFUSED
    )


def array(seed: int) -> list[Case]:
    """Return cases that hold every pair of values that is taken; another seed pairs them in other cases.

    The first cases are the defaults but for one value of `ALONE`, so that what a pair breaks only where everything else
    is the default shows, too. Each further case is the best of some that are filled greedily, as AETG does (Cohen et
    al., 1997, https://doi.org/10.1109/32.605761).
    """
    rng = np.random.default_rng(seed)
    pairs = [  # in an order that every process has: that of sets differs
        frozenset({(first, one), (second, other)})
        for first, second in combinations(OPTIONS, 2)
        for one, other in product(OPTIONS[first], OPTIONS[second])
        if taken({first: one, second: other})
    ]
    left = set(pairs)
    cases: list[Case] = [DEFAULTS, *({**DEFAULTS, name: value} for name in ALONE for value in OPTIONS[name][1:])]
    for case in cases:
        left -= _pairs(case)
    while left:
        start = dict(next(pair for pair in pairs if pair in left))
        tries = [_filled(start, left, rng) for _ in range(5)]
        cases.append(max(tries, key=lambda case: len(left & _pairs(case))))
        left -= _pairs(cases[-1])
    return cases


def _filled(start: Case, left: Set[frozenset[Any]], rng: np.random.Generator) -> Case:
    case = dict(start)
    for name in rng.permutation([name for name in OPTIONS if name not in case]).tolist():
        values = [OPTIONS[name][i] for i in rng.permutation(len(OPTIONS[name]))]
        new = [{**case, name: value} for value in values if taken({**case, name: value})]
        case = max(new, key=lambda each: sum(frozenset({(name, each[name]), other}) in left for other in case.items()))
    return case


def _pairs(case: Case) -> set[frozenset[Any]]:
    return {frozenset(pair) for pair in combinations(case.items(), 2)}


def named(case: Case) -> str:
    """Return a case as the name of a test: the values that are not the defaults."""
    other = {name: value for name, value in case.items() if value != DEFAULTS[name]}
    return ",".join(f"{name}={other[name]}" for name in OPTIONS if name in other).replace(" ", "") or "defaults"


def test_every_pair_is_in_the_array() -> None:
    """Of the pairs of values that are taken."""
    cases = array(0)
    assert all(map(taken, cases))
    for first, second in combinations(OPTIONS, 2):
        held = {(repr(case[first]), repr(case[second])) for case in cases}
        for one, other in product(OPTIONS[first], OPTIONS[second]):
            assert ((repr(one), repr(other)) in held) == taken({first: one, second: other}), (first, one, second, other)


class InProcess:
    """Workers without processes: what one computes is another's from a pickled task, part by part."""

    def encode(self, task: Task, parts: Sequence[range]) -> Iterator[tuple[range, str]]:
        """Encode each part by a worker of its own."""
        for part in parts:
            yield part, Encoder(pickle.loads(pickle.dumps(task))).encode(part)


@cache
def original(model: str, seed: int) -> Any:
    """Return a random model of PyKEEN's; seeds are states of one model."""
    import pykeen.models

    name, inverse, options = MODELS[model]
    made = getattr(pykeen.models, name)(triples_factory=factory(inverse), random_seed=seed, **{**ZOO[name], **options})
    stir(made)
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Save a model in one of its states, and read it back, once each."""

    @cache
    def saved(model: str, seed: int) -> Saved:
        return round_trip(original(model, seed), tmp_path_factory.mktemp("model"))

    return saved


@pytest.fixture(scope="module")
def triples() -> np.ndarray:
    """Triples of Nations, two of which are loops, (TRIPLES + NEW, 3)."""
    ids = factory(False).mapped_triples.numpy()
    chosen = ids[np.random.default_rng(0).choice(len(ids), TRIPLES + NEW, replace=False)].copy()
    chosen[[1, TRIPLES], 2] = chosen[[1, TRIPLES], 0]
    return np.unique(chosen, axis=0)[np.random.default_rng(1).permutation(len(np.unique(chosen, axis=0)))]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """Labels that are not ids."""
    made = factory(False)
    return Vocabulary([f"e{i}" for i in range(made.num_entities)], [f"r{i}" for i in range(made.num_relations)])


class Oracle:
    """Gradients of a case from autograd, all parameters (or those that count) of all checkpoints in one vector."""

    _computed: ClassVar[dict[tuple[Any, ...], dict[str, Tensor]]] = {}
    """Gradients by parameter, of a state of a model (`saved` keeps it), a loss, a triple and directions."""

    def __init__(self, case: Case, states: Sequence[tuple[float, Saved]], known: np.ndarray, names: set[str]) -> None:
        self.losses = {"tracin": case["loss"] or "bce", "preconditioned": case["loss"] or "removal"}
        self.states, self.names = states, names
        self.both = case["directions"] is None and states[0][1].model.inverse_triples
        self.known = known

    def training(self, triples: np.ndarray, score: str) -> Tensor:
        """Return the gradients of training triples, (n, parameters) float64."""
        return torch.stack([self._gradient(t, ["tail", "head"] if self.both else ["tail"], score) for t in triples])

    def tests(self, triples: np.ndarray, direction: str, score: str) -> Tensor:
        """Return those of test triples, of one direction alone."""
        return torch.stack([self._gradient(triple, [direction], score) for triple in triples])

    def rows(self, gradients: Tensor, table: str) -> Tensor:
        """Return the part (n, rows, numbers) of gradients that is a checkpoint's table, ConvE's bias with its row."""
        at, found = 0, {}
        for i, (_, saved) in enumerate(self.states):
            for name, parameter in saved.original.named_parameters():
                part = gradients[:, at : at + parameter.numel()]
                found[i, name] = part.view(len(gradients), len(parameter), -1) if parameter.ndim else part
                at += parameter.numel()
        own, name = checkpoint_of(table), parameter_of(table)
        rows = found[own, name]
        return torch.cat([rows, found[own, BIAS]], 2) if name == ENTITY and (own, BIAS) in found else rows

    def _gradient(self, triple: np.ndarray, directions: Sequence[str], score: str) -> Tensor:
        parts, loss = [], self.losses[score]
        for rate, saved in self.states:
            key = (id(saved), loss, *triple.tolist(), *directions)
            if key not in self._computed:
                saved.original.zero_grad()
                torch.stack(
                    [self._value(saved, saved._ids(triple, each), loss) for each in directions]
                ).sum().backward()
                self._computed[key] = {
                    name: torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().clone()
                    for name, p in saved.original.named_parameters()
                }
            for name, grad in self._computed[key].items():
                parts.append(rate**0.5 * (grad if name in self.names else torch.zeros_like(grad)))
        return torch.cat(parts).double()

    def _value(self, saved: Saved, instance: list[int], loss: str) -> Tensor:
        from pykeen import losses

        model = saved.original
        if loss in ("removal", "bce"):
            (score,) = model.score_hrt(torch.tensor([instance])).flatten()
            return -score if loss == "removal" else softplus(-score)
        if loss == "nssa":
            ids = corrupted(np.array([instance]), LOSS_OPTIONS["nssa"]["negatives"], model.num_entities, seed=0)[0]
            scores = model.score_hrt(torch.as_tensor(ids)).view(1, -1)
            trained = saved.model.loss
            options = {}
            if trained.get("class") == "NSSALoss":
                options = {
                    "margin": trained["margin"],
                    "adversarial_temperature": trained["inverse_softmax_temperature"],
                }
            return losses.NSSALoss(**options).process_slcwa_scores(scores[:, :1], scores[:, 1:])
        source, row, target = instance
        ids = torch.tensor([[source, row, entity] for entity in range(model.num_entities)])
        labels = torch.zeros(1, len(ids))
        labels[0, [target, *(self._tails(saved, source, row) if loss == "bce-kvsall" else [])]] = 1
        kind = losses.CrossEntropyLoss if loss == "ce-1vsall" else losses.BCEWithLogitsLoss
        smoothing = LOSS_OPTIONS.get(loss, {}).get("label_smoothing", 0.0)
        scores = model.score_hrt(ids).view(1, -1)
        return kind().process_lcwa_scores(scores, labels, label_smoothing=smoothing, num_entities=len(ids))

    def _tails(self, saved: Saved, source: int, row: int) -> list[int]:
        inverse = saved.model.inverse_triples
        relation, turned = divmod(row, 2) if inverse else (row, 0)
        of, at = (2, 0) if turned else (0, 2)
        return [int(t[at]) for t in self.known if t[1] == relation and t[of] == source]


def built(
    case: Case,
    root: Path,
    states: Sequence[tuple[float, Saved]],
    model: ModelFile,
    triples: np.ndarray,
    vocabulary: Vocabulary,
) -> Attributor:
    """Build an index, which passes the gate, perhaps extend it, and open it."""
    rate, stratify_by = case["sample"]
    config = BuildConfig(
        **{name: case[name] for name in (
            "loss", "directions", "projection", "landmarks", "shard_size", "dtype", "precondition", "damping",
        )},
        **LOSS_OPTIONS.get(case["loss"], {}),
        layers=(case["layers"],), sample_rate=rate, stratify_by=stratify_by, dim=6, batch_size=11,
        device=case["device"].split()[-1],
    )  # fmt: skip
    if case["checkpoints"]:
        model = replace(model, checkpoints=tuple((rate, saved.model) for rate, saved in states))
    old = triples[:TRIPLES] if case["appended"] else triples
    table = TripleTable(old.astype(np.int32), np.arange(len(old)), 0)
    build(root, model, vocabulary, table, config, workers=InProcess() if case["workers"] else None)
    if case["appended"]:
        lines = [(vocabulary.entities[h], vocabulary.relations[r], vocabulary.entities[t]) for h, r, t in triples]
        (root / "all.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
        append(root, root / "all.tsv", device=config.device)
    return open_index(root, device=config.device)


def _allowed(among: str | None, test: np.ndarray, indexed: np.ndarray, triples: np.ndarray) -> np.ndarray:
    """Return which of the indexed triples may be named, (n,) bool."""
    if among == "relation":
        return indexed[:, 1] == RELATION
    if among == "neighbourhood":
        ends = set(test[[0, 2]].tolist())
        near = ends | {e for h, _, t in triples.tolist() if {h, t} & ends for e in (h, t)}
        return np.array([h in near or t in near for h, _, t in indexed.tolist()])
    return np.ones(len(indexed), bool)


def check(case: Case, root: Path, saved: Any, triples: np.ndarray, vocabulary: Vocabulary) -> None:
    """Compare all that an index of a case says with the full scan and with dense autograd."""
    if case["device"] == "cpu":
        _check(case, root, saved, triples, vocabulary)
        return
    free = 0 if "full" in case["device"] else 1 << 37
    real = patch.object(torch.cuda, "mem_get_info", lambda device=None: (free, free))
    with real if torch.cuda.is_available() else simulated_gpu(free):
        _check(case, root, saved, triples, vocabulary)


def _check(case: Case, root: Path, saved: Any, triples: np.ndarray, vocabulary: Vocabulary) -> None:
    trained = saved(case["model"], 0)
    states = [(rate, saved(case["model"], 1 + i)) for i, rate in enumerate(RATES[: case["checkpoints"]])]
    states = states or [(1.0, trained)]
    attributor = built(case, root, states, trained.model, triples, vocabulary)
    indexed = np.asarray(attributor.training.triples, np.int64)
    assert len(indexed) == (len(triples) if case["sample"][0] == 1 else pytest.approx(0.7 * len(triples), abs=12))
    tests = np.concatenate([indexed[:2], [[3, 5, 9], [7, 2, 7]]])
    (score, damping, outcome), order = case["asked"], case["order"]
    direction, inverse = case["explained"], trained.model.inverse_triples
    if direction == "head" and not inverse and (case["loss"] in ONE_TO_ALL or outcome == "probability"):
        with pytest.raises(MissingInverseRelations):
            attributor.query(tests, direction="head", score=score, damping=damping, outcome=outcome)
        direction = "tail"
    asked: dict[str, Any] = {"direction": direction, "score": score, "damping": damping, "outcome": outcome}
    options = {**asked, "top_k": TOP_K, "order": order, "restriction": RESTRICTIONS[case["among"]]}

    every = attributor.exact_influences(tests, np.arange(len(indexed)), **asked)
    scale = np.abs(every).max()
    answers = [attributor.query(tests, **options, exact=exact).attributions for exact in (False, True)]
    values_of = {"tracin": attributor.exact_influences(tests, np.arange(len(indexed)), direction, score="tracin")}
    if "preconditioned" in attributor.searched_scores:
        values_of["preconditioned"] = attributor.exact_influences(
            tests, np.arange(len(indexed)), direction, score="preconditioned", damping=damping, outcome=outcome
        )
    for i, (test, one, full, column) in enumerate(zip(tests, *answers, every.T, strict=True)):
        allowed = _allowed(case["among"], test, indexed, triples)
        values = {"proponents": column, "opponents": -column, "absolute": abs(column)}[order]
        wanted = np.sort(values[allowed])[::-1][:TOP_K]
        assert full.certified
        assert one.certified or not attributor.certifies
        assert (one.rank, one.score, one.notes) == (full.rank, full.score, full.notes)
        places = {index: place for place, index in enumerate(attributor.training.train_index.tolist())}
        for each in (one, full):
            rows = [places[index] for index in each.train_index.tolist()]
            assert len(set(rows)) == len(rows) == len(wanted)
            assert allowed[rows].all()
            np.testing.assert_allclose(each.influence, column[rows], rtol=1e-4, atol=1e-5 * scale)
            assert (each.preconditioned is not None) == ("preconditioned" in values_of)
            for name, of in values_of.items():
                np.testing.assert_allclose(getattr(each, name), of[rows, i], rtol=1e-4, atol=1e-5 * np.abs(of).max())
            if each.certified:
                np.testing.assert_allclose(values[rows], wanted, rtol=1e-4, atol=1e-5 * scale)
            elif len(wanted):
                assert values[rows][-1] + each.bound_gap >= wanted[-1] - 1e-4 * scale
    for triple, column in zip(tests, every.T, strict=True):
        sums = attributor.aggregate(triple, "relation", top_k=9, restriction=options["restriction"], **asked)
        summed = column[_allowed(case["among"], triple, indexed, triples)].sum(dtype=np.float64)
        assert np.abs(sums.total.sums - summed) <= sums.total.errors + 1e-4 * scale * len(indexed)

    if case["layers"] == "last:1":
        return  # which leaves out the head's use of a table, and autograd knows no uses
    oracle = Oracle(case, states, triples, set(attributor.featurizer.selection.parameters))
    side = direction if inverse else "tail"
    own = oracle.training(indexed, "tracin")
    dense = (own @ oracle.tests(tests, side, "tracin").T).numpy()
    np.testing.assert_allclose(values_of["tracin"], dense, rtol=1e-3, atol=1e-4 * np.abs(dense).max())
    norms = own.square().sum(1).numpy()
    np.testing.assert_allclose(attributor.training.self_influence["tracin"], norms, rtol=1e-3, atol=1e-4 * norms.max())
    stored = attributor.training.self_influence.get("preconditioned")
    assert (stored is None) == ("preconditioned" not in attributor.searched_scores)
    if stored is None:
        return
    training, test = oracle.training(indexed, "preconditioned"), oracle.tests(tests, side, "preconditioned")
    wanted, dense = np.zeros(len(indexed)), np.zeros(every.shape)
    preconditioner = attributor._influences.preconditioner
    for table in preconditioner.rows.tables:
        built_with = preconditioner.sigma(table, case["damping"])
        sigma = preconditioner.sigma(table, case["damping"] if damping is None else damping)
        rows = (oracle.rows(each, table).unbind(1) for each in (training, test, own))
        for g, test_row, own_row in zip(*rows, strict=True):
            moment, eye = g.T @ g, torch.eye(g.shape[1], dtype=torch.float64)
            damped = built_with * torch.linalg.solve(moment + built_with * eye, own_row.T)
            wanted += (own_row * damped.T).sum(1).numpy()
            dense += (g @ (sigma * torch.linalg.solve(moment + sigma * eye, test_row.T))).numpy()
    if outcome == "logit":  # the gradient of the other one has a test of its own
        np.testing.assert_allclose(values_of["preconditioned"], dense, rtol=2e-3, atol=5e-4 * np.abs(dense).max())
    np.testing.assert_allclose(stored, wanted, rtol=5e-3, atol=1e-3 * norms.max())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=named(case), marks=pytest.mark.gpu if "cuda" in case["device"] else ())
        for case in array(0)
    ],
)
def test_pairs(case: Case, tmp_path: Path, saved: Any, triples: np.ndarray, vocabulary: Vocabulary) -> None:
    """An index of any two options passes its gate, and what it says is what autograd says."""
    check(case, tmp_path, saved, triples, vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_more_combinations(seed: int, tmp_path: Path, saved: Any, triples: np.ndarray, vocabulary: Vocabulary) -> None:
    """The same pairs beside other values of everything else."""
    for number, case in enumerate(array(seed)):
        try:
            check(case, tmp_path / str(number), saved, triples, vocabulary)
        except Exception as e:
            e.add_note(named(case))
            raise


@pytest.mark.parametrize(
    ("refusal", "case"),
    [pytest.param(refusal, case, id=named(case)) for refusal in REFUSED for case in refusal.cases()],
)
def test_what_does_not_go_together_is_refused(
    refusal: Refusal, case: Case, tmp_path: Path, saved: Any, triples: np.ndarray, vocabulary: Vocabulary
) -> None:
    """By the build, by the extension, or by the query."""
    trained = saved(case["model"], 0)
    score, damping, outcome = case["asked"]
    with pytest.raises(refusal.error, match=refusal.words):
        built(case, tmp_path, [(1.0, trained)], trained.model, triples, vocabulary).query(
            triples[:1], score=score, damping=damping, outcome=outcome
        )
