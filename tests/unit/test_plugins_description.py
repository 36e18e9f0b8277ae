"""Tests of coldframe/controller/description.py: what is typed later is judged by what stands."""

import json
from dataclasses import replace

import pytest

from coldframe.controller import description
from coldframe.controller.checks import Machine
from coldframe.controller.roster import build_roster
from coldframe.controller.settings import cast_inventory

SITE = "ansible-playbook site.yml -e train=false"
USUAL = {"fl_port": 9092, "fl_monitoring": True, "grafana_port": 3000}
GROUPS = {"fl_server": ["desk"], "fl_clients": ["desk", "bench"]}


def machines(cores: int = 2, **variables):
    """The two machines of an inventory, with the variables of each by name and those of -e as `typed`."""
    typed = variables.pop("typed", {})
    found, raw = [], {}
    for name in ("desk", "bench"):
        raw[name] = {**variables.get(name, {}), **typed, "machine_facts": {"cpus": cores}}
        settings, findings = cast_inventory(raw[name])
        assert not findings
        groups = frozenset(group for group, members in GROUPS.items() if name in members)
        found.append(Machine(name, groups, settings, facts={"cpus": cores}, host=f"192.0.2.{len(found) + 1}"))
    return found, raw


def deploy(**variables):
    """The description that a deployment with these variables leaves, by way of JSON."""
    found, raw = machines(**variables)
    roster = build_roster([machine.name for machine in found], raw)
    usual = {machine.name: USUAL for machine in found}
    text = json.dumps(description.describe("lab", found, roster, usual, variables.get("typed", {}), 1.0))
    note = {"description": json.loads(text), "plan": "p"}
    facts = {"deployment": {"noted": note}, "docker": {"containers": [{"federation": "lab"}]}}
    return description.newest([Machine("desk", facts=facts)], "lab")[0]


def findings(stood, groups=None, **variables):
    """What is found where these are the variables of another verb."""
    found, raw = machines(**variables)
    typed = variables.get("typed", {})
    planned = build_roster([machine.name for machine in found], stood.repeat(raw, typed))
    return [str(item) for item in stood.differences(found, groups or GROUPS, typed, planned, SITE)]


TYPED = {"typed": {"fl_client_count": "2", "fl_client_cpu": 0.5, "fl_port": "9192"}}
WRITTEN = {"desk": {"fl_client_count": 1}, "bench": {"fl_client_list": [{}, {"name": "small"}]}}


@pytest.mark.parametrize(
    "deployment", [TYPED, WRITTEN, {**WRITTEN, **TYPED}], ids=["typed", "written", "both"]
)
def test_nothing_has_to_be_repeated(deployment) -> None:
    stood = deploy(**deployment)
    later = {key: value for key, value in deployment.items() if key != "typed"}
    assert findings(stood, **later) == []
    assert findings(stood, **deployment) == []  # and may be
    found, _ = machines(**later)
    followed = {machine.name: machine.settings for machine in stood.follow(found, {}, here=True)}
    port = 9192 if "typed" in deployment else 9092
    assert {settings["fl_port"] for settings in followed.values()} == {port}
    names = [client["name"] for client in stood.clients_of(found)]
    assert names == (
        ["desk-0", "bench-0", "small"]
        if deployment == WRITTEN
        else ["desk-0", "desk-1", "bench-0", "small"]
        if "bench" in deployment
        else ["desk-0", "desk-1", "bench-0", "bench-1"]
    )


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            {"fl_client_count": "5"},
            "the clients would be 5 (desk-0, desk-1, desk-2, desk-3, desk-4) instead of 1",
        ),
        ({"fl_client_count": 0}, "on desk the clients would be 0 (none) instead of 1 (desk-0)"),
        ({"fl_client_cpu": "0.25"}, "on desk desk-0 would have cpu=0.25 instead of 1.0; on bench bench-0"),
        ({"fl_client_memory": "512m"}, "desk-0 would have memory=512 MB instead of 1 GB"),
        ({"fl_port": 9192}, "fl_port=9192 instead of 9092"),
        ({"fl_address": "10.0.0.9"}, "fl_address=10.0.0.9 instead of 192.0.2.1"),
        ({"fl_monitoring": "false"}, "fl_monitoring=false instead of true"),
        ({"fl_runtime": "stock"}, "fl_runtime=stock instead of its default"),
    ],
)
def test_what_is_typed_and_contradicts_is_named_with_the_difference(typed, words) -> None:
    found = findings(deploy(**WRITTEN), **WRITTEN, typed=typed)
    assert len(found) == 1
    assert found[0].startswith(f"{next(iter(typed))} is typed, and the federation stands otherwise: ")
    assert words in found[0]
    assert found[0].endswith(f": leave it out, or deploy it first: {SITE}")


def test_a_typed_value_that_comes_to_the_same_is_no_contradiction() -> None:
    stood = deploy(**WRITTEN)
    assert findings(stood, **WRITTEN, typed={"fl_client_memory": "1g", "fl_monitoring": "yes"}) == []
    assert findings(stood, **WRITTEN, typed={"fl_results_dir": "elsewhere"}) == []


