"""The limits in a run's records: noted when it was submitted, or what the agents can still tell of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldframe.controller import results
from coldframe.controller.records import gather
from tests.unit.test_results import NAMES, collect, make_events, unpainted, write_journal

__all__ = ["unpainted"]  # for the tests here, too

NOTE = {
    "federation": "lab",
    "server": "bench",
    "versions": {"flwr": "0", "commit": "abc", "clean": False},
    "variables": {"rounds": 3, "strategy_args": {"proximal_mu": 0.1}, "run_name": ""},
    "machines": [
        {
            **{
                "name": "bench",
                "roles": ["server", "clients"],
                "cores": 4,
                "memory": 8 << 30,
                "docker": None,
            },
            **dict.fromkeys(("architecture", "system", "kernel", "cgroup", "memory")),
        }
    ],
    "clients": [
        {
            **{"name": name, "machine": "bench", "partition_id": i, "profile": None, "running": True},
            **{"cpu": cpu, "memory": 1 << 30, "pids": 256, "read_at": 1_699_999_990.0},
            **dict.fromkeys(("down", "up", "delay", "jitter", "loss")),
            "desired": {"cpu": cpu, "memory": 1 << 30, "pids": 256},
            "baseline": {"cpu": 0.5, "memory": 1 << 30, "pids": 256},
        }
        for i, (name, cpu) in enumerate(zip(NAMES, (0.25, 0.5, 0.5), strict=True))
    ],
}


def throttle(moment: float, client: str, cause: str = "throttle", **limits: Any) -> str:
    """A line of the agents' events."""
    held = {"requested": limits, "verified": limits, "holds": True, "seconds": 0.1}
    return json.dumps({"time": moment, "client": client, "cause": cause, **held}) + "\n"


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "foreign"])
def test_throttles_in_force_at_the_start_are_in_every_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], foreign: bool
) -> None:
    """One was from before the limits were read; one came after that and before the run began."""
    start = 1_700_000_000.0
    source = write_journal(tmp_path / "run", make_events(start=start))
    if foreign:
        (source / "journal.jsonl").unlink()
    (source / "submitted.json").write_text(json.dumps(NOTE), encoding="utf-8")
    events = [
        throttle(start - 99, "lab-2", cpu=0.1),  # and undone before it was read
        throttle(start - 3, "lab-1", memory=1 << 29),
        throttle(start + 10, "lab-2", cpu=0.2),
        throttle(start + 9000, "lab-2", cpu=0.1),
    ]
    given = {
        "events": "".join(events),
        "inventory": '{"machines": [{"name": "bench", "docker": "26"}], "clients": '
        '[{"name": "lab-0", "public_key": "k", "cpu": 9}, {"name": "lab-3", "cpu": 1}]}',
        "record": '{"started": "2023-11-14T22:13:20+00:00", "finished": "2023-11-14T22:14:23+00:00"}',
    }
    options = []
    for option, text in given.items():
        (tmp_path / option).write_text(text, encoding="utf-8")
        options += [f"--{option}", str(tmp_path / option)]
    summary = collect(source, tmp_path / "out", "--run-id", "99", *options)
    out = tmp_path / "out" / "latest"
    found = json.loads((out / "inventory.json").read_text(encoding="utf-8"))
    clients = {client["name"]: client for client in found["clients"]}
    assert [clients[name]["cpu"] for name in NAMES] == [0.25, 0.5, 0.5]
    assert [clients[name]["memory"] >> 20 for name in NAMES] == [1024, 512, 1024]
    assert {clients[name]["baseline"]["cpu"] for name in NAMES} == {0.5}
    # No agent has told of this one.
    assert (clients["lab-3"]["cpu"], clients["lab-3"]["baseline"]["cpu"]) == (None, 1)
    assert clients["lab-0"]["public_key"] == "k"
    assert found["machines"][0]["docker"] == "26"
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["client"], line["cause"], line["verified"]) for line in lines] == [
        ("lab-0", "in force", {"cpu": 0.25}),
        ("lab-1", "in force", {"memory": 1 << 29}),
        ("lab-2", "throttle", {"cpu": 0.2}),
    ]
    assert [line["time"] for line in lines] == [start, start, start + 10]
    assert all(line["holds"] for line in lines)
    said = capsys.readouterr().out
    assert (
        "throttled   lab-0 had cpu 0.25 cores when the run began, and was deployed with cpu 0.5 cores" in said
    )
    assert "lab-1 had memory 512 MiB when the run began, and was deployed with memory 1 GiB" in said
    assert "lab-2: throttled during the run" in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "lab-0 had cpu 0.25 cores when the run began" in page
    assert "the kernel enforced" in page
    if foreign:  # the table of clients has what the agents read
        cells = [page[page.index(f'class="name">{name}<') :][:400] for name in NAMES]
        assert ['nowrap">0.25<' in cells[0], 'nowrap">0.2 to 0.5<' in cells[2]] == [True, True]
    assert (summary["versions"]["commit"], summary["versions"]["clean"]) == ("abc", False)
    assert yaml.safe_load((out / "config.yml").read_text(encoding="utf-8")) == NOTE["variables"]


