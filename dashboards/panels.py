"""The kinds of panel that the dashboards are made of, in one look: curves, figures, bars and tables."""

from __future__ import annotations

import string
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as model
from grafana_foundation_sdk.models import dashboard as dashboard_model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

with warnings.catch_warnings():
    # The SDK prefers the second version of the schema, which Grafana 13 refuses to provision from files.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import (
        bargauge,
        common,
        dashboard,
        heatmap,
        prometheus,
        stat,
        table,
        timeseries,
    )

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

GREEN, AMBER, RED, BLUE, GREY, PURPLE = "#3D9970", "#E6A23C", "#D9534F", "#4878CF", "#8E8E8E", "#8172B2"
# A round's phases keep their colours on every dashboard.
PHASES = {
    "configure": GREY,
    "train": BLUE,
    "aggregate": GREEN,
    "evaluate": AMBER,
    "server_evaluate": PURPLE,
}
CORES = "suffix: cores"

Steps = Iterable[tuple[float | None, str]]
Properties = Mapping[str, Any]
PanelBuilder = Builder[dashboard_model.Panel]


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the name of its series: `{{label}}` stands for a label's value."""

    expr: str
    legend: str = ""


def _targets(queries: Iterable[Query], *, instant: bool, as_table: bool = False) -> list[Builder[Dataquery]]:
    built: list[Builder[Dataquery]] = []
    for letter, query in zip(string.ascii_uppercase, queries, strict=False):
        target = (
            prometheus.Dataquery().ref_id(letter).expr(" ".join(query.expr.split())).datasource(DATASOURCE)
        )
        target = target.instant() if instant else target.range()
        if as_table:
            target = target.format(PromQueryFormat.TABLE)
        if query.legend:
            target = target.legend_format(query.legend)
        built.append(target)
    return built