def test_an_inventory_that_has_been_changed_since_is_a_contradiction() -> None:
    stood = deploy(**WRITTEN)
    changed = {**WRITTEN, "desk": {"fl_client_count": 3}}
    assert findings(stood, **changed) == [
        "the inventory has changed since the federation was deployed: the clients would be 3 (desk-0, "
        "desk-1, desk-2) instead of 1 (desk-0) (fl_client_count): write it as it was, or deploy it first: "
        + SITE
    ]
    listed = {**WRITTEN, "bench": {"fl_client_list": [{}, {"name": "small", "cpu": 0.3}]}}
    assert "small would have cpu=0.3 instead of 0.8" in findings(stood, **listed)[0]
    # What matters to site.yml alone waits for it.
    assert findings(stood, desk={"fl_client_count": 1, "prometheus_retention_time": "3d"}) == []


def test_what_was_typed_for_the_deployment_beats_the_inventory_still() -> None:
    """inventory/local.yml says 3, `make up CLIENTS=2` has made 2."""
    stood = deploy(desk={"fl_client_count": 3}, bench={"fl_client_count": 3}, typed={"fl_client_count": "2"})
    assert findings(stood, desk={"fl_client_count": 3}, bench={"fl_client_count": 3}) == []


def test_a_calibration_since_the_deployment_changes_no_limit_of_what_stands() -> None:
    stood = deploy(desk={"fl_client_profile": "raspberry-pi-3"})
    assert findings(stood, desk={"fl_client_profile": "raspberry-pi-3"}, cores=1) == []


def test_machines_that_come_and_go_are_named() -> None:
    stood = deploy(**WRITTEN)
    assert (
        "bench has clients of this federation"
        in findings(stood, {**GROUPS, "fl_clients": ["desk"]}, **WRITTEN)[0]
    )
    more = findings(stood, {**GROUPS, "fl_clients": ["desk", "bench", "new"]}, **WRITTEN)
    assert more == [
        "new is in the group fl_clients, and was not deployed with clients: take it out, or deploy it first: "
        + SITE
    ]


def test_paths_of_another_controller_are_not_followed() -> None:
    stood = deploy(typed={"fl_results_dir": "/home/ada/results", "fl_port": 9192})
    found, _ = machines()
    here, there = (stood.follow(found, {}, here=here)[0].settings for here in (True, False))
    assert here["fl_results_dir"] == "/home/ada/results"
    assert "fl_results_dir" not in there
    assert there["fl_port"] == 9192


def test_the_playbooks_are_told_only_what_they_would_not_see() -> None:
    stood = deploy(typed={"fl_port": 9192, "fl_client_count": 2})
    found, _ = machines()
    usual = {machine.name: USUAL for machine in found}
    told = description.to_set(found, stood.follow(found, {}, here=True), usual)
    assert told == [{"machine": name, "name": "fl_port", "value": 9192} for name in ("desk", "bench")]


def test_of_several_descriptions_the_last_counts_and_without_containers_none() -> None:
    found = []
    for time, port, containers in ((1, 1, ["lab"]), (3, 3, ["other"]), (2, 2, ["lab", "other"])):
        settings = {"groups": [], "address": "", "settings": {"fl_port": port}}
        note = {
            "description": {"time": time, "machines": {"a": settings}, "roster": [], "typed": {}},
            "plan": "",
        }
        running = [{"federation": name} for name in containers]
        found.append(
            Machine(str(time), facts={"deployment": {"noted": note}, "docker": {"containers": running}})
        )
    away = replace(found[0], facts=None)
    assert description.newest([*found, away], "lab")[0].machines["a"]["settings"] == {"fl_port": 2}
    assert not description.newest([found[1], away], "lab")[0]
    old = Machine(
        "a", facts={"deployment": {"noted": {"plan": "p"}}, "docker": {"containers": [{"federation": "lab"}]}}
    )
    assert not description.newest([old], "lab")[0]


def test_the_servers_machine_has_the_say_and_what_is_no_description_is_none() -> None:
    """A machine of clients that names a later time changes nothing for the others."""

    def machine(name, group, described):
        noted = {"plan": name, "description": described}
        facts = {"deployment": {"noted": noted}, "docker": {"containers": [{"federation": "lab"}]}}
        return Machine(name, frozenset({group}), facts=facts)

    def described_at(time, **changes):
        return {
            "time": time,
            "machines": {"a": {"settings": {"at": time}}},
            "roster": [],
            "typed": {},
            **changes,
        }

    server, client = (
        machine("srv", "fl_server", described_at(1)),
        machine("c1", "fl_clients", described_at(9e9)),
    )
    for order in ([server, client], [client, server]):
        assert description.newest(order, "lab")[1] == "srv"
    moving = machine("srv", "fl_server", None)
    assert description.newest([moving, client], "lab")[1] == "c1"
    for torn in ("x", [], described_at("x"), described_at(5, roster="x"), described_at(5, machines=[])):
        assert description.newest([machine("c1", "fl_clients", torn)], "lab")[1] == ""