def test_a_run_of_flowers_own_command_has_the_limits_that_the_agents_can_still_tell(tmp_path: Path) -> None:
    """Nothing was noted when it was submitted: what has been changed since, and by nobody before, is null."""
    start = 1_700_000_000.0
    source = write_journal(tmp_path / "run", make_events(start=start))
    events = [
        throttle(start - 500, "lab-0", cpu=0.25),  # and so it is still
        throttle(start - 500, "lab-1", cpu=0.2),
        throttle(start + 10, "lab-1", cpu=0.4),
        throttle(start + 20, "lab-2", memory=1 << 29),
        throttle(start + 9000, "lab-2", cpu=0.1),
    ]
    now = json.loads(json.dumps(NOTE)) | {"variables": {"rounds": 99}}
    for client, limits in zip(
        now["clients"], ({}, {"cpu": 0.4}, {"cpu": 0.1, "memory": 1 << 29}), strict=True
    ):
        client |= {**limits, "read_at": start + 9999}
        client["desired"] |= limits
    now["clients"].append({**now["clients"][0], "name": "later-0"})  # deployed after the run
    now["machines"][0] |= {"load": 7.0}
    given = {
        "events": "".join(events),
        "found": json.dumps(now),
        "inventory": json.dumps({"machines": [{**NOTE["machines"][0], "load": None}], "clients": []}),
    }
    options = []
    for option, text in given.items():
        (tmp_path / option).write_text(text, encoding="utf-8")
        options += [f"--{option}", str(tmp_path / option)]
    collect(source, tmp_path / "out", *options)
    out = tmp_path / "out" / "latest"
    found = json.loads((out / "inventory.json").read_text(encoding="utf-8"))
    clients = {client["name"]: client for client in found["clients"]}
    assert set(clients) == set(NAMES)
    assert [clients[name]["cpu"] for name in NAMES] == [0.25, 0.2, None]
    assert [clients[name]["memory"] for name in NAMES] == [1 << 30, 1 << 30, None]
    assert {clients[name]["baseline"]["cpu"] for name in NAMES} == {0.5}
    assert [machine["load"] for machine in found["machines"]] == [None]
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["client"], line["cause"], line["verified"]) for line in lines] == [
        ("lab-0", "in force", {"cpu": 0.25}),
        ("lab-1", "in force", {"cpu": 0.2}),
        ("lab-1", "throttle", {"cpu": 0.4}),
        ("lab-2", "throttle", {"memory": 1 << 29}),
    ]
    assert "rounds" not in yaml.safe_load((out / "config.yml").read_text(encoding="utf-8"))


