"""PyKEEN's interactions, rebuilt from inert data.

A model file names the interaction's class and records its attributes. The class is looked up in a fixed table, made
with those attributes and given the file's parameters; nothing that the file names is imported. Rebuilt and recorded
modules are then compared, so that an unknown variant is refused rather than explained wrongly.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.pykeen_versions import PROJECTION_NORM
from kgtrace_indexer.models.autograd import RankOne, Representations
from kgtrace_store.errors import MissingExtra, UnsupportedModel

ROOT = "interaction"
"""Path of the interaction in a PyKEEN model."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A module of the model, as the file records it, and its submodules."""

    model: ModelFile
    path: str

    @property
    def name(self) -> str:
        """Class name without suffix."""
        return str(self.attributes.get("class", "")).removesuffix("Interaction")

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Plain attributes; none if the file holds no such module."""
        return self.model.modules.get(self.path, {})

    def child(self, name: str) -> "_Recorded":
        """Return a submodule."""
        return _Recorded(self.model, f"{self.path}.{name}")

    def has(self, name: str) -> bool:
        """Return whether there is a submodule of that name."""
        return f"{self.path}.{name}" in self.model.modules

    def attribute(self, name: str) -> Any:
        """Return an attribute. Raises `UnsupportedModel` if the file does not say."""
        if name not in self.attributes:
            raise UnsupportedModel(
                f"{self.model.source} does not record {self.path}.{name}, which {self.model.interaction} needs; "
                "pass the whole saved model (trained_model.pkl) rather than its state dict"
            )
        return self.attributes[name]

    def shape(self, tensor: str) -> torch.Size:
        """Return a tensor's shape. Raises `UnsupportedModel` if there is none."""
        name = f"{self.path}.{tensor}"
        if name not in self.model.tensors:
            raise UnsupportedModel(f"{self.model.source} is no {self.model.interaction} of PyKEEN's: it lacks {name}")
        return self.model.tensors[name].shape


@dataclass(frozen=True, slots=True)
class _Known:
    """How to make an interaction."""

    attributes: Sequence[str] = ()
    """Recorded attributes that the constructor takes by their own name."""
    arguments: Callable[[_Recorded], dict[str, Any]] = field(default=lambda recorded: {})
    """Constructor arguments that follow from shapes and submodules."""
    factors: Callable[[Any], dict[str, RankOne]] = field(default=lambda interaction: {})
    """How the gradients of large parameters factor, by attribute name."""


_ACTIVATIONS = {
    "ELU": ("alpha",),
    "GELU": ("approximate",),
    "Hardtanh": ("min_val", "max_val"),
    "Identity": (),
    "LeakyReLU": ("negative_slope",),
    "LogSigmoid": (),
    "ReLU": (),
    "SELU": (),
    "SiLU": (),
    "Sigmoid": (),
    "Softplus": ("beta", "threshold"),
    "Softsign": (),
    "Tanh": (),
}
"""Activations of `torch.nn` by class name, with the attributes that are their arguments."""


def _activation(recorded: _Recorded) -> nn.Module:
    if recorded.name not in _ACTIVATIONS:
        raise UnsupportedModel(
            f"{recorded.path} is a {recorded.name or 'module that is not recorded'}; "
            f"supported activations: {', '.join(_ACTIVATIONS)}"
        )
    arguments = {name: recorded.attribute(name) for name in _ACTIVATIONS[recorded.name]}
    made: nn.Module = getattr(nn, recorded.name)(**arguments)
    return made


def _conve(recorded: _Recorded) -> dict[str, Any]:
    shape = recorded.attribute("shape_info")
    names = ("embedding_dim", "input_channels", "output_channels", "kernel_height", "kernel_width")
    return {
        **{name: shape[name] for name in names},
        "embedding_height": shape["image_height"],  # the width follows; PyKEEN refuses to take both
        "apply_batch_normalization": any(name.endswith(".running_mean") for name in recorded.model.tensors),
    }


def _ermlp(recorded: _Recorded) -> dict[str, Any]:
    hidden, features = recorded.shape("hidden.weight")
    return {
        "embedding_dim": features // 3,
        "hidden_dim": hidden,
        "activation": _activation(recorded.child("activation")),
    }


