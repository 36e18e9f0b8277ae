"""The main job on real hosts: bare machines to a trained model, and what must hold around it.

All tests but the first take the federation that stands; each says which machine it hurts.
"""

from __future__ import annotations

import csv
import json
import re
import secrets
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from coldframe.controller.records import gather
from tests.cluster.federation import (
    CLIENTS,
    CPU,
    EVERYBODY,
    MACHINES,
    containers,
    turned_away,
    write_inventory,
)
from tests.cluster.lab import LISTENING, ROOT, SMALL, Lab, sh
from tests.cluster.watch import PORTS, WatchedLab
from tests.unit.wheels import write_wheel

ROUNDS = 1  # of the one run on all of MNIST: three minutes of CPU time each
APPS = ROOT / "tests" / "cluster" / "apps"
SUMMARY_KEYS = {
    *(
        "run_id",
        "status",
        "rounds",
        "clients",
        "strategy",
        "dataset",
        "partitioner",
        "seed",
        "accuracy",
        "loss",
    ),
    *("wall_seconds", "round_seconds", "model_sha256", "oversubscribed", "started", "finished", "versions"),
    "oversubscribed_because",
}


@pytest.fixture(scope="module")
def federation(watched: WatchedLab) -> WatchedLab:
    """What a user's first deployment makes is monitored."""
    return watched


# --- the main job
# --------------------------------------------------------------------------------------------------


@contextmanager
def sudo_asks(lab: Lab) -> Iterator[list[str]]:
    """Let sudo on all hosts ask the inventory's user for a password; what answers it, as -K does."""
    user = yaml.safe_load(lab.inventory.read_text())["fl_machines"]["vars"]["ansible_user"]
    password = secrets.token_urlsafe() + " '\"$HOME"  # nothing that a shell may read
    answer = lab.directory / "password"
    answer.write_text(password)
    rule = f"/etc/sudoers.d/{user}"
    for host in lab.hosts:
        sh(host, f"printf %s {shlex.quote(f'{user}:{password}')} | chpasswd")
        sh(host, f"cp {rule} /root/rule && sed -i s/NOPASSWD:// {rule}")
    try:
        yield ["--become-password-file", str(answer)]
    finally:
        for host in lab.hosts:
            sh(host, f"mv /root/rule {rule}")
        answer.unlink()


def test_site_trains_full_mnist(lab: Lab) -> None:
    """From bare hosts, whose engines are not even started and have no image, to a model in one command:
    ansible-playbook site.yml -i <inventory>; as a user whom sudo asks for a password (-K)."""
    if lab.deployed:
        lab.must("teardown.yml", purge="true", yes="true")
        lab.deployed.clear()
    lab.monitoring = True
    write_inventory(lab)
    for host in lab.hosts:
        sh(host, "systemctl disable --now docker.service docker.socket containerd.service 2>&1")
        sh(host, "rm -rf /var/lib/docker/*")  # where the machine's engine came with the image
    with sudo_asks(lab) as answer:
        play = lab.play("site.yml")
        for words in ("Missing sudo password", "add -K", "Nothing was changed."):
            assert words in play.output, play.output
        lab.must("site.yml", *answer, rounds=str(ROUNDS))
    lab.deployed.add("coldframe")
    # One image, shipped to those that do not build it.
    images = {sh(host, "docker image ls --quiet --no-trunc coldframe/fl") for host in lab.hosts}
    assert len(images) == 1, images
    assert images != {""}
    summary = lab.summary()
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["status"] == "completed"
    assert summary["accuracy"] >= 0.96
    assert summary["rounds"] == len(summary["round_seconds"]) == ROUNDS
    assert summary["clients"] == len(CLIENTS)
    assert summary["dataset"] == "mnist"
    # The load of the machine below the test hosts is what other tests make of it.
    assert not [reason for reason in summary["oversubscribed_because"] if "CPU limits" in reason]
    replies = [event for event in lab.journal() if event["event"] == "reply" and event["phase"] == "train"]
    assert sum(event["examples"] for event in replies) == ROUNDS * 60_000
    assert {event["client"] for event in replies} == set(CLIENTS)


