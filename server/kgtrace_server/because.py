"""Reasons in words: how a training triple is related to the prediction that it influenced."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kgtrace_indexer.answers import Ids, Reason
from kgtrace_server.labels import Labels
from kgtrace_server.schema.answers import NamedTriple

if TYPE_CHECKING:
    from kgtrace_indexer.query.reasons import Reasons


def reasoned(reasons: "Reasons", labels: Labels, prediction: Ids, fact: Ids) -> dict[str, Any]:
    """Return the fields of an answer that relate a training triple to a prediction: its names, and its reason."""
    reason, triple = reasons.of(prediction, fact), labels.triple(*fact)
    path = tuple(labels.triple(*step) for step in reason.path)
    because = words(reason, labels.triple(*prediction), triple, path)
    return {"triple": triple, "reason": reason.name, "because": because, "path": path}


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
