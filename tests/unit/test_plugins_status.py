"""status.yml joins what the machines, the kernel and the server say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from coldframe.controller.settings import VERBS
from coldframe.controller.status import (
    coldframe_before,
    coldframe_inventory,
    coldframe_missed,
    coldframe_server_seen,
    coldframe_status,
    coldframe_status_text,
    coldframe_submission,
    coldframe_with_keys,
)

LIMITS = {"cpu": 0.5, "memory": 1 << 30, "pids": 256}
USE = {"memory": 300 << 20, "cpu_seconds": 3.0, "throttled_share": 0.25, "oom_kills": 0}


def status(verified: dict[str, Any] | None, answers: bool = True) -> dict[str, Any]:
    """The status of one machine with one client."""
    answer = {
        "state": {"partition_id": 0},
        "desired": LIMITS,
        "verified": verified,
        "holds": verified == LIMITS,
        "use": USE if verified else {},
    }
    state = "running" if verified else "exited"
    containers = [{"role": "client", "client": "c1-0", "state": state, "status": "Up"}]
    agent = {"clients": {"c1-0": answer}} if answers else {"failed": False, "msg": "no agent answers"}
    hostvars = {"c1": {"coldframe_containers": containers, "coldframe_agent": agent}}
    nodes = [{"name": "c1-0", "status": "online"}]
    found = coldframe_status(["c1"], hostvars, nodes, [])
    there = [{**item, "federation": name} for item in containers for name in ("lab", "other")]
    seen = {"c1": {"machine_facts": {"docker": {"containers": there}, "agent": agent if answers else {}}}}
    assert coldframe_status(["c1"], seen, nodes, [], federation="lab") == found, "as preflight has seen it"
    ends = {
        "certificate_expires": "2999-01-01T00:00:00+00:00",
        "authority_expires": "2999-01-01T00:00:00+00:00",
    }
    return {**found, "federation": "lab", "gateway": "https://192.0.2.1:9092", "runtime": "warm", **ends}


def test_limits_that_the_kernel_holds_are_said_to_hold() -> None:
    """And the table says so."""
    report = status(LIMITS)
    assert report["clients"][0]["limits_hold"]
    assert "hold in the kernel" in "\n".join(coldframe_status_text(report))
    assert report["machines"][0]["running"] == 1


def test_runtime_is_shown_with_the_reason_why_it_is_not_the_wanted_one() -> None:
    report = status(LIMITS) | {"runtime": "stock (flwr 1.99.0 is untested)"}
    assert "runtime: stock (flwr 1.99.0 is untested)" in coldframe_status_text(report)[0]


def test_limits_that_the_kernel_does_not_hold_stand_out() -> None:
    """Both values are shown."""
    report = status({**LIMITS, "cpu": None})
    assert not report["clients"][0]["limits_hold"]
    text = "\n".join(coldframe_status_text(report))
    assert "DO NOT HOLD" in text
    assert "0.5 but none" in text


def test_addresses_are_shown_of_what_stands() -> None:
    """With the file that holds the password, and never the password."""
    hostvars = {"c1": {"coldframe_containers": [{"role": "prometheus", "client": "", "state": "running"}]}}
    about = {"url": "https://192.0.2.1:9090", "user": "coldframe", "password_file": "/home/ada/p"}
    planned = [
        {"name": "Prometheus", "role": "prometheus", **about},
        {"name": "Grafana", "role": "grafana", **about},
    ]
    report = coldframe_status(["c1"], hostvars, [], [], planned)
    assert report["addresses"] == [{"name": "Prometheus", **about}]
    report |= {"federation": "lab", "gateway": "https://192.0.2.1:9092", "runtime": "warm"}
    report |= dict.fromkeys(("certificate_expires", "authority_expires"), "2999-01-01T00:00:00+00:00")
    text = "\n".join(coldframe_status_text(report))
    assert "https://192.0.2.1:9090" in text
    assert "Grafana" not in text


def test_run_that_goes_on_is_shown_with_round_and_accuracy() -> None:
    """The columns are there while a run goes on, and empty where its journal does not tell."""
    text = {"app": "us/fl", "submitted": "2026-11-30T01:02:03+00:00", "finished": "", "details": ""}
    ended = {"run_id": "1", "status": "finished", "sub_status": "completed", **text}
    going = {"run_id": "2", "status": "running", "sub_status": "", **text}
    told = {"round": 3, "rounds": 5, "accuracy": 0.91234}
    about = {"federation": "lab", "gateway": "https://192.0.2.1:9092", "runtime": "warm"}
    report = {**coldframe_status([], {}, [], []), **about}
    report |= dict.fromkeys(("certificate_expires", "authority_expires"), "2999-01-01T00:00:00+00:00")
    lines = coldframe_status_text({**report, "runs": [{**going, **told}, ended]})
    (line,) = [line for line in lines if line.startswith("2 ")]
    assert line.split()[:4] == ["2", "running", "3/5", "0.9123"]
    silent = dict.fromkeys(told)
    assert "None" not in "\n".join(coldframe_status_text({**report, "runs": [{**going, **silent}]}))
    assert "accuracy" not in "\n".join(coldframe_status_text({**report, "runs": [ended]}))


def test_client_that_does_not_run_holds_nothing() -> None:
    """It is listed all the same."""
    report = status(None)
    assert not report["clients"][0]["limits_hold"]
    assert report["machines"][0] == {
        "machine": "c1",
        "address": None,
        "server": None,
        "clients": 1,
        "running": 0,
    }


def test_machine_whose_agent_does_not_answer_holds_nothing() -> None:
    """Its clients are listed as the engine knows them."""
    report = status(LIMITS, answers=False)
    assert [client["client"] for client in report["clients"]] == ["c1-0"]
    assert not report["clients"][0]["limits_hold"]
    assert "DO NOT HOLD" in "\n".join(coldframe_status_text(report))


def test_inventory_of_a_run_joins_registration_limits_and_machines() -> None:
    """A client that has left the roster keeps its line, without limits; so does a machine that is silent.

    An engine that preflight did not find yet is known from the fetching of the logs.
    """
    registered = [
        {"name": name, "machine": "c1", "partition_id": i} for i, name in enumerate(("c1-0", "c1-1"))
    ]
    roster = [{"name": "c1-0", "cpu": 0.5, "memory": 1 << 30, "pids": 256, "profile": None}]
    facts = {
        "cpus": 2,
        "memory_total": 4 << 30,
        "arch": "x86_64",
        "kernel": "6.1",
        "docker": {"version": "26"},
    }
    said = {"stdout_lines": ["26", str(2 << 30)]}
    hostvars = {
        "srv": {"machine_facts": facts, "coldframe_engine_version": said},
        "c1": {"coldframe_engine_version": {"stdout_lines": ["27", ""]}},
    }
    groups = {"fl_machines": ["srv", "c1"], "fl_server": ["srv"], "fl_clients": ["srv", "c1"]}
    found = coldframe_inventory(registered, roster, groups, hostvars)
    assert [(client["name"], client["cpu"]) for client in found["clients"]] == [("c1-0", 0.5), ("c1-1", None)]
    machine, silent = found["machines"]
    assert (machine["roles"], machine["cores"], machine["docker"]) == (["server", "clients"], 2, "26")
    assert (silent["name"], silent["cores"], silent["docker"]) == ("c1", None, "27")
    assert [item["server_memory"] for item in found["machines"]] == [2 << 30, None]
    assert {item[key] for item in found["machines"] for key in ("load", "other_containers", "other_cpu")} == {
        None
    }


def test_inventory_of_a_run_says_what_else_its_machines_did_at_its_start() -> None:
    """Where somebody looked: a run that is fetched later has no such figures."""
    containers = [
        {"federation": "lab", "role": "client", "running": True},
        {"federation": "other", "role": "client", "running": True, "cpu": 0.5},
        {"federation": "other", "role": "client", "running": False, "cpu": 9},
        {"federation": "third", "role": "client", "running": True, "cpu": None},
        {"federation": "third", "role": "server", "running": True},
    ]
    facts = {"load": 1.25, "cpus": 4, "docker": {"version": "26", "containers": containers}}
    hostvars = {"c1": {"machine_facts": facts}, "c2": {}}
    found = coldframe_inventory([], [], {"fl_machines": ["c1", "c2"]}, hostvars, "lab")["machines"]
    assert [(item["load"], item["other_containers"]) for item in found] == [(1.25, 3), (None, None)]
    assert [item["other_cpu"] for item in found] == [4.5, None], "one without a limit may use all cores"


def test_submission_notes_what_was_typed_and_what_the_agents_read() -> None:
    """A deployment in the same call has read later than preflight, which found no agent perhaps."""

    def answer(name: str, verified: dict[str, Any] | None) -> dict[str, Any]:
        state = {"name": name, "machine": "c1", "partition_id": 0, "profile": None, "baseline": LIMITS}
        return {"clients": {name: {"state": state, "desired": LIMITS, "verified": verified}}}

    hostvars = {
        "c1": {
            "machine_facts": {"time": 7.0, "agent": answer("c1-0", {**LIMITS, "cpu": 0.2, "online": True})}
        },
        "c2": {
            "machine_facts": {"time": 8.0, "agent": {}},
            "__fl_agent_status": answer("c2-0", None),
        },
    }
    groups = {"fl_machines": ["c1", "c2"], "fl_server": ["c1"], "fl_clients": ["c1", "c2"]}
    run = {name: variable.default for name, variable in VERBS["site"].items()}
    who = {"federation": "lab", "server": "c1", "versions": {"commit": "abc"}}
    run["run_name"] = "pilot"
    found = coldframe_submission({"run": run, "oversubscribed": True}, groups, hostvars, who)
    assert found["settings"] == {
        **{"run_name": "pilot", "wait_timeout": 300.0, "oversubscribed": True},
        **dict.fromkeys(("round_deadline", "round_goal", "round_minimum", "replay"), ""),
        "round_late": "drop",
        "checkpoint": True,
    }
    assert {key: found[key] for key in who} == who
    one, two = found["clients"]
    assert (one["name"], one["cpu"], one["memory"], one["down"]) == ("c1-0", 0.2, 1 << 30, None)
    assert (one["baseline"], one["running"], one["read_at"]) == (LIMITS, True, 7.0)
    assert (two["name"], two["cpu"], two["running"]) == ("c2-0", None, False)
    assert found["variables"].items() >= {"rounds": 5, "dataset": "mnist", "strategy_args": {}}.items()
    assert not {"wait", "collect", "stop", "follow", "train", "redeploy", "app"} & found["variables"].keys()
    plan = {"run": {**run, "app": "x", "run_config": {"a": 1}}, "oversubscribed": False}
    other = coldframe_submission(plan, groups, hostvars, who)
    assert other["settings"]["run_name"] == "pilot", "it travels beneath any app"
    assert other["variables"] == {"app": "x", "run_config": {"a": 1}}
    plan["run"]["round_deadline"] = 60.0
    noted = coldframe_submission(plan, groups, hostvars, who)
    assert noted["settings"]["round_deadline"] == noted["variables"]["round_deadline"] == 60.0
    assert "round_late" not in noted["variables"], "it is as ever"
    plan["run"]["round_late"] = "fold"
    noted = coldframe_submission(plan, groups, hostvars, who)
    assert noted["settings"]["round_late"] == noted["variables"]["round_late"] == "fold"


def test_clients_sort_as_people_count() -> None:
    names = [f"c1-{number}" for number in (10, 2, 0, 1)]
    containers = [{"role": "client", "client": name, "state": "running"} for name in names]
    found = coldframe_status(["c1"], {"c1": {"coldframe_containers": containers}}, [], [])
    assert [client["client"] for client in found["clients"]] == ["c1-0", "c1-1", "c1-2", "c1-10"]


def test_a_moment_before_is_one() -> None:
    assert coldframe_before("2026-11-24T10:00:00Z", 600) == "2026-11-24T09:50:00+00:00"


def test_registration_joins_roster_and_public_keys() -> None:
    """Only what the server needs."""
    roster = [{"name": "c1-0", "machine": "c1", "partition_id": 0, "cpu": 0.5}]
    hostvars = {"c1": {"fl_pki_public_keys": {"c1-0": "ecdsa-sha2-nistp384 AAAA"}}}
    assert coldframe_with_keys(roster, hostvars) == [
        {"name": "c1-0", "machine": "c1", "partition_id": 0, "public_key": "ecdsa-sha2-nistp384 AAAA"}
    ]


def test_end_of_certificates_is_shown_with_what_to_do_where_it_is_near() -> None:
    soon = datetime.now(UTC) + timedelta(days=5, hours=1)
    report = status(LIMITS) | {"certificate_expires": soon.isoformat()}
    line = coldframe_status_text(report)[1]
    near = f"{soon:%Y-%m-%d} (5 days, renew it: ansible-playbook site.yml -e train=false)"
    assert line.startswith(f"Certificates: server until {near}, authority until 2999-01-01 (")
    assert line.count("renew") == 1


def test_memory_of_the_server_is_shown_beside_its_limit() -> None:
    """As its kernel says; nothing is said where the server is older than that."""
    report = status(LIMITS)
    found = [
        [line for line in coldframe_status_text(report | said) if line.startswith("Server:")]
        for said in (
            {"server_memory_limit": 2 << 30, "server_memory_used": 300 << 20},
            {"server_memory_limit": None, "server_memory_used": 300 << 20},
            {"server_memory_limit": None, "server_memory_used": None},
            {},
        )
    ]
    assert found == [
        ["Server: uses 300 MB of 2 GB memory"],
        ["Server: uses 300 MB of unlimited memory"],
        [],
        [],
    ]


def test_machines_that_preflight_could_not_look_at_are_missed() -> None:
    """A machine without an engine has no container: it is not asked again."""
    engines = {
        "well": {"docker": {"kind": "docker", "installed": True, "version": "27"}},
        "bare": {"docker": {"kind": "docker", "installed": False, "version": ""}},
        "down": {"docker": {"kind": "docker", "installed": True, "version": ""}},
        "podman": {"docker": {"kind": "podman", "installed": True, "version": "5"}},
        "gone": {"unreachable": True},
    }
    hostvars: dict[str, Any] = {name: {"machine_facts": facts} for name, facts in engines.items()}
    hostvars["limited"] = {}
    assert coldframe_missed(hostvars, hostvars) == ["down", "podman", "gone", "limited"]


def test_the_server_is_seen_where_it_runs_by_an_image_that_has_a_name() -> None:
    server = {"name": "lab-server", "running": True, "image": "coldframe/fl:1"}

    def seen(**changed: Any) -> str:
        facts = {"docker": {"containers": [{**server, **changed}]}}
        return str(coldframe_server_seen(facts, "lab")["image"])

    assert seen() == "coldframe/fl:1"
    assert seen(running=False) == seen(name="other-server") == seen(image="sha256:f00") == ""
    assert (
        coldframe_server_seen({"unreachable": True}, "lab")
        == coldframe_server_seen(None, "lab")
        == {"image": ""}
    )
