"""The module client_containers against an engine's socket: what it makes, leaves alone, and reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldframe.machine.containers import body_of, spec_of
from coldframe.machine.engine import Engine, EngineError, Unreachable
from plugins.modules import client_containers
from tests.unit.docker_engine import Docker

ROOT = Path(__file__).parents[2]

DIED = "failed to create shim task: OCI runtime create failed: read init-p: connection reset by peer: unknown"
FULL = "driver failed programming external connectivity"


def describe(*clients: str, **more: Any) -> dict[str, Any]:
    """The module's arguments for some clients."""
    container = {
        "command": ["python3", "-m", "coldframe.client.container"],
        "env": {"COLDFRAME_CLIENT": "{client}", "COLDFRAME_SUPERLINK": "10.0.0.1:9092"},
        "volumes": ["/keys/{client}:/run/coldframe/key:ro"],
        "healthcheck": {
            "test": ["CMD", "true"],
            "interval": 60,
            "timeout": 20,
            "start_period": 60,
            "retries": 3,
        },
        "log_options": {"max-size": "10m", "max-file": "3"},
        "tmpfs": ["/tmp"],
        "shm_size": 1 << 36,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opts": ["no-new-privileges"],
        "restart_policy": "unless-stopped",
    }
    return {
        "federation": "fed",
        "image": "coldframe/fl:1",
        "clients": [
            {"name": name, "cpu": 0.35, "memory": 512 << 20, "pids": 256, "profile": ""} for name in clients
        ],
        "public_keys": {name: f"key of {name}" for name in clients},
        "container": {**container, **more},
    }


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    monkeypatch.setattr(client_containers, "PAUSE", 0.0)
    with Docker(
        tmp_path / "docker.sock", {"coldframe/fl:1": "sha256:1", "coldframe/fl:2": "sha256:2"}
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def play(docker: Docker, given: dict[str, Any], check: bool = False, diff: bool = False) -> dict[str, Any]:
    """Run the module on the engine; `changes` in its answer is what the engine was asked to change."""
    docker.changes.clear()
    answer = client_containers.run(Engine(str(docker.server_address)), given, check, diff)
    return {**answer, "changes": list(docker.changes)}


def test_makes_network_and_containers_and_then_touches_nothing(docker: Docker) -> None:
    first = play(docker, describe("a", "b"))
    assert first["changed"] and first["actions"] == {"a": "create", "b": "create"}
    assert first["changes"][0] == "network fed"
    assert sorted(first["changes"][1:]) == ["create fed-a", "create fed-b", "start fed-a", "start fed-b"]
    assert docker.networks["fed"]["Labels"] == {"coldframe.federation": "fed"}
    assert {item["State"] for item in docker.containers.values()} == {"running"}
    again = play(docker, describe("a", "b"), diff=True)
    assert (again["changed"], again["actions"], again["changes"]) == (False, {}, [])
    assert again["diff"]["before"] == again["diff"]["after"]


def test_container_is_what_the_engine_is_asked_for(docker: Docker) -> None:
    """Every value, in the engine's own words: the same that docker_container asks for."""
    play(docker, describe("a"))
    body = docker.containers["fed-a"]["body"]
    assert body == {
        "Image": "coldframe/fl:1",
        "Cmd": ["python3", "-m", "coldframe.client.container"],
        "Env": ["COLDFRAME_CLIENT=a", "COLDFRAME_SUPERLINK=10.0.0.1:9092"],
        "Healthcheck": {
            "Test": ["CMD", "true"],
            "Interval": 60_000_000_000,
            "Timeout": 20_000_000_000,
            "StartPeriod": 60_000_000_000,
            "Retries": 3,
        },
        "Labels": {
            "coldframe.federation": "fed",
            "coldframe.role": "client",
            "coldframe.client": "a",
            "coldframe.spec": body["Labels"]["coldframe.spec"],
        },
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "Binds": ["/keys/a:/run/coldframe/key:ro"],
            "CapDrop": ["ALL"],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
            "NetworkMode": "fed",
            "ReadonlyRootfs": True,
            "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
            "SecurityOpt": ["no-new-privileges"],
            "ShmSize": 1 << 36,
            "Tmpfs": {"/tmp": ""},
            "UsernsMode": "host",
            "CpuPeriod": 100_000,
            "CpuQuota": 35_000,
            "Memory": 512 << 20,
            "MemorySwap": 512 << 20,
            "PidsLimit": 256,
        },
        "NetworkingConfig": {"EndpointsConfig": {"fed": {}}},
    }


