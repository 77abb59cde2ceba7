"""``kgtrace tracin``: influences straight from a model, without an index."""

import argparse
import sys
from typing import Any

from kgtrace_indexer.names import PRESETS, Kind, Preset
from kgtrace_server.cli import arguments, inputs, render
from kgtrace_server.cli.arguments import STRATA, Verb, WrongCall, add, integer
from kgtrace_server.cli.progress import Progress
from kgtrace_server.cli.verbs.build import NOTHING_TO_STRATIFY


def register(verb: Verb) -> None:
    """Add the verb."""
    to = verb("tracin", tracin, "compute influences at once, without an index")
    to.formatter_class = argparse.RawDescriptionHelpFormatter
    to.epilog = "presets:\n" + "".join(f"  {name:<10}  {_described(preset)}\n" for name, preset in PRESETS.items())
    to.set_defaults(names=None, lang="en", prefixes=[], only_iris=False)
    arguments.model(to, "--model-path")
    to.add_argument(
        "--output-channels", type=integer(1), metavar="C", help="of a ConvE; checked against the model's own"
    )
    data = to.add_argument_group("triples")
    add(data, "--train", help="lines of head⇥relation⇥tail (default: the model's own)")
    add(data, "--entity-to-id", "--relation-to-id", "--test")
    arguments.test_rows(data)
    add(data, "--skip-unknown", help="skip lines of --train with unknown labels; those of --test always are")
    arguments.ids(data, "--train and --test")
    computation = to.add_argument_group("what is computed")
    computation.add_argument(
        "--mode",
        choices=("single", "test", "self"),
        default="test",
        help="influences on test triples, as a list or with a summary, or self-influences (default: %(default)s)",
    )
    add(computation, "--top-k")
    computation.add_argument(
        "--learning-rate",
        type=arguments.positive,
        default=1.0,
        metavar="X",
        help="factor of all influences (default: 1)",
    )
    add(computation, "--directions")
    cost = to.add_argument_group("for how much work; what is given explicitly goes before the preset")
    cost.add_argument("--preset", choices=tuple(PRESETS), default="baseline", help="see below (default: %(default)s)")
    boolean = argparse.BooleanOptionalAction
    cost.add_argument("--use-last-layers-only", action=boolean, help="let only the last modules' parameters count")
    cost.add_argument(
        "--num-last-layers", type=integer(1), metavar="N", help="modules, counted from the score backwards"
    )
    cost.add_argument(
        "--last-layer-names", nargs="+", metavar="NAME", help="instead: modules or parameters, or patterns"
    )
    cost.add_argument("--use-projection", action=boolean, help="estimate influences from random projections")
    cost.add_argument("--projection-dim", type=integer(1), metavar="D", help="to so many numbers")
    cost.add_argument("--projection-type", choices=arguments.choices(Kind), help="of what kind")
    cost.add_argument(
        "--sample-rate", type=arguments.rate, metavar="P", help="look at this share of the training triples"
    )
    add(cost, "--stratify-by", choices=(*STRATA, "none"))
    how = to.add_argument_group("how")
    add(how, "--seed", help="of sample and projection (default: %(default)s)")
    add(how, "--output", metavar="FILE.json", help="write JSON there, whole or not at all")
    add(how, "--device", "--batch-size", "--json")


def _described(preset: Preset) -> str:
    """``the last two modules, gaussian projection to 256, 50 % of the training triples, by relation``."""
    modules = {None: "all parameters", 1: "the last module", 2: "the last two modules"}[preset.last_layers]
    kept = f"{preset.projection} projection to {preset.dim}" if preset.projection else "exact inner products"
    share = "all" if preset.sample_rate == 1 else f"{preset.sample_rate:.0%}".replace("%", " % of the")
    by = f", by {preset.stratify_by}" if preset.stratify_by else ""
    return f"{modules}, {kept}, {share} training triples{by}"


def tracin(args: argparse.Namespace) -> int:
    """Compute influences straight from a model, without an index."""
    if args.mode != "self" and args.test is None:
        raise WrongCall(f"--mode {args.mode} explains the triples of --test FILE: give it too")
    layers = {"--num-last-layers": args.num_last_layers, "--last-layer-names": args.last_layer_names}
    projection = {"--projection-dim": args.projection_dim, "--projection-type": args.projection_type}
    for use, refusal, details in (
        (args.use_last_layers_only, "--no-use-last-layers-only", layers),
        (args.use_projection, "--no-use-projection", projection),
    ):
        for flag, value in details.items():
            if use is False and value is not None:
                raise WrongCall(f"{refusal} leaves {flag} nothing to say: leave out one of them")
    samples = (PRESETS[args.preset].sample_rate if args.sample_rate is None else args.sample_rate) < 1
    if args.stratify_by not in (None, "none") and not samples:
        raise WrongCall(NOTHING_TO_STRATIFY)
    inputs.check_trained(args)
    if args.output is not None:
        render.check_format(args.output, (".json",))
    from kgtrace_server.cli import tracin as run
    from kgtrace_store import durable

    preset = run.chosen(args)
    vocabulary, training = inputs.training_data(args)
    model = inputs.read_model(args, len(vocabulary.relations))
    if args.output_channels is not None:
        run.check_channels(model, args.output_channels)
    document: Any
    with Progress("triples") as progress:
        call = run.Run(model, vocabulary, training, preset, args, progress)
        if args.mode == "self":
            document = rows = call.self_influences()
            count, page = f"{len(rows):,} training triples", run.self_influences(rows)
        else:
            test = inputs.test_table(args, vocabulary, skip_unknown=True)
            if args.mode == "single" and args.test_indices is None and args.max_test_triples is None:
                args.max_test_triples = 1
            results = call.explained(*inputs.chosen_rows(args, test))
            document = results if args.mode == "single" else call.summed_up(results, test.skipped)
            count, page = f"influences on {len(results):,} test triples", run.explanations(results)
    text = render.json_text(document)
    if args.output is not None:
        durable.replace_file(args.output, text.encode())
        page = f"{args.output}: {count}\n"
    sys.stdout.write(text if args.json else page)
    return 0
