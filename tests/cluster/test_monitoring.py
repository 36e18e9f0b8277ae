"""Prometheus sees all of a federation while it trains, says what is true, and says it to nobody else.

On the federation that stands: clients on all hosts, Prometheus on the server's, scraping every two seconds.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import urllib.error
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.federation import CLIENTS, CPU, FEDERATION, MACHINES
from tests.cluster.lab import sh
from tests.cluster.watch import LIMITS, PORTS, ROUNDS, THROTTLED, WatchedLab
from tests.hosts import Host


def containers_of(host: Host) -> list[dict[str, Any]]:
    """What the engine says of the federation's containers."""
    ids = sh(host, f"docker ps -aq --filter label=coldframe.federation={FEDERATION}").split()
    return json.loads(sh(host, f"docker inspect {' '.join(ids)}")) if ids else []


@pytest.fixture(scope="module")
def throttled(watched: WatchedLab) -> Iterator[None]:
    """A run of which one client is throttled while it goes on; it has ended afterwards."""
    finish = watched.observe()
    yield
    finish()


def test_every_target_is_up_while_a_run_goes_and_a_throttle_is_seen(
    watched: WatchedLab, throttled: None
) -> None:
    running = 'and on (run) fl_run_state{state="running"} == 1'
    watched.wait_for("a round", lambda: bool(watched.query(f"fl_run_round >= 1 {running}")), 120)
    assert len(watched.query(f"fl_client_train_seconds {running}")) == len(CLIENTS)
    up = watched.query("up")
    assert {(labels["job"], labels["machine"]) for labels, _ in up} == {
        *((job, machine) for job in ("node", "containers") for machine in MACHINES),
        ("fl", "server"),
        ("prometheus", "server"),
    }
    assert {labels["federation"] for labels, _ in up} == {FEDERATION}
    assert [labels for labels, value in up if value != 1] == []
    client = f'client="{THROTTLED}",machine="c1"'
    for what in ("desired", "verified"):
        assert watched.value(f'fl_client_limit_{what}{{{client},limit="cpu"}}') == float(LIMITS["cpu"])
    assert watched.value(f'fl_client_limit_baseline{{{client},limit="cpu"}}') == CPU
    assert watched.value(f"fl_client_limits_hold{{{client}}}") == 1
    assert watched.value(f'fl_client_limit_changes_total{{{client},cause="throttle"}}') >= 1
    assert watched.value(f'increase(fl_client_limit_changes_total{{{client},cause="throttle"}}[5m])') > 0
    watched.wait_for(
        "its throttling", lambda: watched.value(f"client:cpu_throttled:ratio{{{client}}}") > 0.2, 60
    )
    assert len(watched.query("client:cpu_use:ratio")) == len(CLIENTS)
    assert watched.value('fl_clients{state="online"}') == len(CLIENTS)
    names = {labels["name"] for labels, _ in watched.query("container_last_seen")}
    assert names == {
        item["Name"].removeprefix("/") for name in MACHINES for item in containers_of(watched.hosts[name])
    }


def test_nobody_reads_without_the_password(watched: WatchedLab) -> None:
    """From the neighbour, at every published port; and nothing answers without TLS."""
    places = [("server", port) for port in PORTS.values()]
    places += [(machine, PORTS[job]) for machine in ("c1", "c2") for job in ("node", "containers")]
    for machine, port in places:
        neighbour = watched.hosts["c1" if machine == "server" else "server"]
        where = f"{watched.hosts[machine].address}:{port}"
        for path, login in (("/metrics", ""), ("/metrics", "-u scrape:wrong"), ("/metrics", "-u :")):
            code = sh(neighbour, f"curl -sk {login} -o /dev/null -w '%{{http_code}}' https://{where}{path}")
            assert code == "401", (where, path, login)
        plain = sh(
            neighbour, f"curl -s -o /tmp/plain -w '%{{http_code}}' http://{where}/metrics", check=False
        )
        assert plain in ("000", "400"), where
    with pytest.raises(urllib.error.HTTPError, match="401"):
        watched.read(
            f"https://{watched.server.address}:{PORTS['prometheus']}/api/v1/query?query=up", "scrape", "x"
        )
    code = sh(
        watched.machine,
        f"curl -sk -o /dev/null -w '%{{http_code}}' https://{watched.server.address}:{PORTS['fl']}/v1/fleet/",
    )
    assert code == "404"


