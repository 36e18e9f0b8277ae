"""The dashboard Federation, the home page: how the newest run goes and what holds its clients back."""

from __future__ import annotations

from dashboards import checkpoints
from dashboards.board import (
    FEDERATION,
    RUN,
    Board,
    begin_variable,
    checkpoint_annotations,
    end_variable,
    events,
    failures_annotation,
    federation_variable,
    run_variable,
)
from dashboards.panels import (
    AMBER,
    BLUE,
    CORES,
    GREEN,
    GREY,
    PHASES,
    RED,
    Column,
    Query,
    bands,
    bars,
    curves,
    figure,
    fixed,
    heat,
    row_link,
    rows,
    to_client,
    to_the_runs_time,
)

SLOWEST = 6  # clients that have a bar each
UPDATES = f"fl_client_updates_total{{{RUN}}}"
# Jain's index: (sum of x)^2 / (n * sum of x^2). It is 0 as long as nobody has replied.
EVENNESS = f"sum({UPDATES}) ^ 2 / clamp_min(count({UPDATES}) * sum({UPDATES} ^ 2), 1)"
STATES = {"running": BLUE, "completed": GREEN, "failed": RED, "diverged": RED, "stopped": AMBER}


def board() -> Board:
    """Build the dashboard."""
    built = Board(
        "federation",
        "Federation",
        "One federation at a glance: the run's progress, where its time goes, and every client's"
        " limits and use.",
        [federation_variable(), run_variable(), begin_variable(), end_variable()],
        [*events(FEDERATION), failures_annotation(), *checkpoint_annotations()],
        links=[to_the_runs_time()],
    )
    _figures(built)
    _learning(built)
    _times_and_limits(built)
    _use_of_limits(built)
    _every_client(built)
    _traffic(built)
    _late_and_updates(built)
    _staleness(built)
    checkpoints.add(built)
    _inventory(built)
    return built


def _figures(built: Board) -> None:
    built.line(
        4,
        (
            4,
            figure(
                "Run",
                "State of the chosen run.",
                "none",
                Query(f"max by (state) (fl_run_state{{{RUN}}} == 1)", "{{state}}"),
                name_only=True,
                overrides={state: fixed(paint) for state, paint in STATES.items()},
            ),
        ),
        (
            4,
            figure(
                "Rounds",
                "Rounds finished, of those planned.",
                "none",
                Query(f"max(fl_run_round{{{RUN}}})", "finished"),
                Query(f"max(fl_run_rounds_planned{{{RUN}}})", "planned"),
                overrides={"planned": fixed(GREY)},
            ),
        ),
        (
            4,
            figure(
                "Accuracy",
                "Share of the test set that the global model gets right, evaluated on the server.",
                "percentunit",
                Query(f"max(fl_run_accuracy{{{RUN}}})", "accuracy"),
                decimals=1,
                limits=((None, BLUE),),
            ),
        ),
        (
            4,
            figure(
                "Round time",
                "Seconds that the last finished round took.",
                "s",
                Query(f"max(fl_round_seconds{{{RUN}}})", "round"),
                decimals=1,
            ),
        ),
        (
            4,
            figure(
                "Clients",
                "Clients with a connection to the server, of those registered.",
                "none",
                Query(f'sum(fl_clients{{{FEDERATION}, state="online"}})', "online"),
                Query(f'sum(fl_clients{{{FEDERATION}, state="registered"}})', "registered"),
                overrides={"registered": fixed(GREY), "online": fixed(GREEN)},
            ),
        ),
        (
            2,
            figure(
                "Limits",
                "Whether the kernel holds the limits asked for, for every client.",
                "none",
                Query(f"min(fl_client_limits_hold{{{FEDERATION}}})", "limits"),
                mappings={"1": ("held", GREEN), "0": ("violated", RED)},
            ),
        ),
        (
            2,
            figure(
                "Failures",
                "Replies of this run that failed or never came.",
                "none",
                Query(f"sum(fl_run_failures_total{{{RUN}}})", "failures"),
                limits=((None, GREEN), (1, RED)),
            ),
        ),
    )


