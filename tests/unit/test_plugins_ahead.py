"""What a deployment would do to a running run is said before it is done, with what to type."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import yaml

from coldframe.controller.interruption import coldframe_harm, coldframe_interruption

ROOT = Path(__file__).parents[2]


def state(**baseline: float) -> str:
    """A client's state file."""
    return json.dumps({"name": "c1-0", "num_partitions": 3, "baseline": {"cpu": 0.5, **baseline}})


def written(before: str, after: str, name: str = "c1-0") -> dict[str, Any]:
    """What the module tree says of one file."""
    path = f"/var/lib/coldframe/coldframe/clients/{name}.json"
    return {"diff": [{"before_header": path, "after_header": path, "before": before, "after": after}]}


def harm(**variables: Any) -> list[str]:
    """What is said of one machine."""
    return coldframe_harm(["c1"], {"c1": variables})


def test_nothing_that_would_change_is_no_harm() -> None:
    assert harm() == []
    unchanged = {"changed": False, "diff": {"before": {}, "after": {}}}
    assert (
        harm(
            coldframe_moved=[["coldframe-prometheus", "prometheus"]],  # no part of a run
            __fl_server_made=unchanged,
            __fl_agent_made=unchanged,
            __fl_client_made={"actions": {}, "differences": {}},
            __fl_client_files={"diff": []},
        )
        == []
    )


def test_a_container_that_would_be_made_anew_is_named_with_what_of_it_differs() -> None:
    image = {"image": "sha256:1", "image_name": "coldframe/fl:1", "running": True}
    wanted = {"image": "sha256:2", "image_name": "coldframe/fl:2", "running": True}
    made = {"changed": True, "diff": {"before": image, "after": wanted}}
    assert harm(__fl_server_made=made) == [
        "the server on c1 would be recreated (image_name coldframe/fl:1 -> coldframe/fl:2)"
    ]
    limit = {"changed": True, "diff": {"before": {"memory": 1 << 30}, "after": {"memory": 2 << 30}}}
    assert harm(__fl_server_made=limit) == [
        "the server on c1 would get another limit (memory 1073741824 -> 2147483648)"
    ]
    assert harm(__fl_agent_made=made)[0].startswith("the agent on c1 would be recreated")
    long = {"changed": True, "diff": {"before": {"env": ["A=1"] * 40}, "after": {"env": ["A=2"] * 40}}}
    assert harm(__fl_server_made=long) == ["the server on c1 would be recreated (env)"]


def test_what_is_missing_or_has_stopped_may_be_mended_during_a_run() -> None:
    made = {
        "changed": True,
        "diff": {"before": {"exists": False, "running": False}, "after": {"exists": True, "running": True}},
    }
    actions = {"c1-0": "create", "c1-1": "start"}
    files = written("", state())
    assert harm(__fl_agent_made=made, __fl_client_made={"actions": actions}, __fl_client_files=files) == []


def test_clients_that_would_be_made_anew_or_removed_are_named() -> None:
    made = {
        "actions": {"c1-0": "recreate", "c1-1": "remove", "c1-2": "recreate"},
        "differences": {"c1-0": ["Image coldframe/fl:1 -> coldframe/fl:2"], "c1-2": []},
    }
    assert harm(__fl_client_made=made) == [
        "client c1-0 on c1 would be recreated (Image coldframe/fl:1 -> coldframe/fl:2)",
        "client c1-1 on c1 would be removed",
        "client c1-2 on c1 would be recreated (its network)",
    ]
    assert harm(
        coldframe_moved=[["coldframe-c1-0", "client"], ["coldframe-node-exporter", "node_exporter"]]
    ) == ["coldframe-c1-0 on c1 would be removed"]


def test_limits_and_shares_of_the_data_that_would_change_are_named() -> None:
    """No container is made anew for them, but the run would go on under others."""
    assert harm(__fl_client_files=written(state(), state(cpu=0.3))) == [
        "client c1-0 on c1 would change (cpu 0.5 -> 0.3)"
    ]
    grown = state().replace('"num_partitions": 3', '"num_partitions": 4')
    assert harm(__fl_client_files=written(state(), grown)) == [
        "client c1-0 on c1 would change (num_partitions 3 -> 4)"
    ]
    assert harm(__fl_client_files=written(state(), state() + "\n")) == [], (
        "the same values, written otherwise"
    )


def test_a_machine_that_has_left_the_inventory_takes_its_clients_from_the_run() -> None:
    clients = [{"name": "c1-0", "machine": "c1"}, {"name": "c2-0", "machine": "c2"}]
    content = base64.b64encode(json.dumps(clients).encode()).decode()
    assert harm(coldframe_registered_file={"content": content}) == [
        "client c2-0 would be unregistered (c2 is not in the inventory)"
    ]


def test_the_message_names_the_run_the_change_and_what_to_type() -> None:
    message = coldframe_interruption(["7"], ["client c1-1 on c1 would be removed"], " -i lab.yml")
    assert message == (
        "Run 7 is running, and this deployment would change what is in use:\n"
        "  - client c1-1 on c1 would be removed\n"
        "Wait for the end, stop it with ansible-playbook run.yml -i lab.yml -e stop=7, or go on with "
        "-e interrupt=true.\n"
        "Nothing was changed."
    )
    assert coldframe_interruption(["7", "8"], ["x"]).startswith("The runs 7, 8 are running")


def test_what_is_asked_ahead_is_what_a_deployment_does() -> None:
    """The same task files, in check mode, before anything of a deployment is played."""

    def imported(path: str) -> set[str]:
        plays = yaml.safe_load((ROOT / "playbooks" / path).read_text())
        tasks = [task for play in plays for task in play.get("tasks", [play])]
        return {
            str(task.get("ansible.builtin.import_tasks", "")).removeprefix("tasks/") for task in tasks
        } - {""}

    ahead, _ = yaml.safe_load((ROOT / "playbooks/ahead.yml").read_text())
    assert ahead["check_mode"] is True
    assert ahead["diff"] is True
    changing = {"moved.yml", "partitions.yml", "server.yml", "clients.yml"}
    assert changing <= imported("federation.yml")
    assert changing <= imported("tasks/ahead.yml")
    site = [
        item["ansible.builtin.import_playbook"] for item in yaml.safe_load((ROOT / "site.yml").read_text())
    ]
    assert site[:2] == ["playbooks/preflight.yml", "playbooks/ahead.yml"]
