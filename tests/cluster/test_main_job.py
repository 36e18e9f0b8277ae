"""The main job on real hosts: bare machines to a trained model, and what must hold around it.

The tests run in this order and share one lab; each says which machine it hurts.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cluster.lab import ROOT, Lab, sh

CLIENTS = ["c1-0", "c1-1", "c1-2"]
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
}

# --- blank hosts
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"rounds": "abc"}, "rounds=abc"),
        ({"fl_strategy": "fedfoo"}, "fedprox"),
        ({"roundz": "3"}, "rounds"),
        ({"min_train_clients": "9"}, "min_train_clients=9"),
        ({"fl_data_dir": "/nowhere/mnist"}, "/nowhere/mnist"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(
    lab: Lab, variables: dict[str, str], message: str
) -> None:
    """One clear message, exit code not 0, and no trace on the machines."""
    play = lab.play("site.yml", **variables)
    assert play.code != 0
    assert message in play.output
    assert "Nothing was changed." in play.output
    assert set(play.changed.values()) == {0}
    if not lab.deployed:
        assert lab.on_machine("ls -A /var/lib/coldframe 2>/dev/null | wc -l").strip() == "0"


def test_too_little_disk_is_refused_before_anything_changes(lab: Lab) -> None:
    """Hurts c1: its /var/lib/coldframe is a small disk for the time of the test."""
    lab.on_machine("mkdir -p /var/lib/coldframe && mount -t tmpfs -o size=50m tmpfs /var/lib/coldframe")
    try:
        play = lab.play("site.yml")
    finally:
        lab.on_machine("umount /var/lib/coldframe && rmdir --ignore-fail-on-non-empty /var/lib/coldframe")
    assert play.code != 0
    assert "c1" in play.output
    assert "free" in play.output
    assert set(play.changed.values()) == {0}


def test_port_in_use_is_refused_before_anything_changes(lab: Lab) -> None:
    """Hurts the server's machine: something listens on a port that is asked for."""
    lab.on_server("systemd-run --unit=squatter python3 -m http.server 9555")
    try:
        lab.wait_for("the squatter", lambda: "9555" in lab.on_server("ss -ltn"))
        play = lab.play("site.yml", fl_port="9555")
    finally:
        lab.on_server("systemctl stop squatter")
    assert play.code != 0
    assert "9555" in play.output
    assert "fl_port" in play.output
    assert set(play.changed.values()) == {0}


