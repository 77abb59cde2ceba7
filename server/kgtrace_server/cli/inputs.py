"""Models and triples that arguments name."""

import argparse
import atexit
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from kgtrace_indexer.inputs import registries
from kgtrace_server.cli.arguments import WrongCall
from kgtrace_server.cli.console import warn
from kgtrace_store.errors import BadRequest, UnreadableModel

if TYPE_CHECKING:
    import numpy as np

    from kgtrace_indexer.building.build import BuildConfig
    from kgtrace_indexer.inputs.model_file import ModelFile
    from kgtrace_indexer.inputs.triples import TripleTable
    from kgtrace_store.vocabulary import Vocabulary

CONFIGURATION = (
    *("loss", "label_smoothing", "negatives", "directions", "projection", "dim", "landmarks"),
    *("sample_rate", "stratify_by", "damping", "seed", "shard_size", "dtype", "device"),
)
"""Arguments of ``build`` that are fields of `BuildConfig` as they are."""


def configuration(args: argparse.Namespace, **more: Any) -> "BuildConfig":
    """Return the configuration of an index; a field that the verb has no argument for keeps its default."""
    from kgtrace_indexer.building.build import BuildConfig

    chosen: dict[str, Any] = {name: getattr(args, name) for name in CONFIGURATION if hasattr(args, name)}
    if args.batch_size is not None:
        chosen["batch_size"] = args.batch_size
    return BuildConfig(**chosen, **more)


