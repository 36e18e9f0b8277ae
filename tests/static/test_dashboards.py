"""The dashboards are what their generator writes, what Grafana's schema allows, what our lint asks for."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import jsonschema
import promql_parser
import pytest

from coldframe.exporters import containers as container_exporter
from coldframe.exporters import runs as fl_exporter
from dashboards.__main__ import DIRECTORY, generate
from dashboards.board import DATASOURCE_UID
from dashboards.contract import METRICS, TARGET
from tests.dashboards import Series, misspelt, options, problems, queries, resolve
from tests.static.dashboard_lint import breaches, panels, query_breaches, selectors
from tests.static.repository import ROOT, load

DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DIRECTORY.glob("*.json"))
}
SCHEMA = json.loads((ROOT / "dashboards" / "dashboard.schema.json").read_text(encoding="utf-8"))

each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def test_there_are_four_with_addresses_that_stay() -> None:
    assert {dashboard["uid"]: dashboard["title"] for dashboard in DASHBOARDS.values()} == {
        "coldframe-federation": "Federation",
        "coldframe-client": "Client",
        "coldframe-machine": "Machine",
        "coldframe-run": "Run comparison",
    }


def test_generator_writes_what_is_committed() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in DIRECTORY.glob("*")}
    assert generate() == committed, "type .venv/bin/python -m dashboards"


@each_dashboard
def test_schema_of_grafana_allows_it(name: str) -> None:
    errors = jsonschema.Draft7Validator(SCHEMA).iter_errors(DASHBOARDS[name])
    assert [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors] == []


def test_schema_refuses_what_grafana_does_not_know() -> None:
    wrong = copy.deepcopy(DASHBOARDS["client"])
    wrong["refesh"] = "5s"
    wrong["panels"][0]["gridPos"]["w"] = "wide"
    assert len(list(jsonschema.Draft7Validator(SCHEMA).iter_errors(wrong))) >= 2


@each_dashboard
def test_lint_finds_nothing(name: str) -> None:
    assert breaches(DASHBOARDS[name]) == []


@each_dashboard
def test_variables_take_their_first_value_and_the_datasource_is_the_provisioned_one(name: str) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARDS[name]["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == DATASOURCE_UID
    assert all(item.get("refresh") == 2 for key, item in variables.items() if key != "datasource")
    assert "federation" in variables


@each_dashboard
def test_links_lead_to_dashboards_and_variables_that_exist(name: str) -> None:
    text = json.dumps(DASHBOARDS[name])
    for uid, arguments in re.findall(r"/d/([\w-]+)\?([^\"]*)", text):
        (there,) = [dashboard for dashboard in DASHBOARDS.values() if dashboard["uid"] == uid]
        known = {variable["name"] for variable in there["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", arguments)) <= known, arguments
    for panel in panels(DASHBOARDS[name]):
        titles = {
            title
            for transformation in panel.get("transformations", [])
            for title in transformation["options"].get("renameByName", {}).values()
        }
        assert set(re.findall(r"__data\.fields\.(\w+)", json.dumps(panel))) <= titles


def _plant(change: Any) -> list[str]:
    dashboard = copy.deepcopy(DASHBOARDS["client"])
    shown = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    change(dashboard, shown)
    return breaches(dashboard)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d, p: p[1].update(id=p[0]["id"]), "id 1 is not unique"),
        (lambda d, p: p[1]["gridPos"].update(x=0), "overlaps"),
        (lambda d, p: p[1]["gridPos"].update(x=22), "over the edge"),
        (lambda d, p: p[0].update(description=" "), "no description"),
        (lambda d, p: p[0]["fieldConfig"]["defaults"].pop("unit"), "no unit"),
        (
            lambda d, p: p[0].update(datasource={"type": "prometheus", "uid": "PBFA97CFB590B2093"}),
            "datasource",
        ),
        (lambda d, p: p[0]["targets"][0].pop("datasource"), "datasource"),
        (lambda d, p: p[0]["targets"].append(p[0]["targets"][0]), "refIds"),
        (lambda d, p: p[0].update(targets=[]), "no query"),
        (lambda d, p: d["templating"]["list"].pop(0), "no datasource variable"),
        (lambda d, p: d["annotations"]["list"][0].update(expr="up"), "not restricted to the federation"),
        (lambda d, p: p[0]["targets"][0].update(legendFormat="{{partner}}"), "the label partner"),
    ],
)
def test_lint_finds_a_breach(change: Any, words: str) -> None:
    assert any(words in breach for breach in _plant(change)), _plant(change)


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ('rate(container_cpu_usage_seconds_total{federation="$federation"}[5m])', "not $__rate_interval"),
        ('fl_run_round{federation="$federation"} or vector(0)', "hides"),
        ('fl_run_rounds{federation="$federation"}', "unknown metric fl_run_rounds"),
        ('fl_run_round{federation="$federation", rnu="1"}', "no label rnu"),
        ('sum by (clinet) (fl_client_online{federation="$federation"})', "the label clinet"),
        ('fl_run_round{federation="$fedration"}', "unknown variable"),
        ("sum(fl_run_round", "no PromQL"),
    ],
)
def test_lint_finds_a_wrong_query(expr: str, words: str) -> None:
    found = query_breaches(expr, {"federation"})
    assert any(words in breach for breach in found), found


class Contract:
    """A source that has one series of every metric of the contract, with all of its labels."""

    def instant(self, expr: str, at: float) -> list[Series]:
        tree = promql_parser.parse(expr) if not expr.startswith("{") else None
        used = [selector.name for selector in selectors(tree)] if tree else ["up"]
        if any(name not in METRICS for name in used):
            return []
        labels = {label for name in used for label in (*METRICS[name], *TARGET)}
        if "label_join" in expr:
            labels.add("title")
        if expr.startswith(("1 + 2 * round(", "floor(", "ceil(")):
            return [({}, [60001.0])]
        return [(dict.fromkeys(labels, "x"), [1.0])]

    def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        return self.instant(expr, end)


def test_contract_is_kept_by_the_exporters_and_the_rules() -> None:
    rules = load(ROOT / "roles" / "prometheus" / "files" / "rules" / "recording.yml")
    made = {rule["record"] for group in rules["groups"] for rule in group["rules"]}
    made |= {*container_exporter.FAMILIES, *fl_exporter.FAMILIES}
    ours = {name for name in METRICS if name.startswith(("fl_", "container_")) or ":" in name}
    assert ours - made == set()


@each_dashboard
def test_every_query_finds_the_metrics_of_the_contract(name: str) -> None:
    assert problems(DASHBOARDS[name], Contract(), 0, 60) == []


@each_dashboard
def test_a_typo_in_any_query_is_found(name: str) -> None:
    for query in queries(DASHBOARDS[name]):
        wrong = json.loads(
            json.dumps(DASHBOARDS[name]).replace(json.dumps(query.expr), json.dumps(misspelt(query.expr)))
        )
        assert any("no data" in problem for problem in problems(wrong, Contract(), 0, 60)), query


def test_missing_labels_and_empty_values_are_found() -> None:
    class Bare(Contract):
        def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
            return [({}, [float("nan") if "straggler" in expr else 1.0])]

        def instant(self, expr: str, at: float) -> list[Series]:
            return [({}, [1.0])] if "topk" in expr else super().instant(expr, at)

    found = problems(DASHBOARDS["federation"], Bare(), 0, 60)
    assert any("Slowest clients" in problem and "the label client" in problem for problem in found)
    assert any("Straggler gap" in problem and "no data" in problem for problem in found)


@each_dashboard
def test_no_panel_has_a_line_or_a_bar_for_every_client(name: str) -> None:
    """With 200 clients a legend would cover the panel: bands, the highest few, a heat map, or a table."""
    for panel in panels(DASHBOARDS[name]):
        for target in panel["targets"]:
            shown = {"client", "partition"} & set(re.findall(r"\{\{(\w+)", target.get("legendFormat", "")))
            few = 'client="$client"' in target["expr"] or (
                panel["type"] == "bargauge" and "topk" in target["expr"]
            )
            assert not shown or few or panel["type"] == "heatmap", panel["title"]


def test_rows_of_a_heat_map_are_in_the_order_of_partition_ids() -> None:
    """Evaluated by hand: what label_replace and label_join do, and how Prometheus sorts what they make."""
    (panel, *_) = [p for p in panels(DASHBOARDS["federation"]) if p["type"] == "heatmap"]
    expr = panel["targets"][0]["expr"]
    steps = re.findall(r'"pad", "(0+)", "partition", "(\.+)"', expr)
    assert expr.startswith("label_join(")
    assert expr.endswith('"at", "", "pad", "partition")')

    def at(partition: str) -> str:
        pad = next((zeros for zeros, pattern in steps if re.fullmatch(pattern, partition)), "")
        return pad + partition

    ids = [0, 1, 2, 9, 10, 11, 99, 100, 101, 999, 1000, 1001]
    assert sorted(ids, key=lambda number: at(str(number))) == ids
    assert panel["options"]["yAxis"]["reverse"] is True, "the first is on top"


def test_the_time_range_of_the_chosen_run_is_a_link_away() -> None:
    (link,) = [link for link in DASHBOARDS["federation"]["links"] if link["type"] == "link"]
    query, _, span = link["url"].partition("&from=")
    assert query == "/d/coldframe-federation?var-federation=${federation}&var-run=${run}"
    assert span == "${begin}&to=${end}"
    values = resolve(DASHBOARDS["federation"], Contract(), 0)
    assert (values["begin"], values["end"]) == ("60001", "60001")
    (table,) = [panel for panel in panels(DASHBOARDS["run"]) if panel["type"] == "table"]
    assert "from=${__data.fields.Started.numeric}&to=${__data.fields.Until.numeric}" in json.dumps(table)


def test_what_happens_to_a_run_is_marked() -> None:
    """A resume too: the count of a resumed run begins with 1, and is marked where the run begins."""
    marks = {item["name"]: item["expr"] for item in DASHBOARDS["federation"]["annotations"]["list"]}
    assert {"Failures", "Checkpoint failed", "Resumed"} <= set(marks)
    assert "increase(fl_run_checkpoint_failures_total{" in marks["Checkpoint failed"]
    count, _, began = marks["Resumed"].partition(" * on (run) ")
    assert "fl_run_resumes_total{" in count and "increase" not in count
    assert "time() - max by (run) (fl_run_started_timestamp_seconds{" in began and "< bool 15" in began


def test_newest_run_is_the_default_and_the_shift_is_a_number() -> None:
    class Runs(Contract):
        def instant(self, expr: str, at: float) -> list[Series]:
            if "title" not in expr:
                return super().instant(expr, at)
            runs = {"22": "baseline fedavg 22", "11": " fedprox 11"}
            return [({"run": run, "strategy": "s", "title": title}, [1.0]) for run, title in runs.items()]

    variables = {item["name"]: item for item in DASHBOARDS["run"]["templating"]["list"]}
    assert options(variables["run"], Runs(), 0, {"federation": "a"}) == ["22", "11"]
    assert resolve(DASHBOARDS["run"], Runs(), 0)["shift"] == "60001"
    with pytest.raises(ValueError, match="not among run's values"):
        resolve(DASHBOARDS["run"], Runs(), 0, {"run": "33"})