def test_machines_that_will_not_do_are_named_with_cause_and_remedy(lab: Lab, tmp_path: Path) -> None:
    """All at once: no answer, the wrong key, one machine twice, too little memory."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    gone = lab.server.address.rpartition(".")[0] + ".199"
    inventory = yaml.safe_load(lab.inventory.read_text())
    machines = inventory["fl_machines"]
    machines["hosts"]["c1"]["ansible_ssh_private_key_file"] = str(tmp_path / "key")
    machines["hosts"]["c1"]["ansible_ssh_args"] = "-o ControlMaster=no"  # not by a connection that is open
    machines["hosts"]["gone"] = {"ansible_host": gone}
    machines["hosts"]["twin"] = {"ansible_host": lab.server.address}
    machines["hosts"]["server"]["fl_client_list"] = [{"memory": "900g"}]
    machines["children"]["fl_clients"]["hosts"] |= {"gone": None, "twin": None, "server": None}
    wrong = Lab(lab.hosts, tmp_path)
    wrong.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
    play = wrong.play("site.yml")
    assert play.code != 0
    user = machines["vars"]["ansible_user"]
    for words in (
        "machine gone did not answer",
        f"check that this works: ssh {user}@{gone}",
        "machine c1 did not answer",
        "Permission denied",
        f"check that this works: ssh {user}@{lab.machine.address}",
        f"machines server and twin have the same address {lab.server.address}",
        "server and twin are one machine",
        "its client may use 900 GB and the server 700 MB, and the machine has",
        "give it fewer clients (fl_client_count)",
        "Nothing was changed.",
    ):
        assert words in " ".join(play.output.split()), words
    assert set(play.changed.values()) == {0}


def test_check_mode_shows_a_deployment_and_changes_nothing(lab: Lab) -> None:
    """--check --diff on hosts that have seen none: it passes, says what would change, and leaves no trace."""
    if lab.deployed:
        lab.must("teardown.yml", purge="true")
        lab.deployed.clear()
    play = lab.must("site.yml", "--check", "--diff")
    assert max(play.changed.values()) > 0
    for host in (lab.server, lab.machine):
        assert sh(host, "ls -A /var/lib/coldframe 2>/dev/null | wc -l").strip() == "0"
        assert sh(host, "docker ps --all --quiet 2>/dev/null | wc -l").strip() == "0"
    assert not (lab.directory / "state" / "coldframe" / "coldframe").exists()


# --- the main job
# --------------------------------------------------------------------------------------------------


def test_site_trains_full_mnist(lab: Lab) -> None:
    """From blank hosts to a model: ansible-playbook site.yml -i <inventory>."""
    play = lab.must("site.yml")
    lab.deployed.add("coldframe")
    summary = lab.summary()
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["status"] == "completed"
    assert summary["accuracy"] >= 0.975
    assert summary["rounds"] == len(summary["round_seconds"]) == 5
    assert summary["clients"] == 3
    assert summary["dataset"] == "mnist"
    assert not summary["oversubscribed"]
    # A line per round as it happens, not at the end.
    assert play.seconds_of("round 5/5") - play.seconds_of("round 1/5") > 0.5 * sum(
        summary["round_seconds"][1:]
    )
    replies = [event for event in lab.journal() if event["event"] == "reply" and event["phase"] == "train"]
    assert sum(event["examples"] for event in replies) == 5 * 60_000
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
    assert names >= {"versions.json", "model.pt", "rounds.png", "partitions.png", "clients.png"}
    summary = federation.summary()
    assert len((latest / "rounds.csv").read_text().splitlines()) >= summary["rounds"] + 1
    assert json.loads((latest / "versions.json").read_text())["flwr"] == "1.41.0"
    report = (latest / "report.html").read_text()
    assert f"{summary['accuracy']:.4f}" in report
    titles = ["Accuracy and loss", "Time by phase of the round", "Clients over time"]
    for words in (*titles, *CLIENTS, "Debian GNU/Linux", "num-server-rounds", str(summary["model_sha256"])):
        assert words in report, words
    # The containers' logs, each from the machine that it ran on, since the run's start.
    logs = {str(path.relative_to(latest / "logs")) for path in latest.glob("logs/*/*")}
    assert logs >= {"server/coldframe-server.log", *(f"c1/coldframe-{name}.log" for name in CLIENTS)}
    assert "c1/coldframe-agent.log" in logs
    submitted = json.loads((latest / "superlink.json").read_text())["submitted"]
    lines = (latest / "logs" / "server" / "coldframe-server.log").read_text().splitlines()[1:]
    assert lines
    assert min(lines)[:19] >= submitted[:19]
    assert max(path.stat().st_size for path in latest.glob("logs/*/*")) <= 1 << 20


def test_second_deployment_changes_nothing(federation: Lab) -> None:
    """changed=0 on every host, and no container is restarted."""
    before = {
        name: federation.container(federation.machine, f"coldframe-{name}")["State"] for name in CLIENTS
    }
    play = federation.must("site.yml", train="false")
    assert set(play.changed.values()) == {0}, play.output
    for name in CLIENTS:
        after = federation.container(federation.machine, f"coldframe-{name}")["State"]
        assert (after["Pid"], after["StartedAt"]) == (before[name]["Pid"], before[name]["StartedAt"])


def test_clients_are_hardened_and_limited_as_the_inventory_says(federation: Lab) -> None:
    """What the engine says, and the kernel too."""
    for name in CLIENTS:
        described = federation.container(federation.machine, f"coldframe-{name}")
        host_config = described["HostConfig"]
        assert host_config["ReadonlyRootfs"]
        assert "no-new-privileges" in " ".join(host_config["SecurityOpt"])
        assert host_config["CapDrop"] == ["ALL"]
        assert not host_config["CapAdd"]
        assert not host_config["Privileged"]
        assert described["Config"]["User"].split(":")[0] == "10001"
        assert host_config["CpuPeriod"] == 100_000
        assert host_config["NanoCpus"] == 0
        pid = described["State"]["Pid"]
        status = federation.on_machine(f"cat /proc/{pid}/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Uid:\t10001" in status
        quota = federation.on_machine(f"docker exec coldframe-{name} cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        memory = federation.on_machine(
            f"docker exec coldframe-{name} cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
        )
        assert int(quota) == host_config["CpuQuota"] == 53_000  # 0.8 of 2 cores for 3 clients
        assert int(memory) == host_config["Memory"] == 1 << 30
        with pytest.raises(Exception, match="Read-only file system"):
            federation.on_machine(f"docker exec coldframe-{name} touch /opt/x")


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


def curl(path: str, address: str, options: str = "") -> str:
    """The shell command that asks for a path as it is and prints the status."""
    return f"curl -sk --max-time 10 --path-as-is {options} -o /dev/null -w '%{{http_code}}' 'https://{address}:9092{path}'"


@pytest.mark.parametrize("path", HIDDEN)
def test_control_and_runtime_are_out_of_reach_of_another_host(federation: Lab, path: str) -> None:
    """From c1, a machine of the federation itself."""
    for method in ("", "-X POST"):
        assert federation.on_machine(curl(path, federation.server.address, method)) == "404"


def test_health_is_the_one_page_for_everybody(federation: Lab) -> None:
    """So the 404 above come from the gateway, not from a dead server."""
    assert federation.on_machine(curl("/health", federation.server.address)) == "200"


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
    assert found.pop("9092") == "open"
    assert {found.pop(port) for port in ("9091", "8000", "9093")} == {"ConnectionRefusedError"}
    assert set(found.values()) == {404}


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


def test_unregistered_key_is_turned_away(federation: Lab) -> None:
    """A client with a key of its own making, on a machine that has the authority's certificate."""
    image = federation.container(federation.machine, "coldframe-c1-0")["Config"]["Image"]
    federation.on_machine("install -d -o 10001 /tmp/stranger")
    run = (
        f"docker run --rm --volume /tmp/stranger:/keys {image} python3 -m coldframe.keys nodes /keys stranger"
    )
    federation.on_machine(run)
    output = federation.on_machine(
        f"timeout 20 docker run --rm --volume /tmp/stranger/stranger:/key:ro"
        f" --volume /var/lib/coldframe/coldframe/ca:/ca:ro {image}"
        f" flower-supernode --superlink {federation.server.address}:9092 --root-certificates /ca/ca.crt"
        f" --auth-supernode-private-key /key --max-retries 1 --node-config partition-id=0 2>&1",
        check=False,
    )
    assert "Failed to activate SuperNode" in output, output
    nodes = json.loads(
        federation.on_server("docker exec coldframe-server python3 -m coldframe.control nodes").splitlines()[
            -1
        ]
    )
    assert sorted(node["name"] for node in nodes if node["status"] == "online") == CLIENTS


