"""The main job on real hosts: bare machines to a trained model, and what must hold around it.

The tests run in this order and share one lab; each says which machine it hurts.
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import socket
import ssl
import subprocess
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

from tests.cluster.lab import ROOT, Lab, sh
from tests.cluster.three import CLIENTS, CPU, EVERYBODY, write_inventory

pytestmark = pytest.mark.usefixtures("three_hosts")

ROUNDS = 2  # of the one run on all of MNIST
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
}


def containers(lab: Lab) -> dict[str, str]:
    """Of every running container of all hosts: which it is, and since when it runs."""
    ask = "docker ps -q | xargs -r docker inspect -f '{{.Name}} {{.Id}} {{.State.Pid}} {{.State.StartedAt}}'"
    lines = [(host.name, line) for host in lab.hosts for line in sh(host, ask).splitlines()]
    return {f"{host}{line.split()[0]}": line for host, line in lines}


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
    for host in lab.hosts:
        sh(host, "systemctl disable --now docker.service docker.socket containerd.service 2>&1")
        assert "coldframe/fl" not in sh(host, "cat /var/lib/docker/image/*/repositories.json", check=False)
    with sudo_asks(lab) as answer:
        play = lab.play("site.yml")
        for words in ("Missing sudo password", "type -K too", "Nothing was changed."):
            assert words in play.output, play.output
        play = lab.must("site.yml", *answer, rounds=str(ROUNDS))
    lab.deployed.add("coldframe")
    # One image, shipped to those that do not build it.
    images = {sh(host, "docker image ls --quiet --no-trunc coldframe/fl") for host in lab.hosts}
    assert len(images) == 1, images
    assert images != {""}
    summary = lab.summary()
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["status"] == "completed"
    assert summary["accuracy"] >= 0.975
    assert summary["rounds"] == len(summary["round_seconds"]) == ROUNDS
    assert summary["clients"] == 4
    assert summary["dataset"] == "mnist"
    assert not summary["oversubscribed"]
    # A line per round as it happens, not at the end.
    assert play.seconds_of(f"round {ROUNDS}/{ROUNDS}") - play.seconds_of(f"round 1/{ROUNDS}") > 0.5 * sum(
        summary["round_seconds"][1:]
    )
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
    wanted = {f"{machine}/coldframe-{name}.log" for name, machine in CLIENTS.items()}
    assert logs == wanted | {
        "server/coldframe-server.log",
        "c1/coldframe-agent.log",
        "c2/coldframe-agent.log",
    }
    submitted = json.loads((latest / "superlink.json").read_text())["submitted"]
    lines = (latest / "logs" / "server" / "coldframe-server.log").read_text().splitlines()[1:]
    assert lines
    assert min(lines)[:19] >= submitted[:19]
    assert max(path.stat().st_size for path in latest.glob("logs/*/*")) <= 1 << 20


def test_second_deployment_changes_nothing(federation: Lab) -> None:
    """changed=0 on every host, and no container is restarted."""
    before = containers(federation)
    assert before.keys() >= {f"{machine}/coldframe-{name}" for name, machine in CLIENTS.items()}
    assert "server/coldframe-server" in before
    quick = federation.must("site.yml", train="false")
    assert "The federation stands as described: nothing to deploy" in quick.output
    thorough = federation.must("site.yml", train="false", redeploy="true")
    assert "nothing to deploy" not in thorough.output
    for play in (quick, thorough):
        assert play.changed == {"localhost": 0, "server": 0, "c1": 0, "c2": 0}, play.output
    assert containers(federation) == before


def test_what_somebody_changed_is_mended_by_the_next_deployment(federation: Lab) -> None:
    """Hurts both hosts: a client's container is gone, and the gateway's configuration is another."""
    federation.on_machine("docker rm --force coldframe-c1-1")
    federation.on_server("echo '# mine' >>/var/lib/coldframe/coldframe/gateway/nginx.conf")
    play = federation.must("site.yml", train="false")
    assert min(play.changed[host.name] for host in (federation.server, federation.machine)) > 0
    assert federation.container(federation.machine, "coldframe-c1-1")["State"]["Running"]
    assert "mine" not in federation.on_server("cat /var/lib/coldframe/coldframe/gateway/nginx.conf")
    again = federation.must("site.yml", train="false")
    assert "nothing to deploy" in again.output
    # Removed without a goodbye, the client still counts as connected: it is let in all the same.
    federation.wait_for("all clients", lambda: federation.online() == set(CLIENTS), 60)
    assert federation.container(federation.machine, "coldframe-c1-1")["RestartCount"] == 0


def test_clients_are_hardened_and_limited_as_the_inventory_says(federation: Lab) -> None:
    """What the engine says, and the kernel too."""
    for name, machine in CLIENTS.items():
        host = federation.hosts[machine]
        described = federation.container(host, f"coldframe-{name}")
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
        status = sh(host, f"cat /proc/{pid}/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Uid:\t10001" in status
        quota = sh(host, f"docker exec coldframe-{name} cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        memory = sh(host, f"docker exec coldframe-{name} cat /sys/fs/cgroup/memory/memory.limit_in_bytes")
        assert int(quota) == host_config["CpuQuota"] == 40_000
        assert int(memory) == host_config["Memory"] == (900 << 20 if name == "small" else 1 << 30)
        with pytest.raises(Exception, match="Read-only file system"):
            sh(host, f"docker exec coldframe-{name} touch /opt/x")


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


def test_machines_listen_on_nothing_else(federation: Lab) -> None:
    """All that another machine can reach is sshd, and the server's one port."""
    listening = "ss -ltnH | awk '{print $4}' | grep -vE '^(127\\.|\\[::1\\])' | sed 's/.*://' | sort -un"
    found = {host.name: sh(host, listening).split() for host in federation.hosts}
    assert found == {"server": ["22", "9092"], "c1": ["22"], "c2": ["22"]}


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
    listed = federation.on_server("docker exec coldframe-server python3 -m coldframe.control nodes")
    nodes = json.loads(listed.splitlines()[-1])
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
    for path in HIDDEN:
        command = shlex.split(curl(path, federation.server.address, "-X POST"))
        assert subprocess.run(command, capture_output=True, text=True).stdout == "404", path
    for what, call in calls.items():
        with pytest.raises(httpx.HTTPStatusError) as refused:
            call()
        assert refused.value.response.status_code == 401, what
    with pytest.raises(httpx.HTTPStatusError):
        client.RegisterNode(RegisterNodeFleetRequest(public_key=public_key_to_bytes(key.public_key())))
    client.close()
    after = json.loads(
        federation.on_server("docker exec coldframe-server python3 -m coldframe.control nodes").splitlines()[
            -1
        ]
    )
    assert {item["node_id"] for item in after} == {item["node_id"] for item in nodes}