def pages(watched: WatchedLab) -> dict[str, str]:
    """What each target shows, by its URL."""
    password = watched.password("scrape")
    ports = [(name, PORTS[job]) for name in MACHINES for job in ("node", "containers")]
    urls = [
        f"https://{watched.hosts[name].address}:{port}/metrics"
        for name, port in [*ports, ("server", PORTS["fl"]), ("server", PORTS["prometheus"])]
    ]
    return {url: watched.read(url, "scrape", password) for url in urls}


def test_nothing_secret_is_in_a_metric_or_a_label(watched: WatchedLab) -> None:
    texts = pages(watched)
    texts["targets"] = json.dumps(watched.prometheus("targets"))
    texts["configuration"] = json.dumps(watched.prometheus("status/config"))
    texts["series"] = json.dumps(watched.prometheus("series", **{"match[]": '{federation!=""}'}))
    secrets = [watched.password(name) for name in ("prometheus", "scrape")]
    secrets += [path.read_text().strip() for path in (watched.state / "monitoring").glob("*.hash")]
    keys = [*sorted((watched.state / "pki").rglob("*.key"))]
    secrets += [line for path in keys for line in path.read_text().splitlines() if len(line) > 40]
    for name in MACHINES:
        where = f"/var/lib/coldframe/{FEDERATION}"
        found = sh(watched.hosts[name], f"cat {where}/keys/* {where}/monitoring/*.key")
        secrets += [line for line in found.splitlines() if len(line) > 40 and "-----" not in line]
    assert len(secrets) > 12
    for place, text in texts.items():
        assert len(text) > 100
        assert [secret for secret in secrets if secret in text] == [], place


def test_no_key_of_the_monitoring_can_pose_as_the_server_to_a_client(watched: WatchedLab) -> None:
    """Clients trust another authority than Prometheus and its readers."""
    ours, clients = watched.authority, watched.state / "pki" / "ca.crt"
    for name in MACHINES:
        trusted = sh(watched.hosts[name], f"cat /var/lib/coldframe/{FEDERATION}/ca/ca.crt")
        assert trusted.strip() == clients.read_text().strip()
    doors = [PORTS["node"], PORTS["containers"], PORTS["fl"], PORTS["prometheus"]]
    for port, right, wrong in [*((port, ours, clients) for port in doors), (9092, clients, ours)]:
        address = (watched.server.address, port)
        for authority in (right, wrong):
            context = ssl.create_default_context(cafile=str(authority))
            with socket.create_connection(address, 5) as plain:
                if authority is right:
                    context.wrap_socket(plain, server_hostname=address[0]).close()
                else:
                    with pytest.raises(ssl.SSLCertVerificationError):
                        context.wrap_socket(plain, server_hostname=address[0])


def test_what_monitors_may_do_nothing_else(watched: WatchedLab) -> None:
    """No engine's socket, no capability, no root, nothing to write to but Prometheus' own data."""
    seen = set()
    for name in MACHINES:
        for item in containers_of(watched.hosts[name]):
            if item["Config"]["Labels"].get("coldframe.monitoring") != "true":
                continue
            seen.add(item["Config"]["Labels"]["coldframe.role"])
            config = item["HostConfig"]
            assert item["Config"]["User"].split(":")[0] not in ("", "0", "root")
            assert config["ReadonlyRootfs"]
            assert config["CapDrop"] == ["ALL"]
            assert not config["CapAdd"]
            assert config["Memory"] > 0
            assert not any("docker.sock" in bind for bind in config["Binds"])
            writable = [bind for bind in config["Binds"] if bind.split(":")[2:] != ["ro"]]
            assert all("/prometheus/data:" in bind for bind in writable), writable
    assert seen >= {"node_exporter", "container_exporter", "prometheus"}


