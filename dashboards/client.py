"""The dashboard Client: one client's limits, asked for and held, its use, and what that costs in time."""

from __future__ import annotations

from dashboards.board import (
    CLIENT,
    RUN,
    Board,
    client_variable,
    events,
    federation_variable,
    run_variable,
)
from dashboards.panels import (
    AMBER,
    BLUE,
    CORES,
    GREEN,
    GREY,
    LIMIT_ASKED,
    LIMIT_HELD,
    PURPLE,
    RED,
    Query,
    bars,
    curves,
    figure,
    fixed,
)

OF_RUN = f'{RUN}, client="$client"'


def rate(metric: str, selector: str = CLIENT) -> str:
    """Give the change per second of the client's counter."""
    return f"sum(rate({metric}{{{selector}}}[$__rate_interval]))"


def limit(kind: str, name: str) -> str:
    """Give a limit as asked for (desired) or as read from the kernel (verified)."""
    return f'max(fl_client_limit_{kind}{{{CLIENT}, limit="{name}"}})'


def board() -> Board:
    """Build the dashboard."""
    built = Board(
        "client",
        "Client",
        "One client: its limits as asked for and as the kernel holds them, what it uses, and how"
        " long its rounds take.",
        [federation_variable(), client_variable(), run_variable()],
        events(CLIENT, each=True),
    )
    _figures(built)
    _cpu(built)
    _memory_and_network(built)
    _training(built)
    return built


def _figures(built: Board) -> None:
    built.line(
        4,
        (
            3,
            figure(
                "Connection",
                "Whether the server hears the client.",
                "none",
                Query(f"max(fl_client_connected{{{CLIENT}}})", "connected"),
                mappings={"1": ("online", GREEN), "0": ("offline", RED)},
            ),
        ),
        (
            4,
            figure(
                "Machine",
                "The machine that the client runs on.",
                "none",
                Query(f"max by (machine) (fl_client_info{{{CLIENT}}})", "{{machine}}"),
                name_only=True,
            ),
        ),
        (
            3,
            figure(
                "Partition",
                "Which part of the data set the client trains on.",
                "none",
                Query(f"max by (partition) (fl_client_info{{{CLIENT}}})", "{{partition}}"),
                name_only=True,
            ),
        ),
        (
            3,
            figure(
                "Limits",
                "Whether the kernel holds every limit asked for.",
                "none",
                Query(f"min(fl_client_limits_hold{{{CLIENT}}})", "limits"),
                mappings={"1": ("held", GREEN), "0": ("violated", RED)},
            ),
        ),
        (
            3,
            figure(
                "CPU limit", "Cores, as read from the kernel.", CORES, Query(limit("verified", "cpu"), "cpu")
            ),
        ),
        (
            3,
            figure(
                "Memory limit",
                "As read from the kernel.",
                "bytes",
                Query(limit("verified", "memory"), "memory"),
            ),
        ),
        (
            3,
            figure(
                "Last training",
                "Seconds that the client trained in its last round of the run.",
                "s",
                Query(f"max(fl_client_train_seconds{{{OF_RUN}}})", "train"),
                decimals=1,
            ),
        ),
        (
            2,
            figure(
                "Killed",
                "How often the kernel killed it for lack of memory.",
                "none",
                Query(f"sum(fl_client_oom_kills_total{{{CLIENT}}})", "kills"),
                limits=((None, GREEN), (1, RED)),
            ),
        ),
    )


def _cpu(built: Board) -> None:
    built.row("CPU")
    built.line(
        9,
        (
            12,
            curves(
                "CPU: use and limit",
                "Cores used, averaged over the last minute, with the limit as asked for and as"
                " the kernel holds it.",
                CORES,
                Query(f"max(client:cpu_usage:rate{{{CLIENT}}})", "used"),
                Query(limit("verified", "cpu"), "limit held"),
                Query(limit("desired", "cpu"), "limit asked for"),
                overrides={
                    "used": {**fixed(BLUE), "custom.fillOpacity": 25},
                    "limit held": LIMIT_HELD,
                    "limit asked for": LIMIT_ASKED,
                },
            ),
        ),
        (
            6,
            curves(
                "Throttled",
                "Share of the scheduler's periods in which it waited for its quota.",
                "percentunit",
                Query(f"max(client:cpu_throttled:ratio{{{CLIENT}}})", "throttled"),
                high=1,
                overrides={"throttled": {**fixed(RED), "custom.fillOpacity": 20}},
            ),
        ),
        (
            6,
            curves(
                "Pressure",
                "Share of the time in which some of its processes waited for CPU, memory or disk (PSI).",
                "percentunit",
                Query(rate("container_pressure_cpu_waiting_seconds_total"), "cpu"),
                Query(rate("container_pressure_memory_waiting_seconds_total"), "memory"),
                Query(rate("container_pressure_io_waiting_seconds_total"), "io"),
                high=1,
                overrides={"cpu": fixed(BLUE), "memory": fixed(AMBER), "io": fixed(PURPLE)},
            ),
        ),
    )


