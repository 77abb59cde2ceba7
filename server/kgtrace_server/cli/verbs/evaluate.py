"""``kgtrace evaluate``: accuracy and speed of configurations, measured on a model."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kgtrace_server.cli import arguments, inputs, render
from kgtrace_server.cli.arguments import Verb, WrongCall, add
from kgtrace_server.cli.console import say
from kgtrace_server.cli.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from kgtrace_store.vocabulary import Vocabulary


def register(verb: Verb) -> None:
    """Add the verb."""
    to = verb("evaluate", evaluate, "measure accuracy and speed of configurations on your own model")
    arguments.trained(to, ids_in="--train and --test")
    question = to.add_argument_group("what is asked")
    add(question, "--test", required=True)
    drawn = "how many of them are drawn at random (default: %(default)s)"
    add(question, "--max-test-triples", default=50, help=drawn)
    add(question, "--top-k", help="training triples to find (default: %(default)s)")
    add(question, "--order")
    arguments.gradients(question, "bce")
    how = to.add_argument_group("how")
    add(how, "--seed", help="of test triples, samples, projections and the index (default: %(default)s)")
    add(how, "--device", "--batch-size")
    written = "what was measured; an interrupted run goes on where it stopped"
    add(how, "--output", metavar="FILE.json", help=written)
    how.add_argument("--plots", type=Path, metavar="DIR", help="write pictures there, as PNG and SVG")
    add(how, "--fresh", "--json")


def evaluate(args: argparse.Namespace) -> int:
    """Measure configurations against the exact answer."""
    if args.fresh and args.output is None:
        raise WrongCall("--fresh discards what an interrupted run left beside --output FILE: give it too")
    inputs.check_trained(args)

    if args.output is not None:
        render.check_format(args.output, (".json",))
    from kgtrace_indexer.evaluation import evaluate as measure
    from kgtrace_server.cli import evaluation, plots
    from kgtrace_store import durable

    if args.plots is not None:
        plots.require()
        durable.make_folder(args.plots)
    config = inputs.configuration(args)
    vocabulary, triples = inputs.training_data(args)
    model = inputs.read_states(args, vocabulary, triples)
    test, skipped = _drawn(args, vocabulary)
    with _work_folder(args.output) as folder, Progress("steps") as progress:
        measured = measure(
            folder,
            model,
            vocabulary,
            triples,
            test,
            config,
            top_k=args.top_k,
            order=args.order,
            fresh=args.fresh,
            progress=progress,
        )
        content = evaluation.document(measured, model, config, top_k=args.top_k, order=args.order, skipped=skipped)
        if args.output is not None:
            durable.replace_file(args.output, render.json_text(content).encode())
        drawn = [] if args.plots is None else plots.write(content, args.plots)
    say(args, content, evaluation.table(content) + "".join(f"{path}\n" for path in drawn if path.suffix == ".png"))
    return 0


@contextmanager
def _work_folder(output: Path | None) -> Iterator[Path]:
    """Yield the folder of an evaluation's intermediate results: beside its output, so that it can go on from there.

    The folder goes once all is written.
    """
    if output is not None:
        from kgtrace_store import durable

        folder = output.with_name(f"{output.name}.partial")
        yield folder
        durable.remove_tree(folder)
        return
    with tempfile.TemporaryDirectory(prefix="kgtrace-evaluate-") as temporary:
        yield Path(temporary)


def _drawn(args: argparse.Namespace, vocabulary: "Vocabulary") -> "tuple[np.ndarray, int]":
    """Return test triples drawn at random, (n, 3), in the order of the file, and how many lines were skipped."""
    import numpy as np

    test = inputs.test_table(args, vocabulary, skip_unknown=args.skip_unknown)
    count = min(args.max_test_triples, len(test.ids))
    rows = np.random.default_rng(args.seed).choice(len(test.ids), count, replace=False)
    return test.ids[np.sort(rows)], test.skipped
