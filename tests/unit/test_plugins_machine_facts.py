"""Tests of plugins/modules/machine_facts.py: what it says of engines that are set up in other ways."""

import json

import pytest

from coldframe.controller.checks import _publishes
from plugins.modules import machine_facts as facts

SERVER = {"Version": "26.1.5", "ApiVersion": "1.45", "Components": [{"Name": "Engine"}]}
INFO = {
    "ID": "one",
    "DockerRootDir": "/srv/docker",
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "DriverStatus": None,
}


@pytest.fixture(params=["socket", "command"])
def answers(request, monkeypatch, tmp_path):
    """What a made-up engine answers, by the command's first word; `socket` is what it says of itself there.

    It is asked at its socket, or, where none answers there but for that, by the command.
    """
    binary = tmp_path / "docker"
    binary.write_bytes(b"\x7fELF")
    answers = {"version": json.dumps(SERVER), "info": "one\n", "socket": INFO, "ps": "", "image": ""}
    monkeypatch.setattr(facts.shutil, "which", lambda *_, **__: str(binary))

    def command(_binary, word, *_):
        text = answers[word]
        return (0, text, "") if text is not None else (1, "", "Cannot connect to the Docker daemon")

    def ask(path, **_):
        if path == "/info" or request.param == "command":
            return answers["socket"] if path == "/info" else None
        if answers["version"] is None:
            return None
        if path == "/version":
            return json.loads(answers["version"])
        return [
            of_api(json.loads(line))
            for line in answers["ps" if "containers" in path else "image"].splitlines()
        ]

    monkeypatch.setattr(facts, "command", command)
    monkeypatch.setattr(facts, "ask", ask)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(facts, "DAEMON", str(tmp_path / "daemon.json"))
    return answers


def of_api(line):
    """A line of `docker ps` as the engine's API has it."""
    labels = dict(label.split("=") for label in line["Labels"].split(","))
    return {**line, "Id": line["ID"], "Names": [f"/{line['Names']}"], "Labels": labels, "Ports": line["API"]}


def test_the_engine_says_where_it_keeps_its_files(answers):
    found = facts.docker()
    assert (found["kind"], found["api"], found["root"]) == ("docker", "1.45", "/srv/docker")
    assert (found["rootless"], found["containerd"]) == (False, False)


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ('{"data-root": "/data/docker"}', "/data/docker"),
        ('{"graph": "/old"}', "/old"),
        ("{}", "/var/lib/docker"),
        ("{", "/var/lib/docker"),
        ("[]", "/var/lib/docker"),
    ],
)
def test_an_engine_that_does_not_run_would_keep_them_where_its_configuration_says(
    answers, tmp_path, text, root
):
    answers["version"] = None
    (tmp_path / "daemon.json").write_text(text)
    found = facts.docker()
    assert found["root"] == root
    assert "Cannot connect" in found["error"]


def test_rootless_engines_and_containerds_images_are_told(answers):
    status = [["driver-type", "io.containerd.snapshotter.v1"]]
    answers["socket"] = {**INFO, "SecurityOptions": ["name=rootless"], "DriverStatus": status}
    found = facts.docker()
    assert found["rootless"] and found["containerd"]


def test_a_command_that_leads_to_another_engine_is_told(answers, monkeypatch, tmp_path):
    """Half of a federation would be in the one, half in the other."""
    answers["info"] = "two\n"
    assert not facts.docker()["elsewhere"]  # not asked: nothing leads it there
    (tmp_path / "config.json").write_text('{"currentContext": "lab"}')
    assert facts.docker()["elsewhere"]
    (tmp_path / "config.json").write_text("{")
    assert not facts.docker()["elsewhere"]
    monkeypatch.setenv("DOCKER_HOST", "ssh://elsewhere")
    assert facts.docker()["elsewhere"]
    answers["info"] = "one\n"  # the same engine by another way
    assert not facts.docker()["elsewhere"]
    answers["info"] = None  # it did not answer: nothing is known of it
    assert not facts.docker()["elsewhere"]