def test_all_containers_start_at_once(docker: Docker) -> None:
    """Each start waits for the others': one after the other, the first would never end."""
    docker.together = threading.Barrier(4)
    assert play(docker, describe("a", "b", "c", "d"))["changed"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (describe("a", command=["true"]), "Cmd ['true']"),
        (describe("a", env={"COLDFRAME_CLIENT": "{client}", "X": 1}), "Env.X 1"),
        (describe("a", cap_drop=[]), "HostConfig.CapDrop []"),
        ({**describe("a"), "image": "coldframe/fl:2"}, "Image coldframe/fl:2"),
        ({**describe("a"), "public_keys": {"a": "new"}}, "Labels.coldframe.spec"),
    ],
    ids=["command", "env", "capabilities", "image", "key"],
)
def test_changed_value_makes_a_container_anew(docker: Docker, given: dict[str, Any], words: str) -> None:
    play(docker, describe("a"))
    seen = play(docker, given, check=True, diff=True)
    assert (seen["actions"], seen["changes"]) == ({"a": "recreate"}, [])
    assert f"fed-a: {words.removeprefix('HostConfig.')}" in seen["diff"]["after"]
    done = play(docker, given)
    assert done["changes"] == ["stop fed-a", "remove fed-a", "create fed-a", "start fed-a"]
    assert play(docker, given)["changes"] == []


def test_image_that_was_built_anew_under_its_name_makes_a_container_anew(docker: Docker) -> None:
    play(docker, describe("a"))
    docker.images["coldframe/fl:1"] = "sha256:9"
    assert play(docker, describe("a"))["actions"] == {"a": "recreate"}


def test_limits_count_only_when_a_container_is_made(docker: Docker) -> None:
    """From then on they are the agent's: a deployment resets no throttle."""
    play(docker, describe("a"))
    given = describe("a")
    given["clients"][0] |= {"cpu": 0.1, "memory": 1 << 30, "pids": 99, "partition_id": 7, "profile": "slow"}
    assert play(docker, given)["changes"] == []


def test_spec_is_of_values_not_of_the_roles_text() -> None:
    """Comments, the order of keys and how YAML is written change nothing; a value does."""
    path = ROOT / "roles" / "fl_client" / "vars" / "main.yml"
    text = path.read_text(encoding="utf-8")

    def spec(text: str) -> str:
        container = yaml.safe_load(text)["__fl_client_container"]
        client = {"name": "a", "cpu": 1, "memory": 1, "pids": 1}
        body = body_of("fed", "image", "sha256:1", container, client, "key")
        return str(body["Labels"]["coldframe.spec"])

    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert spec("\n".join(lines)) == spec(f"# A comment.\n{text}")
    assert spec(yaml.safe_dump(yaml.safe_load(text), sort_keys=True)) == spec(text)
    assert spec(text.replace("hugetlb=1", "hugetlb=2")) != spec(text)


def test_spec_does_not_show_the_key() -> None:
    assert spec_of({"Env": []}, "", "secret").count(".") == 1
    assert "secret" not in spec_of({"Env": []}, "", "secret")


def test_stopped_container_is_started_and_others_are_left_alone(docker: Docker) -> None:
    play(docker, describe("a", "b", "c", "d"))
    for name, state in (
        ("fed-a", "exited"),
        ("fed-b", "created"),
        ("fed-c", "paused"),
        ("fed-d", "restarting"),
    ):
        docker.containers[name]["State"] = state
    seen = play(docker, describe("a", "b", "c", "d"), check=True, diff=True)
    assert "fed-a: exited" in seen["diff"]["before"] and "fed-a: running" in seen["diff"]["after"]
    done = play(docker, describe("a", "b", "c", "d"))
    assert done["actions"] == {"a": "start", "b": "start"}
    assert sorted(done["changes"]) == ["start fed-a", "start fed-b"]


