"""Runs every query of a dashboard against a Prometheus, as Grafana would, and says which return no data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import requests

RATE_INTERVAL = "30s"
STEP = 5.0  # seconds between the points of a range
# A run that nobody named has no name, and what a foreign app trains with is not known: some series bear the
# label, not all.
OPTIONAL = {"run_name", "dataset", "partitioner", "seed", "strategy"}
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")
_LABEL_VALUES = re.compile(r"label_values\((?:(?P<metric>.+),\s*)?(?P<label>\w+)\)")

Series = tuple[dict[str, str], list[float]]


class Source(Protocol):
    """Whatever answers PromQL."""

    def instant(self, expr: str, at: float) -> list[Series]:
        """Give labels and value of every series at a time."""

    def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Give labels and values of every series over a time."""


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus behind TLS and basic authentication."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    authority: str | bool = True

    def _ask(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = requests.get(
            f"{self.url}/api/v1/{path}",
            params=parameters,
            auth=(self.user, self.password) if self.user else None,
            verify=self.authority,
            timeout=30,
        )
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"{body['error']}: {parameters['query']}")
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    def instant(self, expr: str, at: float) -> list[Series]:
        """Give labels and value of every series at a time."""
        return [
            (item["metric"], [float(item["value"][1])]) for item in self._ask("query", query=expr, time=at)
        ]

    def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Give labels and values of every series over a time."""
        found = self._ask("query_range", query=expr, start=start, end=end, step=step)
        return [(item["metric"], [float(value) for _, value in item["values"]]) for item in found]


@dataclass(frozen=True)
class Query:
    """One expression of a dashboard, where it stands, and the labels that its place shows."""

    where: str
    expr: str
    instant: bool
    labels: frozenset[str]


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the panels that show something, those in collapsed rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def _columns(panel: Mapping[str, Any]) -> set[str]:
    shown: set[str] = set()
    for transformation in panel.get("transformations", []):
        if transformation["id"] == "organize":
            shown |= set(transformation["options"]["renameByName"])
    return {name for name in shown if not name.startswith("Value")}


def queries(dashboard: Mapping[str, Any]) -> list[Query]:
    """Give every query of the dashboard's panels and annotations."""
    found = []
    for panel in panels(dashboard):
        columns = _columns(panel)
        for target in panel["targets"]:
            labels = set(_LABEL.findall(target.get("legendFormat", "")))
            where = f"{dashboard['title']} / {panel['title']} / {target['refId']}"
            # A table merges its queries on the labels that they share: only the widest has all columns.
            if columns and target is max(panel["targets"], key=lambda item: _grouping(item["expr"], columns)):
                labels |= columns
            found.append(Query(where, target["expr"], bool(target.get("instant")), frozenset(labels)))
    for annotation in dashboard["annotations"]["list"]:
        labels = set(_LABEL.findall(annotation["titleFormat"])) | set(annotation["tagKeys"].split(","))
        where = f"{dashboard['title']} / annotation {annotation['name']}"
        found.append(Query(where, annotation["expr"], False, frozenset(labels)))
    return found


def _grouping(expr: str, columns: set[str]) -> int:
    return sum(bool(re.search(rf"\b{name}\b", expr)) for name in columns)


def misspelt(expr: str) -> str:
    """Misspell the first metric of an expression, of each alternative, to prove that it is missed."""
    parts = (re.sub(r"\b([a-z][\w:]*)\{", r"\1x{", part, count=1) for part in expr.split(" or "))
    return " or ".join(parts)


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Put the values of variables into an expression, as Grafana does."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return {"__rate_interval": RATE_INTERVAL, **values}[name]

    return _VARIABLE.sub(value, text)


def options(variable: Mapping[str, Any], source: Source, at: float, values: Mapping[str, str]) -> list[str]:
    """Give the values that Grafana would offer for a variable, in its order."""
    query = interpolate(variable["query"]["query"], values)
    found = _LABEL_VALUES.fullmatch(query)
    if found:
        series = source.instant(found["metric"] or f'{{{found["label"]}!=""}}', at)
        return sorted({labels[found["label"]] for labels, _ in series if found["label"] in labels})
    expr = query.removeprefix("query_result(").removesuffix(")")
    pattern = re.compile(variable["regex"].strip("/").replace("(?<", "(?P<"))
    offered = []
    for labels, (number, *_) in source.instant(expr, at):
        shown = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
        plain = f"{number:f}".rstrip("0").rstrip(".")
        match = pattern.search(f"{{{shown}}} {plain} {at * 1000:.0f}")
        if match:
            offered.append(match["value"] if "value" in match.groupdict() else match[1])
    return offered


def resolve(
    dashboard: Mapping[str, Any], source: Source, at: float, chosen: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Give every variable its default, or the value chosen if it is on offer.

    Raises
    ------
    ValueError
        If a variable has nothing to offer, or not what was chosen.
    """
    values: dict[str, str] = {}
    for variable in dashboard["templating"]["list"]:
        name = variable["name"]
        if variable["type"] == "datasource":
            continue
        offered = options(variable, source, at, values)
        if not offered:
            raise ValueError(f"{dashboard['title']}: the variable {name} has no values")
        values[name] = (chosen or {}).get(name, offered[0])
        if values[name] not in offered:
            raise ValueError(f"{dashboard['title']}: {values[name]} is not among {name}'s values {offered}")
    return values


def problems(
    dashboard: Mapping[str, Any],
    source: Source,
    start: float,
    end: float,
    chosen: Mapping[str, str] | None = None,
) -> list[str]:
    """Say which queries return no data between two times, or series without the labels that are shown."""
    values = resolve(dashboard, source, end, chosen)
    found = []
    for query in queries(dashboard):
        expr = interpolate(query.expr, values)
        try:
            series = source.instant(expr, end) if query.instant else source.range(expr, start, end, STEP)
        except ValueError as error:
            found.append(f"{query.where}: {error}")
            continue
        if not any(not math.isnan(number) for _, numbers in series for number in numbers):
            found.append(f"{query.where}: no data: {expr}")
            continue
        for label in sorted(query.labels):
            having = [bool(labels.get(label)) for labels, _ in series]
            if not (any(having) if label in OPTIONAL else all(having)):
                found.append(f"{query.where}: series without the label {label}: {expr}")
    return found
