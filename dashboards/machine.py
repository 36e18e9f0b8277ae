"""The dashboard Machine: one host of the inventory, the clients on it, and what watching it costs."""

from __future__ import annotations

from dashboards.board import MACHINE, Board, events, federation_variable, machine_variable
from dashboards.panels import (
    AMBER,
    BLUE,
    CORES,
    GREEN,
    GREY,
    PURPLE,
    RED,
    Query,
    bands,
    bars,
    curves,
    figure,
    fixed,
    heat,
    to_client,
)

# The machine's own network cards, not the bridges and cables of its containers.
CARDS = f'{MACHINE}, device!~"lo|veth.*|br-.*|docker.*"'
DISKS = f'{MACHINE}, fstype!~"tmpfs|ramfs|squashfs|overlay"'
CORES_HERE = f'count(node_cpu_seconds_total{{{MACHINE}, mode="idle"}})'
LIMITS_HERE = f'sum(fl_client_limit_verified{{{MACHINE}, limit="cpu"}})'
MODES = {"user": BLUE, "system": AMBER, "iowait": PURPLE, "nice": GREEN, "steal": RED, "softirq": GREY}


def board() -> Board:
    """Build the dashboard."""
    built = Board(
        "machine",
        "Machine",
        "One machine: its processors, memory, disks and network, and the clients that share them.",
        [federation_variable(), machine_variable()],
        events(MACHINE, "fl_client_online"),
    )
    _figures(built)
    _machine(built)
    _clients(built)
    _watching(built)
    return built


def _figures(built: Board) -> None:
    use = ((None, GREEN), (0.7, AMBER), (0.9, RED))
    built.line(
        4,
        (
            4,
            figure(
                "CPU",
                "Share of the machine's cores in use.",
                "percentunit",
                Query(f"max(machine:cpu_use:ratio{{{MACHINE}}})", "cpu"),
                limits=use,
                decimals=0,
            ),
        ),
        (
            4,
            figure(
                "Memory",
                "Share of the machine's memory in use.",
                "percentunit",
                Query(f"max(machine:memory_use:ratio{{{MACHINE}}})", "memory"),
                limits=use,
                decimals=0,
            ),
        ),
        (
            4,
            figure(
                "Clients",
                "Clients that run on this machine.",
                "none",
                Query(f"sum(fl_client_running{{{MACHINE}}})", "running"),
            ),
        ),
        (
            4,
            figure(
                "CPU limits ÷ cores",
                "Sum of the clients' CPU limits, divided by the machine's cores: above 100 % the"
                " machine is oversubscribed,"
                " and its clients' times are the machine's, not the limits'.",
                "percentunit",
                Query(f"{LIMITS_HERE} / {CORES_HERE}", "limits"),
                limits=((None, GREEN), (1.001, RED)),
                decimals=0,
            ),
        ),
        (
            4,
            figure(
                "Clock",
                "How far the machine's clock is from that of Prometheus.",
                "s",
                Query(
                    f"max(abs(node_time_seconds{{{MACHINE}}} - timestamp(node_time_seconds{{{MACHINE}}})))",
                    "offset",
                ),
                limits=((None, GREEN), (1, RED)),
                decimals=0,
            ),
        ),
        (
            4,
            figure(
                "Up",
                "Time since the machine was started.",
                "s",
                Query(
                    f"max(node_time_seconds{{{MACHINE}}}) - max(node_boot_time_seconds{{{MACHINE}}})", "up"
                ),
                decimals=1,
            ),
        ),
    )


