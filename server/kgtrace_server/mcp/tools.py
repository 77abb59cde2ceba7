"""The tools: each asks a client, and answers in text. Their descriptions are all that an assistant knows of kgtrace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from inspect import getdoc
from threading import Lock
from typing import Annotated, Literal

from pydantic import Field

from kgtrace_indexer.names import Direction, Order, Score
from kgtrace_server.client import Client, LocalClient
from kgtrace_server.mcp import pages
from kgtrace_server.printable import printable
from kgtrace_server.schema.options import RefsByField
from kgtrace_store.errors import KgtraceError, MissingExtra

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as e:
    raise MissingExtra("the Model Context Protocol needs its SDK: pip install 'kgtrace[mcp]'") from e

_INSTRUCTIONS = """\
A knowledge-graph embedding model scores triples (head, relation, tail). kgtrace tells which training triples made it \
predict a triple. Find labels with search_entities, ask the model with predict, and pass one of its completions to \
explain. An entity is shown as name [label], or as its label alone: pass the label, or its integer id, to other tools. \
Influence says that training on a triple raised the score of the prediction (positive) or lowered it (negative), not \
that the triple is true, nor that the prediction is."""

Entity = Annotated[str | int, Field(description="Label of an entity, exactly as search_entities shows it, or its id.")]
Relation = Annotated[str | int, Field(description="Label of a relation, exactly as index_info shows it, or its id.")]
TopK = Annotated[int, Field(ge=1, le=50, description="How many to name.")]


def create_server(client: Client | LocalClient) -> MCPServer:
    """Return a server whose tools ask a client, one call after another."""
    server: MCPServer = MCPServer(
        "kgtrace", version=version("kgtrace"), instructions=_INSTRUCTIONS, log_level="WARNING"
    )
    hints = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    turn = Lock()

    def tool(function: Callable[..., str]) -> None:
        server.add_tool(function, description=getdoc(function), annotations=hints, structured_output=False)

    @contextmanager
    def asking() -> Iterator[None]:
        """Take turns, since tools run in threads of their own; errors of kgtrace are answers for the assistant."""
        try:
            with turn:
                yield
        except KgtraceError as e:
            raise ToolError(pages.cut(printable(str(e)), pages.LIMIT - 100)) from e  # behind a few words of the SDK's

    @tool
    def predict(
        relation: Relation,
        head: Annotated[Entity | None, Field(description="Label or id; given, tails are predicted.")] = None,
        tail: Annotated[Entity | None, Field(description="Label or id; given, heads are predicted.")] = None,
        top_k: TopK = 10,
        only_new: Annotated[bool, Field(description="Leave out completions that are training triples.")] = False,
    ) -> str:
        """Return the model's best completions of a triple whose tail (or head) is missing.

        Give the relation and exactly one of head and tail. Each completion has its score, its rank among all entities
        that do not make another training triple (1 is best), and whether it is a training triple.
        """
        with asking():
            answer = client.predictions(relation=relation, head=head, tail=tail, top_k=top_k, filtered=only_new)
        return pages.predictions(answer)

    @tool
    def explain(
        head: Entity,
        relation: Relation,
        tail: Entity,
        top_k: TopK = 10,
        order: Annotated[
            Order,
            Field(description="proponents speak for the triple, opponents against it; absolute lists both."),
        ] = "proponents",
        direction: Annotated[Direction, Field(description="Why this tail, or why this head.")] = "tail",
        score: Annotated[
            Score | None,
            Field(description="Kind of influence; by default as the index was built, which is usually best."),
        ] = None,
    ) -> str:
        """Return the training triples that made the model score a triple as it does, the most influential first.

        The triple may be a prediction, a training triple or any other. The answer has the triple's own score and its
        rank among all tails (or heads), and says whether the list is proved exact or, if not, by how much an overlooked
        training triple could exceed it.
        """
        with asking():
            answer = client.influences(
                [(head, relation, tail)], top_k=top_k, order=order, direction=direction, score=score
            )
        return pages.influences(answer)

    @tool
    def search_entities(
        text: Annotated[
            str, Field(max_length=1000, description="Part of a label or name; upper and lower case alike.")
        ],
        kind: Annotated[Literal["entity", "relation"], Field(description="What to search.")] = "entity",
        limit: TopK = 10,
    ) -> str:
        """Find entities, or relations, by label or name: those that equal the text, start with it, or contain it."""
        with asking():
            matches = client.entities(text, limit) if kind == "entity" else client.relations(text, limit)
        return pages.named(matches)

    @tool
    def self_influence(
        top_k: TopK = 10,
        relation: Annotated[Relation | None, Field(description="Label or id: only triples of this relation.")] = None,
    ) -> str:
        """Return the most suspicious training triples: those with the largest influence on themselves.

        The model fits them worst, so errors in the data are more frequent among them. Rare or surprising facts are,
        too: look at each before you call it wrong.
        """
        must: RefsByField = {} if relation is None else {"relation": [relation]}
        with asking():
            answer = client.self_influence(top_k=top_k, must=must)
        return pages.self_influences(answer)

    @tool
    def index_info() -> str:
        """Describe the model and its training triples: how many, of which relations, and whether answers are proved."""
        with asking():
            info, relations = client.index(), client.relations(limit=1000)
        return pages.index(info, relations)

    return server