def _learning(built: Board) -> None:
    built.row("Learning")
    built.line(
        8,
        (
            8,
            curves(
                "Accuracy",
                "Of the global model: on the server's test set, and averaged over the clients' own"
                " held-out data.",
                "percentunit",
                Query(f"max(fl_run_accuracy{{{RUN}}})", "server"),
                Query(f"max(fl_run_client_accuracy{{{RUN}}})", "clients"),
                steps=True,
                low=None,
                high=1,
                overrides={"server": fixed(BLUE), "clients": fixed(AMBER)},
            ),
        ),
        (
            8,
            curves(
                "Loss",
                "Of the global model on the server and on the clients, and while training.",
                "none",
                Query(f"max(fl_run_loss{{{RUN}}})", "server"),
                Query(f"max(fl_run_client_loss{{{RUN}}})", "clients"),
                Query(f"max(fl_run_train_loss{{{RUN}}})", "training"),
                steps=True,
                decimals=3,
                overrides={"server": fixed(BLUE), "clients": fixed(AMBER), "training": fixed(GREY)},
            ),
        ),
        (
            8,
            curves(
                "Metrics of the clients' replies",
                "Mean of the last round, under the app's own names; in brackets the phase.",
                "none",
                Query(
                    f'max by (phase, metric) (fl_run_metric{{{RUN}, stat="mean"}})', "{{metric}} ({{phase}})"
                ),
                steps=True,
                low=None,
                decimals=3,
                aside=True,
            ),
        ),
    )
    built.line(
        8,
        (
            8,
            curves(
                "Round time by phase",
                "Seconds of the last finished round, split into what the server waited for or did itself.",
                "s",
                Query(f"max by (phase) (fl_round_phase_seconds{{{RUN}}})", "{{phase}}"),
                steps=True,
                stacked=True,
                overrides={phase: fixed(paint) for phase, paint in PHASES.items()},
            ),
        ),
        (
            8,
            curves(
                "Straggler gap",
                "How long the slowest client of a round kept the others waiting: its reply less the"
                " median reply.",
                "s",
                Query(f"max(fl_round_straggler_gap_seconds{{{RUN}}})", "slowest less median"),
                steps=True,
                decimals=1,
                overrides={"slowest less median": fixed(RED)},
            ),
        ),
        (
            8,
            bars(
                "Where the run's time went",
                "Seconds of all finished rounds of the run, by phase.",
                "s",
                Query(f"sum by (phase) (fl_run_seconds_total{{{RUN}}}) > 0", "{{phase}}"),
                overrides={phase: fixed(paint) for phase, paint in PHASES.items()},
            ),
        ),
    )


def of_clients(metric: str, *matchers: str, selector: str = FEDERATION) -> str:
    """Give a series per client."""
    return f"max by (client) ({metric}{{{', '.join((selector, *matchers))}}})"


def with_partition(metric: str, selector: str = FEDERATION) -> str:
    """Give a series per client, with its partition id."""
    partition = f"max by (client, partition) (fl_client_info{{{selector}}})"
    return f"max by (client) ({metric}{{{selector}}}) * on (client) group_right () {partition}"


def _times_and_limits(built: Board) -> None:
    built.row("Clients: time, limits and use")
    built.line(
        8,
        (
            8,
            bands(
                "Time of clients",
                "Seconds from the message to the reply in a client's last round: the slowest decides when a"
                " round ends.",
                "s",
                of_clients("fl_client_round_seconds", selector=RUN),
                steps=True,
                decimals=1,
            ),
        ),
        (
            8,
            bars(
                "Slowest clients",
                "The clients that took longest in their last round; a click leads to the client.",
                "s",
                Query(
                    f"topk({SLOWEST}, {of_clients('fl_client_round_seconds', selector=RUN)})", "{{client}}"
                ),
                limits=((None, RED),),
                link=to_client(),
            ),
        ),
        (
            8,
            bands(
                "CPU limit in force",
                "Cores that a client may use, as read back from the kernel.",
                CORES,
                of_clients("fl_client_limit_verified", 'limit="cpu"'),
                extremes=("highest", "lowest"),
                steps=True,
            ),
        ),
    )


