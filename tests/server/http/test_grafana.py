"""The Grafana dashboard asks for what the service tells, and shows all of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kgtrace_server.http.app import create_app
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store import IndexRoot
from tests.server.conftest import Client

DASHBOARD = Path(__file__).parents[3] / "docker" / "grafana" / "kgtrace.json"
ADDED = {"job", "instance"}
"""Labels that Prometheus gives to whatever it scrapes."""
GRAFANAS = {"$__rate_interval": "5m", "$job": "kgtrace", "$instance": ".*"}
"""What Grafana puts in the place of its variables."""
UNITS = {"s", "reqps", "percentunit", "bytes", "short", "none"}

Exposed = dict[str, dict[str, set[str]]]
"""By a sample's name, the values of each of its labels."""


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """The file."""
    content: dict[str, Any] = json.loads(DASHBOARD.read_bytes())
    return content


@pytest.fixture
def exposed(service: Service, root: Path) -> Exposed:
    """What ``/metrics`` tells once a generation is loaded and a question was answered."""
    client = Client(create_app(lambda _: service, Settings(index=root, admin_key="adm1n", deadline=600)))
    live = IndexRoot(root).current()
    client.post("/v1/admin/publish", {"generation": live}, headers={"X-API-Key": "adm1n"})
    assert client.post("/v1/influences", {"triples": [[0, 0, 0]]}).status_code == 200
    found: Exposed = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {label: set() for label in ADDED})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, promql.Expr]]:
    """Each query, and the legend of what it finds."""
    for asked in [target for panel in panels(dashboard) for target in panel["targets"]]:
        yield asked["legendFormat"], parsed(asked["expr"])
    for annotation in dashboard["annotations"]["list"]:
        yield "", parsed(annotation["expr"])


def parsed(text: str) -> promql.Expr:
    for name, value in GRAFANAS.items():
        text = text.replace(name, value)
    assert "$" not in text
    return promql.parse(text)


def parts(expression: promql.Expr) -> list[promql.Expr]:
    """The expression and all that it is made of."""
    found: list[promql.Expr] = []

    def visit(node: promql.Expr) -> None:
        found.append(node.vector_selector if isinstance(node, promql.MatrixSelector) else node)

    promql.walk(expression, visit)
    return found


def selectors(expression: promql.Expr) -> list[promql.VectorSelector]:
    return [part for part in parts(expression) if isinstance(part, promql.VectorSelector)]


def test_queries_name_what_is_exposed(dashboard: dict[str, Any], exposed: Exposed) -> None:
    """Every metric, label and compared value of every query is one that the service tells."""
    for _, expression in expressions(dashboard):
        for selector in selectors(expression):
            labels = exposed[selector.name]
            for matcher in selector.matchers.matchers:
                assert matcher.name in labels, f"{selector.name} has no label {matcher.name}"
                if matcher.name not in ADDED:
                    assert matcher.value in labels[matcher.name]
        told = {label for selector in selectors(expression) for label in exposed[selector.name]}
        for part in parts(expression):
            if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
                assert set(part.modifier.labels) <= told


def test_every_query_is_of_one_service(dashboard: dict[str, Any]) -> None:
    """The two variables above the panels hold for all of them."""
    for _, expression in expressions(dashboard):
        for selector in selectors(expression):
            assert {matcher.name for matcher in selector.matchers.matchers} >= ADDED


def test_counters_are_looked_at_as_rates(dashboard: dict[str, Any]) -> None:
    """What only ever grows is never shown as it is."""
    for _, expression in expressions(dashboard):
        nodes = parts(expression)
        rated = {
            selector.name
            for node in nodes
            if isinstance(node, promql.Call) and node.func.name in ("rate", "increase")
            for selector in selectors(node)
        }
        named = {selector.name for selector in selectors(expression)}
        assert {name for name in named if re.search(r"_(total|sum|count|bucket)$", name)} <= rated


def test_legends_name_labels_that_are_kept(dashboard: dict[str, Any]) -> None:
    """A legend shows what the query grouped by, or what a plain sample has."""
    for legend, expression in expressions(dashboard):
        aggregations = [part for part in parts(expression) if isinstance(part, promql.AggregateExpr)]
        kept = {label for part in aggregations if part.modifier is not None for label in part.modifier.labels}
        assert set(re.findall(r"{{(\w+)}}", legend)) <= (kept if aggregations else ADDED)


def test_everything_of_ours_is_shown(dashboard: dict[str, Any], exposed: Exposed) -> None:
    """No metric of the service is missing on the dashboard."""
    shown = {selector.name for _, expression in expressions(dashboard) for selector in selectors(expression)}
    families = {re.sub(r"_(total|sum|count|bucket|created|info)$", "", name) for name in exposed}
    ours = {family for family in families if family.startswith("kgtrace_")}
    assert ours == {re.sub(r"_(total|sum|count|bucket|info)$", "", name) for name in shown if name in exposed} & ours


def test_panels_can_be_imported(dashboard: dict[str, Any]) -> None:
    """Ids are unique, units are said, panels do not overlap, and the source of data is chosen by a variable."""
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
