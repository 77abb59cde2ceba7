"""The models of a framework: which one a set of tensors belongs to, and the hyper-parameters of its score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kgtrace_indexer.inputs.frameworks.described import Named, Score, Tensors, model_file, parse
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_indexer.inputs.text_files import quote
from kgtrace_store.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Known:
    """One model of a framework."""

    score: Score
    """Its score, but for the settings that follow from `arguments` and tensors."""
    arguments: Mapping[str, float | bool | tuple[str, ...]] = field(default_factory=dict)
    """Hyper-parameters that the score needs and tensors do not tell, with an example, or all words allowed."""
    settings: Callable[[Mapping[str, Any], Tensors], Mapping[str, float | None]] = lambda arguments, tensors: {}
    """Makes settings of the score of the hyper-parameters and the tensors."""
    more: frozenset[str] = frozenset()
    """Tensors that it has besides the tables that the score reads."""

    @property
    def tensors(self) -> frozenset[str]:
        """All tensors that it has."""
        return frozenset({*self.score.entity, *self.score.relation}) | self.more

    def call(self, name: str) -> str:
        """Return an example of a value of ``--interaction``."""
        examples = {key: value[0] if isinstance(value, tuple) else value for key, value in self.arguments.items()}
        return f"{name}({', '.join(f'{key}={value}' for key, value in examples.items())})" if examples else name

    def check(self, named: Named, source: str) -> None:
        """Raise `UnsupportedModel` for hyper-parameters that are missing or of another type."""
        for key, example in self.arguments.items():
            value = named.arguments.get(key)
            if isinstance(example, tuple):
                valid = value in example
            elif isinstance(example, bool):
                valid = isinstance(value, bool)
            else:
                valid = isinstance(value, int | float) and not isinstance(value, bool)
            if not valid:
                state = "does not record" if value is None else f"has {quote(value)} as"
                choices = f" ({key} is {' or '.join(example)})" if isinstance(example, tuple) else ""
                raise UnsupportedModel(
                    f"{source} {state} {key} of its {named.name}: pass --interaction '{self.call(named.name)}', with "
                    f"the value it was trained with{choices}"
                )


@dataclass(frozen=True, slots=True)
class Framework:
    """A framework, and its models that are read."""

    title: str
    prefix: str
    """Of its interactions' names."""
    models: Mapping[str, Known]
    package: str = ""
    """Python package of its model classes, whose whole modules are read, too; empty if none are."""
    suffix: str = ""
    """What its class names add to a model's name."""
    constants: frozenset[str] = frozenset()
    """Tensors that its models may have besides their tables."""
    attributes: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Hyper-parameters from the attributes of a whole module."""

    def shares(self, names: Iterable[str]) -> int:
        """Return how many of the names are names of the framework's tensors."""
        return len(set(names) & {name for known in self.models.values() for name in known.tensors})

    def named(self, tensors: Tensors, source: str, interaction: str | None, recorded: Named | None) -> Named:
        """Return which of the framework's models tensors are of, with the hyper-parameters that its score needs.

        `interaction` is the user's description of the model, `recorded` the file's. Raises `UnsupportedModel` for other
        models, where both together do not say enough, and where they contradict each other.
        """
        expected = None if interaction is None else self._checked(parse(interaction, self.prefix), source)
        if recorded is not None:
            own = self._recorded(recorded, source)
            if expected is not None and expected != Named(
                own.name, {key: own.arguments.get(key) for key in expected.arguments}
            ):
                raise UnsupportedModel(f"{source} is a {own} of {self.title}, not a {expected}")
            expected = own
        named = self._identified(tensors, source, expected)
        self.models[named.name].check(named, source)
        return named

    def _recorded(self, module: Named, source: str) -> Named:
        """Return the recorded model and the hyper-parameters that its score needs."""
        name, attributes = module.name.removesuffix(self.suffix), self.attributes(module.arguments)
        if name not in self.models:
            raise UnsupportedModel(
                f"{source} is a {quote(name)} of {self.title}, which is not read; read are {', '.join(self.models)}"
            )
        return Named(name, {key: attributes[key] for key in self.models[name].arguments if key in attributes})

    def _checked(self, expected: Named, source: str) -> Named:
        """Return the model that the user names. Raises `UnsupportedModel` if it, or a hyper-parameter, is unknown."""
        name = expected.name.removesuffix(self.suffix)
        if name not in self.models:
            raise UnsupportedModel(
                f"{source}: {quote(expected.name)} of {self.title} is not read; read are {', '.join(self.models)}"
            )
        known = self.models[name]
        if unknown := sorted(expected.arguments.keys() - known.arguments.keys()):
            raise UnsupportedModel(
                f"--interaction: {name} of {self.title} has no {quote(unknown[0])}; write {quote(known.call(name))}"
            )
        return Named(name, expected.arguments)

    def _identified(self, tensors: Tensors, source: str, expected: Named | None) -> Named:
        """Return the one of the framework's models that has exactly these tensors."""
        names = tensors.keys() - self.constants
        fitting = [name for name, known in self.models.items() if known.tensors == names]
        if expected is not None and expected.name not in fitting:
            own = self.models[expected.name].tensors
            differences = {"lacks": sorted(own - names), "also has": sorted(names - own)}
            listed = " and ".join(
                f"{verb} {quote(', '.join(differing))}" for verb, differing in differences.items() if differing
            )
            raise UnsupportedModel(f"{source} is no {expected.name} of {self.title}: it {listed}")
        if expected is not None:
            return expected
        if not fitting:
            raise UnsupportedModel(
                f"{source} is of {self.title}, but of none of its models that are read ({', '.join(self.models)}): "
                f"it has {quote(', '.join(tensors))}"
            )
        if len(fitting) > 1:
            examples = " or ".join(f"--interaction '{self.models[name].call(name)}'" for name in fitting)
            raise UnsupportedModel(
                f"{source} is a state dict of {self.title} that may be of {' or '.join(fitting)}: pass {examples}, "
                "as it was trained"
            )
        return Named(fitting[0])


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model as a file or folder of a framework holds it."""

    framework: Framework
    tensors: Tensors
    source: str
    recorded: Named | None = None
    """The model's name and hyper-parameters, where the file says them."""
    frozen: Sequence[str] = ()
    """Modules whose weight was not trained, such as ``node_emb``."""
    inverse_triples: bool = False
    """Whether there are inverse relations: rows 2r + 1."""

    def model(self, interaction: str | None, embedding_dim: int | None, num_relations: int | None) -> ModelFile:
        """Make a `ModelFile`; the arguments are those of `read_model`. Raises as `Framework.named` and `model_file`."""
        named = self.framework.named(self.tensors, self.source, interaction, self.recorded)
        known = self.framework.models[named.name]
        settings = {**known.score.settings, **known.settings(named.arguments, self.tensors)}
        made = model_file(
            f"{self.framework.prefix}.{named.name}",
            replace(known.score, settings=settings),
            self.tensors,
            self.source,
            num_relations=num_relations,
            embedding_dim=embedding_dim,
            inverse_triples=self.inverse_triples,
        )
        untrained = {path: {"frozen": ["weight"]} for path in self.frozen}
        return replace(made, modules={**made.modules, **untrained})
