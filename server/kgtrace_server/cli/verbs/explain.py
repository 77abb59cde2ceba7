"""``kgtrace explain``: the sets of training triples that a prediction rests on, and predictions without sets."""

import argparse
import sys
from typing import Any

from kgtrace_indexer.names import SetCandidates, SetMode
from kgtrace_server.cli import arguments, render_sets
from kgtrace_server.cli.arguments import DIRECTIONS, Verb, WrongCall, add, choices, integer
from kgtrace_server.schema.answer import to_json
from kgtrace_server.schema.sets import SetExplanation, WhatIf

_OPTIONS = ("mode", "max_facts", "candidates", "connected", "entities", "seed")
"""Arguments that are about a set to be found."""


def register(verb: Verb) -> None:
    """Add the verb."""
    explain_ = verb("explain", explain, "find the set of training triples that a prediction rests on, or try one")
    arguments.index(explain_)
    labels: dict[str, Any] = {"nargs": 3, "type": arguments.label, "metavar": ("HEAD", "RELATION", "TAIL")}
    explain_.add_argument(
        arguments.TRIPLE,
        required=True,
        help="the prediction: labels, or ids where no label is made of digits",
        **labels,
    )
    explain_.add_argument(
        arguments.WITHOUT,
        action="append",
        help="predict what the model would say without this training triple, and others; may be repeated",
        **labels,
    )
    explain_.add_argument(
        "--mode",
        choices=choices(SetMode),
        help="the smallest set without which the prediction falls, or one that gives it to other entities "
        "(default: necessary)",
    )
    explain_.add_argument("--max-facts", type=integer(1), metavar="N", help="the most of a set (default: 4)")
    explain_.add_argument(
        "--candidates",
        choices=choices(SetCandidates),
        help="training triples that have the prediction's head, its tail or either (default: head)",
    )
    explain_.add_argument(
        "--connected", action="store_true", default=None, help="only sets with a path from the head to the tail"
    )
    explain_.add_argument("--entities", type=integer(1), metavar="N", help="to try a sufficient set with (default: 10)")
    explain_.add_argument(
        "--direction", choices=DIRECTIONS, default=DIRECTIONS[0], help="what to explain (default: %(default)s)"
    )
    add(explain_, "--seed", default=None, help="of the draw of these entities (default: 0)")
    add(explain_, "--top-k", help="entities of the highest predicted scores to name (default: %(default)s)")
    add(explain_, "--device", "--json")


def explain(args: argparse.Namespace) -> int:
    """Explain a prediction by a set, or predict without one."""
    options = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    if args.without is not None and options:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise WrongCall(f"--without names the set, and nothing is looked for: leave {given} out")
    from kgtrace_indexer.query.opening import open_index
    from kgtrace_server.schema.questions import SetRequest, WhatIfRequest
    from kgtrace_server.service import Service

    service = Service(open_index(args.index, device=args.device))
    triple = service.refs_from_text(*args.triple)
    common = {"direction": args.direction, "top_k": args.top_k}
    answer: WhatIf | SetExplanation
    if args.without is None:
        answer = service.explanation(SetRequest.of(triple=triple, **common, **options))
    else:
        without = [service.refs_from_text(*one) for one in args.without]
        answer = service.what_if(WhatIfRequest.of(triple=triple, without=without, **common))
    sys.stdout.write(to_json(answer, indent=2).decode() + "\n" if args.json else render_sets.page(answer))
    return 0