def _memory_and_network(built: Board) -> None:
    built.row("Memory, network and processes")
    built.line(
        9,
        (
            9,
            curves(
                "Memory: use and limit",
                "Working set (what the kernel cannot take back) and resident memory, with the limit.",
                "bytes",
                Query(f"max(container_memory_working_set_bytes{{{CLIENT}}})", "working set"),
                Query(f"max(container_memory_rss{{{CLIENT}}})", "resident"),
                Query(f"max(container_memory_cache{{{CLIENT}}})", "cache"),
                Query(limit("verified", "memory"), "limit held"),
                Query(limit("desired", "memory"), "limit asked for"),
                overrides={
                    "working set": {**fixed(BLUE), "custom.fillOpacity": 25},
                    "resident": fixed(GREEN),
                    "cache": fixed(GREY),
                    "limit held": LIMIT_HELD,
                    "limit asked for": LIMIT_ASKED,
                },
            ),
        ),
        (
            9,
            curves(
                "Network: rates and limits",
                "Bits per second received and sent, with the bandwidth limits that are set (dashed).",
                "bps",
                Query(f"8 * max(client:network_receive:rate{{{CLIENT}}})", "received"),
                Query(f"8 * max(client:network_transmit:rate{{{CLIENT}}})", "sent"),
                Query(
                    f'max by (limit) (fl_client_limit_verified{{{CLIENT}, limit=~"down|up"}})',
                    "limit {{limit}}",
                ),
                overrides={
                    "received": fixed(BLUE),
                    "sent": fixed(GREEN),
                    "limit down": LIMIT_ASKED | fixed(BLUE),
                    "limit up": LIMIT_ASKED | fixed(GREEN),
                },
            ),
        ),
        (
            6,
            curves(
                "Threads",
                "Threads in the container, which its process limit counts.",
                "none",
                Query(f"max(container_threads{{{CLIENT}}})", "threads"),
                Query(limit("verified", "pids"), "limit held"),
                overrides={"threads": fixed(BLUE), "limit held": LIMIT_HELD},
                decimals=0,
            ),
        ),
    )


def _training(built: Board) -> None:
    built.row("Training")
    built.line(
        8,
        (
            8,
            curves(
                "Round of this client",
                "Seconds from the server's message to the reply, and the part in which the client trained.",
                "s",
                Query(f"max(fl_client_round_seconds{{{OF_RUN}}})", "message to reply"),
                Query(f"max(fl_client_train_seconds{{{OF_RUN}}})", "training"),
                steps=True,
                decimals=1,
                overrides={"message to reply": fixed(AMBER), "training": fixed(BLUE)},
            ),
        ),
        (
            8,
            curves(
                "Training speed",
                "Examples per second while training: proportional to the CPU limit, if the limit is"
                " what holds it back.",
                "suffix: examples/s",
                Query(f"max(fl_client_samples_per_second{{{OF_RUN}}})", "speed"),
                steps=True,
                decimals=0,
                overrides={"speed": {**fixed(GREEN), "custom.fillOpacity": 15}},
            ),
        ),
        (
            8,
            curves(
                "As the client saw it",
                "CPU limit that the client read from its own cgroup at its last message, and the"
                " threads that it took for it.",
                "none",
                Query(f"max(fl_client_cpu_limit_cores{{{OF_RUN}}})", "cores"),
                Query(f"max(fl_client_threads{{{OF_RUN}}})", "threads"),
                steps=True,
                overrides={"cores": fixed(RED), "threads": fixed(BLUE)},
            ),
        ),
    )
    built.line(
        9,  # the last panel has ten bars
        (
            8,
            curves(
                "Throttled while training",
                "Share of the periods of its last training in which it waited for its quota, as it"
                " reported itself.",
                "percentunit",
                Query(f"max(fl_client_throttled_ratio{{{OF_RUN}}})", "throttled"),
                steps=True,
                high=1,
                overrides={"throttled": {**fixed(RED), "custom.fillOpacity": 15}},
            ),
        ),
        (
            8,
            curves(
                "Memory peak",
                "The most that the container ever used, as the client reported it with its last reply.",
                "bytes",
                Query(f"max(fl_client_memory_peak_bytes{{{OF_RUN}}})", "peak"),
                steps=True,
                overrides={"peak": {**fixed(BLUE), "custom.fillOpacity": 15}},
            ),
        ),
        (
            8,
            bars(
                "Changes of its limits",
                "How often its limits changed, and why.",
                "none",
                Query(f"sum by (cause) (fl_client_limit_changes_total{{{CLIENT}}})", "{{cause}}"),
                limits=((None, AMBER),),
            ),
        ),
    )
