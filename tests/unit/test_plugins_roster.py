"""Tests of coldframe/controller/roster.py: who the clients are, their partitions, and how it is shown."""

import json
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from coldframe.controller import roster
from coldframe.controller.roster import (
    build_roster,
    coldframe_roster,
    coldframe_status_table,
    run_config,
)
from plugins.filter.coldframe import FilterModule


def machine(cores=4, **variables):
    return {"machine_facts": {"cpus": cores}, **variables}


def test_clients_are_named_after_their_machine_and_numbered_through():
    hostvars = {"a": machine(fl_client_count=2), "b": machine()}
    clients = coldframe_roster(["a", "b"], hostvars)
    assert [client["name"] for client in clients] == ["a-0", "a-1", "b-0"]
    assert [client["machine"] for client in clients] == ["a", "a", "b"]
    assert [client["partition_id"] for client in clients] == [0, 1, 2]
    assert {client["num_partitions"] for client in clients} == {3}
    assert clients[2] == {
        "name": "b-0",
        "machine": "b",
        "partition_id": 2,
        "num_partitions": 3,
        "cpu": 1.0,
        "memory": 1 << 30,
        "pids": 256,
        "profile": None,
    }


def test_server_may_use_what_is_given_or_half_of_the_machine():
    """A machine's memory differs by some MB from one start to the next: the limit does not."""
    of = roster.coldframe_server_memory
    assert of("2g", 8 << 30) == 2 << 30
    assert of("", 8 << 30) == 4 << 30
    assert of("", (8 << 30) - (90 << 20)) == of("", (8 << 30) - (91 << 20)) == 4032 << 20
    assert of("", 1 << 30) == of("", 0) == 700 << 20


def test_partition_ids_stay_when_the_inventory_changes_its_order_or_grows():
    hostvars = {"a": machine(fl_client_count=2), "b": machine()}
    before = {"a-0": 0, "b-0": 1}
    clients = {client["name"]: client for client in coldframe_roster(["b", "a"], hostvars, before)}
    assert {name: client["partition_id"] for name, client in clients.items()} == {
        "b-0": 1,
        "a-0": 0,
        "a-1": 2,
    }


def test_a_partition_id_is_never_used_again():
    clients = coldframe_roster(["new"], {"new": machine()}, {"gone": 0, "gone-too": 4})
    assert [(client["partition_id"], client["num_partitions"]) for client in clients] == [(5, 6)]


def test_the_last_clients_data_comes_back_to_the_others_when_they_leave():
    clients = coldframe_roster(["a"], {"a": machine(fl_client_count=2)}, {"a-0": 0, "a-1": 1, "a-2": 2})
    assert {client["num_partitions"] for client in clients} == {2}


@pytest.mark.parametrize(
    ("cores", "clients", "cpu"), [(2, 3, 0.53), (8, 1, 1.0), (2, 1, 1.0), (1, 1, 0.8), (1, 100, 0.05)]
)
def test_the_default_cpu_leaves_a_fifth_of_the_machine(cores, clients, cpu):
    roster_ = coldframe_roster(["a"], {"a": machine(cores, fl_client_count=clients)})
    assert {client["cpu"] for client in roster_} == {cpu}


def test_cores_come_from_ansibles_facts_too():
    hostvars = {"a": {"ansible_facts": {"processor_nproc": 1, "processor_vcpus": 8}}}
    assert coldframe_roster(["a"], hostvars)[0]["cpu"] == 0.8


def test_without_cores_there_is_no_guess():
    with pytest.raises(AnsibleFilterError, match=r"cores of machine a is not known.*gather facts"):
        coldframe_roster(["a"], {"a": {}})
    assert coldframe_roster(["a"], {"a": {"fl_client_cpu": "0.5"}})[0]["cpu"] == 0.5
    assert build_roster(["a"], {"a": {}})[0]["cpu"] is None


def test_a_list_sets_each_client_and_the_machine_the_rest():
    hostvars = {
        "a": machine(
            fl_client_count=9,
            fl_client_memory="512m",
            fl_client_pids="128",
            fl_client_list=[{"name": "slow", "cpu": "0.25", "profile": "raspberry-pi-4"}, {"memory": "2g"}],
        )
    }
    slow, other = coldframe_roster(["a"], hostvars)
    assert (slow["name"], slow["cpu"], slow["memory"], slow["pids"], slow["profile"]) == (
        "slow",
        0.25,
        512 << 20,
        128,
        "raspberry-pi-4",
    )
    assert (other["name"], other["cpu"], other["memory"], other["profile"]) == ("a-1", 1.0, 2 << 30, None)


