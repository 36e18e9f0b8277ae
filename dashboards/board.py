"""What all dashboards have in common: variables, annotations, links, and the grid that panels stand on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from dashboards.panels import AMBER, DATASOURCE, PURPLE, RED, PanelBuilder, dashboard

WIDTH = 24  # columns of Grafana's grid
MARKED = 15  # seconds of an annotation at which a run begins: one scrape at least
DATASOURCE_UID = "coldframe-prometheus"  # the role grafana provisions the datasource under this uid
DATASOURCE_NAME = "Coldframe"

FEDERATION = 'federation="$federation"'
RUN = f'{FEDERATION}, run="$run"'
CLIENT = f'{FEDERATION}, client="$client"'
MACHINE = f'{FEDERATION}, machine="$machine"'

# A run's title: its name if it has one, its strategy, its id.
_TITLED = (
    'label_join(max by (run, run_name, strategy, federation) (fl_run_info{{{selector}}}), "title", "'
    ' ", "run_name",'
    ' "strategy", "run")'
)
# When runs ended, in seconds since 1970; now of those that go on.
ENDED = (
    "(fl_run_finished_timestamp_seconds{{{selector}}}"
    " or fl_run_started_timestamp_seconds{{{selector}}} * 0 + time())"
)
_RUN_REGEX = '/run="(?<value>[^"]+)".*title=" *(?<text>[^"]+)"/'


def runs_newest_first(selector: str) -> str:
    """Give the query whose series are the runs, the newest first: a variable's default is its first value."""
    return (
        f"query_result(sort_desc({_TITLED.format(selector=selector)}"
        f" * on (federation, run) group_left () max by (federation, run)"
        f" (fl_run_started_timestamp_seconds{{{selector}}})))"
    )


def query_variable(
    name: str,
    label: str,
    query: str,
    description: str,
    *,
    regex: str = "",
    sort: bool = True,
    hidden: bool = False,
) -> dashboard.QueryVariable:
    """Make a variable of what Prometheus knows; it takes the first value by itself."""
    kind = 3 if query.startswith("query_result") else 1  # the editor's numbers of the kinds of query
    built = (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(DATASOURCE)
        .query({"qryType": kind, "query": query, "refId": f"Variable-{name}"})
        .definition(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.NATURAL_ASC if sort else model.VariableSort.DISABLED)
        .multi(False)
        .include_all(False)
    )
    if hidden:
        built = built.hide(model.VariableHide.HIDE_VARIABLE)
    return built.regex(regex) if regex else built


def datasource_variable() -> dashboard.DatasourceVariable:
    """Make the variable that every query takes its datasource from."""
    return (
        dashboard.DatasourceVariable("datasource")
        .label("Prometheus")
        .description("The Prometheus that watches the federation")
        .type("prometheus")
        .current(model.VariableOption(selected=True, text=DATASOURCE_NAME, value=DATASOURCE_UID))
        .hide(model.VariableHide.HIDE_VARIABLE)
    )


def federation_variable() -> dashboard.QueryVariable:
    """Choose among the federations that this Prometheus watches."""
    return query_variable(
        "federation", "Federation", "label_values(up, federation)", "What one inventory deploys"
    )


def run_variable() -> dashboard.QueryVariable:
    """Choose a run; the newest is the default."""
    return query_variable(
        "run",
        "Run",
        runs_newest_first(FEDERATION),
        "One training; the newest comes first",
        regex=_RUN_REGEX,
        sort=False,
    )


def against_variable() -> dashboard.QueryVariable:
    """Choose a run to compare with; the newest other one is the default."""
    return query_variable(
        "against",
        "Compared with",
        runs_newest_first(f'{FEDERATION}, run!="$run"'),
        "The run to compare with; the newest other one comes first",
        regex=_RUN_REGEX,
        sort=False,
    )


def shift_variable() -> dashboard.QueryVariable:
    """Compute the milliseconds between the starts of the two runs.

    Odd, hence never 0, which Prometheus refuses as an offset; 1 where there is no other run.
    """
    started = "fl_run_started_timestamp_seconds"
    other = f'{FEDERATION}, run=~"$run|$against"'
    return query_variable(
        "shift",
        "Shift",
        f"query_result(1 + 2 * round(1000 * (max({started}{{{RUN}}}) - avg(max by (run)"
        f" ({started}{{{other}}})))))",
        "Milliseconds by which the other run is moved so that both begin at the same point",
        regex=r"/\{\} (-?\d+) /",
        sort=False,
        hidden=True,
    )


def begin_variable() -> dashboard.QueryVariable:
    """Compute the millisecond at which the chosen run began."""
    return query_variable(
        "begin",
        "Begin",
        f"query_result(floor(1000 * max(fl_run_started_timestamp_seconds{{{RUN}}})))",
        "When the run began, in milliseconds since 1970",
        regex=r"/\{\} (\d+) /",
        sort=False,
        hidden=True,
    )


def end_variable() -> dashboard.QueryVariable:
    """Compute the millisecond at which the chosen run ended, or now; two scrapes later the end is seen."""
    return query_variable(
        "end",
        "End",
        f"query_result(ceil(1000 * (10 + max({ENDED.format(selector=RUN)}))))",
        "When the run ended, in milliseconds since 1970; now where it goes on",
        regex=r"/\{\} (\d+) /",
        sort=False,
        hidden=True,
    )