def _machine(built: Board) -> None:
    built.row("Machine")
    built.line(
        8,
        (
            8,
            curves(
                "CPU by mode",
                "Cores in use, by what the kernel was doing; the dashed line is all that there are.",
                CORES,
                Query(
                    f"sum by (mode) (rate(node_cpu_seconds_total{{{MACHINE},"
                    f' mode!~"idle|guest.*"}}[$__rate_interval]))',
                    "{{mode}}",
                ),
                Query(CORES_HERE, "cores"),
                stacked=True,
                overrides={
                    **{mode: fixed(paint) for mode, paint in MODES.items()},
                    "cores": {
                        **fixed(RED),
                        "custom.stacking": {"mode": "none", "group": "B"},
                        "custom.fillOpacity": 0,
                        "custom.lineStyle": {"fill": "dash", "dash": [8, 6]},
                    },
                },
            ),
        ),
        (
            8,
            curves(
                "Memory",
                "In use by programs, and in the page cache; the dashed line is all that there is.",
                "bytes",
                Query(
                    f"max(node_memory_MemTotal_bytes{{{MACHINE}}}) -"
                    f" max(node_memory_MemAvailable_bytes{{{MACHINE}}})",
                    "in use",
                ),
                Query(f"max(node_memory_Cached_bytes{{{MACHINE}}})", "page cache"),
                Query(f"max(node_memory_MemTotal_bytes{{{MACHINE}}})", "total"),
                overrides={
                    "in use": {**fixed(BLUE), "custom.fillOpacity": 25},
                    "page cache": fixed(GREY),
                    "total": {**fixed(RED), "custom.lineStyle": {"fill": "dash", "dash": [8, 6]}},
                },
            ),
        ),
        (
            8,
            curves(
                "Pressure",
                "Share of the time in which some process waited for CPU, memory or disk (PSI).",
                "percentunit",
                Query(
                    f"max(rate(node_pressure_cpu_waiting_seconds_total{{{MACHINE}}}[$__rate_interval]))",
                    "cpu",
                ),
                Query(
                    f"max(rate(node_pressure_memory_waiting_seconds_total{{{MACHINE}}}[$__rate_interval]))",
                    "memory",
                ),
                Query(
                    f"max(rate(node_pressure_io_waiting_seconds_total{{{MACHINE}}}[$__rate_interval]))", "io"
                ),
                overrides={"cpu": fixed(BLUE), "memory": fixed(AMBER), "io": fixed(PURPLE)},
            ),
        ),
    )
    built.line(
        8,
        (
            8,
            curves(
                "Network",
                "Bytes per second through the machine's own network cards.",
                "Bps",
                Query(
                    f"sum(rate(node_network_receive_bytes_total{{{CARDS}}}[$__rate_interval]))", "received"
                ),
                Query(f"sum(rate(node_network_transmit_bytes_total{{{CARDS}}}[$__rate_interval]))", "sent"),
                overrides={"received": fixed(BLUE), "sent": fixed(GREEN)},
            ),
        ),
        (
            8,
            curves(
                "Disk throughput",
                "Bytes per second, over all disks.",
                "Bps",
                Query(f"sum(rate(node_disk_read_bytes_total{{{MACHINE}}}[$__rate_interval]))", "read"),
                Query(f"sum(rate(node_disk_written_bytes_total{{{MACHINE}}}[$__rate_interval]))", "written"),
                overrides={"read": fixed(BLUE), "written": fixed(GREEN)},
            ),
        ),
        (
            8,
            curves(
                "Disk space in use",
                "Share of each file system that is in use; above 90 % (dashed) it is time to make room.",
                "percentunit",
                Query(
                    f"1 - min by (device) (node_filesystem_avail_bytes{{{DISKS}}})"
                    f" / max by (device) (node_filesystem_size_bytes{{{DISKS}}})",
                    "{{device}}",
                ),
                high=1,
                limits=((None, "transparent"), (0.9, RED)),
            ),
        ),
    )


def _clients(built: Board) -> None:
    built.row("Clients on this machine")
    dashed = {
        **fixed(RED),
        "custom.lineStyle": {"fill": "dash", "dash": [8, 6]},
        "custom.lineInterpolation": "stepAfter",
    }
    built.line(
        8,
        (
            8,
            curves(
                "Cores used by clients",
                "All clients of this machine together; the dashed line is the sum of their limits.",
                CORES,
                Query(f"sum(client:cpu_usage:rate{{{MACHINE}}})", "clients"),
                Query(LIMITS_HERE, "sum of limits"),
                overrides={"clients": {**fixed(BLUE), "custom.fillOpacity": 25}, "sum of limits": dashed},
            ),
        ),
        (
            8,
            curves(
                "Memory used by clients",
                "Working sets of all clients of this machine together; the dashed line is the sum of their"
                " limits.",
                "bytes",
                Query(f'sum(container_memory_working_set_bytes{{{MACHINE}, role="client"}})', "clients"),
                Query(f'sum(fl_client_limit_verified{{{MACHINE}, limit="memory"}})', "sum of limits"),
                overrides={"clients": {**fixed(BLUE), "custom.fillOpacity": 25}, "sum of limits": dashed},
            ),
        ),
        (
            8,
            bars(
                "Busiest clients",
                "The clients that use most cores now; a click leads to the client.",
                CORES,
                Query(f"topk(6, max by (client) (client:cpu_usage:rate{{{MACHINE}}}))", "{{client}}"),
                link=to_client(),
            ),
        ),
    )
    built.line(
        10,
        (
            8,
            bands(
                "Throttled",
                "Share of the scheduler's periods in which the kernel made a client wait for its quota.",
                "percentunit",
                f"max by (client) (client:cpu_throttled:ratio{{{MACHINE}}})",
                high=1,
            ),
        ),
        (
            16,
            heat(
                "Every client: CPU use of the limit",
                "A row per client in the order of partition ids: cores used, divided by the limit in force.",
                "percentunit",
                f"max by (client) (client:cpu_use:ratio{{{MACHINE}}}) * on (client) group_right ()"
                f" max by (client, partition) (fl_client_info{{{MACHINE}}})",
                scheme="Oranges",
                high=1,
                decimals=0,
            ),
        ),
    )


def _watching(built: Board) -> None:
    built.row("What watching costs")
    built.line(
        7,
        (
            12,
            curves(
                "CPU of exporters",
                "Share of one core that the processes take which answer Prometheus on this machine.",
                "percentunit",
                Query(
                    f"max by (job) (rate(process_cpu_seconds_total{{{MACHINE}}}[$__rate_interval]))",
                    "{{job}}",
                ),
                decimals=1,
            ),
        ),
        (
            12,
            curves(
                "Seconds per scrape",
                "How long this machine's targets take to answer.",
                "s",
                Query(f"max by (job) (scrape_duration_seconds{{{MACHINE}}})", "{{job}}"),
            ),
        ),
    )