# --- runs -------------------------------------------------------------------------------------------
# ---------------


def test_one_seed_gives_one_model(federation: Lab) -> None:
    """Two runs with one seed have one model hash; another seed has another."""
    hashes = [federation.run(rounds="2", seed=seed)["model_sha256"] for seed in ("7", "7", "8")]
    assert hashes[0] == hashes[1] != hashes[2]


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
    assert "the changed code runs" in play.output + json.dumps(federation.journal())
    assert federation.on_machine("docker image ls --quiet coldframe/fl") == before
    assert federation.run()["status"] == "completed"


def test_dirichlet_fedprox_run(federation: Lab) -> None:
    """Another partitioner and another strategy, with arguments."""
    summary = federation.run(
        rounds="2",
        partitioner="dirichlet",
        partitioner_args={"alpha": 0.3},
        fl_strategy="fedprox",
        strategy_args={"proximal_mu": 0.1},
    )
    assert (summary["strategy"], summary["partitioner"]) == ("fedprox", "dirichlet")
    started = next(event for event in federation.journal() if event["event"] == "run_started")
    counts = list(started["histogram"].values())
    assert sum(map(sum, counts)) == 900
    assert len({tuple(row) for row in counts}) == 3


def test_collect_fetches_an_earlier_run(federation: Lab) -> None:
    """wait=false returns at once; collect fetches the run when it has ended."""
    play = federation.must("run.yml", rounds="1", dataset="synthetic", wait="false", run_name="later")
    run_id = play.output.split("collect=")[1].split()[0]

    def ended() -> bool:
        status = federation.must("status.yml", output="json").output
        report = json.loads(next(line for line in status.splitlines() if line.startswith("{")))
        return next(run for run in report["runs"] if run["run_id"] == run_id)["status"] == "finished"

    federation.wait_for("the run's end", ended)
    federation.must("run.yml", collect=run_id)
    summary = federation.summary()
    assert summary["run_id"] == run_id
    assert summary["status"] == "completed"
    assert (federation.results / "latest").resolve().name.endswith("later")


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
    output = federation.must("status.yml", output="json").output
    report = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert [client["cpu_verified"] for client in report["clients"]] == [0.53] * 3
    assert all(client["limits_hold"] and client["online"] == "online" for client in report["clients"])