def fetch_model(args: argparse.Namespace) -> None:
    """Put a folder in the place of a model's address in a registry."""
    if isinstance(args.model, Path):
        return
    folder = mkdtemp(prefix="kgtrace-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # tensors are mapped until then
    args.model, args.source = registries.fetch(args.model, Path(folder))


def read_model(args: argparse.Namespace, num_relations: int | None) -> "ModelFile":
    """Read the model."""
    from kgtrace_indexer.inputs import model_reader

    model = model_reader.read_model(
        args.model,
        interaction=args.interaction,
        embedding_dim=args.embedding_dim,
        num_relations=num_relations,
    )
    return replace(model, source=args.source) if "source" in args else model


def read_states(args: argparse.Namespace, vocabulary: "Vocabulary", table: "TripleTable") -> "ModelFile":
    """Read the model, and the checkpoints or models of other seeds whose influences are summed.

    Raises `VocabularyMismatch` for a model whose folder says that it is of other ids or triples.
    """
    from kgtrace_indexer.inputs import model_reader
    from kgtrace_indexer.inputs.training_folder import check_against_folder

    model, *others = (read_model(one, len(vocabulary.relations)) for one in (args, *args.others))
    if not others:
        return model_reader.with_checkpoints(model, args.checkpoints, args.learning_rates)
    for other in args.others:
        check_against_folder(_carried(other), vocabulary, table, args.train or args.model)
    return model_reader.with_models(model, others)


def check_trained(args: argparse.Namespace) -> None:
    """Check the arguments that name the model and its training triples, as far as that needs no torch.

    Of several models the first becomes ``model``, and ``others`` the arguments as they are for each other one. Raises
    `WrongCall` for an argument that another has to go with, or must not, and `UnreadableModel` where there is no model.
    """
    args.others = []
    if "models" in args:
        args.model, *others = args.models
        args.others = [argparse.Namespace(**vars(args) | {"model": other}) for other in others]
    if args.others and args.checkpoints:
        raise WrongCall("--checkpoints are states of one model: give --model once, or leave them out")
    if args.train is None and args.ids and getattr(args, "test", None) is None:
        raise WrongCall("--ids says that --train FILE holds ids: give it too")
    if getattr(args, "learning_rates", None) and not args.checkpoints:
        raise WrongCall("--learning-rates weigh --checkpoints PATH...: give them too")
    for one in (args, *args.others):
        fetch_model(one)
    if args.train is None and (args.entity_to_id or args.relation_to_id) and not _lacks_labels(_carried(args)):
        raise WrongCall("--entity-to-id and --relation-to-id say what the labels of --train FILE mean: give it too")
    for one in (args, *args.others):
        try:
            one.model.stat()
        except OSError as e:
            raise UnreadableModel(f"cannot read model {one.model}: {e.strerror}") from e


def training_data(args: argparse.Namespace) -> "tuple[Vocabulary, TripleTable]":
    """Read the id maps and training triples that were named, and the others from the model's folder.

    Raises `VocabularyMismatch` where the former contradict the latter.
    """
    vocabulary, table = _training_data(args)
    for warning in table.warnings(args.train):
        warn(warning)
    return vocabulary.with_prefixes({**table.prefixes, **dict(args.prefixes)}), table


def indexed_data(args: argparse.Namespace) -> "tuple[Vocabulary, TripleTable]":
    """Read the training data, and leave out the triples that ``--skip`` names."""
    from kgtrace_indexer.inputs.skipping import without

    vocabulary, table = training_data(args)
    if args.skip is None:
        return vocabulary, table
    table, warnings = without(table, args.skip, vocabulary, skip_unknown=args.skip_unknown)
    for warning in warnings:
        warn(warning)
    return vocabulary, table


def _training_data(args: argparse.Namespace) -> "tuple[Vocabulary, TripleTable]":
    from kgtrace_indexer.inputs.frameworks import carried_data
    from kgtrace_indexer.inputs.id_maps import read_vocabulary
    from kgtrace_indexer.inputs.model_reader import check_place
    from kgtrace_indexer.inputs.training_folder import NUMERIC_TRIPLES, check_against_folder, read_folder_vocabulary
    from kgtrace_indexer.inputs.triples import read_triples

    carried = _carried(args)
    if args.train is None and (data := carried_data(args.model, args.names, args.lang)) is not None:
        return data
    if None in (args.train, args.entity_to_id, args.relation_to_id) and not carried.is_dir():
        check_place(args.model)
        raise BadRequest(
            f"{args.model} carries no training_triples, which PyKEEN writes with save_training=True: pass --train, "
            "--entity-to-id and --relation-to-id"
        )
    if None in (args.entity_to_id, args.relation_to_id):
        vocabulary = read_folder_vocabulary(
            carried,
            entity_to_id=args.entity_to_id,
            relation_to_id=args.relation_to_id,
            names=args.names,
            lang=args.lang,
        )
    else:
        vocabulary = read_vocabulary(args.entity_to_id, args.relation_to_id, args.names, lang=args.lang)
    if args.train is None:
        return vocabulary, read_triples(carried / NUMERIC_TRIPLES, vocabulary, ids=True)
    table = read_triples(args.train, vocabulary, skip_unknown=args.skip_unknown, ids=args.ids, only_iris=args.only_iris)
    check_against_folder(carried, vocabulary, table, args.train)
    return vocabulary, table


def _carried(args: argparse.Namespace) -> Path:
    """Return where PyKEEN puts the training triples beside a model."""
    model: Path = args.model
    return (model if model.is_dir() else model.parent) / "training_triples"


def _lacks_labels(carried: Path) -> bool:
    """Whether there are training triples without labels beside a model."""
    if not carried.is_dir():
        return False
    from kgtrace_indexer.inputs.training_folder import has_labels

    return not has_labels(carried)


def test_table(args: argparse.Namespace, vocabulary: "Vocabulary", *, skip_unknown: bool) -> "TripleTable":
    """Read the test triples; warn of lines that were left out."""
    from kgtrace_indexer.inputs.triples import read_triples

    table = read_triples(args.test, vocabulary, skip_unknown=skip_unknown, ids=args.ids, only_iris=args.only_iris)
    for warning in table.warnings(args.test):
        warn(warning)
    if table.skipped:
        lines = len(table.ids) + table.skipped
        warn(
            f"{table.skipped:,} of {lines:,} lines of {args.test} name unknown entities or relations: they were skipped"
        )
    return table


def chosen_rows(args: argparse.Namespace, table: "TripleTable") -> "tuple[np.ndarray, np.ndarray]":
    """Return the chosen test triples (n, 3), and which rows of their file they are (n,)."""
    import numpy as np

    if args.test_indices is None:
        return table.ids[: args.max_test_triples], table.train_index[: args.max_test_triples]
    chosen = np.array(args.test_indices, np.int64)
    rows = np.searchsorted(table.train_index, chosen)  # ascending, with gaps where lines were skipped
    missing = chosen[table.train_index[np.minimum(rows, len(table.ids) - 1)] != chosen]
    if len(missing):
        raise BadRequest(
            f"--test-indices {missing[0]}: {args.test} has no such row to explain; it has {len(table.ids)}"
        )
    return table.ids[rows], chosen


def restriction(args: argparse.Namespace, vocabulary: "Vocabulary") -> dict[str, Any]:
    """Return which training triples may be named: ids, as ``must`` and ``must_not``."""

    def entity(text: str) -> int:
        return vocabulary.resolve_entity(vocabulary.entity_ref(text))

    def relation(text: str) -> int:
        return vocabulary.resolve_relation(vocabulary.relation_ref(text))

    look_up = {"head": entity, "relation": relation, "tail": entity}
    return {
        kind: {
            field: sorted(map(resolve, texts))
            for field, resolve in look_up.items()
            if (texts := getattr(args, f"{kind}_{field}")) is not None
        }
        for kind in ("must", "must_not")
    }