class Engine:
    """What the engine and the kernel say of a client's container, past every tool of ours."""

    def __init__(self, watched: WatchedLab, machine: str, client: str) -> None:
        self.host = watched.hosts[machine]
        self.name = f"{FEDERATION}-{client}"
        path = f"/containers/{self.name}/stats?stream=false&one-shot=true"
        self.stats = json.loads(sh(self.host, f"curl -s --unix-socket /var/run/docker.sock 'http://e{path}'"))
        self.described = watched.container(self.host, self.name)
        self.kernel = watched.kernel(self.host, self.name)

    def blocks(self, way: str) -> int:
        """Bytes read from or written to block devices."""
        entries = self.stats["blkio_stats"]["io_service_bytes_recursive"] or []
        return sum(entry["value"] for entry in entries if entry["op"].lower() == way)


def test_values_agree_with_the_engine_the_journal_and_proc(watched: WatchedLab, throttled: None) -> None:
    """Within 2 %, when the run is over and the counters rest."""
    watched.wait_for(
        "the end of the run", lambda: watched.value("sum(fl_run_state{state='running'})") == 0, 180
    )
    engine = Engine(watched, "c1", "c1-0")
    stats, cpu = engine.stats, engine.stats["cpu_stats"]
    network = stats["networks"]["eth0"]
    began = datetime.fromisoformat(engine.described["State"]["StartedAt"][:26] + "+00:00")
    client = 'client="c1-0",job="containers"'
    expected: dict[str, float] = {
        f"container_cpu_usage_seconds_total{{{client}}}": cpu["cpu_usage"]["total_usage"] / 1e9,
        f"container_cpu_user_seconds_total{{{client}}}": cpu["cpu_usage"]["usage_in_usermode"] / 1e9,
        f"container_cpu_system_seconds_total{{{client}}}": cpu["cpu_usage"]["usage_in_kernelmode"] / 1e9,
        f"container_cpu_cfs_periods_total{{{client}}}": cpu["throttling_data"]["periods"],
        f"container_cpu_cfs_throttled_periods_total{{{client}}}": cpu["throttling_data"]["throttled_periods"],
        f"container_cpu_cfs_throttled_seconds_total{{{client}}}": cpu["throttling_data"]["throttled_time"]
        / 1e9,
        f"container_memory_usage_bytes{{{client}}}": stats["memory_stats"]["usage"],
        # Their names in the engine's answer depend on the version of control groups.
        f"container_memory_max_usage_bytes{{{client}}}": engine.kernel.memory_peak,
        f"container_memory_rss{{{client}}}": engine.kernel.anonymous,
        f"container_memory_cache{{{client}}}": engine.kernel.cached,
        f"container_spec_memory_limit_bytes{{{client}}}": stats["memory_stats"]["limit"],
        'fl_client_limit_verified{client="c1-0",limit="pids"}': stats["pids_stats"]["limit"],
        f"container_network_receive_bytes_total{{{client}}}": network["rx_bytes"],
        f"container_network_transmit_bytes_total{{{client}}}": network["tx_bytes"],
        f"container_network_receive_packets_total{{{client}}}": network["rx_packets"],
        f"container_fs_reads_bytes_total{{{client}}}": engine.blocks("read"),
        f"container_fs_writes_bytes_total{{{client}}}": engine.blocks("write"),
        f"container_start_time_seconds{{{client}}}": began.timestamp(),
    }
    text = watched.on_machine("cat /proc/meminfo /proc/stat")
    expected['node_memory_MemTotal_bytes{machine="c1"}'] = 1024 * int(re.search(r"MemTotal: +(\d+)", text)[1])  # type: ignore[index]
    expected['node_boot_time_seconds{machine="c1"}'] = int(re.search(r"btime (\d+)", text)[1])  # type: ignore[index]
    idle = int(re.search(r"^cpu +\d+ \d+ \d+ (\d+)", text, re.M)[1]) / 100  # type: ignore[index]
    expected['sum(node_cpu_seconds_total{mode="idle",machine="c1"})'] = idle
    path = f"/var/lib/coldframe/{FEDERATION}/monitoring/machine.crt"
    ends = watched.on_machine(f'date -d "$(openssl x509 -noout -enddate -in {path} | cut -d= -f2)" +%s')
    expected['fl_certificate_expiry_timestamp_seconds{certificate="machine",machine="c1"}'] = int(ends)
    expected |= of_the_journal(watched)
    assert len(expected) > 30
    measured = {expression: watched.value(expression) for expression in expected}
    wrong = {}
    for expression, value in expected.items():
        # Of a point in time two per cent would be a year.
        in_time = value > 1.5e9 and "bytes" not in expression
        near = pytest.approx(value, abs=2.0, rel=0.0) if in_time else pytest.approx(value, rel=0.02)
        if measured[expression] != near:
            wrong[expression] = (measured[expression], value)
    assert wrong == {}