def _use_of_limits(built: Board) -> None:
    built.line(
        8,
        (
            8,
            bands(
                "CPU use of the limit",
                "Cores used, divided by the limit in force: 100 % is a client that its limit holds back.",
                "percentunit",
                of_clients("client:cpu_use:ratio"),
                usual_high=1,
            ),
        ),
        (
            8,
            bands(
                "Throttled",
                "Share of the scheduler's periods in which the kernel made a client wait for its quota.",
                "percentunit",
                of_clients("client:cpu_throttled:ratio"),
                high=1,
            ),
        ),
        (
            8,
            bands(
                "Memory use of the limit",
                "Working set divided by the limit; above 90 % (dashed) a client is about to be killed.",
                "percentunit",
                of_clients("client:memory_use:ratio"),
                high=1,
                limits=((None, "transparent"), (0.9, RED)),
            ),
        ),
    )


def _every_client(built: Board) -> None:
    built.line(
        11,
        (
            12,
            heat(
                "Every client: time",
                "A row per client in the order of partition ids: seconds from the message to the reply in its"
                " last round.",
                "s",
                f"max by (client, partition) (fl_client_round_seconds{{{RUN}}})",
                decimals=1,
            ),
        ),
        (
            12,
            heat(
                "Every client: throttled",
                "A row per client in the order of partition ids: the share of the scheduler's periods in"
                " which it waited for its quota.",
                "percentunit",
                with_partition("client:cpu_throttled:ratio"),
                scheme="Oranges",
                high=1,
                decimals=0,
            ),
        ),
    )


def _traffic(built: Board) -> None:
    built.line(
        7,
        (
            8,
            curves(
                "Network of all clients",
                "Bytes per second: received is mostly the global model at the start of a round, sent mostly"
                " the updates at its end.",
                "Bps",
                Query(f"sum(client:network_receive:rate{{{FEDERATION}}})", "received"),
                Query(f"sum(client:network_transmit:rate{{{FEDERATION}}})", "sent"),
                overrides={"received": fixed(BLUE), "sent": fixed(AMBER)},
            ),
        ),
        (
            8,
            curves(
                "Data moved by the run",
                "Bytes of model and messages, from the server's point of view: down to the clients,"
                " up from them.",
                "bytes",
                Query(f"max by (direction) (fl_run_bytes_total{{{RUN}}})", "{{direction}}"),
                steps=True,
                overrides={"down": fixed(BLUE), "up": fixed(AMBER)},
            ),
        ),
        (
            8,
            curves(
                "Participants",
                "Clients whose update went into a round's model.",
                "none",
                Query(f"max(fl_round_participants{{{RUN}}})", "participants"),
                steps=True,
                decimals=0,
                overrides={"participants": fixed(GREEN)},
            ),
        ),
    )


def _late_and_updates(built: Board) -> None:
    built.line(
        7,
        (
            8,
            curves(
                "Late replies",
                "Replies of the run that a round did not wait for, and those of them that are in the model of"
                " a later round (round_late=fold).",
                "none",
                Query(f"sum(fl_run_late_total{{{RUN}}})", "late"),
                Query(f"sum(fl_run_folded_total{{{RUN}}})", "folded in"),
                steps=True,
                decimals=0,
                overrides={"late": fixed(AMBER), "folded in": fixed(BLUE)},
            ),
        ),
        (
            8,
            bands(
                "Updates by client",
                "How many replies of each client are in the model.",
                "none",
                of_clients("fl_client_updates_total", selector=RUN),
                extremes=("highest", "lowest"),
                steps=True,
                decimals=0,
            ),
        ),
        (
            8,
            curves(
                "Evenness of updates",
                "Jain's index of the clients' updates: 1 where all have as many, 1/n where one of n has all.",
                "none",
                Query(EVENNESS, "Jain's index"),
                steps=True,
                high=1,
                decimals=2,
                overrides={"Jain's index": fixed(GREEN)},
            ),
        ),
    )


def _staleness(built: Board) -> None:
    built.line(
        7,
        (
            12,
            curves(
                "Staleness of updates",
                "By how many versions of the model the updates of a round were behind, with fedbuff and"
                " fedasync; else 0.",
                "none",
                Query(f"max(fl_round_staleness{{{RUN}}}) by (stat)", "{{stat}}"),
                steps=True,
                decimals=1,
                overrides={"mean": fixed(BLUE), "max": fixed(AMBER)},
            ),
        ),
        (
            12,
            curves(
                "Discarded updates",
                "Updates of the run that fedbuff or fedasync did not use: too stale, or no such model.",
                "none",
                Query(f"sum(fl_run_discarded_total{{{RUN}}})", "discarded"),
                steps=True,
                decimals=0,
                overrides={"discarded": fixed(AMBER)},
            ),
        ),
    )


