"""``kgtrace query``: influences on test triples, from an index."""

import argparse
import sys
from typing import TYPE_CHECKING

from kgtrace_indexer.names import Group, Outcome
from kgtrace_server.cli import arguments, inputs, render
from kgtrace_server.cli.arguments import DIRECTIONS, Verb, WrongCall, add, integer
from kgtrace_server.cli.console import say, say_answer
from kgtrace_server.cli.progress import Progress
from kgtrace_server.cli.verbs.build import engine_settings

if TYPE_CHECKING:
    from kgtrace_indexer.query.attributor import Attributor
    from kgtrace_server.cli.bulk import Bulk
    from kgtrace_server.service import Service


def register(verb: Verb) -> None:
    """Add the verb."""
    query_ = verb("query", query, "name the training triples that influenced test triples")
    arguments.index(query_)
    which = query_.add_mutually_exclusive_group(required=True)
    which.add_argument(
        arguments.TRIPLE,
        nargs=3,
        type=arguments.label,
        action="append",
        metavar=("HEAD", "RELATION", "TAIL"),
        help="test triple: labels, or ids where no label is made of digits; may be repeated",
    )
    add(which, "--test")
    arguments.test_rows(query_)
    add(query_, "--skip-unknown", help="count and skip lines of --test with unknown labels")
    add(query_, "--only-iris")
    arguments.ids(query_, "--test")
    add(query_, "--top-k", "--order")
    query_.add_argument(
        "--direction", choices=DIRECTIONS, default=DIRECTIONS[0], help="what to explain (default: %(default)s)"
    )
    query_.add_argument(
        "--aggregate",
        choices=arguments.choices(Group),
        metavar="BY",
        help="sum the influences on all test triples: by relation, head or tail of the training triples, or of each "
        "training triple",
    )
    built = "(default: as the index was built)"
    arguments.score(query_, f"TracIn or the preconditioned score {built}")
    query_.add_argument(
        "--damping", type=arguments.damping, metavar="X|auto", help=f"of the preconditioned score; auto is 3 {built}"
    )
    query_.add_argument(
        "--outcome",
        choices=arguments.choices(Outcome),
        default="logit",
        help="what the preconditioned score explains: the triple's own score, or the log-probability that a softmax "
        "over all tails gives it (default: %(default)s)",
    )
    query_.add_argument("--exact", action="store_true", help="compute every training triple's influence: slow")
    query_.add_argument(
        "--max-candidates", type=integer(0), metavar="N", help="look at no more; the answer may not be certified"
    )
    arguments.filters(query_).add_argument(
        "--within-hops",
        type=integer(1),
        metavar="N",
        help="so near to the test triple: with 1 those that touch its head or tail, with 2 what touches these, ...",
    )
    add(query_, "--device")
    arguments.engine(query_)
    add(
        query_,
        "--output",
        help=".json: as POST /v1/influences answers; .jsonl: one line per test triple; .csv, .parquet: one row per "
        "influence; .graphml, .jsonld: a graph; an interrupted run goes on where it stopped; "
        "with --aggregate as POST /v1/aggregate answers, one row per sum",
    )
    add(query_, "--fresh", "--json")


def query(args: argparse.Namespace) -> int:
    """Explain test triples from an index."""
    if (args.test_indices is not None or args.max_test_triples is not None) and args.test is None:
        raise WrongCall("--test-indices and --max-test-triples choose among the triples of --test FILE")
    if args.fresh and args.output is None:
        raise WrongCall("--fresh discards what an interrupted run left beside --output FILE: give it too")
    if args.aggregate is not None and (args.fresh or args.max_candidates is not None):
        raise WrongCall("--aggregate sums all influences in one go: leave --max-candidates and --fresh out")
    if args.output is not None:
        render.check_format(args.output, render.FORMATS if args.aggregate else render.INFLUENCE_FORMATS)
    settings = engine_settings(args)
    from kgtrace_indexer.query.opening import open_index
    from kgtrace_server import engines
    from kgtrace_server.cli import bulk

    work = _bulk(args, open_index(args.index, device=args.device, milvus=engines.milvus(settings)))
    note = _sample_note(work.service)
    if args.aggregate is not None:
        return _aggregate(args, work, note)
    with Progress("test triples") as progress:
        if args.output is None:
            answers = bulk.stream(work, progress)
            if args.json:
                render.write_influences(sys.stdout.buffer, ".json", answers, work.test_indices, skipped=work.skipped)
            else:
                sys.stdout.write(note)
                for number, answer in enumerate(answers):
                    sys.stdout.write(("\n" if number else "") + render.influences(answer))
            return 0
        count = bulk.write(work, args.output, fresh=args.fresh, progress=progress)
    facts = {
        "output": str(args.output),
        "generation": work.service.generation,
        "test_triples": len(work.ids),
        "skipped_test_triples": work.skipped or 0,
        "influences": count,
    }
    say(args, facts, f"{note}{args.output}: {count:,} influences on {len(work.ids):,} test triples\n")
    return 0


def _aggregate(args: argparse.Namespace, work: "Bulk", note: str) -> int:
    """Sum the influences on all test triples."""
    from kgtrace_server.schema.questions import AggregateRequest

    options = {name: value for name, value in work.options.items() if name != "max_candidates"}
    answer = work.service.aggregate(AggregateRequest.of(triples=work.ids, by=args.aggregate, **options))
    counts = {"test_triples": len(work.ids), "groups": len(answer.groups)}
    text = f"{len(answer.groups):,} sums over {len(work.ids):,} test triples"
    say_answer(args, answer, render.aggregate, counts, text, note)
    return 0


def _bulk(args: argparse.Namespace, attributor: "Attributor") -> "Bulk":
    """Return the test triples of a call, and its options."""
    import numpy as np

    from kgtrace_server.cli.bulk import Bulk
    from kgtrace_server.schema.questions import InfluenceRequest
    from kgtrace_server.service import Service

    service = Service(attributor)
    skipped = None
    if args.test is None:
        triples = [service.triple_ids(*service.refs_from_text(*triple)) for triple in args.triple]
        ids, test_indices = np.array(triples, np.int64), np.arange(len(triples))
    else:
        table = inputs.test_table(args, attributor.vocabulary, skip_unknown=args.skip_unknown)
        skipped = table.skipped if args.skip_unknown else None
        ids, test_indices = inputs.chosen_rows(args, table)
    options = {name: getattr(args, name) for name in InfluenceRequest.model_fields if hasattr(args, name)}
    return Bulk(service, options | inputs.restriction(args, attributor.vocabulary), ids, test_indices, skipped)


def _sample_note(service: "Service") -> str:
    """Say that an index is of a sample, if it is."""
    rate = service.index_info().sample_rate
    return "" if rate == 1 else f"of a sample of {rate:.3g} of the training triples; no others can be named\n\n"