def thresholds(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Give colours from values on; the first step's value is None."""
    return (
        dashboard.ThresholdsConfig()
        .mode(dashboard_model.ThresholdsMode.ABSOLUTE)
        .steps([dashboard_model.Threshold(value=value, color=color) for value, color in steps])
    )


def color(mode: str, fixed: str | None = None) -> dashboard.FieldColor:
    """Say how series get their colours."""
    built = dashboard.FieldColor().mode(dashboard_model.FieldColorModeId(mode))
    return built.fixed_color(fixed) if fixed else built


def properties(given: Properties) -> list[dashboard_model.DynamicConfigValue]:
    """Turn a dictionary into the properties of an override."""
    return [dashboard_model.DynamicConfigValue(id_val=key, value=value) for key, value in given.items()]


def fixed(value: str) -> dict[str, Any]:
    """Give the property that paints a series."""
    return {"color": {"mode": "fixed", "fixedColor": value}}


def words(options: Mapping[str, tuple[str, str]]) -> list[dashboard_model.ValueMapping]:
    """Show a word and a colour instead of a value."""
    results = {
        value: dashboard_model.ValueMappingResult(text=text, color=paint, index=index)
        for index, (value, (text, paint)) in enumerate(options.items())
    }
    return [dashboard_model.ValueMap(options=results)]


def _address(kind: str, value: str) -> str:
    """Give the address of the dashboard of a client, machine or run, for the federation and time shown."""
    return f"/d/coldframe-{kind}?var-federation=${{federation}}&var-{kind}=${{{value}}}&${{__url_time_range}}"


def _run_in_its_time(value: str, begin: str, end: str) -> str:
    """Give the address of the dashboard Federation with a run, and the time from its begin to its end."""
    shown = f"from=${{{begin}}}&to=${{{end}}}"
    return f"/d/coldframe-federation?var-federation=${{federation}}&var-run=${{{value}}}&{shown}"


def to_the_runs_time() -> dashboard.DashboardLink:
    """Lead to the same dashboard with the chosen run from its begin to its end; needs `begin` and `end`."""
    return (
        dashboard.DashboardLink("Show the whole run")
        .type(dashboard_model.DashboardLinkType.LINK)
        .icon("clock")
        .tooltip("Set the time range to the begin and the end of the chosen run")
        .url(_run_in_its_time("run", "begin", "end"))
    )


def to_client() -> dashboard.DashboardLink:
    """Lead from a series with the label `client` to that client's dashboard."""
    return dashboard.DashboardLink("Show this client").url(_address("client", "__field.labels.client"))


def curves(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    overrides: Mapping[str, Properties] | None = None,
    low: float | None = 0,
    high: float | None = None,
    usual_high: float | None = None,
    decimals: int | None = None,
    steps: bool = False,
    stacked: bool = False,
    limits: Steps = (),
    aside: bool = False,
) -> timeseries.Panel:
    """Show series over time.

    Parameters
    ----------
    overrides : Mapping[str, Properties], optional
        Properties by the series' name; a name between slashes is a regular expression.
    usual_high : float, optional
        The axis reaches at least so far; `high` is where it ends.
    decimals : int, optional
        Of the axis too, before it is written in its unit: with 0 a share has ticks at 0 % and 100 % alone.
    steps : bool
        For values that change once a round: keep each until the next instead of drawing slopes.
    stacked : bool
        For parts of a whole.
    limits : Steps
        Thresholds, drawn as dashed lines.
    aside : bool
        The legend is beside the curves, for names that are many or long.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets(queries, instant=False))
        .unit(unit)
        .color_scheme(color("palette-classic"))
        .line_width(1 if stacked else 2)
        .fill_opacity(55 if stacked else 0)
        .gradient_mode(model.GraphGradientMode.NONE)
        .show_points(model.VisibilityMode.NEVER)
        .axis_border_show(False)
        .line_interpolation(model.LineInterpolation.STEP_AFTER if steps else model.LineInterpolation.LINEAR)
        .tooltip(
            common.VizTooltipOptions().mode(model.TooltipDisplayMode.MULTI).sort(model.SortOrder.DESCENDING)
        )
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(model.LegendDisplayMode.LIST)
            .placement(model.LegendPlacement.RIGHT if aside else model.LegendPlacement.BOTTOM)
            .calcs([])
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(model.StackingMode.NORMAL).group("A"))
    if low is not None:
        panel = panel.min(low)
    if high is not None:
        panel = panel.max(high)
    if usual_high is not None:
        panel = panel.axis_soft_max(usual_high)
    if decimals is not None:
        panel = panel.decimals(decimals)
    if limits := list(limits):
        panel = panel.thresholds(thresholds(*limits)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(model.GraphThresholdsStyleMode.DASHED)
        )
    return _overridden(panel, overrides)


# What a panel of bands shows of all clients at once, and how: no line per client, whatever their number.
BAND = {
    "90 %": {
        **fixed(BLUE),
        "custom.lineWidth": 0,
        "custom.fillBelowTo": "10 %",
        "custom.fillOpacity": 22,
        "displayName": "10 to 90 % of clients",
    },
    "10 %": {
        **fixed(BLUE),
        "custom.lineWidth": 0,
        "custom.hideFrom": {"legend": True, "tooltip": False, "viz": False},
    },
    "median": fixed(BLUE),
    "highest": fixed(RED),
    "lowest": fixed(AMBER),
}


def bands(
    title: str,
    description: str,
    unit: str,
    by_client: str,
    *,
    extremes: Sequence[str] = ("highest",),
    **options: Any,
) -> timeseries.Panel:
    """Show the spread of a figure that every client has.

    Parameters
    ----------
    by_client : str
        An expression with a series per client.
    extremes : sequence of str
        Which of ``highest`` and ``lowest`` have a line.
    **options
        As for `curves`.
    """
    functions = {"highest": "max", "lowest": "min"}
    return curves(
        title,
        f"{description} The band holds the clients between the lowest and the highest tenth.",
        unit,
        Query(f"quantile(0.9, {by_client})", "90 %"),
        Query(f"quantile(0.1, {by_client})", "10 %"),
        Query(f"quantile(0.5, {by_client})", "median"),
        *(Query(f"{functions[name]}({by_client})", name) for name in extremes),
        overrides={name: BAND[name] for name in ("90 %", "10 %", "median", *extremes)},
        **options,
    )


def in_order(by_client: str) -> str:
    """Give the series of clients, with the labels `client` and `partition`, in the order of partition ids.

    Prometheus sorts series by their labels, as text: one that comes first has the id with leading zeros.
    """
    for pattern, zeros in ((".", "000"), ("..", "00"), ("...", "0")):
        by_client = f'label_replace({by_client}, "pad", "{zeros}", "partition", "{pattern}")'
    return f'label_join({by_client}, "at", "", "pad", "partition")'


def heat(
    title: str,
    description: str,
    unit: str,
    by_client: str,
    *,
    scheme: str = "Blues",
    high: float | None = None,
    decimals: int | None = None,
) -> heatmap.Panel:
    """Show a row per client, in the order of partition ids, and its figure over time as a colour.

    Parameters
    ----------
    by_client : str
        An expression with a series per client, which has the labels `client` and `partition`.
    high : float, optional
        The value of the last colour; without one it is the highest value.
    """
    color = (
        heatmap.HeatmapColorOptions()
        .mode(heatmap_model.HeatmapColorMode.SCHEME)
        .scheme(scheme)
        .reverse(False)
        .steps(64)
        .exponent(0.5)
        .fill("dark-orange")
        .min(0)
    )
    cells = heatmap.CellValues().unit(unit)
    if decimals is not None:
        cells = cells.decimals(decimals)
    panel = (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets([Query(in_order(by_client), "{{client}}")], instant=False))
        .unit(unit)
        .calculate(False)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(model.HeatmapCellLayout.AUTO).value(title))
        .color(color.max(high) if high is not None else color)
        .cell_gap(0)
        .cell_values(cells)
        .y_axis(heatmap.YAxisConfig().reverse(True).axis_placement(model.AxisPlacement.LEFT).unit("none"))
        .tooltip(
            heatmap.HeatmapTooltip()
            .mode(model.TooltipDisplayMode.SINGLE)
            .y_histogram(False)
            .show_color_scale(True)
        )
        .show_legend()
    )
    return panel


def figure(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    limits: Steps = ((None, BLUE),),
    mappings: Mapping[str, tuple[str, str]] | None = None,
    overrides: Mapping[str, Properties] | None = None,
    decimals: int | None = None,
    name_only: bool = False,
) -> stat.Panel:
    """Show the latest value in large letters.

    Parameters
    ----------
    name_only : bool
        Show the series' name instead of its value, for metrics whose label is the message.
    """
    named = len(queries) > 1
    text = model.BigValueTextMode.VALUE_AND_NAME if named else model.BigValueTextMode.VALUE
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets(queries, instant=True))
        .unit(unit)
        .color_mode(model.BigValueColorMode.VALUE)
        .color_scheme(color("thresholds"))
        .thresholds(thresholds(*limits))
        .graph_mode(model.BigValueGraphMode.NONE)
        .text(common.VizTextDisplayOptions().value_size(32).title_size(13))
        .text_mode(model.BigValueTextMode.NAME if name_only else text)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .orientation(model.VizOrientation.AUTO)
        .justify_mode(model.BigValueJustifyMode.CENTER)
    )
    if mappings:
        panel = panel.mappings(words(mappings))
    if decimals is not None:
        panel = panel.decimals(decimals)
    return _overridden(panel, overrides)


def bars(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    overrides: Mapping[str, Properties] | None = None,
    limits: Steps = ((None, BLUE),),
    classic: bool = False,
    high: float | None = None,
    link: dashboard.DashboardLink | None = None,
) -> bargauge.Panel:
    """Show the latest values side by side; `classic` gives every bar a colour of its own."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets(queries, instant=True))
        .unit(unit)
        .min(0)
        .color_scheme(color("palette-classic" if classic else "thresholds"))
        .thresholds(thresholds(*limits))
        .display_mode(model.BarGaugeDisplayMode.BASIC)
        .orientation(model.VizOrientation.HORIZONTAL)
        .value_mode(model.BarGaugeValueMode.COLOR)
        .show_unfilled(True)
        .sizing(model.BarGaugeSizing.MANUAL)
        .min_viz_height(16)
        .max_viz_height(44)
        .text(common.VizTextDisplayOptions().title_size(13).value_size(18))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if high is not None:
        panel = panel.max(high)
    if link:
        panel = panel.data_links([link])
    return _overridden(panel, overrides)


@dataclass(frozen=True)
class Column:
    """A column of a table: a query's value, or where that is empty a label; its properties; its heading."""

    title: str
    expr: str = ""
    label: str = ""
    unit: str = ""
    properties: Properties | None = None


def rows(
    title: str, description: str, *columns: Column, sort: str = "", descending: bool = False
) -> table.Panel:
    """Show a table with a row per combination of labels; all queries have those labels in common."""
    queries = [column for column in columns if column.expr]
    letters = dict(zip((column.title for column in queries), string.ascii_uppercase, strict=False))
    fields = {
        column.title: (column.label if column.label else f"Value #{letters[column.title]}")
        for column in columns
    }
    # One query alone gets no letter.
    if len(queries) == 1:
        fields = {title: field.split(" #")[0] for title, field in fields.items()}
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets([Query(column.expr) for column in queries], instant=True, as_table=True))
        .unit("none")
        .show_header(True)
        .cell_height(model.TableCellHeight.SM)
        .transformations(
            [
                dashboard_model.DataTransformerConfig(id_val="merge", options={}),
                dashboard_model.DataTransformerConfig(
                    id_val="organize",
                    options={
                        "excludeByName": {"Time": True},
                        "indexByName": {field: index for index, field in enumerate(fields.values())},
                        "renameByName": {field: title for title, field in fields.items()},
                    },
                ),
            ]
        )
    )
    if sort:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(descending)])
    for column in columns:
        # A run's id is a number of 19 digits, which has to stay a text.
        unit = {"unit": "string" if column.label else column.unit}
        panel = panel.override_by_name(column.title, properties({**unit, **(column.properties or {})}))
    return panel


