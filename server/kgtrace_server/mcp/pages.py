"""Answers as text that an assistant reads: the question, the proof, a line for each item, `LIMIT` bytes in all."""

from collections.abc import Sequence

from kgtrace_server.printable import printable
from kgtrace_server.schema.answers import (
    Explanation,
    Influence,
    Influences,
    Named,
    NamedTriple,
    Prediction,
    Predictions,
    SelfInfluences,
)
from kgtrace_server.schema.operation import IndexInfo

LIMIT = 2000
"""Bytes of an answer in UTF-8: an assistant's context is dear, and it can ask for more."""

_WIDEST = 64
"""Bytes of a label or name; three of each leave room for the rest of a line."""

_RESERVED = 100
"""Bytes of the line that counts the items left out."""


def predictions(answer: Predictions) -> str:
    """Return the best completions."""
    if not answer.predictions:
        return "no entity is left: each one makes a training triple"
    example = answer.predictions[0].triple
    known = (_named(example.head), _named(example.relation), "?")
    if answer.direction == "head":
        known = ("?", _named(example.relation), _named(example.tail))
    lines = [
        f"{position}. {_named(each.entity)}: {_facts(each)}" for position, each in enumerate(answer.predictions, 1)
    ]
    return _page([f"{' | '.join(known)}: best {answer.direction}s; all entities were scored"], lines)


def influences(answer: Influences) -> str:
    """Return the training triples that influenced one test triple."""
    (result,) = answer.results
    notes = (f"note: {printable(note)}" for note in result.notes)
    head = [f"{_triple(result.triple)}: {_facts(result)}", _proof(result), *notes]
    if not result.influences:
        return _page([*head, "no training triple may be named"], [])
    lines = [
        f"{position}. {_number(each.influence)}: {_triple(each.triple)} ({_place(each)})"
        for position, each in enumerate(result.influences, 1)
    ]
    return _page([*head, f"influence ({answer.score}) of training triples:"], lines)


def self_influences(answer: SelfInfluences) -> str:
    """Return the training triples of largest self-influence."""
    lines = [
        f"{position}. {_number(each.self_influence)}: {_triple(each.triple)} (row {each.train_index})"
        for position, each in enumerate(answer.self_influences, 1)
    ]
    if not lines:
        return "no training triple may be named"
    head = f"self-influence ({answer.score}) of training triples, the most suspicious first; all were ranked"
    return _page([head], lines)


def named(matches: Sequence[Named]) -> str:
    """Return entities or relations."""
    if not matches:
        return "nothing matches: search for a shorter part of the label or name"
    return _page([], [f"{_named(each)}, id {each.id}" for each in matches])


def index(info: IndexInfo, relations: Sequence[Named]) -> str:
    """Describe an index, and name relations of it as far as there is room."""
    counts = ", ".join(f"{info.counts[kind]:,} {kind}" for kind in ("triples", "entities", "relations"))
    head = [f"index of a {info.model}: {counts}; built at {info.built_at}, generation {info.generation}"]
    if info.sample_rate != 1:
        head.append(f"a sample of {info.sample_rate:.3g} of the training triples is indexed: no others can be named")
    kind = info.projection["type"]
    proved = "are proved exact" if kind in ("pca", "none") else f"are not certified ({kind} projection)"
    head += [f"lists of influences {proved}", "relations:"]
    return _page(head, list(map(_named, relations)), info.counts["relations"])


def cut(text: str, limit: int = LIMIT) -> str:
    """Return text of at most so many bytes in UTF-8."""
    if len(content := text.encode()) <= limit:
        return text
    return content[: limit - len("…".encode())].decode(errors="ignore") + "…"


def _page(head: Sequence[str], lines: Sequence[str], total: int | None = None) -> str:
    """Join lines as far as there is room, and count those left out, of ``total`` if there are more than these."""
    page = "".join(f"{line}\n" for line in head)
    used = len(page.encode())
    for shown, line in enumerate(lines):
        used += len(line.encode()) + 1
        if used > LIMIT - _RESERVED:
            page += f"and {(total or len(lines)) - shown} more, for which an answer has no room"
            break
        page += f"{line}\n"
    return cut(page.rstrip("\n"))


def _proof(result: Explanation) -> str:
    if result.certified:
        return "proved exact: no other training triple belongs in this list"
    excess = "by an unknown amount" if result.bound_gap is None else f"by up to {_number(result.bound_gap)}"
    return f"not certified: a training triple that is not in this list could exceed the last one {excess}"


def _facts(scored: Explanation | Prediction) -> str:
    trained = "a training triple" if scored.in_training else "not a training triple"
    return f"score {_number(scored.score)}, rank {scored.rank}, {trained}"


def _triple(triple: NamedTriple) -> str:
    return " | ".join(map(_named, (triple.head, triple.relation, triple.tail)))


def _place(influence: Influence) -> str:
    row = f"row {influence.train_index}"
    return row if influence.reason is None else f"{row}, {influence.reason}"


def _named(entry: Named) -> str:
    """``name [label]``, or the label alone; one that is cut has its id behind it, which tools take as well."""
    label = cut(shown := printable(entry.label), _WIDEST)
    if label != shown or shown != entry.label:
        label += f" (id {entry.id})"
    return f"{cut(printable(entry.name), _WIDEST)} [{label}]" if entry.name and entry.name != entry.label else label


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