def _ermlpe(recorded: _Recorded) -> dict[str, Any]:
    hidden, features = recorded.shape("mlp.1.weight")
    return {"embedding_dim": features // 2, "hidden_dim": hidden}


def _proje(recorded: _Recorded) -> dict[str, Any]:
    return {
        "embedding_dim": recorded.shape("d_e")[0],
        "inner_activation": _activation(recorded.child("inner_activation")),
        "outer_activation": _activation(recorded.child("outer_activation")),
    }


def _tucker(recorded: _Recorded) -> dict[str, Any]:
    dim, relation_dim, _ = recorded.shape("core_tensor")
    return {
        "embedding_dim": dim,
        "relation_dim": relation_dim,
        "apply_batch_normalization": recorded.has("head_batch_norm"),
    }


def _tucker_factors(interaction: Any) -> dict[str, RankOne]:
    """TuckER's score is linear in its core: bn(Σ core[i, j, ·] bn(h)[i] r[j]) · t."""

    def u(tails: Representations) -> Tensor:
        norm = interaction.head_relation_batch_norm
        return tails[0] if norm is None else tails[0] * (norm.weight * (norm.running_var + norm.eps).rsqrt())

    def v(heads: Representations, relations: Representations) -> Tensor:
        norm = interaction.head_batch_norm
        return _outer(heads[0] if norm is None else norm(heads[0]), relations[0])

    return {"core_tensor": RankOne(u, v)}


def _multilinear_tucker(recorded: _Recorded) -> dict[str, Any]:
    return dict(zip(("head_dim", "relation_dim", "tail_dim"), recorded.shape("core_tensor"), strict=True))


_MULTILINEAR_CORE = RankOne(lambda tails: tails[0], lambda heads, relations: _outer(heads[0], relations[0]))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, :, None] * b[:, None, :]).flatten(1)  # (m, p), (m, q) -> (m, p·q)


def _kg2e(recorded: _Recorded) -> dict[str, Any]:
    similarity = recorded.child("similarity")
    known = ("NegativeKullbackLeiblerDivergence", "ExpectedLikelihood")
    if similarity.name not in known:
        raise UnsupportedModel(f"{similarity.path} is a {similarity.name}; supported: {', '.join(known)}")
    exact = similarity.attribute("exact")
    if similarity.name == "ExpectedLikelihood" and exact:
        raise UnsupportedModel(
            f"{similarity.path} is ExpectedLikelihood(exact=True), whose scores in PyKEEN depend on the batch size; "
            "train with exact=False"
        )
    made = getattr(importlib.import_module("pykeen.nn.sim"), similarity.name)
    return {"similarity": made(exact=exact)}


def _autosf(recorded: _Recorded) -> dict[str, Any]:
    return {
        "coefficients": [tuple(block) for block in recorded.attribute("coefficients")],
        "num_entity_representations": len(recorded.attribute("entity_shape")),
        "num_relation_representations": len(recorded.attribute("relation_shape")),
    }


def _crosse(recorded: _Recorded) -> dict[str, Any]:
    return {
        "embedding_dim": recorded.shape("bias")[0],
        "combination_activation": _activation(recorded.child("activation")),
        "combination_dropout": recorded.child("dropout").attribute("p") if recorded.has("dropout") else None,
    }


_NORM = ("p", "power_norm")
INTERACTIONS = {
    "AutoSF": _Known(arguments=_autosf),
    "BoxE": _Known((*_NORM, "tanh_map")),
    "CP": _Known(),
    "Clamped": _Known(("clamp_score",), lambda recorded: {"base": _interaction(recorded.child("base"))}),
    "ComplEx": _Known(),
    "ConvE": _Known(arguments=_conve),
    "ConvKB": _Known(("embedding_dim", "num_filters")),
    "CrossE": _Known(arguments=_crosse),
    "DistMA": _Known(),
    "DistMult": _Known(),
    "ERMLP": _Known(arguments=_ermlp),
    "ERMLPE": _Known(arguments=_ermlpe),
    "HolE": _Known(),
    "KG2E": _Known(arguments=_kg2e),
    "LineaRE": _Known(_NORM),
    "MultiLinearTucker": _Known(arguments=_multilinear_tucker, factors=lambda _: {"core_tensor": _MULTILINEAR_CORE}),
    "MuRE": _Known(_NORM),
    "NTN": _Known(arguments=lambda recorded: {"activation": _activation(recorded.child("activation"))}),
    "PairRE": _Known(_NORM),
    "ProjE": _Known(arguments=_proje),
    "QuatE": _Known(),
    "RESCAL": _Known(),
    "RotatE": _Known(_NORM),
    "SE": _Known(_NORM),
    "SimplE": _Known(),
    "TorusE": _Known(_NORM),
    "TransD": _Known(_NORM),
    "TransE": _Known(_NORM),
    "TransF": _Known(),
    "TransH": _Known(_NORM),
    "TransR": _Known((*_NORM, "max_projection_norm")),
    "TripleRE": _Known((*_NORM, "u")),
    "TuckER": _Known(arguments=_tucker, factors=_tucker_factors),
    "UM": _Known(_NORM),
}
"""Interactions by class name without suffix."""