def _inventory(built: Board) -> None:
    gauge = {
        "custom.cellOptions": {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"},
        "min": 0,
        "max": 1,
    }
    use = {
        **gauge,
        "color": {"mode": "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [
                {"value": None, "color": GREEN},
                {"value": 0.7, "color": AMBER},
                {"value": 0.9, "color": RED},
            ],
        },
        "decimals": 0,
        "custom.minWidth": 95,
    }
    online = {
        "mappings": [
            {
                "type": "value",
                "options": {
                    "1": {"text": "yes", "color": GREEN, "index": 0},
                    "0": {"text": "no", "color": RED, "index": 1},
                },
            }
        ],
        "custom.cellOptions": {"type": "color-text"},
        "custom.width": 80,
    }
    by = "by (machine, client)"
    here = {**row_link("machine", "Machine"), "custom.minWidth": 80}
    built.row("Clients and machines")
    built.line(
        10,
        (
            16,
            rows(
                "Clients",
                "Every client with its limits as the kernel holds them and what it uses of them; a"
                " name leads to its page.",
                Column("Client", label="client", properties=row_link("client", "Client")),
                Column("Machine", label="machine", properties=here),
                Column(
                    "Online", f"max {by} (fl_client_online{{{FEDERATION}}})", unit="none", properties=online
                ),
                Column(
                    "Cores",
                    f'max {by} (fl_client_limit_verified{{{FEDERATION}, limit="cpu"}})',
                    unit="none",
                    properties={"custom.width": 70},
                ),
                Column(
                    "Memory limit",
                    f'max {by} (fl_client_limit_verified{{{FEDERATION}, limit="memory"}})',
                    unit="bytes",
                    properties={"custom.width": 110},
                ),
                Column(
                    "CPU use",
                    f"max {by} (client:cpu_use:ratio{{{FEDERATION}}})",
                    unit="percentunit",
                    properties=use,
                ),
                Column(
                    "Throttled",
                    f"max {by} (client:cpu_throttled:ratio{{{FEDERATION}}})",
                    unit="percentunit",
                    properties=use,
                ),
                Column(
                    "Memory use",
                    f"max {by} (client:memory_use:ratio{{{FEDERATION}}})",
                    unit="percentunit",
                    properties=use,
                ),
                sort="Client",
            ),
        ),
        (
            8,
            bars(
                "Failures by reason",
                "Replies of the run that did not come, or came as an error; and those that a round did not"
                " wait for, at its deadline or because it had enough.",
                "none",
                Query(f"sum by (reason) (fl_run_failures_total{{{RUN}}})", "{{reason}}"),
                Query(f"sum by (reason) (fl_run_late_total{{{RUN}}})", "late ({{reason}})"),
                limits=((None, GREEN), (1, RED)),
            ),
        ),
    )
    built.line(
        6,
        (
            24,
            rows(
                "Machines",
                "Every machine: its cores, the sum of its clients' CPU limits, and how busy it is."
                " Where the sum or the load exceeds the cores, times are the machine's and not the limits'.",
                Column("Machine", label="machine", properties=here),
                Column(
                    "Cores",
                    f'count by (machine) (node_cpu_seconds_total{{{FEDERATION}, mode="idle"}})',
                    unit="none",
                    properties={"custom.width": 70},
                ),
                Column(
                    "Σ limits",
                    f'sum by (machine) (fl_client_limit_verified{{{FEDERATION}, limit="cpu"}})',
                    unit="none",
                    properties={"custom.width": 80},
                ),
                Column(
                    "Load",
                    f"max by (machine) (node_load1{{{FEDERATION}}})",
                    unit="none",
                    properties={"custom.width": 80, "decimals": 1},
                ),
                Column(
                    "CPU",
                    f"max by (machine) (machine:cpu_use:ratio{{{FEDERATION}}})",
                    unit="percentunit",
                    properties=use,
                ),
                Column(
                    "Memory",
                    f"max by (machine) (machine:memory_use:ratio{{{FEDERATION}}})",
                    unit="percentunit",
                    properties=use,
                ),
                sort="Machine",
            ),
        ),
    )
