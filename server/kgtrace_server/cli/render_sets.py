"""Answers about sets as text for people."""

from collections.abc import Sequence

from kgtrace_server.cli.render import number, show, shown, table
from kgtrace_server.schema.sets import Completion, Fact, PredictedScore, SetExplanation, WhatIf


def page(answer: WhatIf | SetExplanation) -> str:
    """Return an answer as a page of text."""
    if isinstance(answer, WhatIf):
        return _what_if(answer)
    return _necessary(answer) if answer.mode == "necessary" else _sufficient(answer)


def _what_if(answer: WhatIf) -> str:
    return (
        f"{'  '.join(shown(answer.triple))}\n  without {_count(answer.facts)}: {_score(answer.score)}, "
        f"rank {answer.rank.before} → {answer.rank.after}{_source(answer.measured_on)}\n"
        f"{_facts(answer.facts)}\n{_completions(answer.completions)}"
    )


def _necessary(answer: SetExplanation) -> str:
    text = "  ".join(shown(answer.triple)) + "\n"
    if answer.rival is None or answer.score is None:
        return text + f"  none of {answer.candidates:,} candidates makes a set\n"
    found = f"the smallest set without which {show(answer.rival)} is predicted to rank before it"
    if not answer.suffices:
        found = f"no set takes it from rank 1; without this one {show(answer.rival)} comes nearest"
    return text + (
        f"  {found}: {_count(answer.facts)} of {answer.candidates:,} candidates, margin {number(answer.margin)}\n"
        f"  {_score(answer.score)}, rank {answer.rank.before} → {answer.rank.after}{_source(answer.measured_on)}\n"
        f"{_facts(answer.facts)}\n{_completions(answer.completions)}"
    )


def _sufficient(answer: SetExplanation) -> str:
    first = sum(member.rank.after == 1 for member in answer.entities)
    rows: list[tuple[str, ...]] = [("", "rank", "→", "score", "→", "entity")]
    for position, member in enumerate(answer.entities, 1):
        ranks, scores = (member.rank.before, member.rank.after), (member.score.before, member.score.after)
        rows.append((str(position), *map(str, ranks), *map(number, scores), show(member.entity)))
    return (
        f"{'  '.join(shown(answer.triple))}\n  {_count(answer.facts)} of {answer.candidates:,} candidates, told of "
        f"{len(answer.entities)} other entities: predicted first with {first}, mean rank {answer.rank.before:.4g} → "
        f"{answer.rank.after:.4g}\n{_facts(answer.facts)}\n{table(rows, right=range(5))}"
    )


def _count(facts: Sequence[Fact]) -> str:
    return f"{len(facts)} training triple{'' if len(facts) == 1 else 's'}"


def _score(score: PredictedScore) -> str:
    interval = "" if score.low is None else f" ({number(score.low)} … {number(score.high)})"
    return f"score {number(score.before)} → {number(score.after)}{interval}"


def _source(measured_on: str | None) -> str:
    return "; no interval: nothing was measured for such models" if measured_on is None else f"; 90 %: {measured_on}"


def _facts(facts: Sequence[Fact]) -> str:
    """Return a table of training triples, with what each alone changes where that is known."""
    changes = all(fact.change is not None for fact in facts)
    rows = [("", *(("change",) if changes else ()), "row", "head", "relation", "tail", "reason")]
    for position, fact in enumerate(facts, 1):
        change = (number(fact.change),) if changes else ()
        rows.append((str(position), *change, str(fact.train_index), *shown(fact.triple), fact.reason or "unknown"))
    return table(rows, right=range(2 + changes))


def _completions(completions: Sequence[Completion]) -> str:
    rows = [("", "score", "→", "entity")]
    for position, member in enumerate(completions, 1):
        rows.append((str(position), number(member.score.before), number(member.score.after), show(member.entity)))
    return table(rows, right=range(3))
