"""What a dashboard of ours must hold to, as a function that lists the breaches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import promql_parser
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    MatrixSelector,
    ParenExpr,
    UnaryExpr,
    VectorSelector,
)

from dashboards.contract import METRICS, TARGET
from tests.dashboards import interpolate, panels

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RANGE = re.compile(r"\[([^\]]*)\]")
VARIABLE = re.compile(r"\$\{?(\w+)")
LABELS = re.compile(r"\{\{\s*(\w+)\s*\}\}")
BUILT_IN = {"__rate_interval"}
# Made by label_join in the query of a variable.
MADE = {"title"}


def selectors(node: Any) -> Iterator[VectorSelector]:
    """Yield the selectors of metrics below a node of a parsed expression."""
    match node:
        case VectorSelector():
            yield node
        case MatrixSelector():
            yield node.vector_selector
        case BinaryExpr():
            yield from selectors(node.lhs)
            yield from selectors(node.rhs)
        case Call():
            for argument in node.args:
                yield from selectors(argument)
        case AggregateExpr() | ParenExpr() | UnaryExpr():
            yield from selectors(node.expr)


def groupings(node: Any) -> Iterator[str]:
    """Yield the labels that aggregations below a node keep."""
    match node:
        case BinaryExpr():
            yield from groupings(node.lhs)
            yield from groupings(node.rhs)
        case Call():
            for argument in node.args:
                yield from groupings(argument)
        case AggregateExpr():
            if node.modifier is not None:
                yield from node.modifier.labels
            yield from groupings(node.expr)
        case ParenExpr() | UnaryExpr():
            yield from groupings(node.expr)


def query_breaches(expr: str, variables: set[str], shown: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """List what is wrong with an expression; `shown` are the labels that its place shows."""
    unknown = set(VARIABLE.findall(expr)) - variables - BUILT_IN
    if unknown:
        return [f"unknown variable {name}" for name in sorted(unknown)]
    found = [
        f"the range [{given}] is not $__rate_interval"
        for given in RANGE.findall(expr)
        if given != "$__rate_interval"
    ]
    if re.search(r"\bor\s+vector\s*\(", expr):
        found.append("`or vector(…)` hides that there is no data")
    try:
        tree = promql_parser.parse(interpolate(expr, dict.fromkeys(variables, "1")))
    except ValueError as error:
        return [*found, f"no PromQL: {error}"]
    known: set[str] = set()
    for selector in selectors(tree):
        if selector.name not in METRICS:
            found.append(f"unknown metric {selector.name}")
            continue
        labels = {*METRICS[selector.name], *TARGET}
        known |= labels
        used = {matcher.name for matcher in selector.matchers.matchers}
        found += [f"{selector.name} has no label {name}" for name in sorted(used - labels)]
        if "federation" not in used and "federation" in variables:
            found.append(f"{selector.name} is not restricted to the federation")
    found += [
        f"no metric has the label {name}" for name in sorted((set(groupings(tree)) | shown) - known - MADE)
    ]
    return found


def panel_breaches(panel: Mapping[str, Any], variables: set[str]) -> list[str]:
    """List what is wrong with a panel."""
    found = [f"no {key}" for key in ("title", "description") if not panel.get(key, "").strip()]
    if not panel["fieldConfig"]["defaults"].get("unit"):
        found.append("no unit")
    if panel.get("datasource") != DATASOURCE:
        found.append("its datasource is not the variable")
    if not panel.get("targets"):
        found.append("no query")
    letters = [target["refId"] for target in panel.get("targets", [])]
    if len(set(letters)) != len(letters):
        found.append(f"refIds {letters} are not unique")
    for target in panel.get("targets", []):
        if target.get("datasource") != DATASOURCE:
            found.append(f"{target['refId']}: its datasource is not the variable")
        shown = set(LABELS.findall(target.get("legendFormat", "")))
        found += [
            f"{target['refId']}: {breach}" for breach in query_breaches(target["expr"], variables, shown)
        ]
    return found


def _cells(panel: Mapping[str, Any]) -> set[tuple[int, int]]:
    grid = panel["gridPos"]
    return {
        (x, y)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    }


def breaches(dashboard: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a dashboard."""
    found = []
    everything = [
        *dashboard["panels"],
        *(inner for row in dashboard["panels"] for inner in row.get("panels", [])),
    ]
    twice = [number for number, times in Counter(panel["id"] for panel in everything).items() if times > 1]
    found += [f"the panel id {number} is not unique" for number in twice]
    for one, other in combinations(dashboard["panels"], 2):
        if _cells(one) & _cells(other):
            found.append(f"{one['title']} overlaps {other['title']}")
    for panel in dashboard["panels"]:
        if panel["gridPos"]["x"] + panel["gridPos"]["w"] > 24:
            found.append(f"{panel['title']} reaches over the edge")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    if "datasource" not in variables:
        found.append("no datasource variable")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query" and variable.get("datasource") != DATASOURCE:
            found.append(f"variable {variable['name']}: its datasource is not the variable")
    for panel in panels(dashboard):
        found += [f"{panel['title']}: {breach}" for breach in panel_breaches(panel, variables)]
    for annotation in dashboard["annotations"]["list"]:
        shown = set(LABELS.findall(annotation["titleFormat"])) | set(annotation["tagKeys"].split(","))
        where = f"annotation {annotation['name']}"
        found += [f"{where}: {breach}" for breach in query_breaches(annotation["expr"], variables, shown)]
        if annotation.get("datasource") != DATASOURCE:
            found.append(f"{where}: its datasource is not the variable")
    return found