def test_the_socket_of_no_engine_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(facts, "SOCKET", str(tmp_path / "none.sock"))
    assert facts.ask("/info") is None


def test_podman_behind_dockers_name_is_told_by_its_command_or_its_socket(answers, tmp_path):
    answers["version"] = json.dumps({**SERVER, "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}]})
    assert facts.docker()["kind"] == "podman"
    answers["version"] = "null"
    assert facts.docker()["kind"] == "docker"
    (tmp_path / "docker").write_text('#!/bin/sh\nexec /usr/bin/podman "$@"\n')
    assert facts.docker()["kind"] == "podman"
    (tmp_path / "docker").unlink()
    (tmp_path / "podman").write_bytes(b"\x7fELF")
    (tmp_path / "docker").symlink_to("podman")
    assert facts.docker()["kind"] == "podman"


def test_the_file_system_of_a_path_that_is_not_there_yet_is_its_parents(tmp_path):
    found = facts.disk(str(tmp_path / "a" / "b"))
    assert found["path"] == str(tmp_path)
    assert found["device"] == tmp_path.stat().st_dev and found["free"] > 0


def test_a_name_of_dns_is_told_from_one_of_the_hosts_file(monkeypatch):
    """By glibc's own command: this machine's hosts file names the loopback, and no DNS knows .invalid."""
    assert facts.resolved("localhost") in ("hosts", "dns")
    assert facts.resolved("nobody.invalid") == ""
    monkeypatch.setattr(facts.shutil, "which", lambda _name: None)
    assert facts.resolved("localhost") == "unknown"


def container(name, federation, role="client", state="running", port=None):
    """A line of `docker ps`, and its ports as the API has them."""
    labels = f"coldframe.federation={federation},coldframe.role={role},coldframe.client={name}"
    ports = [{"IP": "::", "PrivatePort": 80, "PublicPort": port, "Type": "tcp"}] if port else []
    line = {"ID": "f" * 64, "Names": name, "Labels": labels, "State": state, "Image": "i:1", "Status": "Up"}
    return json.dumps({**line, "Ports": f":::{port}->80/tcp" if port else "", "API": ports}) + "\n"


def test_a_container_is_told_alike_by_the_socket_and_by_the_command(answers):
    answers["ps"] = container("lab-server", "lab", "server", port=9092) + container("c1-0", "lab")
    server, client = facts.docker("lab")["containers"]
    expected = {"id": "f" * 64, "name": "lab-server", "image": "i:1", "federation": "lab", "role": "server"}
    assert expected.items() <= server.items()
    assert ("state", "running") in server.items() and server["running"] and server["status"] == "Up"
    assert _publishes(server["ports"], 9092) and not _publishes(server["ports"], 80)
    assert client["client"] == "c1-0" and not _publishes(client["ports"], 9092)


def test_clients_of_other_federations_come_with_their_cpu_limit(answers, monkeypatch):
    answers["ps"] = "".join(
        [
            container("lab-c1-0", "lab"),
            container("other-c1-0", "other"),
            container("other-c1-1", "other"),
            container("old-c1-0", "old"),
            container("other-c1-2", "other", state="exited"),
            container("other-server", "other", role="server"),
        ]
    )
    answers["inspect"] = "50000 100000 0 /other-c1-0\n0 0 0 /other-c1-1\n-1 0 750000000 /old-c1-0\n"
    asked = []
    command = facts.command
    monkeypatch.setattr(facts, "command", lambda *words: (asked.append(words), command(*words))[1])
    found = {item["name"]: item for item in facts.docker("lab")["containers"]}
    assert [words[4:] for words in asked if words[1] == "inspect"] == [
        ("other-c1-0", "other-c1-1", "old-c1-0")
    ]
    limits = {name: item["cpu"] for name, item in found.items() if "cpu" in item}
    assert limits == {"other-c1-0": 0.5, "other-c1-1": None, "old-c1-0": 0.75}
    asked.clear()
    facts.docker()
    assert not any(words[1] == "inspect" for words in asked), "nobody asked about a federation"