def test_container_without_the_federations_network_is_made_anew(docker: Docker) -> None:
    play(docker, describe("a"))
    docker.containers["fed-a"]["NetworkID"] = "one that was removed"
    assert play(docker, describe("a"))["actions"] == {"a": "recreate"}


@pytest.mark.parametrize("state", ["dead", "removing"])
def test_container_that_is_going_is_waited_for_and_made_anew(docker: Docker, state: str) -> None:
    play(docker, describe("a"))
    docker.containers["fed-a"]["State"] = state
    docker.refusals["remove fed-a"] = (409, "removal of container fed-a is already in progress", 1)
    done = play(docker, describe("a"))
    assert done["changes"] == ["remove fed-a", "wait fed-a", "create fed-a", "start fed-a"]


def test_client_that_left_is_removed_and_no_other_federations(docker: Docker) -> None:
    play(docker, describe("a", "b"))
    play(docker, {**describe("b"), "federation": "fed2"})
    seen = play(docker, describe("a"), check=True, diff=True)
    assert (seen["actions"], seen["changes"]) == ({"b": "remove"}, [])
    assert (seen["diff"]["before"], seen["diff"]["after"]) == ("fed-b: running\n", "")
    assert play(docker, describe("a"))["changes"] == ["remove fed-b"]
    assert sorted(docker.containers) == ["fed-a", "fed2-b"]
    assert play(docker, describe())["changes"] == ["remove fed-a"]


def test_check_mode_on_a_blank_machine_says_what_would_be_made(tmp_path: Path) -> None:
    engine = Engine(str(tmp_path / "no.sock"))
    seen = client_containers.run(engine, {**describe("a", "b"), "public_keys": {}}, True, True)
    assert seen["changed"] and seen["actions"] == {"a": "create", "b": "create"}
    assert seen["diff"]["after"].splitlines()[:2] == ["network fed", "fed-a: running"]
    with pytest.raises(Unreachable):
        client_containers.run(engine, describe("a"), False, False)


def test_check_mode_does_not_compare_keys_that_it_does_not_know(docker: Docker) -> None:
    play(docker, describe("a"))
    assert not play(docker, {**describe("a"), "public_keys": {}}, check=True)["changed"]
    other = {**describe("a", command=["true"]), "public_keys": {}}
    assert play(docker, other, check=True)["actions"] == {"a": "recreate"}


def test_check_mode_says_that_an_image_to_come_makes_containers_anew(docker: Docker) -> None:
    play(docker, describe("a"))
    given = {**describe("a", "b"), "image": "coldframe/fl:3"}
    assert play(docker, given, check=True)["actions"] == {"a": "recreate", "b": "create"}


def test_missing_image_removes_no_container(docker: Docker) -> None:
    play(docker, describe("a"))
    with pytest.raises(
        client_containers.Failed, match=r"^a, b: the image coldframe/fl:3 is not on the machine: type "
    ):
        play(docker, {**describe("a", "b"), "image": "coldframe/fl:3"})
    assert docker.changes == []


def test_one_failure_does_not_stop_the_others_and_all_are_told(docker: Docker) -> None:
    """Named, with the engine's words and what to type."""
    docker.place("fed-c", {"Labels": {}, "HostConfig": {"NetworkMode": "bridge"}}, "running")
    docker.refusals = {"start fed-b": (500, FULL, 9), "create fed-e": (500, "no space left on device", 9)}
    done = play(docker, describe("a", "b", "c", "d", "e"))
    assert done["failed"] and done["changed"]
    assert done["actions"] == {"a": "create", "d": "create"}
    assert list(done["errors"]) == ["b", "c", "e"]
    assert docker.containers["fed-d"]["State"] == "running"
    lines = done["msg"].splitlines()
    assert f"- b: the engine could not start fed-b ({FULL}): type docker inspect fed-b" in lines[0]
    assert (
        "- c: another container, not of this federation, has the name fed-c: type docker rm --force fed-c"
        in lines[1]
    )
    assert "- e: the engine could not create fed-e (no space left on device)" in lines[2]
    assert all(line.endswith("then ansible-playbook site.yml -e train=false") for line in lines)
    assert done["changes"].count("start fed-b") == 1, "only a runtime that died is worth another try"
    docker.refusals.clear()
    assert play(docker, describe("a", "b", "d", "e"))["actions"] == {"b": "start", "e": "create"}