def test_scenario_and_what_it_asserts_are_in_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An assertion that failed is the command's status, and the folder is there all the same."""
    start = 1_700_000_000.0
    source = write_journal(tmp_path / "run", make_events(start=start))
    entries = {"1": "entry 1 (at 5 s, throttle)", "2": "entry 2 (round 9, kill)"}
    asserts = ["rounds >= 1", "limits_verified", "lateness.max <= 0.1", "restarts == {}", "accuracy >= 1.5"]
    scenario = {"name": "x.yml", "text": "timeline: []\n", "entries": entries, "asserts": asserts}
    (source / "submitted.json").write_text(json.dumps({**NOTE, "scenario": scenario}), encoding="utf-8")
    more = {"do": "throttle", "entry": 1, "lateness": 0.04}
    line = json.loads(throttle(start + 5, "lab-1", "scenario", cpu=0.1)) | more
    restart = {"time": start + 6, "client": "lab-1", "cause": "container restarted"}
    text = "".join(f"{json.dumps(event)}\n" for event in (line, restart))
    (tmp_path / "events").write_text(text, encoding="utf-8")
    options = ["--results", str(tmp_path / "out"), "--run-id", "99", "--events", str(tmp_path / "events")]
    assert results.main([str(source), *options]) == 3
    out = tmp_path / "out" / "latest"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert [entry["lateness"] for entry in summary["scenario"]["entries"]] == [0.04, None]
    assert [verdict["passed"] for verdict in summary["assertions"]] == [True, True, True, False, False]
    # lab-0 was throttled before: that is the first line of events.jsonl.
    assert summary["assertions"][3]["against"] == ["events.jsonl:3"]
    lines = (out / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[2])["cause"] == restart["cause"]
    [place] = summary["assertions"][4]["against"]
    name, _, number = place.partition(":")
    event = json.loads((out / name).read_text(encoding="utf-8").splitlines()[int(number) - 1])
    assert (event["event"], event["round"], event["accuracy"]) == ("round", 3, summary["accuracy"])
    assert (out / "scenario.yml").read_text(encoding="utf-8") == scenario["text"]
    xml, said = (out / "assertions.xml").read_text(encoding="utf-8"), capsys.readouterr().out
    assert 'failures="2"' in xml and f"see {place}" in xml
    assert f"FAILED: accuracy >= 1.5 (found: 0.93; see {place})" in said
    assert "entry 2 (round 9, kill) was never due" in said and "FAILED: restarts == {} (" in said
    assert "lab-1: throttled during the run" in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "throttle: cpu 0.1 cores" in page and "an entry of the scenario" in page


def test_where_an_agent_did_not_answer_what_is_asserted_of_it_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of events is there all the same: those of the machines that answer."""
    source = write_journal(tmp_path / "run", make_events(start=1_700_000_000.0))
    scenario = {"name": "x.yml", "text": "x", "entries": {}, "asserts": ["restarts == {}", "rounds >= 1"]}
    (source / "submitted.json").write_text(json.dumps({**NOTE, "scenario": scenario}), encoding="utf-8")
    (tmp_path / "events").write_text("", encoding="utf-8")
    options = ["--results", str(tmp_path / "out"), "--run-id", "99", "--events", str(tmp_path / "events")]
    assert results.main([str(source), *options, "--silent="]) == 0
    assert results.main([str(source), *options, "--silent=elsewhere"]) == 0  # it has no clients
    capsys.readouterr()
    assert results.main([str(source), *options, "--silent=bench,elsewhere"]) == 3
    assert "FAILED: restarts == {} (found: not known for bench)" in capsys.readouterr().out


def test_events_are_kept_by_when_something_happened(tmp_path: Path) -> None:
    """Not by when the agent noticed it."""
    run = gather([{"event": "x", "time": 100.0}, {"event": "x", "time": 200.0}])
    event = {"client": "lab-0", "cause": "container restarted"}
    before, during = {**event, "time": 110.0, "started": 90.0}, {**event, "time": 210.0, "started": 190.0}
    assert results.write_events([before, during], run, [], tmp_path / "events.jsonl") == [during]