def test_results_folder_holds_the_run(federation: Lab) -> None:
    """Tables, pictures, model, journal: enough to look at without the federation."""
    if not (federation.results / "latest").exists():
        federation.run()
    latest = federation.results / "latest"
    names = {path.name for path in latest.iterdir()}
    assert names >= {
        "summary.json",
        "rounds.csv",
        "clients.csv",
        "journal.jsonl",
        "config.yml",
        "inventory.json",
    }
    assert names >= {"versions.json", "model.pt", "model.npz", "rounds.png", "partitions.png", "clients.png"}
    summary = federation.summary()
    assert len((latest / "rounds.csv").read_text().splitlines()) >= summary["rounds"] + 1
    assert json.loads((latest / "versions.json").read_text())["flwr"] == "1.42.0"
    report = (latest / "report.html").read_text()
    assert f"{summary['accuracy']:.4f}" in report
    titles = ["Accuracy and loss", "Time by phase of the round", "Clients over time"]
    for words in (*titles, *CLIENTS, "Debian GNU/Linux", "num-server-rounds", str(summary["model_sha256"])):
        assert words in report, words
    # The containers' logs, each from the machine that it ran on, since the run's start.
    logs = {str(path.relative_to(latest / "logs")) for path in latest.glob("logs/*/*")}
    wanted = {f"{machine}/coldframe-{name}.log" for name, machine in CLIENTS.items()}
    wanted |= {"server/coldframe-server.log", *(f"{name}/coldframe-agent.log" for name in MACHINES)}
    assert logs >= wanted
    assert logs == {f"{name}.log" for name in containers(federation)}
    submitted = json.loads((latest / "superlink.json").read_text())["submitted"]
    lines = (latest / "logs" / "server" / "coldframe-server.log").read_text().splitlines()[1:]
    assert lines
    assert min(lines)[:19] >= submitted[:19]
    assert max(path.stat().st_size for path in latest.glob("logs/*/*")) <= 1 << 20


def test_what_somebody_changed_is_mended_by_the_next_deployment(federation: Lab) -> None:
    """Hurts both hosts: a client's container is gone, and the gateway's configuration is another."""
    federation.on_machine("docker rm --force coldframe-c1-1")
    federation.on_server("echo '# mine' >>/var/lib/coldframe/coldframe/gateway/nginx.conf")
    play = federation.must("site.yml", train="false")
    assert min(play.changed[host.name] for host in (federation.server, federation.machine)) > 0
    assert federation.container(federation.machine, "coldframe-c1-1")["State"]["Running"]
    assert "mine" not in federation.on_server("cat /var/lib/coldframe/coldframe/gateway/nginx.conf")
    # Removed without a goodbye, the client still counts as connected: it is let in all the same.
    federation.wait_for("all clients", lambda: federation.online() == set(CLIENTS), 60)
    assert federation.container(federation.machine, "coldframe-c1-1")["RestartCount"] == 0


def test_second_deployment_changes_nothing_and_the_addresses_are_shown(federation: WatchedLab) -> None:
    """changed=0 on every host, and no container is restarted."""
    before = containers(federation)
    assert before.keys() >= {f"{machine}/coldframe-{name}" for name, machine in CLIENTS.items()}
    assert "server/coldframe-server" in before
    quick = federation.must("site.yml", train="false")
    assert "Up to date; nothing to deploy" in quick.output
    thorough = federation.must("site.yml", train="false", redeploy="true")
    assert "nothing to deploy" not in thorough.output
    for play in (quick, thorough):
        assert play.changed == {"localhost": 0, "server": 0, "c1": 0, "c2": 0}, play.output
    assert containers(federation) == before
    output = federation.must("status.yml").output
    assert f"https://{federation.server.address}:{PORTS['prometheus']}" in output
    assert "prometheus.password" in output
    assert federation.password("prometheus") not in output


