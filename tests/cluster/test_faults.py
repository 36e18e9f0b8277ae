"""What breaks while a federation trains, and what becomes of the run; then new keys and certificates.

On the federation that stands; Ansible logs in as root here. Each test says what it hurts, and leaves
everything standing behind.
"""

from __future__ import annotations

import csv
import re
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from tests.cluster.federation import CLIENTS, EVERYBODY, FEDERATION, PORT, turned_away, write_inventory
from tests.cluster.lab import SMALL, Lab, Play
from tests.cluster.watch import WatchedLab

UNHURT = {name for name, machine in CLIENTS.items() if machine == "server"}
ON_C2 = {name for name, machine in CLIENTS.items() if machine == "c2"}
RESTARTED = "the server restarted in the middle of the run"


@pytest.fixture(scope="module", name="faults")
def federation_to_hurt(federation: WatchedLab) -> Iterator[WatchedLab]:
    write_inventory(federation, ansible_user="root")
    if not (federation.results / "latest").exists():
        federation.run()  # until then, clients may still be preparing themselves
    yield federation
    write_inventory(federation)


def start(lab: Lab, after: int = 0, **variables: Any) -> tuple[Play, Callable[[], Play]]:
    """Start a run, or resume one, and wait until a round is over that comes after the one of this number."""
    play, wait = lab.start("run.yml", **{**SMALL, **variables})

    def over() -> bool:
        return any(int(number) > after for number in re.findall(r"round (\d+)/\d+  ", play.output))

    lab.wait_for("a round", lambda: over() or play.code >= 0, 180)
    return play, wait


def begun(lab: Lab, client: str) -> str:
    """When a client's container was started last."""
    host = lab.hosts[CLIENTS[client]]
    state: dict[str, str] = lab.container(host, f"{FEDERATION}-{client}")["State"]
    return state["StartedAt"]


def trained(lab: Lab, number: int) -> set[str]:
    """Who has trained in a round of the newest results."""
    wanted = ("reply", "train", number)
    return {e["client"] for e in lab.journal() if (e["event"], e.get("phase"), e.get("round")) == wanted}