def test_a_profile_is_the_baseline_and_a_given_limit_beats_it():
    """Of the machine or of the list; a delay of zero takes the profile's away."""
    pi = {"cpu": 0.66, "memory": 4 << 30, "pids": 256}
    hostvars = {
        "a": machine(fl_client_profile="raspberry-pi-4"),
        "b": machine(fl_client_profile="raspberry-pi-4,dsl", fl_client_memory="1g", fl_client_delay=0),
        "c": machine(
            fl_client_list=[{"profile": "raspberry-pi-4", "cpu": 0.5, "up": "10mbit"}, {"memory": "2g"}]
        ),
    }
    clients = coldframe_roster(["a", "b", "c"], hostvars)
    assert [{key: client[key] for key in roster.LIMITS if key in client} for client in clients] == [
        pi,
        {**pi, "memory": 1 << 30, "down": 1_500_000, "up": 384_000},
        {**pi, "cpu": 0.5, "up": 10_000_000},
        {"cpu": 1.0, "memory": 2 << 30, "pids": 256},
    ]
    baseline = json.loads(roster.coldframe_state_files(clients, "fed")["b-0.json"])["baseline"]
    assert baseline == {**pi, "memory": 1 << 30, "down": 1_500_000, "up": 384_000}


def test_a_profiles_cores_are_those_of_a_reference_machine():
    """A machine that trains half as fast as the reference gives twice as many of its cores."""
    slow = {"cpus": 4, "calibration": {"steps_per_second": 8.6}}
    clients = coldframe_roster(["a"], {"a": {"machine_facts": slow, "fl_client_profile": "raspberry-pi-4"}})
    assert clients[0]["cpu"] == pytest.approx(1.32)


def test_a_profile_that_is_not_known_is_refused_with_the_nearest():
    with pytest.raises(AnsibleFilterError, match=r"a-0 has the profile raspbery-pi-4.*mean raspberry-pi-4\?"):
        coldframe_roster(["a"], {"a": machine(fl_client_profile="raspbery-pi-4")})


def test_two_clients_of_one_name_are_refused():
    hostvars = {"a": machine(fl_client_list=[{"name": "b-0"}]), "b": machine()}
    with pytest.raises(
        AnsibleFilterError, match=r"two clients are called b-0 \(machines a and b\): give one"
    ):
        coldframe_roster(["a", "b"], hostvars)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"cpuu": 1}, "unknown key cpuu"),
        ({"name": "no/slash"}, "is no name for a client"),
        ({"memory": "x"}, "size"),
    ],
)
def test_a_bad_entry_is_refused(entry, message):
    with pytest.raises(AnsibleFilterError, match=message):
        coldframe_roster(["a"], {"a": machine(fl_client_list=[entry])})


def test_a_machine_may_have_no_clients():
    assert coldframe_roster(["a"], {"a": machine(fl_client_count=0)}) == []


@pytest.mark.parametrize("settings", [{}, {"fl_client_count": 3}])
def test_an_empty_list_means_no_clients(settings):
    assert coldframe_roster(["a"], {"a": machine(fl_client_list=[], **settings)}) == []


def test_a_name_written_as_a_number_keeps_its_name():
    clients = coldframe_roster(["a"], {"a": machine(fl_client_list=[{"name": 0}, {"name": 17}, {}])})
    assert [client["name"] for client in clients] == ["0", "17", "a-2"]


def test_run_config_is_flat_and_named_as_the_app_names_it():
    run = {
        "rounds": 3,
        "fl_strategy": "fedprox",
        "strategy_args": {"proximal_mu": 0.1},
        "wait": True,
        "app": "",
    }
    assert run_config(run) == {
        "num-server-rounds": 3,
        "strategy": "fedprox",
        "strategy-args": '{"proximal_mu": 0.1}',
    }


def test_the_run_config_of_another_app_passes_through_with_flat_keys():
    run = {"rounds": 3, "app": "elsewhere", "run_config": {"epochs": 2, "deep": "x", "model": {"width": 3}}}
    assert run_config(run) == {"epochs": 2, "deep": "x", "model.width": 3}


def test_the_table_is_aligned():
    rows = [
        {"client": "a-0", "cpu": 0.5, "memory": 1 << 30, "partition_id": 0, "up": True},
        {"client": "long-name-1", "cpu": None, "memory": 512 << 20, "partition_id": 11, "up": False},
    ]
    assert coldframe_status_table(rows).splitlines() == [
        "client       cpu  memory  partition id  up",
        "a-0          0.5    1 GB             0  yes",
        "long-name-1    -  512 MB            11  no",
    ]
    assert coldframe_status_table(rows, indent=2).startswith("  client")
    assert coldframe_status_table([]) == ""


def test_documented_filters_are_there():
    documents = list((Path(__file__).parents[2] / "plugins" / "filter").glob("*.yml"))
    assert len(documents) == 4
    for path in documents:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert text["DOCUMENTATION"]["name"] == path.stem
        assert path.stem in FilterModule().filters()
        assert "_value" in text["RETURN"]


def test_a_state_file_says_who_a_client_is_and_its_baseline():
    (entry,) = roster.build_roster(["m"], {"m": {"fl_client_count": 1, "machine_facts": {"cpus": 2}}})
    files = roster.coldframe_state_files([entry], "fed")
    assert list(files) == ["m-0.json"]
    assert json.loads(files["m-0.json"]) == {
        "name": "m-0",
        "federation": "fed",
        "machine": "m",
        "partition_id": 0,
        "num_partitions": 1,
        "profile": entry["profile"],
        "baseline": {"cpu": entry["cpu"], "memory": entry["memory"], "pids": entry["pids"]},
    }
