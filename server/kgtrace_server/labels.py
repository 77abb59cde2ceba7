"""Ids into labels and names, and back."""

from kgtrace_server.schema.answers import Named, NamedTriple
from kgtrace_server.schema.fields import Ref, TripleRef
from kgtrace_store.vocabulary import Vocabulary


class Labels:
    """The labels of a vocabulary. Raises `UnknownLabel` and `IdOutOfRange` for what it lacks."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def ids(self, head: Ref, relation: Ref, tail: Ref) -> tuple[int, int, int]:
        """Look a triple up."""
        vocabulary = self._vocabulary
        return vocabulary.resolve_entity(head), vocabulary.resolve_relation(relation), vocabulary.resolve_entity(tail)

    def triple_ids(self, triple: TripleRef) -> tuple[int, int, int]:
        """Look the triple of a question up."""
        return self.ids(triple.head, triple.relation, triple.tail)

    def triple(self, head: int, relation: int, tail: int) -> NamedTriple:
        """Name a triple."""
        return NamedTriple(self.entity(head), self.relation(relation), self.entity(tail))

    def entity(self, i: int) -> Named:
        """Name an entity."""
        return Named(i, self._vocabulary.entities[i], self._vocabulary.entity_names.get(i))

    def relation(self, i: int) -> Named:
        """Name a relation."""
        return Named(i, self._vocabulary.relations[i], self._vocabulary.relation_names.get(i))