def test_clients_are_hardened_and_limited_as_the_inventory_says(federation: Lab) -> None:
    """What the engine says, and the kernel too."""
    for name, machine in CLIENTS.items():
        host = federation.hosts[machine]
        described = federation.container(host, f"coldframe-{name}")
        host_config = described["HostConfig"]
        assert host_config["ReadonlyRootfs"]
        assert host_config["ShmSize"] == 64 << 30
        assert "no-new-privileges" in " ".join(host_config["SecurityOpt"])
        assert host_config["CapDrop"] == ["ALL"]
        assert not host_config["CapAdd"]
        assert not host_config["Privileged"]
        assert described["Config"]["User"].split(":")[0] == "10001"
        assert host_config["CpuPeriod"] == 100_000
        assert host_config["NanoCpus"] == 0
        pid = described["State"]["Pid"]
        status = sh(host, f"cat /proc/{pid}/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Uid:\t10001" in status
        kernel = federation.kernel(host, f"coldframe-{name}")
        assert kernel.cpu == host_config["CpuQuota"] / 100_000 == CPU
        assert kernel.memory == host_config["Memory"] == (900 << 20 if name == "small" else 1 << 30)
        assert kernel.pids == host_config["PidsLimit"]
        with pytest.raises(Exception, match="Read-only file system"):
            sh(host, f"docker exec coldframe-{name} touch /opt/x")
        elsewhere = sh(host, "grep -s cgroup-parent /etc/docker/daemon.json || true")
        assert bool(elsewhere) == ("/lab" in sh(host, f"cat /proc/{pid}/cgroup"))


# --- the only door
# -------------------------------------------------------------------------------------------------

HIDDEN = [
    "/v1/control/list-runs",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/openapi.json",
    "/docs",
    "//v1/control/list-runs",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs",
    "/v1/control/../fleet/../control/list-runs",
    "/V1/control/list-runs",
]


def answers(run: Callable[[str], str], address: str, paths: list[str]) -> dict[str, str]:
    """The status that each path has for GET and POST, asked as it is spelt; ``run`` runs a shell command."""
    calls = [f"{method} {path}" for path in paths for method in ("GET", "POST")]
    output = run(
        f"printf '%s\\n' {' '.join(map(shlex.quote, calls))} | while read -r method path; do"
        " curl -sk --max-time 10 --path-as-is -X $method -o /dev/null"
        f' -w "$method $path %{{http_code}}\\n" https://{address}:9092$path </dev/null; done'
    )
    found = dict(line.rsplit(" ", 1) for line in output.splitlines())
    assert found.keys() == set(calls)
    return found


def test_health_is_all_that_another_host_reaches(federation: Lab) -> None:
    """From c1, a machine of the federation itself: Control and Runtime are out of reach, however they are
    spelt; /health answers, so the 404 come from the gateway and not from a dead server."""
    found = answers(federation.on_machine, federation.server.address, [*HIDDEN, "/health"])
    assert found.pop("GET /health") == "200"
    found.pop("POST /health")
    assert found == dict.fromkeys(found, "404")
    assert len(found) == 2 * len(HIDDEN)


def test_superlink_is_out_of_reach_of_a_neighbour_container(federation: Lab) -> None:
    """From a container in the server's own network: neither the SuperLink's port nor a path behind the
    gateway."""
    described = federation.container(federation.server, "coldframe-server")
    address = described["NetworkSettings"]["Networks"]["coldframe"]["IPAddress"]
    image = described["Config"]["Image"]
    script = textwrap.dedent(f"""
        import json, socket, ssl, http.client
        found = {{}}
        for port in (9091, 9092, 8000, 9093):
            try:
                socket.create_connection(("{address}", port), 3).close()
                found[port] = "open"
            except OSError as error:
                found[port] = type(error).__name__
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for path in {HIDDEN!r}:
            connection = http.client.HTTPSConnection("{address}", 9092, context=context, timeout=5)
            connection.putrequest("POST", path, skip_accept_encoding=True)
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            found[path] = connection.getresponse().status
        print(json.dumps(found))
    """)
    answer = federation.on_server(
        f"docker run --rm --network coldframe {image} python3 -c '{script.replace(chr(39), chr(34))}'"
    )
    found = json.loads(answer)
    # The gateway's two doors: Fleet's, and that of the metrics (test_monitoring.py).
    assert {found.pop(port) for port in ("9092", "9093")} == {"open"}
    assert {found.pop(port) for port in ("9091", "8000")} == {"ConnectionRefusedError"}
    assert set(found.values()) == {404}


def test_machines_listen_on_nothing_else(federation: Lab) -> None:
    """All that another machine can reach is sshd, the server's one port, and what the monitoring asks."""
    found = {host.name: set(map(int, sh(host, LISTENING).split())) for host in federation.hosts}
    exporters = {22, PORTS["node"], PORTS["containers"]}
    assert found == {"server": exporters | {9092, *PORTS.values()}, "c1": exporters, "c2": exporters}


def test_plain_http_is_refused(federation: Lab) -> None:
    """The connection ends without an answer."""
    with pytest.raises((urllib.error.URLError, ConnectionError, socket.timeout, OSError)):
        urllib.request.urlopen(f"http://{federation.server.address}:9092/health", timeout=5)


def test_old_tls_is_refused(federation: Lab) -> None:
    """TLS 1.3 or nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((federation.server.address, 9092), 5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


def test_stranger_outside_the_inventory_can_neither_submit_nor_register_nor_read(federation: Lab) -> None:
    """This machine is not in the inventory; it has the authority's certificate, a key of its own and knows a
    client's node id and a run."""
    nodes = federation.nodes()
    node = Node(node_id=int(nodes[0]["node_id"]))
    run = int(federation.summary()["run_id"])
    key = ec.generate_private_key(ec.SECP384R1())
    client = FleetHttpClient.from_server_address(
        f"{federation.server.address}:9092",
        insecure=False,
        root_certificates=(federation.directory / "state/coldframe/coldframe/pki/ca.crt").read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    )
    calls = {
        "messages": lambda: client.PullMessages(PullMessagesRequest(node=node)),
        "object": lambda: client.PullObject(PullObjectRequest(node=node, run_id=run, object_id="0" * 64)),
        "run": lambda: client.GetRun(GetRunRequest(node=node, run_id=run)),
        "app": lambda: client.GetFab(GetFabRequest(node=node, run_id=run, hash_str="0" * 64)),
    }

    def here(command: str) -> str:
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout

    assert set(answers(here, federation.server.address, HIDDEN).values()) == {"404"}
    for what, call in calls.items():
        with pytest.raises(httpx.HTTPStatusError) as refused:
            call()
        assert refused.value.response.status_code == 401, what
    with pytest.raises(httpx.HTTPStatusError):
        client.RegisterNode(RegisterNodeFleetRequest(public_key=public_key_to_bytes(key.public_key())))
    client.close()
    assert {item["node_id"] for item in federation.nodes()} == {item["node_id"] for item in nodes}


def test_unregistered_key_is_turned_away(federation: Lab) -> None:
    """A client with a key of its own making, on a machine that has the authority's certificate."""
    image = federation.container(federation.machine, "coldframe-c1-0")["Config"]["Image"]
    federation.on_machine("install -d -o 10001 /tmp/stranger")
    run = (
        f"docker run --rm --volume /tmp/stranger:/keys {image} python3 -m coldframe.keys nodes /keys stranger"
    )
    federation.on_machine(run)
    assert turned_away(federation, "/tmp/stranger/stranger")
    federation.wait_for("all clients", lambda: federation.online() == set(CLIENTS), 60)


# --- runs -------------------------------------------------------------------------------------------
# ---------------


def test_changed_training_code_takes_effect_without_an_image(federation: Lab, tmp_path: Path) -> None:
    """A line changed in fl/ counts in the next run; the image is not built again."""
    checkout = tmp_path / "checkout"
    ignore = shutil.ignore_patterns(".git", ".venv", "results", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, checkout, ignore=ignore, symlinks=True)
    before = federation.on_machine("docker image ls --quiet coldframe/fl")
    code = checkout / "fl" / "client_app.py"
    text = code.read_text()
    needle = "import hashlib\n"
    assert needle in text
    code.write_text(text.replace(needle, f"{needle}raise RuntimeError('the changed code runs')\n", 1))
    play = federation.play("run.yml", root=checkout, rounds="1", dataset="synthetic")
    assert play.code != 0
    assert "RuntimeError: the changed code runs (in client_app.py line 4)" in play.output
    assert federation.on_machine("docker image ls --quiet coldframe/fl") == before


def test_one_seed_gives_one_model(federation: Lab) -> None:
    """Two runs with one seed have one model hash, also where limits change in the second; another seed has
    another. With another partitioner and another strategy than usual, with arguments."""
    settings = {
        "rounds": "3",
        "local_epochs": "2",
        "fraction_evaluate": "0",
        "dataset": "synthetic",
        "max_samples": "900",
        "partitioner": "dirichlet",
        "partitioner_args": {"alpha": 0.3},
        "fl_strategy": "fedprox",
        "strategy_args": {"proximal_mu": 0.1},
        **EVERYBODY,
    }
    hashes = [federation.run(**settings, seed="7")["model_sha256"]]
    play, wait = federation.start("run.yml", **settings, seed="7")
    federation.wait_for("the first round", lambda: "round 0/3" in play.output, 120)
    federation.must("throttle.yml", cpu="0.2", clients="c1-*")
    assert wait().code == 0, play.output
    federation.must("throttle.yml", undo="true")
    # A line per round as it happens, not at the end.
    seconds = federation.summary()["round_seconds"]
    assert play.seconds_of("round 3/3") - play.seconds_of("round 1/3") > 0.5 * sum(seconds[1:])
    throttled = [e for e in federation.journal() if e["event"] == "reply" and e["system"]["cpu_limit"] == 0.2]
    assert {event["client"] for event in throttled} == {"c1-0", "c1-1"}
    hashes.append(federation.summary()["model_sha256"])
    summary = federation.run(**settings, seed="8")
    assert hashes[0] == hashes[1] != summary["model_sha256"]
    assert (summary["strategy"], summary["partitioner"]) == ("fedprox", "dirichlet")
    counts = list(gather(federation.journal()).started["histogram"].values())
    assert sum(map(sum, counts)) == 900
    assert len({tuple(row) for row in counts}) == len(CLIENTS)


def test_collect_fetches_an_earlier_run(federation: Lab) -> None:
    """wait=false returns at once; follow shows the run to its end and fetches it, and collect once more."""
    play = federation.must("run.yml", **SMALL, rounds="2", wait="false", run_name="later")
    run_id = play.output.split("collect=")[1].split()[0]
    followed = federation.must("run.yml", follow=run_id)
    assert f"-i {federation.inventory} -e follow={run_id}" in followed.output
    assert "round 2/2" in followed.output
    first = (federation.results / "latest").resolve()
    runs = {run["run_id"]: run["status"] for run in federation.status()["runs"]}
    assert runs[run_id] == "finished"
    (federation.results / "latest").unlink()
    federation.must("run.yml", collect=run_id)
    summary = federation.summary()
    assert (summary["run_id"], summary["status"], summary["rounds"]) == (run_id, "completed", 2)
    assert (federation.results / "latest").resolve() == first
    assert first.name.endswith("later")
    kept = federation.on_server(f"ls /var/lib/coldframe/coldframe/server/runs/{run_id}").split()
    assert {"journal.jsonl", "collected"} <= set(kept)


def test_stop_ends_a_run_and_says_so(federation: Lab) -> None:
    """While it goes on, status.yml shows its round and accuracy."""
    play = federation.must("run.yml", **SMALL, rounds="50", wait="false")
    run_id = play.output.split("collect=")[1].split()[0]

    def going() -> dict[str, Any]:
        return next(run for run in federation.control("runs") if run["run_id"] == run_id)

    federation.wait_for("its first round", lambda: (going().get("round") or 0) >= 1)
    assert 0 < going()["accuracy"] <= 1
    assert "/50" in federation.must("status.yml").output
    stopped = federation.must("run.yml", stop=run_id)
    assert f"Run {run_id} is stopped after round " in stopped.output
    assert f"-e collect={run_id}" in stopped.output
    assert f"Run {run_id} had ended before: stopped" in federation.must("run.yml", stop=run_id).output


def test_run_that_is_not_known_is_named(federation: Lab) -> None:
    """collect and stop of nonsense say what is known."""
    play = federation.play("run.yml", collect="12345")
    assert play.code != 0
    assert "12345 is not known here" in play.output


def test_status_shows_the_federation(federation: Lab) -> None:
    """The table for people, and output=json for programs, read from the kernel."""
    table = federation.must("status.yml").output
    assert all(name in table for name in CLIENTS)
    assert "hold in the kernel" in table
    report = federation.status()
    assert [client["cpu_verified"] for client in report["clients"]] == [CPU] * len(CLIENTS)
    assert all(client["limits_hold"] and client["online"] == "online" for client in report["clients"])


# Two apps as Flower's documentation writes them: one of numpy alone, one that trains with torch.
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("counting", {"num-server-rounds": 2, "step": 0.5, "brings": True}),
        ("regression", {"num-server-rounds": 2, "learning-rate": 0.2}),
    ],
    ids=["numpy", "torch"],
)
def test_foreign_app_trains(
    federation: Lab, name: str, config: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app that knows nothing of Coldframe, with run_config passed through; it checks its own result.

    The two depend on versions of a package that exclude each other, and that the image lacks; one has data.
    """
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "index", "coldframe-tally", version, tally=f"VERSION = {version[0]}")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "words.txt").write_text("a few")
    app_data = {"app_data": str(tmp_path / "words")} if name == "counting" else {}
    before = containers(federation)
    play = federation.must("run.yml", app=str(APPS / name), run_config=config, **app_data)
    assert containers(federation) == before, "nothing is made anew for an app"
    pinned = "the app asks for torch==2.8.0, and gets torch "
    assert (pinned in play.output) == (name == "regression"), play.output
    there = federation.on_machine(
        "find /var/lib/coldframe/coldframe/apps -maxdepth 3 -printf '%P\\n'"
    ).split()
    assert any(path.endswith("/tally.py") for path in there), there
    assert not [path for path in there if path.endswith(".part")]
    check_recorded(federation, name)
    latest = federation.results / "latest"
    versions = federation.summary()["versions"]
    assert {"app_commit", "app_clean"} <= versions.keys()
    tally = "1.0" if name == "counting" else "2.0"
    assert versions["dependencies"] == f"coldframe-tally=={tally}"
    # Nothing of our own training's variables.
    assert yaml.safe_load((latest / "config.yml").read_text()) == {
        "app": str(APPS / name),
        "run_config": config,
        **app_data,
    }


def check_recorded(federation: Lab, name: str) -> None:
    """The newest results are those of two rounds of an app, with all that was learnt beneath it; of accuracy
    it tells nothing."""
    summary, latest = federation.summary(), federation.results / "latest"
    assert summary["status"] == "completed"
    assert summary["wall_seconds"] > 0
    assert (summary["rounds"], summary["clients"], summary["accuracy"]) == (2, len(CLIENTS), None)
    assert summary["model_sha256"] is not None and (latest / "model.npz").exists()
    assert not (latest / "model.pt").exists(), "that is our own app's"
    replies = list(csv.DictReader((latest / "clients.csv").open()))
    assert len(replies) == 2 * 2 * len(CLIENTS)  # rounds, phases
    assert {row["client"] for row in replies} == set(CLIENTS)
    assert {float(row["cpu_limit"]) for row in replies} == {CPU}
    written = {path.name for path in (latest / "files" / "server").glob("*")}
    assert written == ({"final_model.npz"} if name == "counting" else set())
    local = {path.parent.name for path in (latest / "files").glob("*/local_model.npz")}
    assert local == (set(CLIENTS) if name == "counting" else set())
    record = json.loads((latest / "superlink.json").read_text())
    assert min(record["bytes_sent"], record["bytes_received"]) > 0, record
    # The limits that the agents have read.
    inventory = json.loads((latest / "inventory.json").read_text())
    assert {client["name"]: client["cpu"] for client in inventory["clients"]} == dict.fromkeys(CLIENTS, CPU)
    assert (latest / "logs" / "c2" / "coldframe-small.log").stat().st_size > 0
    assert "[ROUND 2/2]" in (latest / "logs" / "serverapp.log").read_text()
    assert summary["run_id"] in (latest / "logs" / "small.log").read_text()
    report = (latest / "report.html").read_text()
    for words in (f"Federated run of the app somebody/{name}", "Traffic", "Wall time", *CLIENTS):
        assert words in report, words


def test_flowers_own_command_works_through_a_connection_that_nobody_else_sees(federation: Lab) -> None:
    """make connect, then flwr run, ls, log and stop in an app's folder; runs are recorded like all others.
    Neither the server's machine nor this one listens for anybody else, and make disconnect ends it."""
    listening = federation.on_server(LISTENING)

    def flwr(*words: str, check: bool = True) -> str:
        program = str(Path(sys.executable).with_name("flwr"))
        done = subprocess.run(
            [program, *words],
            cwd=APPS / "counting",
            env=federation.environment(),
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    output = federation.must("connect.yml").output
    for words in ("flwr run . coldframe --stream", "flwr stop RUN_ID coldframe", "-e collect=RUN_ID"):
        assert words in output
    port = re.findall(r"127\.0\.0\.1:(\d+)", output)[0]
    ours = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout.split()
    assert [word for word in ours if word.endswith(f":{port}")] == [f"127.0.0.1:{port}"]
    config = "num-server-rounds=2 step=0.5"
    streamed = flwr("run", ".", "coldframe", "--stream", "--run-config", config)
    assert "[ROUND 2/2]" in streamed
    collected = re.findall(r"started run (\d+)", streamed)[0]
    stopped = json.loads(flwr("run", ".", "coldframe", "-c", "num-server-rounds=500", "--format", "json"))[
        "run-id"
    ]
    federation.wait_for("its start", lambda: "ROUND 1/500" in flwr("log", stopped, "coldframe", "--show"), 60)
    flwr("stop", stopped, "coldframe")
    listed = json.loads(flwr("ls", "coldframe", "--format", "json"))["runs"]
    found = {run["run-id"]: run["status"] for run in listed if run["run-id"] in (collected, stopped)}
    assert found == {collected: "finished:completed", stopped: "finished:stopped"}
    assert federation.on_server(LISTENING) == listening
    federation.must("run.yml", collect=collected)
    check_recorded(federation, "counting")
    # Nobody has noted what was typed: the app's own configuration is known, and no more.
    known = {"num-server-rounds": 2, "step": 0.5, "brings": False}
    assert yaml.safe_load((federation.results / "latest" / "config.yml").read_text()) == known
    assert federation.must("connect.yml", close="true").changed["localhost"] == 1
    assert "not found" in flwr("ls", "coldframe", check=False)
