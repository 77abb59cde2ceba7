"""Answers as text for assistants."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from kgtrace_server.mcp import pages
from kgtrace_server.schema import examples
from kgtrace_server.schema.answers import Influence, Influences, Named, NamedTriple, Predictions, SelfInfluences

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=300) | st.sampled_from(["𝕏" * 400, "\x1b" * 400])
NAMED = st.builds(Named, st.integers(0, 2**31), TEXTS, st.none() | TEXTS)
TRIPLES = st.builds(NamedTriple, NAMED, NAMED, NAMED)


def explained(*influences: Influence, **facts: object) -> Influences:
    """The example answer, of these influences."""
    (result,) = examples.INFLUENCES.results
    return replace(examples.INFLUENCES, results=(replace(result, influences=influences, **facts),))  # type: ignore[arg-type]


@given(TRIPLES, TRIPLES, st.integers(1, 50))
def test_no_answer_is_longer_than_the_limit(test: NamedTriple, training: NamedTriple, count: int) -> None:
    """Whatever the labels; the first training triple is always there, and those left out are counted."""
    influence = Influence(1234, training, 1.0, 0.5, reason="same-relation-tail")
    texts = [
        pages.influences(explained(*[influence] * count, triple=test, certified=False, bound_gap=None)),
        pages.self_influences(
            replace(examples.SELF_INFLUENCES, self_influences=(examples.SELF_INFLUENCES.self_influences * count))
        ),
        pages.predictions(
            replace(
                examples.PREDICTIONS,
                predictions=(replace(examples.PREDICTIONS.predictions[0], entity=test.head, triple=test),) * count,
            )
        ),
        pages.named([training.tail] * count),
        pages.index(examples.INDEX, [training.relation] * count),
    ]
    for text in texts:
        assert len(text.encode()) <= pages.LIMIT
        assert "\x1b" not in text
    lines = texts[0].splitlines()
    assert lines[3].startswith("1. 1: ")
    shown = sum(line.endswith("(row 1234, same-relation-tail)") for line in lines)
    assert shown == count or lines[-1] == f"and {count - shown} more, for which an answer has no room"


def test_a_proof_is_told_in_words() -> None:
    """And what its absence means."""
    (certified, open_, unknown) = (
        pages.influences(explained(certified=proved, bound_gap=gap)).splitlines()[1]
        for proved, gap in ((True, 0.0), (False, 0.25), (False, None))
    )
    assert certified == "proved exact: no other training triple belongs in this list"
    assert open_ == "not certified: a training triple that is not in this list could exceed the last one by up to 0.25"
    assert unknown.endswith("by an unknown amount")


def test_notes_and_missing_triples_are_told() -> None:
    """An answer without influences says so."""
    lines = pages.influences(explained(notes=("the head occurs in no training triple",))).splitlines()
    assert lines[0] == "aspirin [Q18216] | treats | headache [Q86]: score 7.31, rank 2, not a training triple"
    assert lines[2:] == ["note: the head occurs in no training triple", "no training triple may be named"]
    assert pages.named([]).startswith("nothing matches")
    assert pages.predictions(Predictions("g", "tail", ())).startswith("no entity is left")
    assert (
        pages.self_influences(SelfInfluences(generation="g", self_influences=())) == "no training triple may be named"
    )


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        (Named(7, "Q86", None), "Q86, id 7"),
        (Named(7, "Q86", "headache"), "headache [Q86], id 7"),
        (Named(7, "headache", "headache"), "headache, id 7"),
        (Named(7, "x" * 70, None), "x" * 61 + "… (id 7), id 7"),
        (Named(7, "a\nb", "c\x1bd"), "c\\x1bd [a\\nb (id 7)], id 7"),
    ],
)
def test_what_is_shown_can_be_asked_for(entry: Named, shown: str) -> None:
    """A label that is not whole, or not as it is, has its id behind it; no label begins a line of its own."""
    assert pages.named([entry]) == shown


def test_an_index_without_proofs_says_so() -> None:
    """So does one of a sample."""
    info = replace(examples.INDEX, projection={"type": "gaussian", "dim": 64, "seed": 0}, sample_rate=0.5)
    text = pages.index(info, [Named(1, "treats", None)])
    assert "lists of influences are not certified (gaussian projection)" in text
    assert "a sample of 0.5 of the training triples is indexed" in text
    assert text.endswith("relations:\ntreats")
    assert "lists of influences are proved exact" in pages.index(examples.INDEX, [])


def test_relations_left_out_are_counted_among_all() -> None:
    """Though no more than so many are looked up."""
    info = replace(examples.INDEX, counts={"triples": 5, "entities": 5, "relations": 5000})
    *_, last, more = pages.index(info, [Named(i, f"r{i:03}", None) for i in range(1000)]).splitlines()
    assert more == f"and {5000 - int(last[1:]) - 1} more, for which an answer has no room"