def of_the_journal(watched: WatchedLab) -> dict[str, float]:
    """What the newest run's journal says, by the expression that Prometheus should give it for."""
    path = sh(watched.server, f"ls -t /var/lib/coldframe/{FEDERATION}/server/runs/*/journal.jsonl").split()[0]
    journal = [json.loads(line) for line in sh(watched.server, f"cat {path}").splitlines()]
    run = f'run="{Path(path).parent.name}"'
    rounds = [event for event in journal if event["event"] == "round"]
    replies = [event for event in journal if event["event"] == "reply"]
    last = rounds[-1]
    expected: dict[str, float] = {
        f"fl_run_round{{{run}}}": ROUNDS,
        f"fl_run_accuracy{{{run}}}": last["accuracy"],
        f"fl_run_loss{{{run}}}": last["loss"],
        f"fl_run_client_accuracy{{{run}}}": last["client_accuracy"],
        f"fl_run_train_loss{{{run}}}": last["train_loss"],
        f"fl_round_seconds{{{run}}}": last["seconds"],
        f"fl_round_participants{{{run}}}": len(CLIENTS),
        f'fl_run_state{{{run},state="completed"}}': 1,
        f'fl_run_bytes_total{{{run},direction="up"}}': sum(event["bytes_up"] for event in replies),
        f'fl_run_bytes_total{{{run},direction="down"}}': sum(event["bytes_down"] for event in replies),
        f"sum(fl_run_failures_total{{{run}}})": 0,
        f"fl_run_folded_total{{{run}}}": 0,
        f"sum(fl_client_updates_total{{{run}}})": sum(event["phase"] == "train" for event in replies),
        f"fl_run_started_timestamp_seconds{{{run}}}": journal[0]["time"],
    }
    for phase in ("configure", "train", "aggregate", "evaluate", "server_evaluate"):
        total = sum(event["phases"].get(phase, 0) for event in rounds)
        expected[f'fl_run_seconds_total{{{run},phase="{phase}"}}'] = total
    own = [event for event in replies if event["client"] == "c1-0" and event["phase"] == "train"][-1]
    of = f'{run},client="c1-0"'
    expected |= {
        f"fl_client_round_seconds{{{of}}}": own["seconds"],
        f"fl_client_examples{{{of}}}": own["examples"],
        f"fl_client_train_seconds{{{of}}}": own["system"]["train_seconds"],
        f"fl_client_samples_per_second{{{of}}}": own["system"]["samples_per_second"],
        f"fl_client_cpu_limit_cores{{{of}}}": own["system"]["cpu_limit"],
    }
    return expected
