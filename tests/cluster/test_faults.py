"""What breaks while a federation trains, and what becomes of the run; then new keys and certificates.

A federation of its own on three hosts, so that a run goes on without two of them; Ansible logs in as root
there. The tests share it; each says what it hurts, and leaves everything standing behind.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from cryptography import x509

from tests.cluster.lab import Lab, Play, sh
from tests.cluster.three import MACHINES
from tests.hosts import Host

FEDERATION = "faults"
CLIENTS = {"server-0": 0, "server-1": 0, "c1-0": 1, "c1-1": 1, "c2-0": 2}  # by the number of their host
UNHURT = {"server-0", "server-1"}
EVERYBODY = {"min_train_clients": str(len(CLIENTS)), "min_available_clients": str(len(CLIENTS))}
# Rounds of two or three seconds; nobody evaluates, so that a lost client holds up one phase and not two.
SMALL = {"dataset": "synthetic", "max_samples": "800", "fraction_evaluate": "0"}


@pytest.fixture(scope="module", name="faults")
def federation_to_hurt(lab: Lab) -> Iterator[Lab]:
    lab.clear()
    mine = Lab(lab.hosts, lab.directory, federation=FEDERATION)
    mine.write_inventory(2, MACHINES, fl_client_cpu=0.36, fl_port=9392, ansible_user="root")
    inventory = yaml.safe_load(mine.inventory.read_text())
    inventory["fl_machines"]["children"]["fl_clients"]["hosts"]["server"] = None
    inventory["fl_machines"]["hosts"]["c2"]["fl_client_count"] = 1
    mine.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
    mine.must("site.yml", train="false", dataset="synthetic")
    yield mine
    mine.must("teardown.yml")
    lab.write_inventory()


def start(lab: Lab, **variables: Any) -> tuple[Play, Callable[[], Play]]:
    """Start a run and wait until its first round is over."""
    play, wait = lab.start("run.yml", **{**SMALL, **variables})
    lab.wait_for("the first round", lambda: "round 1/" in play.output or play.code >= 0, 180)
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


def status(lab: Lab) -> dict[str, Any]:
    """What status.yml says."""
    output = lab.must("status.yml", output="json").output
    found: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    return found


def served_certificate(lab: Lab) -> x509.Certificate:
    """The certificate that the server's machine holds."""
    pem = lab.on_server(f"cat /var/lib/coldframe/{FEDERATION}/pki/server.crt")
    return x509.load_pem_x509_certificate(pem.encode())


def test_power_cut_and_partition_of_client_machines(faults: Lab) -> None:
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
    assert {*UNHURT, "c2-0"} in there, "c2 was back first"
    after = {client: begun(faults, client) for client in CLIENTS}
    assert {client for client in CLIENTS if after[client] != before[client]} == {"c2-0"}


def test_reboot_of_the_servers_machine(faults: Lab) -> None:
    """Hurts the server's machine: the run fails and says why; the federation is whole without Ansible."""
    _, wait = start(faults, rounds="50")
    faults.server.reboot()
    play = wait()
    assert play.code != 0
    assert "the server restarted in the middle of the run" in play.output
    summary = faults.summary()
    assert summary["status"] == "failed"
    assert summary["error"] == "the server restarted in the middle of the run"
    faults.wait_for("all clients", lambda: faults.online() == set(CLIENTS), 90)
    again = faults.run(**{**SMALL, **EVERYBODY, "rounds": "1"})
    assert (again["status"], again["failures"]) == ("completed", [])


def test_controller_killed_in_the_middle(faults: Lab) -> None:
    """Hurts the controller: the run goes on, status.yml finds it, its keys are safe, collect fetches it."""
    play, wait = start(faults, rounds="16", run_name="orphan")
    os.kill(play.pid, signal.SIGKILL)
    (going,) = [run for run in status(faults)["runs"] if run["status"] != "finished"]
    refused = faults.play("site.yml", train="false", dataset="synthetic", rotate_keys="true")
    assert refused.code != 0
    # What to type: for this federation, whose name is not the inventory's.
    typed = f"run.yml -i {faults.inventory} -e fl_federation={FEDERATION} -e stop={going['run_id']}"
    assert typed in refused.output
    assert set(refused.changed.values()) == {0}

    def ended() -> bool:
        runs = json.loads(
            faults.on_server(
                f"docker exec {FEDERATION}-server python3 -m coldframe.control runs"
            ).splitlines()[-1]
        )
        return bool({run["run_id"]: run["status"] for run in runs}[going["run_id"]] == "finished")

    faults.wait_for("the run's end", ended, 120)
    wait()
    faults.must("run.yml", collect=going["run_id"])
    summary = faults.summary()
    assert (summary["run_id"], summary["run_name"]) == (going["run_id"], "orphan")
    assert (summary["status"], summary["rounds"], summary["failures"]) == ("completed", 16, [])
    assert "num-server-rounds: 16" in (faults.results / "latest" / "config.yml").read_text()


def refused(lab: Lab, host: Host, key: str) -> bool:
    """Whether a SuperNode with this private key is turned away."""
    image = lab.container(host, f"{FEDERATION}-c1-0")["Config"]["Image"]
    output = sh(
        host,
        f"timeout 20 docker run --rm --volume {key}:/key:ro"
        f" --volume /var/lib/coldframe/{FEDERATION}/ca:/ca:ro {image}"
        f" flower-supernode --superlink {lab.server.address}:9392 --root-certificates /ca/ca.crt"
        " --auth-supernode-private-key /key --max-retries 1 --node-config partition-id=0 2>&1",
        check=False,
    )
    return "Failed to activate SuperNode" in output


def test_new_keys_and_certificate(faults: Lab) -> None:
    """Rotation: every client has a new key and trains, the old ones are worth nothing. Then a renewal of the
    server's certificate alone, and a deployment that finds nothing to do."""
    faults.on_machine(f"cp -a /var/lib/coldframe/{FEDERATION}/keys/c1-0 /tmp/old-key")
    keys = {node["name"]: node["public_key"] for node in faults.nodes()}
    first = served_certificate(faults)
    faults.must("site.yml", train="false", dataset="synthetic", rotate_keys="true")
    fresh = {node["name"]: node["public_key"] for node in faults.nodes()}
    assert fresh.keys() == keys.keys()
    assert not set(fresh.values()) & set(keys.values())
    second = served_certificate(faults)
    assert second.public_key() != first.public_key()
    assert refused(faults, faults.machine, "/tmp/old-key")

    before = {client: begun(faults, client) for client in CLIENTS}
    faults.must("site.yml", train="false", dataset="synthetic", fl_pki_renew_days="1000")
    third = served_certificate(faults)
    assert third.public_key() == second.public_key()
    assert third.serial_number != second.serial_number
    assert {client: begun(faults, client) for client in CLIENTS} == before
    # The engines are there: whose they are makes no difference.
    again = faults.must("site.yml", train="false", dataset="synthetic", docker_engine_manage="false")
    assert set(again.changed.values()) == {0}, again.output

    run = faults.run(**{**SMALL, **EVERYBODY, "rounds": "1"})
    assert (run["status"], run["failures"]) == ("completed", [])
    end = datetime.fromisoformat(status(faults)["certificate_expires"])
    assert end == third.not_valid_after_utc
    assert end - datetime.now(UTC) > timedelta(days=800)