def activate(federation: Lab, key: str) -> str:
    """What a SuperNode on the clients' machine says that has the federation's authority and this key."""
    image = federation.container(federation.machine, "coldframe-c1-0")["Config"]["Image"]
    return federation.on_machine(
        f"timeout 20 docker run --rm --volume {key}:/key:ro"
        f" --volume /var/lib/coldframe/coldframe/ca:/ca:ro {image}"
        f" flower-supernode --superlink {federation.server.address}:9092 --root-certificates /ca/ca.crt"
        f" --auth-supernode-private-key /key --max-retries 1 --node-config partition-id=0 2>&1",
        check=False,
    )


def test_unregistered_key_is_turned_away(federation: Lab) -> None:
    """A client with a key of its own making, on a machine that has the authority's certificate."""
    image = federation.container(federation.machine, "coldframe-c1-0")["Config"]["Image"]
    federation.on_machine("install -d -o 10001 /tmp/stranger")
    run = (
        f"docker run --rm --volume /tmp/stranger:/keys {image} python3 -m coldframe.keys nodes /keys stranger"
    )
    federation.on_machine(run)
    output = activate(federation, "/tmp/stranger/stranger")
    assert "Failed to activate SuperNode" in output, output
    nodes = json.loads(
        federation.on_server("docker exec coldframe-server python3 -m coldframe.control nodes").splitlines()[
            -1
        ]
    )
    assert sorted(node["name"] for node in nodes if node["status"] == "online") == [*CLIENTS]


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
    assert "the changed code runs" in play.output + json.dumps(federation.journal())
    assert federation.on_machine("docker image ls --quiet coldframe/fl") == before


