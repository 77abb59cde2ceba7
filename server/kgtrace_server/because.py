"""Reasons in words: how a training triple is related to the prediction that it influenced."""

from collections.abc import Sequence

from kgtrace_indexer.answers import Reason
from kgtrace_server.schema.answers import NamedTriple


def words(reason: Reason, prediction: NamedTriple, fact: NamedTriple, path: Sequence[NamedTriple]) -> str:
    """Return a reason as a phrase about the training triple, with the names of a ``path``'s triples."""
    match reason.name:
        case "itself":
            return "is the prediction, which is a training triple"
        case "inverse":
            return (
                f"says it the other way round: {reason.share:.0%} of the training triples of "
                f"{fact.relation} are reversed by one of {prediction.relation}"
            )
        case "same-pair":
            return f"links the same two entities by {fact.relation}"
        case "path":
            return f"lies on a path of {len(path)} from head to tail: {'; '.join(map(_text, path))}"
        case "same-head-relation":
            return f"has the same head and relation, and the tail {fact.tail}"
        case "same-relation-tail":
            return f"has the same relation and tail, and the head {fact.head}"
        case "shares-head":
            return f"has the prediction's head, {prediction.head}, by {fact.relation}"
        case "shares-tail":
            return f"has the prediction's tail, {prediction.tail}, by {fact.relation}"
        case "same-relation":
            return "has the same relation between other entities"
        case "none":
            return "has neither entity nor relation in common with the prediction, and no short path leads by it"


def _text(triple: NamedTriple) -> str:
    return f"{triple.head} – {triple.relation} → {triple.tail}"