FOREIGN_APP = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "counting"
        version = "1.0.0"
        license = "Apache-2.0"
        dependencies = ["flwr>=1.41", "numpy"]

        [tool.flwr.app]
        publisher = "somebody"
        fab-include = ["counting/*.py"]

        [tool.flwr.app.components]
        serverapp = "counting.server_app:app"
        clientapp = "counting.client_app:app"

        [tool.flwr.app.config]
        num-server-rounds = 1
        step = 1.0
    """,
    "counting/__init__.py": '"""Counts."""',
    "counting/client_app.py": """
        import numpy as np
        from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp

        app = ClientApp()

        @app.train()
        def train(msg: Message, context: Context) -> Message:
            arrays = [a + msg.content["config"]["step"] for a in msg.content["arrays"].to_numpy_ndarrays()]
            metrics = MetricRecord({"num-examples": 1})
            content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
            return Message(content=content, reply_to=msg)

        @app.evaluate()
        def evaluate(msg: Message, context: Context) -> Message:
            value = float(np.sum(msg.content["arrays"].to_numpy_ndarrays()[0]))
            content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "sum": value})})
            return Message(content=content, reply_to=msg)
    """,
    "counting/server_app.py": """
        import numpy as np
        from flwr.app import ArrayRecord, ConfigRecord, Context
        from flwr.serverapp import Grid, ServerApp
        from flwr.serverapp.strategy import FedAvg

        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            result = FedAvg(min_available_nodes=3).start(
                grid=grid,
                initial_arrays=ArrayRecord([np.zeros(4)]),
                train_config=ConfigRecord({"step": context.run_config["step"]}),
                num_rounds=int(context.run_config["num-server-rounds"]),
            )
            total = float(np.sum(result.arrays.to_numpy_ndarrays()[0]))
            expected = 4 * context.run_config["step"] * context.run_config["num-server-rounds"]
            if total != expected:
                raise RuntimeError(f"counted {total}, expected {expected}")
    """,
}


def test_foreign_app_trains(federation: Lab, tmp_path: Path) -> None:
    """An app that knows nothing of Coldframe, with run_config passed through; it checks its own sum."""
    for name, text in FOREIGN_APP.items():
        path = tmp_path / "counting" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    federation.must(
        "run.yml", app=str(tmp_path / "counting"), run_config={"num-server-rounds": 2, "step": 0.5}
    )
    summary = federation.summary()
    assert summary["status"] == "completed"
    assert summary["wall_seconds"] > 0
    # No journal, so the report has what SuperLink and the machines have recorded.
    report = (federation.results / "latest" / "report.html").read_text()
    for words in ("Federated run of the app somebody/counting", "Traffic", "Wall time", *CLIENTS):
        assert words in report, words


# --- faults -----------------------------------------------------------------------------------------
# ---------------


def test_killed_client_is_named_and_comes_back(federation: Lab) -> None:
    """Hurts c1-1: SIGKILL of its main process in the middle of a round."""
    pid = federation.container(federation.machine, "coldframe-c1-1")["State"]["Pid"]
    play, wait = federation.start(
        "run.yml", rounds="2", dataset="synthetic", local_epochs="6", round_timeout="120"
    )
    federation.wait_for("the first round", lambda: "round 0/2" in play.output, 120)
    time.sleep(2)
    federation.on_machine(f"kill -9 {pid}")
    assert wait().code == 0, play.output
    summary = federation.summary()
    assert summary["status"] == "completed"
    failure = next(item for item in summary["failures"] if item["phase"] == "train")
    assert (failure["client"], failure["round"]) == ("c1-1", 1)
    assert federation.container(federation.machine, "coldframe-c1-1")["State"]["Running"]
    again = federation.run(min_available_clients="3", min_train_clients="3")
    assert again["status"] == "completed"
    assert not again["failures"]


def test_killed_server_comes_back_with_its_state(federation: Lab) -> None:
    """Hurts the server: SIGKILL of its main process in the middle of a run."""
    described = federation.container(federation.server, "coldframe-server")
    play, wait = federation.start("run.yml", rounds="3", dataset="synthetic", local_epochs="6")
    federation.wait_for("the first round", lambda: "round 0/3" in play.output, 120)
    federation.on_server(f"kill -9 {described['State']['Pid']}")
    assert wait().code != 0
    assert "the server restarted in the middle of the run" in play.output
    summary = federation.summary()
    assert summary["status"] == "failed"

    def healthy() -> bool:
        state = federation.container(federation.server, "coldframe-server")["State"]
        return (
            state["StartedAt"] != described["State"]["StartedAt"] and state["Health"]["Status"] == "healthy"
        )

    federation.wait_for("the server's return", healthy)
    assert federation.run(min_available_clients="3", min_train_clients="3")["status"] == "completed"
    output = federation.must("status.yml", output="json").output
    report = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    broken = next(run for run in report["runs"] if run["run_id"] == summary["run_id"])
    assert (broken["status"], broken["sub_status"]) == ("finished", "failed")
    assert broken["details"] == "the server restarted in the middle of the run"


# --- the end ----------------------------------------------------------------------------------------
# ---------------


def test_teardown_purges_only_this_federation(federation: Lab) -> None:
    """A second federation on the same engines comes and goes; the first does not notice."""
    before = federation.container(federation.machine, "coldframe-c1-0")["State"]["StartedAt"]
    second = {"fl_federation": "second", "fl_port": "9192", "fl_client_count": "2", "fl_client_cpu": "0.1"}
    federation.must("site.yml", rounds="1", dataset="synthetic", **second)
    assert federation.summary()["status"] == "completed"
    assert "second-c1-1" in federation.on_machine("docker ps --format '{{.Names}}'")

    play = federation.must("teardown.yml", purge="true", fl_federation="second")
    assert max(play.changed.values()) > 0
    for host in (federation.server, federation.machine):
        assert "second" not in sh(
            host, "docker ps --all --format '{{.Names}}'; docker network ls; ls /var/lib/coldframe"
        )
    assert federation.container(federation.machine, "coldframe-c1-0")["State"]["StartedAt"] == before
    assert federation.run()["status"] == "completed"
    again = federation.must("teardown.yml", purge="true", fl_federation="second")
    assert set(again.changed.values()) == {0}


def test_teardown_without_purge_keeps_the_state(federation: Lab) -> None:
    """Containers go; partition ids, keys and results stay, and a new deployment finds them."""
    ids = federation.on_server("cat /var/lib/coldframe/coldframe/partitions.json")
    federation.must("teardown.yml")
    assert federation.on_machine("docker ps --all --quiet").strip() == ""
    assert federation.results.joinpath("latest").exists()
    federation.must("site.yml", train="false")
    assert federation.on_server("cat /var/lib/coldframe/coldframe/partitions.json") == ids
    assert federation.run()["status"] == "completed"


def test_purge_leaves_nothing(federation: Lab) -> None:
    """Containers, networks, images, data, keys and results are gone, here and there."""
    federation.must("teardown.yml", purge="true")
    federation.deployed.clear()
    for host in (federation.server, federation.machine):
        left = sh(
            host,
            "docker ps --all --quiet; docker network ls --quiet --filter label=coldframe.federation;"
            " docker image ls --quiet 'coldframe/*'; ls -A /var/lib/coldframe 2>/dev/null",
        )
        assert left.split() == []
    assert not list(federation.results.glob("2*"))
    assert not (federation.directory / "state" / "coldframe" / "coldframe").exists()