def test_one_seed_gives_one_model(federation: Lab) -> None:
    """Two runs with one seed have one model hash; another seed has another. With another partitioner and
    another strategy than usual, with arguments."""
    settings = {
        "rounds": "2",
        "partitioner": "dirichlet",
        "partitioner_args": {"alpha": 0.3},
        "fl_strategy": "fedprox",
        "strategy_args": {"proximal_mu": 0.1},
    }
    summaries = [federation.run(**settings, seed=seed) for seed in ("7", "7", "8")]
    hashes = [summary["model_sha256"] for summary in summaries]
    assert hashes[0] == hashes[1] != hashes[2]
    assert {(each["strategy"], each["partitioner"]) for each in summaries} == {("fedprox", "dirichlet")}
    started = next(event for event in federation.journal() if event["event"] == "run_started")
    counts = list(started["histogram"].values())
    assert sum(map(sum, counts)) == 900
    assert len({tuple(row) for row in counts}) == 4


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
    assert [client["cpu_verified"] for client in report["clients"]] == [CPU] * 4
    assert all(client["limits_hold"] and client["online"] == "online" for client in report["clients"])


# Two apps as Flower's documentation writes them: one of numpy alone, one that trains with torch.
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("counting", {"num-server-rounds": 2, "step": 0.5}),
        ("regression", {"num-server-rounds": 2, "learning-rate": 0.2}),
    ],
    ids=["numpy", "torch"],
)
def test_foreign_app_trains(federation: Lab, name: str, config: dict[str, float]) -> None:
    """An app that knows nothing of Coldframe, with run_config passed through; it checks its own result."""
    federation.must("run.yml", app=str(APPS / name), run_config=config)
    summary = federation.summary()
    assert summary["status"] == "completed"
    assert summary["wall_seconds"] > 0
    # No journal, so the folder has what SuperLink and the machines have recorded.
    latest = federation.results / "latest"
    assert (summary["rounds"], summary["accuracy"], summary["model_sha256"]) == (None, None, None)
    assert not (latest / "model.pt").exists()
    record = json.loads((latest / "superlink.json").read_text())
    assert min(record["bytes_sent"], record["bytes_received"]) > 0, record
    assert yaml.safe_load((latest / "config.yml").read_text())["run_config"] == config
    assert (latest / "logs" / "c2" / "coldframe-small.log").stat().st_size > 0
    report = (latest / "report.html").read_text()
    for words in (f"Federated run of the app somebody/{name}", "Traffic", "Wall time", *CLIENTS):
        assert words in report, words


# --- faults -----------------------------------------------------------------------------------------
# ---------------


def test_killed_client_is_named_and_comes_back(federation: Lab) -> None:
    """Hurts c1-1: SIGKILL of its main process in the middle of a round. It trains again in the next one."""
    pid = federation.container(federation.machine, "coldframe-c1-1")["State"]["Pid"]
    settings = {"rounds": "2", "dataset": "synthetic", "local_epochs": "4", "round_timeout": "120"}
    play, wait = federation.start("run.yml", **settings, min_available_clients="4")
    federation.wait_for("the first round", lambda: "round 0/2" in play.output, 120)
    time.sleep(2)
    federation.on_machine(f"kill -9 {pid}")
    assert wait().code == 0, play.output
    summary = federation.summary()
    assert summary["status"] == "completed"
    failure = next(item for item in summary["failures"] if item["phase"] == "train")
    assert (failure["client"], failure["round"]) == ("c1-1", 1)
    assert federation.container(federation.machine, "coldframe-c1-1")["RestartCount"] == 1
    trained = ("reply", "train", 2)
    events = [e for e in federation.journal() if (e["event"], e.get("phase"), e.get("round")) == trained]
    assert {event["client"] for event in events} == set(CLIENTS)