@pytest.mark.parametrize(("fails", "starts"), [(1, 2), (9, 3)], ids=["it died once", "it dies each time"])
def test_container_is_started_again_when_its_runtime_died(docker: Docker, fails: int, starts: int) -> None:
    docker.refusals["start fed-a"] = (500, DIED, fails)
    done = play(docker, describe("a"))
    assert done["changes"].count("start fed-a") == starts
    assert done["changes"].count("create fed-a") == 1
    if fails > 1:
        assert "- a: the container runtime ended 3 times before fed-a ran" in done["msg"]
    else:
        assert "failed" not in done and docker.containers["fed-a"]["State"] == "running"


def test_engines_warnings_are_passed_on_once(docker: Docker) -> None:
    docker.warnings = ["Your kernel does not support swap limit capabilities"]
    assert play(docker, describe("a", "b"))["warnings"] == [f"the engine says: {docker.warnings[0]}"]


def test_engines_refusal_is_passed_on_in_its_own_words(docker: Docker) -> None:
    with pytest.raises(EngineError, match="No such container"):
        Engine(str(docker.server_address)).call("DELETE", "/containers/nobody")


def test_network_that_another_call_makes_meanwhile_will_do(docker: Docker) -> None:
    engine = Engine(str(docker.server_address))
    assert engine.network_id("fed") == ""
    for _ in range(2):
        engine.create_network("fed")
    engine.create_network("fed2")
    assert (engine.network_id("fed"), engine.network_id("fed2")) == ("id-of-fed", "id-of-fed2")
    assert docker.changes == ["network fed", "network fed2"]


def test_network_of_somebody_else_is_not_taken(docker: Docker) -> None:
    docker.networks["fed"] = {"Name": "fed", "Id": "other", "Labels": None}
    with pytest.raises(EngineError, match="docker network rm fed"):
        Engine(str(docker.server_address)).network_id("fed")


def test_arguments_are_those_that_the_documentation_names() -> None:
    documented = yaml.safe_load(client_containers.DOCUMENTATION)["options"]

    def shape(options: dict[str, Any], nested: str) -> dict[str, Any]:
        words = ("type", "elements", "required", "choices", "default")
        return {
            name: ({word: item[word] for word in words if word in item}, shape(item.get(nested, {}), nested))
            for name, item in options.items()
        }

    assert shape(client_containers.ARGUMENTS, "options") == shape(documented, "suboptions")


def test_a_task_reports_changes_differences_and_failures(docker: Docker, tmp_path: Path) -> None:
    """Through Ansible: --check --diff first, then for real, again, and with a failure."""
    docker.refusals["start fed-b"] = (500, FULL, 1)
    socket = str(docker.server_address)
    tasks = [
        {"federation_network": {"socket": socket, "federation": "fed"}},
        {"client_containers": {"socket": socket, **describe("a", "b")}},
    ]
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(tmp_path / "play.yml")]

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [*command, "-i", "here,", "-c", "local", *words],
            cwd=ROOT,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    code, text = run("--check", "--diff")
    assert code == 0 and "changed=2" in text, text
    assert "+fed-a: 0.35 cores, 536870912 bytes, image coldframe/fl:1" in text
    assert (docker.networks, docker.containers) == ({}, {})
    code, text = run()
    assert code == 2, text
    assert f"FAILED!\n- b: the engine could not start fed-b ({FULL}): type docker inspect fed-b" in text
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play, play]))
    code, text = run("--diff")
    assert code == 0 and "ok=4 " in text and "changed=1 " in text, f"the second play changes nothing: {text}"
    assert docker.changes.count("start fed-b") == 2 and docker.changes.count("create fed-b") == 1
    assert {item["State"] for item in docker.containers.values()} == {"running"}
    assert json.dumps(docker.containers["fed-a"]["body"]["Env"]) == json.dumps(
        ["COLDFRAME_CLIENT=a", "COLDFRAME_SUPERLINK=10.0.0.1:9092"]
    )
