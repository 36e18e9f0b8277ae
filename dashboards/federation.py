"""The dashboard Federation, the home page: how the newest run goes and what holds its clients back."""

from __future__ import annotations

from dashboards.board import (
    FEDERATION,
    RUN,
    Board,
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
    bars,
    curves,
    figure,
    fixed,
    row_link,
    rows,
    to_client,
)

STATES = {"running": BLUE, "completed": GREEN, "failed": RED, "diverged": RED, "stopped": AMBER}


def board() -> Board:
    """Build the dashboard."""
    built = Board(
        "federation",
        "Federation",
        "One federation at a glance: the run's progress, where its time goes, and every client's"
        " limits and use.",
        [federation_variable(), run_variable()],
        [*events(FEDERATION), failures_annotation()],
    )
    _figures(built)
    _learning(built)
    _limits(built)
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
                "Cross-entropy of the global model on the server and on the clients, and while training.",
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
                "Round time by phase",
                "Seconds of the last finished round, split into what the server waited for or did itself.",
                "s",
                Query(f"max by (phase) (fl_round_phase_seconds{{{RUN}}})", "{{phase}}"),
                steps=True,
                stacked=True,
                overrides={phase: fixed(paint) for phase, paint in PHASES.items()},
            ),
        ),
    )
    built.line(
        8,
        (
            8,
            curves(
                "Training time by client",
                "Seconds that a client trained in its last round; the slowest decides when a round ends.",
                "s",
                Query(f"max by (client) (fl_client_train_seconds{{{RUN}}})", "{{client}}"),
                steps=True,
                decimals=1,
                link=to_client(),
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
                Query(f"sum by (phase) (fl_run_seconds_total{{{RUN}}})", "{{phase}}"),
                overrides={phase: fixed(paint) for phase, paint in PHASES.items()},
            ),
        ),
    )


def _limits(built: Board) -> None:
    built.row("Limits and use")
    built.line(
        8,
        (
            8,
            curves(
                "CPU limit in force",
                "Cores that a client may use, as read back from the kernel.",
                CORES,
                Query(
                    f'max by (client) (fl_client_limit_verified{{{FEDERATION}, limit="cpu"}})', "{{client}}"
                ),
                steps=True,
                link=to_client(),
            ),
        ),
        (
            8,
            curves(
                "CPU use of the limit",
                "Cores used, divided by the limit in force: 100 % is a client that its limit holds back.",
                "percentunit",
                Query(f"max by (client) (client:cpu_use:ratio{{{FEDERATION}}})", "{{client}}"),
                usual_high=1,
                link=to_client(),
            ),
        ),
        (
            8,
            curves(
                "Throttled",
                "Share of the scheduler's periods in which the kernel made a client wait for its quota.",
                "percentunit",
                Query(f"max by (client) (client:cpu_throttled:ratio{{{FEDERATION}}})", "{{client}}"),
                high=1,
                link=to_client(),
            ),
        ),
    )
    built.line(
        8,
        (
            8,
            curves(
                "Memory use of the limit",
                "Working set divided by the limit; above 90 % (dashed) a client is about to be killed.",
                "percentunit",
                Query(f"max by (client) (client:memory_use:ratio{{{FEDERATION}}})", "{{client}}"),
                high=1,
                limits=((None, "transparent"), (0.9, RED)),
                link=to_client(),
            ),
        ),
        (
            8,
            curves(
                "Received by clients",
                "Bytes per second that reach a client: mostly the global model at the start of a round.",
                "Bps",
                Query(f"max by (client) (client:network_receive:rate{{{FEDERATION}}})", "{{client}}"),
                link=to_client(),
            ),
        ),
        (
            8,
            curves(
                "Sent by clients",
                "Bytes per second that leave a client: mostly its update at the end of a round.",
                "Bps",
                Query(f"max by (client) (client:network_transmit:rate{{{FEDERATION}}})", "{{client}}"),
                link=to_client(),
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
        7,
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
            rows(
                "Machines",
                "Every machine: its cores, the sum of its clients' CPU limits, and how busy it is."
                " Where the sum exceeds the"
                " cores, times are the machine's and not the limits'.",
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
    built.line(
        7,
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
        (
            8,
            bars(
                "Failures by reason",
                "Replies of the run that did not come, or came as an error.",
                "none",
                Query(f"sum by (reason) (fl_run_failures_total{{{RUN}}})", "{{reason}}"),
                limits=((None, GREEN), (1, RED)),
            ),
        ),
    )