def test_killed_server_comes_back_with_its_state(federation: Lab) -> None:
    """Hurts the server: SIGKILL of its main process in the middle of a run."""
    described = federation.container(federation.server, "coldframe-server")
    play, wait = federation.start("run.yml", rounds="3", dataset="synthetic", local_epochs="4")
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
    assert federation.run(**EVERYBODY)["status"] == "completed"
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
    second = {"fl_federation": "second", "fl_port": "9192", "fl_client_count": "2", "fl_client_cpu": "0.2"}
    federation.must("site.yml", rounds="1", dataset="synthetic", max_samples="900", **second)
    assert federation.summary()["status"] == "completed"
    assert "second-c1-1" in federation.on_machine("docker ps --format '{{.Names}}'")
    # A key that is good there is no good here.
    output = activate(federation, "/var/lib/coldframe/second/keys/c1-1")
    assert "Failed to activate SuperNode" in output, output

    play = federation.must("teardown.yml", purge="true", fl_federation="second")
    assert max(play.changed.values()) > 0
    for host in federation.hosts:
        assert "second" not in sh(
            host, "docker ps --all --format '{{.Names}}'; docker network ls; ls /var/lib/coldframe"
        )
    assert federation.container(federation.machine, "coldframe-c1-0")["State"]["StartedAt"] == before
    assert federation.run()["status"] == "completed"
    again = federation.must("teardown.yml", purge="true", fl_federation="second")
    assert set(again.changed.values()) == {0}


def test_federation_grows_and_shrinks(federation: Lab) -> None:
    """A client joins c1 while c2 is no machine for clients any more; then c2 comes back, before c1 in the
    inventory, and the client leaves. Who stays keeps container and partition id, who comes back gets its old
    id, and all of them train.
    """

    def clients() -> dict[str, str]:
        return {name.rpartition("coldframe-")[2]: line for name, line in containers(federation).items()}

    def ids() -> dict[str, int]:
        found: dict[str, int] = json.loads(
            federation.on_server("cat /var/lib/coldframe/coldframe/partitions.json")
        )
        return found

    before, given = clients(), ids()
    assert given.keys() == CLIENTS.keys()
    stay = {name: before[name] for name in ("c1-0", "c1-1", "server")}
    everybody = {**given, "c1-2": max(given.values()) + 1}

    write_inventory(federation, clients=3)
    inventory = yaml.safe_load(federation.inventory.read_text())
    del inventory["fl_machines"]["children"]["fl_clients"]["hosts"]["c2"]
    federation.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
    federation.must("site.yml", train="false")
    assert sh(federation.hosts["c2"], "docker ps --all --quiet") == ""
    assert clients().items() > stay.items()
    assert clients().keys() & {*CLIENTS, "c1-2"} == {"c1-0", "c1-1", "c1-2"}
    assert ids() == everybody
    # The parts of those that left are nobody's: c1-2 has the fifth of five.
    summary = federation.run(min_train_clients="3", min_available_clients="3")
    assert (summary["clients"], summary["failures"]) == (3, [])
    assert {e["client"] for e in federation.journal() if e["event"] == "reply"} == {"c1-0", "c1-1", "c1-2"}

    write_inventory(federation, ["server", "c2", "c1"])
    federation.must("site.yml", train="false")
    assert clients().items() > stay.items()
    assert clients().keys() & {*CLIENTS, "c1-2"} == CLIENTS.keys()
    assert ids() == everybody
    summary = federation.run(**EVERYBODY)
    assert (summary["clients"], summary["failures"]) == (4, [])


def test_teardown_without_purge_keeps_the_state(federation: Lab) -> None:
    """Containers go; partition ids, keys and results stay, and a new deployment finds them."""
    ids = federation.on_server("cat /var/lib/coldframe/coldframe/partitions.json")
    federation.must("teardown.yml")
    for host in federation.hosts:
        assert sh(host, "docker ps --all --quiet").strip() == ""
    assert federation.results.joinpath("latest").exists()
    federation.must("site.yml", train="false")
    assert federation.on_server("cat /var/lib/coldframe/coldframe/partitions.json") == ids
    federation.wait_for("all clients", lambda: federation.online() == set(CLIENTS), 60)


def test_purge_leaves_nothing(federation: Lab) -> None:
    """Containers, networks, images, data, keys and results are gone, here and there."""
    federation.must("teardown.yml", purge="true")
    federation.deployed.clear()
    for host in federation.hosts:
        left = sh(
            host,
            "docker ps --all --quiet; docker network ls --quiet --filter label=coldframe.federation;"
            " docker image ls --quiet 'coldframe/*'; ls -A /var/lib/coldframe 2>/dev/null",
        )
        assert left.split() == []
    assert not list(federation.results.glob("2*"))
    assert not (federation.directory / "state" / "coldframe" / "coldframe").exists()