def row_link(kind: str, column: str) -> dict[str, Any]:
    """Give the property that leads from a cell to the dashboard of the client, machine or run in it."""
    url = _address(kind, f"__data.fields.{column}")
    return {"links": [{"title": f"Show this {kind}", "url": url, "targetBlank": False}]}


def run_links() -> dict[str, Any]:
    """Give the property that leads from a run's cell to the run in its time, and to its comparison.

    The table has the columns `Run`, and `Started` and `Until` in milliseconds.
    """
    fields = "__data.fields"
    whole = _run_in_its_time(f"{fields}.Run", f"{fields}.Started.numeric", f"{fields}.Until.numeric")
    found = {"Show this run": whole, "Compare this run": _address("run", f"{fields}.Run")}
    return {"links": [{"title": title, "url": url, "targetBlank": False} for title, url in found.items()]}


def _overridden(panel: Any, overrides: Mapping[str, Properties] | None) -> Any:
    for name, given in (overrides or {}).items():
        if name.startswith("/"):
            panel = panel.override_by_regexp(name, properties(given))
        else:
            panel = panel.override_by_name(name, properties(given))
    return panel


DASHED = {
    "custom.lineStyle": {"fill": "dash", "dash": [8, 6]},
    "custom.fillOpacity": 0,
    "custom.lineWidth": 2,
}
LIMIT_ASKED = {**fixed(AMBER), **DASHED, "custom.lineInterpolation": "stepAfter"}
LIMIT_HELD = {
    **fixed(RED),
    "custom.fillOpacity": 0,
    "custom.lineWidth": 1,
    "custom.lineInterpolation": "stepAfter",
}