def client_variable() -> dashboard.QueryVariable:
    """Choose a client."""
    return query_variable(
        "client", "Client", f"label_values(fl_client_info{{{FEDERATION}}}, client)", "A container that trains"
    )


def machine_variable() -> dashboard.QueryVariable:
    """Choose a machine."""
    return query_variable(
        "machine",
        "Machine",
        f'label_values(up{{{FEDERATION}, job="node"}}, machine)',
        "A host of the inventory",
    )


def annotation(name: str, expr: str, title: str, paint: str, tags: str) -> dashboard.AnnotationQuery:
    """Mark the times at which an expression is above zero."""
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color(paint)
        .expr(expr)
        .step("5s")
        .title_format(title)
        .tag_keys(tags)
    )


def events(
    selector: str, alive: str = "fl_client_connected", *, each: bool = False
) -> list[Builder[model.AnnotationQuery]]:
    """Mark throttles and faults, all of them from metrics of ours; `alive` is 0 for a client that is gone.

    Parameters
    ----------
    each : bool
        A mark for each client, by name: for a dashboard of one. Else clients to which the same happened at
        one time are one mark.
    """
    who, words = ("client", "{{client}}: ") if each else ("federation", "")
    changed = f"increase(fl_client_limit_changes_total{{{selector}}}[$__rate_interval])"
    kills = f"sum by ({who}) (increase(fl_client_oom_kills_total{{{selector}}}[$__rate_interval]))"
    gone = f"max by ({who}) ({alive}{{{selector}}} == bool 0)"
    return [
        annotation(
            "Limits changed",
            f"sum by ({who}, cause) ({changed})",
            f"{words}limits changed by {{{{cause}}}}",
            AMBER,
            f"{who},cause",
        ),
        annotation("Out of memory", kills, f"{words}killed for lack of memory", RED, who),
        annotation("Offline", gone, f"{words}offline" if each else "a client is offline", PURPLE, who),
    ]


def failures_annotation() -> dashboard.AnnotationQuery:
    """Mark replies of the run that failed."""
    failures = f"sum by (reason) (increase(fl_run_failures_total{{{RUN}}}[$__rate_interval]))"
    return annotation("Failures", failures, "A reply failed: {{reason}}", RED, "reason")


def checkpoint_annotations() -> list[Builder[model.AnnotationQuery]]:
    """Mark checkpoints of the run that could not be written, and where it was resumed."""
    failures = f"sum by (run) (increase(fl_run_checkpoint_failures_total{{{RUN}}}[$__rate_interval]))"
    # A resumed run has an id, and so series, of its own: its count begins with 1, which is no increase.
    began = f"time() - max by (run) (fl_run_started_timestamp_seconds{{{RUN}}}) < bool {MARKED}"
    resumed = f"max by (run) (fl_run_resumes_total{{{RUN}}}) * on (run) ({began})"
    return [
        annotation("Checkpoint failed", failures, "a checkpoint could not be written", RED, "run"),
        annotation("Resumed", resumed, "the run was resumed", PURPLE, "run"),
    ]


@dataclass
class Board:
    """A dashboard that grows line by line."""

    name: str
    title: str
    description: str
    variables: list[Any]
    annotations: list[Builder[model.AnnotationQuery]] = field(default_factory=list)
    since: str = "now-30m"
    refresh: str = "10s"
    links: list[Builder[model.DashboardLink]] = field(default_factory=list)
    _panels: list[dict[str, Any]] = field(default_factory=list)
    _y: int = 0

    @property
    def uid(self) -> str:
        """The name in its address; a redeployment keeps it."""
        return f"coldframe-{self.name}"

    def row(self, title: str) -> None:
        """Begin a part with a heading."""
        built = dashboard.Row(title).collapsed(False).id(len(self._panels) + 1)
        self._add(built, 0, WIDTH, 1)
        self._y += 1

    def line(self, height: int, *panels: tuple[int, PanelBuilder]) -> None:
        """Add panels side by side, each with its width in columns."""
        assert sum(width for width, _ in panels) == WIDTH, f"a line of {self.name} does not fill the page"
        x = 0
        for width, built in panels:
            self._add(built.id(len(self._panels) + 1), x, width, height)  # type: ignore[attr-defined]
            x += width
        self._y += height

    def _add(self, built: Any, x: int, width: int, height: int) -> None:
        grid = model.GridPos(x=x, y=self._y, w=width, h=height)
        self._panels.append(built.grid_pos(grid).build())

    def build(self) -> dict[str, Any]:
        """Give the dashboard as Grafana reads it."""
        others = (
            dashboard.DashboardLink("Coldframe")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["coldframe"])
            .include_vars(True)
            .keep_time(True)
            .as_dropdown(False)
        )
        built = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags(["coldframe"])
            .timezone("browser")
            .readonly()
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .time(self.since, "now")
            .refresh(self.refresh)
            .variables([datasource_variable(), *self.variables])
            .annotations(self.annotations)
            .links([*self.links, others])
            .build()
        )
        built.panels = self._panels  # type: ignore[assignment]
        content: dict[str, Any] = json.loads(json.dumps(built, cls=JSONEncoder))
        for item in [*content["annotations"]["list"], *content["links"]]:
            del item["placement"]  # the SDK's default would hide them in a menu
        return content