def served_certificate(lab: Lab) -> x509.Certificate:
    """The certificate that the gateway shows."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((lab.server.address, PORT)).encode())


def test_killed_client_is_named_and_comes_back(faults: WatchedLab) -> None:
    """Hurts c1-1: SIGKILL of its main process in the middle of a round. It trains again in the next one."""
    name = f"{FEDERATION}-c1-1"
    before = faults.container(faults.machine, name)
    idle = faults.kernel(faults.machine, name).pids_used
    settings = {"rounds": "2", "dataset": "synthetic", "local_epochs": "4", "round_timeout": "120"}
    settings["fraction_evaluate"] = "0"
    play, wait = faults.start("run.yml", **settings, **EVERYBODY)
    faults.wait_for("its task", lambda: faults.kernel(faults.machine, name).pids_used > idle, 120)
    faults.on_machine(f"kill -9 {before['State']['Pid']}")
    assert wait().code == 0, play.output
    summary = faults.summary()
    assert summary["status"] == "completed"
    failure = next(item for item in summary["failures"] if item["phase"] == "train")
    assert (failure["client"], failure["round"]) == ("c1-1", 1)
    assert faults.container(faults.machine, name)["RestartCount"] == before["RestartCount"] + 1
    assert trained(faults, 2) == set(CLIENTS)


def test_power_cut_and_partition_of_client_machines(faults: WatchedLab) -> None:
    """Hurts c1's cable for longer than two heartbeats, and meanwhile c2's power: their clients are missed,
    and train again by themselves, that of c2 before c1 is reached again. Those of c1 have stayed up.

    A round that finds too few connected waits for them.
    """
    before = {client: begun(faults, client) for client in CLIENTS}
    _, wait = start(faults, rounds="8", round_timeout="12", local_epochs="2", **EVERYBODY)
    faults.machine.partition()
    cut = time.monotonic()
    faults.hosts["c2"].power_cut()
    faults.hosts["c2"].start()
    time.sleep(max(0.0, 60 - (time.monotonic() - cut)))
    faults.machine.rejoin()
    play = wait()
    assert play.code == 0, play.output
    summary = faults.summary()
    assert summary["status"] == "completed"
    assert {failure["client"] for failure in summary["failures"]} == set(CLIENTS) - UNHURT
    there = [trained(faults, number) for number in range(1, 9)]
    assert there[0] == there[-1] == set(CLIENTS)
    assert UNHURT in there, "it went on without"
    assert UNHURT | ON_C2 in there, "c2 was back first"
    after = {client: begun(faults, client) for client in CLIENTS}
    assert {client for client in CLIENTS if after[client] != before[client]} == ON_C2


def broken(
    faults: WatchedLab, hurt: Callable[[], object], after: int = 0, **variables: str
) -> dict[str, Any]:
    """Hurt the server while a run goes on: the run fails, and its results and status.yml say why."""
    _, wait = start(faults, after, **variables)
    hurt()
    play = wait()
    assert play.code != 0
    assert RESTARTED in play.output
    summary = faults.summary()
    assert (summary["status"], summary["error"]) == ("failed", RESTARTED)
    faults.wait_for("all clients", lambda: faults.online() == set(CLIENTS), 90)
    run = next(run for run in faults.status()["runs"] if run["run_id"] == summary["run_id"])
    assert (run["status"], run["sub_status"], run["details"]) == ("finished", "failed", RESTARTED)
    assert f"-e resume={summary['run_id']}" in play.output
    return summary


def test_server_comes_back_with_its_state(faults: WatchedLab) -> None:
    """Hurts the server: SIGKILL of its main process, and so of all in its container, in the middle of a run;
    then a reboot of its machine in the middle of the rest. The federation is whole again without Ansible, and
    the run goes on each time, to the model of one that nobody interrupted."""
    training = {"rounds": "9", "seed": "3", "fl_strategy": "fedavgm", **EVERYBODY}
    training["strategy_args"] = '{"server_momentum":0.9}'
    described = faults.container(faults.server, f"{FEDERATION}-server")
    first = broken(faults, lambda: faults.on_server(f"kill -9 {described['State']['Pid']}"), **training)
    assert 1 <= first["rounds"] < 9

    def healthy() -> bool:
        state = faults.container(faults.server, f"{FEDERATION}-server")["State"]
        return state["Pid"] != described["State"]["Pid"] and state["Health"]["Status"] == "healthy"

    faults.wait_for("the server's return", healthy)
    second = broken(faults, faults.server.reboot, first["rounds"], resume=first["run_id"])
    assert (second["resumed"], second["resumed_from"]) == (1, first["run_id"])
    assert first["rounds"] < second["rounds"] < 9
    play = faults.must("run.yml", resume="auto")
    assert f"resumed from run {second['run_id']} after round" in play.output
    whole = faults.summary()
    assert (whole["status"], whole["failures"], whole["resumed"]) == ("completed", [], 2)
    assert whole["rounds"] == 9
    rounds = list(csv.DictReader((faults.results / "latest" / "rounds.csv").open()))
    assert [int(row["round"]) for row in rounds] == list(range(10)), "each round once"
    straight = faults.run(**training)
    assert straight["model_sha256"] == whole["model_sha256"]


def test_controller_killed_in_the_middle(faults: WatchedLab) -> None:
    """Hurts the controller: the run goes on, status.yml finds it, no deployment changes what it runs on, and
    collect fetches it."""
    play, wait = start(faults, rounds="16", run_name="orphan")
    play.kill()
    (going,) = [run for run in faults.status()["runs"] if run["status"] != "finished"]
    # The federation's name is typed too, as it is where it is not the inventory's.
    settings = {"train": "false", "dataset": "synthetic", "fl_federation": FEDERATION}
    refused = faults.play("site.yml", **settings, fl_client_pids="300")
    assert refused.code != 0
    assert (
        f"Run {going['run_id']} is running, and this deployment would change what is in use" in refused.output
    )
    assert "client c1-0 on c1 would change (pids 256 -> 300)" in refused.output
    assert f"run.yml -i {faults.inventory}" in refused.output
    assert f"-e fl_federation={FEDERATION} -e stop={going['run_id']}" in refused.output
    assert set(refused.changed.values()) == {0}
    refused = faults.play("site.yml", **settings, rotate_keys="true")
    assert refused.code != 0
    assert "rotate_keys=true would take its clients" in refused.output
    assert set(refused.changed.values()) == {0}

    def ended() -> bool:
        runs = {run["run_id"]: run["status"] for run in faults.control("runs")}
        return bool(runs[going["run_id"]] == "finished")

    faults.wait_for("the run's end", ended, 120)
    wait()
    faults.must("run.yml", collect=going["run_id"])
    summary = faults.summary()
    assert (summary["run_id"], summary["run_name"]) == (going["run_id"], "orphan")
    assert (summary["status"], summary["rounds"], summary["failures"]) == ("completed", 16, [])
    assert "rounds: 16" in (faults.results / "latest" / "config.yml").read_text()


def test_new_keys_and_certificate(faults: WatchedLab) -> None:
    """Rotation: every client has a new key and trains, the old ones are worth nothing. Then a renewal of the
    server's certificate alone, and a deployment that finds nothing to do. The server restarts for neither."""
    faults.on_machine(f"cp -a /var/lib/coldframe/{FEDERATION}/keys/c1-0 /tmp/old-key")
    keys = {node["name"]: node["public_key"] for node in faults.nodes()}
    first = served_certificate(faults)
    server = faults.container(faults.server, f"{FEDERATION}-server")["State"]["StartedAt"]
    faults.must("site.yml", train="false", dataset="synthetic", rotate_keys="true")
    fresh = {node["name"]: node["public_key"] for node in faults.nodes()}
    assert fresh.keys() == keys.keys()
    assert not set(fresh.values()) & set(keys.values())
    second = served_certificate(faults)
    assert second.public_key() != first.public_key()
    assert turned_away(faults, "/tmp/old-key")

    before = {client: begun(faults, client) for client in CLIENTS}
    faults.must("site.yml", train="false", dataset="synthetic", fl_pki_renew_days="1000")
    third = served_certificate(faults)
    assert third.public_key() == second.public_key()
    assert third.serial_number != second.serial_number
    assert {client: begun(faults, client) for client in CLIENTS} == before
    assert faults.container(faults.server, f"{FEDERATION}-server")["State"]["StartedAt"] == server
    # The engines are there: whose they are makes no difference.
    again = faults.must("site.yml", train="false", dataset="synthetic", docker_engine_manage="false")
    assert set(again.changed.values()) == {0}, again.output

    run = faults.run(**EVERYBODY)
    assert (run["status"], run["failures"]) == ("completed", [])
    end = datetime.fromisoformat(faults.status()["certificate_expires"])
    assert end == third.not_valid_after_utc
    assert end - datetime.now(UTC) > timedelta(days=800)
