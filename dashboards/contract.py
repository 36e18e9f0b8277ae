"""The metrics that the dashboards may use: exporters or recording rules of ours make each of them."""

from __future__ import annotations

# Labels that Prometheus' target files put on every series.
TARGET = ("federation", "machine", "job", "instance")

_CONTAINER = """
container_cpu_usage_seconds_total container_cpu_user_seconds_total container_cpu_system_seconds_total
container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
container_cpu_cfs_throttled_seconds_total
container_spec_cpu_quota container_spec_cpu_period
container_memory_usage_bytes container_memory_working_set_bytes container_memory_rss container_memory_cache
container_memory_max_usage_bytes container_spec_memory_limit_bytes container_oom_events_total
container_fs_reads_bytes_total container_fs_writes_bytes_total container_processes container_threads
container_start_time_seconds container_last_seen
container_pressure_cpu_waiting_seconds_total container_pressure_cpu_stalled_seconds_total
container_pressure_memory_waiting_seconds_total container_pressure_memory_stalled_seconds_total
container_pressure_io_waiting_seconds_total container_pressure_io_stalled_seconds_total
"""
_INTERFACE = """
container_network_receive_bytes_total container_network_transmit_bytes_total
container_network_receive_packets_total container_network_transmit_packets_total
container_network_receive_errors_total container_network_transmit_errors_total
container_network_receive_packets_dropped_total container_network_transmit_packets_dropped_total
"""
_LIMIT = "fl_client_limit_desired fl_client_limit_verified fl_client_limit_baseline"
_CLIENT = "fl_client_limits_hold fl_client_oom_kills_total fl_client_online fl_client_running"
_RUN = """
fl_run_started_timestamp_seconds fl_run_finished_timestamp_seconds fl_run_last_event_timestamp_seconds
fl_run_rounds_planned fl_run_round_timeout_seconds fl_run_round fl_run_accuracy fl_run_loss
fl_run_client_accuracy fl_run_client_loss fl_run_train_loss
fl_round_seconds fl_round_participants fl_round_straggler_gap_seconds
fl_run_checkpoint_round fl_run_checkpoint_seconds fl_run_checkpoint_held_seconds fl_run_checkpoint_bytes
fl_run_checkpoint_failures_total fl_run_resumes_total
"""
_RUN_CLIENT = """
fl_client_train_seconds fl_client_round_seconds fl_client_samples_per_second
fl_client_cpu_limit_cores fl_client_threads
fl_client_throttled_ratio fl_client_memory_peak_bytes fl_client_examples fl_client_failures_total
fl_client_updates_total
"""
_RULE_CLIENT = """
client:cpu_usage:rate client:cpu_use:ratio client:cpu_throttled:ratio client:memory_use:ratio
client:network_receive:rate client:network_transmit:rate
"""
_RULE_MACHINE = "machine:cpu_use:ratio machine:memory_use:ratio"
_NODE = {
    "node_cpu_seconds_total": ("cpu", "mode"),
    "node_load1": (),
    "node_memory_MemTotal_bytes": (),
    "node_memory_MemAvailable_bytes": (),
    "node_memory_Cached_bytes": (),
    "node_filesystem_avail_bytes": ("mountpoint", "fstype", "device"),
    "node_filesystem_size_bytes": ("mountpoint", "fstype", "device"),
    "node_disk_read_bytes_total": ("device",),
    "node_disk_written_bytes_total": ("device",),
    "node_network_receive_bytes_total": ("device",),
    "node_network_transmit_bytes_total": ("device",),
    "node_pressure_cpu_waiting_seconds_total": (),
    "node_pressure_memory_waiting_seconds_total": (),
    "node_pressure_io_waiting_seconds_total": (),
    "node_boot_time_seconds": (),
    "node_time_seconds": (),
}
_OF_CONTAINER = ("name", "id", "image", "role", "client", "partition")
_OF_RUN_INFO = ("run", "run_name", "strategy", "dataset", "partitioner", "seed")


def _all(names: str, *labels: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), labels)


# Metric -> the labels that it has besides TARGET.
METRICS: dict[str, tuple[str, ...]] = {
    **_all(_CONTAINER, *_OF_CONTAINER, "cpu"),
    **_all(_INTERFACE, *_OF_CONTAINER, "interface"),
    **_all(_LIMIT, "client", "limit"),
    **_all(_CLIENT, "client"),
    "fl_client_limit_changes_total": ("client", "cause"),
    "fl_client_info": ("client", "partition", "profile"),
    "fl_run_info": _OF_RUN_INFO,
    "fl_run_state": ("run", "state"),
    **_all(_RUN, "run"),
    "fl_round_phase_seconds": ("run", "phase"),
    "fl_run_seconds_total": ("run", "phase"),
    "fl_run_failures_total": ("run", "reason"),
    "fl_run_late_total": ("run", "reason"),
    "fl_run_folded_total": ("run",),
    "fl_run_discarded_total": ("run",),
    "fl_round_staleness": ("run", "stat"),
    "fl_run_bytes_total": ("run", "direction"),
    "fl_run_metric": ("run", "phase", "metric", "stat"),
    **_all(_RUN_CLIENT, "run", "client", "partition"),
    "fl_client_last_seen_timestamp_seconds": ("client", "partition"),
    "fl_client_connected": ("client", "partition"),
    "fl_clients": ("state",),
    "fl_certificate_expiry_timestamp_seconds": ("certificate",),
    "fl_exporter_scrape_seconds": (),
    **_all(_RULE_CLIENT, "client"),
    **_all(_RULE_MACHINE),
    **_NODE,
    "up": (),
    "scrape_duration_seconds": (),
    "process_cpu_seconds_total": (),
}