def rebuild(model: ModelFile) -> Any:
    """Return the interaction of a PyKEEN model, with its parameters, on the CPU.

    Raises
    ------
    UnsupportedModel
        It is unknown, or differs from the file's description.
    MissingExtra
        PyKEEN is not installed.
    """
    recorded = _Recorded(model, ROOT)
    if recorded.name != model.interaction:
        raise UnsupportedModel(
            f"{model.source} is said to be a {model.interaction}, but {ROOT} is a {recorded.attributes.get('class')}"
        )
    interaction = _interaction(recorded)
    _load(interaction, model)
    _compare(interaction, model)
    return interaction


def rank_one_parameters(model: ModelFile, interaction: Any) -> dict[str, RankOne]:
    """Return how the gradients of an interaction's large parameters factor, by the model's names for them."""
    factors = INTERACTIONS[model.interaction].factors(interaction)
    return {f"{ROOT}.{name}": factor for name, factor in factors.items()}


def _interaction(recorded: _Recorded) -> Any:
    """Make an interaction with the arguments that the file implies."""
    name = recorded.name
    if name not in INTERACTIONS:
        raise UnsupportedModel(
            f"interaction {name} ({recorded.path}) is not supported; supported: {', '.join(sorted(INTERACTIONS))}"
        )
    known = INTERACTIONS[name]
    arguments = {key: recorded.attribute(key) for key in known.attributes}
    made = getattr(_pykeen_interactions(name), f"{name}Interaction")
    if PROJECTION_NORM in recorded.attributes:
        made = _transr_before_1_11(made, recorded.attributes[PROJECTION_NORM])
    return made(**arguments, **known.arguments(recorded))


def _transr_before_1_11(current: Any, projection_p: float) -> Any:
    """Return TransR as PyKEEN computes it before 1.11: one norm limits projections, another gives the score."""
    utils = importlib.import_module("pykeen.utils")

    class TransRInteraction(current):  # type: ignore[misc]
        def forward(self, h: Tensor, r: Sequence[Tensor], t: Tensor) -> Tensor:
            translation, projection = r  # (m, e), (m, d, e)
            h, t = (
                utils.clamp_norm(
                    torch.einsum("...d, ...de -> ...e", x, projection),
                    p=projection_p,
                    dim=-1,
                    maxnorm=self.max_projection_norm,
                )
                for x in (h, t)
            )
            score: Tensor = utils.negative_norm_of_sum(h, translation, -t, p=self.p, power_norm=self.power_norm)
            return score

    return TransRInteraction


def _pykeen_interactions(name: str) -> Any:
    try:
        return importlib.import_module("pykeen.nn.modules")
    except ImportError as e:
        raise MissingExtra(
            f"{name} is computed with PyKEEN, which is not installed: pip install 'pykeen==1.11.1'"
        ) from e


def _load(interaction: nn.Module, model: ModelFile) -> None:
    """Give an interaction its parameters and buffers, which must be exactly those in the file."""
    prefix = f"{ROOT}."
    state = {n.removeprefix(prefix): tensor for n, tensor in model.tensors.items() if n.startswith(prefix)}
    expected = {name: tuple(tensor.shape) for name, tensor in interaction.state_dict().items()}
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != stored:
        name = min(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name))
        raise UnsupportedModel(
            f"{model.source} is no {model.interaction} of PyKEEN's: {prefix}{name} is "
            f"{stored.get(name, 'absent')}, expected {expected.get(name, 'no such tensor')}"
        )
    interaction.load_state_dict(state)


def _compare(interaction: nn.Module, model: ModelFile) -> None:
    """Copy attributes that constructors do not set, such as a batch norm's eps; refuse modules of another class."""
    made = {f"{ROOT}.{path}" if path else ROOT: module for path, module in interaction.named_modules()}
    recorded = {path for path in model.modules if path == ROOT or path.startswith(f"{ROOT}.")}
    for path in sorted(made.keys() | recorded):
        expected, named = type(made.get(path)).__name__, model.modules.get(path, {}).get("class")
        if expected != named:
            raise UnsupportedModel(
                f"{model.source} is no {model.interaction} of PyKEEN's: {path} is "
                f"{'absent' if named is None else f'a {named}'}, expected {'none' if path not in made else expected}"
            )
        for name, value in model.modules[path].items():
            own = vars(made[path])
            if isinstance(value, int | float) and isinstance(own.get(name), int | float):
                own[name] = value
