"""``kgtrace self-influence``: training triples by their own gradients, from an index."""

import argparse
from typing import get_args

from kgtrace_indexer.names import Ranking
from kgtrace_server.cli import arguments, inputs, render
from kgtrace_server.cli.arguments import Verb, add
from kgtrace_server.cli.console import say_answer


def register(verb: Verb) -> None:
    """Add the verb."""
    ranking = verb("self-influence", self_influence, "rank training triples by their own gradients")
    arguments.index(ranking)
    add(ranking, "--top-k")
    add(ranking, "--order", choices=get_args(Ranking), default=get_args(Ranking)[0])
    arguments.score(
        ranking,
        "tracin is the squared norm, preconditioned the preconditioned score (default: what the index was built with)",
    )
    arguments.filters(ranking)
    add(ranking, "--device")
    add(
        ranking,
        "--output",
        help=".json: as GET /v1/self-influence answers; .csv, .parquet: one row per training triple",
    )
    add(ranking, "--json")


def self_influence(args: argparse.Namespace) -> int:
    """Rank training triples by self-influence."""
    if args.output is not None:
        render.check_format(args.output)
    from kgtrace_indexer.query.opening import open_index
    from kgtrace_server.schema.questions import SelfInfluenceRequest
    from kgtrace_server.service import Service

    attributor = open_index(args.index, device=args.device)
    restriction = inputs.restriction(args, attributor.vocabulary)
    question = SelfInfluenceRequest.of(top_k=args.top_k, order=args.order, score=args.score, **restriction)
    answer = Service(attributor).self_influences(question)
    count = len(answer.self_influences)
    say_answer(args, answer, render.self_influences, {"triples": count}, f"{count:,} training triples")
    return 0
